"""LoRAs in a UNet: published files, several at a time, each with a name and a scale."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from diffusers import UNet2DConditionModel
from diffusers.loaders import StableDiffusionLoraLoaderMixin

from pipelines.checkpoints import check_lora


def add_lora(unet: UNet2DConditionModel, path: Path, name: str | None = None) -> str:
    """Load a LoRA for a UNet (PEFT's or kohya's format) by diffusers' own loader, beside those that are in it.

    Args:
        unet: Of SD 1.5 or SDXL.
        path: A safetensors file, or a folder that holds one.
        name: What to call it; by default as its file.

    Returns:
        Its name.

    Raises:
        ValueError: not one safetensors file, one for more than the UNet, or a name that is taken.
        IntegrityError: a file that is no LoRA, or one for another base.
    """
    files = [path] if path.is_file() else sorted(path.glob("*.safetensors"))
    if len(files) != 1:
        raise ValueError(f"{path}: expected one safetensors file with a LoRA, found {len(files)}.")
    [file] = files
    name = (name or file.stem).replace(".", "_")
    if name in getattr(unet, "peft_config", {}):
        raise ValueError(f"{file.name}: there is a LoRA {name!r} already; give this one another name.")
    check_lora(file, unet)
    state_dict, alphas, metadata = StableDiffusionLoraLoaderMixin.lora_state_dict(
        str(file.parent),
        weight_name=file.name,
        use_safetensors=True,
        local_files_only=True,
        unet_config=unet.config,
        return_lora_metadata=True,
    )
    foreign = sorted(key for key in state_dict if key.startswith("text_encoder"))
    if foreign:
        raise ValueError(f"{file.name}: has text encoder weights ({foreign[0]}); only the UNet takes a LoRA.")
    # UNet2DConditionModel.save_lora_adapter writes no prefix, the pipelines' save_lora_weights writes "unet."
    prefix = "unet" if any(key.startswith("unet.") for key in state_dict) else None
    unet.load_lora_adapter(state_dict, prefix=prefix, network_alphas=alphas, adapter_name=name, metadata=metadata)
    if name not in getattr(unet, "peft_config", {}):
        raise ValueError(f"{file.name}: no LoRA weights for this UNet in it.")
    return name


def set_scales(unet: UNet2DConditionModel, scales: Mapping[str, float]) -> None:
    """Say how strongly each LoRA of a UNet speaks: 1 as trained, 0 not at all. Those not named are off.

    Raises ValueError at a name that is not there.
    """
    there = list(getattr(unet, "peft_config", {}))
    unknown = [name for name in scales if name not in there]
    if unknown:
        raise ValueError(f"There is no LoRA {unknown[0]!r}; there are {', '.join(there) or 'none'}.")
    if there:
        unet.set_adapters(there, weights=[scales.get(name, 0.0) for name in there])
