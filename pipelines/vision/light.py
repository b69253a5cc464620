"""Light without detail: carry the shadow and the tint of a small painted picture to a backdrop of any size.

A shadow is smooth, a plank is not. What a diffusion model paints at its own size is too coarse for a page, but the
quotient of its picture and the picture that it began from is light alone: 1 where nothing changed, below 1 in a shadow.
The dividend is decoded by the same autoencoder as the painted picture, so that its errors cancel. The quotient is
enlarged smoothly and multiplied into the backdrop, whose texture stays what it is.

    light = light_between(painted, round_trip)       # at the model's size
    scene = relight(backdrop, light)                 # at the channel's size

Values are those of sRGB: a factor on them keeps hue and saturation, as a shadow on a real floor nearly does.
"""

from __future__ import annotations

import cv2
import numpy as np

SIGMA = 3 / 256
"""Blur of both pictures before they are divided, as a share of the shorter side."""

OFFSET = 8.0
"""Levels added to both, so that near black a grey level more or less is no light."""

COLOUR_SHARE = 0.25
"""How much of a channel's own quotient goes in; the rest is the luminance's, which carries no colour noise."""

DARKEST, BRIGHTEST = 0.25, 1.3
"""Bounds of the light. What is beyond them was painted there and is no light."""

REACH = 0.14
"""How far from the product light changes, as a share of the shorter side: there half of what was painted counts.
Beyond three times that the product changes nothing: what a model paints there is its opinion of the backdrop."""

GLOW = 0.5
"""How much of a brightening is believed: a product takes light away, and throws back a little."""

DOUBT = 1.5
"""How much of that opinion (its root mean square) is taken off everywhere: what is no stronger is not believed."""

UNIT = 32768
"""The 16-bit value that stands for light 1."""

LUMA = np.array([0.299, 0.587, 0.114], np.float32)


def light_between(
    painted: np.ndarray, before: np.ndarray, matte: np.ndarray, *, sigma: float = SIGMA, reach: float = REACH
) -> np.ndarray:
    """The light that was painted: by which factor each pixel's neighbourhood became darker or brighter.

    Args:
        painted: (H, W, 3) uint8, the painted scene without the product.
        before: (H, W, 3) uint8, the scene that the painting began from, through the same autoencoder, likewise.
        matte: (H, W) uint8, 255 = product.
        sigma: Blur, as a share of the shorter side.
        reach: See `REACH`.

    Returns:
        (H, W, 3) float32, DARKEST..BRIGHTEST, 1 = unchanged.
    """
    width = sigma * min(painted.shape[:2])
    after, first = (cv2.GaussianBlur(p.astype(np.float32), (0, 0), width) + OFFSET for p in (painted, before))
    luminance = ((after @ LUMA) / (first @ LUMA))[..., None]
    change = np.clip((1 - COLOUR_SHARE) * luminance + COLOUR_SHARE * after / first, DARKEST, BRIGHTEST) - 1
    if not (matte >= 128).any():
        return 1 + change
    away = cv2.distanceTransform((matte < 128).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    away = away[..., None] / (reach * min(matte.shape))
    doubt = DOUBT * np.sqrt((change**2).mean(where=away > 3)) if (away > 3).any() else 0.0
    believed = np.sign(change) * np.maximum(np.abs(change) - doubt, 0)
    believed = np.where(believed > 0, GLOW * believed, believed)
    return (1 + believed * np.where(away < 3, 0.5 ** (away**2), 0)).astype(np.float32)


def enlarge(light: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Light (h, w, 3) at `size` (width, height), (H, W, 3) float32: smooth, and exactly 1 where it was."""
    offset = cv2.resize(light - 1, size, interpolation=cv2.INTER_CUBIC)
    return np.clip(1 + offset, DARKEST, BRIGHTEST)


def relight(backdrop: np.ndarray, light: np.ndarray) -> np.ndarray:
    """A backdrop (H, W, 3) uint8 under another light: (h, w, 3) of any size, or (H, W, 1) float32.

    Where the light is 1 the pixels are the backdrop's own.
    """
    height, width = backdrop.shape[:2]
    full = light if light.shape[:2] == (height, width) else enlarge(light, (width, height))
    return np.clip(np.rint(backdrop * full), 0, 255).astype(np.uint8)


def light_png(light: np.ndarray) -> bytes:
    """Light (H, W, 3) as a PNG of 16 bits a channel, `UNIT` = 1."""
    levels = np.clip(np.rint(light * UNIT), 0, 65535).astype(np.uint16)
    return cv2.imencode(".png", levels[..., ::-1])[1].tobytes()


def read_light(data: bytes) -> np.ndarray:
    """The inverse of `light_png`, (H, W, 3) float32."""
    levels = np.asarray(cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED))
    return levels[..., ::-1].astype(np.float32) / UNIT
