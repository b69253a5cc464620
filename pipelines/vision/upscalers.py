"""Enlarge the generated scene: a compact super-resolution net, then an exact resize to the channel's size."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

from pipelines.models.weights import read_weights, reading

if TYPE_CHECKING:
    from pipelines.models.profile import Profile


class SRVGGNetCompact(nn.Module):
    """Compact VGG-style super-resolution net of Real-ESRGAN (Wang et al. 2021, https://arxiv.org/abs/2107.10833).

    All convolutions work at the input's size. One pixel shuffle enlarges, and the input's nearest-neighbour enlargement
    is added. The state dict has the names of the published checkpoints (`body.0.weight` ...).
    """

    def __init__(self, features: int = 32, convolutions: int = 16, scale: int = 4):
        super().__init__()
        self.scale = scale
        layers: list[nn.Module] = [nn.Conv2d(3, features, 3, padding=1), nn.PReLU(features)]
        for _ in range(convolutions):
            layers += [nn.Conv2d(features, features, 3, padding=1), nn.PReLU(features)]
        layers.append(nn.Conv2d(features, 3 * scale**2, 3, padding=1))
        self.body = nn.Sequential(*layers)

    @property
    def radius(self) -> int:
        """Radius of the receptive field, in input pixels: one pixel per convolution."""
        return sum(isinstance(layer, nn.Conv2d) for layer in self.body)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) in 0..1 → (B, 3, H·scale, W·scale), not clamped."""
        enlarged = functional.interpolate(x, scale_factor=self.scale, mode="nearest")
        return functional.pixel_shuffle(self.body(x), self.scale) + enlarged

    @classmethod
    def from_state_dict(cls, weights: Mapping[str, Tensor]) -> SRVGGNetCompact:
        """Build the net of `weights`; their shapes give its sizes. Raises ValueError for another net's weights."""
        last = max(
            (int(m[1]) for m in (re.fullmatch(r"body\.(\d+)\.weight", name) for name in weights) if m), default=0
        )
        if last < 2 or last % 2 or weights["body.0.weight"].ndim != 4:
            raise ValueError("not the weights of an SRVGGNetCompact")
        scale = round((weights[f"body.{last}.weight"].shape[0] / 3) ** 0.5)
        net = cls(features=weights["body.0.weight"].shape[0], convolutions=last // 2 - 1, scale=scale)
        try:
            net.load_state_dict({name: value.float() for name, value in weights.items()})
        except RuntimeError as error:
            raise ValueError("not the weights of an SRVGGNetCompact") from error
        return net

    @classmethod
    def from_file(cls, path: Path) -> SRVGGNetCompact:
        """Read safetensors, or a published `.pth` (tensors only, never code). Raises IntegrityError, which names the
        file."""
        weights = read_weights(path, "SRVGGNetCompact weights")
        with reading(path, "SRVGGNetCompact weights"):
            return cls.from_state_dict(weights)


class _DenseBlock(nn.Module):
    """Five convolutions; each reads the outputs of all before it."""

    def __init__(self, features: int, growth: int):
        super().__init__()
        self.conv1, self.conv2, self.conv3, self.conv4 = (
            nn.Conv2d(features + n * growth, growth, 3, padding=1) for n in range(4)
        )
        self.conv5 = nn.Conv2d(features + 4 * growth, features, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        seen = x
        for convolution in (self.conv1, self.conv2, self.conv3, self.conv4):
            seen = torch.cat([seen, functional.leaky_relu(convolution(seen), 0.2)], 1)
        return self.conv5(seen) * 0.2 + x


class _ResidualInResidual(nn.Module):
    def __init__(self, features: int, growth: int):
        super().__init__()
        self.rdb1, self.rdb2, self.rdb3 = (_DenseBlock(features, growth) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        return self.rdb3(self.rdb2(self.rdb1(x))) * 0.2 + x


class RRDBNet(nn.Module):
    """The large net of Real-ESRGAN (Wang et al. 2021, https://arxiv.org/abs/2107.10833; ESRGAN's generator).

    It enlarges fourfold. For a `scale` of 2 the input is first folded to half its size. The state dict has the names of
    the published checkpoints (`conv_first.weight`, `body.0.rdb1.conv1.weight` ...).
    """

    radius = 32
    """Overlap of tiles, px. The receptive field is about ten times as large, but its outer part changes no pixel (the
    published code overlaps by 10)."""

    def __init__(self, features: int = 64, blocks: int = 23, growth: int = 32, scale: int = 4):
        super().__init__()
        self.scale = scale
        self.fold = 4 // scale
        self.conv_first = nn.Conv2d(3 * self.fold**2, features, 3, padding=1)
        self.body = nn.Sequential(*(_ResidualInResidual(features, growth) for _ in range(blocks)))
        self.conv_body, self.conv_up1, self.conv_up2, self.conv_hr = (
            nn.Conv2d(features, features, 3, padding=1) for _ in range(4)
        )
        self.conv_last = nn.Conv2d(features, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) in 0..1 → (B, 3, H·scale, W·scale), not clamped."""
        height, width = x.shape[-2:]
        padded = functional.pad(x, (0, -width % self.fold, 0, -height % self.fold), mode="replicate")
        features = self.conv_first(functional.pixel_unshuffle(padded, self.fold))
        features = features + self.conv_body(self.body(features))
        for convolution in (self.conv_up1, self.conv_up2):
            enlarged = functional.interpolate(features, scale_factor=2, mode="nearest")
            features = functional.leaky_relu(convolution(enlarged), 0.2)
        output = self.conv_last(functional.leaky_relu(self.conv_hr(features), 0.2))
        return output[..., : height * self.scale, : width * self.scale]

    @classmethod
    def from_file(cls, path: Path) -> RRDBNet:
        """Read safetensors, or a published `.pth` (tensors only, never code). Raises IntegrityError, which names the
        file."""
        weights = read_weights(path, "RRDBNet weights")
        with reading(path, "RRDBNet weights"):
            features, inputs = weights["conv_first.weight"].shape[:2]
            blocks = 1 + max(int(name.split(".")[1]) for name in weights if name.startswith("body."))
            growth = weights["body.0.rdb1.conv1.weight"].shape[0]
            net = cls(features, blocks, growth, scale={3: 4, 12: 2, 48: 1}[inputs])
            net.load_state_dict({name: value.float() for name, value in weights.items()})
            return net


class Upscaler:
    """Enlarges uint8 RGB images tile by tile. Tiles overlap by the net's receptive field, so there are no seams."""

    def __init__(self, net: SRVGGNetCompact | RRDBNet, device: str = "cpu", tile: int = 192):
        # channels last is 13 % faster on a CPU
        self.net = net.eval().requires_grad_(False).to(device).to(memory_format=torch.channels_last)
        self.device = device
        self.tile = tile

    @classmethod
    def from_profile(cls, profile: Profile, device: str = "cpu") -> Upscaler:
        """Load the profile's upscaler and check its digest."""
        part = profile.part("upscaler").check()
        net_class = RRDBNet if part.kind == "rrdb" else SRVGGNetCompact
        return cls(net_class.from_file(part.weights[0]), device)

    def upscale(self, image: np.ndarray, size: tuple[int, int] | None = None) -> np.ndarray:
        """Enlarge (H, W, 3) uint8 RGB to `size` (width, height); default: by the net's own factor.

        The net enlarges once. A Lanczos resize then gives exactly `size`.
        """
        height, width = image.shape[:2]
        scale = self.net.scale
        size = size or (width * scale, height * scale)
        if size == (width, height):
            return image
        if size[0] <= width and size[1] <= height:
            return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.LANCZOS))
        enlarged = self._enlarge(image)
        if size == (width * scale, height * scale):
            return enlarged
        return np.asarray(Image.fromarray(enlarged).resize(size, Image.Resampling.LANCZOS))

    @torch.inference_mode()
    def _enlarge(self, image: np.ndarray) -> np.ndarray:
        height, width = image.shape[:2]
        scale, margin = self.net.scale, self.net.radius
        result = np.empty((height * scale, width * scale, 3), np.uint8)
        for top in range(0, height, self.tile):
            for left in range(0, width, self.tile):
                bottom, right = min(top + self.tile, height), min(left + self.tile, width)
                y, x = max(top - margin, 0), max(left - margin, 0)
                window = image[y : bottom + margin, x : right + margin]
                pixels = torch.from_numpy(window.copy()).to(self.device).permute(2, 0, 1)[None].float() / 255
                output = self.net(pixels)[0].clamp(0, 1).mul(255).round().byte().permute(1, 2, 0).cpu().numpy()
                result[top * scale : bottom * scale, left * scale : right * scale] = output[
                    (top - y) * scale : (bottom - y) * scale, (left - x) * scale : (right - x) * scale
                ]
        return result
