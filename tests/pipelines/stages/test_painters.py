"""Other painters in the sampler's place: tiny random models of the published classes, from photo to final image."""

from __future__ import annotations

import dataclasses
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from pipelines.contracts import Job, ShotStep, State, Step
from pipelines.diffusion.image_to_image import ImageToImage
from pipelines.errors import IntegrityError, UsageError
from pipelines.ledger.memory import MemoryLedger
from pipelines.models.arguments import PainterArguments
from pipelines.models.painters import PAINTERS
from pipelines.models.profile import ModelPart, load_profile
from pipelines.scenes import Control, Scene, SceneLora
from pipelines.settings import CPU, Compute
from pipelines.stages.keys import STAGES
from pipelines.stages.painter import painter_of
from pipelines.store import FolderStore
from pipelines.vision.placement import OPAQUE
from pipelines.workflow import Recipe, run_stage
from tests.painters import PAINTER_FILES
from tests.pipelines.stages.test_backdrops import inputs, planted, scene_file, shot, upstream

KLEIN, QWEN = "Flux2KleinPipeline", "QwenImageEditPipeline"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Writes a painter's folder once for all tests."""
    root = tmp_path_factory.mktemp("models")

    def write(pipeline: str) -> Path:
        path = root / pipeline
        if not path.exists():
            PAINTER_FILES[pipeline](path)
        return path

    return write


def read(at: Path, pipeline: str = KLEIN, **other: Any) -> ModelPart:
    """The part `painter` as a shop's own `sd15.yaml` names it, beside the painter's folder."""
    entry = {"kind": "painter", "pipeline": pipeline, "path": at.name, "revision": "1", "licence": "CC0"}
    entry |= {"source": "a shop", "sha256": "unpinned"}
    (at.parent / "sd15.yaml").write_text(yaml.safe_dump({"parts": {"painter": entry | other}}))
    load_profile.cache_clear()
    return load_profile("sd15", at.parent).part("painter")


def pinned(at: Path, pipeline: str = KLEIN, **arguments: Any) -> ModelPart:
    digest = read(at, pipeline).digest()
    return read(at, pipeline, sha256=digest, arguments=arguments)


def recipe_of(scene: Scene, painter: ModelPart | None = None, **other: Any) -> Recipe:
    profile = load_profile("mini")
    parts = (*profile.parts, painter) if painter else profile.parts
    return Recipe(dataclasses.replace(profile, parts=parts), scene, **other)


def job_of(recipe: Recipe) -> Job:
    return STAGES["generate"].job(shot(), upstream(inputs()), recipe, 0)


def walk(recipe: Recipe, root: Path) -> tuple[dict[str, Step], dict[str, np.ndarray]]:
    """One shot through the stages that paint and lay the product over: steps by stage, and pictures by role."""
    store, ledger = FolderStore(root), MemoryLedger()
    for data in inputs().values():
        store.put(data, "image/png")
    ledger.use("run", [(shot(), [ShotStep(step, False) for step in upstream(inputs()).values()])])
    for stage in (STAGES["generate"], STAGES["upscale"]):
        run_stage(stage, "run", [shot()], recipe, ledger, store)
    steps = ledger.chosen("run", [shot()])["box"]
    for name in ("generate", "upscale"):
        assert steps[name].state is State.DONE, steps[name].reason
    outputs = [output for name in ("generate", "upscale") for output in steps[name].outputs]
    return steps, {o.role: np.asarray(Image.open(io.BytesIO(store.get(o.sha256)))) for o in outputs}


@pytest.mark.medium
@pytest.mark.parametrize(
    ("pipeline", "mode"),
    [
        (KLEIN, "adjust"),
        (KLEIN, "transform"),
        (QWEN, "adjust"),
        ("QwenImageEditPlusPipeline", "transform"),
        ("StableDiffusionImg2ImgPipeline", "adjust"),
        ("StableDiffusionXLImg2ImgPipeline", "transform"),
    ],
)
def test_a_painter_paints_and_the_product_is_the_photos(folder, tmp_path, pipeline: str, mode: str) -> None:
    painter = pinned(folder(pipeline), pipeline, steps=2 if PAINTERS[pipeline].edits else 4)
    recipe = recipe_of(scene_file(tmp_path, mode), painter)
    steps, pictures = walk(recipe, tmp_path / "store")
    assert steps["generate"].facts["painter"] == pipeline
    assert {ref.name: ref.sha256 for ref in steps["generate"].job.models}["painter"] == painter.digest()
    assert ("light" in pictures) == (mode == "adjust")
    if mode == "transform":
        assert (pictures["final"][:100, :100] != planted()[:100, :100]).any()
    where = steps["generate"].facts["placement"]
    photo = Image.open(io.BytesIO(inputs()["photo"])).crop(where["source"])
    laid = np.asarray(photo.resize((where["width"], where["height"]), Image.Resampling.LANCZOS))
    window = np.s_[where["top"] : where["top"] + where["height"], where["left"] : where["left"] + where["width"]]
    opaque = pictures["final_matte"][window] >= OPAQUE
    assert opaque.sum() > 5000
    assert (pictures["final"][window][opaque] == laid[opaque]).all()


def test_the_painter_sees_the_canvas_and_the_prompt_and_draws_from_the_seed(folder) -> None:
    painter = ImageToImage.from_part(pinned(folder(KLEIN), steps=2), CPU)

    def paint(colour: str = "red", prompt: str = "a box", seed: int = 0, scale: float = 1.0) -> bytes:
        canvas = Image.new("RGB", (128, 64), colour)
        call = {"strength": 0.5, "steps": 4, "guidance_scale": scale}
        return painter([canvas], [prompt], [""], [seed], **call)[0].tobytes()

    assert paint() == paint()
    assert len({paint(), paint(colour="blue"), paint(prompt="a tree"), paint(seed=1), paint(scale=3.0)}) == 5


def test_what_the_profile_sets_replaces_the_scenes(folder) -> None:
    pipeline = ImageToImage.from_part(pinned(folder(KLEIN)), CPU).pipeline
    canvas = Image.new("RGB", (64, 64), "red")

    def paint(said: str = "a box", **arguments: Any) -> bytes:
        painter = ImageToImage(pipeline, PainterArguments(**arguments), CPU)
        return painter([canvas], [said], [""], [0], strength=0.5, steps=3, guidance_scale=1.0)[0].tobytes()

    assert paint() == paint(steps=3, guidance_scale=1.0)
    assert len({paint(), paint(steps=2), paint(guidance_scale=3.0)}) == 3
    assert paint("a box", prompt="light {prompt}") == paint("light a box") != paint("a box")


def test_another_painter_and_other_arguments_are_other_keys(folder, tmp_path) -> None:
    scene = scene_file(tmp_path)
    klein, image = folder(KLEIN), folder("StableDiffusionImg2ImgPipeline")
    parts = [
        None,
        pinned(klein),
        pinned(klein, steps=4),
        pinned(klein, prompt="light this: {prompt}"),
        pinned(image, "StableDiffusionImg2ImgPipeline"),
    ]
    jobs = [job_of(recipe_of(scene, part)) for part in parts]
    assert len({job.key for job in jobs}) == len(parts)
    assert [job.parameters["method"] for job in jobs] == ["brushnet", KLEIN, KLEIN, KLEIN, image.name]
    assert "unet" not in {ref.name for ref in jobs[1].models}
    assert "arguments" not in jobs[0].parameters


def test_the_painters_own_size_is_painted(folder, tmp_path) -> None:
    recipe = recipe_of(scene_file(tmp_path), pinned(folder(KLEIN), steps=1, native_size=128))
    _, pictures = walk(recipe, tmp_path / "store")
    assert pictures["raw"].shape == (128, 128, 3)
    assert pictures["final"].shape == planted().shape


def test_what_needs_the_samplers_own_means_is_refused(folder, tmp_path) -> None:
    scene, part = scene_file(tmp_path), pinned(folder(KLEIN))
    for changed, said in (
        ({"controls": (Control(),)}, "`controls` needs packshot's own sampler"),
        ({"lora": SceneLora(name="lora_oak_window")}, "`lora`"),
        ({"guidance_end": 0.5, "cache_interval": 2}, "`guidance_end` and `cache_interval`"),
    ):
        recipe = recipe_of(scene.model_copy(update=changed), part)
        with pytest.raises(UsageError, match=f"scene mine with {said}.*with {KLEIN}"):
            job_of(recipe)
    with pytest.raises(UsageError, match="method blended"):
        painter_of(recipe_of(scene, part, method="blended"))


def test_scenes_that_are_not_painted_on_a_backdrop_have_the_usual_sampler(folder, tmp_path) -> None:
    plain = Scene(name="mine", title="Mine", prompt="a photo of {product}", controls=(Control(),))
    for scene in (plain, scene_file(tmp_path, "lock")):
        assert painter_of(recipe_of(scene, pinned(folder(KLEIN)))) is None


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"pipeline": "DiffusionPipeline"}, "painter: pipeline 'DiffusionPipeline' is no painter; there are Stable"),
        ({"pipeline": ""}, "painter: pipeline '' is no painter"),
        ({"arguments": {"cuda_graphs": True}}, "painter: cuda_graphs: arguments are steps, guidance_scale"),
        ({"arguments": {"native_size": 100}}, "painter: native_size: .*multiple of 64"),
        ({"arguments": {"prompt": "light it"}}, r"painter: prompt: .*it has no \{prompt\}"),
        ({"files": ["unet/diffusion_pytorch_model.bin"]}, "diffusion_pytorch_model.bin: a painter is a folder"),
        ({"files": ["pipeline.py"]}, "pipeline.py: a painter is a folder"),
        ({"path": "klein.safetensors"}, "klein.safetensors: a painter is a folder"),
        ({"kind": "base"}, "painter: its kind must be painter, not 'base'"),
    ],
)
def test_a_wrong_painter_of_a_profile_is_named(tmp_path, wrong: dict, said: str) -> None:
    with pytest.raises(UsageError, match=rf"sd15\.yaml: .*{said}"):
        read(tmp_path / "klein", **wrong)


def test_a_folder_that_is_not_there_is_named(tmp_path) -> None:
    with pytest.raises(UsageError, match=r"model painter: no \*\.safetensors in .*nowhere/text_encoder"):
        read(tmp_path / "nowhere").check()


@pytest.fixture
def copy(folder, tmp_path) -> Path:
    """A copy of the tiny FLUX.2-klein, to damage."""
    import shutil

    return Path(shutil.copytree(folder(KLEIN), tmp_path / "klein"))


def test_a_painter_without_a_digest_is_loaded_only_where_trusted(copy) -> None:
    with pytest.raises(IntegrityError, match="expected a pinned sha256"):
        ImageToImage.from_part(read(copy), CPU)


def test_torch_files_in_a_painters_folder_are_refused(copy) -> None:
    (copy / "vae" / "diffusion_pytorch_model.safetensors").rename(copy / "vae" / "diffusion_pytorch_model.bin")
    with pytest.raises(UsageError, match=r"no \*\.safetensors in .*vae"):
        read(copy).check()


def test_code_in_a_painters_folder_is_refused_and_its_index_names_no_classes(copy) -> None:
    part, index = pinned(copy), copy / "model_index.json"
    index.write_text(json.dumps(json.loads(index.read_text()) | {"transformer": ["os", "abort"], "_class_name": "X"}))
    assert type(ImageToImage.from_part(part, CPU).pipeline.transformer).__name__ == "Flux2Transformer2DModel"
    (copy / "transformer" / "model.py").write_text("raise SystemExit")
    with pytest.raises(IntegrityError, match=r"model\.py: expected .* weights and configurations alone"):
        ImageToImage.from_part(part, CPU)


def test_changed_weights_and_a_shard_from_elsewhere_are_refused(copy) -> None:
    part = pinned(copy)
    index = copy / "text_encoder" / "model.safetensors.index.json"
    whole = json.loads(index.read_text())
    name = next(iter(whole["weight_map"]))
    index.write_text(json.dumps(whole | {"weight_map": whole["weight_map"] | {name: "../other.safetensors"}}))
    with pytest.raises(IntegrityError, match="expected only weight files that the profile lists"):
        part.check()
    index.write_text(json.dumps(whole))
    part.check()
    weights = copy / "vae" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    with pytest.raises(IntegrityError, match="expected sha256"):
        part.check()


def test_another_models_folder_is_named(folder) -> None:
    with pytest.raises(
        IntegrityError, match="processor: expected a diffusers folder for QwenImageEditPipeline, found no"
    ):
        ImageToImage.from_part(pinned(folder(KLEIN), QWEN), CPU)


def test_a_painter_published_in_bfloat16_does_not_run_in_float16(folder) -> None:
    painter = ImageToImage.from_part(pinned(folder(KLEIN)), Compute(dtype="float16", reason="asked for"))
    assert painter.pipeline.transformer.dtype == torch.bfloat16
    assert str(painter.compute) == "cpu, bfloat16: asked for; Flux2KleinPipeline is published in bfloat16"


@pytest.mark.parametrize("pipeline", ["StableDiffusionImg2ImgPipeline", KLEIN, QWEN])
def test_the_round_trip_is_the_autoencoders_and_paints_nothing(folder, pipeline: str) -> None:
    painter = ImageToImage.from_part(pinned(folder(pipeline), pipeline), CPU)
    canvas = Image.fromarray(planted()[:64, :128])
    first, again = painter.round_trip([canvas, canvas])
    assert first.size == canvas.size
    assert first.tobytes() == again.tobytes() != canvas.tobytes()
