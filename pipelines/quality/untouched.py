"""Real photos as they are, with the mask that the cutout stage gives them: nothing in them was generated.

Whatever the detector finds in them is a false alarm. They are photos that no bundled segmenter or detector was trained
on, of other products than those that tau was set on.
"""

from __future__ import annotations

import csv
import html
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from pipelines.errors import Rejected
from pipelines.models import Profile
from pipelines.quality.yardstick import SIDES, side_of
from pipelines.stages.cutout import CutoutModels, cutout
from pipelines.training.data import product_of, read_index
from pipelines.vision.people import garment_part
from pipelines.vision.photos import read_photo
from pipelines.vision.segmenters import HQSamSegmenter, SalientSegmenter

LONGEST = 512


@dataclass(frozen=True, slots=True)
class Untouched:
    """A photo (H, W, 3) uint8, at most LONGEST px, and its cutout's matte (H, W) uint8, 255 = product."""

    product: str
    image: np.ndarray
    matte: np.ndarray


def photo_files(shared: Path) -> list[tuple[str, Path, str]]:
    """Product, file and which half of a person its garment covers ("" for what is not worn): the catalogue's photos,
    then the held-out training photos of single products. Shelves of a grocery store are no product photos."""
    with (shared / "catalog" / "catalog.csv").open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if side_of(row["id"]) != SIDES[0] or not row["ground_truth_alpha"]]
    files = [
        (
            row["id"],
            shared / "catalog" / row["image_link"],
            garment_part(f"{row['product_type']} {html.unescape(row['title'])}"),
        )
        for row in rows
    ]
    items = [item for item in read_index(shared / "training", "photos", "test") if item.source != "grocery-store"]
    items.sort(key=lambda item: item.path.name[::-1])  # the sources and kinds mixed
    return files + [(product_of(item), item.path, garment_part(item.name)) for item in items]


def untouched_photos(shared: Path, profile: Profile, count: int) -> Iterator[Untouched]:
    """Cut out up to `count` photos; those that the cutout stage rejects, or holds for a person to look at, are passed
    over: their masks are not placed."""
    salient = SalientSegmenter.from_profile(profile)
    models = CutoutModels(salient, HQSamSegmenter.from_profile(profile, salient))
    found = 0
    for product, path, garment in photo_files(shared):
        if found == count:
            return
        try:
            photo = read_photo(path.read_bytes())
            result = cutout(photo, models, "auto", garment)
        except Rejected:
            continue
        if result.held:
            continue
        found += 1
        scale = min(1.0, LONGEST / max(photo.size))
        size = (round(photo.size[0] * scale), round(photo.size[1] * scale))
        image, matte = (cv2.resize(each, size, interpolation=cv2.INTER_AREA) for each in (photo.rgb, result.matte))
        yield Untouched(product, image, np.rint(np.clip(matte, 0, 1) * 255).astype(np.uint8))
