"""Measure a product's colour: the named colour that is nearest to most of its pixels."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

ANCHORS: dict[str, tuple[str, ...]] = {
    "white": ("f7f7f5", "e8e8e6"),
    "grey": ("d0d0d0", "b0b0b0", "8c8c8c", "6a6a6c", "4e4e52"),
    "black": ("0a0a0a", "262628", "35343a"),
    "beige": ("e6d8c0", "d2bfa0", "f0e6d2"),
    "brown": ("8a5a34", "6b4226", "4a2c1a", "a87850"),
    "red": ("c8202c", "8e1b24", "e8404a"),
    "pink": ("f4b6c4", "ee7ea6", "d6336c"),
    "orange": ("f58220", "e2601c", "ffa858"),
    "yellow": ("ffe14a", "f2c21a", "fff3a0"),
    "green": ("2f8f3e", "1f4d2b", "8cc152", "7c9a6a", "5e6b3a"),
    "turquoise": ("2ab5b0", "0f7f80", "8fe0d8"),
    "blue": ("2457c5", "1b2a5a", "5a9bd8", "4a6a98", "a8cdf0", "2e3a52"),
    "purple": ("7a3fa0", "4b2364", "b79ad6"),
}
"""Colour names of the vocabulary, each with sRGB values of its common shades."""


def lab(rgb: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Convert sRGB pixels (..., 3) uint8 to CIE Lab, L in 0..100."""
    flat = np.asarray(rgb, np.float32).reshape(1, -1, 3) / 255
    return np.asarray(cv2.cvtColor(flat, cv2.COLOR_RGB2LAB), np.float32).reshape(-1, 3)


_NAMES = [name for name, shades in ANCHORS.items() for _ in shades]
_ANCHORS = lab(np.array([list(bytes.fromhex(shade)) for shades in ANCHORS.values() for shade in shades], np.uint8))


def dominant_colour(rgb: NDArray[np.uint8], alpha: NDArray[np.float32] | None = None) -> tuple[str, float]:
    """Return the colour name that is nearest, in Lab, to most opaque pixels, and their share, 0..1; ("", 0) without
    any.

    `rgb` is (H, W, 3) uint8 sRGB. `alpha` is (H, W) in 0..1, 1 = product; by default every pixel counts.
    """
    pixels = rgb.reshape(-1, 3) if alpha is None else rgb[alpha > 0.9]
    if len(pixels) == 0:
        return "", 0.0
    step = max(len(pixels) // 20_000, 1)
    distance = np.square(lab(pixels[::step])[:, None] - _ANCHORS[None]).sum(axis=-1)
    counts = np.bincount(distance.argmin(axis=1), minlength=len(_NAMES))
    shares = dict.fromkeys(ANCHORS, 0.0)
    for name, count in zip(_NAMES, counts, strict=True):
        shares[name] += float(count) / float(counts.sum())
    best = max(shares, key=lambda name: shares[name])
    return best, shares[best]
