"""A cutout that lacks a part: it is noticed, mended where HQ-SAM can, and told of where it cannot."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pipelines.models.profile import load_profile
from pipelines.quality.completeness import check_completeness
from pipelines.quality.overcompletion import Overcompletion
from pipelines.stages.cutout import CutoutModels, cutout
from pipelines.vision.photos import read_photo
from pipelines.vision.segmenters import Prompt

TAU = 0.006
PHOTO = np.zeros((120, 160, 3), np.uint8)
PRODUCT = np.zeros((120, 160), np.float32)
PRODUCT[40:100, 30:90] = 1
PRODUCT[60:70, 90:130] = 1  # its handle
WITHOUT_HANDLE = PRODUCT.copy()
WITHOUT_HANDLE[:, 90:] = 0


class Knowing:
    """Finds whatever of the product a matte lacks."""

    def measure(self, image: np.ndarray, matte: np.ndarray, saliency: np.ndarray | None) -> Overcompletion:
        missing = (PRODUCT > 0.5) & (matte < 128)
        return Overcompletion(missing.sum() / (matte >= 128).sum(), 1.0, 0.0, 0.0, {}, missing.astype(np.float32))


class Answering:
    """HQ-SAM with a given answer; keeps what it was asked."""

    def __init__(self, answer: np.ndarray) -> None:
        self.answer, self.asked = answer, []

    def segment_prompted(self, image: np.ndarray, prompt: Prompt) -> np.ndarray:
        self.asked.append(prompt)
        return self.answer


def test_a_whole_cutout_stays_as_it_is_and_nobody_is_asked():
    sam = Answering(PRODUCT)
    found = check_completeness(PHOTO, PRODUCT, Knowing(), TAU, sam)
    assert not found.mended
    assert found.e_plus == 0
    assert sam.asked == []


def test_a_missing_handle_is_asked_for_by_a_point_on_it_and_taken():
    sam = Answering(PRODUCT)
    found = check_completeness(PHOTO, WITHOUT_HANDLE, Knowing(), TAU, sam)
    assert found.mended
    assert found.e_plus == 0
    np.testing.assert_array_equal(found.mask > 0.5, PRODUCT > 0.5)
    (prompt,) = sam.asked
    np.testing.assert_array_equal(prompt.box, [30, 40, 130, 100])
    on_handle = [(x, y) for x, y in prompt.points if x >= 90]
    assert len(on_handle) == 1
    assert PRODUCT[int(on_handle[0][1]), int(on_handle[0][0])] == 1


LOST = np.where(np.arange(160) < 60, 0, PRODUCT).astype(np.float32)  # the handle, and half of what was there
TABLE = np.maximum(PRODUCT, np.arange(120)[:, None] > 70).astype(np.float32)


def test_a_mend_only_adds():
    without_corner = PRODUCT.copy()
    without_corner[40:46, 30:45] = 0  # a strap that the first answer had and the second has lost
    found = check_completeness(PHOTO, WITHOUT_HANDLE, Knowing(), TAU, Answering(without_corner))
    assert found.mended
    np.testing.assert_array_equal(found.mask > 0.5, PRODUCT > 0.5)


@pytest.mark.parametrize(
    "answer",
    [WITHOUT_HANDLE, PRODUCT * 0.6, LOST, TABLE],
    ids=["still without it", "unsure", "something else", "far more than was missing"],
)
def test_what_hq_sam_cannot_mend_stays_and_is_told_of(answer: np.ndarray):
    found = check_completeness(PHOTO, WITHOUT_HANDLE, Knowing(), TAU, Answering(answer))
    assert not found.mended
    np.testing.assert_array_equal(found.mask, WITHOUT_HANDLE)
    assert found.e_plus == pytest.approx(400 / 3600)
    assert found.where[65, 100] == 1


def test_without_hq_sam_only_the_question_is_asked():
    found = check_completeness(PHOTO, WITHOUT_HANDLE, Knowing(), TAU, None)
    assert not found.mended
    assert found.e_plus > TAU


@pytest.mark.slow
def test_a_jackets_sleeve_comes_back():
    photo = Path(__file__).resolve().parents[4] / "shared" / "training" / "photos" / "clothing-01820.jpg"
    if not photo.exists():
        pytest.skip("the training photos are not beside this checkout")
    models = CutoutModels.from_profile(load_profile("mini"))
    asked = cutout(read_photo(photo.read_bytes()), models, garment="upper")  # on wood, which has the colour of skin
    height, width = asked.matte.shape
    assert asked.mended
    assert asked.matte[int(0.56 * height), int(0.06 * width)] > 0.5  # in the sleeve, looked up by eye
    assert asked.beyond <= TAU
    assert not asked.held
