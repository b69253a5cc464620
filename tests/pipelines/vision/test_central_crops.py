"""Which of several things in a picture is taken for the product."""

from __future__ import annotations

import numpy as np
import pytest

from pipelines.vision.central_crops import saliency_maps

SIDE = 200
PRODUCT = np.s_[70:140, 75:130]
POSTER = np.s_[5:36, 5:36]


def picture() -> np.ndarray:
    """A product in the middle, and a poster in a corner that strikes the eye more."""
    image = np.zeros((SIDE, SIDE, 3), np.uint8)
    image[PRODUCT], image[POSTER] = 120, 255
    return image


class Brightest:
    """A salient net that sees what is brightest, and nothing else."""

    def segment(self, image: np.ndarray) -> np.ndarray:
        grey = image[..., 0]
        return ((grey == grey.max()) & (grey > 0)).astype(np.float32)


def mask_of(place: tuple[slice, slice]) -> np.ndarray:
    mask = np.zeros((SIDE, SIDE), bool)
    mask[place] = True
    return mask


def test_a_product_beside_something_more_striking_is_asked_for_and_weighs_more() -> None:
    maps = saliency_maps(picture(), Brightest(), Brightest().segment(picture()))
    boxes = [prompt.box.tolist() for prompt in maps.prompts()]
    assert boxes[0] == [5, 5, 36, 36]  # what the whole picture says comes first
    assert [75, 70, 130, 140] in boxes
    assert maps.overlap(mask_of(PRODUCT)) > maps.overlap(mask_of(POSTER)) > 0


def test_views_that_agree_ask_once() -> None:
    image = picture()
    image[POSTER] = 0
    maps = saliency_maps(image, Brightest(), Brightest().segment(image))
    assert len(list(maps.prompts())) == 1
    assert maps.overlap(mask_of(PRODUCT)) == pytest.approx(1)
    assert maps.mean.min() >= 0
    assert maps.mean.max() == 1


def test_where_nothing_is_salient_nothing_is_asked_for() -> None:
    image = np.zeros((SIDE, 120, 3), np.uint8)
    maps = saliency_maps(image, Brightest(), Brightest().segment(image))
    assert list(maps.prompts()) == []
    assert maps.overlap(np.zeros((SIDE, 120), bool)) == 0
