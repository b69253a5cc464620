r"""Overcompletion: did the scene grow the product? (the paper, section 1)

With M the placed mask and O the part connected to M of what is found in the finished picture,

    E+ = |O \ dilate(M)| / |M|            an image is overcompleted if E+ > tau

It is unsigned, so a shrunken product cannot hide an extension. It is normalised by the product, so small products count
as much. A single finder is biased, so several search, each by another cue:

    salient   a salient-object net. It also takes shadows and stands for product.
    colour    GrabCut (Rother et al. 2004) with M as seed: what looks like the product rather than the scene.
    sam       HQ-SAM prompted by points on M: an independent second opinion that does not change E+. It is slow,
              so only `inspect` runs it, and only if another finder found something.

`evidence.py` judges each piece beyond M that salient or colour finds, or that has a high local contrast (`detail.py`).
E+ is the area of the pieces with a high enough probability. The finders' disagreement is reported as uncertainty.
`thresholds.yaml` holds tau, from the detector's calibration.

A second product that does not touch the first is no extension of it. D+ is the area of such objects over |M|.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import TYPE_CHECKING, Protocol

import cv2
import numpy as np
from scipy import ndimage

from pipelines.quality.detector import SURE
from pipelines.quality.evidence import Evidence, connected_to, depth, tolerance_of
from pipelines.vision.segmenters import HQSamSegmenter, Prompt, SalientSegmenter, Segmenter, prompt_from

if TYPE_CHECKING:
    from pipelines.models.profile import Profile

SIDE = 320
"""Pictures are measured with this longer side, px: the salient net's own size."""

MIN_REACH = 2.5
"""A single finder's region counts if it extends at least this many tolerances from M. Thinner ones are an uncertain
edge."""

PLACED = 0.5
"""Matte value from which a pixel belongs to M."""

ALIKE = 0.5
"""Overlap of two objects' colour histograms, 0..1, from which the objects are alike."""

MIN_OBJECT = 0.03
"""A detached object has at least this share of M's area; a smaller one is a speck."""


@dataclass(frozen=True, slots=True)
class Overcompletion:
    """Result for one picture.

    Attributes:
        e_plus: E+ of the pieces that are judged to be product; 0 = nothing grew, 1 = as much again as the product.
        confidence: Probability that anything grew, 0..1; pictures are ranked by it.
        d_plus: Area of objects like the product that do not touch it, over |M|; 0 = none.
        uncertainty: Largest minus smallest E+ of the single finders, at most 1.
        by_finder: E+ of each finder alone.
        heat: (H, W) float32, 0..1, at the picture's size: probability of product beyond M.
        saliency: (h, w) float32, 0..1: the salient net's map of the reduced picture; None if it was not asked.
    """

    e_plus: float
    confidence: float
    d_plus: float
    uncertainty: float
    by_finder: Mapping[str, float]
    heat: np.ndarray
    saliency: np.ndarray | None = None


@dataclass(frozen=True, slots=True)
class JudgeInput:
    """Input of a judge: `image` (H, W, 3) uint8 RGB, `placed` M, (H, W) bool, and each finder's result in `seen`."""

    image: np.ndarray
    placed: np.ndarray
    seen: Mapping[str, np.ndarray]


class Finder(Protocol):
    """Finds the product in a picture, given its placed mask."""

    name: str

    def find(self, image: np.ndarray, placed: np.ndarray) -> np.ndarray:
        """Map (H, W, 3) uint8 RGB and M, (H, W) bool, to the probability of product, (H, W), 0..1 or bool."""


class Judge(Protocol):
    """Decides which of the finders' regions are grown product."""

    def __call__(self, image: np.ndarray, placed: np.ndarray, seen: Mapping[str, np.ndarray]) -> np.ndarray:
        """Map a picture, M and the finders' results to the probability of product beyond M, (H, W), 0..1."""


def majority(image: np.ndarray, placed: np.ndarray, seen: Mapping[str, np.ndarray]) -> np.ndarray:
    """The judge without weights: what most finders found."""
    return extension(np.mean([one > 0.5 for one in seen.values()], axis=0) > 0.5, placed).astype(np.float64)


class SalientFinder:
    """Finds what the salient-object net finds."""

    name = "salient"

    def __init__(self, segmenter: Segmenter):
        self._segmenter = segmenter
        self._seen: tuple[np.ndarray, np.ndarray] | None = None

    def find(self, image: np.ndarray, placed: np.ndarray) -> np.ndarray:
        """See `Finder.find`. It caches the last picture's result, which does not depend on M."""
        if self._seen is None or self._seen[0] is not image:
            self._seen = image, self._segmenter.segment(image)
        return self._seen[1]


class ColourFinder:
    """Finds what has the product's colours rather than the scene's: GrabCut, seeded by M, limited to its
    neighbourhood."""

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
    """Finds the object that HQ-SAM segments for points in the middle of M."""

    name = "sam"

    def __init__(self, segmenter: Callable[[], HQSamSegmenter], margin: float = 0.1):
        self._segmenter = segmenter  # called when first needed
        self._margin = margin

    def find(self, image: np.ndarray, placed: np.ndarray) -> np.ndarray:
        """See `Finder.find`."""
        prompt = prompt_from(placed.astype(np.float32), points=4)
        if prompt is None:
            return placed
        height, width = placed.shape
        left, top, right, bottom = prompt.box
        # a margin: with a box of exactly M, SAM would find no more than M
        dx, dy = self._margin * (right - left), self._margin * (bottom - top)
        box = np.array(
            [max(0, left - dx), max(0, top - dy), min(width, right + dx), min(height, bottom + dy)], np.float32
        )
        return self._segmenter().segment_prompted(image, Prompt(box, prompt.points, prompt.labels)) > 0.5


class OvercompletionDetector:
    """Measures E+: several finders search, a judge weighs their results. A `second_opinion` is slow and changes only
    the uncertainty."""

    def __init__(self, finders: Sequence[Finder], judge: Judge = majority, second_opinion: Finder | None = None):
        if len(finders) < 2:
            raise ValueError("One finder is one bias: give at least two.")
        self._finders = tuple(finders)
        self._judge = judge
        self._second_opinion = second_opinion

    @classmethod
    def from_profile(cls, profile: Profile, thorough: bool = False, device: str = "cpu") -> OvercompletionDetector:
        """Load the finders of a profile and the evidence's weights; `thorough` adds HQ-SAM as second opinion."""
        salient = SalientSegmenter.from_profile(profile, device)
        hqsam = cache(partial(HQSamSegmenter.from_profile, profile, salient, device))  # seldom asked
        if thorough:
            profile.part("hqsam").check()
        sam = SamFinder(hqsam) if thorough else None
        return cls([SalientFinder(salient), ColourFinder()], Evidence.read(), sam)

    def measure(
        self,
        image: np.ndarray,
        matte: np.ndarray,
        doubtful: Callable[[float], bool] | None = None,
        saliency: np.ndarray | None = None,
    ) -> Overcompletion:
        """Measure one picture.

        Args:
            image: (H, W, 3) uint8 RGB, the product in its scene.
            matte: (H, W) uint8, the placed product, 255 = product.
            doubtful: Maps E+ to whether the second opinion is worth its time. Default: if any finder found growth,
                whatever the judge says.
            saliency: (h, w) float, 0..1: the salient net's map of this picture at any size, if somebody has it.

        Raises:
            ValueError: sizes that do not fit, or an empty matte.
        """
        (look,) = self.judge_inputs(image, [matte], saliency)
        return self._measure(look, image.shape[:2], doubtful)

    def measure_all(self, image: np.ndarray, mattes: Sequence[np.ndarray]) -> list[Overcompletion]:
        """Measure one picture with several mattes, as `measure` does, but faster."""
        return [self._measure(look, image.shape[:2], None) for look in self.judge_inputs(image, mattes)]

    def judge_inputs(
        self, image: np.ndarray, mattes: Sequence[np.ndarray], saliency: np.ndarray | None = None
    ) -> Iterator[JudgeInput]:
        """Yield the judge's input of a picture for each of several mattes; see `measure`."""
        small = reduced(image)
        size = small.shape[1::-1]
        known = {}
        if saliency is not None:
            known[SalientFinder.name] = cv2.resize(saliency, size, interpolation=cv2.INTER_AREA)
        for matte in mattes:
            if image.shape[:2] != matte.shape:
                raise ValueError(f"The image is {image.shape[:2]} and its matte {matte.shape} (height, width).")
            share = cv2.resize(matte, size, interpolation=cv2.INTER_AREA)
            if not share.any():
                raise ValueError("The matte is empty: no product was placed.")
            placed = share > 255 * PLACED
            if not placed.any():  # thinner than a pixel of the reduced picture: take its maximum
                placed = share > share.max() / 2
            others = (finder for finder in self._finders if finder.name not in known)
            yield JudgeInput(small, placed, known | {finder.name: finder.find(small, placed) for finder in others})

    def _measure(
        self, given: JudgeInput, shape: tuple[int, int], doubtful: Callable[[float], bool] | None
    ) -> Overcompletion:
        image, placed, seen = given.image, given.placed, given.seen
        sure = self._judge(image, placed, seen)
        grown = {name: extension(one > 0.5, placed) for name, one in seen.items()}
        area = placed.sum()
        e_plus = float((sure > SURE).sum() / area)
        asked = doubtful(e_plus) if doubtful is not None else any(one.any() for one in grown.values())
        if self._second_opinion is not None and asked:
            other = self._second_opinion.find(image, placed)
            grown[self._second_opinion.name] = extension(other > 0.5, placed)
        by_finder = {name: float(one.sum() / area) for name, one in grown.items()}
        anything = np.any([one > 0.5 for one in seen.values()], axis=0)
        return Overcompletion(
            e_plus=e_plus,
            confidence=float(sure.max()),
            d_plus=float(detached(anything, image, placed).sum() / area),
            uncertainty=min(1.0, max(by_finder.values()) - min(by_finder.values())),
            by_finder=by_finder,
            heat=cv2.resize(sure.astype(np.float32), shape[::-1], interpolation=cv2.INTER_LINEAR),
            saliency=seen.get(SalientFinder.name),
        )


def reduced(image: np.ndarray) -> np.ndarray:
    """Return a picture (H, W, 3) uint8 at the size that the detector works at: at most `SIDE` px."""
    scale = min(1.0, SIDE / max(image.shape[:2]))
    size = (round(image.shape[1] * scale), round(image.shape[0] * scale))
    return np.ascontiguousarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA))


def extension(found: np.ndarray, placed: np.ndarray) -> np.ndarray:
    r"""Return O \ dilate(M): regions connected to M, beyond its tolerance, that are more than an uncertain rim.

    found, placed: (H, W) bool. Returns (H, W) bool.
    """
    tolerance, away = tolerance_of(placed), depth(~placed)
    beyond = connected_to(placed, found) & (away > tolerance)
    _, pieces = cv2.connectedComponents(beyond.astype(np.uint8), connectivity=4)
    far = np.unique(pieces[beyond & (away >= MIN_REACH * tolerance)])
    return np.isin(pieces, far) & beyond


def detached(found: np.ndarray, image: np.ndarray, placed: np.ndarray) -> np.ndarray:
    """Return objects that are not connected to M and have its colours: a second product.

    found, placed: (H, W) bool; image: (H, W, 3) uint8 RGB. Returns (H, W) bool.
    """
    count, labels = cv2.connectedComponents((found | placed).astype(np.uint8), connectivity=4)
    area, own = placed.sum(), _colours(image[placed])
    near = cv2.dilate(placed.astype(np.uint8), np.ones((5, 5), np.uint8)) > 0
    touching = set(np.unique(labels[near]).tolist())
    second = [
        piece
        for piece in range(1, count)
        if piece not in touching
        and (where := labels == piece).sum() >= MIN_OBJECT * area
        and np.minimum(own, _colours(image[where])).sum() >= ALIKE
    ]
    return np.isin(labels, second)


def _colours(pixels: np.ndarray) -> np.ndarray:
    """Return the histogram of (N, 3) uint8 RGB, (8, 8, 8), sum 1, smoothed against changes of light."""
    counts, _ = np.histogramdd(pixels, bins=8, range=[(0, 256)] * 3)
    smooth: np.ndarray = ndimage.gaussian_filter(counts, 0.7)
    return smooth / smooth.sum()
