"""Encode pictures to latents and decode them, normalised as in the UNet's training, for any autoencoder's config."""

from __future__ import annotations

import torch
from diffusers import AutoencoderKL
from PIL import Image
from torch import Tensor


def encode(vae: AutoencoderKL, pixels: Tensor) -> Tensor:
    """Encode (B, 3, H, W) in -1..1 to normalised latents. It takes the distribution's mode, so nothing is random."""
    latents = vae.encode(pixels).latent_dist.mode()
    shift, factor = _normalisation(vae, latents)
    return (latents - shift) * factor


def decode(vae: AutoencoderKL, latents: Tensor) -> list[Image.Image]:
    """Decode normalised latents (B, C, h, w) to RGB pictures."""
    shift, factor = _normalisation(vae, latents)
    pixels = vae.decode((latents / factor + shift).to(vae.dtype)).sample
    rounded = (pixels.float().clamp(-1, 1) * 127.5 + 127.5).round().to(torch.uint8)
    return [Image.fromarray(array) for array in rounded.permute(0, 2, 3, 1).cpu().numpy()]


def _normalisation(vae: AutoencoderKL, latents: Tensor) -> tuple[Tensor, Tensor]:
    """Return shift and factor, (1, C, 1, 1), of the config: normalised = (latents - shift) * factor."""
    config = vae.config
    mean = torch.tensor(config.get("latents_mean") or [config.get("shift_factor") or 0.0]).to(latents)
    deviation = torch.tensor(config.get("latents_std") or [1.0]).to(latents)
    return mean.view(1, -1, 1, 1), config.scaling_factor / deviation.view(1, -1, 1, 1)
