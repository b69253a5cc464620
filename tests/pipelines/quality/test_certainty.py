"""A cutout that HQ-SAM is unsure of, or contradicts, is held."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from pipelines.quality.certainty import (
    LIMIT,
    colour_may_err,
    measure_certainty,
    measure_lines,
    measure_second_opinion,
    surrounding_spread,
)
from pipelines.vision.studio import Studio, find_studio

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


def red_on_paper(shadow: float) -> tuple[np.ndarray, Studio, np.ndarray, np.ndarray]:
    """A red disc with a hard shadow of a strength on paper: picture, paper, disc, and disc with shadow."""
    image = PAPER.copy()
    disc, cast = (cv2.circle(np.zeros((320, 320), np.uint8), (x, 160), 80, 1, -1) > 0 for x in (160, 190))
    image[cast] = np.rint(240 * (1 - shadow))
    image[disc] = (200, 30, 40)
    studio = find_studio(image)
    assert studio is not None
    return image, studio, disc, disc | cast


def test_a_shadow_in_a_cutout_by_colour_is_asked_about_and_held_if_hq_sam_leaves_it_out() -> None:
    image, studio, disc, both = red_on_paper(0.5)
    assert colour_may_err(image, studio, both, 1.0)
    assert not colour_may_err(image, studio, disc, 1.0)
    assert colour_may_err(image, studio, disc, 0.9)
    found = measure_second_opinion(image, studio, both, disc)
    assert found.score > LIMIT
    assert "19% may be a shadow" in found.reason
    assert found.where[160, 260] == 1
    assert found.where[disc].mean() < 0.01
    wider = cv2.dilate(disc.astype(np.uint8), np.ones((3, 3), np.uint8)) > 0
    assert not measure_second_opinion(image, studio, disc, wider).reason


def test_an_opening_that_hq_sam_fills_is_no_contradiction_and_a_lost_part_is() -> None:
    image, studio, disc, _ = red_on_paper(0.5)
    hole = cv2.circle(np.zeros((320, 320), np.uint8), (150, 160), 40, 1, -1) > 0
    lost = measure_second_opinion(image, studio, disc & ~hole, disc)
    assert "25% may be lost" in lost.reason
    image[hole] = 240
    assert not measure_second_opinion(image, studio, disc & ~hole, disc).reason


def test_a_small_piece_of_shadow_is_held_if_it_is_wide_enough_to_be_seen() -> None:
    image, studio, disc, _ = red_on_paper(0.4)
    toe, rim = (cv2.rectangle(np.zeros((320, 320), np.uint8), (238, 150), (end, 158), 1, -1) > 0 for end in (255, 241))
    assert (toe & ~disc).sum() < 0.01 * disc.sum()
    found = measure_second_opinion(image, studio, disc | toe, disc)
    assert found.score > LIMIT
    assert found.where[154, 250] == 1
    assert not measure_second_opinion(image, studio, disc | rim, disc).reason


def test_a_shadow_that_only_points_on_the_product_leave_out_is_held() -> None:
    image, studio, disc, both = red_on_paper(0.4)
    assert not measure_second_opinion(image, studio, both, both).reason
    found = measure_second_opinion(image, studio, both, both, disc)
    assert found.reason
    assert found.where[160, 260] == 1


def test_a_black_base_that_points_on_colour_leave_out_is_no_shadow() -> None:
    image, studio, disc, both = red_on_paper(0.8)
    assert not measure_second_opinion(image, studio, both, both, disc).reason


def test_a_joint_of_the_floor_that_reaches_into_the_cutout_is_held() -> None:
    image, studio, disc, _ = red_on_paper(0.0)
    joint = cv2.line(np.zeros((320, 320), np.uint8), (200, 160), (319, 150), 1, 2) > 0
    image[joint & ~disc] = 150
    stub = joint & (np.mgrid[:320, :320][1] < 256)
    assert "a joint of the floor" in measure_lines(image, studio, disc | stub).reason
    assert measure_lines(image, studio, disc | stub).where[joint & ~disc].mean() > 0.8
    assert not measure_lines(image, studio, disc).reason  # the joint ends at the outline
    assert not measure_lines(image, studio, disc | joint).reason  # a cord, whole
