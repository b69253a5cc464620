"""Calibration: tau separates best, and pieces beyond a mask are labelled by what is known of them."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from pipelines.evaluation.detector.calibrate import best_tau, label_pieces
from pipelines.evaluation.detector.composites import PHOTO, Composite, Mask
from pipelines.quality.overcompletion import OvercompletionDetector


def test_tau_lies_in_the_middle_of_what_separates() -> None:
    assert best_tau(np.array([0.0, 0.01, 0.02]), np.array([0.06, 0.07])) == pytest.approx(0.04)
    assert best_tau(np.array([0.0, 0.01, 0.50]), np.array([0.05, 0.07, 0.09])) == pytest.approx(0.03)


class Sees:
    """A finder that sees what it was told."""

    def __init__(self, name: str, found: np.ndarray):
        self.name = name
        self._found = found

    def find(self, image: np.ndarray, placed: np.ndarray) -> np.ndarray:
        return cv2.resize(self._found, placed.shape[::-1]) > 0


def test_what_a_cutout_is_known_to_lack_is_product_and_the_rest_of_its_photo_untold() -> None:
    """A jumper of which the cutout holds the body: one sleeve has a point, a shadow has none."""
    body, sleeve, shadow = np.s_[150:360, 180:330], np.s_[180:220, 60:180], np.s_[300:340, 330:460]
    image = np.full((383, 512, 3), 255, np.uint8)
    found = np.zeros(image.shape[:2], np.uint8)
    for part, colour in ((body, 60), (sleeve, 60), (shadow, 200)):
        image[part], found[part] = colour, 255
    matte = np.zeros_like(found)
    matte[body] = 255
    detector = OvercompletionDetector([Sees("salient", found), Sees("colour", found)])

    def told(lacking: tuple[tuple[int, int], ...]) -> dict[str, list[bool | None]]:
        (one,) = label_pieces(detector, [Composite("jumper", PHOTO, image, (Mask(matte, 0.0, "", "cutout"),), lacking)])
        at = {"sleeve": (125, 75), "shadow": (200, 250)}  # of the 320 px that are looked at
        return {
            name: [is_product for piece, is_product in zip(one.pieces, one.product, strict=True) if piece.mask[where]]
            for name, where in at.items()
        }

    assert set(told(())["sleeve"]) == set(told(())["shadow"]) == {False}
    pointed = told(((200, 120), (200, 511)))  # the second is at the picture's edge, on nothing
    assert pointed["sleeve"].count(True) == 1
    assert set(pointed["shadow"]) == {None}
