"""Mattes follow the picture's edges, stay exact inside, and rims lose the old background's colour."""

from __future__ import annotations

import cv2
import numpy as np

from pipelines.vision.matting import decontaminate, refine_matte

SIDE = 200


def disc(radius: float) -> np.ndarray:
    yy, xx = np.mgrid[0:SIDE, 0:SIDE]
    return np.clip(radius - np.hypot(yy - 100, xx - 100) + 0.5, 0, 1).astype(np.float32)


def on(background: tuple[int, int, int], matte: np.ndarray) -> np.ndarray:
    product = np.array([200, 40, 40], np.float32)
    return (product * matte[..., None] + np.array(background) * (1 - matte[..., None])).astype(np.uint8)


def test_a_mask_that_is_off_by_pixels_snaps_to_the_edge() -> None:
    truth = cv2.GaussianBlur(disc(60), (0, 0), 1)
    rough = cv2.GaussianBlur(disc(62), (0, 0), 2)
    refined = refine_matte(on((240, 240, 240), truth), rough, radius=5)
    assert np.abs(refined - truth).mean() < 0.5 * np.abs(rough - truth).mean()


def test_the_inside_is_exactly_one_and_the_outside_exactly_zero() -> None:
    refined = refine_matte(on((240, 240, 240), disc(60)), cv2.GaussianBlur(disc(60), (0, 0), 2), radius=4)
    assert (refined[disc(48) == 1] == 1).all()
    assert (refined[disc(72) == 0] == 0).all()


def test_the_rim_loses_the_old_background_and_the_inside_keeps_its_pixels() -> None:
    matte = cv2.GaussianBlur(disc(60), (0, 0), 1.5)
    image = on((20, 240, 20), matte)
    clean = decontaminate(image, matte)
    rim = (matte > 0.15) & (matte < 0.85)
    product = np.array([200, 40, 40])
    assert np.abs(clean[rim].astype(int) - product).mean() < 0.25 * np.abs(image[rim].astype(int) - product).mean()
    assert np.array_equal(clean[matte >= 0.99], image[matte >= 0.99])
