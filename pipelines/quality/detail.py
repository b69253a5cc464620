"""Local contrast: find cords, handles and other thin parts of any colour.

First M is filled with the colours around it. A median over a window wider than the parts then estimates the scene
without them. A pixel's local contrast is its distance to that estimate, relative to the usual distance in its
neighbourhood. In a cluttered scene few pixels have a high contrast; on paper the faintest line has.
"""

from __future__ import annotations

import cv2
import numpy as np

WINDOWS = (13, 45)
"""Widths of the median, in px of 320. It removes parts thinner than half of it."""

FAINT = 5.0
"""Typical distance in 8-bit Lab of noise and grain."""


def local_contrast(image: np.ndarray, hidden: np.ndarray) -> list[np.ndarray]:
    """Return each pixel's local contrast, for each of WINDOWS: (H, W) float32. Noise stays below about 1.

    image: (H, W, 3) uint8 RGB; hidden: (H, W) bool, M and its uncertain edge.
    """
    lab = cv2.cvtColor(image, cv2.COLOR_RGB2LAB)
    filled = fill_hidden(lab, hidden)
    open_scene = 1 - hidden.astype(np.float32)
    found = []
    for window in WINDOWS:
        scene = _median(filled, window)
        off = np.linalg.norm(cv2.GaussianBlur(lab, (0, 0), 0.6).astype(np.float32) - scene, axis=2)
        wide = (4 * window + 1,) * 2
        usual = cv2.blur(off * open_scene, wide) / np.maximum(cv2.blur(open_scene, wide), 0.02)
        found.append(off / (FAINT + 1.5 * usual))
    return found


def fill_hidden(colours: np.ndarray, hidden: np.ndarray) -> np.ndarray:
    """Fill the hidden part of (H, W, 3) uint8 with the mean of the nearest visible pixels."""
    seen = 1 - hidden.astype(np.float32)
    known = colours.astype(np.float32) * seen[..., None]
    filled, left = known.copy(), hidden.copy()
    for width in (9, 27, 81, 243, 729):
        weight = cv2.blur(seen, (width, width))
        mean = cv2.blur(known, (width, width)) / np.maximum(weight, 1e-6)[..., None]
        now = left & (weight > 0.03)
        filled[now] = mean[now]
        left &= ~now
    return np.rint(filled).astype(np.uint8)


def _median(colours: np.ndarray, window: int) -> np.ndarray:
    """Return the median over a window, float32. A wide one is computed at half size."""
    if window <= 15:
        return cv2.medianBlur(colours, window).astype(np.float32)
    height, width = colours.shape[:2]
    half = cv2.resize(colours, (max(1, width // 2), max(1, height // 2)), interpolation=cv2.INTER_AREA)
    return cv2.resize(cv2.medianBlur(half, window // 2 | 1), (width, height)).astype(np.float32)
