"""Does a published file keep its channel's rules? It is the encoded file that is looked at, as the channel gets it."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

import cv2
import numpy as np
from PIL import Image

from pipelines.vision.placement import Placement

RIM = 8
"""Pixels around the product that are not asked to be white: its soft edge, and the blocks of JPEG that it touches."""


def broken_rules(data: bytes, rules: Mapping[str, Any], placement: Placement, matte: np.ndarray | None) -> list[str]:
    """Every rule that a file breaks, in words with what was found and what is required.

    Args:
        data: The encoded file.
        rules: As `pipelines.scenes.channels.Channel.rules` has them.
        placement: Where the product is.
        matte: (H, W) uint8, 255 = product; needed for the rule `background` alone.
    """
    image = Image.open(io.BytesIO(data))
    width, height = image.size
    megapixels = width * height / 1e6
    shorter = min(placement.canvas_width, placement.canvas_height)
    longer = max(placement.width, placement.height)
    gap = min(
        placement.left,
        placement.top,
        placement.canvas_width - placement.left - placement.width,
        placement.canvas_height - placement.top - placement.height,
    )
    found = []
    if width < rules["min_width"] or height < rules["min_height"]:
        found.append(f"{width}×{height} px, and {rules['min_width']}×{rules['min_height']} or more are required")
    if max(width, height) > rules.get("max_side", np.inf):
        found.append(f"{width}×{height} px, and at most {rules['max_side']} on a side are allowed")
    if megapixels > rules.get("max_megapixels", np.inf):
        found.append(f"{megapixels:.1f} megapixels, and at most {rules['max_megapixels']:g} are allowed")
    if len(data) > rules.get("max_bytes", np.inf):
        found.append(f"{len(data)} bytes, and at most {rules['max_bytes']} are allowed: lower the channel's quality")
    # a pixel's tolerance: sizes are rounded
    if "min_product_share" in rules and longer + 1 < rules["min_product_share"] * shorter:
        share = f"{longer / shorter:.1%} of the frame's shorter side"
        found.append(f"the product is {share} long, and {rules['min_product_share']:.0%} or more are required")
    if "margin" in rules and gap + 1 < rules["margin"] * shorter:
        share = f"{gap / shorter:.1%} of the frame's shorter side"
        found.append(f"the product is {share} away from the edge, and {rules['margin']:.0%} or more are required")
    if rules.get("background") == "white":
        assert matte is not None  # the step has the cutout where there is this rule
        share_not_white = _not_white(np.asarray(image.convert("RGB")), matte)
        if share_not_white:
            found.append(f"{share_not_white:.2%} of the background is not pure white (255, 255, 255)")
    return found


def _not_white(pixels: np.ndarray, matte: np.ndarray) -> float:
    """Share of the background, beyond the product's rim, that is not 255 in every colour."""
    near = cv2.dilate((matte > 0).astype(np.uint8), np.ones((2 * RIM + 1, 2 * RIM + 1), np.uint8))
    beyond = near == 0
    return float((pixels[beyond] < 255).any(axis=1).mean()) if beyond.any() else 0.0
