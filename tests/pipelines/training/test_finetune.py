"""The two-stage fine-tune on a shop's own pictures, with the bundled models, at 64 px and a few steps."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file
from typer.testing import CliRunner

from pipelines.cli.main import app
from pipelines.diffusion.brushnet import BrushNetModel
from pipelines.diffusion.inpainting import InpaintingPipeline
from pipelines.errors import UsageError
from pipelines.models import profile as models
from pipelines.models.profile import Profile, load_profile
from pipelines.settings import Settings, get_settings
from pipelines.store import FolderStore
from pipelines.training import brushnet, finetune
from pipelines.training.data import is_held_out
from pipelines.training.evaluate import Evaluator
from pipelines.training.finetune import Finetune, TrainingStage, begin, gather, held_out, own_pack, train_stage
from pipelines.training.loop import TrainOptions, fit
from pipelines.training.sources import Dataset, Picture, picture_pack
from pipelines.vision.photos import png_bytes
from tests.published import tiny_base, write_clip, write_folder, write_single_file

pytestmark = pytest.mark.slow
WEIGHTS = "diffusion_pytorch_model.safetensors"
NAMES = [f"thing {n}" for n in range(40)]
HELD_OUT = [name for name in NAMES if is_held_out(name)][:2]
LEARNT = [name for name in NAMES if not is_held_out(name)][:3]


class Killed(Exception):
    pass


@pytest.fixture
def profile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Profile]:
    """The bundled one, which paints at 64 px here, and has a random-mask BrushNet in any case."""
    document = yaml.safe_load((models.PROFILES / "mini.yaml").read_text("utf-8")) | {"native_size": 64}
    document["parts"].setdefault("brushnet_random", {"like": "brushnet"})
    folder = tmp_path / "profiles"
    folder.mkdir()
    (folder / "mini").symlink_to(models.PROFILES / "mini")
    (folder / "mini.yaml").write_text(yaml.safe_dump(document), "utf-8")
    monkeypatch.setattr(models, "PROFILES", folder)
    load_profile.cache_clear()
    yield load_profile("mini")
    load_profile.cache_clear()


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkpoint after every step, and no samples drawn."""
    monkeypatch.setattr(brushnet, "fit", lambda *args, **rest: fit(*args, **{**rest, "every_seconds": 0}))
    monkeypatch.setattr(brushnet, "show", lambda *args: None)
    monkeypatch.setattr(finetune, "SHOTS", 8)


@pytest.fixture
def store_at(tmp_path: Path) -> FolderStore:
    return FolderStore(tmp_path / "store")


def cutouts(store: FolderStore, names: list[str]) -> str:
    """A data set of coloured boxes."""
    pictures = []
    for n, name in enumerate(names):
        rgba = np.zeros((80, 60, 4), np.uint8)
        rgba[20:70, 10:50] = [40 * n % 255, 200 - 30 * n, 90, 255]
        digest = store.put(png_bytes(Image.fromarray(rgba, "RGBA")), "image/png")
        pictures.append(Picture(name, name, "cutout", digest))
    return Dataset("test", tuple(pictures)).save(store)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder of two pairs, one of them of a held-out product."""
    for n, name in enumerate([LEARNT[0], LEARNT[1], HELD_OUT[0]]):
        rng, drawn = np.random.default_rng(n), np.zeros((70, 90), np.uint8)
        drawn[20:60, 30:70] = 255
        for folder, picture in (("images", rng.integers(0, 255, (70, 90, 3), np.uint8)), ("masks", drawn)):
            (tmp_path / "photos" / folder).mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture).save(tmp_path / "photos" / folder / f"{name}.png")
    return tmp_path / "photos"


def weights(folder: Path) -> torch.Tensor:
    return torch.cat([tensor.float().flatten() for tensor in load_file(folder / WEIGHTS).values()])


def losses(folder: Path, part: str) -> list[float]:
    return torch.load(folder / "work" / f"{part}_64" / "checkpoint.pt", weights_only=True)["losses"]


def test_two_stages_from_random_masks_with_the_n_of_each(profile, quick, store_at, photos, tmp_path):
    salient, found = gather(str(photos), store_at, Settings(), tmp_path)
    assert found is not None
    assert len(found.pictures) == 3
    job = Finetune(
        TrainingStage(salient, steps=4),
        TrainingStage(cutouts(store_at, LEARNT + HELD_OUT), steps=1),
        side=64,
        batch=2,
        lr=1e-2,
    )
    folder = job.folder(profile, tmp_path / "state")
    exports = begin(job, profile, folder)
    options = TrainOptions("brushnet", data=tmp_path)
    first = train_stage("salient", job, folder, store_at, options, 50)
    second = train_stage("instance", job, folder, store_at, options, 50)
    assert (first.figures["pictures"], first.figures["products"], first.figures["samples"]) == (2, 2, 8)
    assert (second.figures["pictures"], second.figures["products"], second.figures["steps"]) == (6, 3, 1)
    start, middle, end = (weights(exports / part) for part in ("brushnet_random", "brushnet_salient", "brushnet"))
    assert 0 < (end - middle).norm() < 0.5 * (middle - start).norm(), "stage 2 goes on from stage 1"
    assert [picture.product for picture in held_out(job, store_at, tmp_path)] == HELD_OUT
    # finished stages are not done again
    assert train_stage("instance", job, folder, FolderStore(tmp_path / "nothing"), options, 50) == second


def test_a_killed_fine_tune_walks_on_along_the_same_loss_curve(profile, quick, store_at, tmp_path):
    data = cutouts(store_at, LEARNT)
    job = Finetune(TrainingStage("", minutes=0), TrainingStage(data, steps=4), side=64, batch=2)
    options = TrainOptions("brushnet", data=tmp_path)

    def kill(_: object, step: int) -> None:
        if step == 2:
            raise Killed

    for name in ("whole", "killed"):
        begin(job, profile, tmp_path / name)
    train_stage("instance", job, tmp_path / "whole", store_at, options, 50)
    with pytest.raises(Killed):
        train_stage("instance", job, tmp_path / "killed", store_at, options, 50, kill)
    assert len(losses(tmp_path / "killed", "brushnet")) == 2
    resumed = train_stage("instance", job, tmp_path / "killed", store_at, options, 50)
    assert losses(tmp_path / "killed", "brushnet") == pytest.approx(losses(tmp_path / "whole", "brushnet"), rel=1e-6)
    assert torch.equal(weights(resumed.folder), weights(tmp_path / "whole" / "models" / "brushnet"))


def test_without_stage_1_it_begins_from_the_weights_in_use(profile, store_at, tmp_path):
    job = Finetune(TrainingStage("", minutes=0), TrainingStage(cutouts(store_at, LEARNT), steps=1))
    exports = begin(job, profile, tmp_path / "work")
    assert torch.equal(weights(exports / "brushnet_salient"), weights(profile.part("brushnet").path))
    with pytest.raises(UsageError, match="no model 'base'"):
        begin(job, replace(profile, parts=tuple(part for part in profile.parts if part.name != "unet")), tmp_path / "x")
    other = Finetune(TrainingStage("", minutes=0), TrainingStage(cutouts(store_at, LEARNT), steps=2))
    assert job.digest(profile) != other.digest(profile)
    assert job.digest(profile) == Finetune(job.salient, job.instance).digest(profile)


@pytest.fixture
def full_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], Profile]]:
    """Makes a profile in the formats of the full-size ones, tiny: a single-file base and a released BrushNet."""

    def make(family: str) -> Profile:
        base, folder = tiny_base(family), tmp_path / f"models of {family}"
        write_single_file(base, folder / "base.safetensors")
        write_clip(folder / "clip")
        BrushNetModel.from_unet(base.unet).save_pretrained(folder / "brushnet")
        write_folder(base, tmp_path / "profiles" / family, weights=False)
        files = {"base": "base.safetensors", "clip": "clip/model.safetensors", "brushnet": f"brushnet/{WEIGHTS}"}
        parts = {
            name: {
                "kind": name, "path": file.split("/")[0], "revision": "1", "source": "a shop", "licence": "CC0",
                "sha256": hashlib.sha256((folder / file).read_bytes()).hexdigest(),
            }
            for name, file in files.items()
        }  # fmt: skip
        parts["base"]["config"] = family
        document = {
            "bundled": False, "title": "Tiny", "native_size": 64, "caption_confidence": 1, "tag_confidence": {},
            "vocabulary": "none", "parts": parts,
        }  # fmt: skip
        (tmp_path / "profiles" / f"{family}.yaml").write_text(yaml.safe_dump(document))
        return load_profile(family, folder)

    monkeypatch.setattr(models, "PROFILES", tmp_path / "profiles")
    load_profile.cache_clear()
    yield make
    load_profile.cache_clear()


def test_a_released_brushnet_learns_beside_its_own_base(full_size, quick, store_at, tmp_path):
    profile = full_size("sd15")
    job = Finetune(
        TrainingStage("", minutes=0), TrainingStage(cutouts(store_at, LEARNT), steps=2), side=64, batch=2, lr=1e-2
    )
    folder = job.folder(profile, tmp_path / "state")
    exports = begin(job, profile, folder)
    options = TrainOptions("brushnet", data=tmp_path, profile=profile.name)
    trained = train_stage("instance", job, folder, store_at, options, 50)
    assert trained.figures["samples"] == 4
    assert not torch.equal(weights(trained.folder), weights(exports / "brushnet_salient"))
    card = (trained.folder / "CARD.md").read_text(encoding="utf-8")
    assert card.startswith("# sd15 / brushnet")
    assert "3 pictures of 3 products" in card

    # in the base's own terms: latents as its sampler normalises them, the noise as the target
    pipeline = InpaintingPipeline.from_profile("sd15", models_dir=profile.models_dir)
    options = replace(options, out=exports, work=folder / "work")
    pictures = Dataset.load(store_at, job.instance.pictures).pictures
    shots = picture_pack(folder / "instance", pictures, store_at, 64, 8, 50)
    base, pack = own_pack(options, shots, folder / "instance" / "encoded_64.npz")
    pixels = torch.from_numpy(np.array(shots.image(0))).permute(2, 0, 1)[None] / 127.5 - 1
    expected = pipeline._encode_image(pixels)
    torch.testing.assert_close(base.pack.batch(np.array([0])), expected, rtol=2e-2, atol=2e-2)
    _, drawn = base.batch(options, 0, 4, pack.picks)
    signal = base.scheduler.alphas_cumprod[drawn.timesteps].view(-1, 1, 1, 1)
    noise = (drawn.noisy - signal.sqrt() * base.pack.batch(drawn.picks)) / (1 - signal).sqrt()
    torch.testing.assert_close(drawn.target, noise, rtol=1e-3, atol=1e-3)

    # and what came of it paints
    pipeline.brushnet = BrushNetModel.from_pretrained(trained.folder).float()
    photo, mask = Image.new("RGB", (64, 64), "red"), Image.new("L", (64, 64), 255)
    [picture] = pipeline(photo, mask, "a", num_inference_steps=2).images
    assert picture.size == (64, 64)


def test_sdxl_is_refused_before_anything_is_laid_out(full_size, store_at, tmp_path):
    job = Finetune(TrainingStage("", minutes=0), TrainingStage(cutouts(store_at, LEARNT), steps=1), side=64)
    with pytest.raises(UsageError, match="profile sdxl is of SDXL"):
        begin(job, full_size("sdxl"), tmp_path / "work")
    assert not (tmp_path / "work").exists()
    two_stages = replace(job, salient=TrainingStage("training", steps=1))
    with pytest.raises(UsageError, match=r"no brushnet_random .*; with 0 minutes stage 1 is left out"):
        begin(two_stages, full_size("sd15"), tmp_path / "work")


def test_what_is_trained_beside_another_base_never_lands_in_mini(full_size, photos, monkeypatch):
    monkeypatch.setenv("PACKSHOT_PROFILE", "sd15")
    monkeypatch.setenv("PACKSHOT_MODELS_DIR", str(full_size("sd15").models_dir))
    get_settings.cache_clear()
    argv = ["train", "brushnet", "--instances", str(photos), "--salient-minutes", "0", "--steps", "1"]
    refused = CliRunner().invoke(app, argv)
    get_settings.cache_clear()
    assert isinstance(refused.exception, UsageError)
    assert "--out FOLDER" in str(refused.exception)


def test_what_cannot_be_learnt_from_is_a_usage_error(store_at, photos, tmp_path):
    with pytest.raises(UsageError, match="no training pictures"):
        gather("training", store_at, Settings(), tmp_path)
    for name in LEARNT[:2]:
        (photos / "images" / f"{name}.png").unlink()
    with pytest.raises(UsageError, match="held out"):
        gather(str(photos), store_at, Settings(), tmp_path)


def test_the_command_trains_on_a_folder_into_another_and_says_how_much_it_had(profile, quick, photos, tmp_path):
    argv = ["train", "brushnet", "--instances", str(photos), "--salient-minutes", "0", "--steps", "1", "--size", "64"]
    done = CliRunner().invoke(app, [*argv, "--batch", "2", "--device", "cpu", "--out", str(tmp_path / "out")])
    assert done.exit_code == 0, (done.output, done.exception)
    assert "3 pictures, 1 of them held out, 0 refused" in done.output
    figures = json.loads(re.search(r"^instance: (.*)$", done.output, re.M)[1])
    assert (figures["pictures"], figures["steps"], figures["samples"]) == (2, 1, 2)
    assert not torch.equal(weights(tmp_path / "out" / "brushnet"), weights(profile.part("brushnet").path))
    idle = CliRunner().invoke(app, ["train", "brushnet", "--minutes", "0"])
    assert isinstance(idle.exception, UsageError)


def test_an_evaluation_is_the_same_every_time_and_tells_models_apart(profile, store_at, tmp_path):
    pictures = Dataset.load(store_at, cutouts(store_at, LEARNT + HELD_OUT)).side(held_out=True)
    evaluator = Evaluator.prepare(
        tmp_path / "frozen", pictures, store_at, profile, products=8, seeds=2, steps=2, max_megapixels=50
    )
    assert evaluator.products == tuple(sorted(HELD_OUT, key=evaluator.products.index))
    assert len(evaluator.products) == 2
    found, painted = evaluator.evaluate()
    assert (found.n, found.products) == (4, 2)
    own = evaluator.pipeline.brushnet
    again, _ = evaluator.evaluate(own)
    assert again == found
    with torch.no_grad():
        silent = type(own).from_config(own.config).eval()
    other, repainted = evaluator.evaluate(silent)
    assert evaluator.pipeline.brushnet is own
    assert not np.array_equal(painted[0], repainted[0])
    assert {(s.product, s.seed) for s in other.scores} == {(s.product, s.seed) for s in found.scores}
    assert evaluator.sheet(painted, repainted).size == (2 * 64, 3 * 64)
    with pytest.raises(UsageError, match="held out"):
        Evaluator.prepare(tmp_path / "none", [], store_at, profile, max_megapixels=50)
