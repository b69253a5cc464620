"""Fooocus' inpainting for SDXL: a small head that reads the masked image, and a patch of the UNet's weights.

lllyasviel/Fooocus, 2023 (the paper, section 2.1) turns a UNet of 4 channels into an inpainting model. The head is one
convolution. It maps mask and masked-image latents to a feature that is added to the UNet's first feature map. The patch
has 8 bits per weight and is added to the weights of any descendant of SDXL. Both published files are read unchanged.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn
from torch.nn import functional as F

from pipelines.errors import IntegrityError
from pipelines.models.weights import read_weights, reading

LATENTS = 4
"""Channels of SDXL's latents; the mask comes before them in the head's input."""

PREFIX = "diffusion_model."
"""Prefix of the UNet's original weight names in the patch."""


class InpaintHead(nn.Module):
    """Maps mask and masked-image latents to a residual of the UNet's first feature map.

    Args:
        weight: (C, 5, 3, 3); C is the UNet's first width (320 for SDXL).

    Raises:
        ValueError: the weight has another shape.
    """

    def __init__(self, weight: Tensor):
        super().__init__()
        if weight.ndim != 4 or tuple(weight.shape[1:]) != (1 + LATENTS, 3, 3):
            raise ValueError(f"Fooocus' head is a convolution (C, 5, 3, 3), got {tuple(weight.shape)}.")
        self.weight = nn.Parameter(weight)

    @classmethod
    def from_file(cls, path: Path) -> InpaintHead:
        """Read the published `fooocus_inpaint_head.pth` (`{"head": weight}`), float32, as tensors only, never as code.

        Check files from elsewhere first with `ModelPart.check`. Raises IntegrityError, which names the file.
        """
        weights = read_weights(path, expected := "Fooocus' inpaint head")
        with reading(path, expected):
            return cls(weights["head"].float()).eval()

    def forward(self, product_mask: Tensor, masked_image_latents: Tensor) -> Tensor:
        """Compute the feature.

        Args:
            product_mask: (B, 1, h, w) at latent size, 1 = product; see `kept_mask`.
            masked_image_latents: (B, 4, h, w), normalised latents of the image with grey outside the product.

        Returns:
            (B, C, h, w), in the latents' dtype.
        """
        hole = (1 - product_mask).to(masked_image_latents.dtype)
        # pad with the border's values, not with zeros
        seen = F.pad(torch.cat([hole, masked_image_latents], dim=1), (1, 1, 1, 1), mode="replicate")
        return F.conv2d(seen, self.weight.to(seen.dtype))


def kept_mask(product_mask: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize a product mask (B, 1, H, W) to latent size (h, w) as Fooocus does: binary, 1 = product.

    A latent that touches the hole belongs to it: the hole's mask is max-pooled.
    """
    hole = (product_mask < 0.5).to(product_mask.dtype)
    return 1 - F.adaptive_max_pool2d(hole, size)


@contextmanager
def add_feature(unet: UNet2DConditionModel, feature: Tensor) -> Iterator[UNet2DConditionModel]:
    """Add the head's feature to the output of `conv_in`, for every call in the `with` block.

    Main path and first skip connection both get it. A batch of B serves a UNet's batch of n·B, for example both
    guidance halves.
    """

    def hook(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        return output + feature.to(output.dtype).repeat(output.shape[0] // feature.shape[0], 1, 1, 1)

    handle = unet.conv_in.register_forward_hook(hook)
    try:
        yield unet
    finally:
        handle.remove()


def check_unet(unet: UNet2DConditionModel) -> None:
    """Raise ValueError if a UNet is not SDXL's: head and patch fit no other."""
    if unet.config.addition_embed_type != "text_time":
        raise ValueError("Fooocus' inpainting was made for SDXL: its head and patch do not fit a UNet of SD 1.5.")


@torch.no_grad()
def apply_patch(unet: UNet2DConditionModel, path: Path) -> UNet2DConditionModel:
    """Add a published patch (`inpaint_v26.fooocus.patch`) to an SDXL UNet's weights, in place. Call it once.

    The file is `{original name: (uint8 weights, min, max)}`. It adds `uint8 / 255 · (max - min) + min`. It is read as
    tensors only, never as code. Check files from elsewhere first with `ModelPart.check`. A LoRA may be loaded before or
    after.

    Args:
        unet: SDXL's or a descendant's, of 4 channels. It is changed, unless the file is refused.
        path: The patch.

    Returns:
        The UNet itself.

    Raises:
        IntegrityError: the file is not a patch, or is one for another UNet. Then nothing was changed.
    """
    expected = "a Fooocus patch for this UNet"
    with reading(path, "a Fooocus patch"):
        stored = torch.load(path, map_location="cpu", weights_only=True)
        deltas = {name.removeprefix(PREFIX): _widened(*packed) for name, packed in stored.items()}
    parameters = _by_original_name(unet)
    for name, delta in deltas.items():
        if name not in parameters:
            raise IntegrityError(f"{path}: expected {expected}, which has no {name}")
        if parameters[name].shape != delta.shape:
            found, wanted = tuple(delta.shape), tuple(parameters[name].shape)
            raise IntegrityError(f"{path}: expected {expected}, whose {name} is {wanted}, found {found}")
    if not deltas:
        raise IntegrityError(f"{path}: expected {expected}, found an empty one")
    for name, delta in deltas.items():
        parameters[name].add_(delta.to(parameters[name]))
    return unet


def _widened(weights: Tensor, low: Tensor, high: Tensor) -> Tensor:
    if weights.dtype != torch.uint8:
        raise TypeError(f"weights of {weights.dtype} and not of 8 bits")
    low, high = torch.as_tensor(low).float(), torch.as_tensor(high).float()
    return weights.float() / 255 * (high - low) + low


def _by_original_name(unet: UNet2DConditionModel) -> dict[str, nn.Parameter]:
    """Return the UNet's parameters by the names in Stability's own code, which the patch uses."""
    places = {
        "conv_in": "input_blocks.0.0",
        "time_embedding.linear_1": "time_embed.0",
        "time_embedding.linear_2": "time_embed.2",
        "add_embedding.linear_1": "label_emb.0.0",
        "add_embedding.linear_2": "label_emb.0.2",
        "mid_block.resnets.0": "middle_block.0",
        "mid_block.attentions.0": "middle_block.1",
        "mid_block.resnets.1": "middle_block.2",
        "conv_norm_out": "out.0",
        "conv_out": "out.2",
    }
    block: Any  # nn.ModuleList is untyped
    count = 1
    for level, block in enumerate(unet.down_blocks):
        for layer in range(len(block.resnets)):
            places[f"down_blocks.{level}.resnets.{layer}"] = f"input_blocks.{count}.0"
            places[f"down_blocks.{level}.attentions.{layer}"] = f"input_blocks.{count}.1"
            count += 1
        if block.downsamplers:
            places[f"down_blocks.{level}.downsamplers.0.conv"] = f"input_blocks.{count}.0.op"
            count += 1
    count = 0
    for level, block in enumerate(unet.up_blocks):
        attends = 1 if hasattr(block, "attentions") else 0
        for layer in range(len(block.resnets)):
            places[f"up_blocks.{level}.resnets.{layer}"] = f"output_blocks.{count}.0"
            places[f"up_blocks.{level}.attentions.{layer}"] = f"output_blocks.{count}.1"
            count += 1
        places[f"up_blocks.{level}.upsamplers.0.conv"] = f"output_blocks.{count - 1}.{1 + attends}.conv"
    return {_original(name.replace(".base_layer", ""), places): value for name, value in unet.named_parameters()}


_IN_RESNET = {
    "norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1", "norm2": "out_layers.0",
    "conv2": "out_layers.3", "conv_shortcut": "skip_connection",
}  # fmt: skip
"""Names of a resnet's layers in the original code."""


def _original(name: str, places: Mapping[str, str]) -> str:
    module, kind = name.rsplit(".", 1)
    if module in places:
        return f"{places[module]}.{kind}"
    for place, original in places.items():
        if module.startswith(f"{place}."):
            within = module.removeprefix(f"{place}.")
            return f"{original}.{_IN_RESNET.get(within, within)}.{kind}"
    return name
