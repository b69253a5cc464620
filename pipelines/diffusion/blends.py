"""Blends: combine the original and the generated picture in latent space at every step."""

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
"""The default settings of stable-diffusion-webui."""


def hard_blend(original: Tensor, generated: Tensor, product_mask: Tensor) -> Tensor:
    """Keep the original where the product is, and the generated latents elsewhere.

    After every step the original is put back, with noise of that step's level. See Avrahami et al., "Blended Latent
    Diffusion", 2023, algorithm 1 ("standard inpainting" in the paper, section 2.1).

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
    """Mix two latents by a soft mask and keep their magnitude, as stable-diffusion-webui does (the paper, section 2.1).

    The share of the generated picture is t = (1 - mask)^(sigma^power * scale). Late steps (small sigma) keep less of
    the original. A plain mix of two latents has a smaller norm than either, which shows as a washed-out edge. So the
    norm at each pixel is replaced by the power mean of both norms.

    Args:
        original: Latents (B, C, h, w).
        generated: Latents (B, C, h, w).
        product_mask: (B, 1, h, w), 0..1, 1 = product.
        power: How fast the transition of the mask narrows with the noise level; usually 1.
        scale: Factor on that exponent; usually 0.5.
        detail: Exponent of the power mean. A larger one keeps more contrast; usually 4.
        sigma: Noise level of the step: standard deviation relative to a signal of 1.
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
    """Blend the picture that a UNet predicts, and return the prediction for the blended picture.

    It changes the prediction before the scheduler's step, so it works with any scheduler.

    Args:
        prediction: (B, C, h, w), the UNet's, after guidance.
        sample: (B, C, h, w), the UNet's input, sqrt(signal) * picture + sqrt(1 - signal) * noise.
        original: Latents (B, C, h, w) without noise.
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
