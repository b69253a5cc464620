"""Train the paper's other two methods that need weights (section 2.1), on random masks like the published ones.

unet_inpaint9        the bundled UNet with nine input channels (Rombach et al. 2022, section 4.5)
controlnet_inpaint   a ControlNet on the masked picture (control_v11p_sd15_inpaint); its UNet is frozen
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import UNet2DConditionModel
from numpy.typing import NDArray
from torch import Tensor

from pipelines.diffusion.inpainting import latent_mask, masked_image
from pipelines.training.autoencoder import to_tensor
from pipelines.training.card import write_card
from pipelines.training.controlnet import load
from pipelines.training.loop import TrainOptions, export, fit
from pipelines.training.masks import random_mask
from pipelines.training.unet import FrozenBase


def train_unet_inpaint9(options: TrainOptions) -> Path:
    """Train at `options.size` (128 px) from the export or the UNet; return the export's folder."""
    side = options.size or 128
    torch.manual_seed(options.seed)
    stage = dataclasses.replace(options, part=f"unet_inpaint9_{side}")
    batch, lr = options.batch or (24 if side <= 128 else 8), options.lr or 3e-4
    folder = options.out / "unet_inpaint9"
    base = FrozenBase.load(options, side)
    seen = _conditions(stage, base)
    model = _unet9(folder, base.model.unet).to(options.device, memory_format=torch.channels_last)
    shots = np.arange(len(base.shots))

    def loss_of_step(step: int) -> Tensor:
        _, drawn = base.batch(stage, step, batch, shots)
        condition = torch.from_numpy(seen[drawn.picks].astype(np.float32)).to(options.device)
        predicted = model(torch.cat([drawn.noisy, condition], 1), drawn.timesteps, drawn.states).sample
        return F.mse_loss(predicted.float(), drawn.target)

    result = fit(stage, model, loss_of_step, batch=batch, lr=lr, every_seconds=150)
    export(result.ema, folder)
    write_card(folder, "unet_inpaint9", result.ema, options, {f"{side}_px": result.figures})
    return folder


def train_controlnet_inpaint(options: TrainOptions) -> Path:
    """Train at `options.size` (128 px) from the export or the UNet; return the export's folder."""
    side = options.size or 128
    torch.manual_seed(options.seed)
    stage = dataclasses.replace(options, part=f"controlnet_inpaint_{side}")
    batch, lr = options.batch or (24 if side <= 128 else 8), options.lr or 8e-4
    folder = options.out / "controlnet_inpaint"
    base = FrozenBase.load(options, side)
    model = load(folder, base.model).to(options.device, memory_format=torch.channels_last)
    shots = np.arange(len(base.shots))

    def loss_of_step(step: int) -> Tensor:
        _, drawn = base.batch(stage, step, batch, shots)
        pixels, masks = _pictures(base, drawn.picks)
        hidden = masked_image((pixels + 1) / 2, masks).to(options.device)
        down, mid = model(drawn.noisy, drawn.timesteps, drawn.states, hidden, return_dict=False)
        predicted = base.model.unet(
            drawn.noisy,
            drawn.timesteps,
            drawn.states,
            down_block_additional_residuals=down,
            mid_block_additional_residual=mid,
        ).sample
        return F.mse_loss(predicted.float(), drawn.target)

    result = fit(stage, model, loss_of_step, batch=batch, lr=lr, every_seconds=150)
    export(result.ema, folder)
    write_card(folder, "controlnet_inpaint", result.ema, options, {f"{side}_px": result.figures})
    return folder


def _unet9(folder: Path, base: UNet2DConditionModel) -> UNet2DConditionModel:
    """The export in float32, or the base with five more input channels of zero weight."""
    if (folder / "config.json").exists():
        exported: UNet2DConditionModel = UNet2DConditionModel.from_pretrained(folder).float()
        return exported
    wider: UNet2DConditionModel = UNet2DConditionModel.from_config({**base.config, "in_channels": 9})
    weights = base.state_dict()
    first = torch.zeros_like(wider.conv_in.weight)
    first[:, :4] = weights["conv_in.weight"]
    wider.load_state_dict({**weights, "conv_in.weight": first})
    return wider


@torch.no_grad()
def _conditions(options: TrainOptions, base: FrozenBase) -> NDArray[np.float16]:
    """The inputs of a 9-channel UNet besides the noise, (N, 5, h, w): 1 = to be painted, and masked-image latents.

    They are encoded once, into the part's work folder.
    """
    packed = options.folder / "conditions.npy"
    if not packed.exists():
        parts = []
        for start in range(0, len(base.shots), 32):
            picks = np.arange(start, min(start + 32, len(base.shots)))
            pixels, masks = _pictures(base, picks)
            hidden = masked_image(pixels, masks, fill=0.0).to(base.vae.device)
            latents = base.vae.encode(hidden).latent_dist.mode().cpu()
            painted = 1 - latent_mask(masks, (latents.shape[-2], latents.shape[-1]), "nearest")
            parts.append(torch.cat([painted, latents], 1).half().numpy())
        np.save(packed, np.concatenate(parts))
    stored: NDArray[np.float16] = np.load(packed, mmap_mode="r")
    return stored


def _pictures(base: FrozenBase, picks: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
    """Shots as (N, 3, H, W) in -1..1, and a random mask of each, (N, 1, H, W), 1 = kept."""
    pixels = to_tensor(np.stack([base.shots.image(int(n)) for n in picks]))
    kept = [random_mask(np.asarray(base.shots.mask(int(n))), np.random.default_rng([31, int(n)])) for n in picks]
    return pixels, torch.from_numpy(np.stack(kept))[:, None]
