"""LoRAs in a UNet and its text encoders: published files, several at a time, each with a name and a scale."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffusers import UNet2DConditionModel
from diffusers.loaders import StableDiffusionLoraLoaderMixin
from diffusers.loaders.lora_base import LORA_ADAPTER_METADATA_KEY
from diffusers.utils import recurse_remove_peft_layers, set_weights_and_activate_adapters
from peft import LoraConfig, inject_adapter_in_model, set_peft_model_state_dict
from safetensors import safe_open
from torch import Tensor, nn

from pipelines.errors import IntegrityError
from pipelines.models.checkpoints import check_lora
from pipelines.models.weights import reading

_OF_ENCODER = (("lora_te_", "lora_te1_", "text_encoder."), ("lora_te2_", "text_encoder_2."))
"""Prefixes of tensors of the first and second text encoder, in kohya's format and in PEFT's."""

_UP = re.compile(r"lora[._](up|B)\b")
"""The second matrix of a layer, in any of the formats."""

_TENSOR = re.compile(r"(?P<module>.+)\.(?:(?:lora_(?P<kind>down|up|A|B)(?:\.default)?\.weight)|(?P<alpha>alpha))")


def add_lora(
    unet: UNet2DConditionModel, path: Path, name: str | None = None, text_encoders: Sequence[nn.Module] = ()
) -> str:
    """Load a LoRA (PEFT's or kohya's format) in addition to those already loaded.

    Args:
        unet: Of SD 1.5 or SDXL.
        path: A safetensors file, or a folder that holds one.
        name: Its name; default: the file's.
        text_encoders: CLIP's; SDXL's two in order. Each gets its part, if the file has one.

    Returns:
        Its name.

    Raises:
        ValueError: not one safetensors file, a file without weights for the UNet, or a name in use.
        IntegrityError: the file is not a LoRA, or is one for another base or text encoder. Then nothing was changed.
    """
    files = [path] if path.is_file() else sorted(path.glob("*.safetensors"))
    if len(files) != 1:
        raise ValueError(f"{path}: expected one safetensors file with a LoRA, found {len(files)}.")
    [file] = files
    name = (name or file.stem).replace(".", "_")
    if name in _names(unet):
        raise ValueError(f"{file.name}: there is a LoRA {name!r} already; give this one another name.")
    check_lora(file, unet)
    with safe_open(file, framework="pt") as opened:
        stored = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118  # it is no dict
        settings = json.loads((opened.metadata() or {}).get(LORA_ADAPTER_METADATA_KEY, "null"))
    text_halves = _text_halves(file, stored, text_encoders, settings or {})
    of_unet = {key: value for key, value in stored.items() if not key.startswith(sum(_OF_ENCODER, ()))}
    if of_unet:
        with reading(file, "a LoRA for this base"):
            _load_into(unet, of_unet, name, settings)
    if name not in _names(unet):
        raise ValueError(f"{file.name}: no LoRA weights for this UNet in it.")
    stored_layers = sum(_UP.search(key) is not None for key in of_unet)
    loaded_layers = sum(f".lora_B.{name}." in key for key, _ in unet.named_parameters())
    if loaded_layers < stored_layers:  # diffusers drops what it does not understand
        unet.delete_adapters(name)
        raise IntegrityError(f"{file}: only {loaded_layers} of its {stored_layers} layers load; expected one format")
    for half in text_halves:
        half.load(name)
    return name


def set_scales(unet: Any, scales: Mapping[str, float], text_encoders: Sequence[nn.Module] = ()) -> None:
    """Set the scale of each LoRA, in UNet and text encoders: 1 as trained, 0 off.

    LoRAs without an entry are off. Raises ValueError for an unknown name.
    """
    there = _names(unet)
    unknown = [name for name in scales if name not in there]
    if unknown:
        raise ValueError(f"There is no LoRA {unknown[0]!r}; there are {', '.join(there) or 'none'}.")
    if there:
        unet.set_adapters(there, weights=[scales.get(name, 0.0) for name in there])
    for encoder in text_encoders:
        if names := _names(encoder):
            set_weights_and_activate_adapters(encoder, names, [scales.get(name, 0.0) for name in names])


def remove_loras(unet: UNet2DConditionModel, text_encoders: Sequence[nn.Module] = ()) -> None:
    """Remove all LoRAs and restore UNet and text encoders."""
    unet.unload_lora()
    for encoder in text_encoders:
        if _names(encoder):
            recurse_remove_peft_layers(encoder)
            del encoder.peft_config


def _load_into(unet: UNet2DConditionModel, stored: dict[str, Tensor], name: str, settings: Any) -> None:
    """Load the UNet's part with diffusers' own loader."""
    state_dict, alphas = StableDiffusionLoraLoaderMixin.lora_state_dict(stored, unet_config=unet.config)
    # UNet2DConditionModel.save_lora_adapter writes no prefix, the pipelines' save_lora_weights writes "unet."
    prefix = "unet" if any(key.startswith("unet.") for key in state_dict) else None
    unet.load_lora_adapter(state_dict, prefix=prefix, network_alphas=alphas, adapter_name=name, metadata=settings)


def _names(model: Any) -> list[str]:
    return list(getattr(model, "peft_config", {}))


@dataclass(frozen=True, slots=True)
class _TextHalf:
    """A LoRA's part for one text encoder: PEFT's config, and tensors by the encoder's own names."""

    encoder: nn.Module
    config: LoraConfig
    tensors: dict[str, Tensor]

    def load(self, name: str) -> None:
        inject_adapter_in_model(self.config, self.encoder, name)
        set_peft_model_state_dict(self.encoder, self.tensors, name)
        first = next(self.encoder.parameters())
        self.encoder.to(first.device, first.dtype)


def _text_halves(
    file: Path, stored: Mapping[str, Tensor], encoders: Sequence[nn.Module], settings: Mapping[str, Any]
) -> list[_TextHalf]:
    """Collect a file's parts for the text encoders. Raises IntegrityError if one does not fit.

    It does not use diffusers' loader: version 0.42 mixes up kohya's alphas if they differ, and skips unknown layers.
    """
    halves = []
    for n, prefixes in enumerate(_OF_ENCODER):
        of_encoder = {key: value for key, value in stored.items() if key.startswith(prefixes)}
        if not of_encoder:
            continue
        if n >= len(encoders):
            raise IntegrityError(
                f"{file}: expected a LoRA for {len(encoders)} text encoders, found {next(iter(of_encoder))}"
            )
        peft = prefixes[-1]
        own = {key.removeprefix(peft): value for key, value in settings.items() if key.startswith(peft)}
        halves.append(_text_half(file, encoders[n], of_encoder, prefixes, own))
    return halves


def _text_half(
    file: Path,
    encoder: nn.Module,
    stored: Mapping[str, Tensor],
    prefixes: tuple[str, ...],
    settings: Mapping[str, Any],
) -> _TextHalf:
    expected = "expected a LoRA for this text encoder"
    places = {_plain(name): name for name, module in encoder.named_modules() if hasattr(module, "in_features")}
    downs: dict[str, Tensor] = {}
    ups: dict[str, Tensor] = {}
    alphas: dict[str, float] = {}
    for key, value in stored.items():
        prefix = next(prefix for prefix in prefixes if key.startswith(prefix))
        found = _TENSOR.fullmatch(key.removeprefix(prefix))
        place = places.get(_plain(found["module"])) if found else None
        if found is None or place is None:
            raise IntegrityError(f"{file}: {expected}, which has no place for {key}")
        if found["alpha"]:
            alphas[place] = float(value)
        elif found["kind"] in ("down", "A"):
            downs[place] = value
        else:
            ups[place] = value
    for place in {**downs, **ups}:
        if place not in downs or place not in ups:
            raise IntegrityError(f"{file}: expected two matrices for the text encoder's {place}, found one")
        layer: Any = encoder.get_submodule(place)
        rank = len(downs[place])
        shapes = tuple(downs[place].shape), tuple(ups[place].shape)
        wanted = (rank, layer.in_features), (layer.out_features, rank)
        if shapes != wanted:
            raise IntegrityError(f"{file}: {expected}, of {wanted} at {place}, found {shapes}")
        alphas.setdefault(place, _alpha_of(place, settings, rank))
    ranks = {place: len(down) for place, down in downs.items()}
    config: Any = {**settings, "target_modules": list(ranks), "rank_pattern": ranks, "alpha_pattern": alphas}
    tensors = {f"{place}.lora_A.weight": down for place, down in downs.items()}
    tensors |= {f"{place}.lora_B.weight": up for place, up in ups.items()}
    return _TextHalf(encoder, LoraConfig(**config), tensors)


def _alpha_of(place: str, settings: Mapping[str, Any], rank: int) -> float:
    """Return a layer's alpha from the file's metadata; without metadata it is the rank."""
    patterns: Mapping[str, float] = settings.get("alpha_pattern") or {}
    own = (alpha for pattern, alpha in patterns.items() if _plain(place).endswith(_plain(pattern)))
    return next(own, settings.get("lora_alpha", rank))


def _plain(module: str) -> str:
    """Return a module's name as kohya writes it, without the prefix that recent transformers have dropped."""
    return module.replace(".", "_").removeprefix("text_model_")
