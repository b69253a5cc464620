"""LoRAs in a UNet and its text encoders: published files, several at a time, each with a name and a scale."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from math import isclose
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from diffusers.utils import delete_adapter_layers, recurse_remove_peft_layers, set_weights_and_activate_adapters
from peft import LoraConfig, inject_adapter_in_model, set_peft_model_state_dict
from torch import nn

from pipelines.diffusion.lora_files import LoraHalf, read_lora
from pipelines.errors import IntegrityError
from pipelines.models.checkpoints import check_lora
from pipelines.models.weights import reading


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
        IntegrityError: the file is not a LoRA, or is one for another base or text encoder (then nothing was changed);
            or a layer's scaling or weights after loading are not the file's (then it was removed again).
    """
    files = [path] if path.is_file() else sorted(path.glob("*.safetensors"))
    if len(files) != 1:
        raise ValueError(f"{path}: expected one safetensors file with a LoRA, found {len(files)}.")
    [file] = files
    name = (name or file.stem).replace(".", "_")
    if name in _names(unet):
        raise ValueError(f"{file.name}: there is a LoRA {name!r} already; give this one another name.")
    check_lora(file, unet)
    halves = read_lora(file, unet, text_encoders)
    if not halves[0].layers:
        raise ValueError(f"{file.name}: no LoRA weights for this UNet in it.")
    try:
        for half in halves:
            with reading(file, "a LoRA for this base"):
                _load(half, name)
            _check_loaded(file, half, name)
    except IntegrityError:
        for half in halves:
            _remove(half.model, name)
        raise
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
    for model in (unet, *text_encoders):
        _restore(model)


def _restore(model: Any) -> None:
    if isinstance(model, UNet2DConditionModel):
        model.unload_lora()
    elif _names(model):
        recurse_remove_peft_layers(model)
        del model.peft_config


def _remove(model: Any, name: str) -> None:
    """Remove one LoRA, if the model has it."""
    if _names(model) == [name]:
        _restore(model)
    elif name in _names(model):
        delete_adapter_layers(model, name)
        model.peft_config.pop(name, None)


def _names(model: Any) -> list[str]:
    return list(getattr(model, "peft_config", {}))


def _load(half: LoraHalf, name: str) -> None:
    """Load a half with a rank and an alpha for each layer."""
    layers = half.layers
    settings: dict[str, Any] = {
        "target_modules": list(layers),
        "rank_pattern": {f"^{re.escape(place)}": layer.rank for place, layer in layers.items()},
        "alpha_pattern": {f"^{re.escape(place)}": layer.alpha for place, layer in layers.items()},
    }
    tensors = {f"{place}.lora_A.weight": layer.down for place, layer in layers.items()}
    tensors |= {f"{place}.lora_B.weight": layer.up for place, layer in layers.items()}
    if isinstance(half.model, UNet2DConditionModel):
        half.model.load_lora_adapter(tensors, prefix=None, adapter_name=name, metadata=settings)
    else:
        inject_adapter_in_model(LoraConfig(**settings), half.model, name)
        set_peft_model_state_dict(half.model, tensors, name)
        first = next(half.model.parameters())
        half.model.to(first.device, first.dtype)


def _check_loaded(file: Path, half: LoraHalf, name: str) -> None:
    """Compare what a model has under this name with the file. Raises IntegrityError, which names the layer."""
    loaded = {place for place, module in half.model.named_modules() if name in getattr(module, "scaling", {})}
    for place in sorted(loaded ^ half.layers.keys()):
        raise IntegrityError(f"{file}: expected the same layers after loading, but {place} differs")
    for place, layer in half.layers.items():
        module: Any = half.model.get_submodule(place)
        if not isclose(module.scaling[name], layer.scaling, rel_tol=1e-6):
            raise IntegrityError(
                f"{file}: expected {place} scaled by {layer.scaling:g} (alpha {layer.alpha:g} / rank {layer.rank}), "
                f"found {module.scaling[name]:g} after loading"
            )
        for matrix, stored in ((module.lora_A[name], layer.down), (module.lora_B[name], layer.up)):
            weight = matrix.weight
            if not torch.equal(weight, stored.to(weight.device, weight.dtype)):
                raise IntegrityError(f"{file}: expected the weights of {place} as stored, found others after loading")
