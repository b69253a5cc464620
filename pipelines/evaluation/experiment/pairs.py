"""The pairs of product and scene that every cell paints: no model was trained on these products and backgrounds.

Products are the catalogue photos with a true alpha mask, and the training folder's held-out tenth in front of
photographs and plain grounds. Without the shared folder they are those of the sample catalogue. The pairs are one
sequence: a run of n pairs uses the first n.
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
from pipelines.evaluation.products import CALIBRATION, side_of
from pipelines.training.composer import ComposedScene, caption_of, draw_around, draw_scene
from pipelines.training.data import LAST_COLOUR, clean_name, load_product, product_of, read_index
from pipelines.vision.placement import LaidProduct, Placement, lay_photo, lay_product, place

SMALLEST = 96
"""A cutout whose longer side is shorter than this, px, is a thumbnail and not used."""

SCENE_PROPS = ("none", "window", "plant")
"""Props of the scenes: only light and shade. A ball next to the product would be a product-like object."""

GROUND = 0.87
"""Where products stand, as a share of the canvas's height."""


@dataclass(frozen=True)
class Subject:
    """A product: its photo (RGB) and its cutout (RGBA) of the same size.

    `name` stands in the caption, and is the unit that intervals resample. `familiar`: the detector was fitted to
    composites of the product.
    """

    name: str
    photo: Image.Image
    cutout: Image.Image
    familiar: bool = False


@dataclass(frozen=True)
class Pair:
    """A product in a scene at the model's size; `number` seeds the noise."""

    number: int
    subject: Subject
    scene: ComposedScene
    side: int
    scale: float

    @property
    def prompt(self) -> str:
        """Describes the scene in the words that the models know."""
        return caption_of(self.scene, self.subject.name)

    @cached_property
    def product(self) -> LaidProduct:
        """The product on its canvas, (side, side)."""
        return lay_product(self.subject.photo, self.subject.cutout, self._where)

    @cached_property
    def photo(self) -> Image.Image:
        """The source photo with the same placement as the product, RGB (side, side)."""
        return lay_photo(self.subject.photo, self._where, self.side, self.side)

    def drawn(self) -> np.ndarray:
        """Draw the scene of the prompt around the product, (side, side, 3) uint8."""
        alpha = self.product.matte.astype(np.float32) / 255
        scene = draw_around(self.scene, alpha, GROUND, np.random.default_rng([1792, self.number]))
        return self.product.over(np.rint(scene * 255).astype(np.uint8))

    @cached_property
    def _where(self) -> Placement:
        matte = np.asarray(self.subject.cutout.getchannel("A"))
        return place(matte, (self.side, self.side), self.scale, "ground", GROUND)

    @cached_property
    def digest(self) -> str:
        """Sha256 of all of the pair's inputs to painting."""
        seen = self.product.colour.tobytes() + self.product.matte.tobytes() + np.asarray(self.photo).tobytes()
        return sha256_hex(seen + f"{self.number} {self.prompt}".encode())


def load_pairs(subjects: Sequence[Subject], count: int, side: int, first: int = 0) -> list[Pair]:
    """Pair products in turn with ever new scenes; numbers start at `first`."""
    pairs = []
    for number in range(first, first + count):
        rng = np.random.default_rng([1789, number])
        subject = subjects[number % len(subjects)]
        scene = replace(draw_scene(rng), prop=str(rng.choice(SCENE_PROPS)))
        scale = float(rng.uniform(0.45, 0.62))
        pairs.append(Pair(number, subject, scene, side, scale))
    return pairs


def load_subjects(shared: Path) -> list[Subject]:
    """Load the products of the shared folder that no model was trained on, in an order that mixes its sources.

    Raises UsageError if there are none.
    """
    scenes = sorted((shared / "catalog" / "scenes").glob("*.jpg"))
    held_out = read_index(shared / "training", "cutouts", "test")
    subjects = catalogue_subjects(shared / "catalog" / "catalog.csv", calibrating=True)
    for n, item in enumerate(held_out):
        product = load_product(item)
        if max(product.alpha.shape) >= SMALLEST:
            rgba = np.dstack([product.rgb, product.alpha])
            background = scenes[n % len(scenes)] if n % 2 and scenes else None
            subject = photograph(LAST_COLOUR.sub("", item.name), rgba, background, n)
            subjects.append(replace(subject, familiar=side_of(product_of(item)) == CALIBRATION))
    if not subjects:
        raise UsageError(f"{shared}: no product with an alpha mask that was not trained on")
    return sorted(subjects, key=lambda subject: zlib.crc32(subject.name.encode()))


def catalogue_subjects(catalogue: Path, calibrating: bool = False) -> list[Subject]:
    """Load the products of a catalogue whose rows name a `ground_truth_alpha`, with their own photos.

    `calibrating`: the detector's calibration products come from this catalogue.
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
            familiar = calibrating and side_of(row["id"]) == CALIBRATION
            subjects.append(Subject(clean_name(row["title"]), photo, cutout, familiar))
    return subjects


def _solid(matte: np.ndarray) -> np.ndarray:
    """Remove the soft shadow that some mattes (H, W), 0..1, keep; returns uint8, 255 = product."""
    near = cv2.dilate((matte > PRODUCT_ALPHA).astype(np.float32), np.ones((5, 5), np.uint8))
    return np.round(matte * near * 255).astype(np.uint8)


def photograph(name: str, rgba: np.ndarray, background: Path | None, number: int) -> Subject:
    """Compose a photo of a cutout (H, W, 4), 0..1: before a photograph, or on plain ground with a contact shadow."""
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
    """The central square of a photograph, (side, side, 3), 0..1."""
    with Image.open(path) as file:
        picture = file.convert("RGB")
    edge = min(picture.size)
    left, top = (picture.width - edge) // 2, (picture.height - edge) // 2
    cropped = picture.crop((left, top, left + edge, top + edge)).resize((side, side), Image.Resampling.LANCZOS)
    return np.asarray(cropped, np.float32) / 255
