"""Real photos with the mask that the cutout stage gives them; nothing in them was generated.

What the detector finds in them is a false alarm, unless it is a part that the cutout lacks. `missing.csv` has a point
on each such part that a person saw. No bundled model was trained on the photos that the detector is measured with, and
their products did not set tau. The photos that it is fitted to are of the training side. They matter most for garments:
they show what the person who wears one looks like.
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
from pipelines.evaluation.products import TEST, side_of
from pipelines.models.profile import Profile
from pipelines.stages.cutout import CutoutModels, cutout
from pipelines.training.data import clean_name, product_of, read_index
from pipelines.vision.garments import garment_part
from pipelines.vision.photos import read_photo

LONGEST = 512
MISSING = Path(__file__).with_name("missing.csv")


@dataclass(frozen=True, slots=True)
class CutoutPhoto:
    """A photo (H, W, 3) uint8, at most LONGEST px, and its cutout's matte (H, W) uint8, 255 = product.

    `lacking` are points (row, column) on known parts of the product that the matte lacks. `passed_over` counts the
    earlier photos whose cutout was rejected or held.
    """

    product: str
    image: np.ndarray
    matte: np.ndarray
    lacking: tuple[tuple[int, int], ...]
    passed_over: int = 0


@dataclass(frozen=True, slots=True)
class PhotoFile:
    """A photo to cut out. `garment`: the half of a person that it covers; "" for a product that is not worn."""

    product: str
    path: Path
    garment: str


def measured_photos(shared: Path) -> list[PhotoFile]:
    """List the photos to measure with: the catalogue's, then the held-out training photos of single products."""
    with (shared / "catalog" / "catalog.csv").open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if side_of(row["id"]) == TEST or not row["ground_truth_alpha"]]
    catalogue = [
        PhotoFile(
            row["id"],
            shared / "catalog" / row["image_link"],
            garment_part(f"{row['product_type']} {html.unescape(row['title'])}"),
        )
        for row in rows
    ]
    return catalogue + _single_products(shared, "test")


def training_photos(shared: Path) -> list[PhotoFile]:
    """List the photos to fit to: those of the training side whose product is not in the catalogue, sources in turn."""
    with (shared / "catalog" / "catalog.csv").open(newline="", encoding="utf-8") as file:
        measured = {clean_name(html.unescape(row["title"])) for row in csv.DictReader(file)}
    sources: dict[str, list[PhotoFile]] = {}
    for photo in _single_products(shared, "train"):
        if photo.product not in measured:
            sources.setdefault(photo.path.name.split("-")[0], []).append(photo)
    return [photo for photo in chain.from_iterable(zip_longest(*sources.values())) if photo is not None]


def _single_products(shared: Path, split: str) -> list[PhotoFile]:
    """The training folder's photos of one split, without shelves of a grocery store, kinds mixed."""
    items = [item for item in read_index(shared / "training", "photos", split) if item.source != "grocery-store"]
    items.sort(key=lambda item: item.path.name[::-1])
    return [PhotoFile(product_of(item), item.path, garment_part(item.name)) for item in items]


def cut_out_photos(files: Sequence[PhotoFile], profile: Profile, count: int) -> Iterator[CutoutPhoto]:
    """Cut out up to `count` photos without the detector's correction of the mask.

    Photos whose cutout is rejected or held for review are skipped: a shop would not paint them.
    """
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
        yield CutoutPhoto(file.product, image, matte, lacking, passed_over)


def _known_missing() -> dict[str, list[tuple[float, float]]]:
    """Points on parts that a person saw missing from cutouts, as shares of width and height, by the photo's name."""
    known: dict[str, list[tuple[float, float]]] = {}
    with MISSING.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            known.setdefault(row["photo"], []).append((float(row["x"]), float(row["y"])))
    return known
