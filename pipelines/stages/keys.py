"""The key of every stage: exactly what its result depends on, and which seeds are tried.

Nothing here touches a pixel or imports a model, so that `plan` finds what is to be done in seconds. What computes is in
the module of each stage; `pipelines.stages.stage` joins the two.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

from pipelines import scenes
from pipelines.contracts import Artifact, Job, Made, Product, Shot, State, Step, canonical_json, sha256_hex
from pipelines.diffusion.methods import parts_of
from pipelines.errors import Rejected
from pipelines.processors import importing, keep_pages
from pipelines.quality.detector import SURE, weights_ref
from pipelines.scenes import Backdrop, BackdropPicture, Checks
from pipelines.stages.painter import painter_of
from pipelines.vision import garments
from pipelines.vision.garments import garment_part
from pipelines.vision.vocabulary import load_vocabulary
from pipelines.workflow import Recipe, Stage, Work

VERSIONS = {
    "cutout": 15,
    "describe": 2,
    "generate": 7,
    "upscale": 3,
    "inspect": 6,
    "publish": 1,
}
"""Version of each stage. Raise it if the stage's output changes for equal inputs."""

WHOLE = Checks().overcompletion
"""E+ of the photo with its cutout from which the product seems to continue beyond it: the detector's tau."""

DRAWN = 1
"""Version of what `pipelines.vision.backdrops` draws: it is in the keys of the steps that draw."""

READ = 1
"""Version of how text is read and compared (`pipelines.vision.reader`, `pipelines.quality.lettering`): it is in the
keys of the steps that read."""

STATED = 1
"""Version of what a signed file states (`pipelines.vision.credentials`): it is in the keys of signed files."""

SEEN = ("plate", "placed", "saliency")
"""Outputs of `generate`: its picture without and with the product alone, and the salient net's map of both together."""

DIGITAL_SOURCE_TYPE = "http://cv.iptc.org/newscodes/digitalsourcetype/"
"""IPTC's vocabulary for the origin of an image; a channel names the code, because shopping feeds require one."""


# ---------------------------------------------------------------------------- cutout


def cutout_job(shot: Shot, upstream: Mapping[str, Step], recipe: Recipe, candidate: int) -> Job:
    """Return the cutout's job: photo, path, covered half of a person, segmenters.

    A product without a usable photo has a job too; its result is a rejection with the reason.
    """
    product = shot.product
    parameters: dict[str, Any] = {
        "path": recipe.path,
        "garment": garment_part(f"{product.category} {product.title}"),
        "whole_tau": WHOLE,
        "sure": SURE,
        "title": product.title,
    }
    if product.photo is None:
        parameters["problem"] = product.photo_problem or "the product has no photo"
    return Job(
        stage="cutout",
        version=VERSIONS["cutout"],
        inputs={"photo": product.photo} if product.photo is not None else {},
        parameters=parameters,
        models=(*(recipe.profile.ref(name) for name in recipe.profile.cutout_parts), weights_ref()),
        attempt=recipe.attempt,
    )


def within_limit(step: Step, recipe: Recipe) -> bool:
    """Whether a rejection still holds: a photo that was too large is tried again under a higher limit."""
    return step.facts.get("max_megapixels", recipe.max_megapixels) >= recipe.max_megapixels


# -------------------------------------------------------------------------- describe


def describe_job(shot: Shot, upstream: Mapping[str, Step], recipe: Recipe, candidate: int) -> Job:
    """Return the description's job: photo, cutout, title and category, vocabulary, models and their thresholds, and
    the reader of the product's text, where it is read."""
    profile = recipe.profile
    reads = (recipe.reader,) if recipe.reader else ()
    return Job(
        stage="describe",
        version=VERSIONS["describe"],
        inputs={"photo": shot.product.photo or "", "cutout": upstream["cutout"].output("cutout")},
        parameters={
            "title": shot.product.title,
            "category": shot.product.category,
            "vocabulary": load_vocabulary(profile.vocabulary).digest,
            "caption_confidence": profile.caption_confidence,
            "tag_confidence": dict(profile.tag_confidence),
            **({"read": READ} if reads else {}),
        },
        models=(profile.ref("blip"), profile.ref("clip"), *reads),
        attempt=recipe.attempt,
    )


# -------------------------------------------------------------------------- generate


def generate_job(shot: Shot, upstream: Mapping[str, Step], recipe: Recipe, candidate: int) -> Job:
    """Return what raw image and plate depend on: photo, cutout, backdrop, prompt, sampler settings, models, seed."""
    scene, profile = recipe.scene, recipe.profile
    painter = painter_of(recipe)
    method = painter.pipeline if painter else recipe.method or scene.method
    picture = _picture(shot, scene.backdrop) if scene.backdrop else None
    parts = ["salient"]
    if painter:
        parts += [painter.name]
    elif paints(recipe):
        parts += [*profile.sampler_parts, *parts_of(profile, method)]
        parts += [f"controlnet_{control.kind}" for control in scene.controls]
        parts += [scene.lora.name] if scene.lora else []
    arguments = {name: dict(part.arguments) for name in parts if (part := profile.part(name)).arguments}
    base_seed = scene.base_seed if recipe.seed is None else recipe.seed
    return Job(
        stage="generate",
        version=VERSIONS["generate"],
        inputs={
            "photo": shot.product.photo or "",
            "cutout": upstream["cutout"].output("cutout"),
            **({"backdrop": scene.backdrop_digest(picture)} if picture else {}),
        },
        parameters={
            "prompt": scene.fill_prompt(upstream["describe"].facts, picture.light_from if picture else ""),
            "negative_prompt": scene.negative_prompt,
            "method": method,
            "mask_guidance": recipe.mask_guidance,
            "sure": SURE,
            "canvas": [scene.channel.width, scene.channel.height],
            **scene.sampler_settings(),
            **(_on_backdrop(shot, recipe, picture) if picture else {}),
            **({"pose": shot.product.extra.get("pose", "")} if wants_pose(recipe) else {}),
            **({"arguments": arguments} if arguments else {}),
        },
        models=(*(profile.ref(name) for name in parts), weights_ref()),
        seed=candidate_seed(shot, base_seed, candidate),
        attempt=recipe.attempt,
    )


def _picture(shot: Shot, backdrop: Backdrop) -> BackdropPicture:
    """The shot's backdrop: one for all photos of a product."""
    return backdrop.picture_for(shot.product.row_sku, shot.product.item_group_id)


def paints(recipe: Recipe) -> bool:
    """Whether anything around the product is generated."""
    return recipe.scene.backdrop is None or recipe.scene.backdrop.mode != "lock"


def _on_backdrop(shot: Shot, recipe: Recipe, picture: BackdropPicture) -> dict[str, Any]:
    """Parameters that a backdrop adds or replaces: how much is painted, and how the product stands before it."""
    scene, backdrop = recipe.scene, recipe.scene.backdrop
    assert backdrop is not None  # it is its picture
    placement = scene.sampler_settings()["placement"] | {"ground_line": picture.ground_line}
    if backdrop.garments == "hang" and garment_part(f"{shot.product.category} {shot.product.title}"):
        placement["anchor"] = "centre"
    return {
        "strength": backdrop.noise,
        "placement": placement,
        "drawn": DRAWN,
        "backdrop": {
            "mode": backdrop.mode,
            "wanted_line": scene.placement.ground_line,
            "foot": list(picture.foot or (0.0, 1.0)),
            **picture.drawing,
        },
    }


def supplies(shot: Shot, recipe: Recipe) -> list[tuple[bytes, str]]:
    """The shot's backdrop, which is to be in the store before a step names it."""
    if recipe.scene.backdrop is None:
        return []
    picture = _picture(shot, recipe.scene.backdrop)
    return [(recipe.scene.backdrop_bytes(picture), picture.media_type)]


def candidate_seed(shot: Shot, base_seed: int, candidate: int) -> int:
    """Seed of a shot's n-th candidate, 0..2³¹: its own for every product, the same on every day and machine."""
    return int(sha256_hex(f"{base_seed}/{shot.sku}/{shot.scene}/{shot.channel}/{candidate}".encode())[:8], 16) >> 1


def wants_pose(recipe: Recipe) -> bool:
    """Whether a control of the scene shows the product's pose."""
    return paints(recipe) and any(control.kind == "openpose" for control in recipe.scene.controls)


def excess(step: Step, checks: Checks) -> float:
    """How far the worse of a candidate's two measures is up its threshold: at most 1 passes."""
    measures = (step.facts["e_plus"], checks.overcompletion), (step.facts["halo"], checks.halo)
    return max(measure / max(limit, 1e-9) for measure, limit in measures)


# --------------------------------------------------------------------------- upscale


def upscale_job(shot: Shot, upstream: Mapping[str, Step], recipe: Recipe, candidate: int) -> Job:
    """Return what the final image depends on: photo, cutout, placement, and the chosen candidate's plate with the
    upscaler, or its light with the backdrop."""
    made = upstream["generate"]
    product = {"photo": shot.product.photo or "", "cutout": upstream["cutout"].output("cutout")}
    parameters: dict[str, Any] = {"placement": dict(made.facts["placement"])}
    if is_enlarged(recipe):
        inputs = {"plate": made.output("plate")}
    else:
        inputs = {"backdrop": made.job.inputs["backdrop"]}
        if made.job.parameters["backdrop"]["mode"] == "adjust":
            inputs["light"] = made.output("light")
        parameters |= {
            "backdrop": dict(made.job.parameters["backdrop"]),
            "anchor": made.job.parameters["placement"]["anchor"],
            "drawn": DRAWN,
        }
    return Job(
        stage="upscale",
        version=VERSIONS["upscale"],
        inputs=inputs | product,
        parameters=parameters,
        models=(recipe.profile.ref("upscaler"),) if is_enlarged(recipe) else (),
        attempt=recipe.attempt,
    )


def is_enlarged(recipe: Recipe) -> bool:
    """Whether the painted picture itself goes on to full size."""
    return recipe.scene.backdrop is None or recipe.scene.backdrop.mode == "transform"


# --------------------------------------------------------------------------- inspect


def inspect_job(shot: Shot, upstream: Mapping[str, Step], recipe: Recipe, candidate: int) -> Job:
    """Return the inspection's job: final image, placed product, ground, known saliency map, thresholds, segmenters, and
    the product's text with its reader, where it is read."""
    generated = upstream["generate"]
    stands = _stands_on_backdrop(generated.job)
    known = {output.role: output.sha256 for output in generated.outputs}
    return Job(
        stage="inspect",
        version=VERSIONS["inspect"],
        inputs={
            "final": upstream["upscale"].output("final"),
            "photo": shot.product.photo or "",
            "cutout": upstream["cutout"].output("cutout"),
            **({role: known[role] for role in SEEN} if "saliency" in known else {}),
            **({"backdrop": generated.job.inputs["backdrop"]} if stands else {}),
        },
        parameters={
            "placement": dict(generated.facts["placement"]),
            "thresholds": recipe.scene.checks.thresholds,
            "sure": SURE,
            **({"backdrop": dict(generated.job.parameters["backdrop"])} if stands else {}),
            **(_text_to_keep(upstream["describe"], recipe) if recipe.reader else {}),
        },
        models=(
            *(recipe.profile.ref(name) for name in ("salient", "hqsam")),
            weights_ref(),
            *((recipe.reader,) if recipe.reader else ()),
        ),
        attempt=recipe.attempt,
    )


def _text_to_keep(described: Step, recipe: Recipe) -> dict[str, Any]:
    """The photo's text, the limit of its errors, and whether the scene could have text of its own: what is painted as a
    whole. Light and shadow on a backdrop are no letters, and a backdrop's own words were reviewed with the scene."""
    return {
        "text": {
            "version": READ,
            "lines": [dict(line) for line in described.facts["text"]],
            "limit": recipe.scene.checks.text,
            "painted": is_enlarged(recipe),
        }
    }


def _stands_on_backdrop(generated: Job) -> bool:
    """Whether the image is a backdrop with light and shadow, and the product stands there."""
    if "backdrop" not in generated.inputs or generated.parameters["backdrop"]["mode"] == "transform":
        return False
    return generated.parameters["placement"]["anchor"] == "ground"


# --------------------------------------------------------------------------- publish


def publish_job(shot: Shot, upstream: Mapping[str, Step], recipe: Recipe, candidate: int) -> Job:
    """Return the published file's job: the final image and the channel's format, with what the file says and the rules
    that it is held to, where the channel has any."""
    channel, upscaled = recipe.scene.channel, upstream["upscale"]
    parameters: dict[str, Any] = {
        "format": channel.format,
        "quality": channel.quality,
        "digital_source_type": DIGITAL_SOURCE_TYPE + channel.digital_source_type,
    }
    inputs = {"final": upscaled.output("final")}
    if channel.provenance is not None:
        sku = shot.product.row_sku
        words = {"title": shot.product.title or sku, "category": shot.product.category, "sku": sku}
        parameters["provenance"] = {
            "sku": sku,
            "credit": channel.provenance.credit,
            "alt_text": channel.provenance.alt_text.format(**words, scene=recipe.scene.title),
        }
    if channel.rules:
        placement = dict(upscaled.job.parameters["placement"])
        parameters |= {"channel": channel.name, "rules": channel.rules, "placement": placement}
    if recipe.credentials is not None:
        parameters["credentials"] = {
            "version": STATED,
            "certificate": recipe.credentials.digest,
            "photo": shot.product.photo or "",
        }
    if channel.background == "white":
        inputs["cutout"] = upscaled.job.inputs["cutout"]
    return Job(
        stage="publish", version=VERSIONS["publish"], inputs=inputs, parameters=parameters, attempt=recipe.attempt
    )


# ---------------------------------------------------------------------------- stages


def _stage(name: str, needs: tuple[str, ...], job: Any, **how: Any) -> Stage:
    """A stage by its key. The module that computes, and with it torch, is imported when it first loads its models."""

    def load(recipe: Recipe) -> Any:
        keep_pages()
        with importing():
            module = import_module(f"pipelines.stages.{name}")
        return module.load(recipe)

    def compute(works: Sequence[Work], models: Any, recipe: Recipe) -> Sequence[Made | Rejected]:
        return import_module(f"pipelines.stages.{name}").compute(works, models, recipe)

    return Stage(name=name, version=VERSIONS[name], needs=needs, job=job, load=load, compute=compute, **how)


STAGES = {
    stage.name: stage
    for stage in (
        _stage("cutout", (), cutout_job, holds=within_limit),
        _stage("describe", ("cutout",), describe_job, batched=True),
        _stage(
            "generate",
            ("cutout", "describe"),
            generate_job,
            batched=True,
            candidates=lambda recipe: recipe.scene.candidates if paints(recipe) else 1,
            score=lambda step, recipe: excess(step, recipe.scene.checks),
            passes=lambda step, recipe: excess(step, recipe.scene.checks) <= 1,
            supplies=supplies,
            fits=lambda recipe: import_module("pipelines.stages.generate").fits(recipe),
        ),
        _stage("upscale", ("cutout", "generate"), upscale_job),
        _stage("inspect", ("cutout", "describe", "generate", "upscale"), inspect_job),
        _stage("publish", ("upscale", "inspect"), publish_job),
    )
}
"""The paper's workflow, by name and in order."""


def fingerprint(recipe: Recipe) -> str:
    """sha256 over all that decides the steps of a shot besides its product, 64 hex digits.

    Under an equal fingerprint a product that did not change needs nothing. It may differ without a reason: then every
    key is made and looked up again. So it covers the keys of one made-up product, the whole scene, the photos' limit,
    and the code of this module and of those that fill in a prompt.
    """
    scene = recipe.scene
    code = [Path(__file__), Path(scenes.__file__), Path(garments.__file__)]
    return sha256_hex(
        canonical_json(
            {
                "keys": [job.key for job in _made_up_jobs(replace(recipe, attempt=""))],
                "scene": scene.model_dump(mode="json"),
                "backdrops": [scene.backdrop_digest(picture) for picture in scene.backdrop.pictures]
                if scene.backdrop
                else [],
                "max_megapixels": recipe.max_megapixels,
                "code": [sha256_hex(file.read_bytes()) for file in code],
            }
        ).encode()
    )


def made_up_results(recipe: Recipe) -> dict[str, str]:
    """Stage → sha256 over all that decides its result for one made-up product, and what it stands on: where two recipes
    have the same, one step serves both."""
    decided: dict[str, str] = {}
    for job in _made_up_jobs(recipe):
        below = [decided[name] for name in STAGES[job.stage].needs]
        decided[job.stage] = sha256_hex(canonical_json([job.key, below]).encode())
    return decided


def _made_up_jobs(recipe: Recipe) -> list[Job]:
    """The job of every stage for one made-up product."""
    shot = Shot(Product("made-up", 2, "Mug", "Home", "0" * 64), recipe.scene.name, recipe.scene.channel.name)
    facts = {"subject": "mug", "placement": {}, "e_plus": 0.0, "halo": 0.0, "text": []}
    outputs = tuple(Artifact("0" * 64, role, "image/png", 1) for role in ("cutout", "plate", "light", "final"))
    steps: dict[str, Step] = {}
    for name, stage in STAGES.items():
        job = stage.job(shot, steps, recipe, 0)
        steps[name] = Step(job.key, job, State.DONE, outputs, facts)
    return [step.job for step in steps.values()]
