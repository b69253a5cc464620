"""Prints and the garments that they are on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pipelines.models.profile import load_profile
from pipelines.stages.cutout import CutoutModels, cutout
from pipelines.vision.photos import read_photo
from pipelines.vision.segmenters import Prompt
from pipelines.vision.surfaces import printed_on

PHOTO = np.zeros((200, 160, 3), np.uint8)
PRINT, SHIRT = np.zeros((200, 160), np.float32), np.zeros((200, 160), np.float32)
PRINT[70:110, 60:100] = 1
SHIRT[30:190, 20:140] = 1


class Answering:
    """HQ-SAM with one answer; keeps what it was asked."""

    def __init__(self, answer: np.ndarray) -> None:
        self.answer, self.asked = answer, []

    def segment_prompted(self, image: np.ndarray, prompt: Prompt, passes: int = 2) -> np.ndarray:
        self.asked.append(prompt)
        return self.answer


def test_a_small_cutout_is_taken_for_a_print_and_the_garment_is_asked_for_beside_it():
    sam = Answering(SHIRT)
    np.testing.assert_array_equal(printed_on(PHOTO, PRINT, sam) > 0.5, SHIRT > 0.5)
    beside = sam.asked[0].points.astype(int)
    assert len(beside) == 4
    assert all(PRINT[y, x] == 0 and SHIRT[y, x] == 1 for x, y in beside)


def test_a_garment_that_fills_its_photo_is_no_print_and_nobody_is_asked():
    sam = Answering(np.ones_like(SHIRT))
    assert printed_on(PHOTO, SHIRT, sam) is SHIRT
    assert sam.asked == []


def test_only_the_piece_with_the_print_is_the_garment():
    hanger_beside = SHIRT.copy()
    hanger_beside[40:80, 150:158] = 1
    np.testing.assert_array_equal(printed_on(PHOTO, PRINT, Answering(hanger_beside)) > 0.5, SHIRT > 0.5)


def test_a_print_at_the_photos_edge_is_not_asked_about_by_points_outside():
    at_edge = np.roll(PRINT, -60, axis=1)
    sam = Answering(SHIRT)
    printed_on(PHOTO, at_edge, sam)
    assert len(sam.asked[0].points) == 3
    assert all(at_edge[int(y), int(x)] == 0 for x, y in sam.asked[0].points)


A_LITTLE_MORE = np.zeros_like(PRINT)
A_LITTLE_MORE[66:112, 58:102] = 1


@pytest.mark.parametrize(
    "answer",
    [np.ones_like(SHIRT), SHIRT * 0.6, SHIRT * (1 - PRINT), A_LITTLE_MORE, np.zeros_like(SHIRT)],
    ids=["the floor", "unsure", "without the print", "hardly larger", "nothing"],
)
def test_what_is_no_garment_around_it_leaves_a_small_cutout_alone(answer: np.ndarray):
    assert printed_on(PHOTO, PRINT, Answering(answer)) is PRINT


@pytest.mark.slow
def test_a_shirt_is_cut_out_and_not_its_print():
    photo = Path(__file__).resolve().parents[4] / "shared" / "training" / "photos" / "clothing-03410.jpg"
    if not photo.exists():
        pytest.skip("the training photos are not beside this checkout")
    models, shirt = CutoutModels.from_profile(load_profile("mini")), read_photo(photo.read_bytes())
    as_a_garment = cutout(shirt, models, garment="upper")
    assert as_a_garment.held == "a garment was cut out around what may be its print"
    assert (as_a_garment.matte > 0.5).mean() > 0.5
    height, width = as_a_garment.matte.shape
    assert as_a_garment.matte[int(0.3 * height), int(0.3 * width)] == 1  # blue cloth above the print
