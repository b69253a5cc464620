"""Model cards: architecture, training data, command and figures of a bundled model."""

from __future__ import annotations

import json
import os
import platform
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

from pipelines.training.loop import TrainOptions

COMPOSED = (
    "Composed packshots (`pipelines/training/composer.py`) around 957 cutouts: fluent-emoji-3d (MIT), "
    "saleor (CC-BY-4.0), solidus (BSD-3-Clause); every tenth product name is held out."
)
REAL = (
    "Photographs: scenes of codec-corpus (CC-BY-SA-4.0 / Unsplash / unrestricted), debian-wallpapers (GPL-2+, "
    "CC-BY-4.0, CC-BY-SA), iclight (Apache-2.0), npm themes (MIT, Unsplash), robosuite textures (MIT), "
    "webgltf-env (CC0), WordPress themes (public-domain photos); product photos of clothing-dataset (CC0-1.0), "
    "grocery-store (MIT), magento2 (OSL-3.0 / AFL-3.0), vendure (Unsplash)."
)
BUNDLED = f"{COMPOSED}\n  {REAL}"


def write_card(
    folder: Path,
    title: str,
    model: nn.Module,
    options: TrainOptions,
    figures: Mapping[str, object],
    notes: str = "",
    about: str = BUNDLED,
) -> None:
    """Write `folder`/CARD.md: architecture, data and licences (`about`), command, steps, wall time, figures, licence.

    Figures of earlier stages (another size) on the existing card are kept.
    """
    card = folder / "CARD.md"
    earlier = re.search(r"Figures\*\*: (\{.*\})", card.read_text(encoding="utf-8")) if card.exists() else None
    figures = {**(json.loads(earlier[1]) if earlier else {}), **figures}
    millions = sum(p.numel() for p in model.parameters()) / 1e6
    budget = f"--minutes {options.minutes:g}" if options.steps is None else f"--steps {options.steps}"
    command = f"packshot train {options.part} {budget}"
    licence = "Apache-2.0 for the weights, as far as this project can give one; the sources' licences above stand."
    if options.profile != "mini":
        licence = "that of the base model and the branch it began from; the pictures' licences stand."
    text = f"""# {options.profile} / {title}

- **Architecture**: `{type(model).__name__}`, {millions:.2f} M parameters; the config stands beside the weights.
- **Data**: {about}
- **Made by**: `{command}` on {machine(options.device)} ({options.dtype}).
- **Figures**: {json.dumps(figures)}
- **Licence**: {licence}
"""
    card.write_text(text + (f"\n{notes.strip()}\n" if notes else ""), encoding="utf-8")


def machine(device: str) -> str:
    """What `device` is: the name of the GPU, or of the processor and how many of its cores there are."""
    if device.startswith("cuda"):
        return str(torch.cuda.get_device_name(device))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    name = platform.processor() or platform.machine()
    listed = Path("/proc/cpuinfo")
    if listed.exists() and (said := re.search(r"model name\s*: (.+)", listed.read_text(encoding="utf-8"))):
        name = said[1].strip()
    return f"{cores} cores of {name}"
