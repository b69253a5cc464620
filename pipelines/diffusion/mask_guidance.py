"""Mask guidance: a ControlNet that speaks only where the product is (the paper, section 3.2).

The product mask, refined by closing, opening and dilation, is multiplied into every output of the ControlNet's encoder
at that output's own resolution, before the UNet's decoder sees it and before several nets are summed. No training.

`MaskGuidedControlNet` *is* a diffusers `ControlNetModel`: it drops into any stock ControlNet pipeline.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from diffusers import ControlNetModel, ModelMixin
from diffusers.models.controlnets.controlnet import ControlNetOutput
from torch import Tensor, nn
from torch.nn import functional as F

Resize = Literal["area", "max", "bilinear"]

REFUSED_KINDS = {
    "tile": "a tile control paints what it shows, so black means 'paint black here' and not 'no control': "
    "there is no region it leaves free, and mask guidance would turn the scene dark",
    "depth": "in a depth map black means 'far away' and not 'no control': cutting it off at the product's edge "
    "would put the product in front of nothing",
}
"""Controls whose black has a meaning of its own, and why that rules mask guidance out."""


def refine_mask(mask: Tensor, closing: int = 0, opening: int = 0, dilation: int = 0) -> Tensor:
    """Fill small holes, drop specks, widen the edge: closing, then opening, then dilation by discs.

    The picture's border is no edge: a product that is cut by the frame keeps its cut side.

    Args:
        mask: (B, 1, H, W), floating point, 0..1, 1 = product. Soft masks stay soft (grey-level morphology).
        closing: Diameter of the disc, px; holes and gaps narrower than that are filled. 0 = off.
        opening: Diameter, px; specks and hairs narrower than that are dropped. 0 = off.
        dilation: Diameter, px; the product grows by half of it on every side. 0 = off.

    Returns:
        The refined mask: same shape, dtype and device.

    Raises:
        ValueError: another shape or dtype, or a negative diameter.
    """
    if mask.ndim != 4 or mask.shape[1] != 1 or not mask.is_floating_point():
        raise ValueError(f"Expected a floating point mask (B, 1, H, W), got {tuple(mask.shape)} of {mask.dtype}.")
    if min(closing, opening, dilation) < 0:
        raise ValueError(f"Diameters are px, 0 = off, but got {closing=}, {opening=}, {dilation=}.")
    mask = _erode(_dilate(mask, closing), closing)
    mask = _dilate(_erode(mask, opening), opening)
    return _dilate(mask, dilation)


def resize_mask(mask: Tensor, size: tuple[int, int], resize: Resize = "area") -> Tensor:
    """Bring a mask (B, 1, H, W) to a feature map's size (h, w); a mask of ones or zeros stays exactly that.

    A product that is thin beside a feature map's cell (64 px at 8x8 for SD 1.5) survives as the share of the cell that
    it covers ("area") or with full strength ("max"). "bilinear", what the web UIs do, looks at four pixels a cell and
    can miss it altogether.
    """
    if resize == "area":
        return F.adaptive_avg_pool2d(mask, size)
    if resize == "max":
        return F.adaptive_max_pool2d(mask, size)
    # float64: the weights of a mask of ones then sum to 1 to the last bit of a float32
    return F.interpolate(mask.double(), size, mode="bilinear", align_corners=False).to(mask.dtype)


class MaskGuidedControlNet(ControlNetModel):
    """A ControlNet whose outputs are multiplied by the product mask (the paper, section 3.2).

    Shares the modules of the net it wraps (no copy of the weights) and keeps its config, dtype, device and mode. With a
    mask of ones it gives the very bytes of that net, with a mask of zeros those of scale 0.

    Args:
        controlnet: Any ControlNet of SD 1.5 or SDXL.
        mask: (B, 1, H, W), 0..1, 1 = product. Taken as it is (see `refine_mask`). One mask serves the whole batch; B of
            them serve a batch of n·B whose n parts follow one another, as the guidance halves do.
        kind: What the net was trained on ("canny", "lineart", "openpose", ...), where known.
        resize: How the mask comes to each output's resolution; see `resize_mask`.
        layer_weights: One factor an output, shallow to deep, the mid block's last (13 for SD 1.5, 10 for SDXL). The
            paper's are all 1.

    Raises:
        ValueError: a kind that mask guidance does not suit, a net with pooled outputs, or a mask of another shape.
    """

    def __init__(
        self,
        controlnet: ControlNetModel,
        mask: Tensor,
        kind: str | None = None,
        *,
        resize: Resize = "area",
        layer_weights: Sequence[float] | None = None,
    ):
        if kind in REFUSED_KINDS:
            raise ValueError(f"Mask guidance does not suit a {kind} ControlNet: {REFUSED_KINDS[kind]}.")
        if controlnet.config.global_pool_conditions:
            raise ValueError("This ControlNet (shuffle) pools its outputs over the whole picture: no place to mask.")
        if mask.ndim != 4 or mask.shape[1] != 1 or not mask.is_floating_point():
            raise ValueError(f"Expected a floating point mask (B, 1, H, W), got {tuple(mask.shape)} of {mask.dtype}.")
        outputs = len(controlnet.controlnet_down_blocks) + 1
        if layer_weights is not None and len(layer_weights) != outputs:
            raise ValueError(f"This ControlNet has {outputs} outputs, but got {len(layer_weights)} layer weights.")
        # not ControlNetModel's constructor: it would make new weights, where this net shares the given one's
        ModelMixin.__init__(self)
        for name, module in controlnet.named_children():
            self.add_module(name, module)
        for name in ("class_embedding", "encoder_hid_proj"):  # no children where they are None, but read all the same
            setattr(self, name, getattr(controlnet, name))
        self._internal_dict = controlnet._internal_dict
        self.training = controlnet.training
        self.register_buffer("mask", mask.detach().to(controlnet.device), persistent=False)
        self.resize = resize
        self.layer_weights = tuple(layer_weights or (1.0,) * outputs)

    def forward(self, *args: Any, return_dict: bool = True, **kwargs: Any) -> Any:
        """Call the net, then mask its outputs; arguments and result are `ControlNetModel`'s."""
        down, mid = super().forward(*args, return_dict=False, **kwargs)
        masked = [self._guide(output, weight) for output, weight in zip([*down, mid], self.layer_weights, strict=True)]
        if not return_dict:
            return masked[:-1], masked[-1]
        return ControlNetOutput(down_block_res_samples=tuple(masked[:-1]), mid_block_res_sample=masked[-1])

    def _guide(self, output: Tensor, weight: float) -> Tensor:
        masks = self.mask.shape[0]
        if output.shape[0] % masks:
            raise ValueError(f"{masks} masks cannot serve a batch of {output.shape[0]}: expected a multiple.")
        mask = resize_mask(self.mask.float(), (output.shape[-2], output.shape[-1]), self.resize) * weight
        return output * mask.to(output.dtype).repeat(output.shape[0] // masks, 1, 1, 1)


def without_embedding(controlnet: ControlNetModel) -> ControlNetModel:
    """Return a view of a ControlNet that takes the control image's embedding in the image's place.

    The embedding (eight convolutions, at the image's full resolution) depends on the image alone: computed once by
    `controlnet.controlnet_cond_embedding(image)`, it serves every step. The view shares all weights.
    """
    view = copy.copy(controlnet)
    view._modules = {**controlnet._modules, "controlnet_cond_embedding": nn.Identity()}
    return view


def _dilate(mask: Tensor, diameter: int) -> Tensor:
    """Maximum over the disc of all (dy, dx) with dy² + dx² ≤ (diameter / 2)²: a row of the disc at a time."""
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
