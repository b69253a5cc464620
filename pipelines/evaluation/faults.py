"""What the checks say of faults: wrong cutouts, cutouts that lack a part, second photos, and finished images.

`evaluation/planted*.py` make the pictures; here they go through the stage's own code.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from pipelines.contracts import Product
from pipelines.errors import Rejected
from pipelines.evaluation import planted, planted_finals, planted_paper, planted_text
from pipelines.quality.contact import measure_contact
from pipelines.quality.fidelity import background_quality, halo, product_fidelity
from pipelines.quality.lettering import measure_lettering, measure_text
from pipelines.quality.likeness import find_twins, likeness_code
from pipelines.quality.overcompletion import OvercompletionDetector
from pipelines.scenes import Checks
from pipelines.stages.cutout import MAX_CLUTTER, CutoutModels, CutoutResult, cutout, photo_checks, step_doubts
from pipelines.stages.keys import WHOLE
from pipelines.vision.photos import Photo, read_photo
from pipelines.vision.reader import TextLine, TextReader
from pipelines.vision.studio import clutter, cut_studio, find_studio

COMPOSITES = 4
"""Pictures that are cut out at most for each wrong cutout that is wanted; before scenes about a quarter are wrong."""

WRONG_IOU, WRONG_PART = 0.95, 0.03
"""A cutout is wrong if its IoU with the exact alpha is less, or if it lacks this share of the product."""

WRONG_WIDTH = 0.016
"""On paper, a wrong piece of this width, as a share of the longer side, makes a cutout wrong too."""

Picked = Callable[[int], tuple[str, np.ndarray]]
"""Maps a number to a product's name and its cutout `(h, w, 4)` uint8 RGBA."""


@dataclass(frozen=True, slots=True)
class Seen:
    """One picture and whether a check holds it."""

    product: str
    kind: str
    held: bool


@dataclass(frozen=True, slots=True)
class WrongCutouts:
    """Wrong cutouts and what holds them: `certain` alone, and any check of photo and cutout."""

    certain: list[Seen]
    any_check: list[Seen]

    def add(self, product: str, kind: str, held: set[str], mended: bool = False) -> None:
        """Add a cutout with the checks that hold it; one that the stage mended counts as held."""
        self.certain.append(Seen(product, kind, mended or "certain" in held))
        self.any_check.append(Seen(product, kind, mended or bool(held)))


def before_scenes(
    picked: Picked, photos: Sequence[Path], models: CutoutModels, faults: int, rng: np.random.Generator
) -> WrongCutouts:
    """What the checks say of wrong cutouts of whole products before photos of shops, kitchens and people."""
    found = WrongCutouts([], [])
    for n in range(COMPOSITES * faults):
        name, product = picked(n)
        ground = read_photo(photos[int(rng.integers(len(photos)))].read_bytes()).rgb
        picture, truth = planted.before_scene(product, ground, rng)
        photo = Photo(picture, None)
        try:
            result = cutout(photo, models, title=name)
        except Rejected:
            continue
        if wrong := _fault(result.matte > 0.5, truth):
            found.add(name, wrong, holding(photo, result, name))
        if len(found.certain) == faults:
            break
    return found


def disputed(
    picked: Picked, photos: Sequence[Path], models: CutoutModels, faults: int, rng: np.random.Generator
) -> list[Seen]:
    """What `cutout` says where it is disputed what the product is: wrong cutouts of one of several things that touch,
    and products that a hand covers."""
    found: list[Seen] = []
    for n in range(COMPOSITES * faults):
        name, product = picked(n)
        ground = read_photo(photos[int(rng.integers(len(photos)))].read_bytes()).rgb
        hand = n % 2 == 0
        if hand:
            picture = planted.in_a_hand(product, ground, rng)
        else:
            others = [picked(n + 7 * k)[1] for k in range(1, int(rng.integers(3, 6)))]
            picture, truth = planted.among_others([product, *others], ground, rng)
        photo = Photo(picture, None)
        try:
            result = cutout(photo, models, title=name)
        except Rejected:
            continue
        if hand or _fault(result.matte > 0.5, truth):
            found.append(Seen(name, "a hand" if hand else "a heap", "cutout" in holding(photo, result, name)))
        if len(found) == faults:
            break
    return found


def on_paper(
    picked: Picked, kinds: planted_paper.Kinds, models: CutoutModels, faults: int, rng: np.random.Generator
) -> WrongCutouts:
    """What becomes of pictures whose colours alone give a wrong cutout, or one with a foreign or lost piece that is
    wide enough to be seen.

    Args:
        picked: The products.
        kinds: Of pictures, `planted_paper.PAPERS` or `planted_paper.GAPS`.
        models: The segmenters.
        faults: Number of wrong cutouts by colour.
        rng: Draws what varies.
    """
    makers, found = list(kinds.items()), WrongCutouts([], [])
    for n in range(COMPOSITES * faults):
        name, product = picked(n)
        kind, make = makers[n % len(makers)]
        picture, truth = make(product, rng)
        photo, studio = Photo(picture, None), find_studio(picture)
        if studio is None:
            continue
        by_colour = cut_studio(picture, studio, models.salient.segment(picture))
        if not _seen_fault(by_colour, truth) or clutter(picture, studio, by_colour) > MAX_CLUTTER:
            continue
        try:
            result = cutout(photo, models, title=name)
        except Rejected:
            continue
        found.add(name, kind, holding(photo, result, name), mended=not _seen_fault(result.matte > 0.5, truth))
        if len(found.certain) == faults:
            break
    return found


def _fault(mask: np.ndarray, truth: np.ndarray) -> str:
    """Return what is wrong with a cutout, or ""; both `(H, W)` bool."""
    lost, agreed = (truth & ~mask).sum() / truth.sum(), (truth & mask).sum() / (truth | mask).sum()
    if lost > WRONG_PART:
        return "part lost"
    return "surroundings" if agreed < WRONG_IOU else ""


def _seen_fault(mask: np.ndarray, truth: np.ndarray) -> str:
    """Return what is wrong with a cutout, a small piece among it, or ""; both `(H, W)` bool."""
    wrong = np.pad(mask ^ truth, 1).astype(np.uint8)
    width = 2 * float(cv2.distanceTransform(wrong, cv2.DIST_L2, 5).max())
    return _fault(mask, truth) or ("piece" if width > WRONG_WIDTH * max(mask.shape) else "")


def holding(photo: Photo, result: CutoutResult, title: str) -> set[str]:
    """Return the checks of photo and cutout that hold a result; `cutout` is the segmenters' own doubt."""
    verdicts = [*step_doubts(result), *photo_checks(photo, result, title)]
    held = {verdict.check for verdict, _ in verdicts if not verdict.passed}
    return held | ({"cutout"} if result.held else set()) | ({"whole"} if result.beyond > WHOLE else set())


def lost_parts(
    picked: Picked, detector: OvercompletionDetector, faults: int, clean: int, rng: np.random.Generator
) -> tuple[list[Seen], list[Seen]]:
    """What `whole` says of masks that lack an end of the product, and of whole ones; both on paper."""

    def seen(n: int, fault: bool) -> Seen:
        name, product = picked(n)
        picture, truth = planted_paper.plain(product, rng)
        mask = planted_paper.without_an_end(truth, rng) if fault else truth
        e_plus = detector.measure(picture, mask.astype(np.uint8) * 255).e_plus
        return Seen(name, "an end lost" if fault else "on paper", e_plus > WHOLE)

    return [seen(n, True) for n in range(faults)], [seen(n, False) for n in range(clean)]


def finals(
    check: str, picked: Picked, faults: int, clean: int, rng: np.random.Generator
) -> tuple[list[Seen], list[Seen]]:
    """What a check of images says of planted finals, and of those without a fault.

    Args:
        check: One of `planted_finals.FAULTS`.
        picked: The products.
        faults: Number of images with a fault.
        clean: Number of those without.
        rng: Draws what varies.
    """

    def seen(n: int, fault: str) -> Seen:
        name, product = picked(n)
        return Seen(name, fault or "finals", _holds(check, planted_finals.stood(product, rng, fault)))

    kinds = planted_finals.FAULTS[check]
    return [seen(n, kinds[n % len(kinds)]) for n in range(faults)], [seen(n, "") for n in range(clean)]


def _holds(check: str, final: planted_finals.Stood) -> bool:
    limits = Checks()
    if check == "contact":
        found = measure_contact(final.image, final.backdrop, final.product.matte)
        return found is not None and found.score < limits.contact
    if check == "fidelity":
        return product_fidelity(final.image, final.product).score < limits.fidelity
    if check == "halo":
        return halo(final.image, final.product.matte).score > limits.halo
    return background_quality(final.image, final.product.matte).score < limits.background


def texts(
    check: str,
    products: Sequence[planted_text.Labelled],
    reader: TextReader,
    faults: int,
    clean: int,
    rng: np.random.Generator,
) -> tuple[list[Seen], list[Seen]]:
    """What a check of text says of images with planted faults, and of those without; `check`: one of
    `planted_text.FAULTS`. A product whose text is too small on the backdrop that is drawn is left out."""

    def seen(wanted: int, kinds: Sequence[str]) -> list[Seen]:
        found: list[Seen] = []
        for n in range(4 * wanted):
            product, fault = products[n % len(products)], kinds[len(found) % len(kinds)]
            if made := planted_text.stood_with_text(product, rng, fault):
                found.append(Seen(product.name, fault or "finals", _other_text(check, *made, product, reader)))
            if len(found) == wanted:
                break
        return found

    return seen(faults, planted_text.FAULTS[check]), seen(clean, ("",))


def _other_text(
    check: str,
    final: planted_finals.Stood,
    compared: Sequence[TextLine],
    product: planted_text.Labelled,
    reader: TextReader,
) -> bool:
    if check == "text":
        return measure_text(final.image, compared, reader).score > Checks().text
    known = [line.text for line in product.lines]
    return measure_lettering(final.image, final.product.matte, known, reader).score > 0


def likenesses(
    picked: Picked,
    models: CutoutModels,
    faults: int,
    clean: int,
    rng: np.random.Generator,
) -> tuple[list[Seen], list[Seen]]:
    """Second photos of a product that are found among the first ones, and products that are taken for others."""

    def photographed(n: int) -> tuple[Product, str]:
        name, product = picked(n)
        try:
            result = cutout(Photo(planted.alone(product, rng), None), models, title=name)
        except Rejected:
            return Product(f"{n}", n, name, "", None), ""
        rgba = np.dstack([result.colours, np.rint(result.matte * 255).astype(np.uint8)])
        return Product(f"{n}", n, name, "", None), likeness_code(rgba)

    first = [photographed(n) for n in range(max(clean, faults))]
    taken = {sku for pair in find_twins(first[:clean]) for sku in pair}
    strangers = [Seen(product.title, "on paper", product.sku in taken) for product, _ in first[:clean]]
    twins = []
    for n in range(faults):
        product, code = photographed(n)
        again = Product(f"{n} again", n, "another title", "", None)
        twins.append(Seen(product.title, "second photo", bool(find_twins([first[n], (again, code)]))))
    return twins, strangers
