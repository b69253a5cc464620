"""Photos with exact product masks, composed on the fly: what the segmenters are trained on.

Cutouts are laid over real scenes, plain studio backgrounds and simple sets (wall, floor, podium, props). Shadows,
reflections and props belong to the background: a segmenter that learns from these must not call them product.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image

from pipelines.training.composer import compose, draw_scene
from pipelines.training.data import read_index

PRODUCT_ALPHA = 0.8
"""Some cutouts carry their soft drop shadow in the alpha channel; above this value it is product."""

_WITH_PEOPLE = ("notebook", "tote red 1", "tote")
"""Cutouts whose alpha takes in a hand or a person."""


Draw = np.random.Generator
"""Draws what varies; a seed repeats it."""

Shade = Callable[[np.ndarray, Draw], np.ndarray]
"""Maps a product's alpha `(H, W)`, 0..1, to the share of light `(H, W, 1 or 3)` that its shadow takes away."""


@dataclass(frozen=True, slots=True)
class Composite:
    """A picture and its product.

    Attributes:
        image: `(H, W, 3)` uint8 RGB.
        mask: `(H, W)` float32, 1 = product.
        kind: What is difficult in it, or "".
        other: `(H, W)` float32, 1 = another thing that touches or covers the product; None: there is none.
    """

    image: np.ndarray
    mask: np.ndarray
    kind: str = ""
    other: np.ndarray | None = None


class CompositeSource:
    """Draws composites from the training folder.

    Args:
        data: the folder, with `index.csv`, `cutouts/` and `scenes/`.
        split: `train`, or `test` for the products that are held out (and every tenth scene).
    """

    def __init__(self, data: Path, split: str = "train") -> None:
        cutouts = [item for item in read_index(data, "cutouts", split) if item.name not in _WITH_PEOPLE]
        self._toys = [read_rgba(item.path) for item in cutouts if item.source == "fluent-emoji-3d"]
        self._products = [read_rgba(item.path) for item in cutouts if item.source != "fluent-emoji-3d"]
        scenes = sorted(item.path for item in read_index(data, "scenes"))
        kept = [path for i, path in enumerate(scenes) if (i % 10 == 0) == (split == "test")]
        self._scenes = [np.asarray(Image.open(path).convert("RGB")) for path in kept]

    def draw(self, side: int, rng: Draw) -> Composite:
        """Compose one square image of `side` pixels; equal generators give equal composites."""
        kind = rng.choice(["scene", "studio", "set"], p=[0.45, 0.3, 0.25])
        if kind == "scene":
            background = self.scene(side, rng)
        elif kind == "studio":
            background = studio(side, rng)
        else:
            background = compose(draw_scene(rng), (side, side), None, rng).image * 255
        image = background.astype(np.float32)
        mask = np.zeros((side, side), np.float32)
        several = rng.random() < 0.12
        for _ in range(int(rng.integers(2, 4)) if several else 1):
            size = side * (rng.uniform(0.25, 0.45) if several else rng.uniform(0.3, 0.98) ** 0.8)
            patch = self.cutout(size, rng)
            shade = soft_shadow if rng.random() < (0.5 if kind == "scene" else 0.8) else None
            np.maximum(mask, place(image, patch, rng, shade), out=mask)
        return Composite(degrade(np.clip(image, 0, 255).astype(np.uint8), rng), mask)

    def cutout(self, size: float, rng: Draw) -> np.ndarray:
        """Draw a cutout `(h, w, 4)` float32, premultiplied RGBA, 0..255, its longer side near `size` px."""
        pool = self._products if rng.random() < 0.6 else self._toys
        return varied(pool[int(rng.integers(len(pool)))], size, rng)

    def scene(self, side: int, rng: Draw) -> np.ndarray:
        """Draw a square of a scene, `(side, side, 3)` uint8, at times out of focus."""
        scene = self._scenes[int(rng.integers(len(self._scenes)))]
        h, w = scene.shape[:2]
        crop = int(min(h, w) * rng.uniform(0.5, 1.0))
        y, x = int(rng.integers(h - crop + 1)), int(rng.integers(w - crop + 1))
        patch = cv2.resize(scene[y : y + crop, x : x + crop], (side, side), interpolation=cv2.INTER_AREA)
        if rng.random() < 0.35:
            patch = cv2.GaussianBlur(patch, (0, 0), side * rng.uniform(0.004, 0.02))
        return patch[:, ::-1] if rng.random() < 0.5 else patch


def varied(rgba: np.ndarray, size: float, rng: Draw) -> np.ndarray:
    """Mirror, colour, light, turn and scale a cutout `(H, W, 4)` uint8; see `CompositeSource.cutout`."""
    rgba = rgba.astype(np.float32)
    if rng.random() < 0.5:
        rgba = rgba[:, ::-1]
    rgb: np.ndarray = rgba[..., :3]
    if rng.random() < 0.5:
        hsv = cv2.cvtColor(np.clip(rgb, 0, 255).astype(np.uint8), cv2.COLOR_RGB2HSV).astype(np.int16)
        hsv[..., 0] = (hsv[..., 0] + int(rng.integers(180))) % 180
        hsv[..., 1] = np.clip(hsv[..., 1] * rng.uniform(0.0, 1.3), 0, 255)
        rgb = cv2.cvtColor(hsv.astype(np.uint8), cv2.COLOR_HSV2RGB).astype(np.float32)
    rgb = 255 * (np.clip(rgb, 0, 255) / 255) ** rng.uniform(0.6, 1.6) * rng.uniform(0.75, 1.05)
    if rng.random() < 0.06:
        rgb = 0.15 * rgb + 0.85 * rng.uniform(215, 255)  # white on white is what shops shoot
    elif rng.random() < 0.06:
        rgb = 0.3 * rgb  # black on black
    rgba = np.dstack([np.clip(rgb, 0, 255), rgba[..., 3]])
    scale = size / max(rgba.shape[:2])
    angle = float(rng.normal(0, 12)) if rng.random() < 0.6 else 0.0
    return _rotate_scale(rgba, angle, scale)


def studio(side: int, rng: Draw) -> np.ndarray:
    """White, grey or coloured paper, lit evenly or falling off from a point."""
    if rng.random() < 0.5:
        colour = np.full(3, rng.uniform(235, 255))
    else:
        colour = rng.uniform(20, 255, 3) * rng.uniform(0.4, 1) + rng.uniform(0, 60)
    yy, xx = np.mgrid[0:side, 0:side] / side
    distance = np.hypot(yy - rng.uniform(-0.2, 1.2), xx - rng.uniform(-0.2, 1.2))
    light = 1 - rng.uniform(0, 0.45) * distance**2 * (rng.random() < 0.6)
    return np.clip(colour * light[..., None], 0, 255)


def read_rgba(path: Path) -> np.ndarray:
    """Read a cutout, `(H, W, 4)` uint8."""
    return np.asarray(Image.open(path).convert("RGBA"))


def _rotate_scale(rgba: np.ndarray, angle: float, scale: float) -> np.ndarray:
    """Premultiplied, so that the colour behind the transparent rim does not bleed in."""
    h, w = rgba.shape[:2]
    alpha = rgba[..., 3:] / 255
    premultiplied: np.ndarray = np.dstack([rgba[..., :3] * alpha, rgba[..., 3:]]).astype(np.float32)
    matrix = cv2.getRotationMatrix2D((w / 2, h / 2), angle, scale)
    cos, sin = abs(matrix[0, 0]), abs(matrix[0, 1])
    width, height = max(4, int(h * sin + w * cos)), max(4, int(h * cos + w * sin))
    matrix[0, 2] += (width - w) / 2
    matrix[1, 2] += (height - h) / 2
    if scale < 0.7:
        premultiplied = cv2.GaussianBlur(premultiplied, (0, 0), 0.4 / scale)
    return cv2.warpAffine(premultiplied, matrix, (width, height), flags=cv2.INTER_LINEAR)


def place(image: np.ndarray, patch: np.ndarray, rng: Draw, shade: Shade | None) -> np.ndarray:
    """Lay a premultiplied patch over `image` in place, somewhere near the middle; returns as `lay` does."""
    side = image.shape[0]
    if max(patch.shape[:2]) > side:
        factor = side / max(patch.shape[:2])
        size = (int(patch.shape[1] * factor), int(patch.shape[0] * factor))
        patch = cv2.resize(patch, size, interpolation=cv2.INTER_AREA)
    h, w = patch.shape[:2]
    slack = 0.12 * side  # now and then a product leaves the picture
    y = int(np.clip(rng.normal((side - h) * 0.55, side * 0.12), -slack, side - h + slack))
    x = int(np.clip(rng.normal((side - w) * 0.5, side * 0.14), -slack, side - w + slack))
    return lay(image, patch, (y, x), rng, shade)


def lay(image: np.ndarray, patch: np.ndarray, at: tuple[int, int], rng: Draw, shade: Shade | None) -> np.ndarray:
    """Lay a premultiplied patch over `image` in place, its top left corner `at` (y, x), with its shadow.

    Returns the product that was laid, `(side, side)` float32, 1 = product.
    """
    (y, x), side = at, image.shape[0]
    h, w = patch.shape[:2]
    full = np.zeros((side, side, 4), np.float32)
    top, left = max(0, y), max(0, x)
    bottom, right = min(side, y + h), min(side, x + w)
    full[top:bottom, left:right] = patch[top - y : bottom - y, left - x : right - x]
    alpha = full[..., 3] / 255
    product: np.ndarray = np.clip((alpha - (PRODUCT_ALPHA - 0.2)) / 0.4, 0, 1)
    if shade is not None:
        image *= 1 - shade(product, rng)
    image *= (1 - alpha)[..., None]
    image += full[..., :3]
    return product


def soft_shadow(product: np.ndarray, rng: Draw) -> np.ndarray:
    """A contact shadow, and a cast one: the product's outline flattened to the ground, slid aside and blurred."""
    side = product.shape[0]
    rows = np.flatnonzero(product.max(axis=1) > 0.5)
    if rows.size == 0:
        return np.zeros((side, side, 1), np.float32)
    ground = float(rows[-1])
    flat, slide = rng.uniform(0.05, 0.6), rng.uniform(-0.7, 0.7)
    matrix = np.array([[1, slide, -slide * ground], [0, flat, ground * (1 - flat)]], np.float32)
    cast = cv2.warpAffine(product, matrix, (side, side))
    cast = cv2.GaussianBlur(cast, (0, 0), side * rng.uniform(0.004, 0.04)) * rng.uniform(0.05, 0.6)
    contact = cv2.warpAffine(product, np.array([[1, 0, 0], [0, 0.06, ground * 0.94]], np.float32), (side, side))
    contact = cv2.GaussianBlur(contact, (0, 0), side * rng.uniform(0.003, 0.012)) * rng.uniform(0, 0.7)
    return np.maximum(cast, contact)[..., None]


def degrade(image: np.ndarray[Any, Any], rng: Draw) -> np.ndarray:
    """What cameras and shops do to a picture: blur, noise, JPEG."""
    if rng.random() < 0.3:
        image = cv2.GaussianBlur(image, (0, 0), rng.uniform(0.3, 1.2))
    if rng.random() < 0.3:
        image = np.clip(image + rng.normal(0, rng.uniform(1, 8), image.shape), 0, 255).astype(np.uint8)
    if rng.random() < 0.4:
        quality = [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(40, 95))]
        image = np.asarray(cv2.imdecode(cv2.imencode(".jpg", image, quality)[1], cv2.IMREAD_COLOR))
    return image


def contact_sheet(composites: Sequence[Composite], columns: int = 8) -> Image.Image:
    """Images with the mask's outline drawn in, for a look at what is trained on."""
    tiles = []
    for item in composites:
        tile = item.image.copy()
        outlines, _ = cv2.findContours((item.mask > 0.5).astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(tile, outlines, -1, (255, 0, 255), 1)
        tiles.append(tile)
    rows = [np.hstack(tiles[i : i + columns]) for i in range(0, len(tiles) - columns + 1, columns)]
    return Image.fromarray(np.vstack(rows))
