"""A cutout that HQ-SAM is unsure of is held where its surroundings are varied; on plain paper it is not."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from pipelines.quality.certainty import LIMIT, measure_certainty, surrounding_spread

RNG = np.random.default_rng(3)
SHELF = np.kron(RNG.integers(0, 256, (8, 8, 3)), np.ones((40, 40, 1))).astype(np.uint8)
PAPER = np.full((320, 320, 3), 240, np.uint8)


def product(softness: float) -> np.ndarray:
    """A disc whose edge is as soft as HQ-SAM's is where it is unsure."""
    disc = cv2.circle(np.zeros((320, 320), np.float32), (160, 160), 80, 1.0, -1)
    return np.asarray(cv2.GaussianBlur(disc, (0, 0), softness))


@pytest.mark.parametrize(("ground", "softness", "held"), [(SHELF, 3.0, True), (PAPER, 3.0, False), (PAPER, 0.5, False)])
def test_an_unsure_outline_before_varied_surroundings_is_held(ground: np.ndarray, softness: float, held: bool) -> None:
    found = measure_certainty(ground, product(softness))
    assert (found.score > LIMIT) == held == bool(found.reason)
    if held:
        assert "may have lost a part or taken in its surroundings" in found.reason


def test_a_garment_that_was_cut_off_a_person_is_held_for_it() -> None:
    assert not measure_certainty(PAPER, product(0.5)).reason
    assert measure_certainty(PAPER, product(0.5), off_person=True).reason.startswith("worn by a person")


def test_where_marks_the_outline_and_nothing_else() -> None:
    where = measure_certainty(SHELF, product(3.0)).where > 0
    assert where[160, 78:82].all()
    assert not where[160, 160]
    assert not where[:20].any()


def test_the_product_itself_is_no_part_of_its_surroundings() -> None:
    mask = product(0.5)
    striped = np.where((mask > 0.02)[..., None], SHELF, PAPER)
    assert surrounding_spread(striped, mask) < 1 < surrounding_spread(SHELF, mask)
    assert surrounding_spread(SHELF, np.ones((320, 320))) == 0
