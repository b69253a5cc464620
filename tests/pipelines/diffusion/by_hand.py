"""BrushNet and its injections once more, written out from the published description and not from packshot's classes.

`brushnet` computes with a state dict under its published names and with torch's functions alone; `denoise` walks a
stock UNet's layers and adds the branch's outputs between them. The recordings of the published implementation hold both
to account; they then stand in for it where there is no recording.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor
from torch.nn import functional as F

Injections = tuple[list[Tensor], Tensor, list[Tensor]]


def brushnet(
    weights: dict[str, Tensor],
    config: dict[str, Any],
    sample: Tensor,
    timestep: Tensor,
    brushnet_cond: Tensor,
    scale: float = 1.0,
    added: dict[str, Tensor] | None = None,
    guess_mode: bool = False,
) -> Injections:
    """What BrushNet adds: after `conv_in` and each layer and sampler on the way down, the mid block, the way up."""

    def conv(x: Tensor, name: str, stride: int = 1) -> Tensor:
        weight = weights[f"{name}.weight"]
        return F.conv2d(x, weight, weights[f"{name}.bias"], stride=stride, padding=weight.shape[-1] // 2)

    def linear(x: Tensor, name: str) -> Tensor:
        return F.linear(x, weights[f"{name}.weight"], weights[f"{name}.bias"])

    def norm(x: Tensor, name: str) -> Tensor:
        groups, eps = config["norm_num_groups"], config["norm_eps"]
        return F.silu(F.group_norm(x, groups, weights[f"{name}.weight"], weights[f"{name}.bias"], eps))

    def resnet(x: Tensor, name: str) -> Tensor:
        h = conv(norm(x, f"{name}.norm1"), f"{name}.conv1")
        h = h + linear(F.silu(time), f"{name}.time_emb_proj")[:, :, None, None]
        h = conv(norm(h, f"{name}.norm2"), f"{name}.conv2")
        shortcut = f"{name}.conv_shortcut"
        return h + (conv(x, shortcut) if f"{shortcut}.weight" in weights else x)

    # time: a sinusoid, cosines first, then two linear layers; for SDXL likewise sizes and pooled text
    def sinusoid(values: Tensor, width: int) -> Tensor:
        half = width // 2
        angles = values.float()[:, None] * torch.exp(-math.log(10000) * torch.arange(half) / half)
        return torch.cat([angles.cos(), angles.sin()], dim=-1)

    def two_layers(x: Tensor, name: str) -> Tensor:
        return linear(F.silu(linear(x, f"{name}.linear_1")), f"{name}.linear_2")

    channels, levels = config["block_out_channels"], len(config["block_out_channels"])
    time = two_layers(sinusoid(timestep.reshape(-1).expand(len(sample)), channels[0]), "time_embedding")
    if added is not None:
        sizes = sinusoid(added["time_ids"].flatten(), config["addition_time_embed_dim"]).reshape(len(sample), -1)
        time = time + two_layers(torch.cat([added["text_embeds"], sizes], dim=-1), "add_embedding")

    x = conv(torch.cat([sample, brushnet_cond], dim=1), "conv_in_condition")
    skips = [x]
    for level in range(levels):
        for layer in range(config["layers_per_block"]):
            x = resnet(x, f"down_blocks.{level}.resnets.{layer}")
            skips.append(x)
        if level < levels - 1:
            x = conv(x, f"down_blocks.{level}.downsamplers.0.conv", stride=2)
            skips.append(x)
    x = resnet(resnet(x, "mid_block.resnets.0"), "mid_block.resnets.1")
    middle, on_the_way_up = x, []
    remaining = list(skips)
    for level in range(levels):
        for layer in range(config["layers_per_block"] + 1):
            x = resnet(torch.cat([x, remaining.pop()], dim=1), f"up_blocks.{level}.resnets.{layer}")
            on_the_way_up.append(x)
        if level < levels - 1:
            x = F.interpolate(x, remaining[-1].shape[2:], mode="nearest")
            x = conv(x, f"up_blocks.{level}.upsamplers.0.conv")
            on_the_way_up.append(x)

    down = [conv(x, f"brushnet_down_blocks.{i}") for i, x in enumerate(skips)]
    mid = conv(middle, "brushnet_mid_block")
    up = [conv(x, f"brushnet_up_blocks.{i}") for i, x in enumerate(on_the_way_up)]
    count = len(down) + 1 + len(up)
    factors = [scale * 10 ** (i / (count - 1) - 1) if guess_mode else scale for i in range(count)]
    scaled = [x * factor for x, factor in zip([*down, mid, *up], factors, strict=True)]
    return scaled[: len(down)], scaled[len(down)], scaled[len(down) + 1 :]


def denoise(
    unet: UNet2DConditionModel,
    sample: Tensor,
    timestep: Tensor,
    embeds: Tensor,
    injections: Injections,
    added: dict[str, Tensor] | None = None,
    control: tuple[list[Tensor], Tensor] | None = None,
) -> Tensor:
    """A UNet's output with BrushNet's additions: the layers of its blocks, one after the other."""
    down, mid, up = iter(injections[0]), injections[1], iter(injections[2])
    time = unet.time_embedding(unet.time_proj(timestep.reshape(-1).expand(len(sample))))
    if added is not None:
        time = time + unet.get_aug_embed(time, embeds, added)

    def layers(block: Any, skips: list[Tensor] | None = None) -> Iterator[Any]:
        attentions = getattr(block, "attentions", None) or [None] * len(block.resnets)
        for resnet, attention in zip(block.resnets, attentions, strict=True):

            def layer(x: Tensor, resnet: Any = resnet, attention: Any = attention) -> Tensor:
                x = resnet(x if skips is None else torch.cat([x, skips.pop()], dim=1), time)
                return x if attention is None else attention(x, encoder_hidden_states=embeds).sample

            yield layer

    x = unet.conv_in(sample)
    skips = [x]
    x = x + next(down)
    for block in unet.down_blocks:
        for layer in [*layers(block), *(block.downsamplers or ())]:
            x = layer(x) + next(down)
            skips.append(x)
    x = unet.mid_block(x, time, encoder_hidden_states=embeds) + mid
    if control is not None:
        skips = [skip + residual for skip, residual in zip(skips, control[0], strict=True)]
        x = x + control[1]
    for block in unet.up_blocks:
        for layer in layers(block, skips):
            x = layer(x) + next(up)
        for upsampler in block.upsamplers or ():
            x = upsampler(x, skips[-1].shape[2:]) + next(up)
    return unet.conv_out(unet.conv_act(unet.conv_norm_out(x)))
