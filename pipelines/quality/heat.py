"""Pictures that show where a check found a fault."""

from __future__ import annotations

import io

import cv2
import numpy as np
from PIL import Image

from pipelines.contracts import Output

HEAT_SIDE = 512
"""Longer side of the pictures, px."""


def heat_picture(role: str, image: np.ndarray, where: np.ndarray) -> Output:
    """Draw an image (H, W, 3) uint8 in grey with `where` (h, w) 0..1, of any size, in red, as WebP."""
    scale = min(1.0, HEAT_SIDE / max(image.shape[:2]))
    size = (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale)))
    grey = cv2.cvtColor(cv2.resize(image, size, interpolation=cv2.INTER_AREA), cv2.COLOR_RGB2GRAY)
    heat = cv2.resize(where.astype(np.float32), size, interpolation=cv2.INTER_AREA)[..., None].clip(0, 1)
    red = np.array([230, 30, 20], np.float32)
    drawn = (grey[..., None] * 0.6 + 90) * (1 - 0.75 * heat) + red * 0.75 * heat
    data = io.BytesIO()
    Image.fromarray(np.clip(drawn, 0, 255).astype(np.uint8)).save(data, "WEBP", quality=80)
    return Output(role, data.getvalue(), "image/webp")
