"""Another painter in the sampler's place: an image-to-image pipeline of diffusers that a profile names.

It gets the canvas, product on backdrop, and returns it painted. What follows does not depend on who painted it: the
light is transferred, the product is laid over, the image is measured. The painter knows no product mask, so it has no
controls. `PAINTERS` lists the pipelines.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from PIL import Image

from pipelines.models.arguments import PainterArguments
from pipelines.models.checkpoints import load_painter
from pipelines.models.painters import PAINTERS
from pipelines.models.profile import ModelPart
from pipelines.settings import Compute


class ImageToImage:
    """A pipeline of `PAINTERS`.

    Args:
        pipeline: Of diffusers, on the CPU.
        arguments: What the profile sets of it.
        compute: Device and precision that it has.

    Attributes:
        name: The pipeline's class.
    """

    def __init__(self, pipeline: Any, arguments: PainterArguments, compute: Compute):
        self.name = type(pipeline).__name__
        self.painter = PAINTERS[self.name]
        self.pipeline = pipeline
        self.arguments = arguments
        self.compute = compute
        pipeline.set_progress_bar_config(disable=True)
        if compute.vae_tiling:
            pipeline.vae.enable_tiling()
        if compute.offload:
            pipeline.enable_model_cpu_offload(device=compute.device)
        else:
            pipeline.to(compute.device)

    @classmethod
    def from_part(cls, part: ModelPart, compute: Compute) -> ImageToImage:
        """Load a profile's painter; one that is published in bfloat16 gets it in place of float16.

        Raises UsageError if files are missing, IntegrityError if they are wrong.
        """
        if PAINTERS[part.pipeline].bfloat16 and compute.dtype == "float16":
            reason = f"{compute.reason}; {part.pipeline} is published in bfloat16"
            compute = replace(compute, dtype="bfloat16", reason=reason)
        pipeline = load_painter(part.check(), getattr(torch, compute.dtype))
        return cls(pipeline, PainterArguments(**part.arguments), compute)

    @torch.no_grad()
    def __call__(
        self,
        images: Sequence[Image.Image],
        prompts: Sequence[str],
        negative_prompts: Sequence[str],
        seeds: Sequence[int],
        *,
        strength: float,
        steps: int,
        guidance_scale: float,
    ) -> list[Image.Image]:
        """Paint each canvas, one after the other, so that no image depends on its batch.

        Args:
            images: RGB, sides that are multiples of 64 px.
            prompts: One per image; the profile's template is put around each.
            negative_prompts: One per image. Only guided pipelines that take one use it.
            seeds: One per image. The noise is drawn on the CPU.
            strength: Share of the schedule that runs, 0..1. Pipelines that edit ignore it.
            steps: Unless the profile sets them.
            guidance_scale: Likewise.

        Returns:
            RGB images of the same sizes. Raises ValueError if the pipeline returns another size.
        """
        scale = self.arguments.guidance_scale or guidance_scale
        options: dict[str, Any] = {
            "num_inference_steps": self.arguments.steps or steps,
            self.painter.guidance: scale,
            **({} if self.painter.edits else {"strength": strength}),
        }
        painted = []
        for image, prompt, negative, seed in zip(images, prompts, negative_prompts, seeds, strict=True):
            call = options | {"prompt": self.arguments.prompt.replace("{prompt}", prompt)}
            if self.painter.negative_prompt and scale > 1:
                call["negative_prompt"] = negative or " "
            if self.painter.edits:
                call |= {"width": image.width, "height": image.height}
            generator = torch.Generator("cpu").manual_seed(seed)
            result = self.pipeline(image=image, generator=generator, **call).images[0].convert("RGB")
            if result.size != image.size:
                raise ValueError(f"{self.name} made {result.size} px of a canvas of {image.size} px.")
            painted.append(result)
        return painted

    @torch.no_grad()
    def round_trip(self, images: Sequence[Image.Image]) -> list[Image.Image]:
        """Images as the autoencoder gives them back: encoded and decoded, nothing painted."""
        vae, processor = self.pipeline.vae, self.pipeline.image_processor
        overflows = vae.dtype == torch.float16 and bool(vae.config.get("force_upcast"))
        if overflows:
            vae.to(torch.float32)
        returned = []
        for image in images:
            pixels = processor.preprocess(image).to(self.pipeline._execution_device, vae.dtype)
            latents = vae.encode(pixels.unsqueeze(2) if self.painter.frames else pixels).latent_dist.mode()
            decoded = vae.decode(latents).sample
            decoded = decoded[:, :, 0] if self.painter.frames else decoded
            returned += processor.postprocess(decoded.float(), output_type="pil")
        if overflows:
            vae.to(torch.float16)
        self.pipeline.maybe_free_model_hooks()
        return returned
