"""One prediction of UNet and branches: guided or not, whole or with cached features."""

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
from pipelines.diffusion.schedule import check_range, step_in_range


@dataclass(frozen=True, slots=True)
class Guidance:
    """Classifier-free guidance in a part of the steps.

    In other steps the half without the prompt is not computed. See Kynkäänniemi et al., "Applying Guidance in a Limited
    Interval", 2024, https://huggingface.co/papers/2404.07724. Their interval is one of noise levels, this one of steps.

    Attributes:
        scale: Guidance scale; 1 means no guidance.
        start: Share of the steps from which guidance is on.
        end: Share of the steps up to which it is on.
    """

    scale: float
    start: float = 0.0
    end: float = 1.0

    def __post_init__(self) -> None:
        check_range("guidance_start and guidance_end", self.start, self.end)

    @property
    def ever(self) -> bool:
        """Whether any step may be guided."""
        return self.scale > 1 and self.start < self.end

    def active(self, step: int, steps: int) -> bool:
        """Return whether step 0, 1, … of `steps` is guided."""
        return self.ever and step_in_range(step, steps, self.start, self.end)


@dataclass(frozen=True, slots=True)
class DenoiserInputs:
    """Inputs of the nets that stay the same in every step, with one entry per image and guidance half.

    Attributes:
        conditioning: Texts and sizes.
        unet_options: Further keyword arguments of the UNet.
        unet_cond: Mask and masked-image latents of a UNet with nine channels, (n, 5, h, w).
        brushnet_cond: Likewise for BrushNet; one entry per image if it reads no text.
        controls: The ControlNets with their embedded images.
    """

    conditioning: Conditioning
    unet_options: dict[str, Any]
    unet_cond: Tensor | None
    brushnet_cond: Tensor | None
    controls: tuple[PreparedControl, ...]

    def prompted_half(self, layout: Layout) -> DenoiserInputs:
        """Return the inputs of the half with the prompt."""
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
    """A UNet with its branches and their inputs for one batch.

    Attributes:
        unet: Of SD 1.5 or SDXL.
        brushnet: If the method has one and its scale is not 0.
        brushnet_scale: Factor on its outputs.
        feature: Fooocus' feature (images, C, h, w), if the method has it.
        layout: Of the batch; it has two halves if `guidance` is ever on.
        inputs: For the whole batch.
        guidance: Scale and interval of guidance.
        cache: Caches deep features; None: every step is whole.
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
        """Return the UNet's prediction, guided, in step 0, 1, … of `steps`.

        `latents` is (images, 4, h, w), scaled for the scheduler. The prediction has the same shape.
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
        """Run BrushNet and the ControlNets."""
        from_controls = residuals(inputs.controls, step, steps, sample, t, inputs.conditioning)
        if self.brushnet is None:
            return BranchResiduals(None, from_controls)
        # without text BrushNet gives both halves the same: it runs once, and `inject` repeats its outputs
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
