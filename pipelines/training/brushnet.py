"""Train BrushNet (Ju et al. 2024) for the bundled UNet, on masks that never cut through a product.

The masks of the original training are pieces (`train_brushnet.py`: one random segment, opened, inverted), which teach
that a kept piece goes on outside its mask: overcompletion. Here most masks are whole products, a little dilated, as in
the paper's fine-tune (section 3.1); a share of random strokes keeps the branch sane on other masks. The UNet is frozen.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from numpy.typing import NDArray
from torch import Tensor, nn

from pipelines.diffusion.brushnet import BrushNetModel, inject
from pipelines.diffusion.inpainting import latent_mask, masked_image
from pipelines.training.autoencoder import tensor_bytes, to_tensor
from pipelines.training.card import write_card
from pipelines.training.data import ShotPack
from pipelines.training.loop import TrainOptions, fit, grid_picture
from pipelines.training.unet import GUIDANCE, FrozenBase, TextConditioned, build_scheduler

STROKES = 0.15


@dataclasses.dataclass(frozen=True, slots=True)
class ConditionPack:
    """What BrushNet sees of each composed shot: masked-image latents and mask, (N, 5, h, w) float16."""

    conditions: NDArray[np.float16]

    def batch(self, picks: NDArray[np.int64]) -> Tensor:
        """The conditions of a batch, float32."""
        return torch.from_numpy(self.conditions[picks].astype(np.float32))


def train(options: TrainOptions) -> Path:
    """Train at `options.size` (or 128 px for two thirds of the budget, then 256 px); return the export's folder."""
    if options.size is not None:
        return train_at(options, options.size)
    train_at(dataclasses.replace(options, minutes=options.minutes * 2 / 3), 128)
    return train_at(dataclasses.replace(options, minutes=options.minutes / 3), 256)


def train_at(options: TrainOptions, side: int) -> Path:
    """One stage at `side` px, from the exported BrushNet, or from the UNet's weights when there is none."""
    torch.manual_seed(options.seed)
    stage = dataclasses.replace(options, part=f"brushnet_{side}")
    batch, lr = options.batch or (24 if side <= 128 else 8), options.lr or (4e-4 if side <= 128 else 2e-4)
    folder = options.out / "brushnet"
    base = FrozenBase.load(options, side)
    conditions = condition_pack(stage, base.vae, base.shots)
    model = load(folder, base.model).to(options.device, memory_format=torch.channels_last)

    def loss_of_step(step: int) -> Tensor:
        drawn = base.batch(stage, step, batch)
        condition = conditions.batch(drawn.picks).to(options.device).contiguous(memory_format=torch.channels_last)
        with inject(base.model.unet, *model(drawn.noisy, drawn.timesteps, None, condition)):
            predicted = base.model.unet(drawn.noisy, drawn.timesteps, encoder_hidden_states=drawn.states).sample
        return F.mse_loss(predicted.float(), drawn.target)

    result = fit(
        stage,
        model,
        loss_of_step,
        batch=batch,
        lr=lr,
        every_seconds=150,
        on_checkpoint=lambda ema, _: show(ema, base, conditions, stage.folder / "samples.png"),
    )
    result.ema.half().save_pretrained(folder)  # type: ignore[operator]
    write_card(folder, "brushnet", result.ema, options, {f"{side}_px": result.figures})
    return folder


def load(folder: Path, base: TextConditioned) -> BrushNetModel:
    """The exported BrushNet in float32, or a new one with the UNet's weights."""
    if (folder / "config.json").exists():
        loaded: BrushNetModel = BrushNetModel.from_pretrained(folder).float()
        return loaded
    return BrushNetModel.from_unet(base.unet).requires_grad_(True)


def condition_pack(options: TrainOptions, vae: AutoencoderKL, shots: ShotPack) -> ConditionPack:
    """Encode every shot behind its mask once into the part's work folder."""
    packed = options.folder / "conditions.npy"
    if not packed.exists():
        parts = [range(n, min(n + 32, len(shots))) for n in range(0, len(shots), 32)]
        np.save(packed, np.concatenate([_conditions(vae, shots, part) for part in parts]))
    return ConditionPack(np.load(packed, mmap_mode="r"))


@torch.no_grad()
def _conditions(vae: AutoencoderKL, shots: ShotPack, part: range) -> NDArray[np.float16]:
    images = to_tensor(np.stack([shots.image(n) for n in part])).to(vae.device)
    masks = np.stack([draw_mask(shots.mask(n), np.random.default_rng([31, n])) for n in part])
    return encode_condition(vae, images, torch.from_numpy(masks)[:, None].to(images)).half().cpu().numpy()


@torch.no_grad()
def encode_condition(vae: AutoencoderKL, images: Tensor, masks: Tensor) -> Tensor:
    """(N, 3, H, W) in -1..1 and (N, 1, H, W) masks, 1 = kept, to BrushNet's (N, 5, H/8, W/8), as the sampler does."""
    hidden = masked_image(images, masks).contiguous(memory_format=torch.channels_last)
    latents = vae.encode(hidden).latent_dist.mode()
    size = (latents.shape[-2], latents.shape[-1])
    return torch.cat([latents, latent_mask(masks, size)], dim=1)


def draw_mask(product: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.float32]:
    """The kept region of a shot: the product dilated by 0 to 2 px, or (share `STROKES`) all but random strokes."""
    if rng.random() >= STROKES:
        grow = int(rng.integers(0, 3)) * 2 + 1
        return (cv2.dilate(product, np.ones((grow, grow), np.uint8)) >= 128).astype(np.float32)
    height, width = product.shape
    painted = np.zeros((height, width), np.uint8)
    for _ in range(int(rng.integers(1, 4))):
        points = (rng.random((int(rng.integers(2, 6)), 2)) * [width, height]).astype(np.int32)
        cv2.polylines(painted, [points], False, 255, thickness=int(rng.integers(width // 8, width // 3)))
    return (painted < 128).astype(np.float32)


@torch.no_grad()
def sample(
    brushnet: BrushNetModel,
    base: TextConditioned,
    prompts: list[str],
    condition: Tensor,
    steps: int = 16,
    guidance: float = GUIDANCE,
) -> Tensor:
    """Latents for `prompts` around the products of `condition` (N, 5, h, w), by DDIM; one pass for both halves."""
    scheduler = build_scheduler()
    scheduler.set_timesteps(steps)
    states = base.encode([""] * len(prompts) + prompts)
    latents = torch.randn((len(prompts), 4, *condition.shape[-2:]), generator=torch.Generator().manual_seed(0))
    latents = latents.to(condition)
    for t in scheduler.timesteps:
        with inject(base.unet, *brushnet(latents, t, None, condition)):
            both = base.unet(torch.cat([latents] * 2), t, encoder_hidden_states=states).sample
        without, with_text = both.chunk(2)
        latents = scheduler.step(without + guidance * (with_text - without), t, latents).prev_sample
    return latents


@torch.no_grad()
def show(model: nn.Module, base: FrozenBase, conditions: ConditionPack, path: Path) -> None:
    """Draw six shots: as composed, as painted around their product, and with the product laid back over."""
    assert isinstance(model, BrushNetModel)
    picks = list(range(1, 7))
    condition = conditions.batch(np.array(picks)).to(base.vae.device)
    latents = sample(model, base.model, [base.pack.captions[n] for n in picks], condition)
    painted = tensor_bytes(base.vae.decode(latents).sample)
    shots = base.shots
    pasted = [
        np.where((shots.mask(n) >= 128)[..., None], shots.image(n), picture)
        for n, picture in zip(picks, painted, strict=True)
    ]
    grid_picture([*(shots.image(n) for n in picks), *painted, *pasted]).save(path)
