"""ControlNets in the sampler: each with its mask, scale, start and end; and the inpainting ControlNet."""

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
from pipelines.diffusion.schedule import check_range, step_in_range


@dataclass(frozen=True, slots=True)
class ControlInput:
    """What one ControlNet gets in a call of the sampler.

    Attributes:
        images: One control image for all shots, or one per shot.
        mask: Its product mask, one for all shots or one per shot. None: the net is not masked.
        scale: Factor on its outputs.
        start: Share of the steps from which it runs.
        end: Share of the steps up to which it runs. Outside these steps it costs nothing.
    """

    images: Images
    mask: Masks | None = None
    scale: float = 1.0
    start: float = 0.0
    end: float = 1.0

    def __post_init__(self) -> None:
        check_range("A control's start and end", self.start, self.end)


@dataclass(frozen=True, slots=True)
class PreparedControl:
    """A ControlNet for the denoising loop. It takes `embedding` instead of the control image; see `ControlInput`."""

    net: ControlNetModel
    embedding: Tensor
    scale: float = 1.0
    start: float = 0.0
    end: float = 1.0

    def active(self, step: int, steps: int) -> bool:
        """Return whether the net runs in step 0, 1, … of `steps`."""
        return self.scale != 0 and step_in_range(step, steps, self.start, self.end)


def control_inputs(
    count: int, images: Sequence[Images], product_mask: Tensor | None, **options: Sequence[Any] | None
) -> list[ControlInput]:
    """Combine the sampler's lists into one entry per ControlNet; without images no ControlNet runs.

    `product_mask` masks every net, unless `masks` are given; None: no net is masked. `options` are `masks`, `scales`,
    `starts` and `ends`, one entry per net each, or None for the defaults. Raises ValueError if a list has another
    length.
    """
    if isinstance(images, Image.Image):
        raise ValueError("control_images has one entry a ControlNet: give one image as [image].")
    if not images:
        return []
    for name, values in {"images": images, **options}.items():
        if values is not None and len(values) != count:
            raise ValueError(f"There are {count} ControlNets, but control_{name} has {len(values)} entries.")
    if product_mask is None or options["masks"] is None:
        options["masks"] = [product_mask] * count
    given = {name.removesuffix("s"): values for name, values in options.items() if values is not None}
    return [
        ControlInput(shown, **{name: values[i] for name, values in given.items()}) for i, shown in enumerate(images)
    ]


def prepare_controls(
    nets: Sequence[ControlNetModel],
    kinds: Sequence[str],
    inputs: Sequence[ControlInput],
    layout: Layout,
    size: tuple[int, int],
    resize: Resize,
) -> list[PreparedControl]:
    """Mask each net and embed its control images once, for a sampled size (height, width).

    A `MaskGuidedControlNet` keeps its own mask and options. `kinds` are what the first nets were trained on, as far as
    known. Raises ValueError if the number of images or masks does not fit, or a kind does not suit a mask.
    """
    controls = []
    for i, (net, control) in enumerate(zip(nets, inputs, strict=False)):
        images = image_list(control.images)
        if len(images) not in (1, layout.shots):
            raise ValueError(f"{layout.shots} shots need one control image or {layout.shots}, got {len(images)}.")
        pixels = ((as_pixels(images, size) + 1) / 2).to(net.device, net.dtype)
        embedding = layout.for_both_halves(net.controlnet_cond_embedding(pixels))
        if control.mask is not None and not isinstance(net, MaskGuidedControlNet):
            mask = as_masks(control.mask, layout.shots, size).to(net.device)
            kind = kinds[i] if i < len(kinds) else None
            net = MaskGuidedControlNet(net, layout.per_image(mask), kind=kind, resize=resize)
        controls.append(PreparedControl(without_embedding(net), embedding, control.scale, control.start, control.end))
    return controls


def inpaint_control(net: ControlNetModel, seen: Tensor, scale: float, layout: Layout) -> PreparedControl:
    """Prepare the inpainting ControlNet for its control image `seen` (1 or shots, 3, H, W); see `inpaint_condition`.

    It is never masked: its black is a colour, and -1 means "paint here".
    """
    embedding = layout.for_both_halves(net.controlnet_cond_embedding(seen.to(net.device, net.dtype)))
    return PreparedControl(without_embedding(net), embedding, scale)


def residuals(
    controls: Sequence[PreparedControl], step: int, steps: int, sample: Tensor, t: Tensor, conditioning: Conditioning
) -> dict[str, Any]:
    """Run the active nets and return their summed outputs as keyword arguments of the UNet; empty if none is active."""
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
