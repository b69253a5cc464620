"""The masked image and its mask, as each kind of branch was trained to read them."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F


def masked_image(pixels: Tensor, product_mask: Tensor, fill: float = -1.0) -> Tensor:
    """Fill everything outside the product: black for BrushNet, grey (`fill` 0) for 9-channel UNets and Fooocus.

    pixels (B, 3, H, W), -1..1; mask (B, 1, H, W), 1 = product.
    """
    return torch.where(product_mask >= 0.5, pixels, fill)


def inpaint_condition(pixels: Tensor, product_mask: Tensor) -> Tensor:
    """The control image of the published inpainting ControlNets: the product in 0..1, and -1 where they paint.

    This is what `lllyasviel/control_v11p_sd15_inpaint` and `alimama-creative/EcomXL_controlnet_inpaint` were trained
    on. Their own mask is the inverse: 1 = to be painted.

    pixels (B, 3, H, W), -1..1; mask (B, 1, H, W), 1 = product.
    """
    return masked_image((pixels + 1) / 2, product_mask)


def latent_mask(
    product_mask: Tensor, size: tuple[int, int], interpolation: Literal["bicubic", "nearest"] = "bicubic"
) -> Tensor:
    """Resize a product mask (B, 1, H, W) to latent size (h, w) for BrushNet: binarised, then reduced, 0..1, 1 = kept.

    "bicubic" is the paper's (3.1.1), over the whole cell and without overshoot; "nearest" is the released code's.
    Raises ValueError for any other name.
    """
    binary = (product_mask >= 0.5).to(product_mask.dtype)
    if interpolation == "nearest":
        return F.interpolate(binary, size, mode="nearest")
    if interpolation != "bicubic":
        raise ValueError(f"BrushNet's mask is brought to latent size by bicubic or nearest, not {interpolation!r}.")
    return F.interpolate(binary, size, mode="bicubic", antialias=True, align_corners=False).clamp(0, 1)
