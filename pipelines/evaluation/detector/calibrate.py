"""Fit the detector's evidence, and find the tau that is wrong least often.

    python -m pipelines.evaluation.detector.calibrate ../shared

The command writes `evidence.safetensors` and prints tau. Tau itself is a reviewed constant: the default of
`pipelines.scenes.Checks.overcompletion`, documented in `thresholds.yaml`. Each calibration product is judged by weights
that were fitted to other products. No product that set a weight or tau is ever measured.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import cv2
import numpy as np
import typer

from pipelines.evaluation.detector.composites import PHOTO, Composite, compose_photo
from pipelines.evaluation.detector.measure import (
    COMPOSITES,
    TRAINING,
    MaskResult,
    composites_of,
    summarise,
    with_progress,
)
from pipelines.evaluation.detector.painted import PaintedPicture, painted_pictures
from pipelines.evaluation.detector.photos import cut_out_photos, training_photos
from pipelines.evaluation.products import CALIBRATION
from pipelines.models.profile import Profile, load_profile
from pipelines.quality.evidence import Evidence, Piece, pieces
from pipelines.quality.overcompletion import SURE, OvercompletionDetector

CROWDED = 60
"""Composites of calibration products with another product behind."""

TRAINING_PHOTOS = 335
PAINTED_PAIRS = 96
"""Pairs of product and scene that the profile paints, and as many decoded composites; each gives two pictures."""

PAINTED = "painted"
"""The background of painted pictures, which are no composites: see `pipelines.evaluation.detector.painted`."""

MIN_BEYOND = 0.3
"""A piece in a painted picture is growth only if this share of it lies beyond the autoencoder's rim."""

CLEARLY = 0.02
"""A painted picture is clearly grown if the growth is more than this share of the product."""

FOLDS = 6
PHOTO_SEED = 3


@dataclass(frozen=True, slots=True)
class LabelledMask:
    """A mask whose truth is known: the `pieces` that the finders see beyond it, and whether each is `product`.

    `product` is None for a piece whose truth is unknown. `placed` (H, W) bool is the mask as the detector sees it.
    """

    result: MaskResult
    placed: np.ndarray
    pieces: tuple[Piece, ...]
    product: tuple[bool | None, ...]


def label_pieces(detector: OvercompletionDetector, composites: Iterable[Composite]) -> list[LabelledMask]:
    """Find the pieces beyond each mask of composites, and label each as product or not.

    A piece is product if more than half of it is the part that was left out. It also is if it is the smallest piece
    that holds a point of `Composite.lacking`; the other pieces of such a picture stay unknown.
    """
    labelled = []
    for one in composites:
        views = list(detector.judge_inputs(one.image, [mask.matte for mask in one.masks]))
        whole = views[0].placed
        down, across = (its / own for its, own in zip(whole.shape, one.image.shape, strict=False))
        lacking = [(int(row * down), int(column * across)) for row, column in one.lacking]
        for mask, view in zip(one.masks, views, strict=True):
            found = tuple(pieces(view.image, view.placed, view.seen))
            truth = _are_product(found, whole & ~view.placed & (mask.share > 0), lacking)
            result = MaskResult(one.product, one.background, mask.part, mask.make, mask.share)
            labelled.append(LabelledMask(result, view.placed, found, truth))
    return labelled


def _are_product(
    found: Sequence[Piece], left_out: np.ndarray, lacking: Sequence[tuple[int, int]]
) -> tuple[bool | None, ...]:
    """Label pieces by the part that was left out, (H, W) bool, and by points; see `label_pieces`."""
    pointed = set()
    for point in lacking:
        holding = [n for n, piece in enumerate(found) if piece.mask[point]]
        pointed.update(sorted(holding, key=lambda n: found[n].share)[:1])
    otherwise = None if lacking else False
    return tuple(
        n in pointed or bool((piece.mask & left_out).sum() > 0.5 * piece.mask.sum()) or otherwise
        for n, piece in enumerate(found)
    )


def label_painted(detector: OvercompletionDetector, painted: Iterable[PaintedPicture]) -> list[LabelledMask]:
    """Find the pieces beyond the product in painted pictures, and label each as growth or not; see `_is_growth`."""
    labelled = []
    for picture in painted:
        (view,) = detector.judge_inputs(picture.image, [picture.matte])
        size = view.placed.shape[::-1]
        grown, unlike, beyond = (
            cv2.resize(where.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST) > 0
            for where in (picture.grown, picture.unlike, picture.beyond)
        )
        found = tuple(pieces(view.image, view.placed, view.seen))
        truth = tuple(_is_growth(piece.mask, beyond, unlike, grown) for piece in found)
        share = float(grown.sum() / view.placed.sum())
        result = MaskResult(picture.product, PAINTED, "growth" if share else "", "the profile", share)
        labelled.append(LabelledMask(result, view.placed, found, truth))
    return labelled


def _is_growth(piece: np.ndarray, beyond: np.ndarray, unlike: np.ndarray, grown: np.ndarray) -> bool | None:
    """Whether more than half of a piece's area beyond the rim is growth; None if that half only differs."""
    outer = piece & beyond
    if outer.sum() <= MIN_BEYOND * piece.sum():
        return False
    if (outer & grown).sum() > 0.5 * outer.sum():
        return True
    return None if (outer & unlike).sum() > 0.5 * outer.sum() else False


def photo_composites(shared: Path, profile: Profile, count: int) -> Iterator[Composite]:
    """Cut out photos of the training side, and leave parts out of their masks, with a progress bar."""
    photos = cut_out_photos(training_photos(shared), profile, count)
    for number, photo in enumerate(with_progress(photos, "photos to learn from", count)):
        rng = np.random.default_rng([PHOTO_SEED, number])
        yield compose_photo(photo.product, photo.image, photo.matte, photo.lacking, rng)


def fit_evidence(labelled: Sequence[LabelledMask]) -> Evidence:
    """Fit the evidence's weights to the pieces whose truth is known."""
    rows = [
        (piece.features, is_product)
        for one in labelled
        for piece, is_product in zip(one.pieces, one.product, strict=True)
        if is_product is not None
    ]
    features, product = zip(*rows, strict=True)
    return Evidence.fit(features, np.array(product))


def cross_validate(labelled: Sequence[LabelledMask], folds: int = FOLDS) -> list[MaskResult]:
    """Measure each mask with weights that were fitted to other products."""
    fold = {name: n % folds for n, name in enumerate(sorted({one.result.product for one in labelled}))}
    fitted = [fit_evidence([one for one in labelled if fold[one.result.product] != n]) for n in range(folds)]
    results = []
    for one in labelled:
        sure = fitted[fold[one.result.product]].sure(one.pieces)
        grown = np.any([piece.mask for piece, p in zip(one.pieces, sure, strict=True) if p > SURE], axis=0)
        e_plus = float(np.sum(grown) / one.placed.sum())
        results.append(replace(one.result, e_plus=e_plus, confidence=float(max(sure, default=0.0))))
    return results


def best_tau(whole: np.ndarray, grown: np.ndarray) -> float:
    """Find the tau, 0..1, with the fewest wrong verdicts: of equal ones the middle of the widest gap of scores.

    Args:
        whole: E+ of whole masks, (N,).
        grown: E+ of masks that lack a part, (M,).
    """
    scores = np.unique(np.concatenate([[0.0, 1.0], whole, grown]))
    middles, widths = (scores[1:] + scores[:-1]) / 2, np.diff(scores)
    wrong = np.searchsorted(np.sort(grown), middles, "right") + len(whole)
    wrong = wrong - np.searchsorted(np.sort(whole), middles, "right")
    return float(middles[np.lexsort((-widths, wrong))[0]])


def main(
    shared: Annotated[Path, typer.Argument(help="folder with catalog, training and models")],
    profile: str = "mini",
    count: Annotated[int, typer.Option(help="how many composites")] = COMPOSITES[CALIBRATION],
    crowded: Annotated[int, typer.Option(help="how many more with another product behind")] = CROWDED,
    training: Annotated[int, typer.Option(help="how many more of training products")] = COMPOSITES[TRAINING],
    photos: Annotated[int, typer.Option(help="how many photos of the training side")] = TRAINING_PHOTOS,
    painted: Annotated[int, typer.Option(min=1, help="how many pairs to paint")] = PAINTED_PAIRS,
) -> None:
    """Fit the evidence to calibration products and to training pictures, write it, and print the best tau.

    Tau is the one that is wrong least often on composites of calibration products.
    """
    loaded = load_profile(profile)
    detector = OvercompletionDetector.from_profile(loaded)
    calibration = label_pieces(detector, composites_of(shared, CALIBRATION, count))
    more = label_pieces(detector, composites_of(shared, CALIBRATION, crowded, crowded=True))
    more += label_pieces(detector, composites_of(shared, TRAINING, training))
    others = label_pieces(detector, photo_composites(shared, loaded, photos))
    pictures = with_progress(painted_pictures(shared, loaded, painted), "painted pictures", 4 * painted)
    others += label_painted(detector, pictures)
    fit_evidence(calibration + more + others).write(
        f"python -m pipelines.evaluation.detector.calibrate: {count} and {crowded} crowded composites of the"
        f" calibration products, {training} composites of training products, {photos} photos, {painted} painted pairs"
        " and as many perfect pictures of the training side"
    )
    results = cross_validate(calibration + others + more)
    print_report(results[: len(calibration) + len(others)])


def print_report(results: Sequence[MaskResult]) -> float:
    """Print how E+ is distributed on composites, the best tau there, and its alarms on photos; returns tau."""
    masks = [one for one in results if one.background not in (PHOTO, PAINTED)]
    photos = np.array([one.e_plus for one in results if one.background == PHOTO and not one.grown])
    scores = {grown: np.array([one.e_plus for one in masks if one.grown == grown]) for grown in (False, True)}
    tau = best_tau(scores[False], scores[True])
    for grown, values in scores.items():
        quantiles = ", ".join(
            f"{share:.0%} {np.quantile(values, share):.4f}" for share in (0.02, 0.05, 0.5, 0.95, 0.98)
        )
        print(f"{'part left out' if grown else 'whole'}: n {len(values)}, {quantiles}")
    found = summarise(masks, [], tau, 0.0)
    print(f"tau {tau:.4f}, {found.products} products")
    for name, (low, high) in found.intervals.items():
        print(f"{name} {getattr(found, name):.4f} ({low:.4f} to {high:.4f})")
    print(f"photos above tau: {(photos > tau).sum()} of {len(photos)}")
    painted = [one for one in results if one.background == PAINTED]
    for words, some in (
        (f"grown by more than {CLEARLY:.0%}", [one for one in painted if one.share > CLEARLY]),
        ("not grown", [one for one in painted if not one.grown]),
    ):
        print(f"painted pictures above tau, {words}: {sum(one.e_plus > tau for one in some)} of {len(some)}")
    return tau


if __name__ == "__main__":
    typer.run(main)
