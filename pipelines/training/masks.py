"""Training masks for BrushNet: the cause of overcompletion, and its remedy.

Inpainting models are trained on masks that cut through objects: brush strokes, or one random segment, opened and
inverted (BrushNet's `train_brushnet.py`). They learn that an object continues outside its mask. The paper's fine-tune
(section 3.1.2) uses masks of whole objects, so that the branch learns that a product ends at its mask.
"""

from __future__ import annotations

from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray

Policy = Literal["random", "salient", "instance"]

GROWTH = 2
"""Masks of whole products are dilated by up to so many px, never opened: a missing rim would teach growth."""

SMALLEST_PIECE = 0.02
"""A random piece below this share of the picture is replaced by strokes."""


def random_mask(product: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.float32]:
    """Draw a kept region as general inpainting training does.

    With equal probability: all but brush strokes; a blob anywhere; a piece of the product, opened.

    Args:
        product: (H, W), 255 = product.
        rng: source of the random numbers.

    Returns:
        (H, W), 0 or 1, 1 = kept.
    """
    kind = rng.integers(3)
    if kind > 0:
        kept = _blob(product.shape, rng)
        if kind == 2:
            kept &= product >= 128
            opening = int(rng.integers(1, max(product.shape[0] // 24, 2))) * 2 + 1
            disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (opening, opening))
            kept = cv2.morphologyEx(kept.astype(np.uint8), cv2.MORPH_OPEN, disc) > 0
        if kept.mean() >= SMALLEST_PIECE:
            return kept.astype(np.float32)
    return (~_strokes(product.shape, rng)).astype(np.float32)


def whole_mask(product: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.float32]:
    """The whole product, dilated by 0 to `GROWTH` px; shapes as in `random_mask`."""
    size = int(rng.integers(0, GROWTH + 1)) * 2 + 1
    return (cv2.dilate(product, np.ones((size, size), np.uint8)) >= 128).astype(np.float32)


def _blob(shape: tuple[int, ...], rng: np.random.Generator) -> NDArray[np.bool_]:
    """An ellipse or a rotated rectangle near the middle, from a quarter to 80 % of the picture wide."""
    height, width = shape
    centre = float(rng.uniform(0.2, 0.8) * width), float(rng.uniform(0.2, 0.8) * height)
    axes = float(rng.uniform(0.25, 0.8) * width), float(rng.uniform(0.25, 0.8) * height)
    turned = (centre, axes, float(rng.uniform(0, 180)))
    drawn = np.zeros((height, width), np.uint8)
    if rng.random() < 0.5:
        cv2.ellipse(drawn, turned, 1, thickness=-1)
    else:
        cv2.fillPoly(drawn, [np.round(cv2.boxPoints(turned)).astype(np.int32)], 1)
    return drawn > 0


def _strokes(shape: tuple[int, ...], rng: np.random.Generator) -> NDArray[np.bool_]:
    height, width = shape
    drawn = np.zeros((height, width), np.uint8)
    for _ in range(int(rng.integers(1, 5))):
        points = (rng.random((int(rng.integers(2, 6)), 2)) * [width, height]).astype(np.int32)
        cv2.polylines(drawn, [points], False, 1, thickness=int(rng.integers(width // 10, width // 3)))
    return drawn > 0
