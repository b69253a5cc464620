"""What else stands, hangs or shines in a composed scene: podiums, balls, books, curtains, the light of a window.

Solid props come as a `Solid`, colours and coverage over the whole picture; light and shadow on the wall as a factor.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np

from pipelines.training.shading import Sun, View
from pipelines.training.textures import Grid, Image, noise


@dataclass(frozen=True, slots=True)
class Solid:
    """An object: `rgb` (H, W, 3), `alpha` (H, W), the row `ground` that it stands on, and for one that a product stands
    on, `top` (H, W): where that can be."""

    rgb: Image
    alpha: Image
    ground: float
    top: Image | None = None


def edge(x: Image, width: float = 0.005) -> Image:
    """0 to 1 over a soft edge of about `width` where x passes zero."""
    return np.clip(x / width * 0.5 + 0.5, 0, 1)


def podium(grid: Grid, view: View, sun: Sun, colour: Image, x: float, tall: float) -> Solid:
    """A cylinder whose top lies on the view's ground line."""
    half = 0.3
    flat = max(view.flatness(half), 0.02)
    across, y = (grid.x - x) / half, grid.y - view.ground
    rim = flat * np.sqrt(np.clip(1 - across**2, 0, 1))
    body = edge(half - np.abs(grid.x - x)) * edge(y) * edge(tall + rim - y)
    lit = _lit(across, np.zeros_like(across), sun) * (1 - 0.18 * np.clip((y - rim) / tall, 0, 1) ** 2)
    radius = np.hypot(across, y / flat)
    steep = np.hypot(across / half, y / flat**2) / np.maximum(radius, 1e-3)
    top = edge((1 - radius) / np.maximum(steep, 1e-3), 0.004)
    bright = 1.02 + 0.1 * np.clip(-across * np.sin(np.radians(-sun.azimuth)), -1, 1) * 0.5
    rgb = colour * (lit * (1 - top) + bright * top)[..., None]
    lip = np.exp(-(((radius - 1) / np.maximum(steep, 1e-3) / 0.004) ** 2)) * (y > 0)
    rgb = rgb * (1 + 0.1 * lip)[..., None]
    return Solid(np.clip(rgb, 0, 1), np.maximum(body, top), view.ground + tall + 0.4 * flat, top)


def plinth(grid: Grid, view: View, sun: Sun, colour: Image, x: float, tall: float) -> Solid:
    """A square block, one face to the camera, its top on the view's ground line."""
    half = 0.29
    flat = max(view.flatness(half), 0.02)
    y = grid.y - view.ground
    narrow = half * (view.height + y) / (view.height + flat)
    top = edge(np.where(np.abs(y) < flat, narrow, -1) - np.abs(grid.x - x)) * edge(flat - np.abs(y), 0.004)
    body = edge(half - np.abs(grid.x - x), 0.004) * edge(y - flat, 0.004) * edge(tall + flat - y, 0.004)
    facing = 0.72 + 0.16 * max(np.cos(np.radians(sun.azimuth)), 0)
    front = facing + 0.05 * np.clip((grid.x - x) / half * np.sin(np.radians(sun.azimuth)), -1, 1)
    front = front * (1 - 0.12 * np.clip((y - flat) / tall, 0, 1))
    bevel = np.exp(-(((y - flat) / 0.004) ** 2)) * body
    rgb = colour * (front * (1 - top) + 1.03 * top + 0.12 * bevel)[..., None]
    return Solid(np.clip(rgb, 0, 1), np.maximum(body, top), view.ground + tall + flat, top)


def ball(grid: Grid, view: View, sun: Sun, colour: Image, x: float, rng: np.random.Generator) -> Solid:
    """A ball."""
    radius = float(rng.uniform(0.08, 0.13))
    across, up = (grid.x - x) / radius, (view.ground - radius - grid.y) / radius
    alpha = edge((1 - np.hypot(across, up)) * radius, 0.006)
    return Solid(_shaded(colour, across, up, sun), alpha, view.ground)


def vase(grid: Grid, view: View, sun: Sun, colour: Image, x: float, rng: np.random.Generator) -> Solid:
    """A turned vase with a belly and a neck."""
    tall, belly = float(rng.uniform(0.2, 0.34)), float(rng.uniform(0.06, 0.09))
    neck, low = float(rng.uniform(0.3, 0.55)), float(rng.uniform(0.3, 0.5))
    t = np.clip((view.ground - grid.y) / tall, 0, 1)
    swell = np.exp(-(((t - low) / 0.33) ** 2))
    radius = belly * (neck + (1 - neck) * swell + 0.12 * np.exp(-(((t - 1) / 0.06) ** 2)))
    across = (grid.x - x) / radius
    alpha = edge(radius - np.abs(grid.x - x)) * edge(view.ground - grid.y) * edge(grid.y - (view.ground - tall))
    lean = np.clip((t - low) * 1.6 * swell, -0.8, 0.8)
    return Solid(_shaded(colour, across, lean, sun), alpha, view.ground)


def books(grid: Grid, view: View, sun: Sun, colour: Image, x: float, rng: np.random.Generator) -> Solid:
    """A pile of three or four books in shades of one colour, their backs to the camera."""
    rgb = np.zeros((*grid.x.shape, 3), np.float32)
    alpha = np.zeros(grid.x.shape, np.float32)
    foot = view.ground
    for _ in range(int(rng.integers(3, 5))):
        half, thick = float(rng.uniform(0.1, 0.14)), float(rng.uniform(0.022, 0.04))
        middle = x + float(rng.uniform(-0.015, 0.015))
        inside = edge(half - np.abs(grid.x - middle), 0.004) * edge(foot - grid.y, 0.003)
        inside = inside * edge(grid.y - (foot - thick), 0.003)
        up = (foot - thick / 2 - grid.y) / thick * 2
        side = np.clip((grid.x - middle) / half * np.sin(np.radians(sun.azimuth)), -1, 1)
        lit = (0.82 + 0.18 * np.cos(up * 1.4)) * (0.95 + 0.06 * side) * (1 - 0.25 * (up < -0.75))
        tone = np.clip(colour * float(rng.uniform(0.86, 1.08)), 0, 1)
        rgb = rgb * (1 - inside[..., None]) + tone * lit[..., None] * inside[..., None]
        alpha = np.maximum(alpha, inside)
        foot -= thick
    return Solid(np.clip(rgb / np.maximum(alpha, 1e-3)[..., None], 0, 1), alpha, view.ground)


def disc(grid: Grid, view: View, sun: Sun, colour: Image, x: float, rng: np.random.Generator) -> Solid:
    """A flat round panel that stands behind the product."""
    radius = float(rng.uniform(0.26, 0.34))
    ground = view.seam + 0.45 * (view.ground - view.seam)
    distance = np.hypot(grid.x - x, grid.y - (ground - radius))
    side = np.clip((grid.x - x) / radius * np.sin(np.radians(sun.azimuth)), -1, 1)
    rgb = np.clip(colour * (0.98 + 0.07 * side)[..., None], 0, 1)
    return Solid(rgb, edge(radius - distance), ground)


def curtain(grid: Grid, view: View, sun: Sun, colour: Image, x: float, rng: np.random.Generator) -> Solid:
    """A curtain that hangs before a part of the wall, from above the picture to the floor."""
    half = float(rng.uniform(0.2, 0.26)) * grid.aspect
    left = -1.0 if rng.random() < 0.5 else 1.0
    across = (grid.x - (0.5 + left * 0.27) * grid.aspect) + 0.01 * np.sin(grid.y * 6)
    folds = across * float(rng.uniform(44, 62)) + 0.9 * noise(grid, (3, 5), rng)
    slope = np.cos(folds) * np.sin(np.radians(sun.azimuth))
    lit = 0.84 + 0.12 * np.sin(folds) + 0.1 * slope
    hem = view.seam + 0.02 + 0.004 * np.sin(folds)
    alpha = edge(half - np.abs(across), 0.006) * edge(hem - grid.y, 0.005)
    return Solid(np.clip(colour * lit[..., None], 0, 1), alpha, view.seam + 0.02)


def arch(wall: Image, grid: Grid, sun: Sun, colour: Image) -> Image:
    """`wall` with a recess with a round top, its inside in a colour and shaded at the rim that faces the light."""
    radius, spring = 0.3, 0.36
    x = grid.x - 0.5 * grid.aspect
    distance = np.where(grid.y < spring, np.hypot(x, grid.y - spring), np.abs(x)) - radius
    inside = edge(-distance, 0.006)[..., None]
    side = np.sin(np.radians(sun.azimuth))
    rim = np.exp(-np.abs(distance) / 0.06) * np.clip(0.25 + side * x / radius, 0, 1)
    above = np.exp(-np.clip(grid.y - (spring - np.sqrt(np.clip(radius**2 - x**2, 0, None))), 0, 1) / 0.09) * 0.5
    shaded = colour * (1 - 0.3 * np.maximum(rim, above * (grid.y < spring + 0.1)))[..., None]
    thick = np.exp(-((distance / 0.007) ** 2)) * np.clip(0.3 - side * x / radius, 0, 1)
    return (wall * (1 - inside) + shaded * inside) * (1 + 0.12 * thick)[..., None]


def window(grid: Grid, sun: Sun, rng: np.random.Generator) -> Image:
    """Light falling through a window of 2 x 3 panes, slanted, on the wall: (H, W) in 0..1, softer higher up."""
    right = sun.azimuth > 0
    slant = float(rng.uniform(0.18, 0.4)) * (1 if right else -1)
    x = grid.x - (0.3 if right else 0.7) * grid.aspect + slant * (grid.y - 0.3)
    y = grid.y - float(rng.uniform(0.26, 0.34)) + 0.15 * slant * x
    pane_x, pane_y, soft = 0.2, 0.16, float(rng.uniform(0.008, 0.022))
    across = edge(pane_x - np.abs(x), soft) * edge(np.abs(x) - 0.018, soft)
    rows = np.mod(y + 1.5 * pane_y, pane_y) - pane_y / 2
    along = edge(1.5 * pane_y - np.abs(y), soft) * edge(pane_y / 2 - 0.014 - np.abs(rows), soft)
    return (across * along).astype(np.float32)


def blinds(grid: Grid, sun: Sun, rng: np.random.Generator) -> Image:
    """Stripes of light from a blind, slanted across the wall, fading at their ends: (H, W) in 0..1."""
    right = sun.azimuth > 0
    slant = float(rng.uniform(0.1, 0.35)) * (1 if right else -1)
    x = grid.x - (0.34 if right else 0.66) * grid.aspect
    y = grid.y + slant * x - float(rng.uniform(0, 0.08))
    gap = float(rng.uniform(0.062, 0.085))
    rows = np.abs(np.mod(y, gap) - gap / 2)
    ends = edge(0.34 - np.abs(x + slant * (grid.y - 0.3)), 0.05) * edge(0.3 - np.abs(y - 0.32), 0.05)
    return (edge(gap * 0.27 - rows, gap * 0.22) * ends).astype(np.float32)


def plant(grid: Grid, sun: Sun, rng: np.random.Generator) -> Image:
    """The soft shadow of a leafy twig that hangs into the picture from above, away from the light: (H, W) in 0..1."""
    side = -1 if sun.azimuth > 0 else 1
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
    return cv2.GaussianBlur(canvas, (0, 0), float(rng.uniform(0.007, 0.016)) * grid.height)


SUPPORTS: dict[str, Callable[[Grid, View, Sun, Image, float, float], Solid]] = {"podium": podium, "plinth": plinth}
BESIDE: dict[str, Callable[[Grid, View, Sun, Image, float, np.random.Generator], Solid]] = {
    "ball": ball,
    "books": books,
    "vase": vase,
}
BEHIND: dict[str, Callable[[Grid, View, Sun, Image, float, np.random.Generator], Solid]] = {
    "disc": disc,
    "curtain": curtain,
}


def _lit(across: Image, up: Image, sun: Sun) -> Image:
    """The light on a round body whose surface points `across` and `up` (each -1..1, the rest towards the camera)."""
    toward = np.sqrt(np.clip(1 - across**2 - up**2, 0, 1))
    azimuth, elevation = np.radians(sun.azimuth), np.radians(sun.elevation)
    light = across * np.sin(azimuth) * np.cos(elevation) + up * np.sin(elevation)
    light = light + toward * np.cos(azimuth) * np.cos(elevation)
    return 0.62 + 0.46 * np.clip((light + 0.35) / 1.35, 0, 1) - 0.1 * np.clip(-up, 0, 1) ** 2


def _shaded(colour: Image, across: Image, up: Image, sun: Sun) -> Image:
    """A turned body in a satin finish, with the light's soft reflex."""
    side = np.sin(np.radians(sun.azimuth))
    reflex = np.exp(-(((across - 0.42 * side) / 0.22) ** 2 + ((up - 0.45) / 0.25) ** 2))
    return np.clip(colour * _lit(across, up, sun)[..., None] + 0.16 * reflex[..., None], 0, 1)
