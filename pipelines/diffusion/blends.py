"""Blends: how the picture that is kept and the picture that is made become one, in latent space, at every step."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class SoftBlend:
    """Settings of soft inpainting; see `soft_blend`."""

    power: float = 1.0
    scale: float = 0.5
    detail: float = 4.0


DEFAULT_SOFT_BLEND = SoftBlend()
"""stable-diffusion-webui's own settings."""


def hard_blend(original: Tensor, generated: Tensor, product_mask: Tensor) -> Tensor:
    """Keep the original where the product is, the generated elsewhere.

    Avrahami et al., "Blended Latent Diffusion", 2023, algorithm 1: after every step the original, noised to that step's
    level, is put back ("standard inpainting" in the paper, section 2.1).

    Args:
        original: Latents (B, C, h, w) at the same noise level as `generated`.
        generated: Latents (B, C, h, w).
        product_mask: (B, 1, h, w), 0 or 1, 1 = product.
    """
    return torch.where(product_mask > 0.5, original, generated)


def soft_blend(
    original: Tensor,
    generated: Tensor,
    product_mask: Tensor,
    power: float,
    scale: float,
    detail: float,
    sigma: float,
) -> Tensor:
    """Mix by a grey mask and keep the magnitude, as stable-diffusion-webui's soft inpainting does (the paper, 2.1).

    The share of the generated picture is t = (1 - mask)^(sigma^power * scale): late steps (small sigma) let less of the
    original through. A plain mix of two latents is shorter than either, which shows as a washed-out rim; its length at
    each pixel is therefore replaced by the power mean of the two lengths.

    Args:
        original: Latents (B, C, h, w).
        generated: Latents (B, C, h, w).
        product_mask: (B, 1, h, w), 0..1, 1 = product.
        power: How the mask's transition narrows with the noise level; 1 is the usual value.
        scale: Factor on that exponent; 0.5 is the usual value.
        detail: Exponent of the power mean; the larger, the more contrast stays. 4 is the usual value.
        sigma: Noise level of the step, as a deviation beside a signal of 1.
    """
    share = (1 - product_mask) ** (sigma**power * scale)
    mixed = original * (1 - share) + generated * share
    # float64: the exponents make float32 overflow
    length = torch.linalg.vector_norm(mixed, dim=1, keepdim=True).double() + 1e-5
    ours = torch.linalg.vector_norm(original, dim=1, keepdim=True).double() ** detail * (1 - share)
    theirs = torch.linalg.vector_norm(generated, dim=1, keepdim=True).double() ** detail * share
    return (mixed * ((ours + theirs) ** (1 / detail) / length)).to(mixed.dtype)


def blend_prediction(
    prediction: Tensor,
    sample: Tensor,
    original: Tensor,
    product_mask: Tensor,
    kind: str,
    signal: float,
    settings: SoftBlend,
) -> Tensor:
    """Blend the picture that a UNet predicts softly, and say what it would have predicted for the blend.

    Works on the prediction, before the scheduler's step, so that any scheduler will do.

    Args:
        prediction: (B, C, h, w), the UNet's, after guidance.
        sample: (B, C, h, w), the UNet's input, sqrt(signal) * picture + sqrt(1 - signal) * noise.
        original: Latents (B, C, h, w), free of noise.
        product_mask: (B, 1, h, w), 0..1, 1 = product.
        kind: What the UNet predicts: "epsilon", "v_prediction" or "sample".
        signal: Share of the picture in the sample's variance (alpha-bar), 0..1.
        settings: See `soft_blend`.

    Returns:
        (B, C, h, w), of the prediction's kind and dtype.
    """
    amplitude, deviation = signal**0.5, (1 - signal) ** 0.5
    if kind == "epsilon":
        picture = (sample - deviation * prediction) / amplitude
    elif kind == "v_prediction":
        picture = amplitude * sample - deviation * prediction
    else:
        picture = prediction
    sigma = deviation / amplitude if amplitude else float("inf")
    picture = soft_blend(original, picture, product_mask, settings.power, settings.scale, settings.detail, sigma)
    if kind == "sample":
        return picture
    noise = (sample - amplitude * picture) / deviation
    blended = noise if kind == "epsilon" else amplitude * noise - deviation * picture
    return blended.to(prediction.dtype)
