"""The end of a run that its own last task does not close: what failed, closing it, and whether people were notified.

`summary` closes a run in the ledger (`PostgresLedger.finish_run`). It does not run where Airflow ends the run: by its
time limit, by a person, or with its worker. `pipelines.services.watch` finds such runs and closes them from here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Engine, and_, func, or_, select, text, update
from sqlalchemy.dialects.postgresql import insert

from pipelines.ledger import outcomes
from pipelines.ledger.schema import runs

NOTIFY_WITHIN = "1 day"
"""No more attempts after so long."""

_NOT_NOTIFIED = or_(runs.c.notified_at.is_(None), runs.c.notified_at < runs.c.finished_at)


@dataclass(frozen=True, slots=True)
class OpenRun:
    """A run that is `running` in the ledger, or `failed` and not notified. `reason` is "" if none is known."""

    run: str
    dag_id: str
    scene: str
    state: str
    reason: str


def note_failure(engine: Engine, run: str, dag_id: str, reason: str, params: Mapping[str, Any]) -> None:
    """Keeps why a task of the run failed, and opens the run if `plan` could not. The first failure is kept: it may be
    the cause of the others. A run that is closed keeps what it has."""
    with engine.begin() as connection:
        _open(connection, run, dag_id, params)
        connection.execute(
            update(runs)
            .where(runs.c.id == run, runs.c.state == "running", runs.c.problem.is_(None))
            .values(problem={"reason": reason})
        )


def open_unplanned(engine: Engine, run: str, dag_id: str) -> None:
    """Opens a run of which the ledger knows nothing, because it ended before `plan` opened it."""
    with engine.begin() as connection:
        _open(connection, run, dag_id, {})


def _open(connection: Connection, run: str, dag_id: str, params: Mapping[str, Any]) -> None:
    scene = str(params.get("scene") or "")
    row = {"id": run, "dag_id": dag_id, "scene": scene, "channel": "", "params": dict(params), "state": "running"}
    connection.execute(insert(runs).values(row).on_conflict_do_nothing())


def open_runs(engine: Engine) -> list[OpenRun]:
    """Runs that are to be closed or notified, the oldest first."""
    recent = runs.c.finished_at > func.now() - text(f"interval '{NOTIFY_WITHIN}'")
    statement = (
        select(runs.c.id, runs.c.dag_id, runs.c.scene, runs.c.state, runs.c.problem["reason"].astext.label("reason"))
        .where(or_(runs.c.state == "running", and_(runs.c.state == "failed", _NOT_NOTIFIED, recent)))
        .order_by(runs.c.started_at)
    )
    with engine.connect() as connection:
        return [OpenRun(r.id, r.dag_id, r.scene, r.state, r.reason or "") for r in connection.execute(statement)]


def unknown_runs(engine: Engine, ids: Sequence[str]) -> set[str]:
    """Those of `ids` that the ledger does not know."""
    with engine.connect() as connection:
        return set(ids) - set(connection.scalars(select(runs.c.id).where(runs.c.id.in_(ids))))


def end_run(engine: Engine, run: str, state: str, reason: str) -> bool:
    """Closes a run that Airflow ended, as `success` or `failed`, or that a person `cancelled`, of which nobody is
    notified. Returns False if it was closed in the meantime.

    Shots that are neither held, rejected nor published end as failed.
    """
    with engine.begin() as connection:
        closed = connection.execute(
            update(runs)
            .where(runs.c.id == run, runs.c.state == "running")
            .values(state=state, finished_at=func.now(), problem={"reason": reason} if reason else runs.c.problem)
            .returning(runs.c.id)
        ).first()
        if closed is not None:
            outcomes.settle(connection, run)
            outcomes.close(connection, run, None)
            outcomes.settle_shots(connection, run)
            outcomes.remember_totals(connection, run)
    return closed is not None


def reopen_run(engine: Engine, run: str, since: datetime) -> None:
    """Opens a run that Airflow began again at `since`, for instance because a task was cleared."""
    with engine.begin() as connection:
        connection.execute(
            update(runs)
            .where(runs.c.id == run, runs.c.finished_at < since)
            .values(state="running", finished_at=None, problem=None, totals=None)
        )


@contextmanager
def notifying(engine: Engine, run: str) -> Iterator[bool]:
    """Whether this process is the one to notify people. If the block raises nothing, they count as notified."""
    statement = select(runs.c.id).where(runs.c.id == run, runs.c.state == "failed", _NOT_NOTIFIED)
    with engine.begin() as connection:
        mine = connection.execute(statement.with_for_update(skip_locked=True)).first() is not None
        yield mine
        if mine:
            connection.execute(update(runs).where(runs.c.id == run).values(notified_at=func.clock_timestamp()))
