"""Is a painted checkerboard behind the product? Some tools save the pattern that stands for transparency as pixels.

The pattern has two neutral levels that alternate in both directions with one period. So the picture's autocorrelation
is near -1 at a shift of one cell across or down, and near +1 at one cell across and down.
"""

from __future__ import annotations

import cv2
import numpy as np

from pipelines.quality.fidelity import Measure

LIMIT = 0.5
"""Score above which a photo is held. 104 photos of the training side have up to 0.03, 32 planted patterns 0.80 and
more."""

LEAST = 0.08
"""Share of the picture that the pattern has at least."""

CELLS = tuple(range(3, 65))
"""Sides of a cell that are searched, px."""

SIDE = 1024
"""Longer side of the picture that is searched, px; larger ones are reduced."""


def measure_checkerboard(image: np.ndarray) -> Measure:
    """Rate how much of a checkerboard the neutral part of a picture is, 0..1.

    Args:
        image: `(H, W, 3)` uint8 RGB.
    """
    scale = min(1.0, SIDE / max(image.shape[:2]))
    if scale < 1:
        image = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    nothing = Measure(0.0, np.zeros(image.shape[:2], np.float32))
    neutral = np.ptp(image, axis=2) <= 16
    grey = image.mean(axis=2)
    levels = np.histogram(grey[neutral], bins=64, range=(0, 256))[0].astype(np.float64)
    levels = np.convolve(levels, np.ones(3), "same")
    first = int(levels.argmax())
    apart = np.abs(np.arange(64) - first) >= 3
    second = int(np.where(apart, levels, 0).argmax())
    either = neutral & (np.minimum(np.abs(grey - _level(first)), np.abs(grey - _level(second))) <= 14)
    if levels[second] < LEAST / 3 * grey.size or either.mean() < LEAST:
        return nothing
    middle = (_level(first) + _level(second)) / 2
    sign = np.where(either, np.where(grey > middle, 1.0, -1.0), 0.0).astype(np.float32)
    scores = {cell: _score(sign, either, cell) for cell in CELLS if cell < min(grey.shape) // 4}
    score = max(scores.values())
    cell = min(cell for cell, value in scores.items() if value >= 0.9 * score)  # its odd multiples fit as well
    reason = f"a painted checkerboard of {cell / scale:.0f} px is behind the product: save the photo with transparency"
    return Measure(score, either.astype(np.float32), reason if score > LIMIT else "")


def _score(sign: np.ndarray, known: np.ndarray, cell: int) -> float:
    across = _correlation(sign[:, cell:], sign[:, :-cell], known[:, cell:] & known[:, :-cell])
    down = _correlation(sign[cell:], sign[:-cell], known[cell:] & known[:-cell])
    if max(across, down) >= 0:
        return 0.0
    both = _correlation(sign[cell:, cell:], sign[:-cell, :-cell], known[cell:, cell:] & known[:-cell, :-cell])
    return max(0.0, min(-across, -down, both))


def _correlation(a: np.ndarray, b: np.ndarray, known: np.ndarray) -> float:
    """Return the mean product where both pixels are known; 0 if these are few."""
    if known.mean() < LEAST / 2:
        return 0.0
    return float((a * b).sum() / known.sum())


def _level(index: int) -> float:
    return 4.0 * index + 2
