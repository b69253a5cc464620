"""Which of diffusers' schedulers are supported, and which part of their schedule runs."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

PREDICTIONS = ("epsilon", "v_prediction", "sample")
"""What a UNet of SD's family may predict: the noise, the velocity, the picture."""


def check_scheduler(scheduler: Any) -> None:
    """Raise ValueError if a scheduler does not denoise along a table of timesteps, as Stable Diffusion's UNets
    require."""
    name = type(scheduler).__name__
    suits = "DDIM, DPM++, UniPC, Euler, Euler a, Heun, LCM and their like do"
    missing = [wanted for wanted in ("alphas_cumprod", "add_noise") if not hasattr(scheduler, wanted)]
    if missing:
        raise ValueError(
            f"{name} does not suit: it has no {missing[0]}, so it is for models of flow matching or EDM, and these "
            f"UNets denoise along Stable Diffusion's schedule; {suits}."
        )
    prediction = scheduler.config.prediction_type
    if prediction not in PREDICTIONS or getattr(scheduler.config, "use_flow_sigmas", False):
        raise ValueError(f"{name} does not suit: it is configured for flow matching ({prediction}); {suits}.")
    if "noise_sampler_seed" in inspect.signature(type(scheduler).__init__).parameters:
        raise ValueError(f"{name} does not suit: it draws its noise without the shot's generator; {suits}.")


def start(scheduler: Any, steps: int, strength: float, device: torch.device) -> Tensor:
    """Set the scheduler's timesteps and return those that run: the last `strength` of `steps`, at least one."""
    scheduler.set_timesteps(steps, device=device)
    skipped = (steps - max(1, int(steps * strength))) * scheduler.order
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(skipped)
    timesteps: Tensor = scheduler.timesteps[skipped:]
    return timesteps


def check_range(name: str, start: float, end: float) -> None:
    """Raise ValueError if start and end, shares of the steps, are not in order or not in 0..1."""
    if not 0 <= start <= end <= 1:
        raise ValueError(f"{name} are shares of the steps, 0 <= start <= end <= 1, got {start} and {end}.")


def step_in_range(step: int, steps: int, start: float, end: float) -> bool:
    """Return whether step 0, 1, … of `steps` lies completely between two shares of the steps."""
    return step / steps >= start and (step + 1) / steps <= end


def step_options(scheduler: Any, generators: Sequence[torch.Generator] | None) -> dict[str, Any]:
    """Return further arguments of the scheduler's step: the generators, if it draws noise."""
    if "generator" not in inspect.signature(scheduler.step).parameters:
        return {}
    return {"generator": generators}


def signal_at(scheduler: Any, t: Tensor) -> float:
    """Return the picture's share of the variance at timestep `t` (alpha-bar), 0..1, interpolated between the table's
    entries."""
    table = scheduler.alphas_cumprod
    lower = int(t)
    upper = min(lower + 1, len(table) - 1)
    return float(torch.lerp(table[lower].float(), table[upper].float(), float(t) - lower))
