"""One shot of one run as the pages show it: its pictures in order, its verdicts, its candidates."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, text

from pipelines.contracts import STAGES, State, Step, Verdict
from pipelines.ledger.rows import read_steps

WALK = (("cutout", "cutout"), ("generate", "raw"), ("upscale", "final"))
"""Stage and role of the pictures after the photo, in the order they are shown."""


@dataclass(frozen=True, slots=True)
class Picture:
    """One picture of a shot's walk. `digest` is None where the shot did not come so far."""

    label: str
    digest: str | None
    note: str = ""


@dataclass(frozen=True, slots=True)
class VerdictView:
    """One check. `where` is the digest of the picture that shows where it failed, or None."""

    check: str
    score: str
    threshold: str
    passed: bool
    reason: str
    where: str | None


@dataclass(frozen=True, slots=True)
class Candidate:
    """One seed that was tried: how much it grew the product (E+, a share of its area), and its raw picture."""

    seed: int | None
    e_plus: float | None
    chosen: bool
    raw: str | None


@dataclass(frozen=True, slots=True)
class StepView:
    """One chosen step. `models` are `name@revision`, `parameters` is JSON to read."""

    stage: str
    version: int
    key: str
    seed: int | None
    seconds: float
    device: str
    models: tuple[str, ...]
    parameters: str


@dataclass(frozen=True, slots=True)
class Walk:
    """What a run made of a shot."""

    pictures: tuple[Picture, ...]
    verdicts: tuple[VerdictView, ...]
    candidates: tuple[Candidate, ...]
    caption: str
    prompt: str
    seconds: float
    published: str | None
    steps: tuple[StepView, ...]


def read_walks(connection: Connection, photos: Mapping[tuple[str, int], str | None]) -> dict[tuple[str, int], Walk]:
    """Walks by run and shot number, in six queries; `photos` has the photo of each."""
    pairs = {"runs": [run for run, _ in photos], "shots": [shot for _, shot in photos]}
    used = connection.execute(text(_USED), pairs).all()
    steps = read_steps(connection, sorted({row.key for row in used}), tuple(State))
    chosen: dict[tuple[str, int], dict[str, Step]] = defaultdict(dict)
    tried: dict[tuple[str, int], list[tuple[Step, bool]]] = defaultdict(list)
    for row in used:
        step = steps[row.key]
        if row.chosen:
            chosen[row.run, row.shot][row.stage] = step
        if row.stage == "generate":
            tried[row.run, row.shot].append((step, row.chosen))
    return {pair: _walk(photo, chosen.get(pair, {}), tried.get(pair, [])) for pair, photo in photos.items()}


def _walk(photo: str | None, steps: Mapping[str, Step], tried: Sequence[tuple[Step, bool]]) -> Walk:
    described, generated = steps.get("describe"), steps.get("generate")
    ordered = [steps[stage] for stage in STAGES if stage in steps]
    return Walk(
        pictures=(Picture("photo", photo), *(_picture(steps, *part) for part in WALK)),
        verdicts=tuple(_verdict(step, verdict) for step in ordered for verdict in step.verdicts),
        candidates=tuple(
            Candidate(step.job.seed, step.facts.get("e_plus"), is_chosen, _output(step, "raw"))
            for step, is_chosen in sorted(tried, key=lambda one: not one[1])
        ),
        caption=_sure_caption(described) if described else "",
        prompt=generated.job.parameters.get("prompt", "") if generated else "",
        seconds=sum(step.seconds for step in steps.values()),
        published=_output(steps.get("publish"), "published"),
        steps=tuple(_step(step) for step in ordered),
    )


def _sure_caption(described: Step) -> str:
    """What BLIP says of the product; "" where it is less sure than its profile asks for."""
    sure = described.facts.get("confidence", 0) >= described.job.parameters.get("caption_confidence", 1)
    return described.facts.get("caption", "") if sure else ""


def _picture(steps: Mapping[str, Step], stage: str, role: str) -> Picture:
    step = steps.get(stage)
    if step is None:
        return Picture(role, None)
    note = f"{step.seconds:.1f} s"
    if step.job.is_by_hand:
        note = f"drawn by {step.facts.get('by', 'a person')}"
    if stage == "generate" and step.job.seed is not None:
        note += f" · seed {step.job.seed}"
    return Picture(role, _output(step, role), note)


def _step(step: Step) -> StepView:
    return StepView(
        stage=step.job.stage,
        version=step.job.version,
        key=step.key,
        seed=step.job.seed,
        seconds=step.seconds,
        device=step.device,
        models=tuple(f"{model.name}@{model.revision}" for model in step.job.models),
        parameters=json.dumps(step.job.parameters, indent=1, ensure_ascii=False, sort_keys=True),
    )


def _verdict(step: Step, verdict: Verdict) -> VerdictView:
    return VerdictView(
        check=verdict.check,
        score=f"{verdict.score:.3g}",
        threshold=f"{verdict.threshold:.3g}",
        passed=verdict.passed,
        reason=verdict.reason,
        where=_output(step, verdict.picture) if verdict.picture else None,
    )


def _output(step: Step | None, role: str) -> str | None:
    if step is None or step.state is not State.DONE:
        return None
    return next((artifact.sha256 for artifact in step.outputs if artifact.role == role), None)


_USED = """
SELECT u.run, u.shot, u.key, u.stage, u.chosen
FROM unnest(CAST(:runs AS text[]), CAST(:shots AS bigint[])) AS wanted (run, shot)
JOIN run_steps u ON u.run = wanted.run AND u.shot = wanted.shot
ORDER BY u.run, u.shot, u.key
"""
