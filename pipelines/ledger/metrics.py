"""Metrics of the whole ledger for a monitoring system: eight queries, whatever the number of runs.

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
class ImageSeconds:
    """Runs of a scene that began in the last 14 days and ended: their seconds of computing, and the images that they
    published first."""

    scene: str
    seconds: float
    images: int


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
    image_seconds: Sequence[ImageSeconds]
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
            image_seconds=[ImageSeconds(*row) for row in _rows(connection, _MADE)],
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

# Every finished inspection of the last day counts, and of each shot with a failed check the one that held it is looked
# up. `OFFSET 0` has Postgres read the shots of these runs alone.
_CHECKED = """
WITH fresh AS MATERIALIZED (
    SELECT key, run FROM steps
    WHERE stage = 'inspect' AND state = 'done' AND created_at > now() - interval '1 day'
), of_run AS MATERIALIZED (
    SELECT run, count(*) AS inspected FROM fresh GROUP BY run
), failing AS MATERIALIZED (
    SELECT rs.* FROM of_run CROSS JOIN LATERAL (
        SELECT run, shot, checks FROM run_shots WHERE run = of_run.run AND checks <> '{}' OFFSET 0) rs
), held AS MATERIALIZED (
    SELECT failing.run, failing.checks FROM failing CROSS JOIN LATERAL (
        SELECT u.key FROM run_steps u
        WHERE u.run = failing.run AND u.shot = failing.shot AND u.stage = 'inspect' AND u.chosen AND NOT u.reused
        LIMIT 1) used
    WHERE used.key IN (SELECT key FROM fresh)
), of_scene AS (
    SELECT r.scene, CAST(sum(inspected) AS bigint) AS inspected FROM of_run JOIN runs r ON r.id = run GROUP BY r.scene
), held_by AS (
    SELECT r.scene, name, count(*) AS held
    FROM (SELECT run, '' AS name FROM held UNION ALL SELECT run, unnest(checks) FROM held) named
    JOIN runs r ON r.id = named.run GROUP BY r.scene, name
)
SELECT scene, '', inspected, coalesce((SELECT held FROM held_by h WHERE h.scene = of_scene.scene AND h.name = ''), 0)
FROM of_scene
UNION ALL
SELECT scene, name, inspected, held FROM held_by JOIN of_scene USING (scene) WHERE name <> ''
"""

_WORK = """
SELECT stage, state, count(*), sum(seconds), max(created_at) FROM steps
WHERE stage = ANY(:stages) AND created_at > now() - interval '1 day' GROUP BY stage, state
"""

# The totals of a run are in its row. Without images there is nothing that the seconds were spent on.
_MADE = """
SELECT scene, sum(seconds) AS seconds, CAST(sum(images) AS bigint) AS images
FROM (
    SELECT scene, coalesce(CAST(totals ->> 'images' AS int), 0) AS images,
           coalesce((SELECT sum(CAST(value ->> 2 AS double precision)) FROM jsonb_each(totals -> 'stages')), 0)
               AS seconds
    FROM runs WHERE totals IS NOT NULL AND started_at > now() - interval '14 days'
) ended
GROUP BY scene HAVING sum(images) > 0
"""

_RUNS = """
SELECT dag_id, state, dag_id = 'catalog_refresh' AND triggered_by = :scheduled, count(*), min(started_at),
       max(finished_at)
FROM runs GROUP BY 1, 2, 3
"""
