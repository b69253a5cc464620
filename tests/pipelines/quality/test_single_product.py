"""Several things under a title of one are held; sets, pairs and a product in two pieces are not."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from pipelines.quality.single_product import LIMIT, measure_things

COLOURS = [(200, 40, 30), (30, 60, 190), (40, 160, 60)]


def things(*radii: int, alike: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Discs side by side: image and mask."""
    image, mask = np.full((200, 600, 3), 250, np.uint8), np.zeros((200, 600), np.uint8)
    for place, radius in enumerate(radii):
        at = (100 + 200 * place, 100)
        cv2.circle(image, at, radius, COLOURS[0 if alike else place], -1)
        cv2.circle(mask, at, radius, 1, -1)
    return image, mask > 0


def test_several_things_under_a_title_of_one_are_held_with_their_number() -> None:
    image, mask = things(70, 60, 50)
    found = measure_things(image, mask, "Yellow slip-on shoe")
    assert found.score == 3 > LIMIT
    assert found.reason == "3 separate things are in the photo, and the title names one"
    assert np.array_equal(found.where > 0, mask)
    assert measure_things(*things(70, 60), "Blue jug").reason


@pytest.mark.parametrize("title", ["Set of three bowls", "Mug, 6x", "2-pack socks", "Cup & saucer", "Assorted plants"])
def test_a_title_may_announce_several(title: str) -> None:
    assert not measure_things(*things(70, 60, 50), title).reason


def test_two_alike_are_a_pair_and_a_small_piece_is_a_part() -> None:
    assert not measure_things(*things(70, 68, alike=True), "Boots").reason
    assert measure_things(*things(70, 68, 66, alike=True), "Boot").reason
    assert not measure_things(*things(80, 20), "Lamp").reason


def test_a_plural_names_several_of_one_kind_and_not_of_several() -> None:
    assert not measure_things(*things(70, 66, 50, alike=True), "Kidney Beans").reason
    assert measure_things(*things(70, 66, 50), "Kidney Beans").reason
    assert measure_things(*things(70, 66, 50, alike=True), "Glass").reason


def test_a_gap_as_wide_as_a_strap_divides_nothing() -> None:
    image, mask = things(90)
    mask[:, 97:103] = False
    assert measure_things(image, mask, "Bag").score == 1
