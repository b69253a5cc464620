"""Measure the checks: faults that are planted, and clean pictures (`packshot measure checks`).

Faults are made of the training folder's cutouts (`evaluation/planted.py`). A check's threshold was set on products of
the other half: the half is the sha256 of the product's name.
"""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipelines.errors import Rejected, UsageError
from pipelines.evaluation import planted, planted_finals, planted_paper, planted_text
from pipelines.evaluation.faults import (
    Seen,
    before_scenes,
    disputed,
    finals,
    holding,
    likenesses,
    lost_parts,
    on_paper,
    texts,
)
from pipelines.models.profile import Profile
from pipelines.quality.checkerboard import LIMIT as CHECKERBOARD
from pipelines.quality.checkerboard import measure_checkerboard
from pipelines.quality.intervals import Interval, interval
from pipelines.quality.product_photo import LIMIT as GRAPHIC
from pipelines.quality.product_photo import measure_graphic
from pipelines.stages.cutout import CutoutModels, cutout, step_doubts
from pipelines.vision.photos import Photo, read_photo
from pipelines.vision.reader import installed_reader, load_reader

FAULTS, CLEAN = 60, 100
"""Planted faults a check, and clean photos a source, if no limit is given."""

TEXT_SOURCES = ("saleor", "solidus", "grocery-store")
"""Sources of products with text."""

CLEAN_SOURCES = ("clothing-dataset", "grocery-store", "magento2", "vendure")


@dataclass(frozen=True, slots=True)
class CheckMeasure:
    """One check's figures; intervals are 95 % bootstraps over products.

    Attributes:
        check: Its name.
        recall: Share of the planted faults that are held.
        false_holds: Share of the clean photos that are held.
        clean: What the clean pictures are: `photos` as shops took them, single products `on paper`, or `finals` on
            bundled backdrops.
    """

    check: str
    recall: float
    recall_interval: Interval
    faults: int
    false_holds: float
    false_holds_interval: Interval
    clean_photos: int
    clean: str
    by_kind: dict[str, float]


@dataclass(frozen=True, slots=True)
class ChecksMeasure:
    """All checks.

    Attributes:
        checks: Figures a check.
        held_photos: Share of the clean photos that any check of the photo alone holds.
        held_on_paper: Share of the whole single products on paper that any check holds.
    """

    checks: tuple[CheckMeasure, ...]
    held_photos: float
    held_on_paper: float


def measure_checks(training: Path, profile: Profile, limit: int | None = None, device: str = "cpu") -> ChecksMeasure:
    """Measure each check.

    Args:
        training: The training folder with `index.csv`, `cutouts` and `photos`.
        profile: Whose models cut the products out.
        limit: Number of planted faults a check, and of clean photos in all; None: 60 and 100.
        device: torch device.

    Raises:
        UsageError: the folder has no index, or not enough pictures of the measured half.
    """
    cutouts, photos = _measured_half(training)
    faults, clean = limit or FAULTS, limit or CLEAN
    if len(cutouts) < 6 or not photos:
        raise UsageError(f"{training}: not enough cutouts and photos to measure on")
    rng = np.random.default_rng(2)
    cutouts = [cutouts[n] for n in rng.permutation(len(cutouts))]
    photos = [photos[n] for n in rng.permutation(len(photos))[:clean]]
    models = CutoutModels.from_profile(profile, device)
    assert models.detector is not None

    def picked(n: int) -> tuple[str, np.ndarray]:
        name, path = cutouts[n % len(cutouts)]
        return name, planted.read_cutout(path)

    kinds = tuple(planted.GRAPHICS)
    graphics = [
        Seen(f"drawn {n}", kinds[n % len(kinds)], _graphic(planted.graphic(kinds[n % len(kinds)], rng)))
        for n in range(faults)
    ]
    boards, borders, groups, opened, glass, whole = [], [], [], [], [], []
    for n in range(faults):
        name, product = picked(n)
        boards.append(Seen(name, "checkerboard", _board(planted.on_checkerboard(product, rng))))
        held = _held(planted.over_the_border(product, rng), models, name)
        borders.append(Seen(name, "border", "border" in held))
        others = [picked(n + 7 * k)[1] for k in range(1, int(rng.integers(2, 7)))]
        held = _held(planted.several([product, *others], rng), models, name)
        groups.append(Seen(name, f"{len(others) + 1} things", "single_product" in held))
        picture, opening = planted.ring(rng)
        opened.append(Seen(f"drawn {n}", "ring", _open_or_held(picture, opening, models)))
        rgb, alpha = planted.see_through(product, rng)
        held = _held(rgb, models, name, alpha)
        glass.append(Seen(name, "see-through", "see_through" in held))
    wrong = before_scenes(picked, [path for _, path in photos], models, faults, rng)
    unsure = disputed(picked, [path for _, path in photos], models, faults, rng)
    by_colour = on_paper(picked, planted_paper.PAPERS, models, faults, rng)
    gaps = on_paper(picked, planted_paper.GAPS, models, faults, rng)
    ends, wholes = lost_parts(picked, models.detector, faults, clean, rng)
    twins, strangers = likenesses(picked, models, faults, clean, rng)
    held_whole = []
    for n in range(clean):
        name, product = picked(n)
        held_whole.append((name, _held(planted.alone(product, rng), models, name)))
    for check in ("border", "single_product", "openings", "see_through", "certain", "cutout"):
        whole.append([Seen(name, "on paper", check in held) for name, held in held_whole])
    whole.append([Seen(name, "on paper", bool(held)) for name, held in held_whole])
    by_any = whole[-1]
    pictures = [(name, read_photo(path.read_bytes()).rgb) for name, path in photos]
    shown = {check: [Seen(name, "photos", held(rgb)) for name, rgb in pictures] for check, held in ON_PHOTOS.items()}
    held_by_any = [any(one.held for one in seen) for seen in zip(*shown.values(), strict=True)]
    return ChecksMeasure(
        (
            _figures("product_photo", graphics, shown["product_photo"], "photos"),
            _figures("checkerboard", boards, shown["checkerboard"], "photos"),
            _figures("border", borders, whole[0], "on paper"),
            _figures("single_product", groups, whole[1], "on paper"),
            _figures("openings", opened, whole[2], "on paper"),
            _figures("see_through", glass, whole[3], "on paper"),
            _figures("certain", wrong.certain, whole[4], "on paper"),
            _figures("certain, by colour", by_colour.certain, whole[4], "on paper"),
            _figures("cutout", unsure, whole[5], "on paper"),
            _figures("all, before scenes", wrong.any_check, by_any, "on paper"),
            _figures("all, by colour", by_colour.any_check, by_any, "on paper"),
            _figures("all, small gaps", gaps.any_check, by_any, "on paper"),
            _figures("whole", ends, wholes, "on paper"),
            _figures("likeness", twins, strangers, "on paper"),
            *(_figures(name, *finals(name, picked, faults, clean, rng), "finals") for name in planted_finals.FAULTS),
            *(measure_texts(training, faults, clean) if installed_reader() else ()),
        ),
        float(np.mean(held_by_any)),
        float(np.mean([bool(held) for _, held in held_whole])),
    )


def measure_texts(training: Path, faults: int = FAULTS, clean: int = CLEAN) -> tuple[CheckMeasure, ...]:
    """Measure the checks of text, which need the extra `ocr`. Raises UsageError as `measure_checks` does."""
    reader, rng = load_reader(), np.random.default_rng(3)
    cutouts, photos = _measured_half(training, TEXT_SOURCES)
    photos = [photos[n] for n in rng.permutation(len(photos))]
    products = list(planted_text.read_products(cutouts, photos, reader, max(faults, clean)))
    if not products:
        raise UsageError(f"{training}: no product with text to measure on")
    return tuple(
        _figures(check, *texts(check, products, reader, faults, clean, rng), "finals") for check in planted_text.FAULTS
    )


def in_measured_half(name: str) -> bool:
    """Return whether a product belongs to the half on which no threshold was set."""
    return hashlib.sha256(name.encode()).digest()[0] % 2 == 1


def _measured_half(
    training: Path, sources: Sequence[str] = ()
) -> tuple[list[tuple[str, Path]], list[tuple[str, Path]]]:
    """Return name and file of the cutouts and of the photos of the measured half, of all sources or of these alone."""
    try:
        with (training / "index.csv").open(encoding="utf-8", newline="") as file:
            rows = [row for row in csv.DictReader(file) if in_measured_half(row["name"])]
    except (OSError, KeyError) as error:
        raise UsageError(f"{training}: no index.csv with the columns file, name and source ({error})") from error
    rows = [row for row in rows if not sources or row["source"] in sources]
    cutouts = [(row["name"], training / row["file"]) for row in rows if row["file"].startswith("cutouts/")]
    photos = [
        (row["name"], training / row["file"])
        for row in rows
        if row["file"].startswith("photos/") and row["source"] in CLEAN_SOURCES
    ]
    return cutouts, photos


def _graphic(rgb: np.ndarray) -> bool:
    return measure_graphic(rgb).score > GRAPHIC


def _board(rgb: np.ndarray) -> bool:
    return measure_checkerboard(rgb).score > CHECKERBOARD


ON_PHOTOS = {"product_photo": _graphic, "checkerboard": _board}
"""Checks that need the photo alone."""


def _held(rgb: np.ndarray, models: CutoutModels, title: str, alpha: np.ndarray | None = None) -> set[str]:
    """Return the checks that hold a photo; a rejected photo is held by all, as it is not published."""
    photo = Photo(rgb, alpha)
    try:
        result = cutout(photo, models, title=title)
    except Rejected:
        return {"border", "single_product", "openings", "see_through", "certain"}
    return holding(photo, result, title)


def _open_or_held(rgb: np.ndarray, opening: np.ndarray, models: CutoutModels) -> bool:
    """Return whether a ring's opening is open, to 3 % of its area, or held."""
    try:
        result = cutout(Photo(rgb, None), models)
    except Rejected:
        return True
    held = any(not verdict.passed for verdict, _ in step_doubts(result))
    return held or float((result.matte > 0.5)[opening].mean()) <= 0.03


def _figures(check: str, faults: Sequence[Seen], clean: Sequence[Seen], what: str) -> CheckMeasure:
    kinds = sorted({one.kind for one in faults})
    by_kind = {kind: _share([one for one in faults if one.kind == kind]) for kind in kinds}
    intervals = [interval([one.product for one in seen], [one.held for one in seen]) for seen in (faults, clean)]
    return CheckMeasure(
        check, _share(faults), intervals[0], len(faults), _share(clean), intervals[1], len(clean), what, by_kind
    )


def _share(seen: Sequence[Seen]) -> float:
    return float(np.mean([one.held for one in seen]))
