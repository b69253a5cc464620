"""Read a net for salient objects: the bundled format, or a published checkpoint.

    u2net     u2net.pth, u2netp.pth      xuebinqin/U-2-Net, Apache-2.0
    isnet     isnet-general-use.pth      xuebinqin/DIS, Apache-2.0
    birefnet  model.safetensors          ZhengPeng7/BiRefNet and BiRefNet_lite, MIT

A part's kind names the architecture, and the tensors must be of it. U²-Net and IS-Net have batch normalisation beside
each convolution; it is folded in.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from pipelines.models.profile import BUNDLED_NET
from pipelines.models.weights import read_weights, reading
from pipelines.vision.salient_net import MEAN, SIDE, STD, SalientNet, SalientShape, U2NetP, Widths

LARGE_SIDE = 1024
"""Side of the input of the published weights of IS-Net and BiRefNet, px."""

EPSILON = 1e-5
"""Of the published batch normalisation."""

ENCODER = ("stage1", "stage2", "stage3", "stage4", "stage5", "stage6")
DECODER = ("stage5d", "stage4d", "stage3d", "stage2d", "stage1d")
DEPTHS = {"stage1": 7, "stage2": 6, "stage3": 5, "stage4": 4, "stage5": 4, "stage6": 4}
DEPTHS |= {"stage5d": 4, "stage4d": 4, "stage3d": 5, "stage2d": 6, "stage1d": 7}


@dataclass(frozen=True, slots=True)
class SalientModel:
    """A net and how its input is prepared.

    Attributes:
        kind: The part's kind in a profile: `salient`, `u2net`, `isnet` or `birefnet`.
        net: Maps `(B, 3, side, side)` to a list of logits `(B, 1, side, side)`, the result first.
        side: Side of its square input, px.
        mean: Mean by which its input is normalised.
        std: Deviation by which it is normalised.
        by_maximum: Whether levels are divided by the picture's largest one, and not by 255.
    """

    kind: str
    net: nn.Module
    side: int = SIDE
    mean: tuple[float, float, float] = MEAN
    std: tuple[float, float, float] = STD
    by_maximum: bool = False

    def prepare(self, image: np.ndarray) -> Tensor:
        """Map a picture `(H, W, 3)` uint8 RGB to the net's input `(1, 3, side, side)`, as its publisher does."""
        if self.kind == BUNDLED_NET:
            small = cv2.resize(image, (self.side, self.side), interpolation=cv2.INTER_AREA)
        else:
            small = np.asarray(Image.fromarray(image).resize((self.side, self.side), Image.Resampling.BILINEAR))
        levels = small.astype(np.float32) / (max(1, int(small.max())) if self.by_maximum else 255)
        levels = (levels - np.array(self.mean, np.float32)) / np.array(self.std, np.float32)
        return torch.from_numpy(levels).permute(2, 0, 1)[None]


def load_salient(path: Path, kind: str = BUNDLED_NET) -> SalientModel:
    """Read a net of a kind, see `SalientModel.kind`; half precision is converted to float32.

    Raises IntegrityError, which names the file, for one of another architecture. Raises ValueError for another kind.
    """
    if kind not in _READERS:
        raise ValueError(f"There is no net for salient objects {kind!r}; there are {', '.join(_READERS)}.")
    expected, read = _READERS[kind]
    tensors = read_weights(path, expected)
    with reading(path, expected):
        return read({_bare(name): tensor.float() for name, tensor in tensors.items()})


def _bare(name: str) -> str:
    """Return a tensor's name without what parallel training and compilation put before it."""
    return name.removeprefix("module.").removeprefix("_orig_mod.")


def _bundled(tensors: Mapping[str, Tensor]) -> SalientModel:
    net = U2NetP()
    net.load_state_dict(tensors)
    return SalientModel(BUNDLED_NET, net)


def _u2net(tensors: Mapping[str, Tensor]) -> SalientModel:
    return SalientModel("u2net", _folded_net(tensors, halved=False), by_maximum=True)


def _isnet(tensors: Mapping[str, Tensor]) -> SalientModel:
    return SalientModel("isnet", _folded_net(tensors, halved=True), LARGE_SIDE, (0.5, 0.5, 0.5), (1.0, 1.0, 1.0))


def _birefnet(tensors: Mapping[str, Tensor]) -> SalientModel:
    from pipelines.vision.birefnet import BiRefNet  # it needs torchvision, a second to import

    return SalientModel("birefnet", BiRefNet.from_tensors(tensors), LARGE_SIDE)


_READERS: dict[str, tuple[str, Callable[[Mapping[str, Tensor]], SalientModel]]] = {
    BUNDLED_NET: ("a salient net in the bundled format", _bundled),
    "u2net": ("a published U²-Net or U²-Net-P", _u2net),
    "isnet": ("a published IS-Net", _isnet),
    "birefnet": ("a published BiRefNet with a Swin encoder", _birefnet),
}
"""What a file of each kind is, and the reader of its tensors, which raises KeyError or RuntimeError for others."""


def _folded_net(tensors: Mapping[str, Tensor], halved: bool) -> SalientNet:
    """Return the net of a published U²-Net, or of an IS-Net if `halved`."""
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
    return net


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
