"""Surfaces and prints: find the product on a sheet, and the garment around a print, with a second HQ-SAM prompt.

A poster, a page or a table from edge to edge is not the product; the object on it is. A print is not the product
either; the garment around it is.
"""

from __future__ import annotations

import cv2
import numpy as np

from pipelines.vision.segmenters import STABLE, HQSamSegmenter, Prompt, filled, main_pieces, prompt_from, stability

MIN_STABILITY = 0.88
"""Stability from which a mask of an object on a sheet is used."""

SHEET = 0.88
"""A sheet (poster, table) spans two opposite edges of the picture and fills this share of its bounding box."""

LEAST_ON_SHEET = 0.05
"""An object with a smaller share of the sheet is printed on it."""

LARGEST_PRINT = 0.15
"""A garment that fills less of its photo may be a print on one. Set on three photos of prints (0.03 to 0.13); two of
these are in the detector's test set."""

MIN_GROWTH = 1.5
"""Smallest ratio of a garment's area to its print's. Less is the same garment with something next to it."""

BESIDE = 0.12
"""Distance of the points next to a print, as a share of the print's longer side."""

MAX_BORDER = 0.3
"""A mask with more of the picture's border is the ground, not the garment."""

HOLDS = 0.95
"""A garment contains at least this share of its print, in one piece."""


def is_sheet(mask: np.ndarray) -> bool:
    """Return whether a mask `(H, W)` bool is a rectangle between opposite edges of the picture."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        return False
    near = round(0.01 * max(mask.shape))
    spans = [at[0] <= near and at[-1] >= side - 1 - near for at, side in zip((rows, columns), mask.shape, strict=True)]
    fills = float(mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].mean())
    return any(spans) and fills >= SHEET


def lying_on(image: np.ndarray, sheet: np.ndarray, hqsam: HQSamSegmenter) -> np.ndarray:
    """Return HQ-SAM's mask of the object in the middle of a sheet; the sheet itself if no mask is certain.

    HQ-SAM runs twice: with a point in the middle, then with the box of that mask.
    """
    height, width = sheet.shape
    thing = _belonging(image, np.array([[width / 2, height / 2]], np.float32), 1, hqsam)
    if thing is None:
        return sheet
    share = float((thing > 0.5).sum() / (sheet > 0.5).sum())
    return thing if stability(thing) >= MIN_STABILITY and LEAST_ON_SHEET < share < 0.7 else sheet


def printed_on(image: np.ndarray, mask: np.ndarray, hqsam: HQSamSegmenter) -> np.ndarray:
    """Return the garment around a print, if a mask `(H, W)`, 0..1, is small enough to be one; else the mask.

    HQ-SAM runs with points close to it on all four sides, then with the box of that mask. A small shirt on a table
    looks the same, so a person should check the result.
    """
    found = mask > 0.5
    if not 0 < found.mean() < LARGEST_PRINT:
        return mask
    rows, columns = np.flatnonzero(found.any(axis=1)), np.flatnonzero(found.any(axis=0))
    (top, bottom), (left, right) = (rows[0], rows[-1]), (columns[0], columns[-1])
    off = BESIDE * max(right - left, bottom - top) + 4
    x, y = (left + right) / 2, (top + bottom) / 2
    beside = np.array([[x, top - off], [x, bottom + off], [left - off, y], [right + off, y]], np.float32)
    height, width = mask.shape
    beside = beside[((beside >= 0) & (beside < (width, height))).all(axis=1)]
    answer = _belonging(image, beside, 3, hqsam) if len(beside) else None
    if answer is None or stability(answer) < STABLE:
        return mask
    _, pieces = cv2.connectedComponents((answer > 0.5).astype(np.uint8))
    garment = pieces == np.bincount(pieces[found]).argmax() if (answer[found] > 0.5).any() else np.zeros_like(found)
    border = np.concatenate([garment[0], garment[-1], garment[:, 0], garment[:, -1]]).mean()
    holds = (garment & found).sum() >= HOLDS * found.sum()
    if holds and border <= MAX_BORDER and garment.sum() >= MIN_GROWTH * found.sum():
        return answer * cv2.dilate(garment.astype(np.uint8), np.ones((9, 9), np.uint8))
    return mask


def _belonging(image: np.ndarray, points: np.ndarray, deepest: int, hqsam: HQSamSegmenter) -> np.ndarray | None:
    """Return HQ-SAM's mask for points `(N, 2)`, refined by its box and `deepest` points."""
    first = hqsam.segment_prompted(image, Prompt(np.zeros(0), points, np.ones(len(points), np.int64)), passes=1)
    thing = prompt_from(main_pieces(first > 0.5).astype(np.float32), points=deepest)
    return filled(hqsam.segment_prompted(image, thing)) if thing is not None else None
