"""Procedural packshots: a product on a floor against a wall, and the caption that says exactly what was drawn.

    scene = draw_scene(rng)                                   # every visible choice is a field
    shot = compose(scene, (256, 256), product, rng)           # image, product mask (1 = product), caption

A composed scene is the training picture of the bundled `mini` models and the ground truth of the product's outline.
Whatever the caption names is there and whatever it names has that colour; nothing depends on the picture's size but its
sharpness. All maps are float32 in 0..1, rows first; lengths inside a scene are fractions of the picture's height.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import cv2
import numpy as np

from pipelines.training import props
from pipelines.training.props import BEHIND, BESIDE, SUPPORTS, Solid
from pipelines.training.shading import Sun, View, cast_shadow, occlusion, out_of_focus, reflected
from pipelines.training.textures import Grid, Image, noise, surface

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
GLOSS = {"planks": 0.1, "marble": 0.3, "stone": 0.03, "linen": 0.0, "paper": 0.02, "plaster": 0.02}
"""How much of a mirror a surface is."""

WALL_MATERIALS = ("concrete", "linen")
LIGHTS = ("left", "right", "front")
PROPS = {
    "none": 0.22,
    "podium": 0.14,
    "ball": 0.07,
    "window": 0.11,
    "plant": 0.09,
    "arch": 0.1,
    "plinth": 0.06,
    "books": 0.05,
    "vase": 0.05,
    "blinds": 0.05,
    "disc": 0.04,
    "curtain": 0.02,
}
"""Every prop, and how often it is drawn."""

ROOM, BESIDE_ROOM = 0.8, 0.42
"""Of the picture's width: a product has so much, and so much where something is beside it that must be seen."""


@dataclass(frozen=True, slots=True)
class ComposedProduct:
    """A cut-out product: `rgb` (H, W, 3) and `alpha` (H, W), float32 0..1, cropped to it; `name` for the caption."""

    name: str
    rgb: Image
    alpha: Image


@dataclass(frozen=True, slots=True)
class ComposedScene:
    """What is in a picture. The words are the caption's; lengths are fractions of the picture's height.

    Attributes:
        wall, floor, light, prop, accent: Named in the caption; `accent` is the prop's colour.
        horizon: The row of the seam between floor and wall.
        softness: Half the width of that seam: a sweep of paper has a wide one.
        ground: The row that the product stands on.
        product_height, product_x: Its height, and its middle as a share of the width.
        strength: How much the light falls off, 0..1.
        warmth: Of the light, -0.05..0.05; positive is warmer.
        eye: How far the camera's own horizon is above the seam: the higher the camera, the more is seen of the floor.
        bearing: Degrees between the camera and the light; ninety is from the very side, more is from behind.
        elevation: Of the light, degrees.
        size: Of the light: how fast shadows soften.
        depth: Of shadows, 0..1.
        aperture: Blur of what is far away.
    """

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
    eye: float = 0.2
    bearing: float = 65.0
    elevation: float = 48.0
    size: float = 0.1
    depth: float = 0.55
    aperture: float = 0.0

    @property
    def sun(self) -> Sun:
        """The light."""
        azimuth = {"left": -self.bearing, "right": self.bearing, "front": 0.3 * (self.bearing - 65)}[self.light]
        return Sun(azimuth, self.elevation, self.size, self.depth)

    def view(self, ground: float) -> View:
        """The camera, with the floor's line at the product's distance."""
        return View(self.horizon, self.horizon - self.eye, ground, focal=2.2)


@dataclass(frozen=True, slots=True)
class ComposedShot:
    """A composed picture: `image` (H, W, 3), `mask` (H, W; 1 = product), float32 0..1, and the truthful `caption`."""

    image: Image
    mask: Image
    caption: str


def draw_scene(rng: np.random.Generator) -> ComposedScene:
    """Draw a scene: named wall and floor, side of the light, at most one prop, camera, and where the product stands.

    Camera, shadows and focus are drawn by a child of `rng`: what `rng` draws next does not depend on them, so scenes
    that an experiment was made of keep their words.
    """
    wall = str(rng.choice(WALL_MATERIALS)) if rng.random() < 0.12 else str(rng.choice(list(COLOURS)))
    floor = str(rng.choice(list(MATERIALS))) if rng.random() < 0.4 else str(rng.choice(list(COLOURS)))
    if rng.random() < 0.15 and wall in COLOURS:
        floor = wall  # the seamless paper of a studio
    accent = str(rng.choice([name for name in COLOURS if name not in (wall, floor)]))
    horizon = float(rng.uniform(0.5, 0.74))
    (own,) = rng.spawn(1)
    return ComposedScene(
        wall=wall,
        floor=floor,
        light=str(rng.choice(LIGHTS)),
        prop=str(rng.choice(list(PROPS), p=list(PROPS.values()))),
        accent=accent,
        horizon=horizon,
        softness=float(rng.choice([0.002, 0.03], p=[0.7, 0.3])),
        ground=float(rng.uniform(max(horizon + 0.1, 0.72), 0.93)),
        product_height=float(rng.uniform(0.34, 0.66)),
        product_x=float(0.5 + rng.normal(0, 0.05)),
        strength=float(rng.uniform(0.14, 0.3)),
        warmth=float(rng.uniform(-0.02, 0.04)),
        eye=float(np.exp(own.uniform(np.log(0.13), np.log(0.6)))),
        bearing=float(own.uniform(42, 88) if own.random() < 0.8 else own.uniform(95, 125)),
        elevation=float(own.uniform(36, 64)),
        size=float(np.exp(own.uniform(np.log(0.03), np.log(0.3)))),
        depth=float(own.uniform(0.4, 0.75)),
        aperture=float(own.choice([0.0, 0.008, 0.016, 0.026], p=[0.4, 0.25, 0.2, 0.15])),
    )


def caption_of(scene: ComposedScene, product: str | None) -> str:
    """Say what `scene` shows, in the fixed order product, floor, wall, light, prop. `product` None: an empty scene."""
    subject = f"a photo of {_with_article(product)}" if product else "a photo of an empty scene"
    place = f"standing on a {scene.accent} {scene.prop} on" if scene.prop in SUPPORTS else "on"
    words = f"{subject} {place} {_with_article(scene.floor)} floor against {_with_article(scene.wall)} wall"
    words += f", soft light from the {scene.light}"
    extra = {
        "ball": f", a {scene.accent} ball beside it",
        "vase": f", a {scene.accent} vase beside it",
        "books": f", {scene.accent} books beside it",
        "window": ", window light on the wall",
        "blinds": ", striped light on the wall",
        "plant": ", plant shadow on the wall",
        "arch": f", a {scene.accent} arch behind it",
        "disc": f", a {scene.accent} disc behind it",
        "curtain": f", a {scene.accent} curtain behind it",
    }
    return words + extra.get(scene.prop, "")


def compose(
    scene: ComposedScene, size: tuple[int, int], product: ComposedProduct | None, rng: np.random.Generator
) -> ComposedShot:
    """Render `scene` at `size` (height, width) px with `product` on its ground line.

    The image equals the resized product exactly where the mask is 1, so the mask is exact. `rng` draws only texture and
    the shape of the props: the same generator state gives the same picture, bit for bit.
    """
    grid = Grid(*size)
    ground, tall = scene.ground, 0.0
    if scene.prop in SUPPORTS:
        ground, tall = min(ground, 0.84), float(rng.uniform(0.1, 0.17))
    view = scene.view(ground + tall)
    image = backdrop(scene, grid, view, rng)
    on = replace(view, ground=ground)
    support = None
    if scene.prop in SUPPORTS:
        support = SUPPORTS[scene.prop](grid, on, scene.sun, _colour(scene.accent), scene.product_x * grid.aspect, tall)
        image = _stand(image, support, scene, grid, view)
    if scene.prop in BESIDE:
        side = {"left": 1, "right": -1}.get(scene.light, int(rng.choice([-1, 1])))
        x = (0.5 + side * float(rng.uniform(0.28, 0.34))) * grid.aspect
        beside = replace(view, ground=ground - float(rng.uniform(0.0, 0.02)))
        thing = BESIDE[scene.prop](grid, beside, scene.sun, _colour(scene.accent), x, rng)
        image = _stand(image, thing, scene, grid, view)
    return lay(image, scene, grid, on, product, within=support.top if support else None)


def lay(
    image: Image,
    scene: ComposedScene,
    grid: Grid,
    view: View,
    product: ComposedProduct | None,
    within: Image | None = None,
    gloss: float | None = None,
) -> ComposedShot:
    """Stand `product` on the view's ground line in the finished set `image` (H, W, 3), with its shadows.

    `within` (H, W) is 1 where its ground is, outside of which little is seen of them. `gloss` is how much of a mirror
    that ground is, where it is not the scene's floor or prop.
    """
    size = (grid.height, grid.width)
    if product is None:
        return ComposedShot(_photographic(image, scene), np.zeros(size, np.float32), caption_of(scene, None))
    room = BESIDE_ROOM if scene.prop in BESIDE else ROOM
    rgb, alpha = place(product, size, scene.product_height, scene.product_x, view.ground, room)
    solid = Solid(rgb, alpha, view.ground)
    image = _photographic(_grounded(image, solid, scene, grid, view, within=within, gloss=gloss), scene)
    image = image * (1 - alpha[..., None]) + rgb * alpha[..., None]
    return ComposedShot(image.astype(np.float32), alpha, caption_of(scene, product.name))


def draw_around(scene: ComposedScene, alpha: Image, ground: float, rng: np.random.Generator) -> Image:
    """`scene` (H, W, 3) with the shadows of a product that is laid already, `alpha` (H, W) with its foot on `ground`.

    Props on the floor are left out.
    """
    grid, view = Grid(*alpha.shape), scene.view(ground)
    image = backdrop(scene, grid, view, rng)
    hidden = Solid(np.zeros((*alpha.shape, 3), np.float32), alpha, ground)
    return _photographic(_grounded(image, hidden, scene, grid, view, gloss=0.0), scene)


def place(
    product: ComposedProduct,
    size: tuple[int, int],
    product_height: float,
    centre_x: float,
    ground: float,
    room: float,
) -> tuple[Image, Image]:
    """Resize `product` and stand it on `ground` (fraction of the height).

    Returns the colours (H, W, 3) and the alpha (H, W) on a canvas of `size`; wide products are limited to
    `room` of its width.
    """
    height, width = size
    rows, columns = product.alpha.shape
    scale = min(product_height * height / rows, room * width / columns, (ground - 0.04) * height / rows)
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


def backdrop(scene: ComposedScene, grid: Grid, view: View, rng: np.random.Generator) -> Image:
    """Wall and floor with their textures, the light, and the props that belong to the wall, as far as they are in
    focus. Returns (H, W, 3)."""
    sun = scene.sun
    far = view.wall
    middle = grid.x - 0.5 * grid.aspect
    wall = _surface(scene.wall, grid, middle * far, grid.y * far, np.full((grid.height, 1), far, np.float32), rng)
    z = view.distance(grid.y)
    floor = _surface(scene.floor, grid, middle * z, view.focal * z, z[:, :1], rng)
    if scene.prop == "arch":
        wall = props.arch(wall, grid, sun, _colour(scene.accent))
    wall = wall * _wall_light(scene, grid, rng)[..., None]
    if scene.prop in ("window", "blinds"):
        shine = (props.window if scene.prop == "window" else props.blinds)(grid, sun, rng)
        wall = wall * (0.93 + shine[..., None] * np.array([0.42, 0.36, 0.25], np.float32))
    if scene.prop == "plant":
        wall = wall * (1 - 0.36 * props.plant(grid, sun, rng)[..., None])
    floor = floor * _floor_light(scene, grid)[..., None]
    floor = _sheen(floor, wall, scene, grid)
    is_floor = np.clip((grid.y - scene.horizon) / scene.softness * 0.5 + 0.5, 0, 1)
    # A wall meets a floor in a thin dark line, and each takes light from the other; a sweep of paper hardly does.
    off = grid.y - scene.horizon
    hard = scene.softness < 0.01
    seam = np.exp(-((off / (0.01 + scene.softness)) ** 2)) * (0.12 if hard else 0.04)
    seam = seam + (0.1 if hard else 0.04) * np.exp(-np.abs(off) / 0.07)
    image = (wall * (1 - is_floor[..., None]) + floor * is_floor[..., None]) * (1 - seam[..., None])
    if scene.prop in BEHIND:
        behind = BEHIND[scene.prop](grid, view, sun, _colour(scene.accent), scene.product_x * grid.aspect, rng)
        image = _stand(image, behind, scene, grid, view)
    return out_of_focus(image.astype(np.float32), grid, view, scene.aperture)


def _stand(image: Image, solid: Solid, scene: ComposedScene, grid: Grid, view: View) -> Image:
    """`image` with an object on the floor, its shadows and its image in it."""
    image = _grounded(image, solid, scene, grid, replace(view, ground=solid.ground))
    return image * (1 - solid.alpha[..., None]) + solid.rgb * solid.alpha[..., None]


def _grounded(
    image: Image,
    solid: Solid,
    scene: ComposedScene,
    grid: Grid,
    view: View,
    within: Image | None = None,
    gloss: float | None = None,
) -> Image:
    """`image` with the shadows, the occlusion and the reflection of an object, without the object.

    `within` and `gloss` as in `lay`.
    """
    own, rough = _gloss(scene)
    shadow = cast_shadow(solid.alpha, grid, view, scene.sun)
    dark = occlusion(solid.alpha, grid, view)
    if within is not None:
        shadow, dark = shadow * (0.15 + 0.85 * within), dark * within
        own, rough = 0.05, 0.03
    light = (1 - scene.depth * shadow) * (1 - 0.85 * dark)
    # What the key light does not reach is lit by the room: a little bluer.
    tint = 1 - (1 - light)[..., None] * np.array([1.0, 0.99, 0.95], np.float32)
    image = image * tint
    gloss = own if gloss is None else gloss
    if gloss > 0:
        colours, share = reflected(solid.rgb, solid.alpha, grid, view, gloss, rough)
        if within is not None:
            share = share * within
        image = image * (1 - share[..., None]) + colours * share[..., None]
    return image


def _gloss(scene: ComposedScene) -> tuple[float, float]:
    """How much of a mirror the floor is, and how rough."""
    texture = MATERIALS[scene.floor][1] if scene.floor in MATERIALS else "paper"
    gloss = GLOSS[texture] * float(np.clip(1.3 - scene.eye, 0.6, 1.2))
    return gloss, 0.012 if texture == "marble" else 0.03


def _surface(name: str, grid: Grid, u: Image, v: Image, density: Image, rng: np.random.Generator) -> Image:
    """A named colour or material over its coordinates, (H, W, 3)."""
    if name in COLOURS:
        return surface(COLOURS[name], "plaster" if rng.random() < 0.4 else "paper", grid, u, v, density, rng)
    rgb, texture = MATERIALS[name]
    return surface(rgb, texture, grid, u, v, density, rng)


def _colour(name: str) -> Image:
    return np.array(COLOURS[name], np.float32) / 255


def _with_article(words: str | None) -> str:
    words = words or ""
    if words in COLOURS or words in MATERIALS:
        return f"{'an' if words.startswith('oak') else 'a'} {words}"
    return f"{'an' if words[:1].lower() in 'aeiou' else 'a'} {words}"


def _light_x(scene: ComposedScene, grid: Grid) -> float:
    return {"left": 0.06, "right": 0.94, "front": 0.5}[scene.light] * grid.aspect


def _wall_light(scene: ComposedScene, grid: Grid, rng: np.random.Generator) -> Image:
    """A large pool of light, brightest on the light's side, and the corners a little darker."""
    x, y = (grid.x - _light_x(scene, grid)) / grid.aspect, grid.y - float(rng.uniform(0.2, 0.42))
    pool = np.exp(-((x / 0.66) ** 2 + (y / float(rng.uniform(0.55, 0.85))) ** 2))
    corner = ((grid.x / grid.aspect - 0.5) ** 2 + (grid.y - 0.5) ** 2) * 0.16
    return 1 - scene.strength + scene.strength * 1.35 * pool - corner + 0.01 * noise(grid, (3, 3), rng)


def _floor_light(scene: ComposedScene, grid: Grid) -> Image:
    distance = ((grid.x - _light_x(scene, grid)) / (0.8 * grid.aspect)) ** 2
    corner = ((grid.x / grid.aspect - 0.5) ** 2 + (grid.y - 0.5) ** 2) * 0.12
    near = 0.2 * (grid.y - scene.horizon)
    return 1 - 0.6 * scene.strength + scene.strength * (0.75 * np.exp(-distance) + near) - corner


def _sheen(floor: Image, wall: Image, scene: ComposedScene, grid: Grid) -> Image:
    """A glossy floor with the wall's image in it, blurred, the more the flatter it is seen."""
    gloss, _ = _gloss(scene)
    if gloss < 0.05:
        return floor
    seam = int(np.clip(round(scene.horizon * grid.height), 1, grid.height - 1))
    rows = min(grid.height - seam, seam)
    image = cv2.GaussianBlur(wall[seam - rows : seam][::-1].astype(np.float32), (0, 0), 0.04 * grid.height)
    share = 0.7 * gloss * np.exp(-(np.arange(rows, dtype=np.float32) / grid.height) / 0.12)[:, None, None]
    mixed = floor.copy()
    mixed[seam : seam + rows] = floor[seam : seam + rows] * (1 - share) + image * share
    return mixed


def _photographic(image: Image, scene: ComposedScene) -> Image:
    """The light's warmth, highlights rolled off as a camera does, clipped to 0..1."""
    image = image * np.array([1 + scene.warmth, 1.0, 1 - scene.warmth], np.float32)
    return np.clip(np.where(image > 0.9, 0.9 + 0.1 * np.tanh((image - 0.9) / 0.1), image), 0, 1).astype(np.float32)


def mirrored(product: ComposedProduct) -> ComposedProduct:
    """The product seen from the other side, for augmentation."""
    return replace(
        product, rgb=np.ascontiguousarray(product.rgb[:, ::-1]), alpha=np.ascontiguousarray(product.alpha[:, ::-1])
    )
