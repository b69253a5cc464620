"""What the pages show, read from the ledger: dataclasses that the templates need no logic for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import exists, or_, select

from packshot_console.services import ledger
from pipelines.contracts import Shot, State, Step
from pipelines.errors import UsageError
from pipelines.ledger.reports import Report, ReportedShot, RunRow, list_runs, report
from pipelines.ledger.schema import artifacts, product_versions

RUNS_SHOWN = 50
STATES = ("published", "held", "rejected", "failed", "pending")
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
class ShotView:
    """One shot's card."""

    sku: str
    row: int
    title: str
    category: str
    state: str
    reason: str
    caption: str
    prompt: str
    seconds: float
    pictures: tuple[Picture, ...]
    verdicts: tuple[VerdictView, ...]
    published: str | None


@dataclass(frozen=True, slots=True)
class RunView:
    """One run's page: `shots` are those of this page and state, `matching` how many there are of that state."""

    report: Report
    counts: Mapping[str, int]
    shots: tuple[ShotView, ...]
    state: str
    page: int
    pages: int
    matching: int


def runs() -> list[RunRow]:
    """The last runs, newest first."""
    return list_runs(ledger().engine, RUNS_SHOWN)


def run_page(run: str, state: str, page: int, size: int) -> RunView | None:
    """One page of a run's shots, of one state or ("") of all; None for a run that is not there."""
    try:
        found = report(ledger().engine, run)
    except UsageError:
        return None
    matching = [shot for shot in found.shots if state in ("", shot.state)]
    shown = {shot.sku: shot for shot in matching[(page - 1) * size : page * size]}
    shots = [shot for shot in ledger().shots(run) if shot.sku in shown]
    steps = ledger().chosen(run, shots)
    counts = Counter(shot.state.value for shot in found.shots)
    return RunView(
        report=found,
        counts={name: counts[name] for name in STATES if counts[name]},
        shots=tuple(_shot(shot, shown[shot.sku], steps.get(shot.sku, {})) for shot in shots),
        state=state,
        page=page,
        pages=max(1, -(-len(matching) // size)),
        matching=len(matching),
    )


def is_known(digest: str) -> bool:
    """Whether the ledger names these bytes: an artifact of a step, or a product's photo."""
    query = select(
        or_(
            exists().where(artifacts.c.digest == digest),
            exists().where(product_versions.c.photo == digest),
        )
    )
    with ledger().engine.connect() as connection:
        return bool(connection.scalar(query))


def media_type(digest: str) -> str | None:
    """Media type of an artifact as the step that made it said; None where no step did."""
    with ledger().engine.connect() as connection:
        return connection.scalar(select(artifacts.c.media_type).where(artifacts.c.digest == digest))


def _shot(shot: Shot, outcome: ReportedShot, steps: Mapping[str, Step]) -> ShotView:
    described, generated = _facts(steps, "describe"), steps.get("generate")
    return ShotView(
        sku=shot.sku,
        row=outcome.row,
        title=shot.product.title,
        category=shot.product.category,
        state=outcome.state.value,
        reason=outcome.reason,
        caption=described.get("caption", ""),
        prompt=generated.job.parameters.get("prompt", "") if generated else "",
        seconds=sum(step.seconds for step in steps.values()),
        pictures=(Picture("photo", shot.product.photo), *(_picture(steps, *part) for part in WALK)),
        verdicts=tuple(_verdicts(steps)),
        published=_output(steps.get("publish"), "published"),
    )


def _picture(steps: Mapping[str, Step], stage: str, role: str) -> Picture:
    step = steps.get(stage)
    if step is None:
        return Picture(role, None)
    note = f"{step.seconds:.1f} s"
    if stage == "generate" and step.job.seed is not None:
        note += f" · seed {step.job.seed}"
    return Picture(role, _output(step, role), note)


def _verdicts(steps: Mapping[str, Step]) -> Sequence[VerdictView]:
    return [
        VerdictView(
            check=verdict.check,
            score=f"{verdict.score:.3g}",
            threshold=f"{verdict.threshold:.3g}",
            passed=verdict.passed,
            reason=verdict.reason,
            where=_output(step, verdict.picture) if verdict.picture else None,
        )
        for step in steps.values()
        for verdict in step.verdicts
    ]


def _facts(steps: Mapping[str, Step], stage: str) -> Mapping[str, Any]:
    return steps[stage].facts if stage in steps else {}


def _output(step: Step | None, role: str) -> str | None:
    if step is None or step.state is not State.DONE:
        return None
    return next((artifact.sha256 for artifact in step.outputs if artifact.role == role), None)
