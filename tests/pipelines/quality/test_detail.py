"""What stands out from paper and from a textured wall: lines of any colour, but not the wall's own grain."""

from __future__ import annotations

import numpy as np
import pytest

from pipelines.quality.detail import fill_hidden, local_contrast

SIDE = 160
HIDDEN = np.zeros((SIDE, SIDE), bool)
HIDDEN[60:120, 50:110] = True
CORD = np.zeros((SIDE, SIDE), bool)
CORD[84:87, 110:150] = True


def wall(grain: float) -> np.ndarray:
    return np.random.default_rng(0).normal(200, grain, (SIDE, SIDE, 3))


@pytest.mark.parametrize("colour", [(170, 170, 170), (30, 30, 30), (190, 60, 40), (245, 245, 245)])
def test_a_cord_of_any_colour_stands_out_from_paper(colour):
    image = wall(2)
    image[HIDDEN], image[CORD] = (120, 40, 160), colour
    for out in local_contrast(image.clip(0, 255).astype(np.uint8), HIDDEN):
        assert np.median(out[CORD]) > 1
        assert np.quantile(out[~HIDDEN & ~CORD], 0.9) < 0.7


def test_the_same_faint_line_is_lost_in_grain():
    image = wall(25)
    image[HIDDEN], image[CORD] = (120, 40, 160), (185, 185, 185)
    for out in local_contrast(image.clip(0, 255).astype(np.uint8), HIDDEN):
        assert np.median(out[CORD]) < 1


def test_what_is_hidden_is_filled_with_what_is_around_it():
    image = np.full((SIDE, SIDE, 3), (10, 120, 200), np.uint8)
    image[HIDDEN] = 255
    assert np.abs(fill_hidden(image, HIDDEN).astype(int) - (10, 120, 200)).max() <= 1


def test_a_picture_that_is_all_product_has_nothing_to_stand_out_from():
    image = np.full((40, 30, 3), 90, np.uint8)
    for out in local_contrast(image, np.ones((40, 30), bool)):
        assert np.isfinite(out).all()
