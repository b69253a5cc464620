"""The shadow that a product casts, drawn from its silhouette alone: what a retoucher paints on the layer below it.

The shadow of a standing product has three parts: a thin dark line where it touches the ground, shade around its foot,
which the ambient light does not reach, and a long faint part on the side away from the light. The long part gets softer
with the distance from the foot. A product that hangs, or lies below the camera, has a soft shadow close behind it.

    shade = standing_shadow(matte, "left", 40.0, ground)     # (H, W) float32, 1 = unshaded
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np
from scipy.signal import find_peaks

SIDES = {"left": 1.0, "front": 0.0, "right": -1.0}
"""Into which direction of x the shadow falls, by the side from which the light comes."""

FORESHORTENING = 0.2
"""Height over width of a circle on the ground, as the camera sees it: a camera that looks down by 11 degrees."""


@dataclass(frozen=True, slots=True)
class Feet:
    """Where a product touches the ground, by column of its picture.

    columns: (n,) int, those that the product has pixels in. base: (n,) float, the row of the ground below it. touch:
    (n,) float, 1 = it stands there, 0 = it is above the ground. width, tall: of the product, px.
    """

    columns: np.ndarray
    base: np.ndarray
    touch: np.ndarray
    width: float
    tall: float


def find_feet(matte: np.ndarray) -> Feet | None:
    """Read from the silhouette (H, W) uint8 where the product stands; None where it has no opaque pixel.

    The lowest parts of the outline touch. A narrow peak of the outline is a leg, and touches though it is further up:
    it stands further back.
    """
    solid = matte >= 128
    columns = np.flatnonzero(solid.any(axis=0))
    if columns.size == 0:
        return None
    height = matte.shape[0]
    lowest = height - 1 - solid[::-1, columns].argmax(axis=0).astype(np.float64)
    width, tall = float(columns.size), float(np.ptp(np.flatnonzero(solid.any(axis=1))) + 1)
    above = lowest.max() - lowest
    touch = np.exp(-((above / max(1.0, 0.04 * min(width, 2 * tall))) ** 2))
    reach = 0.4 * min(width, tall)
    edge = [lowest.max() - 2 * reach - 2]
    legs, _ = find_peaks(
        np.concatenate([edge, lowest, edge]), prominence=max(2.0, 0.04 * width), plateau_size=(1, max(1, width // 4))
    )
    for leg in {int(lowest.argmax()), *(legs - 1)}:
        if above[leg] < reach:
            first, last = _along(lowest, leg, -1), _along(lowest, leg, 1)
            touch[first : last + 1] = 1.0
            near = np.abs(np.arange(columns.size) - leg) < 0.15 * width
            touch = np.where(near, np.maximum(touch, np.exp(-(((lowest[leg] - lowest) / (0.02 * width)) ** 2))), touch)
    touch = _smooth(touch, 0.006 * width)
    stands = touch > 0.5
    base = np.interp(columns, columns[stands], lowest[stands])
    return Feet(columns, np.maximum(base, lowest), touch, width, tall)


def _smooth(values: np.ndarray, width: float) -> np.ndarray:
    """A blur along a line of columns (n,)."""
    row = cv2.GaussianBlur(values[None], (0, 0), sigmaX=max(0.5, width), borderType=cv2.BORDER_REPLICATE)
    return np.asarray(row[0])


STEEPEST, JUMP = 0.6, 0.025
"""How steeply a product's base may recede in the picture, and by which share of the width its outline may jump."""


def _along(lowest: np.ndarray, start: int, step: int) -> int:
    """Follow the base from column `start` to the left (-1) or right (1) as far as it touches; its last column.

    The base of a box recedes in a straight line, and touches all along; the outline of a ball soon rises steeply.
    """
    stride = max(1, lowest.size // 50)
    passed = [start]
    while 0 <= (column := passed[-1] + step * stride) < lowest.size:
        behind = passed[max(0, len(passed) - 5)]
        if abs(lowest[behind] - lowest[column]) > STEEPEST * abs(column - behind) + JUMP * lowest.size:
            break
        passed.append(column)
    return passed[-1]


def standing_shadow(
    matte: np.ndarray, light_from: str, elevation: float, ground: np.ndarray | None = None, strength: float = 1.0
) -> np.ndarray:
    """The shadow of a standing product as a factor on the ground's brightness.

    Args:
        matte: (H, W) uint8, 255 = product, where it stands on the canvas.
        light_from: "left", "right" or "front".
        elevation: Of the light above the ground, degrees: the lower, the longer the shadow.
        ground: (H, W) float32, 1 = a shadow may fall there; None: everywhere.
        strength: 0 = none, 1 = as in a softly lit studio.

    Returns:
        (H, W) float32, 0..1, 1 = unshaded.
    """
    feet = find_feet(matte)
    if feet is None:
        return np.ones(matte.shape, np.float32)
    far = 1 - strength * 0.5 * _cast(matte, feet, light_from, elevation)
    ambient = 1 - strength * 0.45 * _ambient(matte, feet, light_from)
    light = far * ambient
    if ground is not None:
        light = 1 - (1 - light) * ground
    # the contact itself is where the product is, whatever the ground's outline says
    return (light * (1 - strength * 0.7 * _contact(matte, feet))).astype(np.float32)


def hanging_shadow(matte: np.ndarray, light_from: str, strength: float = 1.0) -> np.ndarray:
    """The shadow of a product that hangs before a wall or lies below the camera; see `standing_shadow`."""
    side = min(matte.shape)
    alpha = matte.astype(np.float32) / 255
    away = SIDES[light_from]
    soft = _moved(cv2.GaussianBlur(alpha, (0, 0), 0.014 * side), 0.018 * side * away, 0.02 * side)
    close = _moved(cv2.GaussianBlur(alpha, (0, 0), 0.003 * side), 0.003 * side * away, 0.005 * side)
    return ((1 - strength * 0.36 * soft) * (1 - strength * 0.2 * close)).astype(np.float32)


def _moved(values: np.ndarray, x: float, y: float) -> np.ndarray:
    matrix = np.array([[1, 0, x], [0, 1, y]], np.float32)
    return cv2.warpAffine(values, matrix, values.shape[::-1], borderMode=cv2.BORDER_CONSTANT)


def _contact(matte: np.ndarray, feet: Feet) -> np.ndarray:
    """The dark line at the foot, (H, W) float32, 0..1: hugs the outline wherever it touches."""
    side = min(matte.shape)
    line = np.zeros(matte.shape, np.float32)
    thick = max(1, round(0.006 * side))
    rows = np.rint(_lowest(matte, feet)).astype(int)
    for offset in range(-thick, thick + 1):
        at = np.clip(rows + offset, 0, matte.shape[0] - 1)
        line[at, feet.columns] = np.maximum(line[at, feet.columns], feet.touch)
    sharp = cv2.GaussianBlur(line, (0, 0), 0.0022 * side)
    soft = cv2.GaussianBlur(line, (0, 0), sigmaX=0.012 * side, sigmaY=0.005 * side)
    return np.clip(0.75 * sharp + 0.7 * soft, 0, 1)


def _lowest(matte: np.ndarray, feet: Feet) -> np.ndarray:
    solid = matte[:, feet.columns] >= 128
    return matte.shape[0] - 1 - solid[::-1].argmax(axis=0)


def _footprint(matte: np.ndarray, feet: Feet) -> np.ndarray:
    """How much of the sky the product hides from the ground: the hull of where it touches, (H, W) float32, 0..1.

    Below a chair there is more light than below a box.
    """
    stands = feet.touch > 0.3
    lowest = _lowest(matte, feet)
    points = np.stack([feet.columns[stands], lowest[stands]], 1)
    # what touches in one line reaches as far back as a product is deep
    depth = 0.25 * FORESHORTENING * np.ptp(points[:, 0])
    points = np.concatenate([points, points - [0, depth]]).astype(np.float32)
    mask = np.zeros(matte.shape, np.float32)
    cv2.fillConvexPoly(mask, np.rint(cv2.convexHull(points)).astype(np.int32), 1.0)
    hidden = np.zeros(matte.shape[1], np.float32)
    hidden[feet.columns] = 0.35 + 0.65 * np.exp(-(feet.base - lowest) / (0.1 * feet.width))
    return mask * _smooth(hidden, 0.03 * feet.width)


LIT_SIDE = 0.6
"""By so much the shade around the foot is weaker on the side of the light, and stronger on the other."""


def _ambient(matte: np.ndarray, feet: Feet, light_from: str) -> np.ndarray:
    """The shade around and below the foot, (H, W) float32, 0..1, a little heavier away from the light."""
    covered = _footprint(matte, feet)
    touching = np.zeros(matte.shape, np.float32)
    rows = np.rint(_lowest(matte, feet)).astype(int)
    for offset in range(max(2, round(0.012 * feet.width))):
        touching[np.maximum(rows - offset, 0), feet.columns] = feet.touch
    spread = 0.05 * min(feet.width, feet.tall) + 0.006 * min(matte.shape)
    wide = _blurred(covered, spread, spread * 0.45)
    close = _blurred(touching, spread * 0.3, spread * 0.16)
    moved = _moved(np.maximum(wide, close), 0.45 * spread * SIDES[light_from], 0.15 * spread)
    across = (np.arange(matte.shape[1]) - feet.columns.mean()) / (0.5 * feet.width)
    lit = 1 + LIT_SIDE * SIDES[light_from] * np.clip(across, -1, 1)
    return np.clip(moved * 1.25 * lit.astype(np.float32)[None], 0, 1)


LAYERS = 7
"""Into so many slices the product is cut, by height: each is softer and fainter than the one below it."""


def _cast(matte: np.ndarray, feet: Feet, light_from: str, elevation: float) -> np.ndarray:
    """The shadow on the ground, (H, W) float32, 0..1, worked out on a canvas of about 256 px.

    A point h above the ground throws its shadow h / tan(elevation) away from the light. Light from the left or right
    comes from before the product too, so that its shadow leads back, which the camera sees foreshortened.
    """
    shrink = max(1.0, min(matte.shape) / 256)
    size = (round(matte.shape[1] / shrink), round(matte.shape[0] / shrink))
    solid = cv2.resize(matte, size, interpolation=cv2.INTER_AREA) >= 128
    columns = np.flatnonzero(solid.any(axis=0))
    if columns.size == 0:
        return np.zeros(matte.shape, np.float32)
    base = np.interp(columns, feet.columns / shrink, feet.base / shrink)
    width, tall = float(columns.size), base.max() - np.flatnonzero(solid.any(axis=1))[0]
    reach = min(1 / math.tan(math.radians(elevation)), 1.5)
    sideways = reach * 0.85 * SIDES[light_from]
    back = reach * (0.5 if light_from != "front" else 0.75) * FORESHORTENING
    deep = np.ones((1 + 2 * round(0.15 * FORESHORTENING * min(width, tall)), 1), np.uint8)
    layers = np.zeros((size[1], size[0]), np.float32)
    for heights in np.array_split(np.arange(0, tall, 0.7), LAYERS):
        drawn = np.zeros((size[1], size[0]), np.float32)
        for h in heights:
            present = solid[np.clip(np.rint(base - h), 0, size[1] - 1).astype(int), columns]
            x = np.rint(columns[present] + sideways * h).astype(int)
            y = np.rint(base[present] - back * h).astype(int)
            inside = (x >= 0) & (x < size[0]) & (y >= 0) & (y < size[1])
            drawn[y[inside], x[inside]] = 1
        drawn = cv2.dilate(drawn, deep)
        middle = float(heights.mean()) if heights.size else 0.0
        blur = 0.7 + 0.012 * width + 0.09 * reach * middle
        soft = cv2.GaussianBlur(drawn, (0, 0), sigmaX=blur, sigmaY=max(0.6, 0.35 * blur))
        layers = np.maximum(layers, soft * math.exp(-middle / (0.9 * max(tall, 1))))
    layers = cv2.GaussianBlur(layers, (0, 0), 2.2)
    return cv2.resize(layers, matte.shape[::-1], interpolation=cv2.INTER_CUBIC).clip(0, 1)


def _blurred(values: np.ndarray, across: float, down: float) -> np.ndarray:
    """A wide blur, at a quarter of the size where it is wide enough."""
    if min(across, down) < 6:
        return cv2.GaussianBlur(values, (0, 0), sigmaX=max(across, 0.3), sigmaY=max(down, 0.3))
    size = (values.shape[1] // 4, values.shape[0] // 4)
    small = cv2.resize(values, size, interpolation=cv2.INTER_AREA)
    small = cv2.GaussianBlur(small, (0, 0), sigmaX=across / 4, sigmaY=down / 4)
    return cv2.resize(small, values.shape[::-1], interpolation=cv2.INTER_CUBIC).clip(0, 1)


def reflection(colour: np.ndarray, matte: np.ndarray, ground: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What a glossy ground shows of a product: mirrored at its foot, fading and blurring downwards.

    Args:
        colour: (H, W, 3) uint8. matte: (H, W) uint8. ground: (H, W) float32, 1 = ground.

    Returns:
        Colours (H, W, 3) float32 and their opacity (H, W) float32, 0..1, for a perfect mirror.
    """
    feet = find_feet(matte)
    height = matte.shape[0]
    if feet is None:
        return colour.astype(np.float32), np.zeros(matte.shape, np.float32)
    rows = np.arange(height, dtype=np.float32)[:, None]
    base = np.zeros(matte.shape[1], np.float32)
    base[feet.columns] = feet.base
    touch = np.zeros(matte.shape[1])
    touch[feet.columns] = feet.touch
    source = 2 * base[None, :] - rows
    across = np.broadcast_to(np.arange(matte.shape[1], dtype=np.float32)[None, :], matte.shape)
    source = np.where(rows > base[None, :], source, -1).astype(np.float32)
    shown = cv2.remap(colour, across, source, cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT).astype(np.float32)
    alpha = cv2.remap(matte, across, source, cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT).astype(np.float32) / 255
    tall = max(1.0, float(np.ptp(np.flatnonzero((matte >= 128).any(axis=1)))))
    depth = np.clip(rows - base[None, :], 0, None)
    fade = np.exp(-depth / (0.22 * tall)) * _smooth(touch, 0.02 * feet.width)
    blur = max(0.6, 0.0025 * min(matte.shape))
    opacity = cv2.GaussianBlur((alpha * fade).astype(np.float32), (0, 0), blur)
    premultiplied = cv2.GaussianBlur((shown * (alpha * fade)[..., None]).astype(np.float32), (0, 0), blur)
    return premultiplied / np.maximum(opacity, 1e-3)[..., None], opacity * ground
