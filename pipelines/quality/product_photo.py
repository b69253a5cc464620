"""Is the picture a product photo, or a graphic: banner, placeholder, size chart, screenshot, logo, swatch?

A photographed product has shades everywhere. A graphic has few colours, flat areas, sharp edges, thin strokes and rows
of letters. Nine such statistics are weighed by a logistic regression with squares. It was fitted on 253 photos and 130
graphics: the sample catalogue, and one half of the training folder. `packshot measure checks` uses the other half.
"""

from __future__ import annotations

import cv2
import numpy as np

from pipelines.quality.fidelity import Measure
from pipelines.vision.studio import find_studio

LIMIT = 0.55
"""Probability of a graphic above which a photo is held."""

SIDE = 320
"""Longer side of the picture that is measured, px."""

BIAS = -6.733
LINEAR = (0.498, 5.41, -0.293, -4.76, -1.5, -5.62, 4.84, -0.334, -4.91)
SQUARED = (3.45, -1.78, 1.34, 2.19, 4.28, 6.26, 0.57, 0.162, 10.5)
FLAT_AND_THIN = 3.11
"""Weights of `_statistics`, of their squares, and of the product of the first two."""


def measure_graphic(image: np.ndarray) -> Measure:
    """Return the probability that a picture `(H, W, 3)` uint8 RGB is a graphic; `where` marks its flat areas."""
    scale = min(1.0, SIDE / max(image.shape[:2]))
    if scale < 1:
        image = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    values, flat = _statistics(image)
    weighed = BIAS + values @ np.array(LINEAR) + values**2 @ np.array(SQUARED) + FLAT_AND_THIN * values[0] * values[1]
    score = float(1 / (1 + np.exp(-weighed)))
    letters = round(float(np.expm1(values[7])))
    text = f", and {letters} letters are in rows" if letters >= 5 else ""
    reason = f"no product photo but a graphic: {values[0]:.0%} of what is drawn is flat colour{text}"
    return Measure(score, flat.astype(np.float32), reason if score > LIMIT else "")


def _statistics(image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return nine statistics, and the flat part of the foreground `(H, W)` bool.

    Foreground is what differs from plain paper, or from the most frequent colour. The statistics: flat share of the
    foreground away from edges; share of it near edges; flat share of the picture away from edges; share of the
    foreground with soft changes; its shares in the 4 and the 12 most frequent colours; sharp edges over foreground;
    logarithm of the letters in rows; share of foreground in the picture.
    """
    span = _span(image, image, 3)
    coarse = (image >> 4).astype(np.int64) @ np.array([256, 16, 1])
    studio = find_studio(image)  # paper with a gradient has many colours
    frequent = np.median(image[coarse == np.bincount(coarse.ravel()).argmax()], axis=0)
    back = frequent if studio is None else studio.colour
    front = np.abs(image - back).max(axis=2) > 16
    size = max(1, int(front.sum()))
    near_edge = cv2.dilate((span > 40).astype(np.uint8), np.ones((5, 5), np.uint8)) > 0
    # extremes of a wider window, without what is near an edge
    wide = _span(np.where(near_edge[..., None], 0, image), np.where(near_edge[..., None], 255, image), 9)
    still, flat = front & ~near_edge, wide <= 9
    shares = np.sort(np.bincount(coarse[front], minlength=4096))[::-1] / size
    values = [
        flat[still].mean() if still.sum() > 0.02 * still.size else 1.0,
        1 - still.sum() / size,
        flat[~near_edge].mean() if not near_edge.all() else 0.0,
        ((span > 6) & (span < 40))[front].mean() if front.any() else 0.0,
        shares[:4].sum(),
        shares[:12].sum(),
        (span > 90).sum() / size,
        np.log1p(_letters(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY))),
        front.mean(),
    ]
    return np.array(values, np.float64), flat & still


def _span(upper: np.ndarray, lower: np.ndarray, side: int) -> np.ndarray:
    """Return the largest minus the smallest value in windows of `side` px, the largest of the channels."""
    window = np.ones((side, side), np.uint8)
    highest, lowest = cv2.dilate(upper.astype(np.uint8), window), cv2.erode(lower.astype(np.uint8), window)
    difference: np.ndarray = (highest.astype(np.int16) - lowest).max(axis=2)
    return difference


def _letters(grey: np.ndarray) -> int:
    """Count marks of a letter's shape with a similar one on both sides, on one line; `grey` is `(H, W)` uint8."""
    around, count = cv2.medianBlur(grey, 21).astype(np.int16), 0
    for contrast in (grey - around, around - grey):
        _, _, stats, _ = cv2.connectedComponentsWithStats((contrast > 35).astype(np.uint8))
        left, top, width, height, area = stats[1:].T
        shaped = (height >= 4) & (height <= 40) & (width <= 2.5 * height) & (width >= 0.12 * height)
        shaped &= (area >= 0.15 * width * height) & (area <= 0.95 * width * height)
        if not 3 <= shaped.sum() <= 4000:
            continue
        left, width, height = left[shaped], width[shaped], height[shaped]
        foot = top[shaped] + height
        alike = np.abs(foot[:, None] - foot) <= 0.25 * height[:, None]
        alike &= np.abs(height[:, None] - height) <= 0.4 * height[:, None]
        gap = left - (left + width)[:, None]
        follows = alike & (gap > -0.2 * height[:, None]) & (gap < 1.2 * height[:, None])
        count += int((follows.any(axis=0) & follows.any(axis=1)).sum())
    return count
