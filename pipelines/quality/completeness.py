"""Is a cutout the whole product? The overcompletion detector, asked of the photo itself, and HQ-SAM asked again.

Nothing in a photo was generated. Where the detector sees the product go on beyond its cutout there, the cutout lacks a
part: a sleeve, a strap, a leaf. Published like that the product would be altered, and the scene would be blamed for
nothing. HQ-SAM is then prompted once more, with points on what is missing too. What it adds is taken if it is no more
than what was missing asks for, and if the detector finds nothing beyond it. Else a person should look.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from pipelines.quality.overcompletion import SURE, OvercompletionDetector
from pipelines.vision.segmenters import STABLE, HQSamSegmenter, Prompt, deepest_points, filled, stability

KEPT = 0.95
"""The second answer holds at least this share of the first cutout, or it speaks of something else."""

MAX_ADDED = 2.0
"""It adds at most so many times the area that was seen to be missing: what adds more takes in the scene, and of a mask
that is large enough the detector finds nothing beyond."""

OWN_POINTS, MISSING_PIECES = 3, 3
"""Points on the cutout, and how many missing pieces get one each, the largest first."""


@dataclass(frozen=True, slots=True)
class Completeness:
    """A cutout that was asked about.

    Attributes:
        mask: `(H, W)` float32, 0..1: the mask as it was, or with what was missing.
        e_plus: E+ of the photo with this mask: how much of the product still seems to be missing, in products.
        where: `(H, W)` float32, 0..1: how sure the detector is of product beyond the mask.
        mended: whether something was added.
    """

    mask: np.ndarray
    e_plus: float
    where: np.ndarray
    mended: bool


def check_completeness(
    image: np.ndarray, mask: np.ndarray, detector: OvercompletionDetector, tau: float, hqsam: HQSamSegmenter | None
) -> Completeness:
    """Ask of a photo whether its product goes on beyond its cutout, and mend the cutout where HQ-SAM can.

    Args:
        image: `(H, W, 3)` uint8 RGB, the photo.
        mask: `(H, W)` float, 0..1, the cutout; not empty.
        detector: Finds what goes on.
        tau: E+ up to which nothing is missing.
        hqsam: Is asked again; None: only the question is asked.
    """
    first = _ask(image, mask, detector)
    if first.e_plus <= tau or hqsam is None:
        return first
    cutout, missing = mask > 0.5, first.where > SURE
    answer = hqsam.segment_prompted(image, _prompt(cutout, missing))
    second = filled(answer)
    kept, added = ((second > 0.5) & cutout).sum(), ((second > 0.5) & ~cutout).sum()
    if stability(answer) < STABLE or kept < KEPT * cutout.sum() or added > MAX_ADDED * missing.sum():
        return first
    both = np.maximum(mask, second)  # a mend adds; what the first answer held stays
    asked = _ask(image, both, detector)
    return Completeness(both, asked.e_plus, asked.where, mended=True) if asked.e_plus <= tau else first


def _ask(image: np.ndarray, mask: np.ndarray, detector: OvercompletionDetector) -> Completeness:
    found = detector.measure(image, np.rint(np.clip(mask, 0, 1) * 255).astype(np.uint8))
    return Completeness(mask, found.e_plus, found.heat, mended=False)


def _prompt(cutout: np.ndarray, missing: np.ndarray) -> Prompt:
    """The box of both, points on the cutout and on each of the largest missing pieces; both `(H, W)` bool."""
    both = cutout | missing
    rows, columns = np.flatnonzero(both.any(axis=1)), np.flatnonzero(both.any(axis=0))
    box = np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], np.float32)
    _, labels, stats, _ = cv2.connectedComponentsWithStats(missing.astype(np.uint8))
    largest = 1 + np.argsort(-stats[1:, cv2.CC_STAT_AREA], kind="stable")[:MISSING_PIECES]
    points = np.concatenate(
        [deepest_points(cutout, OWN_POINTS), *(deepest_points(labels == piece, 1) for piece in largest)]
    )
    return Prompt(box, points, np.ones(len(points), np.int64))
