"""Make a 9-channel inpainting model of any base: base + (inpainting - original), a common community method.

It adds the difference between the inpainting model and its original to another descendant of that original. The five
extra input channels (mask and masked image) are copied. It works tensor by tensor, so memory holds a few tensors and
never a model.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Protocol

import torch
from safetensors import safe_open
from torch import Tensor

from pipelines.errors import IntegrityError, UsageError
from pipelines.models.files import LEGACY_SUFFIXES, check_file_complete
from pipelines.models.weights import reading, tensor_shapes

FIRST = ("model.diffusion_model.input_blocks.0.0.weight", "conv_in.weight")
"""The input convolution: in a single-file checkpoint, and in diffusers' file of a UNet."""

_DTYPES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int64: "I64",
    torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
    torch.float8_e4m3fn: "F8_E4M3", torch.float8_e5m2: "F8_E5M2",
}  # fmt: skip
"""Their names in safetensors."""


class _Source(Protocol):
    """Tensors of a file by name; each is read on request."""

    def keys(self) -> list[str]: ...

    def get_tensor(self, name: str) -> Tensor: ...


class _Legacy:
    """A torch file, mapped into memory. Only tensors are read, never code."""

    def __init__(self, path: Path):
        stored = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        stored = stored.get("state_dict", stored)
        self._tensors = {name: value for name, value in stored.items() if isinstance(value, Tensor)}

    def keys(self) -> list[str]:
        return list(self._tensors)

    def get_tensor(self, name: str) -> Tensor:
        return self._tensors[name]


def merge_inpainting(
    base: Path,
    inpainting: Path,
    original: Path,
    out: Path,
    trust: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Write base + (inpainting - original) to `out`, with the base's names, precision and order.

    Args:
        base: Any descendant of `original`, of 4 channels: safetensors, a single-file checkpoint or a UNet of diffusers.
        inpainting: The published inpainting model, of 9 channels, in the same format.
        original: The model that `inpainting` was trained from.
        out: Must not exist. It appears only when it is complete.
        trust: Read torch files too; default: safetensors only.
        progress: Called with (tensors done, tensors in all).

    Raises:
        UsageError: `out` exists, has no folder, or is not named `.safetensors`.
        IntegrityError: a file is broken, not trusted, or of another architecture than the others.
    """
    if out.exists() or out.suffix != ".safetensors":
        raise UsageError(f"{out}: {'there already' if out.exists() else 'a merged model is a .safetensors file'}")
    if not out.parent.is_dir():
        raise UsageError(f"{out}: there is no folder {out.parent}")
    with ExitStack() as stack:
        a, b, c = (_open(path, trust, stack) for path in (base, inpainting, original))
        first = _first(base, a, 4)
        _first(inpainting, b, 9, first)
        _first(original, c, 4, first)
        theirs = set(b.keys()) & set(c.keys())
        names = list(a.keys())
        # a VAE or text encoder may be left out of one file; the UNet may not
        unet = [name for name in names if first == FIRST[1] or name.startswith("model.diffusion_model.")]
        if missing := [name for name in unet if name not in theirs]:
            path = original if missing[0] in set(b.keys()) else inpainting
            raise IntegrityError(f"{path}: expected the architecture of {base.name}, found no {missing[0]}")

        def merged(name: str) -> Tensor:
            ours = a.get_tensor(name)
            if name not in theirs or not ours.is_floating_point():
                return ours
            learnt, before = b.get_tensor(name).float(), c.get_tensor(name).float()
            its_own = []  # the five channels that only the inpainting model has
            if name == first:
                learnt, its_own = learnt[:, :4], [learnt[:, 4:]]
            for path, found in ((inpainting, learnt), (original, before)):
                if found.shape != ours.shape:
                    raise IntegrityError(
                        f"{path}: expected the architecture of {base.name}, found {name} of {tuple(found.shape)} "
                        f"beside {tuple(ours.shape)}"
                    )
            added = ours.float() + (learnt - before)
            return torch.cat([added, *its_own], dim=1).to(ours.dtype) if its_own else added.to(ours.dtype)

        partial = out.with_name(f"{out.name}.{os.getpid()}")
        try:
            _write(partial, names, merged, a, first, progress)
            partial.replace(out)
        finally:
            partial.unlink(missing_ok=True)


def how_to_use(merged: Path, sha256: str) -> str:
    """Return instructions for using a merged file: a profile's entry if it is a whole model."""
    tensors = tensor_shapes(merged)
    if FIRST[1] in tensors:
        return (
            "a UNet alone: to use it, copy the inpainting model's diffusers folder into the models directory, put this "
            "file in the place of its unet/diffusion_pytorch_model.safetensors, and name the folder as base_inpaint9"
        )
    widths = {shape[1] for name, shape in tensors.items() if name.endswith("attn2.to_k.weight")}
    family = "sdxl" if 2048 in widths else "sd15"
    return (
        f"to use it, move it into the models directory and write there into {family}.yaml:\n"
        f"parts:\n  base_inpaint9: {{kind: base, config: {family}, path: {merged.name}, revision: merged, "
        f"source: merged, licence: the base's, sha256: {sha256}}}"
    )


def _open(path: Path, trust: bool, stack: ExitStack) -> _Source:
    if not path.is_file():
        raise UsageError(f"{path}: not there")
    check_file_complete(path)
    if path.suffix not in LEGACY_SUFFIXES:
        with reading(path, "safetensors"):
            return stack.enter_context(safe_open(path, framework="pt"))
    if not trust:
        raise IntegrityError(
            f"{path}: expected safetensors, found a torch file, which is a pickle; to read it, --trust"
        )
    with reading(path, "a torch file of tensors"):
        return _Legacy(path)


def _first(path: Path, source: _Source, channels: int, expected: str | None = None) -> str:
    """Return the name of the input convolution. Raises IntegrityError if it has another number of channels."""
    names = source.keys()
    found = next((name for name in FIRST if name in names), None)
    if found is None or expected not in (None, found):
        raise IntegrityError(f"{path}: expected {expected or ' or '.join(FIRST)} in it, found none")
    actual = source.get_tensor(found).shape[1]
    if actual != channels:
        raise IntegrityError(f"{path}: expected a UNet of {channels} channels, found {actual}")
    return found


def _write(
    path: Path,
    names: list[str],
    merged: Callable[[str], Tensor],
    base: _Source,
    first: str,
    progress: Callable[[int, int], None],
) -> None:
    """Write safetensors with one tensor in memory at a time. The header needs only shapes, which are the base's."""
    head: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name in names:
        tensor = base.get_tensor(name)
        shape = [tensor.shape[0], 9, *tensor.shape[2:]] if name == first else list(tensor.shape)
        end = offset + torch.Size(shape).numel() * tensor.element_size()
        head[name] = {"dtype": _DTYPES[tensor.dtype], "shape": shape, "data_offsets": [offset, end]}
        offset = end
    encoded = json.dumps(head, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(encoded)) + encoded)
        for done, name in enumerate(names, 1):
            file.write(merged(name).contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
            progress(done, len(names))
