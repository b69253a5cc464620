"""The cost of a run before it starts: the keys of its steps are made and looked up; nothing is computed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from more_itertools import chunked

from pipelines.contracts import Ledger, Shot, Step
from pipelines.runs.planning import finished_candidates
from pipelines.stages.keys import made_up_results
from pipelines.workflow import Recipe, Stage, choose, is_ready

CHUNK = 1000
"""Shots that are followed at once."""


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


@dataclass(frozen=True, slots=True)
class Part:
    """The shots of one channel, with the recipe for it."""

    recipe: Recipe
    shots: Iterable[Shot]


def forecast(stages: Sequence[Stage], parts: Sequence[Part], ledger: Ledger, rates: Mapping[str, float]) -> Forecast:
    """Follows the shots of all channels through the stages as `run_stage` would, along finished steps.

    After a shot's first missing step all later steps count as missing, because their keys are not known yet. A shot
    costs nothing after a finished step that was rejected or has a failed verdict. What a stage makes for one channel
    counts as reused for a later one, if the same steps serve both.
    """
    count = 0
    reused: Counter[str] = Counter()
    computed: Counter[str] = Counter()
    made: set[str] = set()
    for part in parts:
        missing: Counter[str] = Counter()
        for some in chunked(part.shots, CHUNK):
            count += len(some)
            _follow(stages, some, part.recipe, ledger, reused, missing)
        results = made_up_results(part.recipe) if len(parts) > 1 else {}
        shared = {name for name, result in results.items() if result in made}
        made |= set(results.values())
        for name, lacking in missing.items():
            (reused if name in shared else computed)[name] += lacking
    return Forecast(
        shots=count,
        reused=reused.total(),
        seconds_expected=round(sum(count * rates.get(name, 0.0) for name, count in computed.items()), 1),
        reused_by_stage=dict(reused),
        computed_by_stage=dict(computed),
        unmeasured=tuple(name for name, count in computed.items() if count and name not in rates),
    )


def _follow(
    stages: Sequence[Stage],
    shots: Sequence[Shot],
    recipe: Recipe,
    ledger: Ledger,
    reused: Counter[str],
    lacking: Counter[str],
) -> None:
    """Adds what these shots reuse and what is missing for them, by stage."""
    known: dict[str, dict[str, Step]] = {shot.sku: {} for shot in shots}
    walking, missing = list(shots), 0
    for stage in stages:
        walking = [shot for shot in walking if is_ready(stage, known[shot.sku])]
        tried = finished_candidates(stage, walking, known, recipe, ledger)
        reused[stage.name] += sum(len(steps) for steps, _ in tried.values())
        for shot in walking:
            steps, complete = tried[shot.sku]
            if complete:
                known[shot.sku][stage.name] = choose(stage, steps, recipe)
        missing += sum(not complete for _, complete in tried.values())
        lacking[stage.name] += missing
        walking = [shot for shot in walking if tried[shot.sku][1] and _passed(known[shot.sku][stage.name])]


def _passed(step: Step) -> bool:
    return all(verdict.passed for verdict in step.verdicts)
