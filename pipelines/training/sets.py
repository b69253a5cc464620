"""Rendered backdrops as sets of composed shots: crops, turns, mirrored and tinted.

The pictures and `backdrops.yaml`, which says where their ground and light are, lie in `pipelines/scenes/backdrops`.
Where there are none, there are no sets.
"""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import yaml

from pipelines.training.composer import ComposedProduct, ComposedScene, ComposedShot, lay
from pipelines.training.props import SUPPORTS
from pipelines.training.shading import View
from pipelines.training.textures import Grid, Image

BACKDROPS = Path(__file__).resolve().parents[1] / "scenes" / "backdrops"
LENS = 85 / 36
"""Focal length over the sensor's side, of every backdrop."""

SIDES = (320, 640)
"""Sizes in px that a backdrop is kept at; the smallest that is not enlarged is used."""

ZOOM, TURN = 1.3, 1.5
"""The closest crop, and the largest turn in degrees."""

OTHER = {"left": "right", "right": "left", "front": "front"}


class Words(NamedTuple):
    """What is seen in a picture, as `ComposedScene` has it."""

    wall: str
    floor: str
    prop: str
    accent: str


SEEN = {
    "blush-arch": Words("pink", "pink", "arch", "pink"),
    "marble-podium": Words("grey", "grey", "podium", "white"),
    "oak-window": Words("linen", "oak wood", "window", "white"),
    "studio-sage": Words("sage green", "sage green", "none", "white"),
    "walnut-window": Words("beige", "walnut wood", "window", "white"),
    "white-plain": Words("white", "white", "none", "white"),
}
"""What is seen on the backdrops of each scene, by eye, in the composer's words. A scene's prompt may ask for more."""


@dataclasses.dataclass(frozen=True, slots=True)
class BackdropSet:
    """One backdrop: `words` with its camera and light, its picture (S, S, 3) 0..1 and its ground (S, S; 1 = ground) at
    every size of `SIDES`, and how much of a mirror its ground is."""

    words: ComposedScene
    pictures: tuple[Image, ...]
    grounds: tuple[Image, ...]
    gloss: float

    def shot(self, size: tuple[int, int], product: ComposedProduct | None, rng: np.random.Generator) -> ComposedShot:
        """Compose `product` into a crop of the backdrop at `size` (height, width) px."""
        height, width = size
        zoom = float(rng.uniform(1, ZOOM))
        edge = max(height, width) * zoom
        level = next((n for n, side in enumerate(SIDES) if side >= edge), len(SIDES) - 1)
        side = SIDES[level]
        foot = np.array([0.5, self.words.ground])
        turn = float(rng.uniform(-TURN, TURN))
        mirror = bool(rng.random() < 0.5)
        ground = float(np.clip(foot[1] + rng.uniform(-0.04, 0.04), 1 - (1 - foot[1]) * zoom, foot[1] * zoom))
        scale = edge / side
        matrix = cv2.getRotationMatrix2D((foot * side).tolist(), turn, scale)
        matrix[:, 2] += np.array([0.5 * width, ground * height]) - foot * side
        taken = [
            cv2.warpAffine(one, matrix, (width, height), flags=cv2.INTER_AREA, borderMode=cv2.BORDER_REFLECT_101)
            for one in (self.pictures[level], self.grounds[level])
        ]
        image, floor = (one[:, ::-1] if mirror else one for one in taken)
        image = np.clip(image * float(rng.uniform(0.93, 1.06)), 0, 1)
        stretch = edge / height
        near = [ground + (row - foot[1]) * stretch for row in (self.words.horizon, self.words.horizon - self.words.eye)]
        scene = dataclasses.replace(
            self.words,
            light=OTHER[self.words.light] if mirror else self.words.light,
            ground=ground,
            product_height=float(rng.uniform(0.34, 0.62)) * (0.85 if self.words.prop in SUPPORTS else 1),
            product_x=float(0.5 + rng.normal(0, 0.02 if self.words.prop in SUPPORTS else 0.05)),
            warmth=float(rng.uniform(-0.02, 0.03)),
            size=float(rng.uniform(0.05, 0.2)),
            depth=float(rng.uniform(0.4, 0.65)),
        )
        view = View(near[0], near[1], ground, LENS * stretch)
        return lay(image, scene, Grid(*size), view, product, within=floor, gloss=self.gloss)


def load_sets(folder: Path = BACKDROPS) -> tuple[BackdropSet, ...]:
    """Every backdrop of `folder` of a scene that is in `SEEN`, by name; none where there are none."""
    index = folder / "backdrops.yaml"
    if not index.exists():
        return ()
    entries: dict[str, dict[str, Any]] = yaml.safe_load(index.read_text(encoding="utf-8")) or {}
    known = {name: entry for name, entry in sorted(entries.items()) if entry["scene"] in SEEN}
    return tuple(_set_of(folder / name, entry) for name, entry in known.items() if (folder / name).exists())


def _words_of(entry: dict[str, Any]) -> ComposedScene:
    """The scene of a backdrop as the composer would say it, with its camera and light."""
    seam = min(y for _, y in entry["ground"])
    eye = 0.5 - LENS * math.tan(math.radians(entry["camera_pitch"]))
    azimuth, side = float(entry["light_azimuth"]), entry["light_from"]
    return ComposedScene(
        **SEEN[entry["scene"]]._asdict(),
        light=side,
        horizon=seam,
        softness=0.002,
        ground=float(entry["ground_line"]),
        product_height=0.5,
        product_x=0.5,
        strength=0.2,
        warmth=0.0,
        eye=seam - eye,
        bearing=65 + azimuth / 0.3 if side == "front" else abs(azimuth),
        elevation=float(entry["light_elevation"]),
    )


def _set_of(path: Path, entry: dict[str, Any]) -> BackdropSet:
    original = cv2.imread(str(path), cv2.IMREAD_COLOR)
    if original is None:
        raise ValueError(f"{path}: not a picture")
    outline = np.array(entry["ground"], np.float64)
    pictures, grounds = [], []
    for side in SIDES:
        small = cv2.resize(original, (side, side), interpolation=cv2.INTER_AREA)
        pictures.append(cv2.cvtColor(small, cv2.COLOR_BGR2RGB).astype(np.float32) / 255)
        floor = np.zeros((side, side), np.float32)
        cv2.fillPoly(floor, [np.round(outline * side).astype(np.int32)], 1.0, cv2.LINE_AA)
        grounds.append(floor)
    return BackdropSet(_words_of(entry), tuple(pictures), tuple(grounds), float(entry["gloss"]))
