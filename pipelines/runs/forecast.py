"""The cost of a run before it starts: the keys of its steps are made and looked up; nothing is computed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pipelines.contracts import Job, Ledger, Shot, Step
from pipelines.workflow import Recipe, Stage, choose, is_ready, is_settled


@dataclass(frozen=True, slots=True)
class Forecast:
    """Shots of the run, their finished steps, and seconds to compute the rest on one worker.

    A shot counts once in a stage's `computed_by_stage`, for any number of candidates: rates are measured in the same
    way. `unmeasured` names stages without a measured rate; `seconds_expected` omits them.
    """

    shots: int
    reused: int
    seconds_expected: float
    reused_by_stage: Mapping[str, int]
    computed_by_stage: Mapping[str, int]
    unmeasured: tuple[str, ...]


def forecast(
    stages: Sequence[Stage],
    shots: Sequence[Shot],
    recipe: Recipe,
    ledger: Ledger,
    rates: Mapping[str, float],
) -> Forecast:
    """Follows the shots through the stages as `run_stage` would, along finished steps.

    After a shot's first missing step all later steps count as missing, because their keys are not known yet. A shot
    costs nothing after a finished step that was rejected or has a failed verdict.
    """
    known: dict[str, dict[str, Step]] = {shot.sku: {} for shot in shots}
    walking, missing = list(shots), 0
    reused: Counter[str] = Counter()
    computed: Counter[str] = Counter()
    for stage in stages:
        walking = [shot for shot in walking if is_ready(stage, known[shot.sku])]
        tried = _finished(stage, walking, known, recipe, ledger)
        reused[stage.name] = sum(len(steps) for steps, _ in tried.values())
        for shot in walking:
            steps, complete = tried[shot.sku]
            if complete:
                known[shot.sku][stage.name] = choose(stage, steps, recipe)
        incomplete = [shot for shot in walking if not tried[shot.sku][1]]
        missing += len(incomplete)
        computed[stage.name] = missing
        walking = [shot for shot in walking if tried[shot.sku][1] and _passed(known[shot.sku][stage.name])]
    return Forecast(
        shots=len(shots),
        reused=reused.total(),
        seconds_expected=round(sum(count * rates.get(name, 0.0) for name, count in computed.items()), 1),
        reused_by_stage=dict(reused),
        computed_by_stage=dict(computed),
        unmeasured=tuple(name for name, count in computed.items() if count and name not in rates),
    )


def _passed(step: Step) -> bool:
    return all(verdict.passed for verdict in step.verdicts)


def _finished(
    stage: Stage, shots: Sequence[Shot], known: Mapping[str, Mapping[str, Step]], recipe: Recipe, ledger: Ledger
) -> dict[str, tuple[list[Step], bool]]:
    """SKU → finished candidates, and whether they are all that the stage would try."""
    tried: dict[str, list[Step]] = {shot.sku: [] for shot in shots}
    searching, cut_short = list(shots), set()
    for candidate in range(stage.candidates(recipe)):
        jobs: dict[str, Job] = {s.sku: stage.job(s, known[s.sku], recipe, candidate) for s in searching}
        found = ledger.find([job.key for job in jobs.values()])
        for sku, job in jobs.items():
            if job.key in found:
                tried[sku].append(found[job.key])
            else:
                cut_short.add(sku)
        searching = [s for s in searching if s.sku not in cut_short and not is_settled(stage, tried[s.sku][-1], recipe)]
        if not searching:
            break
    return {sku: (steps, sku not in cut_short) for sku, steps in tried.items()}
