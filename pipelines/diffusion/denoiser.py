"""What UNet and branches predict in one step of the sampler: guided or not, whole or with recalled features."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor

from pipelines.diffusion import fooocus
from pipelines.diffusion.brushnet import BrushNetModel, inject
from pipelines.diffusion.conditioning import Conditioning
from pipelines.diffusion.controlnets import PreparedControl, residuals
from pipelines.diffusion.feature_cache import BranchResiduals, FeatureCache
from pipelines.diffusion.inputs import Layout
from pipelines.diffusion.schedule import step_in_range


@dataclass(frozen=True, slots=True)
class Guidance:
    """Classifier-free guidance in a part of the steps.

    Outside of it the picture follows the prompt unguided, and the half without it is not computed (Kynkäänniemi et al.,
    "Applying Guidance in a Limited Interval", 2024, https://huggingface.co/papers/2404.07724; their interval is one of
    noise levels, this one of steps).

    Attributes:
        scale: 1 is none.
        start: Share of the steps from which it is on.
        end: Share of the steps up to which it is on.
    """

    scale: float
    start: float = 0.0
    end: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.start <= self.end <= 1:
            raise ValueError(
                f"guidance_start and guidance_end are shares of the steps, 0 <= start <= end <= 1, "
                f"got {self.start} and {self.end}."
            )

    @property
    def ever(self) -> bool:
        """Whether any step may be guided."""
        return self.scale > 1 and self.start < self.end

    def active(self, step: int, steps: int) -> bool:
        """Whether step 0, 1, … of `steps` is guided."""
        return self.ever and step_in_range(step, steps, self.start, self.end)


@dataclass(frozen=True, slots=True)
class DenoiserInputs:
    """What the nets are told at every step besides latents and time, one entry a picture and half.

    Attributes:
        conditioning: Texts and sizes.
        unet_options: What else the UNet is told, as its keyword arguments.
        unet_cond: Mask and masked-image latents of a UNet with nine channels, (n, 5, h, w).
        brushnet_cond: BrushNet's, likewise; one entry a picture where it sees no text.
        controls: The ControlNets with their embedded images.
    """

    conditioning: Conditioning
    unet_options: dict[str, Any]
    unet_cond: Tensor | None
    brushnet_cond: Tensor | None
    controls: tuple[PreparedControl, ...]

    def prompted_half(self, layout: Layout) -> DenoiserInputs:
        """Of it, what the half with the prompt is told."""
        half = layout.prompted_half
        return DenoiserInputs(
            Conditioning(half(self.conditioning.embeds), half(self.conditioning.added)),
            half(self.unet_options),
            half(self.unet_cond),
            half(self.brushnet_cond),
            tuple(replace(control, embedding=half(control.embedding)) for control in self.controls),
        )


@dataclass(frozen=True, slots=True)
class Denoiser:
    """A UNet with its branches, and what they are told of a batch.

    Attributes:
        unet: Of SD 1.5 or SDXL.
        brushnet: Where the method has one that is to be heard.
        brushnet_scale: Factor on its outputs.
        feature: Fooocus' feature (pictures, C, h, w), where the method has it.
        layout: Of the batch; of two halves where `guidance` is ever on.
        told: For the whole batch.
        guidance: How strongly the prompt is followed, and when.
        cache: Recalls deep features; None: every step is whole.
    """

    unet: UNet2DConditionModel
    brushnet: BrushNetModel | None
    brushnet_scale: float
    feature: Tensor | None
    layout: Layout
    inputs: DenoiserInputs
    guidance: Guidance
    cache: FeatureCache | None = None

    def predict(self, latents: Tensor, t: Tensor, step: int, steps: int) -> Tensor:
        """What the UNet predicts, guided, in step 0, 1, … of `steps`.

        latents (pictures, 4, h, w), scaled as the scheduler wants them; the prediction has their shape.
        """
        guided = self.guidance.active(step, steps)
        inputs = self.inputs if guided else self.inputs.prompted_half(self.layout)
        sample = latents.repeat(2, 1, 1, 1) if guided else latents
        state = (guided, *(control.active(step, steps) for control in inputs.controls))
        with ExitStack() as stack:
            if self.cache is not None and self.cache.recalls(state):
                unet, added = self.cache.recall()
            else:
                unet, added = self.unet, self._run_branches(inputs, latents, sample, t, step, steps)
                if self.cache is not None:
                    stack.enter_context(self.cache.remember(state, added))
            prediction = self._run_unet(unet, added, inputs, sample, t)
        if not guided:
            return prediction
        without, with_text = prediction.chunk(2)
        return without + self.guidance.scale * (with_text - without)

    def _run_branches(
        self, inputs: DenoiserInputs, latents: Tensor, sample: Tensor, t: Tensor, step: int, steps: int
    ) -> BranchResiduals:
        """Run the branches."""
        from_controls = residuals(inputs.controls, step, steps, sample, t, inputs.conditioning)
        if self.brushnet is None:
            return BranchResiduals(None, from_controls)
        # without text both halves would get the same from BrushNet: it runs once, and `inject` repeats
        injections = self.brushnet(
            sample if self.brushnet.sees_text else latents,
            t, None, inputs.brushnet_cond, self.brushnet_scale, added_cond_kwargs=inputs.conditioning.added,
        )  # fmt: skip
        return BranchResiduals(injections, from_controls)

    def _run_unet(
        self, unet: UNet2DConditionModel, added: BranchResiduals, inputs: DenoiserInputs, sample: Tensor, t: Tensor
    ) -> Tensor:
        with ExitStack() as additions:
            if added.injections is not None:
                additions.enter_context(inject(unet, *added.injections))
            if self.feature is not None:
                additions.enter_context(fooocus.add_feature(unet, self.feature))
            seen = sample if inputs.unet_cond is None else torch.cat([sample, inputs.unet_cond], dim=1)
            prediction: Tensor = unet(
                seen, t, inputs.conditioning.embeds, return_dict=False, **inputs.unet_options, **added.controls
            )[0]
        return prediction
