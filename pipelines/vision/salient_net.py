"""U²-Net and IS-Net: nets for salient objects, with batch normalisation folded into the convolutions.

Qin et al., "U²-Net: Going Deeper with Nested U-Structure for Salient Object Detection", Pattern Recognition 2020,
section 3. It is a U-Net whose every stage is a small U-Net (an RSU block). IS-Net (Qin et al., ECCV 2022) has the same
blocks. Fine-tuning at a low rate works without the normalisation, so these nets have none.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

SIDE = 320
"""Side of the input of the published weights, px."""

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


def _resize(x: Tensor, like: Tensor) -> Tensor:
    return F.interpolate(x, size=like.shape[-2:], mode="bilinear", align_corners=False)


def _pool(x: Tensor) -> Tensor:
    return F.max_pool2d(x, 2, stride=2, ceil_mode=True)


def _conv(inputs: int, outputs: int, dilation: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=dilation, dilation=dilation), nn.ReLU(inplace=True))


class RSU(nn.Module):
    """A residual U-block (figure 2): `depth` levels with pooling between them; the last one is dilated instead."""

    def __init__(self, depth: int, inputs: int, middle: int, outputs: int) -> None:
        super().__init__()
        self.enter = _conv(inputs, outputs)
        self.down = nn.ModuleList(_conv(outputs if i == 0 else middle, middle) for i in range(depth - 1))
        self.bottom = _conv(middle, middle, dilation=2)
        self.up = nn.ModuleList(_conv(2 * middle, outputs if i == depth - 2 else middle) for i in range(depth - 1))

    def forward(self, x: Tensor) -> Tensor:
        """Map `(B, inputs, H, W)` to `(B, outputs, H, W)`."""
        entered = self.enter(x)
        skips: list[Tensor] = []
        x = entered
        for i, block in enumerate(self.down):
            x = block(x if i == 0 else _pool(x))
            skips.append(x)
        x = self.bottom(x)
        for block in self.up:
            skip = skips.pop()
            x = block(torch.cat([_resize(x, skip), skip], dim=1))
        return x + entered


class DilatedRSU(nn.Module):
    """The residual U-block of the deepest stages (RSU-4F): dilations 1, 2, 4, 8 instead of pooling."""

    def __init__(self, inputs: int, middle: int, outputs: int) -> None:
        super().__init__()
        self.enter = _conv(inputs, outputs)
        self.down = nn.ModuleList(_conv(outputs if d == 1 else middle, middle, d) for d in (1, 2, 4))
        self.bottom = _conv(middle, middle, dilation=8)
        self.up = nn.ModuleList(_conv(2 * middle, outputs if d == 1 else middle, d) for d in (4, 2, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Map `(B, inputs, H, W)` to `(B, outputs, H, W)`."""
        entered = self.enter(x)
        skips: list[Tensor] = []
        x = entered
        for block in self.down:
            x = block(x)
            skips.append(x)
        x = self.bottom(x)
        for block in self.up:
            x = block(torch.cat([x, skips.pop()], dim=1))
        return x + entered


Widths = tuple[int, int, int]
"""Channels of a block: inputs, inside, outputs."""


@dataclass(frozen=True, slots=True)
class SalientShape:
    """Widths of a net's six encoder and five decoder blocks, deepest decoder first.

    `halved`: IS-Net, which begins with a convolution of stride 2, and whose finest map is its result.
    """

    encoder: tuple[Widths, ...]
    decoder: tuple[Widths, ...]
    halved: bool = False


class SalientNet(nn.Module):
    """U²-Net of any width, or IS-Net: six encoder and five decoder stages, and a saliency map from each."""

    def __init__(self, shape: SalientShape) -> None:
        super().__init__()
        first, last = shape.encoder[0][0], shape.encoder[-1][2]
        self.entry = nn.Conv2d(3, first, 3, stride=2, padding=1) if shape.halved else None
        self.encoder = nn.ModuleList(
            [RSU(depth, *widths) for depth, widths in zip((7, 6, 5, 4), shape.encoder[:4], strict=True)]
            + [DilatedRSU(*widths) for widths in shape.encoder[4:]]
        )
        self.decoder = nn.ModuleList(
            [DilatedRSU(*shape.decoder[0])]
            + [RSU(depth, *widths) for depth, widths in zip((4, 5, 6, 7), shape.decoder[1:], strict=True)]
        )
        outputs = [*(widths[2] for widths in reversed(shape.decoder)), last]
        self.side = nn.ModuleList(nn.Conv2d(width, 1, 3, padding=1) for width in outputs)
        self.fuse = None if shape.halved else nn.Conv2d(6, 1, 1)

    def forward(self, image: Tensor) -> list[Tensor]:
        """Return saliency logits for an image.

        Args:
            image: `(B, 3, H, W)`, normalised as the weights expect.

        Returns:
            Tensors `(B, 1, H, W)`: the result first, then the maps of the six stages, finest first.
        """
        skips: list[Tensor] = []
        x = image if self.entry is None else self.entry(image)
        for i, stage in enumerate(self.encoder):
            x = stage(x if i == 0 else _pool(x))
            skips.append(x)
        stages = [skips.pop()]
        for block in self.decoder:
            skip = skips.pop()
            stages.append(block(torch.cat([_resize(stages[-1], skip), skip], dim=1)))
        sides = [_resize(head(x), image) for head, x in zip(self.side, reversed(stages), strict=True)]
        result = sides[0] if self.fuse is None else self.fuse(torch.cat(sides, dim=1))
        return [result, *sides]


class U2NetP(SalientNet):
    """U²-Net-P (1.1 M parameters): the bundled net. The published weights expect 320 px."""

    def __init__(self, middle: int = 16, width: int = 64) -> None:
        encoder = [(3, middle, width), *[(width, middle, width)] * 5]
        super().__init__(SalientShape(tuple(encoder), ((2 * width, middle, width),) * 5))
