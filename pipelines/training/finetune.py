"""Fine-tune BrushNet in the paper's two stages (section 3.1.2), evaluate it, and register the result.

    salient     from a random-mask BrushNet: whole salient objects
    instance    from the first stage: whole e-commerce products by their mattes, never opened, slightly dilated

A stage trains on the bundled models' training folder, on a folder of images and masks, or on the ledger's approved
cutouts. Equal fine-tunes share a work folder, so that a killed one continues.

    packshot train brushnet --instances ledger --salient-minutes 0 --minutes 60 --register --promote
"""

from __future__ import annotations

import csv
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from diffusers import DDIMScheduler

from pipelines.contracts import Store, canonical_json, sha256_hex
from pipelines.diffusion.brushnet import BrushNetModel
from pipelines.errors import UsageError
from pipelines.models.checkpoints import load_net, load_profile_base
from pipelines.models.profile import Profile
from pipelines.revisions.registry import Revision, register
from pipelines.settings import Settings
from pipelines.training.autoencoder import to_tensor
from pipelines.training.brushnet import ARMS, ConditionPack, condition_pack, encode_condition, train_on
from pipelines.training.card import BUNDLED
from pipelines.training.data import ShotPack
from pipelines.training.evaluate import Evaluator
from pipelines.training.loop import TrainOptions, together
from pipelines.training.masks import whole_mask
from pipelines.training.sources import Dataset, Picture, gather_folder, gather_ledger, gather_training, picture_pack
from pipelines.training.unet import FrozenBase, LatentPack, batches, encode, load_autoencoder

if TYPE_CHECKING:
    from sqlalchemy import Engine

StageName = Literal["salient", "instance"]
PARTS: dict[StageName, str] = {"salient": "brushnet_salient", "instance": "brushnet"}
"""The part that each stage trains: an arm of `pipelines.training.brushnet`."""

BASE = ("autoencoder", "clip", "unet", "scheduler")
"""The frozen models in the work folder that a branch is trained with."""

TRAINING = "training"
"""Stands for a data set: the pictures that the bundled models were trained on."""

SHOTS = 2000
"""Training shots of a data set; its cutouts are composed into so many scenes in all, at most 16 each."""


@dataclass(frozen=True, slots=True)
class TrainingStage:
    """One stage: the digest of its data set, or `TRAINING`, and its budget; `steps` replace `minutes` if given.

    With 0 minutes and no steps the stage is skipped, and the next starts from the weights in use.
    """

    pictures: str
    minutes: float = 30.0
    steps: int | None = None

    @property
    def skipped(self) -> bool:
        """Whether the stage is left out."""
        return not self.minutes and not self.steps


@dataclass(frozen=True, slots=True)
class Finetune:
    """All settings that decide the result, except the profile. `side`: the pictures' width and height, px."""

    salient: TrainingStage
    instance: TrainingStage
    side: int = 256
    batch: int | None = None
    lr: float | None = None
    seed: int = 0

    def stage(self, name: StageName) -> TrainingStage:
        """The stage called `name`."""
        return self.salient if name == "salient" else self.instance

    def digest(self, profile: Profile) -> str:
        """Identifies the fine-tune with this profile; equal digests mean equal results."""
        start = "brushnet" if self.salient.skipped else "brushnet_random"
        models = [profile.ref(part).sha256 for part in (*profile.sampler_parts, start)]
        return sha256_hex(canonical_json([asdict(self), models]).encode())

    def folder(self, profile: Profile, state_dir: Path) -> Path:
        """Its work folder on this machine: checkpoints, packs of pictures, exports."""
        return state_dir / "finetune" / self.digest(profile)[:16]


@dataclass(frozen=True, slots=True)
class Trained:
    """The result of a stage. `figures`: pictures, products, steps, samples, minutes, loss, and the data's source."""

    folder: Path
    figures: Mapping[str, Any]


def gather(
    source: str,
    store: Store,
    settings: Settings,
    data: Path,
    scenes: tuple[str, ...] = (),
    categories: tuple[str, ...] = (),
) -> tuple[str, Dataset | None]:
    """Freeze the pictures of `source`: "ledger", a folder of images and masks, or `TRAINING`.

    `data` is the bundled models' training folder. Returns the data set and its digest; for the pictures of that folder,
    which are frozen already, `TRAINING` and None. Raises UsageError if there is nothing to train on.
    """
    if source == TRAINING:
        if not (data / "index.csv").is_file():
            raise UsageError(f"{data}: no training pictures there; name a folder, or give the stage 0 minutes")
        return TRAINING, None
    if source == "ledger":
        from pipelines.ledger.postgres import connect

        found = gather_ledger(connect(settings.database_url), scenes, categories)
    else:
        found = gather_folder(Path(source), store, settings)
    if not found.side(held_out=False):
        raise UsageError(f"{source}: all of its {len(found.pictures)} pictures are held out; add products")
    return found.save(store), found


def begin(job: Finetune, profile: Profile, folder: Path) -> Path:
    """Write the models that the stages start from into the folder of exports, and return it; existing ones stay.

    Stage 1 starts from the profile's `brushnet_random`. Raises UsageError if the profile lacks a part to start from.
    """
    check_learnable(job, profile)
    models = folder / "models"
    name, part = ("brushnet_salient", "brushnet") if job.salient.skipped else ("brushnet_random", "brushnet_random")
    if not all((models / piece).exists() for piece in BASE):
        base = load_profile_base(profile)
        _lay_out(models / "autoencoder", base.vae.half())
        _lay_out(models / "unet", base.unet.half())
        _lay_out(models / "clip", base.text_encoder.half(), base.tokenizer)
        _lay_out(models / "scheduler", DDIMScheduler.from_config(base.scheduler.config, clip_sample=False))
    if not (models / name).exists():
        _lay_out(models / name, load_net(BrushNetModel, profile.part(part).check(), "a BrushNet"))
    return models


def check_learnable(job: Finetune, profile: Profile) -> None:
    """Raise UsageError if a fine-tune cannot start with this profile. Reads no weights."""
    if profile.has("base") and (config := profile.part("base").config) is not None:
        index = json.loads((config / "model_index.json").read_text(encoding="utf-8"))
        if "text_encoder_2" in index:
            raise UsageError(f"profile {profile.name} is of SDXL: a fine-tune is for SD 1.5 and mini")
    start = "brushnet" if job.salient.skipped else "brushnet_random"
    if not profile.has(start):
        remedy = "" if job.salient.skipped else "; with 0 minutes stage 1 is left out"
        raise UsageError(f"profile {profile.name} has no {start} for a fine-tune to begin from{remedy}")


def _lay_out(folder: Path, *parts: Any) -> None:
    """Save parts of a model into a folder that exists only when it is complete."""
    if not folder.exists():
        temporary = folder.with_name(f".{folder.name}")
        for part in parts:
            part.save_pretrained(temporary)
        temporary.rename(folder)


def train_stage(
    name: StageName,
    job: Finetune,
    folder: Path,
    store: Store,
    options: TrainOptions,
    max_megapixels: float,
    watch: Callable[[BrushNetModel, int], None] | None = None,
) -> Trained:
    """Train one stage in `folder`, which `begin` prepared; a finished stage is not repeated.

    Device, precision and training folder come from `options`, everything else from `job`.
    """
    stage, part = job.stage(name), PARTS[name]
    options = replace(
        options, part=part, minutes=stage.minutes, steps=stage.steps, batch=job.batch, lr=job.lr, seed=job.seed,
        out=folder / "models", work=folder / "work",
    )  # fmt: skip
    record = folder / f"{name}.json"
    if record.exists():
        return Trained(options.out / part, json.loads(record.read_text(encoding="utf-8")))
    state = together(options)
    with state.main_process_first():
        if stage.pictures == TRAINING:
            base = FrozenBase.load(options, job.side)
            pack = condition_pack(options, ARMS[part].masks, base, job.side)
            about: dict[str, Any] = {"source": TRAINING, "products": None}
            card = BUNDLED
        else:
            data = Dataset.load(store, stage.pictures)
            learnt = data.side(held_out=False)
            shots = picture_pack(folder / name, learnt, store, job.side, SHOTS, max_megapixels)
            base, pack = own_pack(options, shots, folder / name / f"encoded_{job.side}.npz")
            about = {"source": data.source, "products": len({picture.product for picture in learnt})}
            card = (
                f"{data.source}: {len(learnt)} pictures of {about['products']} products; their licences are the shop's."
            )
    result = train_on(options, job.side, base, pack, watch, card)
    figures = about | {"data": stage.pictures, "pictures": len(pack.picks)} | result.figures
    if state.is_main_process:
        record.write_text(json.dumps(figures), encoding="utf-8")
    return Trained(options.out / part, figures)


def own_pack(options: TrainOptions, shots: ShotPack, packed: Path) -> tuple[FrozenBase, ConditionPack]:
    """Encode a shop's shots, and BrushNet's inputs with masks of the whole product, dilated by 0 to 2 px."""
    vae = load_autoencoder(options)
    if not packed.exists():
        latents, conditions = [], []
        for part in batches(len(shots), shots.mask(0).shape[0]):
            images = np.stack([shots.image(n) for n in part])
            masks = [whole_mask(np.asarray(shots.mask(n)), np.random.default_rng([31, n])) for n in part]
            pixels = to_tensor(images).to(vae.device)
            region = torch.from_numpy(np.stack(masks))[:, None].to(pixels)
            latents.append(encode(vae, images))
            conditions.append(encode_condition(vae, pixels, region).half().cpu().numpy())
        temporary = packed.with_suffix(".tmp.npz")
        np.savez(temporary, latents=np.concatenate(latents), conditions=np.concatenate(conditions))
        temporary.replace(packed)
    stored = np.load(packed)
    base = FrozenBase.beside(options, vae, shots, LatentPack(stored["latents"], shots.captions))
    return base, ConditionPack(np.arange(len(shots)), stored["conditions"])


def held_out(job: Finetune, store: Store, data: Path) -> list[Picture]:
    """The pictures that evaluate the fine-tune: the held-out ones of its instances' data set."""
    if job.instance.pictures == TRAINING:
        return list(gather_training(data, store, "test").pictures)
    return Dataset.load(store, job.instance.pictures).side(held_out=True)


def watching(
    evaluator: Evaluator, stage: StageName, folder: Path, every_minutes: float
) -> Callable[[BrushNetModel, int], None] | None:
    """Returns a callback that appends an evaluation to `overcompletion.csv` every so many minutes; None for 0."""
    if not every_minutes:
        return None
    last = time.monotonic()

    def watch(brushnet: BrushNetModel, step: int) -> None:
        nonlocal last
        if time.monotonic() - last < every_minutes * 60:
            return
        found, _ = evaluator.evaluate(brushnet)
        with (folder / "overcompletion.csv").open("a", newline="", encoding="utf-8") as file:
            csv.writer(file).writerow([stage, step, f"{found.mean:.5f}", f"{found.rate:.4f}", found.n])
        last = time.monotonic()

    return watch


def register_finetune(
    job: Finetune,
    profile: Profile,
    trained: Mapping[StageName, Trained],
    evaluator: Evaluator,
    engine: Engine,
    store: Store,
    by: str,
) -> Revision:
    """Evaluate the last stage's export and the weights in use on the same pictures, and register the export."""
    folder = trained["instance"].folder
    evaluation, painted = evaluator.evaluate(BrushNetModel.from_pretrained(folder).float())
    baseline, before = evaluator.evaluate()
    evaluator.sheet(before, painted).save(folder / "frozen_set.png")
    return register(
        engine,
        store,
        profile,
        PARTS["instance"],
        folder,
        data=job.instance.pictures,
        stages={name: stage.figures for name, stage in trained.items()},
        evaluation=evaluation,
        baseline=baseline,
        by=by,
    )
