"""Stage 3: paint a scene around the product (paper, section 3).

The cutout is placed on the channel's canvas, reduced to the model's size, and everything around it is inpainted. Each
candidate is measured at once: for overcompletion as it was painted, so that nothing grown hides under the clean plate,
and on the plate for a halo around the product. The first seed that passes both ends the search, `candidates` at most.

A scene with a backdrop begins from that picture with the product and its drawn shadow on it, not from noise. In mode
`adjust` only the light of what is painted goes on to the next stage (`pipelines.vision.light`), in `transform` all of
it; in `lock` nothing is painted. Such a scene is painted by the profile's painter if it has one
(`pipelines.diffusion.image_to_image`), otherwise by packshot's own sampler.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

from pipelines.contracts import Job, Made, Output, sha256_hex
from pipelines.diffusion.acceleration import accelerate, free_memory, shots_that_fit
from pipelines.diffusion.control import canny_edges, line_art, pose_map, read_pose
from pipelines.diffusion.image_to_image import ImageToImage
from pipelines.diffusion.inpainting import InpaintingPipeline
from pipelines.diffusion.mask_guidance import refine_mask
from pipelines.errors import Rejected
from pipelines.quality.fidelity import halo
from pipelines.quality.overcompletion import OvercompletionDetector
from pipelines.scenes import Control, Scene
from pipelines.stages.keys import paints, wants_pose
from pipelines.stages.painter import native_size, painter_of
from pipelines.vision.backdrops import BackdropSettings, lay_backdrop
from pipelines.vision.light import light_between, light_png, relight
from pipelines.vision.photos import png_bytes, read_photo
from pipelines.vision.placement import Placement, lay_photo, lay_product, place
from pipelines.vision.plate import clean_plate
from pipelines.workflow import Recipe, Work

SIDE_MULTIPLE = 64
"""An autoencoder of 8x and a UNet of four levels: canvases come in multiples of 64 px."""


@dataclass(frozen=True, slots=True)
class GenerateModels:
    """The sampler with its branches, or another painter (neither where nothing is painted), and the segmenter that
    looks at what it made."""

    pipeline: InpaintingPipeline | ImageToImage | None
    detector: OvercompletionDetector


def model_canvas(width: int, height: int, native: int) -> tuple[int, int]:
    """Size to sample at for a channel of width × height px: its shorter side is `native`, both multiples of 64 px."""
    ratio = native / min(width, height)
    return tuple(max(SIDE_MULTIPLE, round(side * ratio / SIDE_MULTIPLE) * SIDE_MULTIPLE) for side in (width, height))  # type: ignore[return-value]


def noise_seed(job: Job) -> int:
    """What the sampler's noise is drawn with, 0..2³¹: the job's seed; in a forced attempt one of the attempt's own,
    because the same noise would paint the same picture again."""
    seed = job.seed or 0
    return int(sha256_hex(f"{seed}/{job.attempt}".encode())[:8], 16) >> 1 if job.attempt else seed


def load(recipe: Recipe) -> GenerateModels:
    """Load the profile's painter, or the sampler for the scene's method with its controls and LoRA; and the fast
    segmenter."""
    scene = recipe.scene
    detector = OvercompletionDetector.from_profile(recipe.profile)
    if not paints(recipe):
        return GenerateModels(None, detector)
    if painter := painter_of(recipe):
        return GenerateModels(ImageToImage.from_part(painter, recipe.compute), detector)
    pipeline = InpaintingPipeline.from_profile(
        recipe.profile.name,
        method=recipe.method or scene.method,
        models_dir=recipe.profile.models_dir,
        controls=tuple(control.kind for control in scene.controls),
    )
    pipeline.save_memory(recipe.compute.offload, recipe.compute.vae_tiling)
    pipeline.to(recipe.device, getattr(torch, recipe.compute.dtype))
    pipeline.vae.to(memory_format=torch.channels_last)  # decodes in three quarters of the CPU time, encodes in 0.91
    if scene.lora:
        pipeline.load_lora(recipe.profile.part(scene.lora.name).check().path, scene.lora.scale)
    accelerate(pipeline, recipe.compute)
    return GenerateModels(pipeline, detector)


def compute(works: Sequence[Work], models: GenerateModels, recipe: Recipe) -> list[Made | Rejected]:
    """Inpaint one batch of shots and measure each image. All works of a batch share the scene, so one call does."""
    poses = [_pose(work, recipe) for work in works]
    usable = [(work, pose) for work, pose in zip(works, poses, strict=True) if not isinstance(pose, Rejected)]
    painted = iter(_paint([work for work, _ in usable], [pose for _, pose in usable], models, recipe) if usable else ())
    return [pose if isinstance(pose, Rejected) else next(painted) for pose in poses]


def _pose(work: Work, recipe: Recipe) -> np.ndarray | Rejected | None:
    """The product's keypoints, (people, 18, 3) in px of the photo; None where no control of the scene wants them."""
    if not wants_pose(recipe):
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
    small = [_Reduced.of(work, pose, recipe) for work, pose in zip(works, poses, strict=True)]
    images = [item.canvas for item in small]
    before: list[Image.Image | None] = [None] * len(small)
    about = {"compute": str(recipe.compute)}
    if models.pipeline is not None:
        if scene.backdrop and scene.backdrop.mode == "adjust":
            before = list(models.pipeline.round_trip(images))
        if isinstance(models.pipeline, ImageToImage):
            images = _edit(works, small, models.pipeline, recipe)
            about = {"compute": str(models.pipeline.compute), "painter": models.pipeline.name}
        else:
            images = _sample(works, small, models.pipeline, recipe)
    return [
        _measured(image, start, item, scene, models.detector, about)
        for image, start, item in zip(images, before, small, strict=True)
    ]


def _edit(works: Sequence[Work], small: Sequence[_Reduced], painter: ImageToImage, recipe: Recipe) -> list[Image.Image]:
    """Let the profile's painter paint each canvas. It knows no product mask."""
    scene = recipe.scene
    assert scene.backdrop is not None  # `painter_of` wants one
    return painter(
        [item.canvas for item in small],
        [work.job.parameters["prompt"] for work in works],
        [work.job.parameters["negative_prompt"] for work in works],
        [noise_seed(work.job) for work in works],
        strength=scene.backdrop.noise,
        steps=scene.steps,
        guidance_scale=scene.guidance_scale,
    )


def _sample(
    works: Sequence[Work], small: Sequence[_Reduced], pipeline: InpaintingPipeline, recipe: Recipe
) -> list[Image.Image]:
    """Paint around each product, at the model's size."""
    scene = recipe.scene
    controls = [_control(small, control, recipe.mask_guidance) for control in scene.controls]
    width, height = small[0].colour.size
    return pipeline(
        image=[item.canvas for item in small],
        product_mask=[item.mask for item in small],
        prompt=[work.job.parameters["prompt"] for work in works],
        negative_prompt=[work.job.parameters["negative_prompt"] for work in works],
        strength=scene.backdrop.noise if scene.backdrop else scene.strength,
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


@dataclass(frozen=True, slots=True)
class _Reduced:
    """The placed product at the model's size: colour RGB, matte L, and the matte as (1, 1, H, W) float, 1 = product.

    `where` is its placement at full size. `photo` (RGB) is the photo around it, `pose` the keypoints (people, 18,
    3) if there are any, placed alike. `backdrop` (RGB) is the scene's, with the drawn shadow, if there is one.
    """

    where: Placement
    colour: Image.Image
    matte: Image.Image
    mask: torch.Tensor
    photo: Image.Image
    pose: np.ndarray | None
    backdrop: Image.Image | None

    @classmethod
    def of(cls, work: Work, pose: np.ndarray | None, recipe: Recipe) -> _Reduced:
        channel = recipe.scene.channel
        canvas = (channel.width, channel.height)
        width, height = model_canvas(*canvas, native_size(recipe))
        photo = read_photo(work.inputs["photo"], recipe.max_megapixels).image()
        cutout = Image.open(io.BytesIO(work.inputs["cutout"]))
        matte = np.asarray(cutout.getchannel("A"))
        asked = work.job.parameters["placement"]
        line, ground, wall, laid = asked["ground_line"], (0.0, 1.0), 1.0, None
        if "backdrop" in work.inputs:
            settings = BackdropSettings.from_parameters(work.job.parameters["backdrop"])
            laid = lay_backdrop(work.inputs["backdrop"], canvas, settings)
            line, wall = laid.line / canvas[1], laid.wall / canvas[1]
            ground = (laid.foot[0] / canvas[0], laid.foot[1] / canvas[0])
        where = place(
            matte, canvas, asked["scale"], asked["anchor"], line, ground, wall, exact=asked.get("exact", False)
        )
        product = lay_product(photo, cutout, where)
        colour, small = product.reduced(width, height)
        return cls(
            where,
            colour,
            small,
            torch.from_numpy(np.asarray(small, np.float32) / 255)[None, None],
            lay_photo(photo, where, width, height),
            None if pose is None else _placed_pose(pose, where, width, height),
            Image.fromarray(laid.shaded(product, asked["anchor"]).reduced(width, height)) if laid else None,
        )

    @property
    def canvas(self) -> Image.Image:
        """What the sampler begins from: the product alone, or on its backdrop."""
        return self.colour if self.backdrop is None else self.over(self.backdrop)

    def over(self, scene: Image.Image) -> Image.Image:
        """The product laid over a scene, RGB."""
        return Image.composite(self.colour, scene, self.matte)

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
    outline."""
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
    before: Image.Image | None,
    item: _Reduced,
    scene: Scene,
    detector: OvercompletionDetector,
    about: Mapping[str, str],
) -> Made:
    """One candidate: `image` as it was painted, `before` as the painting began where its light alone is wanted.

    about: facts about who painted it and where."""
    matte = np.asarray(item.matte)
    painted = _clean(image, matte, scene)
    outputs: tuple[Output, ...] = ()
    enlarged = item.backdrop is None or (scene.backdrop is not None and scene.backdrop.mode == "transform")
    if enlarged:
        plate, judged = painted, item.over(image)
    else:
        plate = np.asarray(item.backdrop)
        if before is not None:
            light = light_between(painted, _clean(before, matte, scene), matte)
            plate = relight(plate, light)
            outputs = (Output("light", light_png(light), "image/png"),)
        judged = item.over(Image.fromarray(plate))  # nothing else of what was painted goes on
    found = detector.measure(np.asarray(judged), matte)
    if not enlarged and found.saliency is not None:
        outputs += (Output("saliency", _map_png(found.saliency), "image/png"),)
    return Made(
        outputs=(
            Output("raw", png_bytes(image), "image/png"),
            Output("plate", png_bytes(Image.fromarray(plate)), "image/png"),
            Output("placed", png_bytes(item.placed()), "image/png"),
            *outputs,
        ),
        facts={
            "placement": item.where.facts(),
            "e_plus": found.e_plus,
            "halo": halo(np.asarray(item.over(Image.fromarray(plate))), matte).score,
            "uncertainty": found.uncertainty,
            **about,
        },
    )


def _map_png(values: np.ndarray) -> bytes:
    """A map (h, w), 0..1, as a grey PNG of 8 bits."""
    return png_bytes(Image.fromarray(np.rint(np.clip(values, 0, 1) * 255).astype(np.uint8)))


def _clean(image: Image.Image, matte: np.ndarray, scene: Scene) -> np.ndarray:
    return clean_plate(np.asarray(image), matte, scene.outline_margin)


def fits(recipe: Recipe) -> int:
    """Shots that fit into the device's free memory as one batch."""
    return shots_that_fit(free_memory(recipe.device), recipe.profile.native_size, recipe.compute.dtype)
