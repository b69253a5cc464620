"""BiRefNet: a net that outlines the foreground of a picture at 1,024 px.

Zheng et al., "Bilateral Reference for High-Resolution Dichotomous Image Segmentation", CAAI AIR 2024. The encoder is a
Swin Transformer (Liu et al., ICCV 2021) that sees the picture twice, at full and at half size. Each step of the decoder
also sees the picture itself, cut into tiles (the inward reference), and is weighted by where it expects an edge (the
outward reference). Modules have the names of the published weights. What serves training alone is left out.

Ported from ZhengPeng7/BiRefNet, copyright 2024 ZhengPeng, and from Swin Transformer, copyright 2021 Microsoft: MIT
License, see NOTICE.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import isqrt

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import deform_conv2d

TRAINING_ONLY = ("decoder.conv_ms_spvn_", "decoder.gdt_convs_pred_")
"""Beginnings of the names of published tensors that only training needs."""


@dataclass(frozen=True, slots=True)
class BiRefNetShape:
    """Sizes of a net.

    Attributes:
        width: Channels of the encoder's first stage; each further one has twice as many.
        depths: Blocks of each stage.
        heads: Attention heads of each stage.
        window: Side of the attention windows, in tokens.
    """

    width: int
    depths: tuple[int, ...]
    heads: tuple[int, ...]
    window: int

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> BiRefNetShape:
        """Read the sizes off published weights. Raises KeyError if they are of another net."""
        table = "bb.layers.{}.blocks.0.attn.relative_position_bias_table"
        heads = tuple(tensors[table.format(stage)].shape[1] for stage in range(4))
        names = {
            tuple(name.split(".")[2:5:2]) for name in tensors if name.startswith("bb.layers.") and ".blocks." in name
        }
        depths = tuple(sum(stage == str(number) for stage, _ in names) for number in range(4))
        window = (isqrt(tensors[table.format(0)].shape[0]) + 1) // 2
        return cls(tensors["bb.patch_embed.proj.weight"].shape[0], depths, heads, window)


def _resize(x: Tensor, size: torch.Size) -> Tensor:
    return F.interpolate(x, size=size, mode="bilinear", align_corners=True)


# ------------------------------------------------------------------------------------------------------------ encoder


class _Attention(nn.Module):
    """Attention inside each window, with a bias for each relative position."""

    index: Tensor

    def __init__(self, width: int, heads: int, window: int) -> None:
        super().__init__()
        self.heads = heads
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * window - 1) ** 2, heads))
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        at = torch.stack(torch.meshgrid(torch.arange(window), torch.arange(window), indexing="ij")).flatten(1)
        down, across = at[:, :, None] - at[:, None, :] + window - 1
        self.register_buffer("index", down * (2 * window - 1) + across, persistent=False)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """Map `(windows, tokens, width)` to the same shape. `mask`: `(windows, tokens, tokens)`, added to the bias."""
        windows, tokens, width = x.shape
        query, key, value = self.qkv(x).view(windows, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        bias = self.relative_position_bias_table[self.index].permute(2, 0, 1)[None]
        if mask is not None:
            bias = bias + mask[:, None]
        x = F.scaled_dot_product_attention(query, key, value, attn_mask=bias)
        mixed: Tensor = self.proj(x.transpose(1, 2).reshape(windows, tokens, width))
        return mixed


class _Block(nn.Module):
    """A transformer block; where `shift` is not 0, its windows lie between those of its neighbours."""

    def __init__(self, width: int, heads: int, window: int, shift: int) -> None:
        super().__init__()
        self.window, self.shift = window, shift
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = _Attention(width, heads, window)
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(width, 4 * width), "fc2": nn.Linear(4 * width, width)})

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Map `(B, H, W, width)` to the same shape."""
        _, height, width, _ = x.shape
        y = F.pad(self.norm1(x), (0, 0, 0, -width % self.window, 0, -height % self.window))
        y = torch.roll(y, (-self.shift, -self.shift), (1, 2))
        padded = y.shape
        y = _windows(y, self.window)
        y = self.attn(y, mask.repeat(padded[0], 1, 1) if self.shift else None)
        y = _joined(y, self.window, padded)
        x = x + torch.roll(y, (self.shift, self.shift), (1, 2))[:, :height, :width]
        grown: Tensor = x + self.mlp["fc2"](F.gelu(self.mlp["fc1"](self.norm2(x))))
        return grown


def _windows(x: Tensor, side: int) -> Tensor:
    """Cut `(B, H, W, C)` into windows `(B × windows, side², C)`."""
    batch, height, width, channels = x.shape
    x = x.view(batch, height // side, side, width // side, side, channels)
    return x.transpose(2, 3).reshape(-1, side * side, channels)


def _joined(windows: Tensor, side: int, shape: torch.Size) -> Tensor:
    """Join windows to `(B, H, W, C)`."""
    batch, height, width, channels = shape
    windows = windows.view(batch, height // side, width // side, side, side, channels)
    return windows.transpose(2, 3).reshape(shape)


def _shift_mask(height: int, width: int, window: int, like: Tensor) -> Tensor:
    """Return a mask that keeps tokens apart that only the shift made neighbours: `(windows, tokens, tokens)`, 0 or
    -inf."""
    region = torch.zeros(1, -(-height // window) * window, -(-width // window) * window, 1, device=like.device)
    parts = slice(-window), slice(-window, -(window // 2)), slice(-(window // 2), None)
    for number, (rows, columns) in enumerate((rows, columns) for rows in parts for columns in parts):
        region[:, rows, columns] = number
    tokens = _windows(region, window)[..., 0]
    apart = tokens[:, None] != tokens[:, :, None]
    return torch.zeros(apart.shape, dtype=like.dtype, device=like.device).masked_fill(apart, -torch.inf)


class _Stage(nn.Module):
    """A stage of the encoder, and the step to the next one, at half the size; the last stage has none."""

    def __init__(self, width: int, depth: int, heads: int, window: int, last: bool) -> None:
        super().__init__()
        self.window = window
        self.blocks = nn.ModuleList(_Block(width, heads, window, n % 2 * (window // 2)) for n in range(depth))
        self.downsample = (
            None
            if last
            else nn.ModuleDict(
                {"norm": nn.LayerNorm(4 * width), "reduction": nn.Linear(4 * width, 2 * width, bias=False)}
            )
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Map `(B, H, W, width)` to this stage's output, and the next one's input."""
        mask = _shift_mask(x.shape[1], x.shape[2], self.window, x)
        for block in self.blocks:
            x = block(x, mask)
        if self.downsample is None:
            return x, x
        y = F.pad(x, (0, 0, 0, x.shape[2] % 2, 0, x.shape[1] % 2))
        y = torch.cat([y[:, down::2, across::2] for across in (0, 1) for down in (0, 1)], dim=-1)
        return x, self.downsample["reduction"](self.downsample["norm"](y))


class _Swin(nn.Module):
    """The encoder: four stages at 1/4, 1/8, 1/16 and 1/32 of the picture's size."""

    def __init__(self, shape: BiRefNetShape) -> None:
        super().__init__()
        self.patch_embed = nn.ModuleDict(
            {"proj": nn.Conv2d(3, shape.width, 4, stride=4), "norm": nn.LayerNorm(shape.width)}
        )
        widths = [shape.width * 2**stage for stage in range(4)]
        self.layers = nn.ModuleList(
            _Stage(width, depth, heads, shape.window, last=width == widths[-1])
            for width, depth, heads in zip(widths, shape.depths, shape.heads, strict=True)
        )
        self.norm0, self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(width) for width in widths)

    def forward(self, image: Tensor) -> list[Tensor]:
        """Map `(B, 3, H, W)` to the output of each stage, `(B, C, h, w)`, finest first."""
        height, width = image.shape[2:]
        x = self.patch_embed["proj"](F.pad(image, (0, -width % 4, 0, -height % 4)))
        x = self.patch_embed["norm"](x.permute(0, 2, 3, 1))
        outputs = []
        for stage, norm in zip(self.layers, (self.norm0, self.norm1, self.norm2, self.norm3), strict=True):
            y, x = stage(x)
            outputs.append(norm(y).permute(0, 3, 1, 2).contiguous())
        return outputs


# ------------------------------------------------------------------------------------------------------------ decoder


class _Deformable(nn.Module):
    """A convolution that learns where to look, and how much: modulated deformable convolution."""

    def __init__(self, inputs: int, outputs: int, side: int) -> None:
        super().__init__()
        self.offset_conv = nn.Conv2d(inputs, 2 * side * side, side, padding=side // 2)
        self.modulator_conv = nn.Conv2d(inputs, side * side, side, padding=side // 2)
        self.regular_conv = nn.Conv2d(inputs, outputs, side, padding=side // 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map `(B, inputs, H, W)` to `(B, outputs, H, W)`."""
        where, weight = self.offset_conv(x), 2 * self.modulator_conv(x).sigmoid()
        padding = self.regular_conv.padding[0]
        found: Tensor = deform_conv2d(x, where, self.regular_conv.weight, padding=int(padding), mask=weight)
        return found


class _Branch(nn.Module):
    def __init__(self, inputs: int, outputs: int, side: int) -> None:
        super().__init__()
        self.atrous_conv = _Deformable(inputs, outputs, side)
        self.bn = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Map `(B, inputs, H, W)` to `(B, outputs, H, W)`."""
        return F.relu(self.bn(self.atrous_conv(x)))


class _Pyramid(nn.Module):
    """Deformable convolutions of several sides, and the mean of the whole, side by side."""

    def __init__(self, channels: int, inside: int = 256) -> None:
        super().__init__()
        self.aspp1 = _Branch(channels, inside, 1)
        self.aspp_deforms = nn.ModuleList(_Branch(channels, inside, side) for side in (1, 3, 7))
        self.global_avg_pool = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Conv2d(channels, inside, 1, bias=False), nn.BatchNorm2d(inside), nn.ReLU()
        )
        self.conv1 = nn.Conv2d(5 * inside, channels, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        """Map `(B, channels, H, W)` to the same shape."""
        mean = self.global_avg_pool(x).expand(-1, -1, *x.shape[2:])
        return F.relu(self.bn1(self.conv1(torch.cat([self.aspp1(x), *(one(x) for one in self.aspp_deforms), mean], 1))))


class _Decoding(nn.Module):
    """A step of the decoder."""

    def __init__(self, inputs: int, outputs: int, inside: int = 64) -> None:
        super().__init__()
        self.conv_in, self.bn_in = nn.Conv2d(inputs, inside, 3, padding=1), nn.BatchNorm2d(inside)
        self.dec_att = _Pyramid(inside)
        self.conv_out, self.bn_out = nn.Conv2d(inside, outputs, 3, padding=1), nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Map `(B, inputs, H, W)` to `(B, outputs, H, W)`."""
        decoded: Tensor = self.bn_out(self.conv_out(self.dec_att(F.relu(self.bn_in(self.conv_in(x))))))
        return decoded


def _tiles(image: Tensor, like: Tensor) -> Tensor:
    """Cut a picture `(B, 3, H, W)` into a grid of tiles of the size of `like`, laid over each other as channels."""
    batch, channels, height, width = image.shape
    down, across = height // like.shape[2], width // like.shape[3]
    tiles = image.view(batch, channels, down, height // down, across, width // across)
    return tiles.transpose(3, 4).reshape(batch, channels * down * across, height // down, width // across)


def _reference(inputs: int, outputs: int) -> nn.ModuleDict:
    """Convolutions over the tiles."""
    return nn.ModuleDict(
        {"conv1": nn.Conv2d(inputs, 64, 3, padding=1), "conv_out": nn.Conv2d(64, outputs, 3, padding=1)}
    )


def _lateral(channels: int) -> nn.ModuleDict:
    return nn.ModuleDict({"conv": nn.Conv2d(channels, channels, 1)})


class _Decoder(nn.Module):
    def __init__(self, channels: list[int]) -> None:
        """`channels`: of the encoder's outputs, deepest first."""
        super().__init__()
        outputs = [*channels[1:], channels[-1] // 2]
        seen = [channels[0] // 8, *(width // 8 for width in channels)]
        for step, (width, extra, result) in enumerate(zip(channels, seen[:4], outputs, strict=True)):
            self.add_module(f"ipt_blk{5 - step}", _reference(3 * 4 ** (5 - step), extra))
            self.add_module(f"decoder_block{4 - step}", _Decoding(width + extra, result))
            if step < 3:
                edges = nn.Sequential(nn.Conv2d(result, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU())
                self.add_module(f"lateral_block{4 - step}", _lateral(result))
                self.add_module(f"gdt_convs_{4 - step}", edges)
                self.add_module(f"gdt_convs_attn_{4 - step}", nn.Sequential(nn.Conv2d(16, 1, 1)))
        self.ipt_blk1 = _reference(3, seen[4])
        self.conv_out1 = nn.Sequential(nn.Conv2d(outputs[-1] + seen[4], 1, 1))

    def forward(self, image: Tensor, features: list[Tensor]) -> Tensor:
        """Return logits `(B, 1, H, W)`. `features`: the encoder's outputs, deepest first."""
        x = features[0]
        for level in (4, 3, 2, 1):
            if level < 4:
                skip = features[4 - level]
                x = _resize(x, skip.shape[2:]) + self.get_submodule(f"lateral_block{level + 1}.conv")(skip)
            x = self.get_submodule(f"decoder_block{level}")(self._with_picture(x, image, level + 1))
            if level > 1:
                edges = self.get_submodule(f"gdt_convs_{level}")(x)
                x = x * self.get_submodule(f"gdt_convs_attn_{level}")(edges).sigmoid()
        x = _resize(x, image.shape[2:])
        logits: Tensor = self.conv_out1(self._with_picture(x, image, 1))
        return logits

    def _with_picture(self, x: Tensor, image: Tensor, number: int) -> Tensor:
        """Add what the convolutions `ipt_blk<number>` see of the picture to the channels of `x`."""
        block = self.get_submodule(f"ipt_blk{number}")
        tiles = _resize(_tiles(image, x), x.shape[2:])
        assert isinstance(block, nn.ModuleDict)
        return torch.cat([x, block["conv_out"](block["conv1"](tiles))], dim=1)


class BiRefNet(nn.Module):
    """BiRefNet with a Swin encoder of any size; the published ones are Swin-L, and Swin-T (`BiRefNet_lite`)."""

    def __init__(self, shape: BiRefNetShape) -> None:
        super().__init__()
        channels = [2 * shape.width * 2**stage for stage in (3, 2, 1, 0)]
        self.bb = _Swin(shape)
        self.squeeze_module = nn.Sequential(_Decoding(sum(channels), channels[0]))
        self.decoder = _Decoder(channels)

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> BiRefNet:
        """Build the net of published weights. Raises KeyError or RuntimeError if they are of another net."""
        net = cls(BiRefNetShape.of(tensors))
        computed = ".attn.relative_position_index"
        kept = {name: t for name, t in tensors.items() if not name.endswith(computed)}
        net.load_state_dict({name: t for name, t in kept.items() if not name.startswith(TRAINING_ONLY)})
        return net

    def forward(self, image: Tensor) -> list[Tensor]:
        """Return the foreground's logits for an image.

        Args:
            image: `(B, 3, H, W)`, normalised; H and W are multiples of 32.

        Returns:
            One tensor `(B, 1, H, W)`, as `SalientNet` returns its result first.
        """
        whole = self.bb(image)
        half = self.bb(_resize(image, torch.Size((image.shape[2] // 2, image.shape[3] // 2))))
        features = [torch.cat([x, _resize(y, x.shape[2:])], dim=1) for x, y in zip(whole, half, strict=True)]
        deepest = features[-1]
        context = [_resize(x, deepest.shape[2:]) for x in features[:3]]
        features[-1] = self.squeeze_module(torch.cat([*context, deepest], dim=1))
        return [self.decoder(image, features[::-1])]
