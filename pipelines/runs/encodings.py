"""Which images of a run have to be encoded. Keys are made and looked up, some thousand at a time; no step is read."""

from __future__ import annotations

from collections.abc import Sequence

from more_itertools import chunked
from sqlalchemy import Engine

from pipelines.ledger.publishing import enlarged, use_encoded
from pipelines.workflow import Recipe, Stage

AT_ONCE = 5000
"""Shots of one statement."""


def find_encoded(engine: Engine, run: str, positions: Sequence[int], stage: Stage, recipe: Recipe) -> list[int]:
    """Positions of the shots whose image `stage` has to encode. Of the others, that were encoded before, the run is
    recorded as the user. `run_stage` would find the same, but reads every step with all its parts."""
    missing: list[int] = []
    for some in chunked(positions, AT_ONCE):
        found = enlarged(engine, run, some)
        keys = {one.number: stage.job(one.shot, {one.step.job.stage: one.step}, recipe, 0).key for one in found}
        used = use_encoded(engine, run, keys)
        there = {one.position for one in found if one.number in used}
        missing += [position for position in some if position not in there]
    return missing
