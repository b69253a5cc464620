"""Train the bundled scene LoRA (Hu et al. 2022) `lora_oak_window`: oak boards in low, warm light through a window.

The look is graded over composed oak scenes and is in no picture that the UNet was trained on; its caption is the
base's, so the LoRA, and not a word, carries the style. Only the attention's projections of the UNet are adapted.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from diffusers import StableDiffusionPipeline
from diffusers.utils import convert_state_dict_to_diffusers
from numpy.typing import NDArray
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from torch import Tensor, nn

from pipelines.training.autoencoder import tensor_bytes, to_bytes
from pipelines.training.card import write_card
from pipelines.training.composer import Shot, compose, draw_scene
from pipelines.training.data import Composer
from pipelines.training.loop import TrainOptions, fit, grid_picture, step_rng
from pipelines.training.unet import (
    LatentPack,
    TextConditioned,
    build_model,
    build_scheduler,
    encode,
    load_autoencoder,
    noisy_batch,
    sample,
)

NAME = "lora_oak_window"
RANK = 8
SHOTS = {128: 1500, 256: 600}
WALLS = ("linen", "beige", "white")
PROMPT = "a photo of a {} on an oak wood floor against a {} wall, soft light from the left, window light on the wall"


def train(options: TrainOptions) -> Path:
    """Train at `options.size` (128 px by default) and export to `options.out`/lora_oak_window; return that folder."""
    torch.manual_seed(options.seed)
    side = options.size or 128
    stage = dataclasses.replace(options, part=f"scene_lora_{side}")
    batch, lr = options.batch or (16 if side <= 128 else 6), options.lr or 2e-3
    pack = style_pack(stage, side)
    model = build_model(options, first=False).requires_grad_(False)
    model.unet.add_adapter(
        LoraConfig(r=RANK, lora_alpha=RANK, target_modules=["to_q", "to_k", "to_v", "to_out.0"]), NAME
    )
    scheduler = build_scheduler()

    def loss_of_step(step: int) -> Tensor:
        rng = step_rng(stage, step)
        picks = rng.integers(0, len(pack.captions), batch)
        drawn = noisy_batch(model, pack, scheduler, picks, stage, step, rng)
        predicted = model.unet(drawn.noisy, drawn.timesteps, encoder_hidden_states=drawn.states).sample
        return F.mse_loss(predicted.float(), drawn.target)

    result = fit(
        stage,
        model,
        loss_of_step,
        batch=batch,
        lr=lr,
        every_seconds=120,
        on_checkpoint=lambda ema, _: show(ema, options, side, stage.folder / "samples.png"),
    )
    assert isinstance(result.ema, TextConditioned)
    folder = options.out / NAME
    layers = convert_state_dict_to_diffusers(get_peft_model_state_dict(result.ema.unet, adapter_name=NAME))
    layers = {key: tensor.half() for key, tensor in layers.items()}
    StableDiffusionPipeline.save_lora_weights(folder, unet_lora_layers=layers)
    write_card(folder, NAME, result.ema.unet, options, {f"{side}_px": result.figures, "rank": RANK})
    return folder


def style_pack(options: TrainOptions, side: int) -> LatentPack:
    """Compose and encode the style's pictures once into the part's work folder."""
    composer = Composer(options.data, "train", seed=41)
    shots = [style_shot(composer, n, side) for n in range(SHOTS[side])]
    packed = options.folder / "latents.npy"
    if not packed.exists():
        vae = load_autoencoder(options)
        pictures = [to_bytes(shot.image) for shot in shots]
        latents = [encode(vae, np.stack(pictures[n : n + 32])) for n in range(0, len(pictures), 32)]
        np.save(packed, np.concatenate(latents))
    return LatentPack(np.load(packed), [shot.caption for shot in shots])


def style_shot(composer: Composer, index: int, side: int) -> Shot:
    """One picture of the style: an oak scene with a window, graded warm and low; the product's own colours stay."""
    rng = np.random.default_rng([composer.seed, index])
    scene = dataclasses.replace(
        draw_scene(rng),
        wall=str(rng.choice(WALLS)),
        floor="oak wood",
        prop="window",
        light="left",
        softness=0.002,
        strength=0.34,
    )
    product = composer.goods[int(rng.integers(len(composer.goods)))]
    shot = compose(scene, (side, side), product, rng)
    keep = shot.mask[..., None]
    return dataclasses.replace(shot, image=(grade(shot.image, rng) * (1 - keep) + shot.image * keep).astype(np.float32))


def grade(image: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.float32]:
    """Warm low sun: amber highlights, deeper shadows, a fall-off to the right, leaves' dapple over wall and floor."""
    height, width = image.shape[:2]
    dapple = cv2.resize(rng.standard_normal((7, 7)).astype(np.float32), (width, height), interpolation=cv2.INTER_CUBIC)
    fall_off = np.linspace(1.08, 0.62, width, dtype=np.float32)[None, :, None]
    light = fall_off * (1 + 0.1 * np.tanh(2 * dapple))[..., None]
    graded = np.clip(image, 0, 1) ** 1.25 * light * np.array([1.12, 0.93, 0.66], np.float32)
    return np.clip(graded, 0, 1)


@torch.no_grad()
def show(model: nn.Module, options: TrainOptions, side: int, path: Path) -> None:
    """Draw the style's prompt with the LoRA, and below it without."""
    assert isinstance(model, TextConditioned)
    vae = load_autoencoder(options)
    prompts = [PROMPT.format(what, wall) for what in ("mug", "bag") for wall in WALLS]
    with_style = tensor_bytes(vae.decode(sample(model, prompts, side)).sample)
    model.unet.disable_adapters()
    without = tensor_bytes(vae.decode(sample(model, prompts, side)).sample)
    model.unet.enable_adapters()
    grid_picture([*with_style, *without]).save(path)
