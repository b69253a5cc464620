"""What people ask the ledger: what became of a run's products, and where an image came from.

Read models: every number is one grouped query, nothing here writes.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, case, func, or_, select, text

from pipelines.contracts import STAGES, ModelRef, Product, ShotState, State, Step
from pipelines.errors import UsageError
from pipelines.ledger import outcomes
from pipelines.ledger.rows import product_of, read_steps, shots_of_runs
from pipelines.ledger.schema import (
    product_versions,
    publications,
    run_artifacts,
    run_shots,
    run_steps,
    runs,
    shots,
    step_outputs,
    steps,
)
from pipelines.ledger.waves import wave_of
from pipelines.store import DIGEST

LATEST = "latest_run"
"""File below the state folder with the id of the last run that was triggered from here."""

COMMAND = "packshot run"
"""`runs.triggered_by` of the runs that `latest` means."""


@dataclass(frozen=True, slots=True)
class RunRow:
    """One run as a list shows it. `shots` is how many it selected."""

    run: str
    dag_id: str
    scene: str
    channel: str
    state: str
    started_at: datetime
    finished_at: datetime | None
    shots: int


@dataclass(frozen=True, slots=True)
class ReportedShot:
    """The outcome of one photo of a catalogue row. `product` is the row's SKU and `photo_number` the photo's place: the
    main one is 1, and `sku` is then the row's."""

    sku: str
    row: int
    state: ShotState
    reason: str
    product: str
    photo_number: int


@dataclass(frozen=True, slots=True)
class StageCount:
    """Steps of a stage that the run computed, and finished steps that it reused."""

    computed: int = 0
    reused: int = 0


@dataclass(frozen=True, slots=True)
class ChannelRun:
    """One of several runs that one start made, each for a channel."""

    channel: str
    run: str
    state: str


@dataclass(frozen=True, slots=True)
class Report:
    """The outcome of every product of a run. The five counts sum to `products`; `pending` is 0 after the run's end.

    `seconds` are per stage, of computed steps. `problem` says what stopped publication: a `reason` and, for a failed
    expectation, its rows. `documents` maps the role of a document of the run to its digest. `group` is the common word
    of the runs that one start made for several channels, and `channels` are those; "" and () of a run that is alone.
    `put_off` are shots that wait for the next wave (`pipelines.ledger.waves`); `products` does not count those of them
    that are new.
    """

    run: str
    dag_id: str
    scene: str
    channel: str
    group: str
    channels: tuple[ChannelRun, ...]
    state: str
    products: int
    published: int
    held: int
    rejected: int
    failed: int
    pending: int
    put_off: int
    shots: tuple[ReportedShot, ...]
    steps: Mapping[str, StageCount]
    seconds: Mapping[str, float]
    problem: Mapping[str, Any] | None
    documents: Mapping[str, str]
    params: Mapping[str, Any]
    started_at: datetime
    finished_at: datetime | None

    def to_json(self) -> dict[str, Any]:
        """The document of `packshot report --json`."""
        return {
            **asdict(self),
            "shots": [{**asdict(shot), "state": shot.state.value} for shot in self.shots],
            "started_at": self.started_at.isoformat(),
            "finished_at": self.finished_at and self.finished_at.isoformat(),
        }


@dataclass(frozen=True, slots=True)
class LineageStep:
    """One step on the way to an image. `inputs` and `outputs` map a role to a digest."""

    stage: str
    version: int
    key: str
    state: State
    parameters: Mapping[str, Any]
    seed: int | None
    attempt: str
    models: tuple[ModelRef, ...]
    inputs: Mapping[str, str]
    outputs: Mapping[str, str]
    seconds: float
    device: str


@dataclass(frozen=True, slots=True)
class Lineage:
    """The origin of an artifact. `photo` is the photo's digest, or None."""

    sku: str
    scene: str
    channel: str
    run: str
    artifact: str
    photo: str | None
    published_at: datetime | None
    steps: tuple[LineageStep, ...]

    def to_json(self) -> dict[str, Any]:
        """The document of `packshot lineage --json`."""
        return {
            **asdict(self),
            "artifact": {"sha256": self.artifact},
            "photo": {"sha256": self.photo},
            "published_at": self.published_at and self.published_at.isoformat(),
            "steps": [asdict(step) | {"models": [asdict(model) for model in step.models]} for step in self.steps],
        }


def list_runs(engine: Engine, limit: int = 50, offset: int = 0) -> list[RunRow]:
    """`limit` runs, newest first, without the `offset` newest."""
    statement = select(runs).order_by(runs.c.started_at.desc()).limit(limit).offset(offset)
    with engine.connect() as connection:
        return [
            RunRow(r.id, r.dag_id, r.scene, r.channel, r.state, r.started_at, r.finished_at, r.selected)
            for r in connection.execute(statement)
        ]


def remember_latest(state_dir: Path, run: str) -> None:
    """Records the run that `packshot run` triggered. The ledger does not know it until it is planned."""
    state_dir.mkdir(parents=True, exist_ok=True)
    (state_dir / LATEST).write_text(run, "utf-8")


def latest_run(engine: Engine, state_dir: Path) -> str:
    """Id of the last run that `packshot run` triggered: the one recorded in `state_dir`, else the ledger's last.

    Raises UsageError if there is none, or if the recorded run is not planned yet.
    """
    note = state_dir / LATEST
    if note.exists():
        run = note.read_text("utf-8")
        if not is_planned(engine, run):
            raise UsageError(
                f"the latest run, {run}, is not planned yet: wait a little, or see in Airflow how `plan` fares"
            )
        return run
    statement = select(runs.c.id).where(runs.c.triggered_by == COMMAND).order_by(runs.c.started_at.desc()).limit(1)
    with engine.connect() as connection:
        found = connection.scalar(statement)
    if found is None:
        raise UsageError("there is no latest run: start one with `packshot run CATALOG --scene SCENE`")
    return found


def is_planned(engine: Engine, run: str) -> bool:
    """Whether the ledger knows the run: before that there is nothing to report."""
    with engine.connect() as connection:
        return connection.scalar(select(runs.c.id).where(runs.c.id == run)) is not None


def feed_for(engine: Engine, run: str) -> str:
    """The feed of a run that names none: a manifest's digest, a path or an address; "" if there is none.

    A run that was planned before keeps its manifest. Another run takes the feed that was named last and could be read,
    and reads an address again. A manifest of `packshot run --limit` does not count: it has only a part of the products.
    Neither does that of a run for a further channel, which nobody named.
    """
    own = select(runs.c.feed).where(runs.c.id == run)
    named, limit = func.btrim(runs.c.params["feed"].astext, " \t\r\n"), runs.c.params["limit"].astext
    last = (
        select(named)
        .where(named != "", runs.c.feed != "", or_(limit.is_(None), ~named.regexp_match("^[0-9a-f]{64}$")))
        .where(runs.c.params["group"].astext.is_(None))
        .order_by(runs.c.started_at.desc())
        .limit(1)
    )
    with engine.connect() as connection:
        return connection.scalar(own) or connection.scalar(last) or ""


def run_params(engine: Engine, run: str) -> Mapping[str, Any]:
    """The parameters that `run` was started with. Raises UsageError for an unknown run."""
    with engine.connect() as connection:
        row = connection.execute(select(runs.c.params).where(runs.c.id == run)).first()
    if row is None:
        raise UsageError(f"no run {run!r} in the ledger")
    return row.params


def first_of_group(engine: Engine, run: str) -> str:
    """Of runs that one start made for several channels, the first one's id, which is their common word. `run` itself
    where it is the first, stands alone, or is unknown."""
    with engine.connect() as connection:
        return connection.scalar(select(runs.c.params["group"].astext).where(runs.c.id == run)) or run


def runs_of_group(connection: Connection, group: str) -> list[ChannelRun]:
    """The runs for several channels that have `group` as their common word, the first one first. One alone is none.

    A channel whose refresh goes in waves is listed once, with its first wave.
    """
    found = connection.execute(
        select(runs.c.id, runs.c.channel, runs.c.state)
        .where(or_(runs.c.id == group, runs.c.params["group"].astext == group))
        .order_by(runs.c.started_at, runs.c.id)
    ).all()
    first = [ChannelRun(row.channel, row.id, row.state) for row in found if wave_of(row.id) == 1 or row.id == group]
    return first if len(first) > 1 else []


def report(engine: Engine, run: str, with_shots: bool = True) -> Report:
    """The outcome of every product of `run`; `with_shots=False` counts them and lists none. Raises UsageError for an
    unknown run."""
    with engine.connect() as connection:
        about = connection.execute(select(runs).where(runs.c.id == run)).first()
        if about is None:
            raise UsageError(f"no run {run!r} in the ledger: `packshot run` and `packshot campaign` print their ids")
        states = dict(
            connection.execute(
                select(shots_of_runs.c.state, func.count())
                .where(shots_of_runs.c.run == run)
                .group_by(shots_of_runs.c.state)
            )
            .tuples()
            .all()
        )
        documents = connection.execute(
            select(run_artifacts.c.role, run_artifacts.c.digest)
            .where(run_artifacts.c.run == run)
            .order_by(run_artifacts.c.role)
        ).all()
        counts, seconds = stage_totals(connection, run, about.totals)
        group = about.params.get("group") or run
        channels = tuple(runs_of_group(connection, group))
    counted = {state: states.get(state, 0) for state in ShotState}
    return Report(
        run=run,
        dag_id=about.dag_id,
        scene=about.scene,
        channel=about.channel,
        group=group if channels else "",
        channels=channels,
        state=about.state,
        products=sum(states.values()),
        published=counted[ShotState.PUBLISHED],
        held=counted[ShotState.HELD],
        rejected=counted[ShotState.REJECTED],
        failed=counted[ShotState.FAILED],
        pending=counted[ShotState.PENDING],
        put_off=about.put_off,
        shots=reported_shots(engine, run) if with_shots else (),
        steps=counts,
        seconds=seconds,
        problem=about.problem,
        documents={row.role: row.digest for row in documents},
        params=about.params,
        started_at=about.started_at,
        finished_at=about.finished_at,
    )


def reported_shots(
    engine: Engine,
    run: str,
    states: Sequence[ShotState] = tuple(ShotState),
    limit: int | None = None,
    offset: int = 0,
    sku: str | None = None,
) -> tuple[ReportedShot, ...]:
    """The outcome of a run's products in feed order: of those in these states, of `limit` of them, or of one."""
    statement = (
        select(
            shots.c.sku,
            shots_of_runs.c.row,
            shots_of_runs.c.state,
            shots_of_runs.c.reason,
            func.coalesce(func.nullif(product_versions.c.photo_of, ""), shots.c.sku).label("product"),
            product_versions.c.photo_number,
        )
        .join_from(shots_of_runs, shots, shots_of_runs.c.shot == shots.c.id)
        .join(product_versions, product_versions.c.id == shots_of_runs.c.version)
        .where(shots_of_runs.c.run == run, shots_of_runs.c.state.in_(states))
        .order_by(shots_of_runs.c.row, text("product"), product_versions.c.photo_number, shots_of_runs.c.position)
        .limit(limit)
        .offset(offset)
    )
    if sku is not None:
        statement = statement.where(shots.c.sku == sku)
    with engine.connect() as connection:
        found = connection.execute(statement)
        return tuple(
            ReportedShot(row.sku, row.row, ShotState(row.state), row.reason, row.product, row.photo_number)
            for row in found
        )


def likenesses(engine: Engine, run: str) -> list[tuple[Product, str]]:
    """The run's products in order, each with the code of what its cutout shows; "" where it was not inspected."""
    code = (
        select(steps.c.facts["likeness"].astext)
        .join_from(run_steps, steps, run_steps.c.key == steps.c.key)
        .where(run_steps.c.run == shots_of_runs.c.made_by, run_steps.c.shot == shots_of_runs.c.shot)
        .where(run_steps.c.stage == "inspect", run_steps.c.chosen)
        .limit(1)
        .scalar_subquery()
    )
    statement = (
        select(product_versions, shots_of_runs.c.row, func.coalesce(code, "").label("likeness"))
        .join_from(shots_of_runs, product_versions, shots_of_runs.c.version == product_versions.c.id)
        .where(shots_of_runs.c.run == run)
        .order_by(shots_of_runs.c.row, shots_of_runs.c.position)
    )
    with engine.connect() as connection:
        return [(product_of(row), row.likeness) for row in connection.execute(statement)]


def stage_totals(
    connection: Connection, run: str, totals: Mapping[str, Any] | None
) -> tuple[dict[str, StageCount], dict[str, float]]:
    """Steps and seconds of every stage. A run that ended remembers them in its `totals`."""
    found = totals["stages"] if totals is not None else outcomes.stage_totals(connection, run)
    order = [*STAGES, *sorted(found.keys() - set(STAGES))]
    return (
        {s: StageCount(*found[s][:2]) if s in found else StageCount() for s in order},
        {s: round(found[s][2], 3) if s in found else 0.0 for s in order},
    )


# ---------------------------------------------------------------------- lineage


@dataclass(frozen=True, slots=True)
class _Origin:
    """A run's use of a step: where a lineage starts."""

    run: str
    shot: int
    key: str
    digest: str


def lineage(engine: Engine, sku_or_digest: str, scene: str | None = None) -> Lineage:
    """The origin of an artifact. A digest names the artifact. A SKU means its current image (the newest, or the one in
    `scene`), or else its last output.

    Raises UsageError if the ledger has neither a SKU nor an artifact of that name.
    """
    with engine.connect() as connection:
        origin = _origin_of_digest(connection, sku_or_digest) if DIGEST.fullmatch(sku_or_digest) else None
        origin = origin or _origin_of_sku(connection, sku_or_digest, scene)
        if origin is None:
            where = f" in scene {scene!r}" if scene else ""
            raise UsageError(f"nothing was ever made of {sku_or_digest!r}{where}: give a SKU, or an artifact's sha256")
        about = connection.execute(
            select(shots, product_versions.c.photo)
            .join_from(run_shots, shots, run_shots.c.shot == shots.c.id)
            .join(product_versions, run_shots.c.version == product_versions.c.id)
            .where(run_shots.c.run == origin.run, run_shots.c.shot == origin.shot)
        ).one()
        published_at = connection.scalar(
            select(publications.c.published_at)
            .where(publications.c.shot == origin.shot, publications.c.digest == origin.digest)
            .order_by(publications.c.id.desc())
            .limit(1)
        )
        way = _way_to(connection, origin)
    return Lineage(
        sku=about.sku,
        scene=about.scene,
        channel=about.channel,
        run=origin.run,
        artifact=origin.digest,
        photo=about.photo,
        published_at=published_at,
        steps=tuple(_lineage_step(step) for step in way),
    )


def _origin_of_digest(connection: Connection, digest: str) -> _Origin | None:
    """The use that made this artifact, rather than one that reused it; the earliest of those."""
    row = connection.execute(
        select(run_steps.c.run, run_steps.c.shot, run_steps.c.key)
        .join_from(run_steps, step_outputs, run_steps.c.key == step_outputs.c.key)
        .join(runs, run_steps.c.run == runs.c.id)
        .join(run_shots, (run_shots.c.run == run_steps.c.run) & (run_shots.c.shot == run_steps.c.shot))
        .where(step_outputs.c.digest == digest)
        .order_by(run_steps.c.reused, run_steps.c.chosen.desc(), runs.c.started_at)
        .limit(1)
    ).first()
    return _Origin(row.run, row.shot, row.key, digest) if row else None


def _origin_of_sku(connection: Connection, sku: str, scene: str | None) -> _Origin | None:
    """Its current publication, else the furthest output of the last run that had it."""
    current = publications.c.superseded_at.is_(None)
    ranks = case({name: rank for rank, name in enumerate(STAGES)}, value=run_steps.c.stage, else_=-1)
    statement = (
        select(run_steps.c.run, run_steps.c.shot, run_steps.c.key, step_outputs.c.digest)
        .join_from(run_steps, shots, run_steps.c.shot == shots.c.id)
        .join(step_outputs, run_steps.c.key == step_outputs.c.key)
        .join(runs, run_steps.c.run == runs.c.id)
        .join(run_shots, (run_shots.c.run == run_steps.c.run) & (run_shots.c.shot == run_steps.c.shot))
        .outerjoin(
            publications,
            (publications.c.shot == run_steps.c.shot)
            & (publications.c.digest == step_outputs.c.digest)
            & (publications.c.run == run_steps.c.run)
            & current,
        )
        .where(shots.c.sku == sku, run_steps.c.chosen)
        .order_by(
            publications.c.published_at.desc().nulls_last(),
            runs.c.started_at.desc(),
            ranks.desc(),
            step_outputs.c.position,
        )
        .limit(1)
    )
    if scene is not None:
        statement = statement.where(shots.c.scene == scene)
    row = connection.execute(statement).first()
    return _Origin(row.run, row.shot, row.key, row.digest) if row else None


def _way_to(connection: Connection, origin: _Origin) -> list[Step]:
    """The shot's chosen steps in that run before the stage that made the artifact, then the step that made it.

    They come from the run, not from digests: a description is no artifact, but its words are in the prompt.
    """
    rows = connection.execute(
        select(run_steps.c.key, run_steps.c.stage).where(
            run_steps.c.run == origin.run,
            run_steps.c.shot == origin.shot,
            or_(run_steps.c.chosen, run_steps.c.key == origin.key),
        )
    ).all()
    keys = defaultdict(list)
    for row in rows:
        keys[row.stage].append(row.key)
    last = next(row.stage for row in rows if row.key == origin.key)
    before = STAGES[: STAGES.index(last)] if last in STAGES else ()
    wanted = [key for stage in before for key in keys[stage]] + [origin.key]
    found = read_steps(connection, wanted, tuple(State))
    return [found[key] for key in wanted]


def _lineage_step(step: Step) -> LineageStep:
    return LineageStep(
        stage=step.job.stage,
        version=step.job.version,
        key=step.key,
        state=step.state,
        parameters=step.job.parameters,
        seed=step.job.seed,
        attempt=step.job.attempt,
        models=step.job.models,
        inputs=step.job.inputs,
        outputs={made.role: made.sha256 for made in step.outputs},
        seconds=step.seconds,
        device=step.device,
    )
