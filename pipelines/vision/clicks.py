"""A person corrects a mask: HQ-SAM's answer to clicks and boxes on a picture that has a mask already."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from pipelines.vision.segmenters import HQSamSegmenter, Prompt, filled

NO_BOX = np.zeros(0, np.float32)


@dataclass(frozen=True, slots=True)
class Click:
    """A point of the picture, px, that belongs to the product, or does not."""

    x: float
    y: float
    product: bool


def answer_clicks(image: np.ndarray, mask: np.ndarray, clicks: Sequence[Click], hqsam: HQSamSegmenter) -> np.ndarray:
    """Return the corrected mask `(H, W)` bool. Its last click is right in it.

    A click on the product only adds, and one beside it only removes: the region around the click where HQ-SAM's answer
    differs from the mask. So what was right or painted elsewhere stays. An empty mask is replaced by the answer.

    The mask is HQ-SAM's mask prompt. If the answer ignores the last click, HQ-SAM answers again without it. If that
    answer ignores the click too, a small disc is drawn.

    Args:
        image: `(H, W, 3)` uint8 RGB.
        mask: `(H, W)` bool, 1 = product; it may be empty.
        clicks: All clicks so far, the oldest first; at least one.
        hqsam: The segmenter.
    """
    points = np.array([(click.x, click.y) for click in clicks], np.float32)
    labels = np.array([int(click.product) for click in clicks], np.int64)
    last = clicks[-1]
    row, column = (min(int(at), size - 1) for at, size in zip((last.y, last.x), mask.shape, strict=True))
    for rough in (mask.astype(np.float32), None) if mask.any() else (None,):
        found = filled(hqsam.segment_prompted(image, Prompt(NO_BOX, points, labels, rough), passes=1)) > 0.5
        if found[row, column] == last.product:
            return _with_region(mask, found, (row, column), last.product) if mask.any() else found
    rows, columns = np.ogrid[: mask.shape[0], : mask.shape[1]]
    disc = (rows - row) ** 2 + (columns - column) ** 2 <= (0.01 * max(mask.shape)) ** 2
    return mask | disc if last.product else mask & ~disc


def _with_region(mask: np.ndarray, found: np.ndarray, at: tuple[int, int], product: bool) -> np.ndarray:
    """Return the mask with what the answer adds (`product`), or removes, around a pixel."""
    differs = found & ~mask if product else mask & ~found
    if differs[at]:
        _, labels = cv2.connectedComponents(differs.astype(np.uint8), connectivity=8)
        differs = labels == labels[at]
    region = cv2.dilate(differs.astype(np.uint8), np.ones((5, 5), np.uint8)) > 0  # no seam beside it
    return mask | (region & found) if product else mask & (found | ~region)


def answer_box(image: np.ndarray, box: tuple[float, float, float, float], hqsam: HQSamSegmenter) -> np.ndarray:
    """Return the mask `(H, W)` bool of what a box (left, top, right, bottom, px) contains."""
    prompt = Prompt(np.array(box, np.float32), np.zeros((0, 2), np.float32), np.zeros(0, np.int64))
    return filled(hqsam.segment_prompted(image, prompt)) > 0.5
