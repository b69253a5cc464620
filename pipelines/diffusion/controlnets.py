"""ControlNets in the sampler: each with its mask, scale, start and end; and the one that inpaints."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from diffusers import ControlNetModel
from PIL import Image
from torch import Tensor

from pipelines.diffusion.conditioning import Conditioning
from pipelines.diffusion.inputs import Images, Layout, Masks, as_masks, as_pixels, image_list
from pipelines.diffusion.mask_guidance import MaskGuidedControlNet, Resize, without_embedding
from pipelines.diffusion.schedule import within


@dataclass(frozen=True, slots=True)
class Control:
    """One ControlNet, ready for the loop: it takes `embedding`, computed once, in the control image's place.

    Attributes:
        start: Share of the steps from which it is on.
        end: Share of the steps up to which it is on; it costs nothing outside.
    """

    net: ControlNetModel
    embedding: Tensor
    scale: float = 1.0
    start: float = 0.0
    end: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.start <= self.end <= 1:
            raise ValueError(
                f"A control's start and end are shares of the steps, 0 <= start <= end <= 1, "
                f"got {self.start} and {self.end}."
            )

    def active(self, step: int, steps: int) -> bool:
        """Whether the net runs in step 0, 1, … of `steps`."""
        return self.scale != 0 and within(step, steps, self.start, self.end)


def prepare_controls(
    nets: Sequence[ControlNetModel],
    kinds: Sequence[str],
    images: Sequence[Images],
    masks: Sequence[Masks | None] | None,
    scales: Sequence[float] | None,
    starts: Sequence[float] | None,
    ends: Sequence[float] | None,
    product_mask: Tensor | None,
    layout: Layout,
    size: tuple[int, int],
    resize: Resize,
) -> list[Control]:
    """Mask each net and embed its images once; see `InpaintingPipeline.__call__` for what may be given.

    `product_mask` (shots, 1, H, W) guides the nets that have no mask of their own; None: no net is masked. A net that
    came masked stays so, with its own options. `kinds`: what the nets were trained on, where known. Raises ValueError
    where the numbers do not fit together, or a net's kind suits no mask.
    """
    if isinstance(images, Image.Image):
        raise ValueError("control_images has one entry a ControlNet: give one image as [image].")
    if not images:
        return []
    given = {"images": images, "masks": masks, "scales": scales, "starts": starts, "ends": ends}
    for name, values in given.items():
        if values is not None and len(values) != len(nets):
            raise ValueError(f"There are {len(nets)} ControlNets, but control_{name} has {len(values)} entries.")
    controls = []
    for i, net in enumerate(nets):
        of_shots = image_list(images[i])
        if len(of_shots) not in (1, layout.shots):
            raise ValueError(f"{layout.shots} shots need one control image or {layout.shots}, got {len(of_shots)}.")
        pixels = ((as_pixels(of_shots, size) + 1) / 2).to(net.device, net.dtype)
        embedding = layout.in_both_halves(net.controlnet_cond_embedding(pixels))
        own = product_mask if masks is None else masks[i]
        if product_mask is not None and own is not None and not isinstance(net, MaskGuidedControlNet):
            mask = as_masks(own, layout.shots, size).to(net.device)
            kind = kinds[i] if i < len(kinds) else None
            net = MaskGuidedControlNet(net, layout.a_picture(mask), kind=kind, resize=resize)
        controls.append(
            Control(
                without_embedding(net),
                embedding,
                scale=scales[i] if scales is not None else 1.0,
                start=starts[i] if starts is not None else 0.0,
                end=ends[i] if ends is not None else 1.0,
            )
        )
    return controls


def inpaint_control(net: ControlNetModel, seen: Tensor, scale: float, layout: Layout) -> Control:
    """The net that inpaints, shown the masked image `seen` (1 or shots, 3, H, W): 0..1, and -1 where it is to paint.

    So lllyasviel/control_v11p_sd15_inpaint was trained. No mask guides it: its black is a colour, and -1 means 'paint'.
    """
    embedding = layout.in_both_halves(net.controlnet_cond_embedding(seen.to(net.device, net.dtype)))
    return Control(without_embedding(net), embedding, scale)


def residuals(
    controls: Sequence[Control], step: int, steps: int, sample: Tensor, t: Tensor, conditioning: Conditioning
) -> dict[str, Any]:
    """What the active nets give the UNet, added up, as its keyword arguments; nothing where none is active."""
    down_sum: list[Tensor] = []
    mid_sum: Tensor | None = None
    for control in controls:
        if not control.active(step, steps):
            continue
        down, mid = control.net(
            sample,
            t,
            conditioning.embeds,
            control.embedding,
            conditioning_scale=control.scale,
            added_cond_kwargs=conditioning.added,
            return_dict=False,
        )
        down_sum = [a + b for a, b in zip(down_sum, down, strict=True)] if down_sum else list(down)
        mid_sum = mid if mid_sum is None else mid_sum + mid
    if mid_sum is None:
        return {}
    return {"down_block_additional_residuals": down_sum, "mid_block_additional_residual": mid_sum}
