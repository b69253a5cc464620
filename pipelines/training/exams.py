"""A frozen exam for every bundled model: is it better than the one before it?

    judge("brushnet", options, folder)        # of the model in `folder`, with the other parts of `options.out`

What counts is an error on held-out shots, so less is better. Shots, noise, timesteps and masks depend on nothing but
the shot's number: two models of one part, beside the same other parts, are asked the very same questions.

    autoencoder     LPIPS of decoded to original, at 256 px
    clip            share of held-out walls and floors that it names wrongly
    all others      error of the predicted noise (or v) against the true one
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, ControlNetModel, DDIMScheduler, UNet2DConditionModel
from numpy.typing import NDArray
from torch import Tensor
from transformers import CLIPModel, CLIPTokenizer

from pipelines.diffusion.brushnet import BrushNetModel, inject
from pipelines.diffusion.inpainting import latent_mask, masked_image
from pipelines.diffusion.latents import encode
from pipelines.diffusion.loras import add_lora
from pipelines.training import clip
from pipelines.training.autoencoder import Lpips, to_bytes, to_tensor
from pipelines.training.autoencoder import judge as judge_autoencoder
from pipelines.training.brushnet import ARMS, encode_condition
from pipelines.training.controlnet import control_images
from pipelines.training.data import Composer, ShotPack
from pipelines.training.loop import TrainOptions
from pipelines.training.loras import STYLES, style_shot
from pipelines.training.masks import random_mask, whole_mask
from pipelines.training.unet import TextConditioned, build_model, load_autoencoder

SHOTS, SIDE, AT_ONCE = 32, 256, 4
SEED = 77

Predict = Callable[[Tensor, Tensor, Tensor, slice], Tensor]
"""(noisy latents, timesteps, text states, which shots) to the prediction, all of as many rows."""


def judge(part: str, options: TrainOptions, folder: Path) -> float:
    """The error of the model of `part` that lies in `folder`, beside the other parts of `options.out`.

    Raises UsageError where the autoencoder is asked for and AlexNet's weights are missing.
    """
    with torch.no_grad():
        if part == "autoencoder":
            return _autoencoder(options, folder)
        if part == "clip":
            return _clip(options, folder)
        return Paper.draw(options, STYLES.get(part)).error(part, folder)


def _autoencoder(options: TrainOptions, folder: Path) -> float:
    model = AutoencoderKL.from_pretrained(folder).float().to(options.device)
    lpips = Lpips(options.data.parent / "models" / "alexnet.ckpt").to(options.device)
    composer = Composer(options.data, "test", seed=SEED)
    shots = np.stack([to_bytes(composer.shot(n, (SIDE, SIDE)).image) for n in range(SHOTS)])
    return judge_autoencoder(model, lpips, to_tensor(shots)).lpips


def _clip(options: TrainOptions, folder: Path) -> float:
    model, tokenizer = CLIPModel.from_pretrained(folder).float(), CLIPTokenizer.from_pretrained(folder)
    figures = clip.evaluate(model, tokenizer, options, count=4 * SHOTS)
    return 1 - (figures["wall_accuracy"] + figures["floor_accuracy"]) / 2


@dataclasses.dataclass(frozen=True, slots=True)
class Paper:
    """The questions of a diffusion part: held-out shots, noised; each at a timestep of its own."""

    options: TrainOptions
    base: TextConditioned
    vae: AutoencoderKL
    shots: ShotPack
    states: Tensor
    noisy: Tensor
    timesteps: Tensor
    target: Tensor

    @classmethod
    def draw(cls, options: TrainOptions, look: object | None = None) -> Paper:
        """The shots of held-out products, in a look where one is given, with the parts of `options.out`."""
        composer = Composer(options.data, "test", seed=SEED)
        if look is None:
            drawn = [composer.shot(n, (SIDE, SIDE)) for n in range(SHOTS)]
        else:
            drawn = [style_shot(composer, look, n, SIDE) for n in range(SHOTS)]  # type: ignore[arg-type]
        images = np.stack([to_bytes(shot.image) for shot in drawn])
        masks = np.stack([np.round(shot.mask * 255).astype(np.uint8) for shot in drawn])
        shots = ShotPack([images], [masks], [shot.caption for shot in drawn])
        vae, base = load_autoencoder(options), build_model(options, first=False).eval()
        scheduler = DDIMScheduler.from_pretrained(options.out / "scheduler")
        pixels = to_tensor(images).to(options.device)
        latents = torch.cat([encode(vae, part) for part in pixels.split(AT_ONCE)]).float()
        noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(SEED)).to(latents)
        spread = (np.arange(SHOTS) * 0.618 % 1 * scheduler.config.num_train_timesteps).astype(np.int64)
        timesteps = torch.from_numpy(spread).to(options.device)
        of_v = scheduler.config.prediction_type == "v_prediction"
        target = scheduler.get_velocity(latents, noise, timesteps) if of_v else noise
        noisy = scheduler.add_noise(latents, noise, timesteps)
        return cls(options, base, vae, shots, base.encode(shots.captions), noisy, timesteps, target)

    def error(self, part: str, folder: Path) -> float:
        """Mean squared error of the model of `part` in `folder` over all shots."""
        predict = self._predictor(part, folder)
        errors = []
        for start in range(0, SHOTS, AT_ONCE):
            rows = slice(start, start + AT_ONCE)
            predicted = predict(self.noisy[rows], self.timesteps[rows], self.states[rows], rows)
            errors.append(F.mse_loss(predicted.float(), self.target[rows]))
        return round(float(torch.stack(errors).mean()), 5)

    def _predictor(self, part: str, folder: Path) -> Predict:
        device = self.options.device
        if part == "unet":
            return partial(_plain, UNet2DConditionModel.from_pretrained(folder).float().to(device))
        if part in ARMS:
            arm: BrushNetModel = BrushNetModel.from_pretrained(folder).float().to(device)
            return partial(self._with_brushnet, arm, self._conditions(ARMS[part].masks == "random"))
        if part == "controlnet_canny":
            net = ControlNetModel.from_pretrained(folder).float().to(device)
            edges = control_images(self.shots, list(range(SHOTS)), [n % 2 == 0 for n in range(SHOTS)])
            return partial(self._with_controlnet, net, edges.to(device))
        if part == "controlnet_inpaint":
            net = ControlNetModel.from_pretrained(folder).float().to(device)
            pixels, masks = self._kept(random=True)
            return partial(self._with_controlnet, net, masked_image((pixels + 1) / 2, masks))
        if part == "unet_inpaint9":
            wide = UNet2DConditionModel.from_pretrained(folder).float().to(device)
            pixels, masks = self._kept(random=True)
            seen = torch.cat(
                [self.vae.encode(p).latent_dist.mode() for p in masked_image(pixels, masks, fill=0.0).split(AT_ONCE)]
            )
            painted = 1 - latent_mask(masks, (seen.shape[-2], seen.shape[-1]), "nearest")
            return partial(_with_nine, wide, torch.cat([painted, seen], 1))
        if part in STYLES:
            add_lora(self.base.unet, folder)
            return partial(_plain, self.base.unet)
        raise ValueError(f"there is no exam for {part!r}")

    def _kept(self, random: bool) -> tuple[Tensor, Tensor]:
        """The shots, (N, 3, H, W) in -1..1, and of each what is kept, (N, 1, H, W): a random region or the product."""
        images: NDArray[np.uint8] = np.stack([self.shots.image(n) for n in range(SHOTS)])
        draw = random_mask if random else whole_mask
        kept = [draw(self.shots.mask(n), np.random.default_rng([SEED, n])) for n in range(SHOTS)]
        device = self.options.device
        return to_tensor(images).to(device), torch.from_numpy(np.stack(kept))[:, None].to(device)

    def _conditions(self, random: bool) -> Tensor:
        pixels, masks = self._kept(random)
        pairs = zip(pixels.split(AT_ONCE), masks.split(AT_ONCE), strict=True)
        return torch.cat([encode_condition(self.vae, *pair) for pair in pairs])

    def _with_brushnet(
        self, arm: BrushNetModel, conditions: Tensor, noisy: Tensor, t: Tensor, states: Tensor, rows: slice
    ) -> Tensor:
        with inject(self.base.unet, *arm(noisy, t, None, conditions[rows])):
            predicted: Tensor = self.base.unet(noisy, t, encoder_hidden_states=states).sample
        return predicted

    def _with_controlnet(
        self, net: ControlNetModel, controls: Tensor, noisy: Tensor, t: Tensor, states: Tensor, rows: slice
    ) -> Tensor:
        down, mid = net(noisy, t, states, controls[rows], return_dict=False)
        predicted: Tensor = self.base.unet(
            noisy,
            t,
            encoder_hidden_states=states,
            down_block_additional_residuals=down,
            mid_block_additional_residual=mid,
        ).sample
        return predicted


def _plain(unet: UNet2DConditionModel, noisy: Tensor, t: Tensor, states: Tensor, rows: slice) -> Tensor:
    predicted: Tensor = unet(noisy, t, encoder_hidden_states=states).sample
    return predicted


def _with_nine(
    unet: UNet2DConditionModel, seen: Tensor, noisy: Tensor, t: Tensor, states: Tensor, rows: slice
) -> Tensor:
    predicted: Tensor = unet(torch.cat([noisy, seen[rows]], 1), t, encoder_hidden_states=states).sample
    return predicted
