"""The paper's workflow: `keys` says what each stage's result depends on; one file a stage computes it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipelines.workflow import Stage


def stage(name: str) -> Stage:
    """Return a stage by name. What computes, and with it torch, is imported when the stage first loads its models."""
    from pipelines.stages.keys import STAGES

    return STAGES[name]
