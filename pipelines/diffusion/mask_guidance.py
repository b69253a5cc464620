"""Mask guidance: limit a ControlNet to the product (the paper, section 3.2).

The product mask is refined by closing, opening and dilation. It is multiplied into every output of the ControlNet's
encoder at that output's own resolution. This happens before the UNet's decoder reads the outputs and before several
nets are summed. It needs no training.

`MaskGuidedControlNet` *is* a diffusers `ControlNetModel`, so it works in any stock ControlNet pipeline.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
from diffusers import ControlNetModel, ModelMixin
from diffusers.models.controlnets.controlnet import ControlNetOutput
from torch import Tensor, nn
from torch.nn import functional as F

from pipelines.diffusion.control_kinds import REFUSED_KINDS

Resize = Literal["area", "max", "bilinear"]

TRAINED_TIMESTEPS = 1000
"""Number of timesteps that SD 1.5 and SDXL were trained on. The last is pure noise, 0 the finished picture."""


def refine_mask(mask: Tensor, closing: int = 0, opening: int = 0, dilation: int = 0) -> Tensor:
    """Fill small holes, remove specks, widen the edge: closing, then opening, then dilation by discs.

    The picture's border is no edge: a product that the frame cuts keeps its cut side.

    Args:
        mask: (B, 1, H, W), floating point, 0..1, 1 = product. Soft masks stay soft (grey-level morphology).
        closing: Diameter of the disc, px. It fills narrower holes and gaps. 0 = off.
        opening: Diameter, px. It removes narrower specks and hairs. 0 = off.
        dilation: Diameter, px. The product grows by half of it on every side. 0 = off.

    Returns:
        The refined mask: same shape, dtype and device.

    Raises:
        ValueError: wrong shape or dtype, or a negative diameter.
    """
    if mask.ndim != 4 or mask.shape[1] != 1 or not mask.is_floating_point():
        raise ValueError(f"Expected a floating point mask (B, 1, H, W), got {tuple(mask.shape)} of {mask.dtype}.")
    if min(closing, opening, dilation) < 0:
        raise ValueError(f"Diameters are px, 0 = off, but got {closing=}, {opening=}, {dilation=}.")
    mask = _erode(_dilate(mask, closing), closing)
    mask = _dilate(_erode(mask, opening), opening)
    return _dilate(mask, dilation)


def _check_resize(resize: str) -> None:
    if resize not in get_args(Resize):
        raise ValueError(f"A mask is resized by one of {', '.join(get_args(Resize))}, not {resize!r}.")


def resize_mask(mask: Tensor, size: tuple[int, int], resize: Resize = "area") -> Tensor:
    """Resize a mask (B, 1, H, W) to a feature map's size (h, w). A mask of ones or zeros stays exact.

    A feature map's cell can be wider than a thin product (64 px at 8x8 for SD 1.5). "area" keeps the product as its
    share of the cell, "max" with full strength. "bilinear", the web UIs' choice, reads four pixels per cell and can
    miss it. Raises ValueError for any other name.
    """
    _check_resize(resize)
    if resize == "area":
        return F.adaptive_avg_pool2d(mask, size)
    if resize == "max":
        return F.adaptive_max_pool2d(mask, size)
    # in float64 the weights of a mask of ones sum to exactly 1 in float32
    return F.interpolate(mask.double(), size, mode="bilinear", align_corners=False).to(mask.dtype)


class MaskGuidedControlNet(ControlNetModel):
    """A ControlNet whose outputs are multiplied by the product mask (the paper, section 3.2).

    It shares the modules of the net that it wraps, and keeps its config, dtype, device and mode. A mask of ones gives
    the very bytes of that net, a mask of zeros those of scale 0. `save_pretrained` writes the net without the mask, and
    `ControlNetModel.from_pretrained` reads it.

    Args:
        controlnet: Any ControlNet of SD 1.5 or SDXL.
        mask: (B, 1, H, W), 0..1, 1 = product; used without refinement (see `refine_mask`). One mask serves the whole
            batch. B masks, one per image, serve a batch of n·B whose n parts follow one another, like guidance halves.
            A stock pipeline's batch holds each prompt's `num_images_per_prompt` images side by side, and so must B.
        kind: What the net was trained on ("canny", "lineart", "openpose", ...), if known.
        resize: How the mask is resized to each output; see `resize_mask`.
        masked_layers: Whether each output is masked, shallow to deep, the mid block last (13 for SD 1.5, 10 for SDXL).
            The paper masks all.
        layer_weights: One factor per output, in the same order. The paper's are all 1.
        timestep_weights: A factor on all outputs at pure noise and at the finished picture, linear in the timestep
            between them. The paper's are 1.

    Raises:
        ValueError: an unsuitable kind, a net with pooled outputs or with a mask already, a mask of wrong shape or
            range, or a wrong number of weights.
    """

    def __init__(
        self,
        controlnet: ControlNetModel,
        mask: Tensor,
        kind: str | None = None,
        *,
        resize: Resize = "area",
        masked_layers: Sequence[bool] | None = None,
        layer_weights: Sequence[float] | None = None,
        timestep_weights: tuple[float, float] = (1.0, 1.0),
    ):
        if kind in REFUSED_KINDS:
            raise ValueError(f"Mask guidance does not suit a {kind} ControlNet: {REFUSED_KINDS[kind]}.")
        if not isinstance(controlnet, ControlNetModel) or isinstance(controlnet, MaskGuidedControlNet):
            raise ValueError(
                f"Expected a ControlNetModel without a mask, got {type(controlnet).__name__}: wrap each net."
            )
        if controlnet.config.global_pool_conditions:
            raise ValueError("This ControlNet (shuffle) pools its outputs over the whole picture: no place to mask.")
        if mask.ndim != 4 or mask.shape[1] != 1 or not mask.is_floating_point():
            raise ValueError(f"Expected a floating point mask (B, 1, H, W), got {tuple(mask.shape)} of {mask.dtype}.")
        if not mask.is_meta and not (mask.min() >= 0 and mask.max() <= 1):
            raise ValueError("Masks are 0..1, 1 = product.")
        _check_resize(resize)
        outputs = len(controlnet.controlnet_down_blocks) + 1
        for name, values in (("layer weights", layer_weights), ("masked layers", masked_layers)):
            if values is not None and len(values) != outputs:
                raise ValueError(f"This ControlNet has {outputs} outputs, but got {len(values)} {name}.")
        # ControlNetModel's constructor would create new weights; this net shares the given one's
        ModelMixin.__init__(self)
        for name, module in controlnet.named_children():
            self.add_module(name, module)
        for name in ("class_embedding", "encoder_hid_proj"):  # read even if None, and then not children
            setattr(self, name, getattr(controlnet, name))
        self._internal_dict = controlnet._internal_dict
        self.training = controlnet.training
        self.register_buffer("mask", mask.detach().to(controlnet.device), persistent=False)
        self.resize = resize
        self.masked_layers = tuple(masked_layers or (True,) * outputs)
        self.layer_weights = tuple(layer_weights or (1.0,) * outputs)
        self.timestep_weights = timestep_weights
        self._unmasked = (controlnet,)  # in a tuple: as a submodule it would duplicate all weights

    def forward(
        self, sample: Tensor, timestep: Tensor | float | int, *args: Any, return_dict: bool = True, **kwargs: Any
    ) -> Any:
        """Run the net and mask its outputs. Arguments and result are those of `ControlNetModel`."""
        down, mid = super().forward(sample, timestep, *args, return_dict=False, **kwargs)
        strength = self._strength(timestep)
        sizes = {(output.shape[-2], output.shape[-1]) for output in [*down, mid]}
        masks = {size: self._masks_for(mid.shape[0], size) for size in sizes}
        guided = []
        for output, masked, weight in zip([*down, mid], self.masked_layers, self.layer_weights, strict=True):
            factor = weight * strength * (masks[output.shape[-2], output.shape[-1]] if masked else 1)
            guided.append(output * (factor.to(output.dtype) if isinstance(factor, Tensor) else factor))
        if not return_dict:
            return guided[:-1], guided[-1]
        return ControlNetOutput(down_block_res_samples=tuple(guided[:-1]), mid_block_res_sample=guided[-1])

    def save_pretrained(self, *args: Any, **kwargs: Any) -> None:
        """Save the net without its mask, as a `ControlNetModel`."""
        self._unmasked[0].save_pretrained(*args, **kwargs)

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        """Raise: no mask was saved.

        Raises:
            ValueError: always.
        """
        raise ValueError(
            "A mask belongs to a picture and is not saved with a net: "
            "load it by ControlNetModel.from_pretrained and give both to MaskGuidedControlNet."
        )

    def _strength(self, timestep: Tensor | float | int) -> Tensor | float:
        """Return the timestep's factor: one for all, or (B, 1, 1, 1)."""
        noise, picture = self.timestep_weights
        if noise == picture:
            return noise
        share = torch.as_tensor(timestep, device=self.mask.device).float().reshape(-1, 1, 1, 1) / TRAINED_TIMESTEPS
        return picture + (noise - picture) * share

    def _masks_for(self, batch: int, size: tuple[int, int]) -> Tensor:
        masks = self.mask.shape[0]
        if batch % masks:
            raise ValueError(f"{masks} masks cannot serve a batch of {batch}: expected a multiple.")
        return resize_mask(self.mask.float(), size, self.resize).repeat(batch // masks, 1, 1, 1)


def without_embedding(controlnet: ControlNetModel) -> ControlNetModel:
    """Return a view of a ControlNet that takes the embedding of the control image instead of the image.

    The embedding (eight convolutions at full resolution) depends on the image alone.
    `controlnet.controlnet_cond_embedding(image)` computes it once for all steps. The view shares all weights.
    """
    view = copy.copy(controlnet)
    view._modules = {**controlnet._modules, "controlnet_cond_embedding": nn.Identity()}
    return view


def _dilate(mask: Tensor, diameter: int) -> Tensor:
    """Return the maximum over the disc of all (dy, dx) with dy² + dx² ≤ (diameter / 2)², one row of the disc at a
    time."""
    radius = diameter / 2
    result = mask
    for dy in range(min(int(radius), mask.shape[-2] - 1) + 1):
        dx = int(math.sqrt(radius**2 - dy**2))
        row = F.max_pool2d(mask, (1, 2 * dx + 1), stride=1, padding=(0, dx))
        if dy == 0:
            result = torch.maximum(result, row)
            continue
        below = torch.maximum(result[..., dy:, :], row[..., :-dy, :])
        result = torch.cat([result[..., :dy, :], below], dim=-2)
        above = torch.maximum(result[..., :-dy, :], row[..., dy:, :])
        result = torch.cat([above, result[..., -dy:, :]], dim=-2)
    return result


def _erode(mask: Tensor, diameter: int) -> Tensor:
    return -_dilate(-mask, diameter)
