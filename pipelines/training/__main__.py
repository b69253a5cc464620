"""`python -m pipelines.training PART`: train a bundled model, or continue."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from pipelines.errors import UsageError
from pipelines.training.loop import PROFILE, ROOT, TrainOptions

TRAINERS: dict[str, str] = {
    "autoencoder": "pipelines.training.autoencoder:train",
    "clip": "pipelines.training.clip:train",
    "unet": "pipelines.training.unet:train",
    "brushnet_random": "pipelines.training.brushnet:train",
    "brushnet_salient": "pipelines.training.brushnet:train",
    "brushnet": "pipelines.training.brushnet:train",
    "brushnet_control": "pipelines.training.brushnet:train",
    "controlnet_canny": "pipelines.training.controlnet:train",
    "unet_inpaint9": "pipelines.training.inpainters:train_unet_inpaint9",
    "controlnet_inpaint": "pipelines.training.inpainters:train_controlnet_inpaint",
    "blip": "pipelines.training.blip:train",
    "upscaler": "pipelines.training.upscaler:train",
    "lora_oak_window": "pipelines.training.loras:train",
    "base_high_key": "pipelines.training.loras:train",
    "salient": "pipelines.training.salient:train",
    "hqsam": "pipelines.training.hqsam:train",
}

PAINTS = ("autoencoder", "clip", "unet")
NEEDS: dict[str, tuple[str, ...]] = {
    "unet": ("autoencoder",),
    "brushnet_random": PAINTS,
    "controlnet_canny": PAINTS,
    "unet_inpaint9": PAINTS,
    "controlnet_inpaint": PAINTS,
    "lora_oak_window": PAINTS,
    "base_high_key": PAINTS,
}
"""Parts that must stand in the folder of models before a part is trained; BrushNet's fine-tunes ask for their start."""


def trainer(part: str) -> Callable[[TrainOptions], Any]:
    """Import the trainer of `part`. Raises KeyError if there is none."""
    module, function = TRAINERS[part].split(":")
    found: Callable[[TrainOptions], Any] = getattr(importlib.import_module(module), function)
    return found


def main(
    part: str,
    minutes: Annotated[float, typer.Option(help="Training time in all, over resumes.")] = 8.0,
    steps: Annotated[int | None, typer.Option(help="Stop after so many steps instead.")] = None,
    device: str = "cpu",
    dtype: Annotated[str, typer.Option(help="Autocast type: float32 or bfloat16.")] = "float32",
    batch: int | None = None,
    lr: float | None = None,
    size: Annotated[int | None, typer.Option(help="Picture side in px where a part has a choice.")] = None,
    resume: bool = True,
    data: Path = ROOT / ".." / "shared" / "training",
    out: Path = PROFILE,
    work: Path = ROOT / "build" / "training",
) -> None:
    """Train PART within a time budget and export it into the bundled profile.

    Raises UsageError if `out` lacks a part that PART builds on.
    """
    if part not in TRAINERS:
        raise typer.BadParameter(f"no trainer {part!r}; there are {', '.join(TRAINERS)}")
    options = TrainOptions(
        part, minutes, steps, device, dtype, batch, lr, resume, size=size, data=data, out=out, work=work
    )
    if missing := [need for need in NEEDS.get(part, ()) if not (out / need / "config.json").exists()]:
        raise UsageError(f"{part} builds on {', '.join(missing)}, which {out} lacks; copy or train that first")
    typer.echo(trainer(part)(options))


if __name__ == "__main__":
    typer.run(main)
