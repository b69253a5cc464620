"""Load published checkpoints, in any of the published formats, into the classes that packshot uses.

A diffusion base is a diffusers folder or a community single-file checkpoint. A single net (VAE, BrushNet, ControlNet)
is a diffusers folder, or one file with a configuration from the profile. These loaders compare the file with what the
class needs and name a wrong file in one line. The libraries would warn and continue with random weights.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.loaders.single_file_utils import SingleFileComponentError
from diffusers.utils import logging as diffusers_logging
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer
from transformers.utils import logging as transformers_logging

from pipelines.errors import IntegrityError
from pipelines.models.painters import PAINTERS
from pipelines.models.profile import ModelPart, Profile
from pipelines.models.weights import (
    check_nothing_missing,
    load_transformer,
    quiet,
    read_weights,
    reading,
    tensor_shapes,
    weight_file_options,
)

UNET = "model.diffusion_model."
"""Prefix of the UNet's tensors in a single-file checkpoint."""


@dataclass(frozen=True, slots=True)
class Base:
    """A whole diffusion model: float32, on the CPU. Only SDXL has a second text encoder and tokenizer."""

    vae: AutoencoderKL
    text_encoder: CLIPTextModel
    tokenizer: CLIPTokenizer
    unet: UNet2DConditionModel
    scheduler: Any
    text_encoder_2: CLIPTextModelWithProjection | None = None
    tokenizer_2: CLIPTokenizer | None = None


def load_profile_base(profile: Profile, unet_channels: int = 4) -> Base:
    """Check and load the base of a profile: whole (`base`, whose VAE `autoencoder` may replace), or in pieces.

    For a UNet of 9 input channels it is `base_inpaint9`, or in pieces with `unet_inpaint9`. Raises UsageError if a part
    or its files are missing, IntegrityError if they differ from the profile.
    """
    words = profile.part("clip").check()
    clip = words.path
    whole, unet = ("base_inpaint9", "unet_inpaint9") if unet_channels == 9 else ("base", "unet")
    if profile.has(whole) or not profile.has(unet):
        base = load_base(profile.part(whole).check(), clip)
        if not profile.has("autoencoder"):
            return base
        return replace(base, vae=load_net(AutoencoderKL, profile.part("autoencoder").check(), "an autoencoder"))
    return Base(
        vae=load_net(AutoencoderKL, profile.part("autoencoder").check(), "an autoencoder"),
        text_encoder=load_transformer(CLIPTextModel, clip, "CLIP", words.weights),
        tokenizer=CLIPTokenizer.from_pretrained(clip, local_files_only=True),
        unet=load_net(UNet2DConditionModel, profile.part(unet).check(), "a UNet"),
        scheduler=_scheduler(profile.part("scheduler").check().path),
    )


def load_base(part: ModelPart, clip: Path) -> Base:
    """Load a base: a diffusers folder, or a single file with the configurations of `part.config`; see
    `ModelPart.check`.

    `clip` is a folder with CLIP's tokenizer, which no single file contains. Raises IntegrityError if the file has
    another architecture than the profile, or is incomplete.
    """
    return _base_from_file(part, clip) if part.path.is_file() else _base_from_folder(part)


def load_net(model_class: Any, part: ModelPart, expected: str) -> Any:
    """Load a VAE, BrushNet, ControlNet or UNet, float32, on the CPU: a diffusers folder, or one file.

    A single file is read with the configuration of `part.config`. Its tensors have diffusers' names or the publisher's,
    which diffusers translates. `expected` names the model for messages ("a ControlNet"). Raises IntegrityError.
    """
    if not part.path.is_file():
        return _from_folder(model_class, part.path, expected, part.weights)
    if part.config is None:
        raise IntegrityError(f"{part.path}: expected its configuration beside its path in the profile (config: …)")
    weights = read_weights(part.path, expected)
    with reading(part.path, expected), _quiet():
        net = model_class.from_config(model_class.load_config(part.config, local_files_only=True))
        if hasattr(model_class, "from_single_file") and weights.keys() - net.state_dict().keys():
            with _translating():
                translated = model_class.from_single_file(weights, config=str(part.config), local_files_only=True)
            weights = {name: value for name, value in translated.state_dict().items() if not value.is_meta}
        net.load_state_dict({name: value.float() for name, value in weights.items()})  # names missing tensors
        return net.eval()


def load_painter(part: ModelPart, dtype: torch.dtype = torch.float32) -> Any:
    """Load a painter, a pipeline of diffusers, from its folder, on the CPU; see `ModelPart.check`.

    `PAINTERS` says of which class each module is; the folder's own index does not. So no folder brings code along.
    Raises IntegrityError if a file is missing, holds code or belongs to another model.
    """
    painter, folder, expected = PAINTERS[part.pipeline], part.path, f"a diffusers folder for {part.pipeline}"
    if code := sorted(folder.rglob("*.py")):
        raise IntegrityError(f"{code[0]}: expected {expected}, weights and configurations alone; remove it")
    for name in ("scheduler", *painter.readers, *painter.weights):
        if not (folder / name).is_dir():
            raise IntegrityError(f"{folder / name}: expected {expected}, found no such folder in it")
    with reading(folder, expected), quiet(transformers_logging):
        index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
        modules = {"scheduler": _scheduler(folder / "scheduler")}
        for name, reader in painter.readers.items():
            modules[name] = getattr(transformers, reader).from_pretrained(
                folder / name, local_files_only=True, trust_remote_code=False
            )
    for name, model in painter.weights.items():
        if hasattr(diffusers, model):
            modules[name] = _from_folder(getattr(diffusers, model), folder / name, expected, part.weights, dtype)
        else:
            model_class = getattr(transformers, model)
            modules[name] = load_transformer(model_class, folder / name, expected, part.weights, dtype)
    flags = {flag: bool(index[flag]) for flag in painter.flags if flag in index}
    return getattr(diffusers, part.pipeline)(**modules, **flags, **painter.fixed)


def check_fits(path: Path, net: Any, unet: Any, expected: str) -> None:
    """Raise IntegrityError if a BrushNet or ControlNet was made for another UNet."""
    for name in ("block_out_channels", "layers_per_block", "addition_embed_type", "cross_attention_dim"):
        if name == "cross_attention_dim" and "brushnet" in type(net).__name__.lower():
            continue  # it has no attention; its config's value is unused
        wanted, found = (_plain(model.config.get(name)) for model in (unet, net))
        if wanted != found:
            raise IntegrityError(f"{path}: expected {expected} for this base, of {name} {wanted}, found {found}")


def check_lora(path: Path, unet: Any) -> None:
    """Raise IntegrityError if a file is not a LoRA (kohya's or PEFT's), or was trained on another base.

    The text width of its cross-attention identifies the base: 768 for SD 1.5, 1,024 for 2.x, 2,048 for SDXL.
    """
    wanted = unet.config.cross_attention_dim
    widths = set()
    down = ("lora_down.weight", "lora_A.weight", "lora.down.weight", "lora_A.default.weight")
    for name, shape in tensor_shapes(path).items():
        if name.endswith(down):
            widths.add(shape[1] if "attn2" in name and ("to_k" in name or "to_v" in name) else 0)
    if not widths:
        raise IntegrityError(f"{path}: expected a LoRA in kohya's or PEFT's format, found none of their tensors")
    if foreign := widths - {0, wanted}:
        found = ", ".join(map(str, sorted(foreign)))
        raise IntegrityError(f"{path}: expected a LoRA for this base, of text width {wanted}, found one of {found}")


def _base_from_file(part: ModelPart, clip: Path) -> Base:
    if part.config is None:
        raise IntegrityError(f"{part.path}: expected `config: sd15` or `config: sdxl` beside its path in the profile")
    index = json.loads((part.config / "model_index.json").read_text(encoding="utf-8"))
    pipeline_class = getattr(diffusers, index["_class_name"])
    wanted = json.loads((part.config / "unet" / "config.json").read_text(encoding="utf-8"))
    expected = f"a single-file checkpoint of {part.config.name}"
    options: dict[str, Any] = {"config": str(part.config), "torch_dtype": torch.float32, "local_files_only": True}
    of_unet = {"subfolder": "unet", "in_channels": _check_single_file(part.path, wanted, expected)}
    with reading(part.path, expected), _quiet():
        tokenizers = {"tokenizer": CLIPTokenizer.from_pretrained(clip, local_files_only=True)}
        if "tokenizer_2" in index:
            # the second encoder has the same vocabulary, but another padding token
            padding = {"pad_token": "!"}
            tokenizers["tokenizer_2"] = CLIPTokenizer.from_pretrained(clip, local_files_only=True, **padding)
        else:
            options |= {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
        with _translating():
            unet = UNet2DConditionModel.from_single_file(str(part.path), **options, **of_unet)
            pipeline = pipeline_class.from_single_file(str(part.path), unet=unet, **tokenizers, **options)
    return Base(
        vae=pipeline.vae.eval(),
        text_encoder=pipeline.text_encoder.eval(),
        tokenizer=pipeline.tokenizer,
        unet=pipeline.unet.eval(),
        scheduler=pipeline.scheduler,
        text_encoder_2=getattr(pipeline, "text_encoder_2", None),
        tokenizer_2=getattr(pipeline, "tokenizer_2", None),
    )


def _check_single_file(path: Path, unet: Mapping[str, Any], expected: str) -> int:
    """Compare a single file's UNet with the configuration. Return its input channels: 4, or 9 for inpainting."""
    shapes = tensor_shapes(path)
    first = shapes.get(f"{UNET}input_blocks.0.0.weight")
    texts = {shape[1] for name, shape in shapes.items() if name.startswith(UNET) and name.endswith("attn2.to_k.weight")}
    if first is None or not texts:
        raise IntegrityError(f"{path}: expected {expected}, found no {UNET}input_blocks… in it")
    if first[0] != unet["block_out_channels"][0] or texts != {unet["cross_attention_dim"]}:
        raise IntegrityError(
            f"{path}: expected {expected}, of text width {unet['cross_attention_dim']}, found one of {max(texts)}"
        )
    return first[1]


def _base_from_folder(part: ModelPart) -> Base:
    folder = part.path
    expected = "a diffusers folder"
    with reading(folder, expected):
        index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    if part.config is not None:
        wanted = json.loads((part.config / "model_index.json").read_text(encoding="utf-8"))
        missing = sorted(name for name in wanted if not name.startswith("_") and not index.get(name, False))
        foreign = [name for name in ("text_encoder_2",) if name in index and name not in wanted]
        if [name for name in missing if name != "force_zeros_for_empty_prompt"] or foreign:
            raise IntegrityError(
                f"{folder}: expected a diffusers folder of {part.config.name}, found a {index.get('_class_name')}"
            )
    with reading(folder, expected):
        scheduler = _scheduler(folder / "scheduler")
        tokenizers = [
            CLIPTokenizer.from_pretrained(folder / name, local_files_only=True) if name in index else None
            for name in ("tokenizer", "tokenizer_2")
        ]
    second = None
    if "text_encoder_2" in index:
        second = load_transformer(
            CLIPTextModelWithProjection, folder / "text_encoder_2", "a CLIP text encoder", part.weights
        )
    base = Base(
        vae=_from_folder(AutoencoderKL, folder / "vae", "an autoencoder", part.weights),
        text_encoder=load_transformer(CLIPTextModel, folder / "text_encoder", "a CLIP text encoder", part.weights),
        tokenizer=tokenizers[0],
        unet=_from_folder(UNet2DConditionModel, folder / "unet", "a UNet", part.weights),
        scheduler=scheduler,
        text_encoder_2=second,
        tokenizer_2=tokenizers[1],
    )
    if part.config is not None:
        wanted = json.loads((part.config / "unet" / "config.json").read_text(encoding="utf-8"))["cross_attention_dim"]
        if base.unet.config.cross_attention_dim != wanted:
            raise IntegrityError(
                f"{folder}: expected a diffusers folder of {part.config.name}, of text width {wanted}, "
                f"found one of {base.unet.config.cross_attention_dim}"
            )
    return base


def _from_folder(
    model_class: Any, folder: Path, expected: str, weights: Collection[Path], dtype: torch.dtype = torch.float32
) -> Any:
    """Load a diffusers folder, of its files only those in `weights`, which were checked."""
    with reading(folder, expected):
        named = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("_class_name")
        if named not in (None, model_class.__name__):
            raise ValueError(f"its config.json says {named}")
        model, info = model_class.from_pretrained(
            folder,
            torch_dtype=dtype,
            local_files_only=True,
            output_loading_info=True,
            **weight_file_options(weights, folder),
        )
        check_nothing_missing(info)
    return model.eval()


def _scheduler(folder: Path) -> Any:
    """Load the scheduler of the class that its own configuration names."""
    config = diffusers.DDIMScheduler.load_config(folder, local_files_only=True)
    return getattr(diffusers, config["_class_name"]).from_config(config)


def _plain(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


@contextmanager
def _translating() -> Iterator[None]:
    """Convert diffusers' error about a missing model, a plain Exception, to ValueError."""
    try:
        yield
    except SingleFileComponentError as error:
        raise ValueError(str(error)) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppress the libraries' progress bars and reports of unused weights; real problems are raised."""
    with quiet(transformers_logging), quiet(diffusers_logging):
        yield
