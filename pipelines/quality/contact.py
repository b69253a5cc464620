"""Does a standing product touch its ground: is the ground just below its foot darker than the bare backdrop?

A product without a contact shadow seems to float, or to be pasted. The bare backdrop is known, so the question needs no
model: the band below the foot is compared with the same band of the backdrop.
"""

from __future__ import annotations

import numpy as np

from pipelines.quality.fidelity import Measure
from pipelines.vision.light import LUMA

BAND = 0.012
"""Height of the band, as a share of the canvas's."""

FOOT = 0.04
"""The foot: the columns in which the outline is lowest, to this share of the product's height."""


def measure_contact(image: np.ndarray, bare: np.ndarray, matte: np.ndarray) -> Measure | None:
    """Return by which share the ground below the foot is darker than the bare backdrop, at most 1; None without ground.

    A lighter ground gives a score below 0.

    Args:
        image: (H, W, 3) uint8, the finished image.
        bare: (H, W, 3) uint8, the backdrop alone.
        matte: (H, W) uint8, 255 = product.
    """
    band = _below_the_foot(matte)
    if not band.any():
        return None
    after, before = (float((picture.astype(np.float32) @ LUMA)[band].mean()) for picture in (image, bare))
    darker = 1 - after / max(before, 1.0)
    reason = f"the product casts no shadow where it stands: the ground below its foot is {max(darker, 0):.0%} darker"
    return Measure(darker, band.astype(np.float32), reason)


def _below_the_foot(matte: np.ndarray) -> np.ndarray:
    """The band of ground below the foot, (H, W) bool; empty where the product reaches the lower border."""
    band = np.zeros(matte.shape, bool)
    solid = matte >= 128
    columns = np.flatnonzero(solid.any(axis=0))
    if columns.size == 0:
        return band
    height = matte.shape[0]
    lowest = height - 1 - solid[::-1, columns].argmax(axis=0)
    tall = lowest.max() - np.flatnonzero(solid.any(axis=1))[0]
    for column, row in zip(columns, lowest, strict=True):
        if lowest.max() - row <= FOOT * tall:
            band[row + 1 : row + 2 + round(BAND * height), column] = True
    return band & (matte < 3)
