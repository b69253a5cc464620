"""Is the picture a product photo, or a graphic: banner, placeholder, size chart, screenshot, logo, swatch?

A photographed product has shades everywhere. A graphic has few colours, flat areas, sharp edges, thin strokes and rows
of letters, and it falls into many pieces. Ten such statistics are weighed by a logistic regression with squares. It was
fitted to one half of the training folder's products and to drawn graphics (`pipelines/evaluation/fit_graphics.py`), and
to no catalogue. `packshot measure checks` uses the other half.
"""

from __future__ import annotations

import cv2
import numpy as np

from pipelines.quality.fidelity import Measure
from pipelines.vision.studio import find_studio

LIMIT = 0.7
"""Probability of a graphic above which a photo is held."""

SIDE = 320
"""Longer side of the picture that is measured, px."""

MEASURABLE = 0.02
"""Smallest share of the picture that is foreground away from edges and tells flat colour from shades. Thin lines have
less, and so has a plant."""

PIECE = 0.0002
"""Share of the picture above which a connected piece of the foreground is counted."""

BIAS = -18.727
LINEAR = (2.174, -0.4709, 3.551, -2.869, -0.76, 3.171, 3.723, -0.5689, -4.648, 1.602)
SQUARED = (1.573, 2.723, 5.19, 2.535, 1.061, 4.562, 1.769, -0.1059, 4.541, 0.1898)
FLAT_AND_THIN = 2.906
"""Weights of `graphic_statistics`, of their squares, and of the product of the first two."""


def measure_graphic(image: np.ndarray) -> Measure:
    """Return the probability that a picture `(H, W, 3)` uint8 RGB is a graphic; `where` marks its flat areas."""
    values, flat = graphic_statistics(image)
    weighed = BIAS + float(terms(values[None])[0] @ np.array([*LINEAR, *SQUARED, FLAT_AND_THIN]))
    score = float(1 / (1 + np.exp(-weighed)))
    letters = round(float(np.expm1(values[7])))
    text = f", and {letters} letters are in rows" if letters >= 5 else ""
    thin = (1 - values[1]) * values[8] <= MEASURABLE
    what = f"{values[1]:.0%} of what is drawn are edges" if thin else f"{values[0]:.0%} of what is drawn is flat colour"
    reason = f"no product photo but a graphic: {what}{text}"
    return Measure(score, flat.astype(np.float32), reason if score > LIMIT else "")


def terms(values: np.ndarray) -> np.ndarray:
    """Return what is weighed of statistics (N, 10): themselves, their squares, and the product of the first two."""
    return np.concatenate([values, values**2, values[:, :1] * values[:, 1:2]], axis=1)


def graphic_statistics(image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return ten statistics of a picture `(H, W, 3)` uint8 RGB, and the flat part of its foreground `(h, w)` bool.

    The picture is reduced to `SIDE` first. Foreground is what differs from plain paper, or from the most frequent
    colour. The statistics: flat share of the foreground away from edges, 0.5 if that is too small; share of it near
    edges; flat share of the picture away from edges; share of the foreground with soft changes; its shares in the 4 and
    the 12 most frequent colours; sharp edges over foreground; logarithm of the letters in rows; share of foreground in
    the picture; logarithm of its number of pieces.
    """
    scale = min(1.0, SIDE / max(image.shape[:2]))
    if scale < 1:
        image = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
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
    _, _, pieces, _ = cv2.connectedComponentsWithStats(front.astype(np.uint8))
    values = [
        flat[still].mean() if still.sum() > MEASURABLE * still.size else 0.5,
        1 - still.sum() / size,
        flat[~near_edge].mean() if not near_edge.all() else 0.0,
        ((span > 6) & (span < 40))[front].mean() if front.any() else 0.0,
        shares[:4].sum(),
        shares[:12].sum(),
        (span > 90).sum() / size,
        np.log1p(_letters(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY))),
        front.mean(),
        np.log1p((pieces[1:, cv2.CC_STAT_AREA] > PIECE * front.size).sum()),
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
