"""Read the salient net of a profile: the bundled format, or a published checkpoint of U²-Net, U²-Net-P or IS-Net.

    u2net.pth, u2netp.pth           xuebinqin/U-2-Net, Apache-2.0
    isnet-general-use.pth           xuebinqin/DIS, Apache-2.0

The tensors tell which one it is. A published file holds batch normalisation beside each convolution; it is folded in.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from pipelines.models.weights import read_weights, reading
from pipelines.vision.salient_net import MEAN, SIDE, STD, SalientNet, SalientShape, U2NetP, Widths

ISNET_SIDE = 1024
"""Side of the input of IS-Net's published weights, px."""

EPSILON = 1e-5
"""Of the published batch normalisation."""

ENCODER = ("stage1", "stage2", "stage3", "stage4", "stage5", "stage6")
DECODER = ("stage5d", "stage4d", "stage3d", "stage2d", "stage1d")
DEPTHS = {"stage1": 7, "stage2": 6, "stage3": 5, "stage4": 4, "stage5": 4, "stage6": 4}
DEPTHS |= {"stage5d": 4, "stage4d": 4, "stage3d": 5, "stage2d": 6, "stage1d": 7}


@dataclass(frozen=True, slots=True)
class SalientModel:
    """A net, the side of its square input in px, and the mean and deviation by which its input is normalised."""

    net: SalientNet
    side: int = SIDE
    mean: tuple[float, float, float] = MEAN
    std: tuple[float, float, float] = STD


def load_salient(path: Path) -> SalientModel:
    """Read a salient net. Raises IntegrityError, which names the file, for one of another architecture."""
    expected = "the bundled salient net, or a published U²-Net, U²-Net-P or IS-Net"
    tensors = read_weights(path, expected)
    tensors = {name.removeprefix("module."): tensor.float() for name, tensor in tensors.items()}
    with reading(path, expected):
        if "encoder.0.enter.0.weight" in tensors:
            net = U2NetP()
            net.load_state_dict(tensors)
            return SalientModel(net)
        return _published(tensors)


def _published(tensors: Mapping[str, Tensor]) -> SalientModel:
    """A published checkpoint. Raises KeyError or RuntimeError if a tensor is missing, or of another shape."""
    halved = "conv_in.weight" in tensors
    shape = SalientShape(
        tuple(_widths(tensors, stage) for stage in ENCODER), tuple(_widths(tensors, stage) for stage in DECODER), halved
    )
    net = SalientNet(shape)
    converted: dict[str, Tensor] = {}
    for part, stages in (("encoder", ENCODER), ("decoder", DECODER)):
        for number, stage in enumerate(stages):
            for ours, theirs in _blocks(DEPTHS[stage]).items():
                weight, bias = _folded(tensors, f"{stage}.{theirs}")
                converted[f"{part}.{number}.{ours}.0.weight"], converted[f"{part}.{number}.{ours}.0.bias"] = (
                    weight,
                    bias,
                )
    plain = {f"side.{n}": f"side{n + 1}" for n in range(6)} | ({"entry": "conv_in"} if halved else {"fuse": "outconv"})
    for ours, theirs in plain.items():
        converted |= {f"{ours}.{kind}": tensors[f"{theirs}.{kind}"] for kind in ("weight", "bias")}
    net.load_state_dict(converted)
    if halved:
        return SalientModel(net, ISNET_SIDE, (0.5, 0.5, 0.5), (1.0, 1.0, 1.0))
    return SalientModel(net)


def _widths(tensors: Mapping[str, Tensor], stage: str) -> Widths:
    enter, inside = (tensors[f"{stage}.{name}.conv_s1.weight"] for name in ("rebnconvin", "rebnconv1"))
    return enter.shape[1], inside.shape[0], enter.shape[0]


def _blocks(depth: int) -> dict[str, str]:
    """Our name → the published name of each convolution of a block."""
    return {
        "enter": "rebnconvin",
        **{f"down.{n}": f"rebnconv{n + 1}" for n in range(depth - 1)},
        "bottom": f"rebnconv{depth}",
        **{f"up.{n}": f"rebnconv{depth - 1 - n}d" for n in range(depth - 1)},
    }


def _folded(tensors: Mapping[str, Tensor], block: str) -> tuple[Tensor, Tensor]:
    """Weight and bias of a convolution with the normalisation that follows it."""
    norm = {name: tensors[f"{block}.bn_s1.{name}"] for name in ("weight", "bias", "running_mean", "running_var")}
    factor = norm["weight"] / torch.sqrt(norm["running_var"] + EPSILON)
    weight = tensors[f"{block}.conv_s1.weight"] * factor[:, None, None, None]
    return weight, (tensors[f"{block}.conv_s1.bias"] - norm["running_mean"]) * factor + norm["bias"]
