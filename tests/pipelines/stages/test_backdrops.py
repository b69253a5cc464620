"""Shots before a planted backdrop: what reaches the final image at full size, and what is in the keys."""

from __future__ import annotations

import dataclasses
import io
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from pipelines.contracts import Artifact, Job, Made, Product, Shot, ShotStep, State, Step, sha256_hex
from pipelines.ledger.memory import MemoryLedger
from pipelines.models.profile import load_profile
from pipelines.quality.overcompletion import OvercompletionDetector
from pipelines.scenes import Scene, check_scene
from pipelines.stages import generate
from pipelines.stages.keys import STAGES
from pipelines.store import FolderStore
from pipelines.vision.photos import png_bytes
from pipelines.vision.placement import OPAQUE
from pipelines.workflow import Recipe, Work, run_stage

SIDE, FULL = 200, 512
BOX = np.s_[40:180, 60:140]


def planted(seed: int = 0) -> np.ndarray:
    """A backdrop of noise: any resampling, blur or painting of it is seen."""
    return np.random.default_rng(seed).integers(90, 220, (FULL, FULL, 3)).astype(np.uint8)


def scene_file(folder: Path, mode: str = "adjust", seed: int = 0, **picture: Any) -> Scene:
    (folder / "sets").mkdir(parents=True, exist_ok=True)
    Image.fromarray(planted(seed)).save(folder / "sets" / "noise.png")
    asked = {
        "name": "mine",
        "title": "Mine",
        "prompt": "a photo of {product} on a white floor against a white wall, soft light from the {light}",
        "steps": 4,
        "guidance_scale": 1.0,
        "candidates": 1,
        "channel": {"width": FULL, "height": FULL},
        "placement": {"scale": 0.4},
        "backdrop": {
            "mode": mode,
            "pictures": [{"file": "sets/noise.png", "licence": "CC0-1.0", "light_from": "left", **picture}],
        },
    }
    (folder / "mine.yaml").write_text(yaml.safe_dump(asked), "utf-8")
    return check_scene(folder / "mine.yaml")


def inputs() -> dict[str, bytes]:
    photo = np.full((SIDE, SIDE, 3), 250, np.uint8)
    photo[BOX] = np.random.default_rng(5).integers(0, 255, (140, 80, 3))
    alpha = np.zeros((SIDE, SIDE), np.uint8)
    alpha[BOX] = 255
    return {
        "photo": png_bytes(Image.fromarray(photo)),
        "cutout": png_bytes(Image.fromarray(np.dstack([photo, alpha]))),
    }


def upstream(given: dict[str, bytes]) -> dict[str, Step]:
    cut, described = Job("cutout", 1, {}, {}), Job("describe", 1, {}, {})
    return {
        "cutout": Step(cut.key, cut, State.DONE, (Artifact(sha256_hex(given["cutout"]), "cutout", "image/png", 1),)),
        "describe": Step(described.key, described, State.DONE, facts={"subject": "box"}),
    }


def shot(title: str = "Box", sku: str = "box") -> Shot:
    return Shot(Product(sku, 1, title, "", sha256_hex(inputs()["photo"])), "mine", "web")


def recipe(scene: Scene) -> Recipe:
    return Recipe(load_profile("mini"), scene)


class Painter:
    """In the sampler's place: paints a darker spot right of the product, and gives a canvas back as it is."""

    def __init__(self, spot: tuple[slice, slice] | None = None, factor: float = 0.5) -> None:
        self.spot, self.factor, self.calls = spot, factor, []

    def __call__(self, **call: Any) -> Any:
        self.calls.append(call)
        images = []
        for image in call["image"]:
            pixels = np.asarray(image).copy()
            if self.spot is not None:
                pixels[self.spot] = pixels[self.spot] * self.factor
            images.append(Image.fromarray(pixels))
        return SimpleNamespace(images=images)

    def round_trip(self, images: list[Image.Image]) -> list[Image.Image]:
        return list(images)


@pytest.fixture(scope="module")
def detector() -> OvercompletionDetector:
    return OvercompletionDetector.from_profile(load_profile("mini"))


@dataclasses.dataclass
class Walked:
    """What one shot came to: outputs of both stages as arrays, and the jobs."""

    pictures: dict[str, np.ndarray]
    job: Job
    upscale_job: Job
    made: Made


def walk(scene: Scene, painter: Painter, detector: Any, asked: Shot | None = None) -> Walked:
    asked, given, used = asked or shot(), inputs(), recipe(scene)
    before = upstream(given)
    job = STAGES["generate"].job(asked, before, used, 0)
    for data, _ in STAGES["generate"].supplies(asked, used):
        given["backdrop"] = data
    assert {role: sha256_hex(data) for role, data in given.items()} == job.inputs
    pipeline = None if scene.backdrop and scene.backdrop.mode == "lock" else painter
    (made,) = STAGES["generate"].compute([Work(job, given)], generate.GenerateModels(pipeline, detector), used)
    assert isinstance(made, Made)
    outputs = tuple(Artifact(sha256_hex(o.data), o.role, o.media_type, len(o.data)) for o in made.outputs)
    step = Step(job.key, job, State.DONE, outputs, made.facts)
    blobs = {sha256_hex(data): data for data in (*given.values(), *(o.data for o in made.outputs))}
    next_job = STAGES["upscale"].job(asked, before | {"generate": step}, used, 0)
    work = Work(next_job, {role: blobs[digest] for role, digest in next_job.inputs.items()})
    (finished,) = STAGES["upscale"].compute([work], STAGES["upscale"].load(used), used)
    pictures = {o.role: np.asarray(Image.open(io.BytesIO(o.data))) for o in (*made.outputs, *finished.outputs)}
    return Walked(pictures, job, next_job, made)


def differs(final: np.ndarray, backdrop: np.ndarray) -> np.ndarray:
    return (final != backdrop).any(axis=2)


def test_where_nothing_was_painted_the_final_has_the_backdrops_own_pixels(tmp_path, detector) -> None:
    found = walk(scene_file(tmp_path), Painter(), detector).pictures
    changed = differs(found["final"], planted()) & (found["final_matte"] == 0)
    assert not changed[:150].any()  # above the product
    assert not changed[:, :60].any()  # on the light's side of it
    assert changed[430:460, 200:340].any()  # its drawn shadow


def test_a_spot_painted_at_the_models_size_arrives_at_full_size_in_its_place(tmp_path, detector) -> None:
    scene = scene_file(tmp_path)
    spot = np.s_[140:156, 172:188]  # of 256
    plain, painted = (walk(scene, Painter(s), detector).pictures["final"] for s in (None, spot))
    ratio = (painted.astype(float) + 1).mean(2) / (plain.astype(float) + 1).mean(2)
    assert ratio[288:304, 352:368].mean() < 0.75
    assert (painted[:120] == plain[:120]).all()
    rows, columns = np.nonzero(ratio < 0.9)
    assert abs(rows.mean() - 296) < 6
    assert abs(columns.mean() - 360) < 6


def test_product_pixels_are_the_photos_in_every_mode(tmp_path, detector) -> None:
    photo = np.asarray(Image.open(io.BytesIO(inputs()["photo"])))
    for mode in ("lock", "adjust", "transform"):
        found = walk(scene_file(tmp_path / mode, mode), Painter(np.s_[:, :]), detector)
        placement = found.made.facts["placement"]
        box = Image.fromarray(photo).crop(placement["source"])
        laid = np.asarray(box.resize((placement["width"], placement["height"]), Image.Resampling.LANCZOS))
        if placement["resample"] == "none":
            laid = np.asarray(box)
        window = np.s_[
            placement["top"] : placement["top"] + placement["height"],
            placement["left"] : placement["left"] + placement["width"],
        ]
        opaque = found.pictures["final_matte"][window] >= OPAQUE
        assert opaque.sum() > 5000
        assert (found.pictures["final"][window][opaque] == laid[opaque]).all()


def test_the_modes_differ_in_pixels_and_in_keys(tmp_path, detector) -> None:
    walked = {
        mode: walk(scene_file(tmp_path / mode, mode), Painter(np.s_[100:180, 160:220]), detector)
        for mode in ("lock", "adjust", "transform")
    }
    assert len({found.job.key for found in walked.values()}) == 3
    assert len({found.upscale_job.key for found in walked.values()}) == 3
    finals = {mode: found.pictures["final"] for mode, found in walked.items()}
    assert (finals["lock"] != finals["adjust"]).any()
    far = np.s_[:100, :100]
    assert (finals["lock"][far] == planted()[far]).all()
    assert (finals["adjust"][far] == planted()[far]).all()
    assert (finals["transform"][far] != planted()[far]).any()  # enlarged from 256 px


def test_another_backdrop_is_another_key_and_its_digest_is_an_input(tmp_path) -> None:
    jobs = []
    for seed in (0, 1):
        scene = scene_file(tmp_path, seed=seed)
        jobs.append(STAGES["generate"].job(shot(), upstream(inputs()), recipe(scene), 0))
    assert jobs[0].key != jobs[1].key
    assert jobs[1].inputs["backdrop"] == sha256_hex((tmp_path / "sets" / "noise.png").read_bytes())


def test_a_scene_without_a_backdrop_has_the_inputs_and_parameters_that_it_had() -> None:
    scene = Scene(name="mine", title="Mine", prompt="a photo of {product}")
    job = STAGES["generate"].job(shot(), upstream(inputs()), recipe(scene), 0)
    assert set(job.inputs) == {"photo", "cutout"}
    assert not {"backdrop", "drawn"} & set(job.parameters)
    assert STAGES["generate"].supplies(shot(), recipe(scene)) == []


def test_lock_needs_no_painter_and_one_candidate(tmp_path) -> None:
    used = recipe(scene_file(tmp_path, "lock"))
    job = STAGES["generate"].job(shot(), upstream(inputs()), used, 0)
    assert {ref.name for ref in job.models} == {"salient", "evidence"}
    assert STAGES["generate"].candidates(used) == 1
    assert generate.load(used).pipeline is None


def test_the_side_of_the_light_is_in_the_prompt_and_the_strength_reaches_the_sampler(tmp_path, detector) -> None:
    painter = Painter()
    walked = walk(scene_file(tmp_path, light_from="right"), painter, detector)
    assert walked.job.parameters["prompt"].endswith("soft light from the right")
    assert painter.calls[0]["strength"] == walked.job.parameters["strength"] < 1


@pytest.mark.parametrize(("side", "away"), [("left", np.s_[400:440, 345:420]), ("right", np.s_[400:440, 92:167])])
def test_the_shadow_falls_away_from_the_backdrops_light(tmp_path, detector, side, away) -> None:
    final = walk(scene_file(tmp_path, light_from=side), Painter(), detector).pictures["final"]
    shade = 1 - final.astype(float).mean(2) / planted().mean(2)
    other = np.s_[400:440, 92:167] if side == "left" else np.s_[400:440, 345:420]
    assert shade[away].mean() > 0.04 > shade[other].mean()


def test_the_foot_is_on_the_backdrops_ground_and_in_its_middle(tmp_path, detector) -> None:
    podium = [[0.1, 0.6], [0.5, 0.6], [0.5, 0.75], [0.1, 0.75]]
    scene = scene_file(tmp_path, ground_line=0.7, ground=podium)
    placement = walk(scene, Painter(), detector).made.facts["placement"]
    assert placement["top"] + placement["height"] == round(0.7 * FULL)
    assert placement["left"] + placement["width"] / 2 == pytest.approx(0.3 * FULL, abs=1)


def test_a_garment_hangs_before_the_wall_unless_the_scene_lets_it_stand(tmp_path, detector) -> None:
    scene = scene_file(tmp_path)
    hanging = walk(scene, Painter(), detector, shot("Striped T-Shirt")).made.facts["placement"]
    assert hanging["top"] + hanging["height"] < 0.75 * FULL
    standing = scene.model_copy(update={"backdrop": scene.backdrop.model_copy(update={"garments": "stand"})})
    placement = walk(standing, Painter(), detector, shot("Striped T-Shirt")).made.facts["placement"]
    assert placement["top"] + placement["height"] == round(0.86 * FULL)


def test_a_products_id_chooses_among_the_pictures_and_always_the_same(tmp_path) -> None:
    scene = scene_file(tmp_path)
    first = scene.backdrop.pictures[0]
    several = scene.backdrop.model_copy(
        update={"pictures": tuple(first.model_copy(update={"ground_line": line}) for line in (0.6, 0.7, 0.8))}
    )
    chosen = [several.picture_for(f"SKU-{n}") for n in range(60)]
    assert len(set(chosen)) == 3
    assert chosen == [several.picture_for(f"SKU-{n}") for n in range(60)]
    assert chosen == [several.picture_for(f"SKU-{n}", "T-SHIRT") for n in range(60)], "a group changes no key by itself"
    variants = several.model_copy(update={"chosen_by": "group"})
    assert len({variants.picture_for(f"SKU-{n}", "T-SHIRT").ground_line for n in range(60)}) == 1
    assert chosen == [variants.picture_for(f"SKU-{n}") for n in range(60)], "a product without a group stands alone"


def test_a_channel_that_prescribes_the_products_share_is_obeyed(tmp_path, detector) -> None:
    scene = scene_file(tmp_path)
    wide = scene.model_copy(update={"channel": scene.channel.model_copy(update={"product_share": 0.8})})
    placement = walk(wide, Painter(), detector).made.facts["placement"]
    assert max(placement["width"], placement["height"]) == pytest.approx(0.8 * FULL, abs=1)


@pytest.mark.parametrize("size", [(640, 512), (512, 640), (1024, 512)])
def test_other_shapes_of_channel_show_the_ground_line(tmp_path, detector, size) -> None:
    scene = scene_file(tmp_path)
    Image.fromarray(np.random.default_rng(1).integers(90, 220, (1100, 1100, 3)).astype(np.uint8)).save(
        tmp_path / "sets" / "noise.png"
    )
    width, height = size
    shaped = scene.model_copy(update={"channel": scene.channel.model_copy(update={"width": width, "height": height})})
    found = walk(shaped, Painter(), detector)
    placement = found.made.facts["placement"]
    assert found.pictures["final"].shape == (height, width, 3)
    assert 0.5 * height < placement["top"] + placement["height"] <= height


def test_the_backdrop_is_an_artifact_in_the_store_and_in_the_steps_inputs(tmp_path) -> None:
    store, ledger = FolderStore(tmp_path / "store"), MemoryLedger()
    used, given = recipe(scene_file(tmp_path, "lock")), inputs()
    for data in given.values():
        store.put(data, "image/png")
    before = [ShotStep(step, False) for step in upstream(given).values()]
    ledger.use("run", [(shot(), before)])
    for _ in range(2):
        summary = run_stage(STAGES["generate"], "run", [shot()], used, ledger, store)
    assert (summary.computed, summary.reused) == (0, 1)
    step = ledger.chosen("run", [shot()])["box"]["generate"]
    assert step.state is State.DONE, step.reason
    assert store.get(step.job.inputs["backdrop"]) == (tmp_path / "sets" / "noise.png").read_bytes()
    assert store.stat(step.job.inputs["backdrop"]).media_type == "image/png"
