"""Overcompletion: did the scene grow the product? (the paper, section 1; the design, "Measuring overcompletion")

With M the placed mask and O what is found in the finished picture, of O only what hangs together with M,

    E+ = |O \\ dilate(M)| / |M|            an image is overcompleted when E+ > tau

Unsigned, so that a shrunken product cannot hide an extension, and normalised by the product, so that small products
count as much. One finder is one bias, so several look, each by another cue, and a pixel counts where most see product:

    salient   a salient-object net: what strikes the eye. Also takes shadows and stands for product.
    colour    GrabCut (Rother et al. 2004) with M as seed: what looks like the product rather than the scene.
    sam       HQ-SAM prompted by points on M: what one would cut out. Slow, so it is asked by `inspect` alone, and only
              where one of the others saw something: alone it could not make a majority.

How far they disagree is reported as uncertainty. tau is set by `calibrate.py`, see `thresholds.yaml`.

A second product that does not touch the first is no extension of it: D+ is the area of such objects over |M|.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import cv2
import numpy as np
from scipy import ndimage

from pipelines.vision.segmenters import HQSamSegmenter, Prompt, SalientSegmenter, Segmenter, prompt_from

if TYPE_CHECKING:
    from pipelines.models import Profile

SIDE = 320
"""Pictures are measured with their longer side at this many px: the salient net's own size."""

TOLERANCE = 0.025
"""The dilation of M, as a share of sqrt(|M|): what a segmenter may be off at an edge."""

MIN_REACH = 2.5
"""An extension reaches at least this many tolerances out of M somewhere; thinner rims are a segmenter's unsure edge."""

PLACED = 0.5
"""Matte value from which a pixel belongs to M."""

ALIKE = 0.5
"""Two objects are alike where their colours' histograms overlap by this much: of 1, what both have."""

MIN_OBJECT = 0.03
"""A detached object has at least this share of M's area; less is a speck."""


@dataclass(frozen=True, slots=True)
class Overcompletion:
    """What was found.

    Attributes:
        e_plus: E+ of what a majority of the finders sees, 0 = nothing grew, 1 = as much again as the product.
        d_plus: Area of objects like the product that do not touch it, over |M|, 0 = there are none.
        uncertainty: Largest minus smallest E+ of the single finders, at most 1.
        by_finder: E+ as each finder alone sees it.
        heat: (H, W) float32, 0..1, at the picture's size: the share of finders that see product outside of M.
    """

    e_plus: float
    d_plus: float
    uncertainty: float
    by_finder: Mapping[str, float]
    heat: np.ndarray


class Finder(Protocol):
    """Finds the product in a picture, knowing where it was placed."""

    name: str

    def find(self, image: np.ndarray, placed: np.ndarray) -> np.ndarray:
        """Map (H, W, 3) uint8 RGB and M, (H, W) bool, to the product as found, (H, W) bool."""


class SalientFinder:
    """What strikes the eye."""

    name = "salient"

    def __init__(self, segmenter: Segmenter):
        self._segmenter = segmenter

    def find(self, image: np.ndarray, placed: np.ndarray) -> np.ndarray:
        """See `Finder.find`."""
        return self._segmenter.segment(image) > 0.5


class ColourFinder:
    """What has the product's colours rather than the scene's: GrabCut, seeded by M, judged within reach of it."""

    name = "colour"

    def __init__(self, side: int = 192, iterations: int = 3):
        self._side = side
        self._iterations = iterations

    def find(self, image: np.ndarray, placed: np.ndarray) -> np.ndarray:
        """See `Finder.find`."""
        height, width = placed.shape
        scale = self._side / max(height, width)
        size = (max(8, round(width * scale)), max(8, round(height * scale)))
        small = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
        share = cv2.resize(placed.astype(np.float32), size, interpolation=cv2.INTER_AREA)
        core = ndimage.binary_erosion(share > 0.5, iterations=1)
        far = ndimage.distance_transform_edt(share <= 0.5) > 0.6 * np.sqrt(max(1.0, (share > 0.5).sum()))
        labels = np.full(share.shape, cv2.GC_PR_BGD, np.uint8)
        labels[share > 0.5] = cv2.GC_PR_FGD
        labels[core] = cv2.GC_FGD
        labels[far] = cv2.GC_BGD
        if not core.any() or not (labels == cv2.GC_PR_BGD).any():
            return placed
        cv2.setRNGSeed(0)
        models = np.zeros((1, 65)), np.zeros((1, 65))
        cv2.grabCut(small, labels, (0, 0, 0, 0), *models, self._iterations, cv2.GC_INIT_WITH_MASK)
        found = np.isin(labels, (cv2.GC_FGD, cv2.GC_PR_FGD)).astype(np.float32)
        return cv2.resize(found, (width, height), interpolation=cv2.INTER_LINEAR) > 0.5


class SamFinder:
    """What HQ-SAM cuts out when it is asked for the thing that the middle of M is part of."""

    name = "sam"

    def __init__(self, segmenter: HQSamSegmenter, margin: float = 0.1):
        self._segmenter = segmenter
        self._margin = margin

    def find(self, image: np.ndarray, placed: np.ndarray) -> np.ndarray:
        """See `Finder.find`."""
        prompt = prompt_from(placed.astype(np.float32), points=4)
        if prompt is None:
            return placed
        height, width = placed.shape
        left, top, right, bottom = prompt.box
        # room to find more than M: a box that ends where M ends would tell SAM that the product does, too
        dx, dy = self._margin * (right - left), self._margin * (bottom - top)
        box = np.array(
            [max(0, left - dx), max(0, top - dy), min(width, right + dx), min(height, bottom + dy)], np.float32
        )
        return self._segmenter.segment_prompted(image, Prompt(box, prompt.points, prompt.labels)) > 0.5


class OvercompletionDetector:
    """Measures E+ with several finders; an `arbiter` is asked only where one of them saw the product grow."""

    def __init__(self, finders: Sequence[Finder], arbiter: Finder | None = None):
        if len(finders) < 2:
            raise ValueError("One finder is one bias: give at least two.")
        self._finders = tuple(finders)
        self._arbiter = arbiter

    @classmethod
    def from_profile(cls, profile: Profile, thorough: bool = False, device: str = "cpu") -> OvercompletionDetector:
        """Load the finders of a profile: the salient net and colour; `thorough` adds HQ-SAM as arbiter."""
        salient = SalientSegmenter.from_profile(profile, device)
        arbiter = SamFinder(HQSamSegmenter.from_profile(profile, salient, device)) if thorough else None
        return cls([SalientFinder(salient), ColourFinder()], arbiter)

    def measure(self, image: np.ndarray, matte: np.ndarray) -> Overcompletion:
        """Measure one picture.

        Args:
            image: (H, W, 3) uint8 RGB, the product in its scene.
            matte: (H, W) uint8, the placed product, 255 = product.

        Raises:
            ValueError: sizes that do not fit, or a matte without a product.
        """
        if image.shape[:2] != matte.shape:
            raise ValueError(f"The image is {image.shape[:2]} and its matte {matte.shape} (height, width).")
        scale = min(1.0, SIDE / max(matte.shape))
        size = (round(matte.shape[1] * scale), round(matte.shape[0] * scale))
        small = np.ascontiguousarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA))
        placed = cv2.resize(matte, size, interpolation=cv2.INTER_AREA) > 255 * PLACED
        if not placed.any():
            raise ValueError("The matte is empty: no product was placed.")

        found = {finder.name: finder.find(small, placed) for finder in self._finders}
        grown = {name: extension(one, placed) for name, one in found.items()}
        if self._arbiter is not None and any(one.any() for one in grown.values()):
            found[self._arbiter.name] = self._arbiter.find(small, placed)
            grown[self._arbiter.name] = extension(found[self._arbiter.name], placed)
        agreed = extension(np.mean(list(found.values()), axis=0) > 0.5, placed)
        area = placed.sum()
        by_finder = {name: float(one.sum() / area) for name, one in grown.items()}
        heat = np.mean([one.astype(np.float32) for one in grown.values()], axis=0)
        return Overcompletion(
            e_plus=float(agreed.sum() / area),
            d_plus=float(detached(np.any(list(found.values()), axis=0), small, placed).sum() / area),
            uncertainty=min(1.0, max(by_finder.values()) - min(by_finder.values())),
            by_finder=by_finder,
            heat=cv2.resize(heat, matte.shape[::-1], interpolation=cv2.INTER_LINEAR),
        )


def extension(found: np.ndarray, placed: np.ndarray) -> np.ndarray:
    """O \\ dilate(M): what was found beyond M's tolerance, hangs together with M and is more than an unsure rim.

    found, placed: (H, W) bool. Returns (H, W) bool.
    """
    labels, _ = ndimage.label(found | placed)
    connected = np.isin(labels, np.unique(labels[placed]))
    tolerance = max(2.0, TOLERANCE * np.sqrt(placed.sum()))
    distance = ndimage.distance_transform_edt(~placed)
    beyond = connected & (distance > tolerance)
    pieces, count = ndimage.label(beyond)
    if count == 0:
        return beyond
    reach = ndimage.maximum(distance, pieces, index=np.arange(count + 1))
    return np.isin(pieces, np.flatnonzero(reach >= MIN_REACH * tolerance)) & beyond


def detached(found: np.ndarray, image: np.ndarray, placed: np.ndarray) -> np.ndarray:
    """Objects that are not connected to M and have its colours: a second product.

    found, placed: (H, W) bool; image: (H, W, 3) uint8 RGB. Returns (H, W) bool.
    """
    labels, count = ndimage.label(found | placed)
    area, own = placed.sum(), _colours(image[placed])
    touching = set(np.unique(labels[ndimage.binary_dilation(placed, iterations=2)]).tolist())
    second = [
        piece
        for piece in range(1, count + 1)
        if piece not in touching
        and (where := labels == piece).sum() >= MIN_OBJECT * area
        and np.minimum(own, _colours(image[where])).sum() >= ALIKE
    ]
    return np.isin(labels, second)


def _colours(pixels: np.ndarray) -> np.ndarray:
    """Histogram of (N, 3) uint8 RGB, (8, 8, 8), sum 1, smoothed so that light makes little difference."""
    counts, _ = np.histogramdd(pixels, bins=8, range=[(0, 256)] * 3)
    smooth: np.ndarray = ndimage.gaussian_filter(counts, 0.7)
    return smooth / smooth.sum()
