"""Light and its absence in composed scenes: cast shadows, occlusion at the foot, reflections, depth of field.

A picture is a floor that meets a wall, seen by a pinhole camera. `View` says where; every point of the floor has a
distance z, 1 at the ground line where the product stands. An object is flat, upright and faces the camera there.
Lengths are fractions of the picture's height, angles are in degrees.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from pipelines.training.textures import Grid, Image

THICK = 0.25
"""A flat object throws no shadow in light from the very side; a real one is thick, and throws at least so long a one
away from the camera or towards it, for each unit of its height."""


@dataclass(frozen=True, slots=True)
class View:
    """The camera: rows of the seam between floor and wall, of its own horizon, and of the ground line; its lens."""

    seam: float
    eye: float
    ground: float
    focal: float

    @property
    def height(self) -> float:
        """How far the camera is above the floor."""
        return self.ground - self.eye

    @property
    def wall(self) -> float:
        """The wall's distance."""
        return self.height / (self.seam - self.eye)

    def distance(self, y: Image) -> Image:
        """The distance of the floor at rows `y`; of the wall's foot above the seam."""
        return self.height / (np.maximum(y, self.seam) - self.eye)

    def flatness(self, radius: float) -> float:
        """Half the height of a circle of `radius` that lies on the floor at the ground line."""
        return radius * self.height / self.focal

    def standing_at(self, ground: float) -> View:
        """The same camera for an object that stands on another line, or higher up."""
        return View(self.seam, self.eye + (ground - self.ground), ground, self.focal)


@dataclass(frozen=True, slots=True)
class Sun:
    """An area light: where it stands (0 behind the camera, 90 to the right, -90 to the left), how high, how large (the
    growth of a shadow's blur with the height of what casts it), and how deep its shadows are (0..1)."""

    azimuth: float
    elevation: float
    size: float
    depth: float

    @property
    def step(self) -> tuple[float, float]:
        """How far a shadow goes to the right, and away from the camera, for each unit of height."""
        far = 1 / np.tan(np.radians(self.elevation))
        return -far * float(np.sin(np.radians(self.azimuth))), far * float(np.cos(np.radians(self.azimuth)))


def cast_shadow(alpha: Image, grid: Grid, view: View, sun: Sun) -> Image:
    """How much of the light an object `alpha` (H, W) on the ground line takes from floor and wall, (H, W) in 0..1.

    The shadow lies on the floor away from the light and climbs the wall; it is sharp at the foot and softens with the
    height of what casts it.
    """
    small = min(grid.height, 128)
    coarse = Grid(small, max(round(small * grid.aspect), 2))
    aside, away = sun.step
    away = float(np.copysign(max(abs(away), THICK), away))
    z = view.distance(coarse.y)
    on_wall = np.maximum(view.seam - coarse.y, 0) * view.wall
    to_floor = (z - 1) * view.focal / away
    height = to_floor + on_wall
    source_x = (coarse.x - 0.5 * grid.aspect) * z - aside * to_floor + 0.5 * grid.aspect
    source_y = view.ground - height
    outside = (height < 0) | (to_floor < 0)
    lying = cv2.remap(
        alpha.astype(np.float32),
        (source_x * grid.height - 0.5).astype(np.float32),
        (np.where(outside, -9, source_y) * grid.height - 0.5).astype(np.float32),
        cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_CONSTANT,
    )
    blur = np.clip((0.005 + sun.size * np.maximum(height, 0)) * small, 0.5, 0.12 * small)
    shadow = _blurred_by(lying, blur, small) * np.exp(-0.45 * np.maximum(height, 0))
    return cv2.resize(shadow.astype(np.float32), (grid.width, grid.height), interpolation=cv2.INTER_LINEAR)


def occlusion(alpha: Image, grid: Grid, view: View) -> Image:
    """The darkness where an object meets the floor, and the wider one around its foot, (H, W) in 0..1."""
    height = grid.height
    bottom = int(np.clip(round(view.ground * height), 1, height))
    rows = max(round(0.025 * height), 1)
    foot = alpha[max(bottom - rows, 0) : bottom].max(axis=0, initial=0).astype(np.float32)
    body = alpha[max(bottom - 10 * rows, 0) : bottom].mean(axis=0).astype(np.float32)
    flat = float(np.clip(view.height / view.focal, 0.08, 0.5))
    dark: Image = np.zeros(alpha.shape, np.float32)
    for line, reach, depth in ((foot, 0.006, 0.5), (foot, 0.03, 0.34), (body, 0.1, 0.34)):
        across = cv2.GaussianBlur(line[None, :], (0, 0), max(reach * height, 0.4))[0]
        tall = max(reach * flat * 1.6, 0.006)
        off = (grid.y[:, :1] - (view.ground - 0.3 * tall)) / tall
        dark = 1 - (1 - dark) * (1 - depth * across[None, :] * np.exp(-(off**2)))
    return dark


def reflected(rgb: Image, alpha: Image, grid: Grid, view: View, gloss: float, rough: float) -> tuple[Image, Image]:
    """An object's image in the floor: colours (H, W, 3), and how much of them is seen, (H, W) in 0..`gloss`."""
    height = grid.height
    bottom = int(np.clip(round(view.ground * height), 1, height))
    rows = min(height - bottom, bottom)
    colours, share = np.zeros_like(rgb, np.float32), np.zeros(alpha.shape, np.float32)
    if rows < 1:
        return colours, share
    mirrored: Image = np.dstack([rgb * alpha[..., None], alpha])[bottom - rows : bottom][::-1].astype(np.float32)
    below = (np.arange(rows, dtype=np.float32)[:, None] + 0.5) / height
    soft = cv2.GaussianBlur(mirrored, (0, 0), max(rough * height, 0.4))
    mix = np.clip(below / 0.12, 0, 1)[..., None]
    mirrored = mirrored * (1 - mix) + soft * mix
    weight = mirrored[..., 3]
    colours[bottom : bottom + rows] = mirrored[..., :3] / np.maximum(weight, 1e-3)[..., None]
    share[bottom : bottom + rows] = gloss * weight * np.exp(-below / 0.22)
    return colours, share


def out_of_focus(image: Image, grid: Grid, view: View, aperture: float) -> Image:
    """Blur `image` (H, W, 3) by each row's distance from the ground line; far away by at most `aperture`."""
    if aperture <= 0:
        return image
    circle = np.abs(1 - 1 / view.distance(grid.y[:, :1])) * aperture * grid.height
    if circle.max() < 0.5:
        return image
    return _blurred_by(image, np.broadcast_to(circle, image.shape[:2]), grid.height)


def _blurred_by(image: Image, sigma: Image, height: int) -> Image:
    """`image` blurred by `sigma` (H, W) px, between the nearest two of five strengths."""
    largest = float(sigma.max())
    strengths = [0.0, *(s for s in (0.008 * height, 0.02 * height, 0.05 * height, 0.12 * height) if s < largest)]
    strengths.append(largest)
    found: Image = np.zeros_like(image, np.float32)
    for n, strength in enumerate(strengths):
        weight: Image = np.ones_like(sigma)
        if n > 0:
            weight = np.clip((sigma - strengths[n - 1]) / (strength - strengths[n - 1]), 0, 1)
        if n + 1 < len(strengths):
            weight = weight - np.clip((sigma - strength) / (strengths[n + 1] - strength), 0, 1)
        if not weight.any():
            continue
        blurred = _gaussian(image, strength) if strength > 0.3 else image
        found += blurred * (weight[..., None] if image.ndim == 3 else weight)
    return found


def _gaussian(image: Image, sigma: float) -> Image:
    """A gaussian blur; a wide one at a quarter of the size."""
    if sigma < 6:
        return cv2.GaussianBlur(image, (0, 0), sigma, borderType=cv2.BORDER_REPLICATE)
    height, width = image.shape[:2]
    small = cv2.resize(image, (max(width // 4, 1), max(height // 4, 1)), interpolation=cv2.INTER_AREA)
    blurred = cv2.GaussianBlur(small, (0, 0), sigma / 4, borderType=cv2.BORDER_REPLICATE)
    return cv2.resize(blurred, (width, height), interpolation=cv2.INTER_LINEAR)
