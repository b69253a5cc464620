"""Real photos as they are, with the mask that the cutout stage gives them: nothing in them was generated.

What the detector finds in them is a false alarm, unless it is a part that the cutout lacks: `missing.csv` has a point
on each such part that a person saw. The photos that the detector is measured with are such that no bundled segmenter
or detector was trained on, of other products than those that tau was set on. Those it learns from, what a person who
wears a garment looks like beyond it above all, are of the training side.
"""

from __future__ import annotations

import csv
import html
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain, zip_longest
from pathlib import Path

import cv2
import numpy as np

from pipelines.errors import Rejected
from pipelines.evaluation.detector.composites import SIDES, side_of
from pipelines.models.profile import Profile
from pipelines.stages.cutout import CutoutModels, cutout
from pipelines.training.data import clean_name, product_of, read_index
from pipelines.vision.people import garment_part
from pipelines.vision.photos import read_photo

LONGEST = 512
MISSING = Path(__file__).with_name("missing.csv")


@dataclass(frozen=True, slots=True)
class Untouched:
    """A photo (H, W, 3) uint8, at most LONGEST px, and its cutout's matte (H, W) uint8, 255 = product.

    `lacking` are points (row, column) on parts of the product that the matte does not hold, as far as they are known.
    `passed_over` counts the photos before this one that have no mask to place.
    """

    product: str
    image: np.ndarray
    matte: np.ndarray
    lacking: tuple[tuple[int, int], ...]
    passed_over: int = 0


@dataclass(frozen=True, slots=True)
class PhotoFile:
    """A photo to cut out. `garment`: which half of a person it covers, "" for what is not worn."""

    product: str
    path: Path
    garment: str


def photo_files(shared: Path) -> list[PhotoFile]:
    """The photos to measure with: the catalogue's, then the held-out training photos of single products. Shelves of a
    grocery store are no product photos."""
    with (shared / "catalog" / "catalog.csv").open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if side_of(row["id"]) != SIDES[0] or not row["ground_truth_alpha"]]
    catalogue = [
        PhotoFile(
            row["id"],
            shared / "catalog" / row["image_link"],
            garment_part(f"{row['product_type']} {html.unescape(row['title'])}"),
        )
        for row in rows
    ]
    return catalogue + _of_training(shared, "test")


def lesson_files(shared: Path) -> list[PhotoFile]:
    """The photos to learn from: those of the training side whose product the catalogue has not, each source in turn."""
    with (shared / "catalog" / "catalog.csv").open(newline="", encoding="utf-8") as file:
        measured = {clean_name(html.unescape(row["title"])) for row in csv.DictReader(file)}
    sources: dict[str, list[PhotoFile]] = {}
    for photo in _of_training(shared, "train"):
        if photo.product not in measured:
            sources.setdefault(photo.path.name.split("-")[0], []).append(photo)
    return [photo for photo in chain.from_iterable(zip_longest(*sources.values())) if photo is not None]


def _of_training(shared: Path, split: str) -> list[PhotoFile]:
    items = [item for item in read_index(shared / "training", "photos", split) if item.source != "grocery-store"]
    items.sort(key=lambda item: item.path.name[::-1])  # the kinds mixed
    return [PhotoFile(product_of(item), item.path, garment_part(item.name)) for item in items]


def untouched_photos(files: Sequence[PhotoFile], profile: Profile, count: int) -> Iterator[Untouched]:
    """Cut out up to `count` photos; those that the cutout stage rejects, or holds for a person to look at, are passed
    over: their masks are not placed. The masks are those that the detector is asked about, before it has a say."""
    models, known = replace(CutoutModels.from_profile(profile), detector=None), _known_missing()
    found = passed_over = 0
    for file in files:
        if found == count:
            return
        try:
            photo = read_photo(file.path.read_bytes())
            result = cutout(photo, models, "auto", file.garment)
            no_mask = bool(result.held)
        except Rejected:
            no_mask = True
        if no_mask:
            passed_over += 1
            continue
        found += 1
        scale = min(1.0, LONGEST / max(photo.size))
        size = (round(photo.size[0] * scale), round(photo.size[1] * scale))
        image, matte = (cv2.resize(each, size, interpolation=cv2.INTER_AREA) for each in (photo.rgb, result.matte))
        matte = np.rint(np.clip(matte, 0, 1) * 255).astype(np.uint8)
        points = [(int(y * size[1]), int(x * size[0])) for x, y in known.get(file.path.name, ())]
        lacking = tuple((row, column) for row, column in points if matte[row, column] < 128)
        yield Untouched(file.product, image, matte, lacking, passed_over)


def _known_missing() -> dict[str, list[tuple[float, float]]]:
    """Of each photo's file name: points, as shares of width and height, on what a cutout of it was seen to lack."""
    known: dict[str, list[tuple[float, float]]] = {}
    with MISSING.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            known.setdefault(row["photo"], []).append((float(row["x"]), float(row["y"])))
    return known
