"""Control images: what a ControlNet is shown of the product. Black means 'no control' in all of them."""

from __future__ import annotations

import cv2
import numpy as np
from PIL import Image
from torch import Tensor

BLUR = 5
"""Side of the gaussian that takes grain and print screens off a photo before its edges are looked for, px."""


def canny_edges(
    image: Image.Image | np.ndarray,
    product_mask: Image.Image | np.ndarray | Tensor | None = None,
    low: int = 60,
    high: int = 140,
) -> Image.Image:
    """Draw the edges of a photo in white on black, as canny ControlNets expect them.

    Args:
        image: uint8. RGB, the source photo placed as the product is; or RGBA, the cutout alone on a flat ground, whose
            silhouette is an edge whatever colour the ground has.
        product_mask: Edges outside of it are dropped; PIL "L", or (..., H, W) 0..1, 1 = product. None keeps all.
        low: Gradient from which an edge is followed, 0..255.
        high: Gradient at which an edge begins, 0..255.

    Returns:
        RGB of the image's size.

    Raises:
        ValueError: the mask has another size than the image.
    """
    if isinstance(image, Image.Image) and image.mode != "RGBA":
        image = image.convert("RGB")
    pixels = np.asarray(image)
    # of several channels Canny takes the steepest at every pixel, so that alpha's edge is one line with the colours'
    edges = cv2.Canny(cv2.GaussianBlur(pixels, (BLUR, BLUR), 0), low, high)
    if product_mask is not None:
        inside = _as_array(product_mask) >= 0.5
        if inside.shape != edges.shape:
            raise ValueError(f"The image is {edges.shape} and its mask {inside.shape} (height, width).")
        edges = np.where(inside, edges, 0).astype(np.uint8)
    return Image.fromarray(np.repeat(edges[..., None], 3, axis=2))


def _as_array(mask: Image.Image | np.ndarray | Tensor) -> np.ndarray:
    if isinstance(mask, Image.Image):
        return np.asarray(mask.convert("L"), np.float32) / 255
    array = mask.detach().float().cpu().numpy() if isinstance(mask, Tensor) else mask
    return np.asarray(array).reshape(array.shape[-2:])
