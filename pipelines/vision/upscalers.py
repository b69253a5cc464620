"""Enlarge the generated scene: a compact super-resolution net, then an exact resize to the channel's size."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

from pipelines.errors import IntegrityError

if TYPE_CHECKING:
    from pipelines.models import Profile


class SRVGGNetCompact(nn.Module):
    """Compact VGG-style super-resolution net of Real-ESRGAN (Wang et al. 2021, https://arxiv.org/abs/2107.10833).

    Every convolution works at the small size, one pixel shuffle enlarges, and the input's nearest-neighbour enlargement
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
        """How far, in input pixels, an output pixel sees: one pixel a convolution."""
        return sum(isinstance(layer, nn.Conv2d) for layer in self.body)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) in 0..1 → (B, 3, H·scale, W·scale), not clamped."""
        enlarged = functional.interpolate(x, scale_factor=self.scale, mode="nearest")
        return functional.pixel_shuffle(self.body(x), self.scale) + enlarged

    @classmethod
    def from_state_dict(cls, weights: Mapping[str, Tensor]) -> SRVGGNetCompact:
        """The net that `weights` were saved from, its sizes read off them. Raises ValueError on another net's."""
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
        """Read safetensors, or a published `.pth` (tensors only, never code). Raises IntegrityError naming the file."""
        try:
            if path.suffix == ".safetensors":
                return cls.from_state_dict(load_file(path))
            stored = torch.load(path, map_location="cpu", weights_only=True)
            return cls.from_state_dict(stored.get("params_ema", stored.get("params", stored)))
        except FileNotFoundError:
            raise
        except Exception as error:  # every reader has errors of its own for a file that is not what it should be
            raise IntegrityError(
                f"{path}: expected SRVGGNetCompact weights ({type(error).__name__}: {error})"
            ) from error


class Upscaler:
    """Enlarges uint8 RGB images tile by tile. Tiles overlap by what the net can see, so no seam can appear."""

    def __init__(self, net: SRVGGNetCompact, device: str = "cpu", tile: int = 192):
        self.net = net.to(device).eval().requires_grad_(False)
        self.device = device
        self.tile = tile

    @classmethod
    def from_profile(cls, profile: Profile, device: str = "cpu") -> Upscaler:
        """The upscaler that a profile names, its file checked against the profile's digest."""
        return cls(SRVGGNetCompact.from_file(profile.part("upscaler").check().weights[0]), device)

    def upscale(self, image: np.ndarray, size: tuple[int, int] | None = None) -> np.ndarray:
        """(H, W, 3) uint8 RGB → uint8 RGB of `size` (width, height), by default the net's own factor.

        The net enlarges once; the rest of the way, up or down, is a Lanczos resize to exactly `size`.
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
