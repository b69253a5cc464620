"""Metrics of the whole ledger for a monitoring system: seven queries, whatever the number of runs.

What concerns the work of the last day is found by the index on the steps' times. Only the images' states need every
row of `run_shots`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Engine, Row, text

from pipelines.contracts import STAGES
from pipelines.ledger.spot_checks import FalsePasses, false_passes

LIMIT_SECONDS = 30
"""A query that takes longer is ended: the next one would wait behind it."""

SCHEDULED = "scheduled"
"""`runs.triggered_by` of a nightly run: Airflow's run type, as nobody is named."""


@dataclass(frozen=True, slots=True)
class Images:
    """Shots by the state that the last run which settled them left them in."""

    scene: str
    channel: str
    state: str
    count: int


@dataclass(frozen=True, slots=True)
class Queue:
    """Held images that wait for a person: their number, and since when the oldest waits (None if there is none)."""

    images: int
    since: datetime | None


@dataclass(frozen=True, slots=True)
class Checked:
    """Shots that were inspected in the last day, and how many of them a check held. `check` "" means any check; a check
    that held none is not there."""

    scene: str
    check: str
    inspected: int
    held: int


@dataclass(frozen=True, slots=True)
class Work:
    """Steps of a stage that were computed in the last day. `newest` is when the last one ended."""

    stage: str
    state: str
    steps: int
    seconds: float
    newest: datetime


@dataclass(frozen=True, slots=True)
class Runs:
    """Runs of a DAG in one state. `oldest` is when the first began, `ended` when the last ended."""

    dag_id: str
    state: str
    nightly: bool
    count: int
    oldest: datetime
    ended: datetime | None


@dataclass(frozen=True, slots=True)
class LedgerMetrics:
    """Everything that is measured in the ledger."""

    images: Sequence[Images]
    queue: Queue
    checked: Sequence[Checked]
    work: Sequence[Work]
    runs: Sequence[Runs]
    false_passes: Sequence[FalsePasses]
    bytes: int


def read_metrics(engine: Engine) -> LedgerMetrics:
    """Reads everything as of now, in one transaction."""
    with engine.connect() as connection, connection.begin():
        connection.execute(text(f"SET LOCAL statement_timeout = '{LIMIT_SECONDS}s'; SET LOCAL work_mem = '64MB'"))
        return LedgerMetrics(
            images=[Images(*row) for row in _rows(connection, _IMAGES)],
            queue=Queue(*connection.execute(text(_QUEUE)).one()),
            checked=[Checked(*row) for row in _rows(connection, _CHECKED)],
            work=[Work(*row) for row in _rows(connection, _WORK, stages=list(STAGES))],
            runs=[Runs(*row) for row in _rows(connection, _RUNS, scheduled=SCHEDULED)],
            false_passes=false_passes(connection),
            bytes=connection.scalar(text("SELECT pg_database_size(current_database())")) or 0,
        )


def _rows(connection: Connection, statement: str, **values: Any) -> Sequence[Row[Any]]:
    return connection.execute(text(statement), values).all()


_CODE = "CASE rs.state WHEN 'published' THEN 1 WHEN 'held' THEN 2 WHEN 'rejected' THEN 3 WHEN 'failed' THEN 4 END"

# The last run of each shot is a maximum over (number of the run, state) in one integer: hashing a million of them is
# several times faster than sorting them.
_IMAGES = f"""
WITH numbered AS (
    SELECT id, scene, channel, row_number() OVER (ORDER BY started_at, id) AS n FROM runs
), latest AS (
    SELECT max(r.n * 8 + {_CODE}) AS n_code FROM run_shots rs JOIN numbered r ON r.id = rs.run GROUP BY rs.shot
), counted AS (
    SELECT n_code, count(*) AS images FROM latest GROUP BY n_code
)
SELECT r.scene, r.channel, (ARRAY['published', 'held', 'rejected', 'failed'])[n_code % 8] AS state, sum(images)::bigint
FROM counted JOIN numbered r ON r.n = n_code / 8
GROUP BY r.scene, r.channel, state
"""  # noqa: S608  # no value from outside

_QUEUE = """
SELECT count(*), min(coalesce(r.finished_at, r.started_at)) FROM review_queue q JOIN runs r ON r.id = q.run
WHERE NOT q.spot
"""

# Naming the runs keeps Postgres from reading the uses of all runs that there ever were.
_CHECKED = """
WITH fresh AS MATERIALIZED (
    SELECT key, run FROM steps
    WHERE stage = 'inspect' AND state = 'done' AND created_at > now() - interval '1 day'
), inspected AS (
    SELECT u.run, u.shot FROM fresh JOIN run_steps u USING (key)
    WHERE u.run = ANY(ARRAY(SELECT DISTINCT run FROM fresh)) AND u.stage = 'inspect' AND u.chosen AND NOT u.reused
), of_scene AS MATERIALIZED (
    SELECT r.scene, rs.checks FROM inspected i JOIN run_shots rs ON rs.run = i.run AND rs.shot = i.shot
    JOIN runs r ON r.id = rs.run
)
SELECT scene, '', count(*), count(*) FILTER (WHERE checks <> '{}') FROM of_scene GROUP BY scene
UNION ALL
SELECT scene, name, (SELECT count(*) FROM of_scene every WHERE every.scene = held.scene), count(*)
FROM of_scene held, unnest(checks) AS name GROUP BY scene, name
"""

_WORK = """
SELECT stage, state, count(*), sum(seconds), max(created_at) FROM steps
WHERE stage = ANY(:stages) AND created_at > now() - interval '1 day' GROUP BY stage, state
"""

_RUNS = """
SELECT dag_id, state, dag_id = 'catalog_refresh' AND triggered_by = :scheduled, count(*), min(started_at),
       max(finished_at)
FROM runs GROUP BY 1, 2, 3
"""
