"""A backdrop on a channel's canvas: which part of the picture is shown, where in it the ground is, what falls on it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import cv2
import numpy as np
from PIL import Image

from pipelines.errors import Rejected
from pipelines.vision.light import relight
from pipelines.vision.photos import read_photo
from pipelines.vision.placement import LaidProduct
from pipelines.vision.shadow import hanging_shadow, reflection, standing_shadow


@dataclass(frozen=True, slots=True)
class BackdropSettings:
    """What a scene says of one picture. Lengths are shares of the picture's sides, y from the top.

    ground_line: where a foot stands. foot: from where to where there is ground on that line. ground: the ground's
    corners, or none: unknown. wanted_line: where on the canvas the line should be if the picture leaves a choice.
    light_from: "left", "right" or "front". light_elevation: degrees. reflection, shadow: 0..1.
    """

    ground_line: float
    foot: tuple[float, float] = (0.0, 1.0)
    ground: tuple[tuple[float, float], ...] = ()
    wanted_line: float = 0.86
    light_from: str = "front"
    light_elevation: float = 40.0
    reflection: float = 0.0
    mode: str = "adjust"
    shadow: float = 1.0

    @classmethod
    def from_parameters(cls, parameters: Mapping[str, Any]) -> BackdropSettings:
        """From the parameters of a step, which are JSON."""
        foot, ground = tuple(parameters["foot"]), tuple((x, y) for x, y in parameters["ground"])
        return cls(**{**parameters, "foot": foot, "ground": ground})


@dataclass(frozen=True, slots=True)
class LaidBackdrop:
    """A backdrop at canvas size.

    pixels: (H, W, 3) uint8. ground: (H, W) float32, 1 = ground that a shadow may fall on. line: the ground line, px
    from the top. foot: from where to where the ground reaches on that line, px. wall: where the wall behind ends, px.
    """

    settings: BackdropSettings
    pixels: np.ndarray
    ground: np.ndarray
    line: float
    foot: tuple[float, float]
    wall: float

    def shaded(self, product: LaidProduct, anchor: str) -> LaidBackdrop:
        """The backdrop with the shadow that the product casts, and its reflection where the ground is glossy.

        anchor: "ground" where it stands, "centre" where it hangs.
        """
        asked = self.settings
        if anchor != "ground":
            shade = hanging_shadow(product.matte, asked.light_from, asked.shadow)
            return replace(self, pixels=relight(self.pixels, shade[..., None]))
        shade = standing_shadow(
            product.matte, asked.light_from, asked.light_elevation, self.ground, strength=asked.shadow
        )
        pixels = relight(self.pixels, shade[..., None])
        if asked.reflection:
            colours, opacity = reflection(product.colour, product.matte, self.ground)
            share = (asked.reflection * opacity)[..., None]
            pixels = np.rint(pixels * (1 - share) + colours * share).astype(np.uint8)
        return replace(self, pixels=pixels)

    def reduced(self, width: int, height: int) -> np.ndarray:
        """The pixels at a smaller size, (height, width, 3) uint8."""
        return cv2.resize(self.pixels, (width, height), interpolation=cv2.INTER_AREA)


@lru_cache(maxsize=2)
def lay_backdrop(data: bytes, canvas: tuple[int, int], settings: BackdropSettings) -> LaidBackdrop:
    """Fill a canvas of (width, height) px with a backdrop's file: as much of it as the canvas's shape allows.

    The middle of the ground is in the middle where the picture is wide enough; the ground line where the scene wants it
    where the picture is high enough. The last two results are kept, because every shot of a scene needs the same one;
    so their arrays are read-only. Raises Rejected where the file is no picture.
    """
    try:
        image = read_photo(data).image()
    except Rejected as error:
        said = error.reason.replace("the photo", "the picture")
        raise Rejected(f"the scene's backdrop cannot be read: {said}") from None
    scale = max(canvas[0] / image.width, canvas[1] / image.height)
    shown = canvas[0] / scale, canvas[1] / scale
    middle = (settings.foot[0] + settings.foot[1]) / 2 * image.width
    line = settings.ground_line * image.height
    left = min(max(middle - shown[0] / 2, 0), image.width - shown[0])
    top = min(max(line - settings.wanted_line * shown[1], 0), image.height - shown[1])
    pixels = np.asarray(image.resize(canvas, Image.Resampling.LANCZOS, (left, top, left + shown[0], top + shown[1])))
    corners = [((x * image.width - left) * scale, (y * image.height - top) * scale) for x, y in settings.ground]
    ends = [min(max((x * image.width - left) * scale, 0.0), float(canvas[0])) for x in settings.foot]
    line = (line - top) * scale
    corners = corners or _unknown_ground(canvas, line)
    wall = max(min(y for _, y in corners), WALL * canvas[1])
    ground = _ground(canvas, corners)
    for kept in (pixels, ground):
        kept.flags.writeable = False
    return LaidBackdrop(settings, pixels, ground, line, (ends[0], ends[1]), wall)


UNKNOWN_DEPTH = 0.2
"""Where no polygon says how far the ground reaches: above the ground line by this share of the height."""

WALL = 0.4
"""A wall that ends further up than this is too low to hang something on: the product hangs before the ground too."""

CLIMB = 0.035
"""Over such a share of the height a shadow fades that climbs the wall behind a floor."""

SOFT_EDGE = 0.004
"""Over such a share of the shorter side the ground's edge fades: no shadow ends in a hard line there."""


def _unknown_ground(canvas: tuple[int, int], line: float) -> list[tuple[float, float]]:
    width, height = canvas
    top = line - UNKNOWN_DEPTH * height
    return [(0, top), (width, top), (width, height), (0, height)]


def _ground(canvas: tuple[int, int], corners: Sequence[tuple[float, float]]) -> np.ndarray:
    width, height = canvas
    mask = np.zeros((height, width), np.uint8)
    cv2.fillPoly(mask, [np.rint(np.array(corners) * 16).astype(np.int32)], 255, cv2.LINE_AA, shift=4)
    if min(x for x, _ in corners) <= 0 and max(x for x, _ in corners) >= width:  # a floor: a wall begins where it ends
        climbing = cv2.GaussianBlur(mask, (0, 0), sigmaX=1, sigmaY=CLIMB * height, borderType=cv2.BORDER_REPLICATE)
        mask = np.maximum(mask, climbing)
    return cv2.GaussianBlur(mask, (0, 0), SOFT_EDGE * min(canvas), borderType=cv2.BORDER_REPLICATE) / np.float32(255)
