"""Read a published LoRA file, of kohya's format, LoCon's, PEFT's or diffusers': each layer's two matrices and alpha.

A LoRA adds `alpha / rank * up @ down` to the weight of a layer. kohya's files hold an alpha for each layer, PEFT's hold
theirs in the metadata, and a layer without one has alpha = rank. The converters of diffusers 0.42 do not keep this: a
layer without an alpha gets the most frequent alpha of the others, and DoRA's magnitudes are dropped.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite, sqrt
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from diffusers.loaders.lora_base import LORA_ADAPTER_METADATA_KEY
from safetensors import safe_open
from torch import Tensor, nn

from pipelines.errors import IntegrityError
from pipelines.models.weights import reading

_OF_UNET = ("lora_unet_", "unet.", "")
_OF_ENCODERS = (("lora_te_", "lora_te1_", "text_encoder."), ("lora_te2_", "text_encoder_2."))
"""Prefixes of the tensors of each model, the prefix of PEFT's settings among them. A UNet alone may have none."""

_TENSOR = re.compile(
    r"(?P<module>.+?)(?:[._]lora(?:_linear_layer)?[._](?P<kind>down|up|mid|A|B)(?:\.default)?\.weight|\.(?P<alpha>alpha))"
)
_DORA = re.compile(r"\.dora_scale$|\.lora_magnitude_vector\b")
_TEXTUAL_INVERSION = re.compile(r"bundle_emb\.([^.]*)")


@dataclass(frozen=True, slots=True)
class LoraLayer:
    """A layer's two matrices, float32: `down` is (rank, inputs), `up` (outputs, rank), a convolution's are 4-d."""

    down: Tensor
    up: Tensor
    alpha: float

    @property
    def rank(self) -> int:
        """Number of rows of `down`."""
        return len(self.down)

    @property
    def scaling(self) -> float:
        """What the product of the matrices is multiplied by, at scale 1."""
        return self.alpha / self.rank


@dataclass(frozen=True, slots=True)
class LoraHalf:
    """A file's part for one model: its layers, by the model's own module names."""

    model: Any
    layers: dict[str, LoraLayer]


def read_lora(file: Path, unet: UNet2DConditionModel, text_encoders: Sequence[nn.Module]) -> list[LoraHalf]:
    """Return a file's parts for the UNet, first and possibly empty, and for those text encoders that it is for.

    Raises IntegrityError, which names the file and the layer: the file has a layer that the model has no place for, a
    matrix of the wrong shape or alone, a number that is not finite, DoRA's magnitudes or textual inversions.
    """
    with reading(file, "a LoRA"), safe_open(file, framework="pt") as opened:
        stored = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118  # it is no dict
        settings = json.loads((opened.metadata() or {}).get(LORA_ADAPTER_METADATA_KEY, "{}"))
        if not isinstance(settings, dict):
            raise ValueError("its metadata are no mapping")
    _check_kind(file, stored, settings)
    parts: dict[int, _Raw] = {0: _Raw(_of_model(settings, "unet.") or settings)}
    for key, value in stored.items():
        n, rest = _addressee(key)
        if n > len(text_encoders):
            raise IntegrityError(f"{file}: expected a LoRA for {len(text_encoders)} text encoders, found {key}")
        own = _of_model(settings, _OF_ENCODERS[n - 1][-1])
        parts.setdefault(n, _Raw(own)).tensors[key] = (rest, value)
    models = (unet, *text_encoders)
    return [LoraHalf(models[n], _layers(file, models[n], parts[n])) for n in sorted(parts)]


@dataclass(frozen=True, slots=True)
class _Raw:
    """PEFT's settings of a model, and its tensors by the file's key: (the key without its prefix, the tensor)."""

    settings: Mapping[str, Any]
    tensors: dict[str, tuple[str, Tensor]] = field(default_factory=dict)


def _of_model(settings: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    return {key.removeprefix(prefix): value for key, value in settings.items() if key.startswith(prefix)}


def _addressee(key: str) -> tuple[int, str]:
    """Return 0 for the UNet or the text encoder's number, and the key without its prefix."""
    for n, prefixes in (*enumerate(_OF_ENCODERS, 1), (0, _OF_UNET)):
        for prefix in prefixes:
            if key.startswith(prefix):
                return n, key.removeprefix(prefix)
    raise AssertionError("the UNet takes every key")


def _check_kind(file: Path, stored: Mapping[str, Tensor], settings: Mapping[str, Any]) -> None:
    """Refuse what is no LoRA but looks like one, and weights that are not finite."""
    if bundled := sorted({found[1] for key in stored if (found := _TEXTUAL_INVERSION.match(key))}):
        raise IntegrityError(
            f"{file}: expected a LoRA alone, found textual inversions in it too (bundle_emb: {', '.join(bundled)}), "
            "which are not loaded; use an edition of the file without them"
        )
    dora = next((key for key in stored if _DORA.search(key)), None)
    dora = dora or next((key for key, value in settings.items() if key.endswith("use_dora") and value), None)
    if dora:
        raise IntegrityError(f"{file}: expected a LoRA, found a DoRA ({dora}), which is not supported")
    for key, value in stored.items():
        if not value.isfinite().all():
            raise IntegrityError(f"{file}: expected finite weights, found NaN or infinity in {key}")


def _layers(file: Path, model: Any, raw: _Raw) -> dict[str, LoraLayer]:
    whose = "this base" if isinstance(model, UNet2DConditionModel) else "this text encoder"
    expected = f"expected a LoRA for {whose}"
    weights = dict(_weights(model))
    names = _names(model, weights)
    found: dict[str, dict[str, Tensor]] = {}
    for key, (rest, value) in raw.tensors.items():
        parsed = _TENSOR.fullmatch(rest)
        place = names.get(_plain(parsed["module"])) if parsed else None
        if parsed is None or place is None:
            raise IntegrityError(f"{file}: {expected}, which has no place for {key}")
        kind = parsed["alpha"] or {"A": "down", "B": "up"}.get(parsed["kind"], parsed["kind"])
        if kind in found.setdefault(place, {}):
            raise IntegrityError(f"{file}: expected one LoRA of each layer, found two of {place} ({key})")
        found[place][kind] = value.float()
    layers = {}
    for place, tensors in found.items():
        if not {"down", "up"} <= tensors.keys():
            raise IntegrityError(f"{file}: expected two matrices of {place} for {whose}, found {', '.join(tensors)}")
        with reading(file, expected):
            alpha = tensors["alpha"].item() if "alpha" in tensors else None
            rank = len(tensors["down"])
            alpha = float(_alpha_of(place, raw.settings, rank) if alpha is None else alpha)
        if not isfinite(alpha) or alpha == 0:  # kohya takes 0 for the rank, others for off
            raise IntegrityError(f"{file}: expected a finite alpha other than 0 of {place}, found {alpha}")
        down, up = _matrices(tensors, weights[place].shape)
        outputs, inputs, *kernel = weights[place].shape
        wanted = (rank, inputs, *kernel), (outputs, rank, *(1 for _ in kernel))
        shapes = tuple(down.shape), tuple(up.shape)
        if shapes != wanted or not rank:
            raise IntegrityError(f"{file}: {expected}, of {wanted} at {place}, found {shapes}")
        layers[place] = LoraLayer(down, up, alpha)
    return layers


def _matrices(tensors: Mapping[str, Tensor], weight: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Return the two matrices, of as many dimensions as the weight where only dimensions of size 1 differ.

    LoCon may split a convolution's `down` in two: `down`, 1 x 1, and `mid`, of the kernel's size.
    """
    down, up = tensors["down"], tensors["up"]
    if "mid" in tensors and down.dim() == 4 and tensors["mid"].shape[:2] == (len(down), len(down)):
        down = torch.einsum("rskl,si->rikl", tensors["mid"], down.flatten(1))
    return _of_dimensions(down, len(weight)), _of_dimensions(up, len(weight))


def _of_dimensions(matrix: Tensor, dimensions: int) -> Tensor:
    while matrix.dim() > dimensions and matrix.shape[-1] == 1:
        matrix = matrix.squeeze(-1)
    while matrix.dim() < dimensions:
        matrix = matrix.unsqueeze(-1)
    return matrix


def _alpha_of(place: str, settings: Mapping[str, Any], rank: int) -> float:
    """Return a layer's alpha from PEFT's settings; without settings it is the rank."""
    patterns: Mapping[str, float] = settings.get("alpha_pattern") or {}
    path = f".{place.removeprefix('text_model.')}"
    alpha = settings.get("lora_alpha", rank)
    for pattern, own in patterns.items():
        module = pattern.removeprefix("^").removeprefix("text_model.")
        if not re.fullmatch(r"[\w.]+", module):
            raise ValueError(f"the pattern {pattern!r} of its alphas is no module's name")
        if path.endswith(f".{module}"):
            alpha = own
            break
    return alpha * sqrt(rank) if settings.get("use_rslora") else alpha


def _weights(model: Any) -> Iterator[tuple[str, Tensor]]:
    """The weights that a LoRA may add to, by module: linear layers and convolutions, without those of other LoRAs."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | nn.Conv2d) and ".lora_" not in name:
            yield name.removesuffix(".base_layer"), module.weight


def _names(model: Any, places: Mapping[str, Any]) -> dict[str, str]:
    """Return the names that files have for the model's layers, as `_plain` returns them → the model's own."""
    names = {_plain(place): place for place in places}
    if isinstance(model, UNet2DConditionModel):
        original = _original_blocks(model)
        for place in places:
            if block := next((block for block in original if f"{place}.".startswith(block)), None):
                rest = f"{place}.".removeprefix(block)
                inner = next((part for part in _ORIGINAL_RESNET if rest == part), "")
                names[_plain(f"{original[block]}{_ORIGINAL_RESNET.get(inner, rest)}".rstrip("."))] = place
    return names


def _plain(module: str) -> str:
    """Return a module's name in one spelling: kohya writes `_` for `.`; diffusers' first files name processors.

    Recent transformers have dropped the prefix `text_model`.
    """
    plain = module.replace(".", "_").removeprefix("text_model_").replace("_processor_to_", "_to_")
    plain = re.sub(r"self_attn_to_(q|k|v|out)$", r"self_attn_\1_proj", plain)
    return re.sub(r"_to_out$", "_to_out_0", plain)


_ORIGINAL_RESNET = {
    "conv1.": "in_layers.2.", "time_emb_proj.": "emb_layers.1.", "conv2.": "out_layers.3.",
    "conv_shortcut.": "skip_connection.",
}  # fmt: skip
"""Layers of a residual block: diffusers' name → the original one."""


def _original_blocks(unet: UNet2DConditionModel) -> dict[str, str]:
    """Return the start of diffusers' module names → of the original ones, which kohya uses for SDXL."""
    layers, levels = int(unet.config.layers_per_block), len(unet.config.block_out_channels)
    blocks = {
        "conv_in.": "input_blocks.0.0.", "time_embedding.linear_1.": "time_embed.0.",
        "time_embedding.linear_2.": "time_embed.2.", "add_embedding.linear_1.": "label_emb.0.0.",
        "add_embedding.linear_2.": "label_emb.0.2.", "conv_out.": "out.2.",
        "mid_block.resnets.0.": "middle_block.0.", "mid_block.attentions.0.": "middle_block.1.",
        "mid_block.resnets.1.": "middle_block.2.",
    }  # fmt: skip
    at = 0
    for level in range(levels):
        for layer in range(layers):
            at += 1
            blocks[f"down_blocks.{level}.resnets.{layer}."] = f"input_blocks.{at}.0."
            blocks[f"down_blocks.{level}.attentions.{layer}."] = f"input_blocks.{at}.1."
        at += 1
        blocks[f"down_blocks.{level}.downsamplers.0.conv."] = f"input_blocks.{at}.0.op."
    for level in range(levels):
        attends = "Attn" in unet.config.up_block_types[level]
        for layer in range(layers + 1):
            at = level * (layers + 1) + layer
            blocks[f"up_blocks.{level}.resnets.{layer}."] = f"output_blocks.{at}.0."
            blocks[f"up_blocks.{level}.attentions.{layer}."] = f"output_blocks.{at}.1."
        blocks[f"up_blocks.{level}.upsamplers.0.conv."] = f"output_blocks.{at}.{2 if attends else 1}.conv."
    return blocks
