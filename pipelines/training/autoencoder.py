"""Train the bundled 8x autoencoder (Rombach et al. 2022, section 3.1): pixels, LPIPS, and a critic after a warm-up.

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
from torch import Tensor, nn

from pipelines.training.adversary import Critic, critic_loss, victim_loss
from pipelines.training.card import write_card
from pipelines.training.data import NOT_PHOTOGRAPHS, Composer, load_square, read_index
from pipelines.training.loop import TrainOptions, export, fit, grid_picture, step_rng, torch_rng
from pipelines.training.perceptual import Lpips, sharpness

CHANNELS = (24, 48, 96, 128)
LATENT_NOISE = 0.1
LATENT_PULL = 1e-3
ANCHOR, ANCHOR_HALVES = 1.0, 300
PICTURE, CROP, WIDE_CROP = 256, 128, 224
WIDE_SHARE = 0.125
"""Of the steps that see one wide crop: group norms must meet pictures that are larger than a crop."""

COMPOSED, REAL = 2000, 2400
COMPOSED_SHARE = 0.5
EDGES, LIKENESS, CRITIC = 0.25, 1.0, 0.1
"""Weights of the loss on neighbours' differences, of LPIPS, and of the critic's opinion."""

CRITIC_FROM, CRITIC_RAMP = 1000, 500
"""The step from which the critic learns, and the steps after which its opinion counts, growing as long again."""

HELD_OUT = 24


class Sparring(nn.Module):
    """The autoencoder and its critic, as one trainable."""

    def __init__(self, autoencoder: AutoencoderKL) -> None:
        super().__init__()
        self.autoencoder, self.critic = autoencoder, Critic()


@dataclasses.dataclass(frozen=True, slots=True)
class Quality:
    """What decoding after encoding keeps of pictures: means over them.

    Attributes:
        psnr_db: Peak signal-to-noise ratio, dB.
        lpips: LPIPS distance over AlexNet, 0 = alike.
        sharpness: Mean gradient of the decoded, as a share of the original's.
    """

    psnr_db: float
    lpips: float
    sharpness: float


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
    Raises UsageError where AlexNet's weights are missing beside the training folder.
    """
    torch.manual_seed(options.seed)
    batch, lr = options.batch or 3, options.lr or 1.5e-3
    folder = options.out / "autoencoder"
    lpips = Lpips(options.data.parent / "models" / "alexnet.ckpt").to(options.device)
    pictures = training_pictures(options)
    encoder_is_fixed = (folder / "config.json").exists()
    if encoder_is_fixed:
        autoencoder = AutoencoderKL.from_pretrained(folder).float()
        autoencoder.encoder.requires_grad_(False)
        autoencoder.quant_conv.requires_grad_(False)
        stage = dataclasses.replace(options, part="autoencoder_decoder")
    else:
        stage, autoencoder = options, build()
    model = Sparring(autoencoder).to(memory_format=torch.channels_last).to(options.device)

    def loss_of_step(step: int) -> Tensor:
        target = to_tensor(_crops(pictures, batch, step_rng(stage, step))).to(options.device)
        target = target.contiguous(memory_format=torch.channels_last)
        latents = model.autoencoder.encode(target).latent_dist.mode()
        noise = torch.randn(latents.shape, generator=torch_rng(stage, step)).to(latents)
        decoded = model.autoencoder.decode(latents + LATENT_NOISE * noise).sample.float()
        loss = reconstruction_loss(decoded, target) + LIKENESS * lpips(decoded, target).mean()
        if not encoder_is_fixed:
            loss = loss + anchor_loss(latents.float(), target, step)
        if step >= CRITIC_FROM:
            counts = min(max((step - CRITIC_FROM) / CRITIC_RAMP - 1, 0.0), 1.0)
            loss = loss + critic_loss(model.critic, decoded, target)
            loss = loss + CRITIC * counts * victim_loss(model.critic, decoded)
        return loss

    held_out = to_tensor(evaluation_pictures(options, HELD_OUT))
    result = fit(
        stage,
        model,
        loss_of_step,
        batch=batch,
        lr=lr,
        every_seconds=300,
        on_checkpoint=lambda ema, step: _show(ema, lpips, held_out, stage.folder / "samples.png"),
    )
    assert isinstance(result.ema, Sparring)
    ema = result.ema.autoencoder
    if not encoder_is_fixed:
        fold_normalisation(ema, to_tensor(pictures[:COMPOSED:8]))
    export(ema, folder)
    quality = judge(ema.float(), lpips, held_out)
    write_card(folder, "autoencoder", ema, options, {**result.figures, **dataclasses.asdict(quality)}, NOTES)
    return folder


NOTES = (
    f"PSNR, LPIPS (AlexNet) and sharpness (the decoded's mean gradient as a share of the original's) are means over "
    f"{HELD_OUT}\ncomposed shots of held-out products at {PICTURE} px."
)


def training_pictures(options: TrainOptions) -> NDArray[np.uint8]:
    """Composed shots, real scenes and product photos, (N, 256, 256, 3) uint8; packed once in the work folder."""
    packed = options.folder / f"pictures_{PICTURE}.npy"
    if not packed.exists():
        composer = Composer(options.data, "train", seed=11)
        composed = np.stack([to_bytes(composer.shot(n, (PICTURE, PICTURE)).image) for n in range(COMPOSED)])
        scenes = read_index(options.data, "scenes")
        real = [item.path for item in scenes if not NOT_PHOTOGRAPHS.search(item.path.name + item.name)]
        photos = [item.path for item in read_index(options.data, "photos", "train")]
        real += [photos[n] for n in np.random.default_rng(0).permutation(len(photos))[: REAL - len(real)]]
        np.save(packed, np.concatenate([composed, np.stack([load_square(path, PICTURE) for path in real])]))
    return np.load(packed, mmap_mode="r")


def evaluation_pictures(options: TrainOptions, count: int, side: int = PICTURE) -> NDArray[np.uint8]:
    """Composed shots of held-out products, (count, side, side, 3) uint8."""
    composer = Composer(options.data, "test", seed=12)
    return np.stack([to_bytes(composer.shot(n, (side, side)).image) for n in range(count)])


def reconstruction_loss(decoded: Tensor, target: Tensor) -> Tensor:
    """L1 on pixels, on 4x pooled colours (large areas must be exact) and on neighbours' differences (edges)."""
    pooled = (F.avg_pool2d(decoded, 4) - F.avg_pool2d(target, 4)).abs().mean()
    difference = decoded - target
    edges = difference.diff(dim=-1).abs().mean() + difference.diff(dim=-2).abs().mean()
    return difference.abs().mean() + pooled + EDGES * edges


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
def judge(model: AutoencoderKL, lpips: Lpips, pictures: Tensor) -> Quality:
    """Encode and decode `pictures` (N, 3, H, W in -1..1), a few at a time, and measure what is left of them."""
    rows = []
    for original in pictures.to(model.device).split(4):
        decoded = model.decode(model.encode(original).latent_dist.mode()).sample.float().clamp(-1, 1)
        errors = (decoded - original).square().mean(dim=(1, 2, 3)) / 4
        ratio = sharpness(decoded) / sharpness(original).clamp(min=1e-3)
        rows.append(torch.stack([-10 * errors.log10(), lpips(decoded, original), ratio], dim=1))
    psnr, likeness, sharp = torch.cat(rows).mean(dim=0).tolist()
    return Quality(round(psnr, 2), round(likeness, 4), round(sharp, 3))


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
    """So many crops, half of them of composed shots, mirrored at random; now and then a single wide one instead."""
    wide = rng.random() < WIDE_SHARE
    count, side = (1, WIDE_CROP) if wide else (count, CROP)
    crops = np.empty((count, side, side, 3), np.uint8)
    for n in range(count):
        composed = min(COMPOSED, len(pictures) - 1)
        low, high = (0, composed) if rng.random() < COMPOSED_SHARE else (composed, len(pictures))
        top, left = rng.integers(0, PICTURE - side + 1, 2)
        crop = pictures[int(rng.integers(low, high)), top : top + side, left : left + side]
        crops[n] = crop[:, ::-1] if rng.random() < 0.5 else crop
    return crops


@torch.no_grad()
def _show(model: nn.Module, lpips: Lpips, pictures: Tensor, path: Path) -> None:
    assert isinstance(model, Sparring)
    some = pictures[:6].to(model.autoencoder.device)
    decoded = model.autoencoder.decode(model.autoencoder.encode(some).latent_dist.mode()).sample
    grid_picture([*tensor_bytes(some), *tensor_bytes(decoded)]).save(path)
    print(judge(model.autoencoder, lpips, pictures), flush=True)
