"""Train the bundled canny ControlNet (Zhang et al. 2023); the UNet is frozen.

Half of the samples show the whole picture's edges, as the published nets are trained. The other half show only the
product's edges on black, as the sampler draws them. So black means "no control", and mask guidance works.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import ControlNetModel
from torch import Tensor, nn

from pipelines.diffusion.control import canny_edges
from pipelines.training.autoencoder import tensor_bytes
from pipelines.training.card import write_card
from pipelines.training.data import ShotPack
from pipelines.training.loop import TrainOptions, export, fit, grid_picture, step_rng
from pipelines.training.unet import GUIDANCE, FrozenBase, TextConditioned, build_scheduler

EMBEDDING = (8, 16, 32, 48)
WHOLE = 0.5
"""Share of the samples with the edges of the whole picture."""


def train(options: TrainOptions) -> Path:
    """Train at `options.size` (128 px) from the exported ControlNet or the UNet; return the export's folder."""
    torch.manual_seed(options.seed)
    side = options.size or 128
    stage = dataclasses.replace(options, part=f"controlnet_canny_{side}")
    batch, lr = options.batch or (24 if side <= 128 else 8), options.lr or 4e-4
    folder = options.out / "controlnet_canny"
    base = FrozenBase.load(options, side)
    model = load(folder, base.model).to(options.device, memory_format=torch.channels_last)

    composed = np.arange(len(base.shots))

    def loss_of_step(step: int) -> Tensor:
        _, drawn = base.batch(stage, step, batch, composed)
        whole = step_rng(stage, step + 1).random(batch) < WHOLE
        control = control_images(base.shots, drawn.picks.tolist(), whole.tolist()).to(options.device)
        down, mid = model(drawn.noisy, drawn.timesteps, drawn.states, control, return_dict=False)
        predicted = base.model.unet(
            drawn.noisy,
            drawn.timesteps,
            encoder_hidden_states=drawn.states,
            down_block_additional_residuals=down,
            mid_block_additional_residual=mid,
        ).sample
        return F.mse_loss(predicted.float(), drawn.target)

    result = fit(
        stage,
        model,
        loss_of_step,
        batch=batch,
        lr=lr,
        every_seconds=150,
        on_checkpoint=lambda ema, _: show(ema, base, stage.folder / "samples.png"),
    )
    export(result.ema, folder)
    write_card(folder, "controlnet_canny", result.ema, options, {f"{side}_px": result.figures})
    return folder


def load(folder: Path, base: TextConditioned) -> ControlNetModel:
    """The exported ControlNet in float32, or a new one with the UNet's weights."""
    if (folder / "config.json").exists():
        loaded: ControlNetModel = ControlNetModel.from_pretrained(folder).float()
        return loaded
    new: ControlNetModel = ControlNetModel.from_unet(base.unet, conditioning_embedding_out_channels=EMBEDDING)
    return new.requires_grad_(True)


def control_images(shots: ShotPack, picks: list[int], whole: list[bool]) -> Tensor:
    """Edges of shots, of the whole picture or of the product alone, as (N, 3, H, W) in 0..1."""
    masks = [
        None if everything else shots.mask(n) / np.float32(255) for n, everything in zip(picks, whole, strict=True)
    ]
    edges = [np.asarray(canny_edges(np.asarray(shots.image(n)), mask)) for n, mask in zip(picks, masks, strict=True)]
    return torch.from_numpy(np.stack(edges)).permute(0, 3, 1, 2).float() / 255


@torch.no_grad()
def sample(
    controlnet: ControlNetModel, base: TextConditioned, prompts: list[str], control: Tensor, steps: int = 16
) -> Tensor:
    """Latents for `prompts` under the edges `control` (N, 3, H, W), by DDIM with classifier-free guidance."""
    scheduler = build_scheduler()
    scheduler.set_timesteps(steps)
    states = base.encode([""] * len(prompts) + prompts)
    size = (control.shape[-2] // 8, control.shape[-1] // 8)
    latents = torch.randn((len(prompts), 4, *size), generator=torch.Generator().manual_seed(0)).to(control)
    for t in scheduler.timesteps:
        both = torch.cat([latents] * 2)
        down, mid = controlnet(both, t, states, torch.cat([control] * 2), return_dict=False)
        predicted = base.unet(
            both,
            t,
            encoder_hidden_states=states,
            down_block_additional_residuals=down,
            mid_block_additional_residual=mid,
        ).sample
        without, with_text = predicted.chunk(2)
        latents = scheduler.step(without + GUIDANCE * (with_text - without), t, latents).prev_sample
    return latents


@torch.no_grad()
def show(model: nn.Module, base: FrozenBase, path: Path) -> None:
    """Draw the edges of six shots, and below them the painted pictures."""
    assert isinstance(model, ControlNetModel)
    picks = list(range(1, 7))
    control = control_images(base.shots, picks, [False, True] * 3).to(base.vae.device)
    latents = sample(model, base.model, [base.pack.captions[n] for n in picks], control)
    grid_picture([*tensor_bytes(control * 2 - 1), *tensor_bytes(base.vae.decode(latents).sample)]).save(path)
