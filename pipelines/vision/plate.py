"""The clean plate: the painted scene without what an autoencoder smears over the product's outline.

A latent is one cell of 8 x 8 px. Cells that the outline crosses hold product and scene at once, and a small decoder
lays the product's colours, or a dark seam, up to a cell beyond it: even a perfect picture that is encoded and decoded
comes back with a halo (docs/research/detector.md). The product itself is laid over from the photo, so nothing of what
was painted in its place, or within a cell of it, is needed: the plate fills both from the scene further out.
"""

from __future__ import annotations

import cv2
import numpy as np

RIM = 9
"""How far a decoder with cells of 8 x 8 px smears, and one more: px of the painted picture."""

SOFTNESS = 3
"""Over so many px the fill fades into the scene."""

DENSE = 4
"""A coarser pixel counts as known from a quarter of its four pixels on."""


def clean_plate(scene: np.ndarray, matte: np.ndarray, margin: int) -> np.ndarray:
    """Fill the product's place, and `margin` px around it, from the scene beyond.

    Args:
        scene: (H, W, 3) uint8, as painted.
        matte: (H, W) uint8, 255 = product.
        margin: px; 0 gives the scene back as it is.

    Returns:
        (H, W, 3) uint8; equal to `scene` from `margin` px on. Where the product leaves no such pixel, `scene`.
    """
    if margin == 0:
        return scene
    away = cv2.distanceTransform((matte < 128).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    known = np.where(away > 0, np.clip((away - margin) / SOFTNESS + 1, 0, 1), 0).astype(np.float32)
    if not (known == 1).any():
        return scene
    filled = _pulled_and_pushed(scene.astype(np.float32), known)
    return np.where((known == 1)[..., None], scene, np.clip(np.rint(filled), 0, 255)).astype(np.uint8)


def _pulled_and_pushed(colours: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Fill unknown pixels smoothly, from a coarser copy where need be (Gortler et al. 1996, "The Lumigraph", 3.3.1).

    colours: (H, W, 3) float32. known: (H, W) float32, 0..1. Returns (H, W, 3) float32, finite wherever any is known.
    """
    weight = known[..., None]
    if known.size == 1 or known.min() == 1:
        return colours
    height, width = known.shape
    size = ((width + 1) // 2, (height + 1) // 2)
    share = cv2.resize(known, size, interpolation=cv2.INTER_AREA)
    mean = cv2.resize(colours * weight, size, interpolation=cv2.INTER_AREA) / np.maximum(share, 1e-6)[..., None]
    coarse = _pulled_and_pushed(mean, np.minimum(share * DENSE, 1))
    return colours * weight + cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC) * (1 - weight)
