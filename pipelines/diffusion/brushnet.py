"""BrushNet: a second branch that reads the masked image and adds its features to a frozen UNet, layer by layer.

Ju et al., "BrushNet: A Plug-and-Play Image Inpainting Model with Decomposed Dual-Branch Diffusion", 2024
(https://huggingface.co/papers/2403.06976), section 4. The paper that packshot follows chooses it in section 3.1.1.

`BrushNetModel` is the branch: a copy of the UNet's convolutions without attention and text. Its state dict and config
are those of the released checkpoints. `inject` adds its outputs to a stock `UNet2DConditionModel` inside a `with`
block. It uses forward hooks, so any diffusers call works and no fork of diffusers is needed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import ModelMixin, UNet2DConditionModel
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.embeddings import TimestepEmbedding, Timesteps
from diffusers.models.unets.unet_2d_blocks import DownBlock2D, UNetMidBlock2D, UpBlock2D
from diffusers.utils import BaseOutput
from torch import Tensor, nn


@dataclass
class BrushNetOutput(BaseOutput):
    """What BrushNet adds to a UNet, in the UNet's order of computation.

    Attributes:
        down: After `conv_in`, then after each layer and each down-sampler. 12 tensors for SD 1.5, 9 for SDXL.
        mid: After the mid block; one tensor.
        up: After each layer and each up-sampler. 15 tensors for SD 1.5, 11 for SDXL.
    """

    down: tuple[Tensor, ...]
    mid: Tensor
    up: tuple[Tensor, ...]


class BrushNetModel(ModelMixin, ConfigMixin):
    """The branch that reads [noisy latents | masked-image latents | mask] and no text.

    Load a released checkpoint with `from_pretrained`, or start from a UNet's weights with `from_unet`. Block types and
    attention arguments are in the released `config.json` and are kept for that reason only. All blocks are
    `DownBlock2D`, `MidBlock2D` and `UpBlock2D`, whatever the UNet uses.

    Raises:
        ValueError: the configuration names other blocks, or an embedding that BrushNet does not have.
    """

    _supports_gradient_checkpointing = True

    @register_to_config
    def __init__(
        self,
        in_channels: int = 4,
        conditioning_channels: int = 5,
        flip_sin_to_cos: bool = True,
        freq_shift: int = 0,
        down_block_types: tuple[str, ...] = ("DownBlock2D",) * 4,
        mid_block_type: str = "MidBlock2D",
        up_block_types: tuple[str, ...] = ("UpBlock2D",) * 4,
        only_cross_attention: bool | tuple[bool, ...] = False,
        block_out_channels: tuple[int, ...] = (320, 640, 1280, 1280),
        layers_per_block: int = 2,
        downsample_padding: int = 1,
        mid_block_scale_factor: float = 1,
        act_fn: str = "silu",
        norm_num_groups: int = 32,
        norm_eps: float = 1e-5,
        cross_attention_dim: int = 1280,
        transformer_layers_per_block: int | tuple[int, ...] = 1,
        encoder_hid_dim: int | None = None,
        encoder_hid_dim_type: str | None = None,
        attention_head_dim: int | tuple[int, ...] = 8,
        num_attention_heads: int | tuple[int, ...] | None = None,
        use_linear_projection: bool = False,
        class_embed_type: str | None = None,
        addition_embed_type: str | None = None,
        addition_time_embed_dim: int | None = None,
        num_class_embeds: int | None = None,
        upcast_attention: bool = False,
        resnet_time_scale_shift: str = "default",
        projection_class_embeddings_input_dim: int | None = None,
        brushnet_conditioning_channel_order: str = "rgb",
        conditioning_embedding_out_channels: tuple[int, ...] | None = (16, 32, 96, 256),
        global_pool_conditions: bool = False,
        addition_embed_type_num_heads: int = 64,
    ):
        super().__init__()
        levels = len(block_out_channels)
        expected = (("DownBlock2D",) * levels, "MidBlock2D", ("UpBlock2D",) * levels)
        found = (tuple(down_block_types), mid_block_type, tuple(up_block_types))
        if found != expected:
            raise ValueError(f"BrushNet with {levels} levels has the blocks {expected}, but the config says {found}.")
        if (class_embed_type, num_class_embeds) != (None, None) or addition_embed_type not in (None, "text_time"):
            raise ValueError(
                "BrushNet knows `addition_embed_type` None (SD 1.5) and 'text_time' (SDXL) and no class embedding, "
                f"but got {addition_embed_type=}, {class_embed_type=}, {num_class_embeds=}."
            )

        time_embed_dim = block_out_channels[0] * 4
        self.conv_in_condition = nn.Conv2d(in_channels + conditioning_channels, block_out_channels[0], 3, padding=1)
        self.time_proj = Timesteps(block_out_channels[0], flip_sin_to_cos, freq_shift)
        self.time_embedding = TimestepEmbedding(block_out_channels[0], time_embed_dim, act_fn=act_fn)
        if addition_embed_type == "text_time":
            self.add_time_proj = Timesteps(addition_time_embed_dim, flip_sin_to_cos, freq_shift)
            self.add_embedding = TimestepEmbedding(projection_class_embeddings_input_dim, time_embed_dim)

        resnet: dict[str, Any] = {
            "temb_channels": time_embed_dim,
            "resnet_eps": norm_eps,
            "resnet_act_fn": act_fn,
            "resnet_groups": norm_num_groups,
            "resnet_time_scale_shift": resnet_time_scale_shift,
        }

        # down: one zero convolution for conv_in, then one per layer and down-sampler
        self.down_blocks = nn.ModuleList()
        self.brushnet_down_blocks = nn.ModuleList([_zero_conv(block_out_channels[0])])
        channels = block_out_channels[0]
        for level, out_channels in enumerate(block_out_channels):
            final = level == levels - 1
            self.down_blocks.append(
                DownBlock2D(
                    in_channels=channels,
                    out_channels=out_channels,
                    num_layers=layers_per_block,
                    add_downsample=not final,
                    downsample_padding=downsample_padding,
                    **resnet,
                )
            )
            channels = out_channels
            self.brushnet_down_blocks.extend(_zero_conv(channels) for _ in range(layers_per_block + (not final)))

        # mid: two resnets
        self.mid_block = UNetMidBlock2D(
            in_channels=channels, output_scale_factor=mid_block_scale_factor, add_attention=False, **resnet
        )
        self.brushnet_mid_block = _zero_conv(channels)

        # up: one layer more than down, as in the UNet, and an up-sampler on all levels but the last
        self.up_blocks = nn.ModuleList()
        self.brushnet_up_blocks = nn.ModuleList()
        for level in reversed(range(levels)):
            final = level == 0
            previous, channels = channels, block_out_channels[level]
            self.up_blocks.append(
                UpBlock2D(
                    in_channels=block_out_channels[max(level - 1, 0)],
                    prev_output_channel=previous,
                    out_channels=channels,
                    num_layers=layers_per_block + 1,
                    add_upsample=not final,
                    **resnet,
                )
            )
            self.brushnet_up_blocks.extend(_zero_conv(channels) for _ in range(layers_per_block + 1 + (not final)))

    @classmethod
    def from_unet(
        cls,
        unet: UNet2DConditionModel,
        load_weights_from_unet: bool = True,
        conditioning_channels: int = 5,
        brushnet_conditioning_channel_order: str = "rgb",
        conditioning_embedding_out_channels: tuple[int, ...] | None = (16, 32, 96, 256),
    ) -> BrushNetModel:
        """Create the branch of a UNet: the same sizes, copied convolutions, no attention, all outputs zero.

        Args:
            unet: An SD 1.5 or SDXL UNet of any size with 4 input channels.
            load_weights_from_unet: Copy the weights too. The input convolution then reads the masked-image latents with
                the kernel of the noisy latents, and ignores the mask.
            conditioning_channels: Number of channels of masked-image latents and mask.
            brushnet_conditioning_channel_order: Written to the config, as in the released ones.
            conditioning_embedding_out_channels: Likewise.
        """
        config = {name: unet.config[name] for name in _SHARED_WITH_UNET}
        levels = len(unet.config.block_out_channels)
        brushnet = cls(
            **config,
            conditioning_channels=conditioning_channels,
            down_block_types=("DownBlock2D",) * levels,
            up_block_types=("UpBlock2D",) * levels,
            brushnet_conditioning_channel_order=brushnet_conditioning_channel_order,
            conditioning_embedding_out_channels=conditioning_embedding_out_channels,
        )
        if load_weights_from_unet:
            latents = unet.config.in_channels
            weight = torch.zeros_like(brushnet.conv_in_condition.weight)
            weight[:, :latents] = weight[:, latents : 2 * latents] = unet.conv_in.weight.detach()
            brushnet.conv_in_condition.load_state_dict({"weight": weight, "bias": unet.conv_in.bias.detach()})
            brushnet.time_embedding.load_state_dict(unet.time_embedding.state_dict())
            if brushnet.config.addition_embed_type == "text_time":
                brushnet.add_embedding.load_state_dict(unet.add_embedding.state_dict())
            for name in ("down_blocks", "mid_block", "up_blocks"):
                # not strict: the UNet's attentions have no counterpart here
                theirs = getattr(unet, name).state_dict()
                missing = getattr(brushnet, name).load_state_dict(theirs, strict=False).missing_keys
                if missing:
                    raise ValueError(f"The UNet's {name} lack {missing[0]}: not an SD 1.5 or SDXL UNet.")
        return brushnet

    @property
    def sees_text(self) -> bool:
        """Whether the branch reads the pooled text (SDXL). If not, one call serves both guidance halves."""
        return self.config.addition_embed_type is not None

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor | float | int,
        encoder_hidden_states: Tensor | None,
        brushnet_cond: Tensor,
        conditioning_scale: float = 1.0,
        added_cond_kwargs: dict[str, Tensor] | None = None,
        guess_mode: bool = False,
        return_dict: bool = False,
    ) -> BrushNetOutput | tuple[tuple[Tensor, ...], Tensor, tuple[Tensor, ...]]:
        """Compute what to add to the UNet at each of its layers.

        Args:
            sample: Noisy latents (B, 4, h, w), scaled as for the UNet.
            timestep: One for all, or (B,).
            encoder_hidden_states: Ignored; present so that the call matches a UNet's.
            brushnet_cond: (B, 5, h, w): latents of the image with black outside the product, then the mask, **1 =
                kept**. The released checkpoints use the same polarity, although their scripts take the opposite.
            conditioning_scale: Factor on all outputs.
            added_cond_kwargs: SDXL's `text_embeds` (B, D) and `time_ids` (B, 6).
            guess_mode: Scale the outputs from 0.1 to 1 along the net, as the released code does.
            return_dict: Return a `BrushNetOutput` instead of a tuple.

        Returns:
            `(down, mid, up)`; see `BrushNetOutput`.
        """
        # 1. time (and for SDXL pooled text and sizes)
        timesteps = torch.as_tensor(timestep, device=sample.device).expand(sample.shape[0])
        emb = self.time_embedding(self.time_proj(timesteps).to(sample.dtype))
        if self.sees_text:
            if added_cond_kwargs is None:
                raise ValueError("This BrushNet (SDXL) needs `added_cond_kwargs` with `text_embeds` and `time_ids`.")
            text_embeds, time_ids = added_cond_kwargs["text_embeds"], added_cond_kwargs["time_ids"]
            time_embeds = self.add_time_proj(time_ids.flatten()).reshape(text_embeds.shape[0], -1)
            emb = emb + self.add_embedding(torch.cat([text_embeds, time_embeds], dim=-1).to(emb.dtype))

        # 2. in
        sample = self.conv_in_condition(torch.cat([sample, brushnet_cond], dim=1))

        # 3. down
        block: Any  # nn.ModuleList is untyped
        skips: list[Tensor] = [sample]
        for block in self.down_blocks:
            sample, states = block(sample, emb)
            skips.extend(states)
        down = [zero_conv(state) for zero_conv, state in zip(self.brushnet_down_blocks, skips, strict=True)]

        # 4. mid
        sample = self.mid_block(sample, emb)
        mid = self.brushnet_mid_block(sample)

        # 5. up: `UpBlock2D.forward` does not return its inner states, so its layers are called one by one
        states = []
        for block in self.up_blocks:
            for resnet in block.resnets:
                features = torch.cat([sample, skips.pop()], dim=1)
                if torch.is_grad_enabled() and block.gradient_checkpointing:
                    sample = block._gradient_checkpointing_func(resnet, features, emb)
                else:
                    sample = resnet(features, emb)
                states.append(sample)
            for upsampler in block.upsamplers or ():
                sample = upsampler(sample, skips[-1].shape[2:])
                states.append(sample)
        up = [zero_conv(state) for zero_conv, state in zip(self.brushnet_up_blocks, states, strict=True)]

        # 6. scale
        outputs = [*down, mid, *up]
        if self.config.global_pool_conditions:
            outputs = [output.mean(dim=(2, 3), keepdim=True) for output in outputs]
        if guess_mode and not self.config.global_pool_conditions:
            scales = torch.logspace(-1, 0, len(outputs), device=sample.device) * conditioning_scale
            outputs = [output * scale.to(output.dtype) for output, scale in zip(outputs, scales, strict=True)]
        else:
            outputs = [output * conditioning_scale for output in outputs]

        result = BrushNetOutput(
            down=tuple(outputs[: len(down)]), mid=outputs[len(down)], up=tuple(outputs[len(down) + 1 :])
        )
        return result if return_dict else (result.down, result.mid, result.up)


@contextmanager
def inject(
    unet: UNet2DConditionModel, down: Sequence[Tensor], mid: Tensor, up: Sequence[Tensor]
) -> Iterator[UNet2DConditionModel]:
    """Add BrushNet's outputs inside a stock UNet, for every call in the `with` block.

    The first of `down` is added after `conv_in` on the main path only, because the first skip connection is taken
    before it. Each other one is added after a layer or a sampler, so the skip connections carry it. `mid` is added
    after the mid block. ControlNet residuals of the same call are added as usual. Gradients flow. The hooks are removed
    at the end of the block, also after an exception. With gradient checkpointing, call `backward` inside the block: the
    recomputation needs the hooks.

    Args:
        unet: The model itself, not a wrapper around it.
        down: As `BrushNetModel` returns them.
        mid: Likewise.
        up: Likewise. A batch of B serves a UNet's batch of n·B, for example both guidance halves.

    Raises:
        ValueError: the number of tensors does not match the UNet's layers.
    """
    down_places = [layer for block in unet.down_blocks for layer in _layers(block, "downsamplers")]
    up_places = [layer for block in unet.up_blocks for layer in _layers(block, "upsamplers")]
    places, given = (1 + len(down_places), len(up_places)), (len(down), len(up))
    if places != given:
        raise ValueError(f"The UNet has {places} places on its way down and up, but BrushNet gave {given} tensors.")

    with ExitStack() as hooks:
        # `conv_in`'s output must not change: it is also the first skip connection
        first = unet.down_blocks[0].register_forward_pre_hook(_add_to_input(down[0]), with_kwargs=True)
        hooks.callback(first.remove)
        for place, residual in zip([*down_places, unet.mid_block, *up_places], [*down[1:], mid, *up], strict=True):
            hooks.callback(place.register_forward_hook(_add_to_output(residual)).remove)
        yield unet


def _layers(block: Any, samplers: str) -> list[nn.Module]:
    """Return the modules whose outputs are the results of a block's layers and samplers, in order of computation."""
    return [*(getattr(block, "attentions", None) or block.resnets), *(getattr(block, samplers, None) or ())]


def _add(hidden: Tensor, residual: Tensor) -> Tensor:
    halves = hidden.shape[0] // residual.shape[0]
    return hidden + (residual if halves == 1 else residual.repeat(halves, 1, 1, 1))


def _add_to_input(residual: Tensor) -> Callable[..., Any]:
    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        return args, kwargs | {"hidden_states": _add(kwargs["hidden_states"], residual)}

    return hook


def _add_to_output(residual: Tensor) -> Callable[..., Any]:
    def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        if isinstance(output, tuple):  # attention with return_dict=False
            return (_add(output[0], residual), *output[1:])
        return _add(output, residual)

    return hook


def _zero_conv(channels: int) -> nn.Conv2d:
    conv = nn.Conv2d(channels, channels, kernel_size=1)
    nn.init.zeros_(conv.weight)
    nn.init.zeros_(conv.bias)  # type: ignore[arg-type]  # bias=True above
    return conv


_SHARED_WITH_UNET = (
    "in_channels", "flip_sin_to_cos", "freq_shift", "only_cross_attention", "block_out_channels", "layers_per_block",
    "downsample_padding", "mid_block_scale_factor", "act_fn", "norm_num_groups", "norm_eps", "cross_attention_dim",
    "transformer_layers_per_block", "encoder_hid_dim", "encoder_hid_dim_type", "attention_head_dim",
    "num_attention_heads", "use_linear_projection", "class_embed_type", "addition_embed_type",
    "addition_time_embed_dim", "num_class_embeds", "upcast_attention", "resnet_time_scale_shift",
    "projection_class_embeddings_input_dim",
)  # fmt: skip
