"""The generate stage on the bundled models, with a product whose every edge is known."""

from __future__ import annotations

import dataclasses
import io
import json
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipelines.contracts import Artifact, Job, Made, ModelRef, Product, Shot, State, Step, sha256_hex
from pipelines.errors import Rejected
from pipelines.models.profile import load_profile
from pipelines.scenes import Channel, Control, Scene
from pipelines.stages import keys
from pipelines.stages.generate import compute, load
from pipelines.stages.keys import STAGES
from pipelines.vision.photos import png_bytes
from pipelines.workflow import Recipe, Work

SIDE = 320
BOX = np.s_[80:260, 100:220]
"""Where the product stands in its photo: (rows, columns)."""


def recipe(**control: Any) -> Recipe:
    """A scene of one step on a small canvas, with one canny ControlNet."""
    scene = Scene(
        name="mine",
        title="Mine",
        prompt="a photo of {product} on a white floor against a white wall",
        method="blended",
        steps=4,
        guidance_scale=1.0,
        controls=(Control(scale=1.0, **control),),
        channel=Channel(width=256, height=256, min_width=256, min_height=256),
    )
    profile = load_profile("mini")
    kinds = ("lineart", "openpose")  # which the bundled profile lacks: canny's net under their names
    others = tuple(dataclasses.replace(profile.part("controlnet_canny"), name=f"controlnet_{kind}") for kind in kinds)
    return Recipe(dataclasses.replace(profile, parts=(*profile.parts, *others)), scene)


def photo(backdrop: int) -> np.ndarray:
    """A grey product with a white stripe, on a backdrop with a dark bar across it that the product hides in part."""
    pixels = np.full((SIDE, SIDE, 3), backdrop, np.uint8)
    pixels[150:170] = 10
    pixels[BOX] = 128
    pixels[120:140, 120:200] = 250
    return pixels


def inputs(backdrop: int) -> dict[str, bytes]:
    alpha = np.zeros((SIDE, SIDE), np.uint8)
    alpha[BOX] = 255
    alone = np.where(alpha[..., None] > 0, photo(backdrop), 0).astype(np.uint8)
    return {
        "photo": png_bytes(Image.fromarray(photo(backdrop))),
        "cutout": png_bytes(Image.fromarray(np.dstack([alone, alpha]))),
    }


def job_of(recipe: Recipe, given: dict[str, bytes]) -> Job:
    described = Job("describe", 1, {}, {})
    cut = Job("cutout", 1, {}, {})
    upstream = {
        "cutout": Step(cut.key, cut, State.DONE, (Artifact(sha256_hex(given["cutout"]), "cutout", "image/png", 1),)),
        "describe": Step(described.key, described, State.DONE, facts={"subject": "grey box"}),
    }
    shot = Shot(Product("box", 1, "Grey box", "", sha256_hex(given["photo"])), "mine", "web")
    return STAGES["generate"].job(shot, upstream, recipe, 0)


@pytest.fixture(scope="module")
def raws() -> dict[tuple[str, int], bytes]:
    """The raw image by source of the edges and backdrop of the photo. The seed is the same throughout."""
    models, made = load(recipe()), {}
    for source, backdrop in (("cutout", 30), ("cutout", 128), ("photo", 30), ("photo", 128)):
        asked, given = recipe(source=source), inputs(backdrop)
        (result,) = compute([Work(job_of(asked, given), given)], models, asked)
        assert isinstance(result, Made)
        made[source, backdrop] = result.outputs[0].data
    return made


def posed_job(given: dict[str, bytes], asked: Recipe, pose: str) -> Job:
    plain = job_of(asked, given)
    assert plain.parameters["pose"] == ""
    return dataclasses.replace(plain, parameters={**plain.parameters, "pose": pose})


def test_lines_and_poses_are_drawn_and_placed_like_the_product(monkeypatch) -> None:
    shown: list[Image.Image] = []

    def sampler(**call: Any) -> Any:
        shown.extend(images[0] for images in call["control_images"])
        return SimpleNamespace(images=call["image"])

    models = SimpleNamespace(pipeline=sampler, detector=load(recipe()).detector)
    given = inputs(30)
    corner = [value for n in range(18) for value in ((100, 80, 1) if n == 0 else (0, 0, 0))]
    asked = recipe(kind="openpose")
    work = Work(posed_job(given, asked, json.dumps({"people": [{"pose_keypoints_2d": corner}]})), given)
    (made,) = compute([work], models, asked)
    assert isinstance(made, Made)
    for kind in ("lineart", "canny"):
        asked = recipe(kind=kind, source="cutout")
        compute([Work(job_of(asked, given), given)], models, asked)
    pose, lines, edges = (np.asarray(image) for image in shown)

    placement = made.facts["placement"]
    rows, columns, _ = np.nonzero(pose)
    assert (round(columns.mean()), round(rows.mean())) == (placement["left"], placement["top"])
    assert lines.any()
    assert (lines != edges).any()


def test_what_a_scene_saves_reaches_the_sampler_and_the_key() -> None:
    calls: list[dict[str, Any]] = []

    def sampler(**call: Any) -> Any:
        calls.append(call)
        return SimpleNamespace(images=call["image"])

    saving = {"guidance_start": 0.25, "guidance_end": 0.75, "cache_interval": 2}
    plain, given = recipe(), inputs(30)
    asked = dataclasses.replace(plain, scene=plain.scene.model_copy(update=saving))
    assert job_of(asked, given).key != job_of(plain, given).key
    models = SimpleNamespace(pipeline=sampler, detector=load(plain).detector)
    compute([Work(job_of(asked, given), given)], models, asked)
    assert {name: calls[0][name] for name in saving} == saving


def test_only_the_product_without_a_pose_is_rejected() -> None:
    asked, given = recipe(kind="openpose"), inputs(30)
    models = SimpleNamespace(
        pipeline=lambda **call: SimpleNamespace(images=call["image"]), detector=load(recipe()).detector
    )
    seen = json.dumps({"people": [{"pose_keypoints_2d": [150, 100, 1] * 18}]})
    works = [Work(posed_job(given, asked, pose), given) for pose in ("", seen, "{}")]
    without, made, broken = compute(works, models, asked)
    assert isinstance(made, Made)
    assert isinstance(without, Rejected)
    assert "column `pose`" in str(without)
    assert isinstance(broken, Rejected)
    assert "18 keypoints" in str(broken)


def test_a_scene_without_a_pose_control_has_the_key_that_it_had() -> None:
    assert "pose" not in job_of(recipe(), inputs(30)).parameters


def test_edges_of_the_cutout_owe_nothing_to_the_photos_background(raws: dict[tuple[str, int], bytes]) -> None:
    assert raws["cutout", 30] == raws["cutout", 128]


def test_edges_of_the_photo_fade_where_its_background_is_like_the_product(raws: dict[tuple[str, int], bytes]) -> None:
    assert raws["photo", 30] != raws["photo", 128]


def test_a_forced_attempt_paints_another_picture_and_its_retry_the_same(
    raws: dict[tuple[str, int], bytes],
) -> None:
    asked, given = recipe(source="photo"), inputs(128)
    models, forced = load(asked), dataclasses.replace(asked, attempt="monday")
    jobs = [job_of(asked, given), job_of(forced, given), job_of(forced, given)]
    plain, first, retried = [compute([Work(job, given)], models, asked)[0].outputs[0].data for job in jobs]
    assert plain == raws["photo", 128]
    assert first == retried != plain
    assert jobs[0].base == jobs[1].base  # it is looked up, and superseded, as the same step


def test_the_source_of_the_edges_is_in_the_key_and_in_the_picture(raws: dict[tuple[str, int], bytes]) -> None:
    keys = {job_of(recipe(source=source), inputs(128)).key for source in ("photo", "cutout")}
    assert len(keys) == 2
    assert raws["photo", 128] != raws["cutout", 128]


@pytest.mark.parametrize(("method", "parts"), [("brushnet", {"brushnet"}), ("blended", set()), ("soft", set())])
def test_the_key_names_the_models_that_the_method_paints_with(method, parts):
    named = {ref.name for ref in job_of(dataclasses.replace(recipe(), method=method), inputs(30)).models}
    assert named & {"brushnet", "controlnet_inpaint", "unet_inpaint9"} == parts


def test_the_plate_is_the_raw_image_without_its_rim_unless_a_scene_keeps_that() -> None:
    smeared = np.full((256, 256, 3), 200, np.uint8)
    smeared[30:240, 30:226] = (20, 30, 60)  # darker than anything, and well beyond the product
    models = SimpleNamespace(
        pipeline=lambda **call: SimpleNamespace(images=[Image.fromarray(smeared)]), detector=load(recipe()).detector
    )
    plain, given = recipe(), inputs(30)
    keeping = dataclasses.replace(plain, scene=plain.scene.model_copy(update={"outline_margin": 0}))
    assert job_of(plain, given).key != job_of(keeping, given).key
    images = []
    for asked in (plain, keeping):
        (made,) = compute([Work(job_of(asked, given), given)], models, asked)
        assert isinstance(made, Made)
        images.append({output.role: output.data for output in made.outputs})
    assert images[0]["plate"] != images[0]["raw"]
    assert images[1]["plate"] == images[1]["raw"] == images[0]["raw"]


def test_a_candidate_is_measured_as_painted_so_that_no_growth_hides_under_the_plate() -> None:
    shown: list[np.ndarray] = []

    def measure(image: np.ndarray, matte: np.ndarray) -> SimpleNamespace:
        shown.append(image[matte == 0])
        return SimpleNamespace(e_plus=0.0, uncertainty=0.0)

    painted = np.random.default_rng(0).integers(0, 256, (256, 256, 3), np.uint8)
    models = SimpleNamespace(
        pipeline=lambda **call: SimpleNamespace(images=[Image.fromarray(painted)]),
        detector=SimpleNamespace(measure=measure),
    )
    asked, given = recipe(), inputs(30)
    (made,) = compute([Work(job_of(asked, given), given)], models, asked)
    assert isinstance(made, Made)
    matte = np.asarray(Image.open(io.BytesIO(made.outputs[2].data)).getchannel("A"))
    assert (shown[0] == painted[matte == 0]).all()


def test_other_evidence_judges_anew(monkeypatch) -> None:
    before = job_of(recipe(), inputs(30)).key
    monkeypatch.setattr(keys, "weights_ref", lambda: ModelRef("evidence", "other", "0" * 64))
    assert job_of(recipe(), inputs(30)).key != before
