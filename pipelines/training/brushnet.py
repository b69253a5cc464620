"""Train BrushNet (Ju et al. 2024) for the bundled UNet, in the paper's two stages (section 3.1.2), and its control arm.

    brushnet_random    from the UNet, on random masks, like a released BrushNet
    brushnet_salient   stage 1, from brushnet_random: whole salient objects; toys, and photos with a salient net's masks
    brushnet           stage 2, from stage 1: whole e-commerce products by their mattes; packshot uses this one
    brushnet_control   from brushnet_random, on random masks for as long as both stages: the effect of training alone

The UNet is frozen; only the branch is trained.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDIMScheduler
from numpy.typing import NDArray
from torch import Tensor, nn

from pipelines.diffusion.brushnet import BrushNetModel, inject
from pipelines.diffusion.inpainting import latent_mask, masked_image
from pipelines.diffusion.latents import decode, encode
from pipelines.errors import UsageError
from pipelines.training.autoencoder import to_tensor
from pipelines.training.card import BUNDLED, write_card
from pipelines.training.data import Composer
from pipelines.training.loop import PROFILE, TrainOptions, TrainResult, export, fit, grid_picture, together
from pipelines.training.masks import Policy, random_mask, whole_mask
from pipelines.training.unet import GUIDANCE, FrozenBase, TextConditioned, batches, load_training_photographs
from pipelines.vision.segmenters import SalientSegmenter


@dataclasses.dataclass(frozen=True, slots=True)
class Arm:
    """One BrushNet: the part that it starts from (None: the UNet's weights), and its training masks."""

    start: str | None
    masks: Policy


ARMS = {
    "brushnet_random": Arm(None, "random"),
    "brushnet_salient": Arm("brushnet_random", "salient"),
    "brushnet": Arm("brushnet_salient", "instance"),
    "brushnet_control": Arm("brushnet_random", "random"),
}

FULL_SIZE, FULL_SIZE_LR = 100_000_000, 1e-5
"""A BrushNet with so many parameters is a released one, fine-tuned at this rate; `mini`'s has 8 million."""

UNSURE = 0.1
"""A photo is skipped if the salient net is undecided (0.2 to 0.8) on more than this share of it."""


@dataclasses.dataclass(frozen=True, slots=True)
class ConditionPack:
    """BrushNet's inputs: `conditions` (N, 5, h, w) float16, masked-image latents and mask.

    `picks` (N,) are their samples in the UNet's latent pack.
    """

    picks: NDArray[np.int64]
    conditions: NDArray[np.float16]

    def batch(self, rows: NDArray[np.int64]) -> Tensor:
        """The conditions of a batch, float32."""
        return torch.from_numpy(self.conditions[rows].astype(np.float32))


def train(options: TrainOptions) -> Path:
    """Train the arm `options.part` at `options.size` (or at 128 px for two thirds of the budget, then 256 px).

    Continues from the arm's export in `options.out`; without one it starts from the part that `ARMS` names.

    Returns:
        The export's folder.

    Raises:
        UsageError: the part to start from is not trained yet.
    """
    if options.size is not None:
        return train_at(options, options.size)
    train_at(dataclasses.replace(options, minutes=options.minutes * 2 / 3), 128)
    return train_at(dataclasses.replace(options, minutes=options.minutes / 3), 256)


def train_at(options: TrainOptions, side: int) -> Path:
    """Train at `side` px on the training folder's pictures."""
    with together(options).main_process_first():
        base = FrozenBase.load(options, side)
        pack = condition_pack(options, ARMS[options.part].masks, base, side)
    train_on(options, side, base, pack)
    return options.out / options.part


def train_on(
    options: TrainOptions,
    side: int,
    base: FrozenBase,
    pack: ConditionPack,
    watch: Callable[[BrushNetModel, int], None] | None = None,
    about: str = BUNDLED,
) -> TrainResult:
    """Train the arm `options.part` on the samples of `pack` and export it; see `train`.

    `watch(averaged model, step)` is called at every checkpoint. `about` describes the training data on the card.
    """
    torch.manual_seed(options.seed)
    arm, state = ARMS[options.part], together(options)
    stage = dataclasses.replace(options, part=f"{options.part}_{side}")
    folder = options.out / options.part
    model = load(options, base.model).to(options.device, memory_format=torch.channels_last)
    batch, lr = options.batch or (24 if side <= 128 else 8), options.lr or (4e-4 if side <= 128 else 2e-4)
    every_seconds = 150.0
    if model.num_parameters() >= FULL_SIZE:  # a checkpoint of it is 10 GB
        lr, every_seconds = options.lr or FULL_SIZE_LR, 900.0

    def loss_of_step(step: int) -> Tensor:
        rows, drawn = base.batch(stage, step, batch, pack.picks)
        condition = pack.batch(rows).to(options.device).contiguous(memory_format=torch.channels_last)
        with inject(base.model.unet, *model(drawn.noisy, drawn.timesteps, None, condition)):
            predicted = base.model.unet(drawn.noisy, drawn.timesteps, encoder_hidden_states=drawn.states).sample
        return F.mse_loss(predicted.float(), drawn.target)

    def on_checkpoint(ema: nn.Module, step: int) -> None:
        assert isinstance(ema, BrushNetModel)
        show(ema, base, stage.folder / "samples.png")
        if watch is not None:
            watch(ema, step)

    result = fit(
        stage, model, loss_of_step, batch=batch, lr=lr, every_seconds=every_seconds, on_checkpoint=on_checkpoint
    )
    if state.is_main_process:
        export(result.ema, folder)
        figures = {f"{side}_px": {**result.figures, "pictures": len(pack.picks), "masks": arm.masks}}
        write_card(folder, options.part, result.ema, options, figures, about=about)
    state.wait_for_everyone()
    return result


def load(options: TrainOptions, base: TextConditioned) -> BrushNetModel:
    """Load the arm's export in float32, or the part that it starts from. Raises UsageError if that is missing."""
    start = ARMS[options.part].start
    for part in (options.part, start):
        if part is not None and (options.out / part / "config.json").exists():
            loaded: BrushNetModel = BrushNetModel.from_pretrained(options.out / part).float()
            return loaded
    if start is not None:
        raise UsageError(f"{options.part} starts from {start}, which {options.out} lacks; run packshot train {start}")
    return BrushNetModel.from_unet(base.unet).requires_grad_(True)


def condition_pack(options: TrainOptions, masks: Policy, base: FrozenBase, side: int) -> ConditionPack:
    """Encode the samples of a mask policy behind their masks, once, into the work folder."""
    packed = options.work / "conditions" / f"{masks}_{side}.npz"
    if not packed.exists():
        packed.parent.mkdir(parents=True, exist_ok=True)
        picks, conditions = _encode_all(options, masks, base, side)
        np.savez(packed, picks=picks, conditions=conditions)
    stored = np.load(packed)
    return ConditionPack(stored["picks"], stored["conditions"])


def _encode_all(
    options: TrainOptions, masks: Policy, base: FrozenBase, side: int
) -> tuple[NDArray[np.int64], NDArray[np.float16]]:
    picks = _samples(options, masks, base, side)
    photographs = load_training_photographs(options, side) if masks == "salient" else np.empty(0)
    salient = SalientSegmenter.from_file(PROFILE / "salient" / "model.safetensors") if masks == "salient" else None
    kept, conditions = [], []
    for part in batches(len(picks), side):
        images, regions = [], []
        for n in picks[part.start : part.stop].tolist():
            rng = np.random.default_rng([31, n])
            if n < len(base.shots):
                image, product = np.asarray(base.shots.image(n)), np.asarray(base.shots.mask(n))
            else:
                assert salient is not None
                image = photographs[n - len(base.shots)]
                found = salient.segment(image)
                if ((found > 0.2) & (found < 0.8)).mean() > UNSURE or not 0.03 < (found > 0.5).mean() < 0.8:
                    continue
                product = ((found > 0.5) * 255).astype(np.uint8)
            images.append(image)
            regions.append(random_mask(product, rng) if masks == "random" else whole_mask(product, rng))
            kept.append(n)
        pixels = to_tensor(np.stack(images)).to(base.vae.device)
        region = torch.from_numpy(np.stack(regions))[:, None].to(pixels)
        conditions.append(encode_condition(base.vae, pixels, region).half().cpu().numpy())
    return np.array(kept), np.concatenate(conditions)


def _samples(options: TrainOptions, masks: Policy, base: FrozenBase, side: int) -> NDArray[np.int64]:
    """The samples of the UNet's pack that a policy uses: all shots; toys and photos; goods."""
    if masks == "random":
        return np.arange(len(base.shots))
    composer = Composer(options.data, "train", seed=side)
    wanted = composer.toys if masks == "salient" else composer.goods
    shots = [n for n in range(len(base.shots)) if composer.pool(n) is wanted]
    photographs = range(len(base.shots), len(base.pack.latents)) if masks == "salient" else range(0)
    return np.array([*shots, *photographs])


@torch.no_grad()
def encode_condition(vae: AutoencoderKL, images: Tensor, masks: Tensor) -> Tensor:
    """(N, 3, H, W) in -1..1 and (N, 1, H, W) masks, 1 = kept, to BrushNet's (N, 5, H/8, W/8), like the sampler."""
    seen = encode(vae, masked_image(images, masks).contiguous(memory_format=torch.channels_last))
    return torch.cat([seen, latent_mask(masks, (seen.shape[-2], seen.shape[-1]))], dim=1)


@torch.no_grad()
def sample(
    brushnet: BrushNetModel,
    base: FrozenBase,
    prompts: list[str],
    condition: Tensor,
    steps: int = 16,
    guidance: float = GUIDANCE,
) -> Tensor:
    """Latents for `prompts` around the products of `condition` (N, 5, h, w), by DDIM; one BrushNet pass per step."""
    scheduler, unet = DDIMScheduler.from_config(base.scheduler.config), base.model.unet
    scheduler.set_timesteps(steps)
    states = base.model.encode([""] * len(prompts) + prompts)
    latents = torch.randn((len(prompts), 4, *condition.shape[-2:]), generator=torch.Generator().manual_seed(0))
    latents = latents.to(condition)
    for t in scheduler.timesteps:
        with inject(unet, *brushnet(latents, t, None, condition)):
            both = unet(torch.cat([latents] * 2), t, encoder_hidden_states=states).sample
        without, with_text = both.chunk(2)
        latents = scheduler.step(without + guidance * (with_text - without), t, latents).prev_sample
    return latents


@torch.no_grad()
def show(model: BrushNetModel, base: FrozenBase, path: Path) -> None:
    """Draw six shots: as composed, as painted around the product, and with the product pasted back."""
    shots, picks = base.shots, list(range(len(base.shots)))[-6:]
    images = to_tensor(np.stack([shots.image(n) for n in picks])).to(base.vae.device)
    masks = np.stack([shots.mask(n) >= 128 for n in picks])
    condition = encode_condition(base.vae, images, torch.from_numpy(masks)[:, None].to(images))
    latents = sample(model, base, [base.pack.captions[n] for n in picks], condition)
    painted = [np.asarray(picture) for picture in decode(base.vae, latents)]
    pasted = [np.where(masks[k][..., None], shots.image(n), painted[k]) for k, n in enumerate(picks)]
    grid_picture([*(shots.image(n) for n in picks), *painted, *pasted]).save(path)
