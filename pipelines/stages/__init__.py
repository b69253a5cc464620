"""The paper's workflow, one file a stage: cutout, describe, generate, upscale, inspect, publish."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipelines.workflow import Stage


def stage(name: str) -> Stage:
    """Return a stage by name. Its module, and with it torch, is imported here and not before."""
    return import_module(f"pipelines.stages.{name}").STAGE
