"""The pairs of product and scene that every cell paints: products and backgrounds that nothing was trained on.

Products: the catalogue photos with a true alpha mask, and the training folder's held-out tenth, laid over photographs
and plain studio grounds that are in no training set either. Where the shared folder is missing, the sample catalogue.
The list is one sequence: the first n pairs of a longer run are those of a run of n.
"""

from __future__ import annotations

import csv
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from pipelines.contracts import sha256_hex
from pipelines.errors import UsageError
from pipelines.evaluation.cutout import PRODUCT_ALPHA
from pipelines.evaluation.detector.composites import SIDES, side_of
from pipelines.training.composer import ComposedScene, caption_of, draw_around, draw_scene
from pipelines.training.data import LAST_COLOUR, clean_name, load_product, product_of, read_index
from pipelines.vision.placement import LaidProduct, Placement, lay_photo, lay_product, place

SMALLEST = 96
"""A cutout with a shorter longer side than this, px, is a thumbnail, not a product photo."""

SCENE_PROPS = ("none", "window", "plant")
"""Props of the prompted scenes: light and shade only. A ball beside the product would be a product-like object."""


GROUND = 0.87
"""Where products stand, as a share of the canvas's height."""


@dataclass(frozen=True)
class Subject:
    """One product: its photo (RGB) and its cutout (RGBA), of one size. `name` is the caption's and the cluster's.
    `familiar`: other pictures of the product, composites, are among those that the detector was fitted to."""

    name: str
    photo: Image.Image
    cutout: Image.Image
    familiar: bool = False


@dataclass(frozen=True)
class Pair:
    """A product in a scene at the model's size. `number` seeds its noise."""

    number: int
    subject: Subject
    scene: ComposedScene
    side: int
    scale: float

    @property
    def prompt(self) -> str:
        """What the scene is, in the words that the models know."""
        return caption_of(self.scene, self.subject.name)

    @cached_property
    def product(self) -> LaidProduct:
        """The product on its canvas, (side, side)."""
        return lay_product(self.subject.photo, self.subject.cutout, self._where)

    @cached_property
    def photo(self) -> Image.Image:
        """The source photo, placed as its product is, RGB (side, side)."""
        return lay_photo(self.subject.photo, self._where, self.side, self.side)

    def drawn(self) -> np.ndarray:
        """The picture that the prompt speaks of, drawn: the scene around the product, (side, side, 3) uint8."""
        alpha = self.product.matte.astype(np.float32) / 255
        scene = draw_around(self.scene, alpha, GROUND, np.random.default_rng([1792, self.number]))
        return self.product.over(np.rint(scene * 255).astype(np.uint8))

    @cached_property
    def _where(self) -> Placement:
        matte = np.asarray(self.subject.cutout.getchannel("A"))
        return place(matte, (self.side, self.side), self.scale, "ground", GROUND)

    @cached_property
    def digest(self) -> str:
        """Sha256 of everything that is painted from: what a stored result must have been made of."""
        seen = self.product.colour.tobytes() + self.product.matte.tobytes() + np.asarray(self.photo).tobytes()
        return sha256_hex(seen + f"{self.number} {self.prompt}".encode())


def load_pairs(subjects: Sequence[Subject], count: int, side: int, first: int = 0) -> list[Pair]:
    """Pair products with scenes: all products in turn, each time in another scene. Numbers begin with `first`."""
    pairs = []
    for number in range(first, first + count):
        rng = np.random.default_rng([1789, number])
        subject = subjects[number % len(subjects)]
        scene = replace(draw_scene(rng), prop=str(rng.choice(SCENE_PROPS)))
        scale = float(rng.uniform(0.45, 0.62))
        pairs.append(Pair(number, subject, scene, side, scale))
    return pairs


def load_subjects(shared: Path) -> list[Subject]:
    """The products of the shared folder that nothing was trained on, in an order that mixes its sources.

    Raises UsageError where there are none.
    """
    scenes = sorted((shared / "catalog" / "scenes").glob("*.jpg"))
    held_out = read_index(shared / "training", "cutouts", "test")
    subjects = catalogue_subjects(shared / "catalog" / "catalog.csv", calibrating=True)
    for n, item in enumerate(held_out):
        product = load_product(item)
        if max(product.alpha.shape) >= SMALLEST:
            rgba = np.dstack([product.rgb, product.alpha])
            background = scenes[n % len(scenes)] if n % 2 and scenes else None
            subject = photographed(LAST_COLOUR.sub("", item.name), rgba, background, n)
            subjects.append(replace(subject, familiar=side_of(product_of(item)) == SIDES[0]))
    if not subjects:
        raise UsageError(f"{shared}: no product with an alpha mask that was not trained on")
    return sorted(subjects, key=lambda subject: zlib.crc32(subject.name.encode()))


def catalogue_subjects(catalogue: Path, calibrating: bool = False) -> list[Subject]:
    """The products of a catalogue whose rows name a `ground_truth_alpha`, with their photos as they are.

    `calibrating`: it is the catalogue that the detector's calibration products are from.
    """
    subjects = []
    with catalogue.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            if not row.get("ground_truth_alpha"):
                continue
            photo = Image.open(catalogue.parent / row["image_link"]).convert("RGB")
            mask = Image.open(catalogue.parent / row["ground_truth_alpha"])
            alpha = mask.getchannel("A") if mask.mode in ("LA", "RGBA") else mask.convert("L")
            matte = np.asarray(alpha.resize(photo.size), np.float32) / 255
            cutout = photo.copy()
            cutout.putalpha(Image.fromarray(_solid(matte)))
            familiar = calibrating and side_of(row["id"]) == SIDES[0]
            subjects.append(Subject(clean_name(row["title"]), photo, cutout, familiar))
    return subjects


def _solid(matte: np.ndarray) -> np.ndarray:
    """A matte (H, W), 0..1, without the soft shadow that some masks keep: uint8, 255 = product."""
    near = cv2.dilate((matte > PRODUCT_ALPHA).astype(np.float32), np.ones((5, 5), np.uint8))
    return np.round(matte * near * 255).astype(np.uint8)


def photographed(name: str, rgba: np.ndarray, background: Path | None, number: int) -> Subject:
    """Photograph a cutout, (H, W, 4) 0..1: in front of a photograph, or on a plain ground with a contact shadow."""
    height, width = rgba.shape[:2]
    side = round(max(height, width) / 0.4)
    top, left = round(side * 0.8) - height, (side - width) // 2
    alpha = np.zeros((side, side, 1), np.float32)
    colour = np.zeros((side, side, 3), np.float32)
    window = np.s_[max(top, 0) : max(top, 0) + height, left : left + width]
    alpha[window], colour[window] = rgba[..., 3:], rgba[..., :3]
    if background is not None:
        ground = _square(background, side)
    else:
        rng = np.random.default_rng([1790, number])
        ground = np.full((side, side, 3), rng.uniform(0.82, 0.97), np.float32)
        shadow = cv2.GaussianBlur(np.roll(alpha[..., 0], side // 40, axis=0), (0, 0), side / 30)
        ground = ground * (1 - 0.35 * shadow[..., None])
    photo = Image.fromarray(np.round((colour * alpha + ground * (1 - alpha)) * 255).astype(np.uint8))
    cutout = Image.fromarray(np.round(colour * 255).astype(np.uint8))
    cutout.putalpha(Image.fromarray(np.round(alpha[..., 0] * 255).astype(np.uint8)))
    return Subject(name, photo, cutout)


def _square(path: Path, side: int) -> np.ndarray:
    """The middle of a photograph, (side, side, 3), 0..1."""
    with Image.open(path) as file:
        picture = file.convert("RGB")
    edge = min(picture.size)
    left, top = (picture.width - edge) // 2, (picture.height - edge) // 2
    cropped = picture.crop((left, top, left + edge, top + edge)).resize((side, side), Image.Resampling.LANCZOS)
    return np.asarray(cropped, np.float32) / 255
