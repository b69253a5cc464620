"""What the bundled models learn from: cutouts, scenes and photos of the shared training folder, split by product.

Every tenth product name (by its sha256) is held out: `is_held_out` is the only place that decides, so a product's
several photos, and a product that comes in several sources under one name, fall on one side. Trainers read the `train`
side, figures are measured on the `test` side.
"""

from __future__ import annotations

import csv
import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipelines.training.composer import ComposedProduct, ComposedShot, compose, draw_scene, mirrored
from pipelines.training.sets import load_sets

SPLITS = ("train", "test")
LAST_COLOUR = re.compile(r" (black|white|gr[ae]y|blue|red|green|purple|orange|yellow|brown|lavender)$")
# Charts, maps and screenshots among the scenes teach nothing about photographs.
NOT_PHOTOGRAPHS = re.compile(r"plot|chart|graph|logo|screenshot|diagram|text|map|free_by|abstract|pattern", re.I)


@dataclass(frozen=True, slots=True)
class Item:
    """One row of `index.csv`: a picture, what is on it, and where it comes from."""

    path: Path
    name: str
    source: str
    licence: str


def is_held_out(name: str) -> bool:
    """Whether the product called `name` is kept for evaluation: its sha256's first 32 bits are a multiple of ten."""
    return int(hashlib.sha256(name.strip().lower().encode()).hexdigest()[:8], 16) % 10 == 0


def read_index(data: Path, folder: str, split: str | None = None) -> list[Item]:
    """Read the rows of `data/index.csv` whose file is in `folder` ('cutouts', 'scenes', 'photos'), one `split` or all.

    Raises FileNotFoundError when the training folder is not there.
    """
    if split is not None and split not in SPLITS:
        raise ValueError(f"split must be one of {SPLITS}, not {split!r}")
    with (data / "index.csv").open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["file"].startswith(f"{folder}/")]
    items = [Item(data / row["file"], clean_name(row["name"]), row["source"], row["licence"]) for row in rows]
    return [item for item in items if split is None or is_held_out(product_of(item)) == (split == "test")]


def product_of(item: Item) -> str:
    """What makes `item` one product, in all its colours.

    Clothing photos are named by their class alone, and each shows another garment: there the file is the product.
    """
    return item.path.name if item.source == "clothing-dataset" else LAST_COLOUR.sub("", item.name)


def clean_name(name: str) -> str:
    """A caption's noun from a file's title: no shop names, hashes or doubled last words ('pants Pants' is 'pants')."""
    words = re.sub(r"[^a-z0-9' -]+", " ", name.lower().replace("’", "'")).split()
    words = [word for word in words if word not in {"saleor", "solidus", "magento", "vendure"} and not _is_code(word)]
    kept: list[str] = []
    for word in words:
        if word not in kept:
            kept.append(word)
    return " ".join(kept[:6]) or "product"


def _is_code(word: str) -> bool:
    return len(word) > 12 and any(c.isdigit() for c in word)


def load_product(item: Item) -> ComposedProduct:
    """Load a cutout without the soft shadow that some sources keep in its alpha, cropped to the product."""
    with Image.open(item.path) as file:
        rgba = np.asarray(file.convert("RGBA"), dtype=np.float32) / 255
    alpha = rgba[..., 3]
    solid = cv2.dilate((alpha > 0.8).astype(np.float32), np.ones((5, 5), np.uint8))
    alpha = alpha * solid
    rows, columns = np.where(alpha.max(axis=1) > 0.5)[0], np.where(alpha.max(axis=0) > 0.5)[0]
    box = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
    return ComposedProduct(item.name, np.ascontiguousarray(rgba[..., :3][box]), np.ascontiguousarray(alpha[box]))


SET_SHARE = 0.2
"""Of the composed shots that stand in a rendered backdrop, where there are any."""


class Composer:
    """An endless, seekable stream of composed shots: the same (seed, index) gives the same shot on every machine.

    The backdrops of the scenes are sets of the training split alone; `sets` is whether they are used.
    """

    def __init__(self, data: Path, split: str = "train", seed: int = 0, empty: float = 0.08, sets: bool = True) -> None:
        items = read_index(data, "cutouts", split)
        self.toys = [load_product(item) for item in items if item.source == "fluent-emoji-3d"]
        self.goods = [load_product(item) for item in items if item.source != "fluent-emoji-3d"]
        self.sets = load_sets() if sets and split == "train" else ()
        self.seed, self.empty = seed, empty

    def shot(self, index: int, size: tuple[int, int]) -> ComposedShot:
        """Compose shot `index` at `size` (height, width) px."""
        rng = np.random.default_rng([self.seed, index])
        scene = draw_scene(rng)
        pool = self._draw_pool(rng)
        product = None
        if pool is not None:
            product = pool[int(rng.integers(len(pool)))]
            product = mirrored(product) if rng.random() < 0.5 else product
        if self.sets and rng.random() < SET_SHARE:
            return self.sets[int(rng.integers(len(self.sets)))].shot(size, product, rng)
        return compose(scene, size, product, rng)

    def pool(self, index: int) -> list[ComposedProduct] | None:
        """Where the product of shot `index` is from: `toys`, `goods`, or None for an empty scene."""
        rng = np.random.default_rng([self.seed, index])
        draw_scene(rng)
        return self._draw_pool(rng)

    def _draw_pool(self, rng: np.random.Generator) -> list[ComposedProduct] | None:
        if rng.random() < self.empty:
            return None
        return self.goods if rng.random() < 0.5 and self.goods else self.toys


def load_photographs(data: Path, side: int, split: str | None = None) -> NDArray[np.uint8]:
    """Load the real scenes and product photos as (N, side, side, 3) uint8; see `load_square`."""
    items = [item for item in read_index(data, "scenes") if not NOT_PHOTOGRAPHS.search(item.path.name + item.name)]
    items += read_index(data, "photos", split)
    pictures = np.empty((len(items), side, side, 3), np.uint8)
    for n, item in enumerate(items):
        pictures[n] = load_square(item.path, side)
    return pictures


def load_square(path: Path, side: int) -> NDArray[np.uint8]:
    """Load a photo as (side, side, 3) uint8: fitted by its shorter edge, cropped in the middle."""
    with Image.open(path) as file:
        picture = file.convert("RGB")
        scale = side / min(picture.size)
        picture = picture.resize((max(round(picture.width * scale), side), max(round(picture.height * scale), side)))
    left, top = (picture.width - side) // 2, (picture.height - side) // 2
    return np.asarray(picture.crop((left, top, left + side, top + side)))


SHARD = 1000


@dataclass(frozen=True, slots=True)
class ShotPack:
    """Composed shots on disk: `images` (N, S, S, 3) and `masks` (N, S, S) uint8 by shard, and a caption for each."""

    images: list[NDArray[np.uint8]]
    masks: list[NDArray[np.uint8]]
    captions: list[str]

    def __len__(self) -> int:
        return len(self.captions)

    def image(self, index: int) -> NDArray[np.uint8]:
        """Picture `index`, (S, S, 3)."""
        return self.images[index // SHARD][index % SHARD]

    def mask(self, index: int) -> NDArray[np.uint8]:
        """Product mask `index`, (S, S), 255 = product."""
        return self.masks[index // SHARD][index % SHARD]


def shot_pack(folder: Path, data: Path, side: int, count: int, split: str = "train") -> ShotPack:
    """Compose `count` shots (rounded up to whole shards) of `side` px into `folder`, or read those already there.

    Shard n holds the shots n * SHARD ... of `Composer(seed=side)`; a shard is complete when its captions are written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    composer: Composer | None = None
    images, masks, captions = [], [], []
    for shard in range(-(-count // SHARD)):
        stem = folder / f"shots_{split}_{side}_{shard:03d}"
        words = stem.with_suffix(".json")
        if not words.exists():
            composer = composer or Composer(data, split, seed=side)
            _compose_shard(composer, shard, side, stem)
        images.append(np.load(f"{stem}_images.npy", mmap_mode="r"))
        masks.append(np.load(f"{stem}_masks.npy", mmap_mode="r"))
        captions += json.loads(words.read_text(encoding="utf-8"))
    return ShotPack(images, masks, captions)


def _compose_shard(composer: Composer, shard: int, side: int, stem: Path) -> None:
    images = np.empty((SHARD, side, side, 3), np.uint8)
    masks = np.empty((SHARD, side, side), np.uint8)
    captions = []
    for n in range(SHARD):
        shot = composer.shot(shard * SHARD + n, (side, side))
        images[n], masks[n] = np.round(shot.image * 255), np.round(shot.mask * 255)
        captions.append(shot.caption)
    np.save(f"{stem}_images.npy", images)
    np.save(f"{stem}_masks.npy", masks)
    stem.with_suffix(".json").write_text(json.dumps(captions), encoding="utf-8")
