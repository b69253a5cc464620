"""Read weight files and transformers' model folders; name a wrong file in one line.

It imports no diffusion library, because the segmenting stages need none.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from textwrap import shorten
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from pipelines.errors import IntegrityError
from pipelines.models.files import LEGACY_SUFFIXES

_UNREADABLE = (
    OSError, ValueError, TypeError, AttributeError, LookupError, RuntimeError, pickle.UnpicklingError, SafetensorError,
)  # fmt: skip
"""What the libraries raise for a file that they cannot read."""


@contextmanager
def reading(path: Path, expected: str) -> Iterator[None]:
    """Convert a library's error about an unreadable file to an IntegrityError of one line that names the file."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except _UNREADABLE as error:
        why = shorten(str(error), 240, placeholder=" …")
        raise IntegrityError(f"{path}: expected {expected} ({type(error).__name__}: {why})") from error


def read_weights(path: Path, expected: str) -> dict[str, Tensor]:
    """Read the tensors of a safetensors file, or of a legacy torch file (tensors only, never code), by name.

    A torch file may hold them under `params_ema`, `params` or `state_dict`. Raises IntegrityError, which names the
    file.
    """
    with reading(path, expected):
        return load_file(path) if path.suffix not in LEGACY_SUFFIXES else _torch_tensors(path, "cpu")


def _torch_tensors(path: Path, device: str) -> dict[str, Tensor]:
    stored = torch.load(path, map_location=device, weights_only=True)
    for key in ("params_ema", "params", "state_dict"):
        stored = stored.get(key, stored)
    if not all(isinstance(value, Tensor) for value in stored.values()):
        raise ValueError("there is more in it than tensors")
    return dict(stored)


def tensor_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Return names and shapes of the tensors of a safetensors or legacy torch file, without reading the tensors.

    Raises IntegrityError, which names the file.
    """
    if path.suffix in LEGACY_SUFFIXES:
        with reading(path, "a torch file of tensors"):
            return {name: tuple(value.shape) for name, value in _torch_tensors(path, "meta").items()}
    with reading(path, "safetensors"), safe_open(path, framework="pt") as file:
        names = list(file.keys())
        return {name: tuple(file.get_slice(name).get_shape()) for name in names}


_WITHIN = {"clip_text_model": ("clip",)}
"""Whole models from which a part may be read."""


def weight_file_options(weights: Collection[Path], folder: Path) -> dict[str, Any]:
    """Return the `from_pretrained` arguments that make a library read only `weights` (see `ModelPart.weights`).

    Raises IntegrityError if `weights` has no file in the folder, or if the library would read another one of it.
    """
    names = [file for file in weights if file.parent == folder]
    if not names:
        raise IntegrityError(f"{folder}: expected its weights among the files that the profile lists, found none")
    plain = any("." not in file.stem for file in names)  # a variant is model.fp16.safetensors, a shard model-00001-of-…
    suffix = ".safetensors" if any(file.suffix == ".safetensors" for file in names) else ".bin"
    for stem in ("model", "pytorch_model", "diffusion_pytorch_model"):  # read before any shards
        preferred = folder / f"{stem}{'' if plain else '.fp16'}{suffix}"
        if preferred.is_file() and preferred not in names:
            raise IntegrityError(f"{preferred}: expected only weights that the profile lists; remove it")
    return {"use_safetensors": suffix == ".safetensors", "variant": None if plain else "fp16"}


def load_transformer(
    model_class: Any,
    folder: Path,
    expected: str,
    weights: Collection[Path] | None = None,
    dtype: torch.dtype = torch.float32,
) -> Any:
    """Load a transformers model on the CPU. Raises IntegrityError if the folder holds another model.

    `weights` are the files to read, as in the model's part; default: `model.safetensors`.
    """
    from transformers.utils import logging

    with reading(folder, expected), quiet(logging):
        found = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("model_type")
        accepted = {model_class.config_class.model_type, *_WITHIN.get(model_class.config_class.model_type, ())}
        if found not in accepted:
            raise ValueError(f"its config.json says {found!r}")
        model, info = model_class.from_pretrained(
            folder,
            local_files_only=True,
            dtype=dtype,
            output_loading_info=True,
            **({"use_safetensors": True} if weights is None else weight_file_options(weights, folder)),
        )
        check_nothing_missing(info)
    return model.eval()


def check_nothing_missing(info: Mapping[str, Any]) -> None:
    """Raise ValueError if the file lacks weights of the class, or has them in other shapes."""
    for kind in ("mismatched_keys", "missing_keys"):
        if keys := sorted(str(key) for key in info.get(kind) or ()):
            raise ValueError(f"{len(keys)} {kind.removesuffix('_keys')} tensors, {keys[0]} among them")


@contextmanager
def quiet(logging: Any) -> Iterator[None]:
    """Suppress a library's progress bars and reports of unused weights; real problems are raised. Takes its
    `logging`."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        logging.enable_progress_bar()
