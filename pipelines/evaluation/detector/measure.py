"""Measure how well the overcompletion detector decides at its tau, on products that did not set tau.

    packshot measure detector

Masks of one product are not independent. Therefore the 95 % intervals resample products, not masks (cluster bootstrap,
Field and Welsh 2007).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import track

from pipelines.errors import UsageError
from pipelines.evaluation.baselines import PublishedU2NetP
from pipelines.evaluation.detector.composites import SMALL, Composite, cut_out, draw_composites
from pipelines.evaluation.detector.photos import cut_out_photos, measured_photos
from pipelines.evaluation.products import CALIBRATION, TEST, read_products, read_scenes, read_training_products
from pipelines.evaluation.statistics import auroc
from pipelines.models.profile import Profile
from pipelines.quality.intervals import Interval, clustered
from pipelines.quality.overcompletion import SURE, OvercompletionDetector

TRAINING = "training"
COMPOSITES = {CALIBRATION: 220, TEST: 260, TRAINING: 800}
SEEDS, CROWDED_SEED = {CALIBRATION: 0, TEST: 1, TRAINING: 4}, 2
PHOTOS = 200
RECALL = 0.95
SIZES = ((0.01, 0.02), (0.02, SMALL), (SMALL, 0.1), (0.1, 0.3))


@dataclass(frozen=True, slots=True)
class MaskResult:
    """One mask of a composite, and what the detector measured. `make`: where the mask comes from.

    `part` is the kind of part that the mask lacks, `share` its area in products; "" and 0 if the mask is whole.
    """

    product: str
    background: str
    part: str
    make: str
    share: float
    e_plus: float = 0.0
    confidence: float = 0.0
    uncertainty: float = 0.0

    @property
    def grown(self) -> bool:
        """Whether the product continues beyond the mask."""
        return self.share > 0


@dataclass(frozen=True, slots=True)
class PhotoResult:
    """E+ of a real photo. `lacks`: its cutout is known to lack a part; `saw`: the detector found that part."""

    product: str
    e_plus: float
    lacks: bool = False
    saw: bool = False


@dataclass(frozen=True, slots=True)
class Group:
    """Masks of one kind: `rate` is the share of the `n` masks above tau, with its 95 % interval over `products`."""

    rate: float
    interval: Interval
    n: int
    products: int


@dataclass(frozen=True, slots=True)
class DetectorMeasure:
    """How good the detector is at `tau`, on `n` masks of products that did not set tau. Shares lie in 0..1.

    Attributes:
        auroc: how often the confidence is higher for a mask that lacks a part than for a whole one; ties count half.
        precision: the share of the masks above tau that lack a part.
        recall: the share of the masks that lack a part that are above tau.
        precision_at_recall: precision at the strictest confidence threshold whose recall is at least RECALL. It does
            not depend on tau.
        alarms: the share of real photos above tau; None without photos.
        photos: how many real photos were measured. Their products are not those of the composites.
        false_alarms: the share of these photos above tau whose alarm is not a part that the cutout lacks.
        passed_over: photos that were skipped because their cutout was rejected or held; a shop would not paint them.
        noticed: among the `lacking` photos whose cutout lacks a known part, the share where the detector finds it;
            None if there are none.
        intervals: 95 % intervals of these figures, by name.
        by_kind: rates by the kind of part that is left out; "whole" is the rate of false alarms.
        by_background: rates by background: false alarms ("… whole") and recall ("… part left out").
        by_size: recall by the share of the product that is left out.
        by_mask: rates by where the mask comes from.
        uncertainty: mean uncertainty of "right" and of "wrong" verdicts; a verdict that never occurs is absent.
    """

    tau: float
    n: int
    products: int
    composites: int
    auroc: float
    precision: float
    recall: float
    precision_at_recall: float
    alarms: float | None
    false_alarms: float | None
    photos: int
    passed_over: int
    noticed: float | None
    lacking: int
    intervals: dict[str, Interval]
    by_kind: dict[str, Group]
    by_background: dict[str, Group]
    by_size: dict[str, Group]
    by_mask: dict[str, Group]
    uncertainty: dict[str, float]
    seconds: float


def measure_detector(shared: Path, profile: Profile, tau: float, limit: int | None = None) -> DetectorMeasure:
    """Measure the detector on products and photos that did not set tau.

    Args:
        shared: the folder of the shared data, with `catalog`, `training` and `models`.
        profile: whose finders are measured.
        tau: E+ above which a picture counts as overcompleted.
        limit: at most so many composites, and at most so many photos; for a quick first result.

    Raises:
        UsageError: the shared data are missing.
    """
    started = time.monotonic()
    detector = OvercompletionDetector.from_profile(profile)
    masks = measure_masks(detector, composites_of(shared, TEST, min(limit or COMPOSITES[TEST], COMPOSITES[TEST])))
    count = min(limit or PHOTOS, PHOTOS)
    photos, passed_over = [], 0
    for photo in with_progress(cut_out_photos(measured_photos(shared), profile, count), "measuring photos", count):
        found = detector.measure(photo.image, photo.matte)
        saw = any(found.heat[point] > SURE for point in photo.lacking)
        photos.append(PhotoResult(photo.product, found.e_plus, bool(photo.lacking), saw))
        passed_over = photo.passed_over
    return summarise(masks, photos, tau, time.monotonic() - started, passed_over)


def composites_of(shared: Path, side: str, count: int, crowded: bool = False) -> Iterator[Composite]:
    """Draw `count` composites of products of one side, or of TRAINING, with a progress bar.

    `crowded`: another product stands behind. Raises UsageError if data are missing.
    """
    file = shared / "models" / "u2netp.onnx"
    products = read_training_products(shared, count) if side == TRAINING else read_products(shared, side)[:count]
    if not file.is_file():
        raise UsageError(f"{file}: not there; it cuts out the masks that the detector is measured with")
    cutters = {"U²-Net-P": PublishedU2NetP(file).segment}
    items = [cut_out(name, rgb, alpha, cutters) for name, rgb, alpha in with_progress(products, "cutting products out")]
    seed, words = (CROWDED_SEED, "crowded") if crowded else (SEEDS[side], side)
    drawn = draw_composites(items, read_scenes(shared), count, seed, crowded)
    yield from with_progress(drawn, f"{words} composites", count)


def measure_masks(detector: OvercompletionDetector, composites: Iterable[Composite]) -> list[MaskResult]:
    """Measure each mask of each composite."""
    return [
        MaskResult(
            one.product, one.background, mask.part, mask.make, mask.share,
            found.e_plus, found.confidence, found.uncertainty,
        )
        for one in composites
        for mask, found in zip(
            one.masks, detector.measure_all(one.image, [mask.matte for mask in one.masks]), strict=True
        )
    ]  # fmt: skip


def summarise(
    masks: Sequence[MaskResult], photos: Sequence[PhotoResult], tau: float, seconds: float, passed_over: int = 0
) -> DetectorMeasure:
    """Compute all figures of measured masks and photos; see `DetectorMeasure`."""
    names = [one.product for one in masks]
    grown, confidence = np.array([one.grown for one in masks]), np.array([one.confidence for one in masks])
    above = np.array([one.e_plus for one in masks]) > tau

    def area(rows: np.ndarray) -> float:
        return auroc(confidence[rows][~grown[rows]], confidence[rows][grown[rows]])

    def precision(rows: np.ndarray) -> float:
        return float(grown[rows][above[rows]].mean()) if above[rows].any() else float("nan")

    def recall(rows: np.ndarray) -> float:
        return float(above[rows][grown[rows]].mean())

    def at_recall(rows: np.ndarray) -> float:
        ranked = np.sort(confidence[rows][grown[rows]])[::-1]
        strictest = ranked[int(np.ceil(round(RECALL * len(ranked), 6))) - 1]
        return float(grown[rows][confidence[rows] >= strictest].mean())

    measures = {"auroc": area, "precision": precision, "recall": recall, "precision_at_recall": at_recall}
    found = {name: clustered(names, of) for name, of in measures.items()}
    lacking = [one for one in photos if one.lacks]
    if photos:
        found["alarms"] = _rate([(one.product, one.e_plus > tau) for one in photos])
        found["false_alarms"] = _rate([(one.product, one.e_plus > tau and not one.saw) for one in photos])
    if lacking:
        found["noticed"] = _rate([(one.product, one.e_plus > tau and one.saw) for one in lacking])
    values = {name: value for name, (value, _) in found.items()}

    def grouped(label: Callable[[MaskResult], str]) -> dict[str, Group]:
        labels = [label(one) for one in masks]
        groups = {}
        for own in sorted(set(labels)):
            rates = [(names[n], above[n]) for n, other in enumerate(labels) if other == own]
            groups[own] = Group(*_rate(rates), len(rates), len({product for product, _ in rates}))
        return groups

    wrong, doubt = above != grown, np.array([one.uncertainty for one in masks])
    return DetectorMeasure(
        tau=tau,
        n=len(masks),
        products=len(set(names)),
        composites=sum(not one.grown for one in masks) // 2,  # each has two whole masks
        auroc=values["auroc"],
        precision=values["precision"],
        recall=values["recall"],
        precision_at_recall=values["precision_at_recall"],
        alarms=values.get("alarms"),
        false_alarms=values.get("false_alarms"),
        photos=len(photos),
        passed_over=passed_over,
        noticed=values.get("noticed"),
        lacking=len(lacking),
        intervals={name: interval for name, (_, interval) in found.items()},
        by_kind=grouped(lambda one: one.part or "whole"),
        by_background=grouped(lambda one: f"{one.background}, {'part left out' if one.grown else 'whole'}"),
        by_size=grouped(lambda one: _size(one.share)),
        by_mask=grouped(lambda one: f"{one.make}, {'part left out' if one.grown else 'whole'}"),
        uncertainty={
            word: float(doubt[where].mean()) for word, where in (("right", ~wrong), ("wrong", wrong)) if where.any()
        },
        seconds=seconds,
    )


def _rate(hits: Sequence[tuple[str, bool]]) -> tuple[float, Interval]:
    """The share of hits among (product, hit), with its interval over products."""
    hit = np.array([each for _, each in hits])
    return clustered([product for product, _ in hits], lambda rows: float(hit[rows].mean()))


def _size(share: float) -> str:
    """Names the range of SIZES that a share lies in."""
    for low, high in SIZES:
        if 0 < share < high:
            return f"{low:.0%} to {high:.0%}"
    return "whole" if share == 0 else f"above {SIZES[-1][1]:.0%}"


def with_progress(items: Iterable[Any], words: str, total: int | None = None) -> Iterable[Any]:
    """Iterate with a progress bar on stderr."""
    return track(items, words, total=total, console=Console(stderr=True))
