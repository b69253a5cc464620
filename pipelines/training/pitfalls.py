"""Composites of what cutouts get wrong: hard shadows, floors, openings, shops and people, neighbours and hands.

They are drawn beside the plain ones of `composites.py`, so that a segmenter keeps what it can do.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from pipelines.training.composites import (
    Composite,
    CompositeSource,
    Draw,
    Shade,
    degrade,
    lay,
    place,
    read_rgba,
    soft_shadow,
    studio,
    varied,
)
from pipelines.training.data import read_index

OPENING = 0.01
"""Share of a cutout from which a hole in it is an opening."""

OTHERS = 0.5
"""Share of the composites with a hand in which another product covers the product instead."""

Drawn = tuple[np.ndarray, np.ndarray, np.ndarray | None]
"""A picture `(side, side, 3)` float32, its product and another thing, each `(side, side)` float32."""


class PitfallSource:
    """Draws composites, plain and difficult ones, from the training folder.

    Args:
        data: the folder, with `index.csv`, `cutouts/`, `scenes/` and `photos/`.
        split: `train`, or `test` for the products that are held out, as in `CompositeSource`.
    """

    def __init__(self, data: Path, split: str = "train") -> None:
        self._plain = CompositeSource(data, split)
        self._photos = [item.path for item in read_index(data, "photos", split)]
        cutouts = [read_rgba(item.path) for item in read_index(data, "cutouts", split)]
        self._opened = [rgba for rgba in cutouts if _has_opening(rgba[..., 3] > 127)]
        self._kinds: dict[str, tuple[float, Callable[[int, Draw], Drawn]]] = {
            "hard shadow": (0.17, self._hard_shadow),
            "floor": (0.10, self._floor),
            "opening": (0.08, self._opening),
            "shop": (0.20, self._shop),
            "neighbour": (0.09, self._neighbour),
            "hand": (0.06, self._hand),
        }

    @property
    def kinds(self) -> tuple[str, ...]:
        """What is difficult in a composite; "" is nothing."""
        return ("", *self._kinds)

    def draw(self, side: int, rng: Draw, kind: str | None = None) -> Composite:
        """Compose a picture whose longer side is `side` px, of a kind if given; equal generators give equal ones."""
        shares = [share for share, _ in self._kinds.values()]
        if kind is None:
            kind = str(rng.choice(self.kinds, p=[1 - sum(shares), *shares]))
        if kind == "":
            return _framed(self._plain.draw(side, rng), rng)
        image, mask, other = self._kinds[kind][1](side, rng)
        pixels = degrade(np.clip(image, 0, 255).astype(np.uint8), rng)
        return _framed(Composite(pixels, mask, kind, other), rng)

    def _hard_shadow(self, side: int, rng: Draw) -> Drawn:
        image = _paper_or_floor(side, rng, floors=0.35)
        return image, place(image, self._product(side, rng), rng, hard_shadow), None

    def _floor(self, side: int, rng: Draw) -> Drawn:
        image = floor(side, rng)
        return image, place(image, self._product(side, rng), rng, _maybe_soft(rng)), None

    def _opening(self, side: int, rng: Draw) -> Drawn:
        image = _paper_or_floor(side, rng, floors=0.2) if rng.random() < 0.7 else self._scene(side, rng)
        rgba = self._opened[int(rng.integers(len(self._opened)))]
        patch = varied(rgba, side * rng.uniform(0.4, 0.9), rng)
        return image, place(image, patch, rng, hard_shadow if rng.random() < 0.3 else _maybe_soft(rng)), None

    def _shop(self, side: int, rng: Draw) -> Drawn:
        image = self._photo(side, rng)
        return image, place(image, self._product(side, rng), rng, _maybe_soft(rng)), None

    def _neighbour(self, side: int, rng: Draw) -> Drawn:
        ground = rng.random()
        image = self._scene(side, rng) if ground < 0.3 else _paper_or_floor(side, rng, floors=0.3)
        size, shade = side * rng.uniform(0.3, 0.5), _maybe_soft(rng)
        patches = [self._plain.cutout(size * rng.uniform(0.8, 1.2), rng) for _ in range(2)]
        foot = side * rng.uniform(0.6, 0.92)
        middle = side * rng.uniform(0.42, 0.58)
        gap = side * rng.uniform(-0.04, 0.06)
        lefts = (middle - gap / 2 - patches[0].shape[1], middle + gap / 2)
        laid = [
            lay(image, patch, (int(foot - patch.shape[0]), int(left)), rng, shade)
            for patch, left in zip(patches, lefts, strict=True)
        ]
        laid[0] = laid[0] * (1 - laid[1])
        chosen = int(rng.integers(2))
        return image, laid[chosen], laid[1 - chosen]

    def _hand(self, side: int, rng: Draw) -> Drawn:
        image = self._photo(side, rng) if rng.random() < 0.4 else _paper_or_floor(side, rng, floors=0.3)
        mask = place(image, self._product(side, rng), rng, _maybe_soft(rng))
        if rng.random() < OTHERS:
            patch = self._plain.cutout(side * rng.uniform(0.15, 0.35), rng)
            rows, columns = np.nonzero(_rim(mask))
            if not len(rows):
                return image, mask, None
            n = int(rng.integers(len(rows)))
            at = (int(rows[n] - patch.shape[0] / 2), int(columns[n] - patch.shape[1] / 2))
            other = lay(image, patch, at, rng, None)
        else:
            other = lay(image, hand(mask, rng), (0, 0), rng, None)
        return image, mask * (1 - other), other

    def _product(self, side: int, rng: Draw) -> np.ndarray:
        return self._plain.cutout(side * rng.uniform(0.35, 0.85), rng)

    def _scene(self, side: int, rng: Draw) -> np.ndarray:
        return self._plain.scene(side, rng).astype(np.float32)

    def _photo(self, side: int, rng: Draw) -> np.ndarray:
        """A square of a photo of a shop, a garment or a person."""
        with Image.open(self._photos[int(rng.integers(len(self._photos)))]) as file:
            photo = np.asarray(file.convert("RGB"))
        h, w = photo.shape[:2]
        crop = int(min(h, w) * rng.uniform(0.6, 1.0))
        y, x = int(rng.integers(h - crop + 1)), int(rng.integers(w - crop + 1))
        square: np.ndarray = cv2.resize(photo[y : y + crop, x : x + crop], (side, side), interpolation=cv2.INTER_AREA)
        if rng.random() < 0.3:
            square = cv2.GaussianBlur(square, (0, 0), side * rng.uniform(0.002, 0.01))
        return square.astype(np.float32)


def hard_shadow(product: np.ndarray, rng: Draw) -> np.ndarray:
    """The shadow of the sun or of one lamp: dark and sharp, laid to the ground, or beside a product that lies."""
    side = product.shape[0]
    rows = np.flatnonzero(product.max(axis=1) > 0.5)
    if rows.size == 0:
        return np.zeros((side, side, 1), np.float32)
    ground = float(rows[-1])
    if rng.random() < 0.65:
        flat = rng.uniform(0.12, 0.6) * (-1 if rng.random() < 0.2 else 1)  # towards the camera, or away from it
        slide = rng.uniform(-1.2, 1.2) * abs(flat)
        matrix = np.array([[1, slide, -slide * ground], [0, flat, ground * (1 - flat)]], np.float32)
    else:
        away, turn = rng.uniform(0.01, 0.09) * side, rng.uniform(0, 2 * np.pi)
        matrix = np.array([[1, 0, away * np.cos(turn)], [0, 1, away * np.sin(turn)]], np.float32)
    dark = cv2.GaussianBlur(cv2.warpAffine(product, matrix, (side, side)), (0, 0), side * rng.uniform(0.0008, 0.006))
    tint: np.ndarray = 1 + rng.uniform(-0.06, 0.06, 3)
    return (dark * rng.uniform(0.3, 0.85))[..., None] * tint


def floor(side: int, rng: Draw) -> np.ndarray:
    """A nearly even floor `(side, side, 3)` float32 with stains, and with joints, boards or a wall behind it."""
    stains = cv2.resize(rng.normal(0, rng.uniform(0.5, 3), (5, 5)), (side, side), interpolation=cv2.INTER_CUBIC)
    grain = rng.normal(0, rng.uniform(0.3, 2.5), (side, side))
    image = rng.uniform(110, 245) + rng.uniform(-16, 16, 3) + (stains + grain)[..., None]
    y, x = np.mgrid[0:side, 0:side].astype(np.float32)
    if rng.random() < 0.4:
        below = y - side * rng.uniform(0.3, 0.85) - np.tan(rng.uniform(-0.1, 0.1)) * (x - side / 2)
        image -= np.clip(below, 0, 1)[..., None] * rng.uniform(-10, 30) * rng.uniform(0.8, 1.2, 3)
        crease = np.exp(-((below / (side * rng.uniform(0.001, 0.012))) ** 2))
        image -= crease[..., None] * rng.uniform(0, 70)
    else:
        turn, pitch = rng.uniform(0, np.pi), side * rng.uniform(0.12, 0.6)
        width = side * rng.uniform(0.0008, 0.004)
        for angle in (turn, turn + np.pi / 2) if rng.random() < 0.6 else (turn,):
            across = x * np.cos(angle) + y * np.sin(angle) + rng.uniform(0, pitch)
            joint = np.abs((across + pitch / 2) % pitch - pitch / 2)
            image -= np.exp(-((joint / width) ** 2))[..., None] * rng.uniform(10, 80)
    return np.clip(image, 0, 255).astype(np.float32)


def hand(product: np.ndarray, rng: Draw) -> np.ndarray:
    """Draw an arm from the picture's border and fingers over the product's rim, premultiplied `(side, side, 4)`.

    Args:
        product: `(side, side)` float, 0..1.
        rng: Draws place, pose and skin.
    """
    side = product.shape[0]
    rows, columns = np.nonzero(_rim(product))
    if not len(rows):
        return np.zeros((side, side, 4), np.float32)
    n = int(rng.integers(len(rows)))
    grip = np.array([columns[n], rows[n]], float)
    middle = np.array([columns.mean(), rows.mean()])
    out = (grip - middle) / max(1e-6, float(np.hypot(*(grip - middle))))
    thick = side * rng.uniform(0.022, 0.038)
    wrist = grip + out * 4 * thick
    strokes = [(wrist, wrist + out * 2 * side, rng.uniform(3.2, 4.5) * thick), (grip + out * thick, wrist, 4 * thick)]
    sideways = np.array([-out[1], out[0]])
    for place_ in np.linspace(-1.6, 1.6, int(rng.integers(2, 5))):
        root = grip + sideways * place_ * thick + out * thick
        reach = rng.uniform(2, 6) * thick
        strokes.append((root, root - out * reach + sideways * rng.normal(0, 0.6) * thick, thick))
    light = np.zeros((side, side), np.float32)
    for start, end, width in strokes:
        one = np.zeros((side, side), np.uint8)
        ends = [tuple(int(v) for v in np.clip(point, -side, 2 * side)) for point in (start, end)]
        cv2.line(one, ends[0], ends[1], 1, max(2, int(width)), cv2.LINE_8)
        depth = cv2.distanceTransform(np.pad(one, 1), cv2.DIST_L2, 5)[1:-1, 1:-1] / max(1.0, width / 2)
        light = np.where(one > 0, 0.62 + 0.38 * np.sqrt(np.clip(depth, 0, 1)), light)
    alpha = cv2.GaussianBlur((light > 0).astype(np.float32), (0, 0), 0.8)
    tone = rng.uniform(0, 1)
    skin = (1 - tone) * np.array([240, 200, 175]) + tone * np.array([95, 60, 45]) + rng.uniform(-10, 10, 3)
    rgb = cv2.GaussianBlur(light, (0, 0), 1.2)[..., None] * skin
    return np.dstack([rgb * alpha[..., None], alpha * 255]).astype(np.float32)


def _paper_or_floor(side: int, rng: Draw, floors: float) -> np.ndarray:
    return floor(side, rng) if rng.random() < floors else studio(side, rng).astype(np.float32)


def _maybe_soft(rng: Draw) -> Shade | None:
    return soft_shadow if rng.random() < 0.65 else None


def _has_opening(product: np.ndarray) -> bool:
    """Return whether a cutout `(H, W)` bool encloses a hole of a noticeable size."""
    around = np.pad(~product, 1, constant_values=True).astype(np.uint8)
    _, labels, stats, _ = cv2.connectedComponentsWithStats(around, connectivity=4)
    enclosed = np.delete(stats[:, cv2.CC_STAT_AREA], [0, labels[0, 0]])
    return bool(enclosed.size and enclosed.max() > OPENING * product.sum())


def _rim(product: np.ndarray) -> np.ndarray:
    solid = (product > 0.5).astype(np.uint8)
    return (solid > 0) & (cv2.erode(solid, np.ones((3, 3), np.uint8)) == 0)


def _framed(composite: Composite, rng: Draw) -> Composite:
    """Cut half of the squares to an upright or a wide format; the product stays in it."""
    if rng.random() < 0.5:
        return composite
    axis = int(rng.integers(2))
    side = composite.mask.shape[axis]
    keep = int(side * rng.uniform(0.6, 0.95))
    filled = np.flatnonzero((composite.mask > 0.5).any(axis=1 - axis))
    if not filled.size or np.ptp(filled) + 1 > keep:
        return composite
    first = int(rng.integers(max(0, filled[-1] + 1 - keep), min(filled[0], side - keep) + 1))
    cut = np.s_[first : first + keep] if axis == 0 else np.s_[:, first : first + keep]
    other = None if composite.other is None else composite.other[cut]
    return Composite(np.ascontiguousarray(composite.image[cut]), composite.mask[cut], composite.kind, other)
