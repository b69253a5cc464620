"""How alike two pictures look: LPIPS over AlexNet (Zhang et al. 2018), as a loss and as a measure; and sharpness.

The weights are `models/alexnet.ckpt` of the shared data, in flax format: AlexNet's five convolutions, and the linear
head over each. The file is a pickle, so it is read only where its digest is the one below.
"""

from __future__ import annotations

import hashlib
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipelines.errors import IntegrityError, UsageError

ALEXNET_SHA256 = "443c5bc35326b81e4ac7517b853fd22d3effe38783697d87e2ec65cb01d744b1"
STRIDES = ((4, 2), (1, 2), (1, 1), (1, 1), (1, 1))
"""Stride and padding of the five convolutions; the first two are followed by a 3 x 3 maximum of stride 2."""

SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
LUMINANCE = (0.299, 0.587, 0.114)


class Lpips(nn.Module):
    """The LPIPS distance. Its weights are buffers and never trained."""

    def __init__(self, checkpoint: Path) -> None:
        """Read the checkpoint. Raises UsageError where there is none, IntegrityError where it is another file."""
        super().__init__()
        tree = read_alexnet(checkpoint)
        convolutions, heads = tree["AlexNet_0"], tree
        for n in range(5):
            layer = convolutions[f"Conv_{n}"]
            self.register_buffer(f"kernel_{n}", _out_in_first(layer["kernel"]))
            self.register_buffer(f"bias_{n}", torch.tensor(np.array(layer["bias"])))
            self.register_buffer(f"head_{n}", _out_in_first(heads[f"NetLinLayer_{n}"]["Conv_0"]["kernel"]))
        self.register_buffer("shift", torch.tensor(SHIFT).view(1, 3, 1, 1))
        self.register_buffer("scale", torch.tensor(SCALE).view(1, 3, 1, 1))

    def forward(self, one: Tensor, other: Tensor) -> Tensor:
        """The distance (N,) of pictures (N, 3, H, W) in -1..1, at least 64 px a side; gradients reach `one` alone."""
        with torch.no_grad():
            seen = self._features(other)
        distance = torch.zeros(len(one), device=one.device)
        for n, (feature, reference) in enumerate(zip(self._features(one), seen, strict=True)):
            difference = (_unit(feature) - _unit(reference)).square()
            distance = distance + F.conv2d(difference, self.get_buffer(f"head_{n}")).mean(dim=(1, 2, 3))
        return distance

    def _features(self, pictures: Tensor) -> list[Tensor]:
        x = (pictures - self.get_buffer("shift")) / self.get_buffer("scale")
        features = []
        for n, (stride, padding) in enumerate(STRIDES):
            if n in (1, 2):
                x = F.max_pool2d(x, 3, 2)
            kernel, bias = self.get_buffer(f"kernel_{n}"), self.get_buffer(f"bias_{n}")
            x = F.relu(F.conv2d(x, kernel, bias, stride=stride, padding=padding))
            features.append(x)
        return features


def read_alexnet(checkpoint: Path) -> dict[str, Any]:
    """The checkpoint's tree of arrays. Raises UsageError where there is no file, IntegrityError for any other file."""
    if not checkpoint.exists():
        raise UsageError(f"{checkpoint}: no such file; the perceptual loss needs AlexNet's weights")
    data = checkpoint.read_bytes()
    if hashlib.sha256(data).hexdigest() != ALEXNET_SHA256:
        raise IntegrityError(f"{checkpoint}: not the AlexNet that LPIPS is defined by here; sha256 {ALEXNET_SHA256}")
    tree: dict[str, Any] = pickle.loads(data)  # noqa: S301  the pinned digest above: these bytes and no others
    return tree


def sharpness(pictures: Tensor) -> Tensor:
    """The mean gradient of the luminance of pictures (N, 3, H, W) in -1..1, in grey levels a pixel, (N,)."""
    weights = torch.tensor(LUMINANCE, device=pictures.device).view(1, 3, 1, 1)
    grey = (pictures.clamp(-1, 1) * weights).sum(dim=1, keepdim=True) * 127.5
    across = torch.tensor([[-1.0, 0, 1], [-2, 0, 2], [-1, 0, 1]], device=pictures.device) / 8
    slopes = F.conv2d(grey, torch.stack([across, across.T])[:, None])
    return slopes.square().sum(dim=1).sqrt().mean(dim=(1, 2))


def _unit(feature: Tensor) -> Tensor:
    return feature / (feature.square().sum(dim=1, keepdim=True) + 1e-10).sqrt()


def _out_in_first(kernel: Any) -> Tensor:
    """A flax kernel (h, w, in, out) as (out, in, h, w)."""
    return torch.from_numpy(np.array(kernel)).permute(3, 2, 0, 1).float().contiguous()
