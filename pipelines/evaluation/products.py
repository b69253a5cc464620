"""The products and scenes of the shared folder that measures use, and which products set tau.

No bundled model was trained on the products of the two sides: the catalogue's with a true alpha mask, and the held-out
tenth of the training cutouts. A third of them calibrates tau; the others measure. No product is on both sides.
"""

from __future__ import annotations

import csv
import hashlib
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from pipelines.errors import UsageError
from pipelines.evaluation.cutout import PRODUCT_ALPHA
from pipelines.training.data import NOT_PHOTOGRAPHS, load_product, product_of, read_index

SIDES = CALIBRATION, TEST = "calibration", "test"

CutoutPixels = tuple[str, np.ndarray, np.ndarray]
"""A product's name, colours (H, W, 3) and alpha (H, W), float32 0..1, cropped to the product."""


def side_of(product: str) -> str:
    """Whether a product calibrates tau or measures: the sha256 of its name puts a third on the first side."""
    return SIDES[int(hashlib.sha256(f"tau {product}".encode()).hexdigest()[:8], 16) % 3 != 0]


def read_products(shared: Path, side: str) -> list[CutoutPixels]:
    """Read the products of one side, sorted by name. Raises UsageError if the shared data are missing."""
    try:
        with (shared / "catalog" / "catalog.csv").open(newline="", encoding="utf-8") as file:
            rows = [row for row in csv.DictReader(file) if row["ground_truth_alpha"]]
        held_out = read_index(shared / "training", "cutouts", "test")
    except OSError as error:
        raise UsageError(f"{shared}: no shared data with a catalogue and a training folder ({error})") from error
    found: dict[str, CutoutPixels] = {}
    for row in rows:
        if side_of(row["id"]) == side:
            photo = Image.open(shared / "catalog" / row["image_link"]).convert("RGB")
            alpha = Image.open(shared / "catalog" / row["ground_truth_alpha"]).convert("L").resize(photo.size)
            solid = np.clip((np.asarray(alpha, np.float32) / 255 - PRODUCT_ALPHA) / (0.98 - PRODUCT_ALPHA), 0, 1)
            found[row["id"]] = (row["id"], *_cropped(np.asarray(photo, np.float32) / 255, solid))
    for item in held_out:
        name = product_of(item)
        if side_of(name) == side and name not in found:
            product = load_product(item)
            found[name] = (name, product.rgb, product.alpha)
    return [found[name] for name in sorted(found)]


def read_training_products(shared: Path, count: int) -> list[CutoutPixels]:
    """Read up to `count` products that models were trained on, in the order of their names' sha256.

    The detector is fitted to them, never measured on them.
    """
    items = {product_of(item): item for item in read_index(shared / "training", "cutouts", "train")}
    chosen = sorted(items, key=lambda name: hashlib.sha256(f"lesson {name}".encode()).hexdigest())[:count]
    products = [(name, load_product(items[name])) for name in chosen]
    return [(name, product.rgb, product.alpha) for name, product in products]


def _cropped(rgb: np.ndarray, alpha: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    left, top, width, height = cv2.boundingRect((alpha > 0.5).astype(np.uint8))
    box = np.s_[top : top + height, left : left + width]
    return rgb[box], alpha[box]


def read_scenes(shared: Path) -> list[np.ndarray]:
    """Read the catalogue's scenes that are photographs, (H, W, 3) uint8 each."""
    return [np.asarray(Image.open(file).convert("RGB")) for file in photographed_scenes(shared)]


def photographed_scenes(shared: Path) -> list[Path]:
    """List the files of these scenes in the order of their index; charts and maps are left out."""
    folder = shared / "catalog" / "scenes"
    with (folder / "index.csv").open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if not NOT_PHOTOGRAPHS.search(row["file"] + row["name"])]
    return [folder / row["file"] for row in rows]
