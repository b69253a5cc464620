"""Which shots of a run need a stage at all. Keys are made and looked up; no pixel is touched and no model imported."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pipelines.contracts import STAGES, Ledger, Shot, ShotStep, Step
from pipelines.ledger.postgres import PostgresLedger
from pipelines.workflow import Recipe, Stage, choose, find_steps, is_ready, is_settled, with_choice

TASK_SECONDS = 600
"""A task is to last about this long: its start costs seconds, and a killed task is noticed only when it ends."""

UNMEASURED = 8
"""Shots of a shard before anything was measured."""

MAX_SHARDS = 128
"""Shards of a run at most. Five tasks each are what Airflow's scheduler passes over in a second or two."""

WAVE_GROWTH = 4
"""How many times as much a wave takes on as the one before it."""


def find_work(run: str, stages: Sequence[Stage], recipe: Recipe, ledger: PostgresLedger) -> list[int]:
    """Positions of the shots that a stage has to compute something for.

    Of every other shot that the run has to look at, all steps are finished: the run is recorded as their user.
    """
    positions: list[int] = []
    for numbers, shots in ledger.to_look_at(run):
        steps = finished_steps(stages, shots, recipe, ledger)
        ledger.use(run, [(shot, steps[shot.sku]) for shot in shots if shot.sku in steps])
        positions += [number for number, shot in zip(numbers, shots, strict=True) if shot.sku not in steps]
    return positions


def usual_size(rates: Mapping[str, float], fixed: int | None = None) -> int:
    """Shots of a full shard: `fixed`, or about TASK_SECONDS of the slowest stage at these rates (seconds a shot)."""
    slowest = max((rates.get(stage, 0.0) for stage in STAGES), default=0.0)
    return fixed or max(1, round(TASK_SECONDS / slowest) if slowest else UNMEASURED)


def shard_size(shots: int, rates: Mapping[str, float], slots: int, fixed: int | None = None) -> int:
    """Shots of one shard of a run: the usual size, or less, so that every slot has work, or more: there are MAX_SHARDS
    at most."""
    size = fixed or min(usual_size(rates), -(-shots // slots))
    return max(1, size, -(-shots // MAX_SHARDS))


def most_shots(wave: int, shots: int, size: int, slots: int) -> int:
    """How many of `shots` a wave takes on, in full shards of `size`: all, if these are MAX_SHARDS at most.

    Else the first wave has a shard for each slot, so that its images are shown soon, and each further one WAVE_GROWTH
    times as many, up to MAX_SHARDS.
    """
    if shots <= MAX_SHARDS * size:
        return shots
    return min(MAX_SHARDS, slots * WAVE_GROWTH ** (wave - 1)) * size


def finished_steps(
    stages: Sequence[Stage], shots: Sequence[Shot], recipe: Recipe, ledger: Ledger
) -> dict[str, list[ShotStep]]:
    """SKU → all steps of its shot, where `run_stage` would find every one of them; other shots are left out."""
    known: dict[str, dict[str, Step]] = {shot.sku: {} for shot in shots}
    used: dict[str, list[ShotStep]] = {shot.sku: [] for shot in shots}
    for stage in stages:
        walking = [shot for shot in shots if shot.sku in used and is_ready(stage, known[shot.sku])]
        for sku, (tried, complete) in finished_candidates(stage, walking, known, recipe, ledger).items():
            if complete:
                known[sku][stage.name] = choose(stage, tried, recipe)
                used[sku] += with_choice(stage, [ShotStep(step, reused=True) for step in tried], recipe)
            else:
                del used[sku]
    return used


def finished_candidates(
    stage: Stage, shots: Sequence[Shot], known: Mapping[str, Mapping[str, Step]], recipe: Recipe, ledger: Ledger
) -> dict[str, tuple[list[Step], bool]]:
    """SKU → finished candidates, and whether they are all that the stage would try."""
    tried: dict[str, list[Step]] = {shot.sku: [] for shot in shots}
    searching, cut_short = list(shots), set()
    for candidate in range(stage.candidates(recipe)):
        jobs, found = find_steps(
            stage, [(shot, stage.job(shot, known[shot.sku], recipe, candidate)) for shot in searching], recipe, ledger
        )
        for shot, job in jobs:
            if job.key in found:
                tried[shot.sku].append(found[job.key])
            else:
                cut_short.add(shot.sku)
        searching = [s for s in searching if s.sku not in cut_short and not is_settled(stage, tried[s.sku][-1], recipe)]
        if not searching:
            break
    return {sku: (steps, sku not in cut_short) for sku, steps in tried.items()}
