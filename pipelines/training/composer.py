"""Procedural packshots: a product on a floor against a wall, and the caption that says exactly what was drawn.

    scene = draw_scene(rng)                                   # every visible choice is a field
    shot = compose(scene, (256, 256), product, rng)           # image, product mask (1 = product), caption

A composed scene is the training picture of the bundled `mini` models and the ground truth of the product's outline.
Whatever the caption names is there and whatever it names has that colour; nothing depends on the picture's size but its
sharpness. All maps are float32 in 0..1, rows first; lengths inside a scene are fractions of the picture's height.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

Image = NDArray[Any]
"""float32; said here because numpy's stubs widen every product of arrays."""

COLOURS: dict[str, tuple[int, int, int]] = {
    "white": (244, 243, 240),
    "grey": (158, 160, 163),
    "black": (44, 44, 47),
    "beige": (222, 200, 170),
    "pink": (240, 186, 190),
    "red": (190, 52, 48),
    "terracotta": (198, 112, 80),
    "yellow": (240, 200, 84),
    "sage green": (160, 182, 148),
    "dark green": (42, 84, 66),
    "sky blue": (164, 206, 232),
    "navy blue": (36, 52, 98),
    "lavender": (196, 182, 226),
}
MATERIALS: dict[str, tuple[tuple[int, int, int], str]] = {
    "oak wood": ((206, 166, 116), "planks"),
    "walnut wood": ((112, 76, 54), "planks"),
    "white marble": ((236, 235, 234), "marble"),
    "black marble": ((52, 52, 56), "marble"),
    "concrete": ((148, 146, 142), "stone"),
    "linen": ((214, 204, 186), "linen"),
}
WALL_MATERIALS = ("concrete", "linen")
LIGHTS = ("left", "right", "front")
PROPS = ("none", "podium", "ball", "window", "plant", "arch")
PROP_ODDS = (0.28, 0.2, 0.12, 0.14, 0.12, 0.14)


@dataclass(frozen=True, slots=True)
class Product:
    """A cut-out product: `rgb` (H, W, 3) and `alpha` (H, W), float32 0..1, cropped to it; `name` for the caption."""

    name: str
    rgb: Image
    alpha: Image


@dataclass(frozen=True, slots=True)
class Scene:
    """What is in a picture, in words and fractions of its height. The words are the caption's."""

    wall: str
    floor: str
    light: str
    prop: str
    accent: str
    horizon: float
    softness: float
    ground: float
    product_height: float
    product_x: float
    strength: float
    warmth: float


@dataclass(frozen=True, slots=True)
class Shot:
    """A composed picture: `image` (H, W, 3), `mask` (H, W; 1 = product), float32 0..1, and the truthful `caption`."""

    image: Image
    mask: Image
    caption: str


def draw_scene(rng: np.random.Generator) -> Scene:
    """Draw a scene: named wall and floor, side of the light, at most one prop, and where the product stands."""
    wall = str(rng.choice(WALL_MATERIALS)) if rng.random() < 0.12 else str(rng.choice(list(COLOURS)))
    floor = str(rng.choice(list(MATERIALS))) if rng.random() < 0.4 else str(rng.choice(list(COLOURS)))
    if rng.random() < 0.15 and wall in COLOURS:
        floor = wall  # the seamless paper of a studio
    accent = str(rng.choice([name for name in COLOURS if name not in (wall, floor)]))
    horizon = float(rng.uniform(0.5, 0.74))
    return Scene(
        wall=wall,
        floor=floor,
        light=str(rng.choice(LIGHTS)),
        prop=str(rng.choice(PROPS, p=PROP_ODDS)),
        accent=accent,
        horizon=horizon,
        softness=float(rng.choice([0.002, 0.03], p=[0.7, 0.3])),
        ground=float(rng.uniform(max(horizon + 0.1, 0.72), 0.93)),
        product_height=float(rng.uniform(0.34, 0.66)),
        product_x=float(0.5 + rng.normal(0, 0.05)),
        strength=float(rng.uniform(0.14, 0.3)),
        warmth=float(rng.uniform(-0.02, 0.04)),
    )


def caption_of(scene: Scene, product: str | None) -> str:
    """Say what `scene` shows, in the fixed order product, floor, wall, light, prop. `product` None: an empty scene."""
    subject = f"a photo of {_with_article(product)}" if product else "a photo of an empty scene"
    place = {"podium": f"standing on a {scene.accent} podium on"}.get(scene.prop, "on")
    words = f"{subject} {place} {_with_article(scene.floor)} floor against {_with_article(scene.wall)} wall"
    words += f", soft light from the {scene.light}"
    extra = {
        "ball": f", a {scene.accent} ball beside it",
        "window": ", window light on the wall",
        "plant": ", plant shadow on the wall",
        "arch": f", a {scene.accent} arch behind it",
    }
    return words + extra.get(scene.prop, "")


def compose(scene: Scene, size: tuple[int, int], product: Product | None, rng: np.random.Generator) -> Shot:
    """Render `scene` at `size` (height, width) px with `product` on its ground line.

    The image equals the resized product exactly where the mask is 1, so the mask is exact. `rng` draws only texture and
    the shape of the shadows: the same generator state gives the same picture, bit for bit.
    """
    height, width = size
    grid = _Grid(height, width)
    image = backdrop(scene, grid, rng)
    ground = scene.ground
    if scene.prop == "podium":
        ground = min(ground, 0.84)
        image = _podium(image, grid, scene, ground)
    if scene.prop == "ball":
        image = _ball(image, grid, scene, rng)
    if product is None:
        return Shot(_photographic(image, rng), np.zeros(size, np.float32), caption_of(scene, None))
    rgb, alpha = place(product, size, scene.product_height, scene.product_x, ground)
    if scene.prop != "podium":
        image = _cast_shadow(image, alpha, scene, ground)
    image = _contact_shadow(image, grid, alpha, ground)
    image = _photographic(image, rng)
    image = image * (1 - alpha[..., None]) + rgb * alpha[..., None]
    return Shot(image.astype(np.float32), alpha, caption_of(scene, product.name))


def draw_around(scene: Scene, alpha: Image, ground: float, rng: np.random.Generator) -> Image:
    """`scene` (H, W, 3) with the shadows of a product that is laid already, `alpha` (H, W) with its foot on `ground`.

    Props on the floor are left out.
    """
    grid = _Grid(*alpha.shape)
    image = _cast_shadow(backdrop(scene, grid, rng), alpha, scene, ground)
    return _photographic(_contact_shadow(image, grid, alpha, ground), rng)


def place(
    product: Product, size: tuple[int, int], product_height: float, centre_x: float, ground: float
) -> tuple[Image, Image]:
    """Resize `product` and stand it on `ground` (fraction of the height).

    Returns the colours (H, W, 3) and the alpha (H, W) on a canvas of `size`; wide products are limited by the canvas.
    """
    height, width = size
    rows, columns = product.alpha.shape
    scale = min(product_height * height / rows, 0.8 * width / columns, (ground - 0.04) * height / rows)
    new = (max(round(columns * scale), 2), max(round(rows * scale), 2))
    how = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    alpha = cv2.resize(product.alpha, new, interpolation=how)
    # Colours are averaged with their alpha, or the colour under transparent pixels bleeds into the rim.
    rgb = (
        cv2.resize(product.rgb * product.alpha[..., None], new, interpolation=how) / np.maximum(alpha, 1e-4)[..., None]
    )
    bottom = min(round(ground * height), height)
    top = max(bottom - new[1], 0)
    left = int(np.clip(round(centre_x * width - new[0] / 2), 0, max(width - new[0], 0)))
    colours, matte = np.zeros((height, width, 3), np.float32), np.zeros((height, width), np.float32)
    rows, columns = min(new[1], height - top), min(new[0], width - left)
    colours[top : top + rows, left : left + columns] = np.clip(rgb[:rows, :columns], 0, 1)
    matte[top : top + rows, left : left + columns] = alpha[:rows, :columns]
    matte = np.where(matte > 0.996, np.float32(1), matte)
    return colours, matte


def backdrop(scene: Scene, grid: _Grid, rng: np.random.Generator) -> Image:
    """Wall and floor with their textures, the light, and the props that belong to the wall. Returns (H, W, 3)."""
    wall = _surface(scene.wall, grid, grid.x - 0.5, grid.y, rng)
    depth = np.maximum(grid.y - scene.horizon, 0) + 0.12
    floor = _surface(scene.floor, grid, (grid.x - 0.5 * grid.aspect) / depth * 0.5, 0.14 / depth, rng)
    if scene.prop == "arch":
        wall = _arch(wall, grid, scene)
    wall = wall * _wall_light(scene, grid)[..., None]
    if scene.prop == "window":
        wall = wall * (1 + _window(grid, scene, rng)[..., None] * np.array([0.34, 0.28, 0.16], np.float32))
    if scene.prop == "plant":
        wall = wall * (1 - 0.34 * _plant(grid, scene, rng)[..., None])
    floor = floor * _floor_light(scene, grid)[..., None]
    is_floor = _step((grid.y - scene.horizon) / scene.softness)
    # A wall meets a floor in a thin dark line, wider and weaker on a sweep of paper.
    seam = np.exp(-(((grid.y - scene.horizon) / (0.012 + scene.softness)) ** 2)) * (
        0.1 if scene.softness < 0.01 else 0.04
    )
    return (wall * (1 - is_floor[..., None]) + floor * is_floor[..., None]) * (1 - seam[..., None])


class _Grid:
    """Pixel centres in fractions of the height: x (H, W) in 0..aspect, y (H, W) in 0..1."""

    def __init__(self, height: int, width: int) -> None:
        self.height, self.width, self.aspect = height, width, width / height
        ys = (np.arange(height, dtype=np.float32) + 0.5) / height
        xs = (np.arange(width, dtype=np.float32) + 0.5) / height
        self.x = np.broadcast_to(xs[None, :], (height, width))
        self.y = np.broadcast_to(ys[:, None], (height, width))


def _with_article(words: str | None) -> str:
    words = words or ""
    if words in {"oak wood"}:
        return f"an {words}"
    if words in {"concrete", "linen", "walnut wood", "white marble", "black marble"} or words in COLOURS:
        return f"a {words}"
    return f"{'an' if words[:1].lower() in 'aeiou' else 'a'} {words}"


def _step(x: Image) -> Image:
    return np.clip(x * 0.5 + 0.5, 0, 1)


def _noise(grid: _Grid, cells: tuple[int, int], rng: np.random.Generator) -> Image:
    """Smooth noise with unit deviation from (rows, columns) random cells, enlarged to the grid."""
    coarse = rng.standard_normal(cells, dtype=np.float32)
    return cv2.resize(coarse, (grid.width, grid.height), interpolation=cv2.INTER_CUBIC)


def _surface(name: str, grid: _Grid, u: Image, v: Image, rng: np.random.Generator) -> Image:
    """A named colour or material over texture coordinates (u across, v along), (H, W, 3)."""
    if name in COLOURS:
        rgb, texture = COLOURS[name], "plaster"
    else:
        rgb, texture = MATERIALS[name]
    base = np.array(rgb, np.float32) / 255 + rng.normal(0, 0.012, 3).astype(np.float32)
    return base * (1 + TEXTURES[texture](grid, u, v, rng))[..., None]


def _plaster(grid: _Grid, u: Image, v: Image, rng: np.random.Generator) -> Image:
    return 0.012 * _noise(grid, (5, 5), rng)


def _planks(grid: _Grid, u: Image, v: Image, rng: np.random.Generator) -> Image:
    board = np.floor(u * 5 + 40)
    tone = rng.normal(0, 0.07, 96).astype(np.float32)[board.astype(int) % 96]
    grain = np.sin(u * 150 + np.sin(v * 9 + board * 1.7) * 2.2 + board) * 0.035
    gap = np.abs(u * 5 + 40 - board - 0.5) > 0.47
    return tone + grain - 0.22 * gap


def _marble(grid: _Grid, u: Image, v: Image, rng: np.random.Generator) -> Image:
    wander = _noise(grid, (7, 7), rng) * 1.6
    angle = rng.uniform(0.4, 1.4)
    veins = np.exp(-np.abs(np.sin((u + v * angle) * 5 + wander)) * 9)
    return (rng.uniform(-0.24, -0.14) * veins + 0.02 * wander).astype(np.float32)


def _stone(grid: _Grid, u: Image, v: Image, rng: np.random.Generator) -> Image:
    return 0.045 * _noise(grid, (9, 9), rng) + 0.03 * _noise(grid, (40, 40), rng)


def _linen(grid: _Grid, u: Image, v: Image, rng: np.random.Generator) -> Image:
    folds = 0.05 * np.sin((u * 1.3 + v) * 9 + _noise(grid, (4, 4), rng))
    return folds + 0.03 * _noise(grid, (64, 12), rng) + 0.03 * _noise(grid, (12, 64), rng)


TEXTURES: dict[str, Callable[[_Grid, Image, Image, np.random.Generator], Image]] = {
    "plaster": _plaster,
    "planks": _planks,
    "marble": _marble,
    "stone": _stone,
    "linen": _linen,
}


def _light_x(scene: Scene, grid: _Grid) -> float:
    return {"left": 0.08, "right": 0.92, "front": 0.5}[scene.light] * grid.aspect


def _wall_light(scene: Scene, grid: _Grid) -> Image:
    distance = ((grid.x - _light_x(scene, grid)) / (0.62 * grid.aspect)) ** 2 + ((grid.y - 0.3) / 0.75) ** 2
    return 1 - scene.strength + scene.strength * 1.35 * np.exp(-distance)


def _floor_light(scene: Scene, grid: _Grid) -> Image:
    distance = ((grid.x - _light_x(scene, grid)) / (0.8 * grid.aspect)) ** 2
    return 1 - 0.6 * scene.strength + scene.strength * (0.75 * np.exp(-distance) + 0.2 * (grid.y - scene.horizon))


def _window(grid: _Grid, scene: Scene, rng: np.random.Generator) -> Image:
    """Light falling through a window of 2 x 3 panes, slanted, on the wall."""
    slant = rng.uniform(0.18, 0.4) * (1 if scene.light == "right" else -1)
    x = grid.x - (0.3 if scene.light == "right" else 0.7) * grid.aspect + slant * (grid.y - 0.3)
    y = grid.y - rng.uniform(0.26, 0.34) + 0.15 * slant * x
    pane_x, pane_y = 0.2, 0.16
    edge = 0.014
    across = _step((pane_x - np.abs(x)) / edge) * _step((np.abs(x) - 0.018) / edge)
    rows = np.mod(y + 1.5 * pane_y, pane_y) - pane_y / 2
    along = _step((1.5 * pane_y - np.abs(y)) / edge) * _step((pane_y / 2 - 0.014 - np.abs(rows)) / edge)
    return (across * along).astype(np.float32)


def _plant(grid: _Grid, scene: Scene, rng: np.random.Generator) -> Image:
    """The soft shadow of a leafy twig that hangs into the picture from above, away from the light."""
    side = -1 if scene.light == "right" else 1
    canvas = np.zeros((grid.height, grid.width), np.float32)
    root = np.array([0.5 * grid.aspect + side * rng.uniform(0.3, 0.42) * grid.aspect, -0.03])
    bend = rng.uniform(0.1, 0.35)
    for t in np.linspace(0.12, 1, int(rng.integers(8, 12))):
        stem = root + np.array([-side * bend * t**1.5, 0.62 * t])
        for turn in (-1, 1):
            angle = 90 + turn * rng.uniform(35, 60) + side * 14
            length = rng.uniform(0.09, 0.13) * (1.15 - 0.5 * t)
            tip = stem + np.array([np.cos(np.radians(angle)), np.sin(np.radians(angle))]) * length
            centre = ((stem + tip) / 2 * grid.height).round().astype(int)
            axes = (max(int(length * grid.height / 2), 1), max(int(length * grid.height / 6), 1))
            cv2.ellipse(canvas, (int(centre[0]), int(centre[1])), axes, float(angle), 0, 360, 1.0, -1, cv2.LINE_AA)
    return cv2.GaussianBlur(canvas, (0, 0), 0.009 * grid.height)


def _arch(wall: Image, grid: _Grid, scene: Scene) -> Image:
    """A recess with a round top, its inside in the accent colour and shaded at the rim that faces the light."""
    radius, spring = 0.3, 0.36
    x = grid.x - 0.5 * grid.aspect
    distance = np.where(grid.y < spring, np.hypot(x, grid.y - spring), np.abs(x)) - radius
    inside = _step(-distance / 0.006)[..., None]
    side = {"left": -1.0, "right": 1.0, "front": 0.0}[scene.light]
    rim = np.exp(-np.abs(distance) / 0.05) * np.clip(0.25 + side * x / radius, 0, 1)
    colour = np.array(COLOURS[scene.accent], np.float32) / 255 * (1 - 0.3 * rim)[..., None]
    return wall * (1 - inside) + colour * inside


def _podium(image: Image, grid: _Grid, scene: Scene, ground: float) -> Image:
    """A cylinder under the product: a top at `ground`, a side shaded round, and a soft shadow on the floor."""
    half, flat, tall = 0.3, 0.055, 0.12
    x, y = grid.x - scene.product_x * grid.aspect, grid.y - ground
    side = {"left": 1.0, "right": -1.0, "front": 0.0}[scene.light]
    shade = np.exp(-(((x - 0.12 * side) / (half * 1.25)) ** 2 + ((y - tall) / (flat * 1.7)) ** 2))
    image = image * (1 - 0.45 * shade)[..., None]
    accent = np.array(COLOURS[scene.accent], np.float32) / 255
    ellipse = flat * np.sqrt(np.clip(1 - (x / half) ** 2, 0, 1))
    body = _step((half - np.abs(x)) / 0.005) * _step((y + 0.001) / 0.004) * _step((tall + ellipse - y) / 0.005)
    round_light = 0.8 - 0.3 * (x / half) * side - 0.25 * (x / half) ** 2 * (side == 0)
    image = image * (1 - body[..., None]) + accent * np.clip(round_light, 0.3, 1.1)[..., None] * body[..., None]
    top = _step((1 - np.hypot(x / half, y / flat)) / 0.02)[..., None]
    return image * (1 - top) + np.clip(accent * (1.08 + 0.12 * scene.strength), 0, 1) * top


def _ball(image: Image, grid: _Grid, scene: Scene, rng: np.random.Generator) -> Image:
    """A ball on the floor on the side that the light leaves, with its own shadow."""
    radius = rng.uniform(0.08, 0.12)
    side = {"left": 1, "right": -1}.get(scene.light, int(rng.choice([-1, 1])))
    centre_x, centre_y = (0.5 + side * rng.uniform(0.28, 0.34)) * grid.aspect, scene.ground - radius - 0.01
    x, y = (grid.x - centre_x) / radius, (grid.y - centre_y) / radius
    lean = {"left": 0.3, "right": -0.3, "front": 0.0}[scene.light]
    image = image * (1 - 0.5 * np.exp(-(((x - lean) / 1.1) ** 2 + ((y - 0.98) / 0.28) ** 2)))[..., None]
    inside = _step((1 - np.hypot(x, y)) * radius / 0.006)[..., None]
    lit = 1.12 - 0.42 * np.clip(np.hypot(x + 1.4 * lean, y + 0.4) - 0.3, 0, 1.5)
    return image * (1 - inside) + np.array(COLOURS[scene.accent], np.float32) / 255 * lit[..., None] * inside


def _cast_shadow(image: Image, alpha: Image, scene: Scene, ground: float) -> Image:
    """The product's shadow, laid flat on the floor away from the light and softer with distance."""
    height, width = alpha.shape
    lean = {"left": 0.75, "right": -0.75, "front": 0.0}[scene.light]
    base = ground * height
    flat = np.array([[1, -lean, lean * base], [0, 0.28, base * 0.72]], np.float32)
    shadow = cv2.warpAffine(alpha, flat, (width, height), flags=cv2.INTER_LINEAR)
    shadow = cv2.GaussianBlur(shadow, (0, 0), 0.028 * height)
    ys = (np.arange(height, dtype=np.float32)[:, None] / height - ground) / 0.3
    return image * (1 - 0.42 * shadow * np.exp(-(ys**2)))[..., None]


def _contact_shadow(image: Image, grid: _Grid, alpha: Image, ground: float) -> Image:
    """The dark line under whatever of the product touches the ground: its lowest rows, squashed and blurred."""
    height = grid.height
    bottom = min(round(ground * height), height)
    foot = alpha[max(bottom - max(round(0.02 * height), 1), 0) : bottom].max(axis=0, initial=0)
    line = foot[None, :] * np.exp(-(((grid.y - ground) / 0.014) ** 2))
    wide = cv2.GaussianBlur(line.astype(np.float32), (0, 0), 0.02 * height)
    return image * (1 - np.clip(0.35 * line + 0.8 * wide, 0, 0.7))[..., None]


def _photographic(image: Image, rng: np.random.Generator) -> Image:
    """Roll highlights off as a camera does, and clip to 0..1."""
    return np.clip(np.where(image > 0.9, 0.9 + 0.1 * np.tanh((image - 0.9) / 0.1), image), 0, 1).astype(np.float32)


def mirrored(product: Product) -> Product:
    """The product seen from the other side, for augmentation."""
    return replace(
        product, rgb=np.ascontiguousarray(product.rgb[:, ::-1]), alpha=np.ascontiguousarray(product.alpha[:, ::-1])
    )
