"""Fit what tells product from scene and set tau on some products, and measure the detector on others.

    python -m pipelines.evaluation.detector.calibrate ../shared    writes the evidence, prints the tau that errs least
    packshot measure detector                                      how good the detector is at its tau

tau is a reviewed constant, the default of `pipelines.scenes.Checks.overcompletion`; `thresholds.yaml` says which run it
comes from: each calibration product is judged by weights that were fitted to the others. No product that a weight or
tau was set on is measured. Composites of one product hang together, so intervals are from resampling products (cluster
bootstrap, Field and Welsh 2007).
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import cv2
import numpy as np
import typer
from rich.console import Console
from rich.progress import track

from pipelines.errors import UsageError
from pipelines.evaluation.baselines import PublishedU2NetP
from pipelines.evaluation.detector.composites import (
    PHOTO,
    SIDES,
    SMALL,
    Composite,
    Mask,
    composites,
    cut_out,
    photographed,
    read_products,
    read_scenes,
    read_training_products,
)
from pipelines.evaluation.detector.photos import lesson_files, photo_files, untouched_photos
from pipelines.models.profile import Profile, load_profile
from pipelines.quality.evidence import Evidence, Piece, pieces
from pipelines.quality.intervals import Interval, clustered
from pipelines.quality.overcompletion import SURE, OvercompletionDetector

if TYPE_CHECKING:
    from pipelines.evaluation.detector.painted import Lesson

(CALIBRATION, TEST), TRAINING = SIDES, "training"
COMPOSITES = {CALIBRATION: 220, TEST: 260, TRAINING: 800}
SEEDS, CROWDED_SEED = {CALIBRATION: 0, TEST: 1, TRAINING: 4}, 2
CROWDED, LESSON_PHOTOS, LESSONS = 60, 335, 96
"""Besides composites, what is learned from: such with another product behind, photos of the training side, and so many
pairs of product and scene that the profile paints, and perfect pictures, two of each."""

PAINTED = "painted"
"""The background of what is no composite but painted: see `pipelines.evaluation.detector.painted`."""

MIN_BEYOND = 0.3
"""A piece in a painted picture is growth only where this share of it lies beyond the autoencoder's rim."""

CLEARLY = 0.02
"""A painted picture is clearly grown where growth is more than this share of the product."""

RECALL = 0.95
FOLDS = 6
PHOTOS = 200
SIZES = ((0.01, 0.02), (0.02, SMALL), (SMALL, 0.1), (0.1, 0.3))


@dataclass(frozen=True, slots=True)
class Judged:
    """A mask of a composite and what the detector says. `share` is the part of the product that was left out, 0 =
    none, `part` its kind, `make` where the mask comes from."""

    product: str
    background: str
    part: str
    make: str
    share: float
    e_plus: float
    confidence: float
    uncertainty: float

    @property
    def grown(self) -> bool:
        """Whether the product goes on beyond the mask."""
        return self.share > 0


@dataclass(frozen=True, slots=True)
class Group:
    """Masks of a kind: `rate` of the `n` are above tau, with its 95 % interval. `products`: how many there are."""

    rate: float
    interval: Interval
    n: int
    products: int


@dataclass(frozen=True, slots=True)
class Asked:
    """What the detector said of an untouched photo: E+; whether the photo's cutout is known to `lack` a part, and
    whether that part is what it `saw`."""

    product: str
    e_plus: float
    lacks: bool = False
    saw: bool = False


@dataclass(frozen=True, slots=True)
class DetectorMeasure:
    """How good the detector is at `tau`, on `n` masks of products that tau was not set on.

    Attributes:
        auroc: how often the detector's confidence is higher for a mask that lacks a part than for one that is whole; a
            tie counts half.
        precision: the share of the masks above tau that lack a part.
        recall: the share of the masks that lack a part that are above tau.
        precision_at_recall: precision at the strictest threshold of the confidence whose recall is RECALL or more: what
            the ranking is worth, whatever tau is.
        alarms: the share of untouched photos above tau, `photos` of other products; None where there were none.
        false_alarms: the share of them that are above tau, and not for a part that their cutout lacks.
        passed_over: how many more there were whose cutout was rejected or held, so that nothing would be painted.
        noticed: of the photos, `lacking` of them, whose cutout is known to lack a part, the share in which that part is
            seen; None where there were none.
        intervals: 95 % intervals of these, from resampling products.
        by_kind: by the part that was left out; "whole" is the rate of false alarms.
        by_background: false alarms ("… whole") and recall ("… part left out") by kind of background.
        by_size: recall by the share of the product that was left out.
        by_mask: by where the mask comes from.
        uncertainty: mean uncertainty where the verdict is "right" and where it is "wrong", as far as there are such.
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


def auroc(whole: np.ndarray, grown: np.ndarray) -> float:
    """The area under the ROC curve: P(grown > whole) + P(grown = whole) / 2, by ranks (Mann and Whitney 1947)."""
    order = np.sort(whole)
    below, upto = np.searchsorted(order, grown, "left"), np.searchsorted(order, grown, "right")
    return float((below + upto).mean() / 2 / len(whole))


def tune(whole: np.ndarray, grown: np.ndarray) -> float:
    """The tau, 0..1, that is wrong least often: the middle of the widest gap between two scores where that is so."""
    scores = np.unique(np.concatenate([[0.0, 1.0], whole, grown]))
    middles, widths = (scores[1:] + scores[:-1]) / 2, np.diff(scores)
    wrong = np.searchsorted(np.sort(grown), middles, "right") + len(whole)
    wrong = wrong - np.searchsorted(np.sort(whole), middles, "right")
    return float(middles[np.lexsort((-widths, wrong))[0]])


def draw(shared: Path, side: str, count: int, crowded: bool = False) -> Iterator[Composite]:
    """Draw `count` composites of one side's products, or of training products, with a progress bar; `crowded`: with
    another product behind.

    Raises UsageError where data are missing.
    """
    file = shared / "models" / "u2netp.onnx"
    products = read_training_products(shared, count) if side == TRAINING else read_products(shared, side)[:count]
    if not file.is_file():
        raise UsageError(f"{file}: not there; it cuts out the masks that the detector is measured with")
    cutters = {"U²-Net-P": PublishedU2NetP(file).segment}
    items = [cut_out(name, rgb, alpha, cutters) for name, rgb, alpha in _bar(products, "cutting products out")]
    seed, words = (CROWDED_SEED, "crowded") if crowded else (SEEDS[side], side)
    yield from _bar(composites(items, read_scenes(shared), count, seed, crowded), f"{words} composites", count)


def photographs(shared: Path, profile: Profile, count: int) -> Iterator[Composite]:
    """Photos of the training side, each with its cutout and with parts of it left out, with a progress bar."""
    photos = untouched_photos(lesson_files(shared), profile, count)
    for number, photo in enumerate(_bar(photos, "photos to learn from", count)):
        rng = np.random.default_rng([len(SIDES) + 1, number])
        yield photographed(photo.product, photo.image, photo.matte, photo.lacking, rng)


def judge(detector: OvercompletionDetector, drawn: Iterable[Composite]) -> list[Judged]:
    """Measure each mask of each composite."""
    return [
        _judged(composite, mask, found.e_plus, found.confidence, found.uncertainty)
        for composite in drawn
        for mask, found in zip(
            composite.masks,
            detector.measure_all(composite.image, [mask.matte for mask in composite.masks]),
            strict=True,
        )
    ]


def _judged(composite: Composite, mask: Mask, e_plus: float, confidence: float, uncertainty: float) -> Judged:
    return Judged(
        composite.product, composite.background, mask.part, mask.make, mask.share, e_plus, confidence, uncertainty
    )


@dataclass(frozen=True, slots=True)
class Known:
    """A mask whose truth is known: what the finders see beyond it, and which of those `pieces` are `product`, as far as
    that can be told (else None)."""

    judged: Judged
    placed: np.ndarray
    pieces: tuple[Piece, ...]
    product: tuple[bool | None, ...]


def know(detector: OvercompletionDetector, drawn: Iterable[Composite]) -> list[Known]:
    """The pieces beyond each mask. A piece is product where more than half of it is the part that was left out, or
    where it is the smallest that holds a point of what the picture's masks lack; of such a picture's other pieces it
    cannot be told."""
    known = []
    for composite in drawn:
        looks = list(detector.judge_inputs(composite.image, [mask.matte for mask in composite.masks]))
        whole = looks[0].placed
        down, across = (its / own for its, own in zip(whole.shape, composite.image.shape, strict=False))
        lacking = [(int(row * down), int(column * across)) for row, column in composite.lacking]
        for mask, look in zip(composite.masks, looks, strict=True):
            left_out = whole & ~look.placed & (mask.share > 0)
            found = tuple(pieces(look.image, look.placed, look.seen))
            truth = _are_product(found, left_out, lacking)
            known.append(Known(_judged(composite, mask, 0.0, 0.0, 0.0), look.placed, found, truth))
    return known


def _are_product(
    found: Sequence[Piece], left_out: np.ndarray, lacking: Sequence[tuple[int, int]]
) -> tuple[bool | None, ...]:
    """Which pieces are product, by the part that was left out, (H, W) bool, and by points; see `know`."""
    pointed = set()
    for point in lacking:
        holding = [n for n, piece in enumerate(found) if piece.mask[point]]
        pointed.update(sorted(holding, key=lambda n: found[n].share)[:1])
    otherwise = None if lacking else False
    return tuple(
        n in pointed or bool((piece.mask & left_out).sum() > 0.5 * piece.mask.sum()) or otherwise
        for n, piece in enumerate(found)
    )


def know_painted(detector: OvercompletionDetector, painted: Iterable[Lesson]) -> list[Known]:
    """The pieces beyond the product in painted pictures. Of what a piece has beyond the rim, more than half is growth,
    or it is not product; where more than half is unlike but not surely growth, it cannot be told."""
    known = []
    for lesson in painted:
        (look,) = detector.judge_inputs(lesson.image, [lesson.matte])
        size = look.placed.shape[::-1]
        grown, unlike, beyond = (
            cv2.resize(where.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST) > 0
            for where in (lesson.grown, lesson.unlike, lesson.beyond)
        )
        found = tuple(pieces(look.image, look.placed, look.seen))
        truth = tuple(_told(piece.mask, beyond, unlike, grown) for piece in found)
        share = float(grown.sum() / look.placed.sum())
        judged = Judged(lesson.product, PAINTED, "growth" if share else "", "the profile", share, 0.0, 0.0, 0.0)
        known.append(Known(judged, look.placed, found, truth))
    return known


def _told(piece: np.ndarray, beyond: np.ndarray, unlike: np.ndarray, grown: np.ndarray) -> bool | None:
    outer = piece & beyond
    if outer.sum() <= MIN_BEYOND * piece.sum():
        return False
    if (outer & grown).sum() > 0.5 * outer.sum():
        return True
    return None if (outer & unlike).sum() > 0.5 * outer.sum() else False


def fit(known: Sequence[Known]) -> Evidence:
    """Fit the evidence's weights to pieces of known truth."""
    rows = [
        (piece.features, is_product)
        for one in known
        for piece, is_product in zip(one.pieces, one.product, strict=True)
        if is_product is not None
    ]
    features, product = zip(*rows, strict=True)
    return Evidence.fit(features, np.array(product))


def cross_judged(known: Sequence[Known], folds: int = FOLDS) -> list[Judged]:
    """Judge each mask by weights that were fitted to other products."""
    fold = {name: n % folds for n, name in enumerate(sorted({one.judged.product for one in known}))}
    fitted = [fit([one for one in known if fold[one.judged.product] != n]) for n in range(folds)]
    judged = []
    for one in known:
        sure = fitted[fold[one.judged.product]].sure(one.pieces)
        grown = np.any([piece.mask for piece, p in zip(one.pieces, sure, strict=True) if p > SURE], axis=0)
        e_plus = float(np.sum(grown) / one.placed.sum())
        judged.append(replace(one.judged, e_plus=e_plus, confidence=float(max(sure, default=0.0))))
    return judged


def figures(
    judged: Sequence[Judged], photos: Sequence[Asked], tau: float, seconds: float, passed_over: int = 0
) -> DetectorMeasure:
    """Sum up: `judged` masks of composites, and untouched `photos`, for which so many others were passed over."""
    names = [one.product for one in judged]
    grown, confidence = np.array([one.grown for one in judged]), np.array([one.confidence for one in judged])
    above = np.array([one.e_plus for one in judged]) > tau

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
    rates = {
        "alarms": [(one.product, one.e_plus > tau) for one in photos],
        "false_alarms": [(one.product, one.e_plus > tau and not one.saw) for one in photos],
        "noticed": [(one.product, one.e_plus > tau and one.saw) for one in lacking],
    }
    for name, said in rates.items():
        if said:
            products, hits = [product for product, _ in said], np.array([hit for _, hit in said])
            found[name] = clustered(products, lambda rows, hits=hits: float(hits[rows].mean()))  # type: ignore[misc]
    told = [one.part or "whole" for one in judged]
    state = ["part left out" if one.grown else "whole" for one in judged]
    wrong = above != grown
    doubt = np.array([one.uncertainty for one in judged])
    return DetectorMeasure(
        tau=tau,
        n=len(judged),
        products=len(set(names)),
        composites=sum(not one.grown for one in judged) // 2,  # each has two whole masks
        auroc=found["auroc"][0],
        precision=found["precision"][0],
        recall=found["recall"][0],
        precision_at_recall=found["precision_at_recall"][0],
        alarms=found["alarms"][0] if photos else None,
        false_alarms=found["false_alarms"][0] if photos else None,
        photos=len(photos),
        passed_over=passed_over,
        noticed=found["noticed"][0] if lacking else None,
        lacking=len(lacking),
        intervals={name: interval for name, (_, interval) in found.items()},
        by_kind=_groups(names, told, above),
        by_background=_groups(names, [f"{one.background}, {s}" for one, s in zip(judged, state, strict=True)], above),
        by_size=_groups(names, [_size(one.share) for one in judged], above),
        by_mask=_groups(names, [f"{one.make}, {s}" for one, s in zip(judged, state, strict=True)], above),
        uncertainty={
            word: float(doubt[where].mean()) for word, where in (("right", ~wrong), ("wrong", wrong)) if where.any()
        },
        seconds=seconds,
    )


def _size(share: float) -> str:
    """Which of SIZES a share falls in, as words."""
    for low, high in SIZES:
        if 0 < share < high:
            return f"{low:.0%} to {high:.0%}"
    return "whole" if share == 0 else f"above {SIZES[-1][1]:.0%}"


def _groups(products: Sequence[str], labels: Sequence[str], above: np.ndarray) -> dict[str, Group]:
    """The rate above tau of each label, in alphabetical order."""
    found = {}
    for label in sorted(set(labels)):
        rows = [n for n, own in enumerate(labels) if own == label]
        mine, hit = [products[n] for n in rows], above[rows]
        rate, interval = clustered(mine, lambda chosen, hit=hit: float(hit[chosen].mean()))  # type: ignore[misc]
        found[label] = Group(rate, interval, len(rows), len(set(mine)))
    return found


def measure_detector(shared: Path, profile: Profile, tau: float, limit: int | None = None) -> DetectorMeasure:
    """Measure the detector on products and photos that tau was not set on.

    Args:
        shared: the folder of the shared data, with `catalog`, `training` and `models`.
        profile: whose finders are measured.
        tau: E+ above which a picture counts as overcompleted.
        limit: how many composites, and as many photos at most; fewer than the real measure's are for a first look.

    Raises:
        UsageError: the shared data are not there.
    """
    started = time.monotonic()
    detector = OvercompletionDetector.from_profile(profile)
    judged = judge(detector, draw(shared, TEST, min(limit or COMPOSITES[TEST], COMPOSITES[TEST])))
    photos = untouched_photos(photo_files(shared), profile, min(limit or PHOTOS, PHOTOS))
    asked, passed_over = [], 0
    for photo in _bar(photos, "measuring photos", min(limit or PHOTOS, PHOTOS)):
        said = detector.measure(photo.image, photo.matte)
        saw = any(said.heat[point] > SURE for point in photo.lacking)
        asked.append(Asked(photo.product, said.e_plus, bool(photo.lacking), saw))
        passed_over = photo.passed_over
    return figures(judged, asked, tau, time.monotonic() - started, passed_over)


def _bar(items: Iterable[Any], words: str, total: int | None = None) -> Iterable[Any]:
    return track(items, words, total=total, console=Console(stderr=True))


def main(
    shared: Annotated[Path, typer.Argument(help="folder with catalog, training and models")],
    profile: str = "mini",
    count: Annotated[int, typer.Option(help="how many composites")] = COMPOSITES[CALIBRATION],
    crowded: Annotated[int, typer.Option(help="how many more with another product behind")] = CROWDED,
    training: Annotated[int, typer.Option(help="how many more of training products")] = COMPOSITES[TRAINING],
    photos: Annotated[int, typer.Option(help="how many photos of the training side")] = LESSON_PHOTOS,
    painted: Annotated[int, typer.Option(min=1, help="how many pairs to paint, and perfect pictures")] = LESSONS,
) -> None:
    """Fit the evidence to the calibration products and to what else there is to learn from, write it, and print the tau
    that errs least on the calibration products."""
    from pipelines.evaluation.detector.painted import lessons

    loaded = load_profile(profile)
    detector = OvercompletionDetector.from_profile(loaded)
    calibration = know(detector, draw(shared, CALIBRATION, count))
    more = know(detector, draw(shared, CALIBRATION, crowded, crowded=True))
    more += know(detector, draw(shared, TRAINING, training))
    others = know(detector, photographs(shared, loaded, photos))
    others += know_painted(detector, _bar(lessons(shared, loaded, painted), "painted pictures", 4 * painted))
    fit(calibration + more + others).write(
        f"python -m pipelines.evaluation.detector.calibrate: {count} and {crowded} crowded composites of the"
        f" calibration products, {training} composites of training products, {photos} photos, {painted} painted pairs"
        " and as many perfect pictures of the training side"
    )
    judged = cross_judged(calibration + others + more)
    report(judged[: len(calibration) + len(others)])


def report(everything: Sequence[Judged]) -> float:
    """Print how E+ lies on composites, the tau that errs least there and its alarms on photos; returns it."""
    judged = [one for one in everything if one.background not in (PHOTO, PAINTED)]
    photos = np.array([one.e_plus for one in everything if one.background == PHOTO and not one.grown])
    scores = {grown: np.array([one.e_plus for one in judged if one.grown == grown]) for grown in (False, True)}
    tau = tune(scores[False], scores[True])
    for grown, values in scores.items():
        quantiles = ", ".join(
            f"{share:.0%} {np.quantile(values, share):.4f}" for share in (0.02, 0.05, 0.5, 0.95, 0.98)
        )
        print(f"{'part left out' if grown else 'whole'}: n {len(values)}, {quantiles}")
    found = figures(judged, [], tau, 0.0)
    print(f"tau {tau:.4f}, {found.products} products")
    for name, (low, high) in found.intervals.items():
        print(f"{name} {getattr(found, name):.4f} ({low:.4f} to {high:.4f})")
    print(f"photos above tau: {(photos > tau).sum()} of {len(photos)}")
    painted = [one for one in everything if one.background == PAINTED]
    for words, some in (
        (f"grown by more than {CLEARLY:.0%}", [one for one in painted if one.share > CLEARLY]),
        ("not grown", [one for one in painted if not one.grown]),
    ):
        print(f"painted pictures above tau, {words}: {sum(one.e_plus > tau for one in some)} of {len(some)}")
    return tau


if __name__ == "__main__":
    typer.run(main)
