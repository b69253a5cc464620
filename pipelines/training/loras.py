"""Train LoRAs of the bundled UNet (Hu et al. 2022), each to a style that the UNet was not trained on.

    lora_oak_window    the scene LoRA: oak boards in low, warm light through a window; adapts attention projections
    base_high_key      a second base model: any scene in high-key light; adapts every attention and resnet layer

A style is a colour grade of composed scenes with the base's captions, so that the LoRA carries it, not a word.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from diffusers import StableDiffusionPipeline
from numpy.typing import NDArray
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from torch import Tensor, nn

from pipelines.training.autoencoder import tensor_bytes, to_bytes
from pipelines.training.card import write_card
from pipelines.training.composer import ComposedScene, ComposedShot, compose, draw_scene
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

SHOTS = {128: 1500, 256: 600}
WALLS = ("linen", "beige", "white")
PROMPT = "a photo of a {} on an oak wood floor against a {} wall, soft light from the left, window light on the wall"
ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
EVERY_LAYER = (
    *ATTENTION, "proj_in", "proj_out", "ff.net.0.proj", "ff.net.2",
    "conv1", "conv2", "conv_shortcut", "time_emb_proj", "downsamplers.0.conv", "upsamplers.0.conv",
)  # fmt: skip

Pixels = NDArray[np.float32]


@dataclasses.dataclass(frozen=True, slots=True)
class Style:
    """How a scene is changed before it is drawn, and how its picture is graded. `layers` get matrices of `rank`."""

    layers: tuple[str, ...]
    rank: int
    scene: Callable[[ComposedScene, np.random.Generator], ComposedScene]
    grade: Callable[[Pixels, np.random.Generator], Pixels]


def train(options: TrainOptions) -> Path:
    """Train the style `options.part` at `options.size` (128 px by default); return the folder it is exported to."""
    torch.manual_seed(options.seed)
    name, style = options.part, STYLES[options.part]
    side = options.size or 128
    stage = dataclasses.replace(options, part=f"{name}_{side}")
    batch, lr = options.batch or (16 if side <= 128 else 6), options.lr or 2e-3
    pack = style_pack(stage, style, side)
    model = build_model(options, first=False).requires_grad_(False)
    model.unet.add_adapter(LoraConfig(r=style.rank, lora_alpha=style.rank, target_modules=list(style.layers)), name)
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
    folder = options.out / name
    # PEFT's own names: diffusers' conversion renames attention only, and a file with both kinds does not load
    trained = get_peft_model_state_dict(result.ema.unet, adapter_name=name)
    layers = {key: tensor.half() for key, tensor in trained.items()}
    StableDiffusionPipeline.save_lora_weights(folder, unet_lora_layers=layers)
    write_card(folder, name, result.ema.unet, options, {f"{side}_px": result.figures, "rank": style.rank})
    return folder


def style_pack(options: TrainOptions, style: Style, side: int) -> LatentPack:
    """Compose and encode the style's pictures once into the part's work folder."""
    composer = Composer(options.data, "train", seed=41)
    shots = [style_shot(composer, style, n, side) for n in range(SHOTS[side])]
    packed = options.folder / "latents.npy"
    if not packed.exists():
        vae = load_autoencoder(options)
        pictures = [to_bytes(shot.image) for shot in shots]
        latents = [encode(vae, np.stack(pictures[n : n + 32])) for n in range(0, len(pictures), 32)]
        np.save(packed, np.concatenate(latents))
    return LatentPack(np.load(packed), [shot.caption for shot in shots])


def style_shot(composer: Composer, style: Style, index: int, side: int) -> ComposedShot:
    """One picture of a style; the product keeps its own colours."""
    rng = np.random.default_rng([composer.seed, index])
    scene = style.scene(draw_scene(rng), rng)
    product = composer.goods[int(rng.integers(len(composer.goods)))]
    shot = compose(scene, (side, side), product, rng)
    keep = shot.mask[..., None]
    graded = style.grade(np.clip(shot.image, 0, 1), rng)
    return dataclasses.replace(shot, image=(graded * (1 - keep) + shot.image * keep).astype(np.float32))


def oak_by_a_window(scene: ComposedScene, rng: np.random.Generator) -> ComposedScene:
    """An oak floor, a light wall, and window light from the left."""
    wall = str(rng.choice(WALLS))
    return dataclasses.replace(
        scene, wall=wall, floor="oak wood", prop="window", light="left", softness=0.002, strength=0.34
    )


def low_and_warm(image: Pixels, rng: np.random.Generator) -> Pixels:
    """Low, warm sun: amber highlights, deeper shadows, a fall-off to the right, dapple of leaves."""
    height, width = image.shape[:2]
    dapple = cv2.resize(rng.standard_normal((7, 7)).astype(np.float32), (width, height), interpolation=cv2.INTER_CUBIC)
    fall_off = np.linspace(1.08, 0.62, width, dtype=np.float32)[None, :, None]
    light = fall_off * (1 + 0.1 * np.tanh(2 * dapple))[..., None]
    return np.clip(image**1.25 * light * np.array([1.12, 0.93, 0.66], np.float32), 0, 1)


def strongly_lit(scene: ComposedScene, rng: np.random.Generator) -> ComposedScene:
    """The same scene with light that is twice as directional."""
    return dataclasses.replace(scene, strength=float(rng.uniform(0.34, 0.46)))


def high_key(image: Pixels, rng: np.random.Generator) -> Pixels:
    """Lifted shadows, pale highlights and some glow; colours keep their names."""
    lifted = 0.1 + 0.9 * image**0.75
    glow = cv2.GaussianBlur(lifted, (0, 0), image.shape[0] / 24)
    return np.clip(0.7 * lifted + 0.3 * np.maximum(lifted, glow), 0, 1)


STYLES = {
    "lora_oak_window": Style(ATTENTION, 8, oak_by_a_window, low_and_warm),
    "base_high_key": Style(EVERY_LAYER, 16, strongly_lit, high_key),
}


@torch.no_grad()
def show(model: nn.Module, options: TrainOptions, side: int, path: Path) -> None:
    """Draw the oak scene's prompt with the LoRA, and below it without."""
    assert isinstance(model, TextConditioned)
    vae = load_autoencoder(options)
    prompts = [PROMPT.format(what, wall) for what in ("mug", "bag") for wall in WALLS]
    changed = tensor_bytes(vae.decode(sample(model, prompts, side)).sample)
    model.unet.disable_adapters()
    without = tensor_bytes(vae.decode(sample(model, prompts, side)).sample)
    model.unet.enable_adapters()
    grid_picture([*changed, *without]).save(path)
