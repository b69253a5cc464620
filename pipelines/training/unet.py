"""Train the bundled text-to-image UNet, a small SD 1.5 (Rombach et al. 2022): 4 levels x 2 layers, cross-attention.

v-prediction on a schedule rescaled to zero terminal SNR (Salimans & Ho 2022; Lin et al. 2024, section 3), because a
scene's wall colour lives in the very lowest frequency, which an un-rescaled schedule leaks. First at 128 px (16 x 16
latents), then the same weights at 256 px. The first stage trains CLIP's text tower along; after that it is frozen.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import CLIPModel, CLIPTextModel, CLIPTokenizer

from pipelines.diffusion.latents import encode as encode_pixels
from pipelines.training.autoencoder import tensor_bytes, to_tensor
from pipelines.training.card import write_card
from pipelines.training.clip import build as build_clip
from pipelines.training.clip import export as export_clip
from pipelines.training.clip import prepare_tokenizer, shorten
from pipelines.training.data import ShotPack, load_photographs, shot_pack
from pipelines.training.loop import TrainOptions, export, fit, grid_picture, step_rng, torch_rng

WIDTHS = (32, 64, 128, 160)
SHOTS = {128: 16000, 256: 5000}
PHOTOGRAPHS = 2000
PHOTOGRAPH_SHARE = 0.06
CAPTION_DROPOUT = 0.1
PRODUCT_WEIGHT = 0.25
GUIDANCE = 3.0
PROMPTS = (
    "a photo of a mug on an oak wood floor against a beige wall, soft light from the left",
    "a photo of a bag standing on a white podium on a pink floor against a pink wall, soft light from the right",
    "a photo of a shoe on a white marble floor against a dark green wall, soft light from the front, "
    "window light on the wall",
    "a photo of a bottle on a navy blue floor against a sky blue wall, soft light from the left, "
    "a yellow ball beside it",
    "a photo of a hat on a linen floor against a terracotta wall, soft light from the left, plant shadow on the wall",
    "a photo of an empty scene on a grey floor against a white wall, soft light from the right, "
    "a sage green arch behind it",
)


def build() -> UNet2DConditionModel:
    """Attention on the three larger sizes; 12 + 1 ControlNet outputs and 28 BrushNet injections, as in SD 1.5."""
    return UNet2DConditionModel(
        sample_size=32,
        block_out_channels=WIDTHS,
        layers_per_block=2,
        down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
        cross_attention_dim=128,
        attention_head_dim=(1, 2, 4, 5),  # diffusers means the number of heads: 32 wide each
        norm_num_groups=8,
    )


def build_scheduler() -> DDIMScheduler:
    """Zero terminal SNR, v-prediction, trailing timesteps; latents are never clipped."""
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        clip_sample=False,
        set_alpha_to_one=True,
    )


class TextConditioned(nn.Module):
    """The UNet with the CLIP whose text tower feeds it, or with that tower alone, as one trainable."""

    def __init__(self, unet: UNet2DConditionModel, clip: CLIPModel | CLIPTextModel, tokenizer: CLIPTokenizer) -> None:
        super().__init__()
        self.unet, self.clip, self.tokenizer = unet, clip, tokenizer

    def encode(self, texts: list[str]) -> Tensor:
        """Captions to (N, context, width) hidden states."""
        tower = self.clip.text_model if isinstance(self.clip, CLIPModel) else self.clip
        context = tower.config.max_position_embeddings
        ids = self.tokenizer(
            texts, padding="max_length", truncation=True, max_length=context, return_tensors="pt"
        ).input_ids
        return tower(input_ids=ids.to(self.unet.device)).last_hidden_state


@dataclasses.dataclass(frozen=True, slots=True)
class LatentPack:
    """Cached latents, (N, 4, h, w) float16: composed shots first (with captions), then real photographs."""

    latents: NDArray[np.float16]
    captions: list[str]

    def batch(self, picks: NDArray[np.int64]) -> Tensor:
        """The latents of a batch, float32."""
        return torch.from_numpy(self.latents[picks].astype(np.float32))

    def draw(self, rng: np.random.Generator, count: int) -> NDArray[np.int64]:
        """Indices of a batch: composed shots, with a small share of photographs."""
        composed = rng.integers(0, len(self.captions), count)
        photographs = rng.integers(0, len(self.latents), count) % max(len(self.latents) - len(self.captions), 1)
        return np.where(rng.random(count) < PHOTOGRAPH_SHARE, len(self.captions) + photographs, composed)

    def caption(self, index: int, rng: np.random.Generator) -> str:
        """The caption of one sample, shortened at random, sometimes dropped for classifier-free guidance."""
        if rng.random() < CAPTION_DROPOUT:
            return ""
        return shorten(self.captions[index], rng) if index < len(self.captions) else "a real photograph"


@dataclasses.dataclass(frozen=True, slots=True)
class NoisyBatch:
    """One batch of a diffusion loss: which samples (N,), their text states (N, context, width), noisy latents
    (N, 4, h, w) at `timesteps` (N,), and the target (N, 4, h, w): v, or the noise, as the scheduler says."""

    picks: NDArray[np.int64]
    states: Tensor
    noisy: Tensor
    timesteps: Tensor
    target: Tensor


@dataclasses.dataclass(frozen=True, slots=True)
class FrozenBase:
    """What a branch learns beside: the exported models, frozen, and the composed shots with their cached latents."""

    model: TextConditioned
    vae: AutoencoderKL
    shots: ShotPack
    pack: LatentPack
    scheduler: DDIMScheduler

    @classmethod
    def load(cls, options: TrainOptions, side: int) -> FrozenBase:
        """Read the exported models and the UNet's packs of `side` px, made when missing."""
        vae = load_autoencoder(options)
        shots = shot_pack(options.work / "shots", options.data, side, SHOTS.get(side, min(SHOTS.values())))
        pack = latent_pack(dataclasses.replace(options, part=f"unet_{side}"), vae, shots, side)
        return cls.beside(options, vae, shots, pack)

    @classmethod
    def beside(cls, options: TrainOptions, vae: AutoencoderKL, shots: ShotPack, pack: LatentPack) -> FrozenBase:
        """The exported UNet, text tower and scheduler, with these shots."""
        model = build_model(options, first=False).requires_grad_(False).eval()
        return cls(model, vae, shots, pack, DDIMScheduler.from_pretrained(options.out / "scheduler"))

    def batch(
        self, options: TrainOptions, step: int, count: int, among: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NoisyBatch]:
        """Draw `count` of the pack's samples `among` (N,) for `step`: which rows of `among`, and the noisy batch."""
        rng = step_rng(options, step)
        rows = rng.integers(0, len(among), count)
        return rows, noisy_batch(self.model, self.pack, self.scheduler, among[rows], options, step, rng)


def train(options: TrainOptions) -> Path:
    """Train 128 px for two thirds of the budget, then 256 px (or only `options.size`); return the export's folder."""
    if options.size is not None:
        return train_at(options, options.size)
    train_at(dataclasses.replace(options, minutes=options.minutes * 2 / 3), 128)
    return train_at(dataclasses.replace(options, minutes=options.minutes / 3), 256)


def train_at(options: TrainOptions, side: int) -> Path:
    """One stage at `side` px, starting from the exported UNet when there is one."""
    torch.manual_seed(options.seed)
    stage = dataclasses.replace(options, part=f"unet_{side}")
    batch, lr = options.batch or (16 if side <= 128 else 6), options.lr or (6e-4 if side <= 128 else 3e-4)
    folder = options.out / "unet"
    first = not (folder / "config.json").exists()
    shots = shot_pack(options.work / "shots", options.data, side, SHOTS[side])
    pack = latent_pack(stage, load_autoencoder(options), shots, side)
    weights = scene_weights(shots, len(pack.latents))
    model = build_model(options, first)
    scheduler = build_scheduler()

    def loss_of_step(step: int) -> Tensor:
        rng = step_rng(stage, step)
        picks = pack.draw(rng, batch)
        drawn = noisy_batch(model, pack, scheduler, picks, stage, step, rng)
        predicted = model.unet(drawn.noisy, drawn.timesteps, encoder_hidden_states=drawn.states).sample
        weight = torch.from_numpy(weights[picks]).to(options.device)
        return (weight * (predicted.float() - drawn.target).square()).mean() / weight.mean()

    result = fit(
        stage,
        model,
        loss_of_step,
        batch=batch,
        lr=lr,
        every_seconds=150,
        on_checkpoint=lambda ema, step: show(ema, options, side, stage.folder / "samples.png"),
    )
    ema = result.ema
    assert isinstance(ema, TextConditioned)
    if first:
        export_clip(ema.clip, ema.tokenizer, options)
    export(ema.unet, folder)
    scheduler.save_pretrained(options.out / "scheduler")
    write_card(folder, "unet", ema.unet, options, {f"{side}_px": result.figures})
    return folder


def build_model(options: TrainOptions, first: bool) -> TextConditioned:
    """A new UNet with a CLIP to be trained along, or the exported ones with the text tower frozen."""
    exported = options.out / "clip"
    if first:
        known = (exported / "tokenizer.json").exists()
        tokenizer = CLIPTokenizer.from_pretrained(exported) if known else prepare_tokenizer(options)
        model = TextConditioned(build(), build_clip(tokenizer), tokenizer)
        model.clip.vision_model.requires_grad_(False)
        for part in (model.clip.visual_projection, model.clip.text_projection):
            part.requires_grad_(False)
        model.clip.logit_scale.requires_grad_(False)
    else:
        unet = UNet2DConditionModel.from_pretrained(options.out / "unet").float()
        kind = json.loads((exported / "config.json").read_text(encoding="utf-8"))["model_type"]
        clip = (CLIPModel if kind == "clip" else CLIPTextModel).from_pretrained(exported).float().requires_grad_(False)
        model = TextConditioned(unet, clip, CLIPTokenizer.from_pretrained(exported))
    model.unet.to(memory_format=torch.channels_last)
    return model.to(options.device)


def load_autoencoder(options: TrainOptions) -> AutoencoderKL:
    """The exported autoencoder, float32, frozen."""
    model = AutoencoderKL.from_pretrained(options.out / "autoencoder").float().requires_grad_(False).eval()
    return model.to(options.device, memory_format=torch.channels_last)


def latent_pack(options: TrainOptions, vae: AutoencoderKL, shots: ShotPack, side: int) -> LatentPack:
    """Encode `shots` and some real photographs once into the part's work folder."""
    packed = options.folder / "latents.npy"
    if not packed.exists():
        photographs = load_training_photographs(options, side)
        latents = [encode(vae, np.stack([shots.image(k) for k in part])) for part in batches(len(shots), side)]
        latents += [encode(vae, photographs[part]) for part in batches(len(photographs), side)]
        np.save(packed, np.concatenate(latents))
    return LatentPack(np.load(packed), shots.captions)


def load_training_photographs(options: TrainOptions, side: int) -> NDArray[np.uint8]:
    """The real photographs of the latent pack, (N, side, side, 3), in its order: scenes, then product photos."""
    return load_photographs(options.data, side, "train")[:PHOTOGRAPHS]


def scene_weights(shots: ShotPack, count: int) -> NDArray[np.float32]:
    """The loss's weights (count, 1, h, w): `PRODUCT_WEIGHT` where a shot's latent lies all inside its product, else 1.

    The sampler pastes the real product back, so the scene and the product's border are what the UNet is needed for.
    """
    side = shots.mask(0).shape[0] // 8
    weights = np.ones((count, 1, side, side), np.float32)
    for n in range(len(shots)):
        inside = shots.mask(n).reshape(side, 8, side, 8).min(axis=(1, 3)) >= 128
        weights[n, 0, inside] = PRODUCT_WEIGHT
    return weights


@torch.no_grad()
def encode(vae: AutoencoderKL, pictures: NDArray[np.uint8]) -> NDArray[np.float16]:
    """(N, H, W, 3) uint8 to (N, 4, H/8, W/8) latents, zero mean and unit deviation."""
    images = to_tensor(pictures).to(vae.device).contiguous(memory_format=torch.channels_last)
    return encode_pixels(vae, images).cpu().numpy().astype(np.float16)


def noisy_batch(
    model: TextConditioned,
    pack: LatentPack,
    scheduler: DDIMScheduler,
    picks: NDArray[np.int64],
    options: TrainOptions,
    step: int,
    rng: np.random.Generator,
) -> NoisyBatch:
    """Encode the captions of `picks` and noise their latents at timesteps drawn for `step`."""
    states = model.encode([pack.caption(int(n), rng) for n in picks])
    latents = pack.batch(picks).to(options.device)
    generator = torch_rng(options, step)
    noise = torch.randn(latents.shape, generator=generator).to(latents)
    timesteps = torch.randint(0, scheduler.config.num_train_timesteps, (len(latents),), generator=generator)
    timesteps = timesteps.to(latents.device)
    noisy = scheduler.add_noise(latents, noise, timesteps).contiguous(memory_format=torch.channels_last)
    target = noise
    if scheduler.config.prediction_type == "v_prediction":
        target = scheduler.get_velocity(latents, noise, timesteps)
    return NoisyBatch(picks, states, noisy, timesteps, target)


@torch.no_grad()
def sample(
    model: TextConditioned, prompts: list[str], side: int, steps: int = 16, guidance: float = GUIDANCE, seed: int = 0
) -> Tensor:
    """Latents (N, 4, side/8, side/8) for `prompts` by DDIM with classifier-free guidance."""
    scheduler = build_scheduler()
    scheduler.set_timesteps(steps)
    states = model.encode([""] * len(prompts) + prompts)
    latents = torch.randn((len(prompts), 4, side // 8, side // 8), generator=torch.Generator().manual_seed(seed))
    latents = latents.to(model.unet.device)
    for t in scheduler.timesteps:
        without, with_text = model.unet(torch.cat([latents] * 2), t, encoder_hidden_states=states).sample.chunk(2)
        latents = scheduler.step(without + guidance * (with_text - without), t, latents).prev_sample
    return latents


@torch.no_grad()
def show(model: nn.Module, options: TrainOptions, side: int, path: Path) -> None:
    """Draw the fixed `PROMPTS` into a grid picture at `path`."""
    assert isinstance(model, TextConditioned)
    decoded = load_autoencoder(options).decode(sample(model, list(PROMPTS), side)).sample
    grid_picture(tensor_bytes(decoded)).save(path)


def batches(count: int, side: int) -> list[range]:
    """Which of `count` pictures of `side` px are encoded at once: 32 of 256 px, and fewer of larger ones."""
    size = max(1, min(32, 32 * 256**2 // side**2))
    return [range(start, min(start + size, count)) for start in range(0, count, size)]
