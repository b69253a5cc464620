"""Is a cutout the whole product? Run the overcompletion detector on the photo itself, and HQ-SAM once more.

Nothing in a photo was generated. If the detector finds that the product continues beyond its cutout, the cutout lacks a
part, such as a sleeve, a strap or a leaf. Its image would show an altered product, and the check would blame the scene.
So HQ-SAM runs once more, with points on the missing part too. Its result is used if it adds no more than the missing
part suggests, and the detector then finds nothing beyond it. Otherwise a person should check the cutout.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from pipelines.quality.overcompletion import SURE, OvercompletionDetector
from pipelines.vision.segmenters import STABLE, HQSamSegmenter, Prompt, deepest_points, filled, stability

KEPT = 0.95
"""The second result contains at least this share of the first cutout; otherwise it is another object."""

MAX_ADDED = 2.0
"""The second result adds at most this multiple of the missing area. A mask that adds more includes the scene, and a
large enough mask hides everything from the detector."""

OWN_POINTS, MISSING_PIECES = 3, 3
"""Number of points on the cutout, and number of missing pieces with one point each, the largest first."""


@dataclass(frozen=True, slots=True)
class Completeness:
    """Result for one cutout.

    Attributes:
        mask: `(H, W)` float32, 0..1: the given mask, or the mask with the missing part.
        e_plus: E+ of the photo with this mask: area of the product that seems to be missing, over the mask's area.
        where: `(H, W)` float32, 0..1: probability of product beyond the mask.
        mended: Whether a part was added.
    """

    mask: np.ndarray
    e_plus: float
    where: np.ndarray
    mended: bool


def check_completeness(
    image: np.ndarray,
    mask: np.ndarray,
    detector: OvercompletionDetector,
    tau: float,
    hqsam: HQSamSegmenter | None,
    saliency: np.ndarray | None = None,
) -> Completeness:
    """Check whether a photo's product continues beyond its cutout, and repair the cutout if HQ-SAM can.

    Args:
        image: `(H, W, 3)` uint8 RGB, the photo.
        mask: `(H, W)` float, 0..1, the cutout; not empty.
        detector: Finds product beyond the cutout.
        tau: E+ up to which nothing is missing.
        hqsam: Segments once more; None: check only.
        saliency: `(H, W)` float, 0..1: the salient net's map of the photo; None: the detector asks the net.
    """
    first = _measure(image, mask, detector, saliency)
    if first.e_plus <= tau or hqsam is None:
        return first
    cutout, missing = mask > 0.5, first.where > SURE
    answer = hqsam.segment_prompted(image, _prompt(cutout, missing))
    second = filled(answer)
    kept, added = ((second > 0.5) & cutout).sum(), ((second > 0.5) & ~cutout).sum()
    if stability(answer) < STABLE or kept < KEPT * cutout.sum() or added > MAX_ADDED * missing.sum():
        return first
    both = np.maximum(mask, second)  # the first cutout stays whole
    repaired = _measure(image, both, detector, saliency)
    return Completeness(both, repaired.e_plus, repaired.where, mended=True) if repaired.e_plus <= tau else first


def _measure(
    image: np.ndarray, mask: np.ndarray, detector: OvercompletionDetector, saliency: np.ndarray | None
) -> Completeness:
    found = detector.measure(image, np.rint(np.clip(mask, 0, 1) * 255).astype(np.uint8), saliency=saliency)
    return Completeness(mask, found.e_plus, found.heat, mended=False)


def _prompt(cutout: np.ndarray, missing: np.ndarray) -> Prompt:
    """Return the box of both masks, with points on the cutout and on each of the largest missing pieces. Both `(H, W)`
    bool."""
    both = cutout | missing
    rows, columns = np.flatnonzero(both.any(axis=1)), np.flatnonzero(both.any(axis=0))
    box = np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], np.float32)
    _, labels, stats, _ = cv2.connectedComponentsWithStats(missing.astype(np.uint8))
    largest = 1 + np.argsort(-stats[1:, cv2.CC_STAT_AREA], kind="stable")[:MISSING_PIECES]
    points = np.concatenate(
        [deepest_points(cutout, OWN_POINTS), *(deepest_points(labels == piece, 1) for piece in largest)]
    )
    return Prompt(box, points, np.ones(len(points), np.int64))
