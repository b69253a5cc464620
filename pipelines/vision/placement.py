"""Where a product stands on a channel's canvas, and the exact pixels that are laid there.

One placement serves the whole walk of a shot: at the channel's full size the product is laid over the finished scene,
and the same canvas, reduced, is what the sampler inpaints around. The source is resampled at most once, and not at all
where its size already suits, so a published product pixel can be re-derived from the photo (paper, section 1: step 4).
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from PIL import Image

OPAQUE = 253
"""Matte values (0..255) from here on count as the product's own, unmixed pixels: 0.99 of 255, rounded up."""

NATIVE_SPAN = (0.72, 1.08)
"""A product whose own size is within this share of the wanted size is laid down pixel by pixel, not resampled."""


@dataclass(frozen=True, slots=True)
class Placement:
    """The product's box in the photo (`source`: left, top, right, bottom) and on the canvas, in pixels.

    `resample` is "none" where width and height are the source's own, else "lanczos" (one pass).
    """

    canvas_width: int
    canvas_height: int
    source: tuple[int, int, int, int]
    left: int
    top: int
    width: int
    height: int
    resample: str

    def facts(self) -> dict[str, Any]:
        """The placement as JSON, for the ledger."""
        return asdict(self) | {"source": list(self.source)}

    @classmethod
    def from_facts(cls, facts: dict[str, Any]) -> Placement:
        """The inverse of `facts`."""
        return cls(**{**facts, "source": tuple(facts["source"])})


FOOT_ROWS = 0.06
"""The lowest share of a product's height: how wide it is there is how wide it stands."""


def place(
    matte: np.ndarray,
    canvas: tuple[int, int],
    scale: float,
    anchor: str,
    ground_line: float,
    ground: tuple[float, float] = (0.0, 1.0),
    wall: float = 1.0,
    exact: bool = False,
) -> Placement:
    """Choose where the product goes.

    matte: (H, W) uint8, 255 = product. canvas: (width, height) in px. scale: the product's longer side as a share of
    the canvas's shorter one, 0..1. anchor: "ground" puts its foot on `ground_line` (share of the height from the top),
    "centre" puts it in the middle. ground: from where to where there is ground on that line, shares of the width; a
    standing product is in its middle, and its foot no wider. wall: share of the height at which the wall ends that a
    product in the middle hangs on. exact: the size is `scale` itself, not one near it at which the product keeps its
    own pixels. The product never leaves the canvas.

    Raises ValueError for an empty matte (the cutout stage rejects those) or an unknown anchor.
    """
    if anchor not in ("ground", "centre"):
        raise ValueError(f"placement anchor {anchor!r}: expected 'ground' or 'centre'")
    rows, columns = np.flatnonzero((matte > 12).any(1)), np.flatnonzero((matte > 12).any(0))
    if rows.size == 0:
        raise ValueError("the matte is empty: there is no product to place")
    left, top, right, bottom = int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1
    width, height = right - left, bottom - top
    canvas_width, canvas_height = canvas
    wanted = scale * min(canvas)
    ratio = min(
        wanted / max(width, height),
        0.96 * canvas_width / width,
        (0.96 * wall if anchor == "centre" else max(0.1, ground_line - 0.03)) * canvas_height / height,
    )
    middle = 0.5
    if anchor == "ground" and ground != (0.0, 1.0):
        middle = (ground[0] + ground[1]) / 2
        low = (matte[max(top, bottom - max(1, round(FOOT_ROWS * height))) : bottom] > 12).any(0)
        ratio = min(ratio, 0.9 * (ground[1] - ground[0]) * canvas_width / (np.ptp(np.flatnonzero(low)) + 1))
    native = (
        not exact
        and NATIVE_SPAN[0] <= 1 / ratio <= NATIVE_SPAN[1]
        and width <= canvas_width
        and height <= canvas_height
    )
    if not native:
        width, height = max(1, round(width * ratio)), max(1, round(height * ratio))
    foot = round(ground_line * canvas_height) if anchor == "ground" else (round(wall * canvas_height) + height) // 2
    return Placement(
        canvas_width,
        canvas_height,
        (left, top, right, bottom),
        min(max(math.floor(middle * canvas_width - width / 2), 0), canvas_width - width),
        min(max(foot - height, 0), canvas_height - height),
        width,
        height,
        "none" if native else "lanczos",
    )


def lay(image: Image.Image, placement: Placement) -> Image.Image:
    """The source box of `image` (RGB or L, photo size) as it stands on the canvas: an image of (width, height)."""
    return _sized(image.crop(placement.source), placement)


def _sized(box: Image.Image, placement: Placement) -> Image.Image:
    if placement.resample == "none":
        return box
    return box.resize((placement.width, placement.height), Image.Resampling.LANCZOS)


@dataclass(frozen=True, slots=True)
class LaidProduct:
    """A product on an empty canvas. `colour` is (H, W, 3) and `matte` (H, W), both uint8 at canvas size.

    Where the matte is opaque the colours are the photo's; in the soft rim they are the cutout's decontaminated ones, so
    that no light of the old background shines around the product.
    """

    colour: np.ndarray
    matte: np.ndarray

    def over(self, scene: np.ndarray) -> np.ndarray:
        """The product composited over a scene, (H, W, 3) uint8. Opaque pixels are copied, not computed."""
        alpha = (self.matte.astype(np.float32) / 255)[..., None]
        mixed = np.rint(self.colour * alpha + scene * (1 - alpha)).astype(np.uint8)
        return np.where((self.matte >= OPAQUE)[..., None], self.colour, mixed)

    def reduced(self, width: int, height: int) -> tuple[Image.Image, Image.Image]:
        """Colour (premultiplied average, black outside) and matte at a smaller size, as RGB and L images."""
        alpha = Image.fromarray(self.matte).convert("F")
        small = np.asarray(alpha.resize((width, height), Image.Resampling.BOX))
        weighted = self.colour.astype(np.float32) * (self.matte.astype(np.float32) / 255)[..., None]
        channels = [
            np.asarray(Image.fromarray(weighted[..., c]).resize((width, height), Image.Resampling.BOX))
            for c in range(3)
        ]
        share = np.maximum(small / 255, 1e-3)[..., None]
        colour = np.where(small[..., None] > 0.5, np.stack(channels, -1) / share, 0)
        return (
            Image.fromarray(np.clip(np.rint(colour), 0, 255).astype(np.uint8)),
            Image.fromarray(np.clip(np.rint(small), 0, 255).astype(np.uint8)),
        )


def lay_photo(photo: Image.Image, placement: Placement, width: int, height: int) -> Image.Image:
    """The whole photo as it stands on the canvas when its product is laid there: RGB, reduced to width × height px.

    Unlike `lay` it keeps what surrounds the product. Where the canvas is larger than the photo, the photo's outermost
    pixels go on, so that its border is no edge of the picture.
    """
    left, top, right, bottom = placement.source
    ratio_x, ratio_y = (right - left) / placement.width, (bottom - top) / placement.height  # photo px in a canvas px
    step_x, step_y = ratio_x * placement.canvas_width / width, ratio_y * placement.canvas_height / height
    x, across, box_x = _seen(left - placement.left * ratio_x, step_x, width, photo.width)
    y, down, box_y = _seen(top - placement.top * ratio_y, step_y, height, photo.height)
    box = (box_x[0], box_y[0], box_x[1], box_y[1])
    seen = photo.convert("RGB").resize((across, down), Image.Resampling.BOX, box)
    margins = (y, height - y - down), (x, width - x - across), (0, 0)
    return Image.fromarray(np.pad(np.asarray(seen), margins, mode="edge"))


def _seen(origin: float, step: float, length: int, photo: int) -> tuple[int, int, tuple[float, float]]:
    """Along one axis of a canvas whose `length` pixels lie `step` photo pixels apart, from `origin` on: the pixels that
    are wholly on the photo (first, how many, at least one), and from where to where on the photo they reach."""
    first = min(max(0, math.ceil(-origin / step)), length - 1)
    last = max(min(length, math.floor((photo - origin) / step)), first + 1)
    return first, last - first, (max(0.0, origin + first * step), min(float(photo), origin + last * step))


def lay_product(photo: Image.Image, cutout: Image.Image, placement: Placement) -> LaidProduct:
    """Lay a product on an empty canvas. photo: RGB, cutout: RGBA, both at the photo's size."""
    box = cutout.crop(placement.source)  # cropped before anything is copied: photos are large
    matte = np.asarray(_sized(box.getchannel("A"), placement))
    clean = np.asarray(_sized(box.convert("RGB"), placement))
    own = np.asarray(_sized(photo.crop(placement.source).convert("RGB"), placement))
    colour = np.where((matte >= OPAQUE)[..., None], own, clean)
    canvas_colour = np.zeros((placement.canvas_height, placement.canvas_width, 3), np.uint8)
    canvas_matte = np.zeros((placement.canvas_height, placement.canvas_width), np.uint8)
    window = np.s_[placement.top : placement.top + placement.height, placement.left : placement.left + placement.width]
    canvas_colour[window], canvas_matte[window] = colour, matte
    return LaidProduct(canvas_colour, canvas_matte)
