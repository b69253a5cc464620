"""Stage 3: paint a scene around the product (paper, section 3).

The cutout is placed on the channel's canvas, reduced to the model's size, and everything around it is inpainted. Each
candidate is measured at once: for overcompletion as it was painted, so that nothing grown hides under the clean plate,
and on the plate for a rim around the product. The first seed that passes both ends the search, `candidates` at most.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image

from pipelines.contracts import Job, Made, Output, Shot, Step, sha256_hex
from pipelines.diffusion.control import canny_edges, line_art, pose_map, read_pose
from pipelines.diffusion.inpainting import InpaintingPipeline
from pipelines.diffusion.mask_guidance import refine_mask
from pipelines.diffusion.methods import parts_of
from pipelines.errors import Rejected
from pipelines.quality.evidence import weights_ref
from pipelines.quality.fidelity import halo
from pipelines.quality.overcompletion import SURE, OvercompletionDetector
from pipelines.scenes import Checks, Control
from pipelines.vision.photos import png_bytes, read_photo
from pipelines.vision.placement import Placement, lay_photo, lay_product, place
from pipelines.vision.plate import clean_plate
from pipelines.workflow import Recipe, Stage, Work

SIDE_MULTIPLE = 64
"""An autoencoder of 8x and a UNet of four levels: canvases come in multiples of 64 px."""


@dataclass(frozen=True, slots=True)
class GenerateModels:
    """The sampler with its branches, and the segmenter that looks at what it made."""

    pipeline: InpaintingPipeline
    detector: OvercompletionDetector


def model_canvas(width: int, height: int, native: int) -> tuple[int, int]:
    """Size to sample at for a channel of width × height px: its shorter side is `native`, both multiples of 64 px."""
    ratio = native / min(width, height)
    return tuple(max(SIDE_MULTIPLE, round(side * ratio / SIDE_MULTIPLE) * SIDE_MULTIPLE) for side in (width, height))  # type: ignore[return-value]


def candidate_seed(shot: Shot, base_seed: int, candidate: int) -> int:
    """Seed of a shot's n-th candidate, 0..2³¹: its own for every product, the same on every day and machine."""
    return int(sha256_hex(f"{base_seed}/{shot.sku}/{shot.scene}/{shot.channel}/{candidate}".encode())[:8], 16) >> 1


def noise_seed(job: Job) -> int:
    """What the sampler's noise is drawn with, 0..2³¹: the job's seed; in a forced attempt one of the attempt's own,
    because the same noise would paint the same picture again."""
    seed = job.seed or 0
    return int(sha256_hex(f"{seed}/{job.attempt}".encode())[:8], 16) >> 1 if job.attempt else seed


def job(shot: Shot, upstream: Mapping[str, Step], recipe: Recipe, candidate: int) -> Job:
    """What raw image and plate depend on: photo, cutout, prompt, the scene's sampler settings, models, seed."""
    scene, profile = recipe.scene, recipe.profile
    method = recipe.method or scene.method
    parts = [*profile.sampler_parts, "salient"]
    parts += parts_of(profile, method)
    parts += [f"controlnet_{control.kind}" for control in scene.controls]
    parts += [scene.lora.name] if scene.lora else []
    base_seed = scene.base_seed if recipe.seed is None else recipe.seed
    return Job(
        stage=STAGE.name,
        version=STAGE.version,
        inputs={"photo": shot.product.photo or "", "cutout": upstream["cutout"].output("cutout")},
        parameters={
            "prompt": scene.fill_prompt(upstream["describe"].facts),
            "negative_prompt": scene.negative_prompt,
            "method": method,
            "mask_guidance": recipe.mask_guidance,
            "sure": SURE,
            "canvas": [scene.channel.width, scene.channel.height],
            **scene.sampler_settings(),
            **({"pose": shot.product.extra.get("pose", "")} if _wants_pose(recipe) else {}),
        },
        models=(*(profile.ref(name) for name in parts), weights_ref()),
        seed=candidate_seed(shot, base_seed, candidate),
        attempt=recipe.attempt,
    )


def load(recipe: Recipe) -> GenerateModels:
    """Load the sampler for the scene's method, with its controls and LoRA, and the fast segmenter."""
    scene = recipe.scene
    pipeline = InpaintingPipeline.from_profile(
        recipe.profile.name,
        method=recipe.method or scene.method,
        models_dir=recipe.profile.models_dir,
        controls=tuple(control.kind for control in scene.controls),
    )
    pipeline.save_memory(recipe.compute.offload, recipe.compute.vae_tiling)
    pipeline.to(recipe.device, getattr(torch, recipe.compute.dtype))
    if scene.lora:
        pipeline.load_lora(recipe.profile.part(scene.lora.name).check().path, scene.lora.scale)
    return GenerateModels(pipeline, OvercompletionDetector.from_profile(recipe.profile))


def compute(works: Sequence[Work], models: GenerateModels, recipe: Recipe) -> list[Made | Rejected]:
    """Inpaint one batch of shots and measure each image. All works of a batch share the scene, so one call does."""
    poses = [_pose(work, recipe) for work in works]
    usable = [(work, pose) for work, pose in zip(works, poses, strict=True) if not isinstance(pose, Rejected)]
    painted = iter(_paint([work for work, _ in usable], [pose for _, pose in usable], models, recipe) if usable else ())
    return [pose if isinstance(pose, Rejected) else next(painted) for pose in poses]


def _wants_pose(recipe: Recipe) -> bool:
    return any(control.kind == "openpose" for control in recipe.scene.controls)


def _pose(work: Work, recipe: Recipe) -> np.ndarray | Rejected | None:
    """The product's keypoints, (people, 18, 3) in px of the photo; None where no control of the scene wants them."""
    if not _wants_pose(recipe):
        return None
    given = work.job.parameters["pose"]
    try:
        if not given:
            raise Rejected(
                f"scene {recipe.scene.name} has an openpose control and the product no pose, and the profile has no "
                "model that finds one: give the catalogue a column `pose` with OpenPose's JSON"
            )
        return read_pose(given)
    except Rejected as rejection:
        return rejection


def _paint(
    works: Sequence[Work], poses: Sequence[np.ndarray | None], models: GenerateModels, recipe: Recipe
) -> list[Made]:
    scene = recipe.scene
    canvas: tuple[int, int] = (scene.channel.width, scene.channel.height)
    width, height = model_canvas(*canvas, recipe.profile.native_size)
    laid, small = [], []
    for work, pose in zip(works, poses, strict=True):
        photo = read_photo(work.inputs["photo"], recipe.max_megapixels).image()
        cutout = Image.open(io.BytesIO(work.inputs["cutout"]))
        matte = np.asarray(cutout.getchannel("A"))
        where = place(matte, canvas, scene.placement.scale, scene.placement.anchor, scene.placement.ground_line)
        laid.append(where)
        small.append(_Reduced.of(photo, cutout, pose, where, width, height))
    controls = [_control(small, control, recipe.mask_guidance) for control in scene.controls]
    images = models.pipeline(
        image=[item.colour for item in small],
        product_mask=[item.mask for item in small],
        prompt=[work.job.parameters["prompt"] for work in works],
        negative_prompt=[work.job.parameters["negative_prompt"] for work in works],
        strength=scene.strength,
        num_inference_steps=scene.steps,
        guidance_scale=scene.guidance_scale,
        guidance_start=scene.guidance_start,
        guidance_end=scene.guidance_end,
        cache_interval=scene.cache_interval,
        brushnet_scale=scene.brushnet_scale,
        control_images=[images for images, _ in controls],
        control_masks=[masks for _, masks in controls],
        control_scales=[control.scale for control in scene.controls],
        control_starts=[control.start for control in scene.controls],
        control_ends=[control.end for control in scene.controls],
        height=height,
        width=width,
        generator=[torch.Generator("cpu").manual_seed(noise_seed(work.job)) for work in works],
    ).images
    return [
        _measured(image, item, where.facts(), scene.rim, models.detector, str(recipe.compute))
        for image, item, where in zip(images, small, laid, strict=True)
    ]


@dataclass(frozen=True, slots=True)
class _Reduced:
    """The placed product at the model's size: colour RGB, matte L, and the matte as (1, 1, H, W) float, 1 = product.
    `photo` (RGB) is the photo around it, and `pose` the keypoints (people, 18, 3) if there are any, placed alike."""

    colour: Image.Image
    matte: Image.Image
    mask: torch.Tensor
    photo: Image.Image
    pose: np.ndarray | None

    @classmethod
    def of(
        cls,
        photo: Image.Image,
        cutout: Image.Image,
        pose: np.ndarray | None,
        where: Placement,
        width: int,
        height: int,
    ) -> _Reduced:
        colour, matte = lay_product(photo, cutout, where).reduced(width, height)
        mask = torch.from_numpy(np.asarray(matte, np.float32) / 255)[None, None]
        if pose is not None:
            pose = _placed_pose(pose, where, width, height)
        return cls(colour, matte, mask, lay_photo(photo, where, width, height), pose)

    def placed(self) -> Image.Image:
        """The product alone, RGBA."""
        placed = self.colour.copy()
        placed.putalpha(self.matte)
        return placed


def _control(
    small: Sequence[_Reduced], control: Control, guided: bool
) -> tuple[list[Image.Image], torch.Tensor | None]:
    """A control image for each shot, and the refined product masks that bound its residuals (section 3.2)."""
    images = [_shown(item, control) for item in small]
    if not guided or control.mask_guidance is None:
        return images, None
    guide = control.mask_guidance
    masks = torch.cat([item.mask for item in small])
    return images, refine_mask(masks, closing=guide.closing, opening=guide.opening, dilation=guide.dilation)


def _shown(item: _Reduced, control: Control) -> Image.Image:
    """What the ControlNet is shown of a shot: its pose; the photo's edges within the product, or the cutout's, with its
    rim."""
    if control.kind == "openpose":
        assert item.pose is not None  # `_pose` rejected the shot otherwise
        return pose_map(item.pose, item.matte.size)
    if control.source == "photo":
        image, mask = item.photo, item.mask
    else:
        image, mask = Image.composite(item.colour, Image.new("RGB", item.colour.size), item.matte), None
        image.putalpha(item.matte)
    if control.kind == "lineart":
        return line_art(image, mask)
    return canny_edges(image, mask, control.low, control.high)


def _placed_pose(pose: np.ndarray, where: Placement, width: int, height: int) -> np.ndarray:
    """Keypoints in px of the photo as they stand on the canvas of `width` × `height` px."""
    left, top, right, bottom = where.source
    placed = pose.copy()
    placed[..., 0] = where.left + (pose[..., 0] - left) * where.width / (right - left)
    placed[..., 1] = where.top + (pose[..., 1] - top) * where.height / (bottom - top)
    placed[..., :2] *= (width / where.canvas_width, height / where.canvas_height)
    return placed


def _measured(
    image: Image.Image,
    item: _Reduced,
    placement: Mapping[str, Any],
    rim: int,
    detector: OvercompletionDetector,
    compute: str,
) -> Made:
    matte = np.asarray(item.matte)
    plate = Image.fromarray(clean_plate(np.asarray(image), matte, rim))
    painted, finished = (np.asarray(Image.composite(item.colour, under, item.matte)) for under in (image, plate))
    found = detector.measure(painted, matte)
    return Made(
        outputs=(
            Output("raw", png_bytes(image), "image/png"),
            Output("plate", png_bytes(plate), "image/png"),
            Output("placed", png_bytes(item.placed()), "image/png"),
        ),
        facts={
            "placement": dict(placement),
            "e_plus": found.e_plus,
            "rim": halo(finished, matte).score,
            "uncertainty": found.uncertainty,
            "compute": compute,
        },
    )


def _excess(step: Step, checks: Checks) -> float:
    """How far the worse of a candidate's two measures is up its threshold: at most 1 passes."""
    measures = (step.facts["e_plus"], checks.overcompletion), (step.facts["rim"], checks.halo)
    return max(measure / max(limit, 1e-9) for measure, limit in measures)


STAGE = Stage(
    name="generate",
    version=5,
    needs=("cutout", "describe"),
    job=job,
    load=load,
    compute=compute,
    batched=True,
    candidates=lambda recipe: recipe.scene.candidates,
    score=lambda step, recipe: _excess(step, recipe.scene.checks),
    passes=lambda step, recipe: _excess(step, recipe.scene.checks) <= 1,
)
