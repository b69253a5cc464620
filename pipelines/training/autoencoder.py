"""Train the bundled 8x autoencoder (Rombach et al. 2022, section 3.1; no adversary, two cores have no time for one).

Latents come out with zero mean and unit deviation per channel: the normalisation is folded into `quant_conv` and
`post_quant_conv`, so the config's scaling_factor is 1 and any stock pipeline is right.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from numpy.typing import NDArray
from torch import Tensor

from pipelines.training.card import write_card
from pipelines.training.data import Composer, load_photographs
from pipelines.training.loop import TrainOptions, export, fit, grid_picture, step_rng, torch_rng

CHANNELS = (16, 32, 64, 96)
LATENT_NOISE = 0.1
LATENT_PULL = 1e-3
ANCHOR, ANCHOR_HALVES = 1.0, 600
PICTURE, CROP = 192, 64
COMPOSED = 1600


def build() -> AutoencoderKL:
    """The architecture: 4 levels, one residual block each, 4 latent channels, no attention."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=CHANNELS,
        layers_per_block=1,
        latent_channels=4,
        # Few groups: a group of one channel would normalise the colour of a plain wall away.
        norm_num_groups=2,
        sample_size=256,
        scaling_factor=1.0,
        force_upcast=False,
        mid_block_add_attention=False,
    )


def train(options: TrainOptions) -> Path:
    """Train within the budget and export to `options.out`/autoencoder; return that folder.

    Where an exported model is, others stand on its latents: the encoder is left alone and only the decoder trained.
    """
    torch.manual_seed(options.seed)
    batch, lr = options.batch or 8, options.lr or 2e-3
    folder = options.out / "autoencoder"
    pictures = training_pictures(options)
    encoder_is_fixed = (folder / "config.json").exists()
    if encoder_is_fixed:
        model = AutoencoderKL.from_pretrained(folder).float()
        model.encoder.requires_grad_(False)
        model.quant_conv.requires_grad_(False)
        stage = dataclasses.replace(options, part="autoencoder_decoder")
    else:
        stage, model = options, build()
    model = model.to(options.device, memory_format=torch.channels_last)

    def loss_of_step(step: int) -> Tensor:
        target = to_tensor(_crops(pictures, batch, step_rng(stage, step))).to(options.device)
        target = target.contiguous(memory_format=torch.channels_last)
        latents = model.encode(target).latent_dist.mode()
        noise = torch.randn(latents.shape, generator=torch_rng(stage, step)).to(latents)
        decoded = model.decode(latents + LATENT_NOISE * noise).sample
        return reconstruction_loss(decoded.float(), target) + anchor_loss(latents.float(), target, step)

    held_out = to_tensor(evaluation_pictures(options, 24))
    result = fit(
        stage,
        model,
        loss_of_step,
        batch=batch,
        lr=lr,
        on_checkpoint=lambda ema, step: _show(ema, held_out, stage.folder / "samples.png"),
    )
    ema = result.ema
    assert isinstance(ema, AutoencoderKL)
    if not encoder_is_fixed:
        fold_normalisation(ema, to_tensor(pictures[:COMPOSED:4, 32:160, 32:160]))
    export(ema, folder)
    figures = {**result.figures, "psnr_db": round(psnr(ema.float(), held_out), 2)}
    write_card(folder, "autoencoder", ema, options, figures)
    return folder


def training_pictures(options: TrainOptions) -> NDArray[np.uint8]:
    """Composed shots, real scenes and product photos, (N, 192, 192, 3) uint8; packed once in the work folder."""
    packed = options.folder / "pictures.npy"
    if not packed.exists():
        composer = Composer(options.data, "train", seed=11)
        composed = np.stack([to_bytes(composer.shot(n, (PICTURE, PICTURE)).image) for n in range(COMPOSED)])
        real = load_photographs(options.data, PICTURE, "train")
        pick = np.random.default_rng(0).permutation(len(real))[:1400]
        np.save(packed, np.concatenate([composed, real[pick]]))
    return np.load(packed, mmap_mode="r")


def evaluation_pictures(options: TrainOptions, count: int) -> NDArray[np.uint8]:
    """Composed shots of held-out products, (count, 128, 128, 3) uint8."""
    composer = Composer(options.data, "test", seed=12)
    return np.stack([to_bytes(composer.shot(n, (128, 128)).image) for n in range(count)])


def reconstruction_loss(decoded: Tensor, target: Tensor) -> Tensor:
    """L1 on pixels, on 4x pooled colours (large areas must be exact) and on neighbours' differences (edges)."""
    pooled = (F.avg_pool2d(decoded, 4) - F.avg_pool2d(target, 4)).abs().mean()
    difference = decoded - target
    edges = difference.diff(dim=-1).abs().mean() + difference.diff(dim=-2).abs().mean()
    return difference.abs().mean() + pooled + 0.5 * edges


def anchor_loss(latents: Tensor, target: Tensor, step: int) -> Tensor:
    """Hold three latent channels near their cell's mean colour (light, blue-red, magenta-green), less and less.

    Left alone, a small autoencoder spends its first half hour on four copies of the brightness. A weak pull to zero
    stays.
    """
    red, green, blue = F.avg_pool2d(target, 8).unbind(dim=1)
    colour = torch.stack([(red + green + blue) * 0.7, (red - blue) * 1.7, (green - (red + blue) / 2) * 4], dim=1)
    hold = ANCHOR * 0.5 ** (step / ANCHOR_HALVES)
    return hold * F.mse_loss(latents[:, :3], colour) + LATENT_PULL * latents.square().mean()


@torch.no_grad()
def fold_normalisation(model: AutoencoderKL, images: Tensor) -> None:
    """Rescale the 1x1 convolutions around the latents so that these have zero mean and unit deviation over `images`.

    The predicted log-variance becomes a constant -12: sampling and taking the mode then agree to 0.0025.
    """
    latents = torch.cat([model.encode(part.to(model.device)).latent_dist.mode() for part in images.split(16)])
    mean, std = latents.mean(dim=(0, 2, 3)), latents.std(dim=(0, 2, 3))
    encode, decode = model.quant_conv, model.post_quant_conv
    channels = len(mean)
    encode.weight[:channels] /= std[:, None, None, None]
    encode.bias[:channels] = (encode.bias[:channels] - mean) / std
    encode.weight[channels:] = 0
    encode.bias[channels:] = -12
    decode.bias += decode.weight[:, :, 0, 0] @ mean
    decode.weight *= std[None, :, None, None]


@torch.no_grad()
def psnr(model: AutoencoderKL, images: Tensor) -> float:
    """Mean peak signal-to-noise ratio of the reconstructions of `images` (N, 3, H, W in -1..1), in dB."""
    images = images.to(model.device)
    decoded = model.decode(model.encode(images).latent_dist.mode()).sample.clamp(-1, 1)
    errors = (decoded - images).square().mean(dim=(1, 2, 3)) / 4
    return float((-10 * errors.log10()).mean())


def to_tensor(pictures: NDArray[np.uint8]) -> Tensor:
    """(N, H, W, 3) uint8 to (N, 3, H, W) float in -1..1."""
    return torch.from_numpy(np.ascontiguousarray(pictures)).permute(0, 3, 1, 2).float() / 127.5 - 1


def to_bytes(image: NDArray[np.float32]) -> NDArray[np.uint8]:
    """An image in 0..1 as uint8."""
    return np.clip(image * 255 + 0.5, 0, 255).astype(np.uint8)


def tensor_bytes(images: Tensor) -> list[NDArray[np.uint8]]:
    """(N, 3, H, W) in -1..1 as a list of (H, W, 3) uint8."""
    return list(((images.float().clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).cpu().numpy())


def _crops(pictures: NDArray[np.uint8], count: int, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Half the crops from composed shots, half from photographs, mirrored at random."""
    crops = np.empty((count, CROP, CROP, 3), np.uint8)
    for n in range(count):
        low, high = (0, min(COMPOSED, len(pictures))) if n < 0.65 * count else (0, len(pictures))
        top, left = rng.integers(0, PICTURE - CROP + 1, 2)
        crop = pictures[int(rng.integers(low, high)), top : top + CROP, left : left + CROP]
        crops[n] = crop[:, ::-1] if rng.random() < 0.5 else crop
    return crops


@torch.no_grad()
def _show(model: torch.nn.Module, images: Tensor, path: Path) -> None:
    assert isinstance(model, AutoencoderKL)
    some = images[:6].to(model.device)
    decoded = model.decode(model.encode(some).latent_dist.mode()).sample
    grid_picture([*tensor_bytes(some), *tensor_bytes(decoded)]).save(path)
    print(f"psnr {psnr(model, images):.2f} dB", flush=True)
