"""The overview: what needs a person now, what runs, what became of the last days, at one glance.

    GET /overview

What a run came to is in its row once it ended (`outcomes.remember_totals`), so no query looks at all shots.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta

from fastapi import APIRouter, Request, Response
from sqlalchemy import Connection, text

from packshot_console.pages import page
from packshot_console.plots import DayBar, IntervalRow, day_bars, interval_rows
from packshot_console.services import ledger
from pipelines.contracts import STAGES
from pipelines.ledger.spot_checks import false_passes
from pipelines.quality.intervals import wilson
from pipelines.runs.cost import cost
from pipelines.settings import get_settings

DAYS = 14
RATE_DAYS = 30
MAKING = tuple(stage for stage in STAGES if stage != "publish")
STATES = ("published", "held", "rejected", "failed")

router = APIRouter()


@dataclass(frozen=True, slots=True)
class Waiting:
    """What waits for a person or for what follows from their decisions. `oldest` is when the oldest image was held."""

    images: int
    spot_checks: int
    oldest: datetime | None
    approved: int
    retries: int
    failed_runs: tuple[str, ...]

    @property
    def hours(self) -> float:
        """Age of the oldest held image."""
        return (datetime.now(UTC) - self.oldest).total_seconds() / 3600 if self.oldest else 0.0


@dataclass(frozen=True, slots=True)
class StageProgress:
    """Shots that are through a stage, of those of its run."""

    stage: str
    done: int
    share: float


@dataclass(frozen=True, slots=True)
class Running:
    """A run in progress. `shots` are those that it works on, without unchanged ones. `left` is the time that is left in
    seconds at its rate so far; None at its very start."""

    run: str
    scene: str
    shots: int
    stages: tuple[StageProgress, ...]
    share: float
    left: float | None


@dataclass(frozen=True, slots=True)
class Overview:
    """The page. `seconds` are of computing for an image that was published first; None where there was none. `cost` is
    theirs, "" without a price."""

    waiting: Waiting
    running: tuple[Running, ...]
    days: tuple[DayBar, ...]
    totals: Mapping[str, int]
    rates: tuple[IntervalRow, ...]
    false_passes: tuple[IntervalRow, ...]
    seconds: float | None
    cost: str


@router.get("/overview")
def overview_page(request: Request) -> Response:
    """The page."""
    return page(request, "overview.html", view=overview(), days=DAYS, rate_days=RATE_DAYS)


def overview(now: datetime | None = None) -> Overview:
    """What the page shows, in seven queries."""
    now = now or datetime.now(UTC)
    with ledger().engine.connect() as connection:
        ended = connection.execute(text(_ENDED), {"since": now - timedelta(days=RATE_DAYS)}).all()
        by_day: dict[date, dict[str, int]] = defaultdict(lambda: dict.fromkeys(STATES, 0))
        images: dict[str, list[int]] = defaultdict(lambda: [0, 0])
        seconds, made = 0.0, 0
        for row in ended:
            images[row.scene][0] += row.overcompleted
            images[row.scene][1] += row.inspected
            if row.day > (now - timedelta(days=DAYS)).date():
                seconds, made = seconds + row.seconds, made + row.images
                for state in STATES:
                    by_day[row.day][state] += row.states.get(state, 0)
        for row in connection.execute(text(_STATES_NOW)):
            if row.state in STATES and row.day > (now - timedelta(days=DAYS)).date():
                by_day[row.day][row.state] += row.shots
        waiting, running = _waiting(connection), _running(connection, now)
        wrong = [(one.scene, one.wrong, one.checked, (one.low, one.high)) for one in false_passes(connection)]
    dates = [(now - timedelta(days=DAYS - 1 - n)).date() for n in range(DAYS)]
    return Overview(
        waiting=waiting,
        running=running,
        days=day_bars([(day, by_day[day]) for day in dates], STATES),
        totals={state: sum(by_day[day][state] for day in dates) for state in STATES},
        rates=interval_rows(
            [(scene, hits, of, wilson(hits, of)) for scene, (hits, of) in sorted(images.items()) if of > 0]
        ),
        false_passes=interval_rows(wrong),
        seconds=seconds / made if made else None,
        cost=cost(seconds / made, get_settings()) if made else "",
    )


def _waiting(connection: Connection) -> Waiting:
    row = connection.execute(text(_WAITING)).one()
    return Waiting(row.images, row.spot_checks, row.oldest, row.approved, row.retries, tuple(row.failed_runs or ()))


def _running(connection: Connection, now: datetime) -> tuple[Running, ...]:
    runs = connection.execute(text(_RUNNING)).all()
    done: dict[str, dict[str, int]] = defaultdict(dict)
    for row in connection.execute(text(_PROGRESS), {"runs": [run.id for run in runs]}):
        done[row.run][row.stage] = row.done
    return tuple(_progress(run, done[run.id], now) for run in runs)


def _progress(run, done: Mapping[str, int], now: datetime) -> Running:  # type: ignore[no-untyped-def]
    stages = tuple(
        StageProgress(stage, count, count / run.shots if run.shots else 0.0)
        for stage in MAKING
        for count in [min(run.shots, done.get(stage, 0))]
    )
    share = sum(stage.share for stage in stages) / len(stages)
    elapsed = (now - run.started_at).total_seconds()
    return Running(run.id, run.scene, run.shots, stages, share, elapsed * (1 - share) / share if share > 0.02 else None)


_WAITING = """
SELECT queue.images, queue.spot_checks, queue.oldest, open.approved, open.retries,
       (SELECT array_agg(id) FROM (SELECT id FROM runs WHERE state = 'failed' AND started_at > now() - interval '3 days'
                                   ORDER BY started_at DESC LIMIT 5) failed) AS failed_runs
FROM (SELECT count(*) FILTER (WHERE NOT spot) AS images, count(*) FILTER (WHERE spot) AS spot_checks,
             min(started_at) FILTER (WHERE NOT spot) AS oldest FROM review_queue) queue,
     (SELECT count(*) FILTER (WHERE choice = 'approve') AS approved,
             count(*) FILTER (WHERE choice IN ('retry', 'edit')) AS retries
      FROM decisions d JOIN shots s ON s.id = d.shot JOIN products p ON p.sku = s.sku AND p.left_at IS NULL
      WHERE d.undone_at IS NULL AND d.acted_run IS NULL
        AND (d.choice IN ('retry', 'edit') OR d.choice = 'approve' AND EXISTS (
             SELECT FROM run_shots rs WHERE rs.final = d.final AND rs.state = 'held'))) open
"""

_ENDED = """
SELECT (started_at AT TIME ZONE 'UTC')::date AS day, scene, totals -> 'states' AS states,
       coalesce(CAST(totals ->> 'inspected' AS int), 0) AS inspected,
       coalesce(CAST(totals ->> 'overcompleted' AS int), 0) AS overcompleted,
       coalesce(CAST(totals ->> 'images' AS int), 0) AS images,
       coalesce((SELECT sum(CAST(value ->> 2 AS double precision)) FROM jsonb_each(totals -> 'stages')), 0) AS seconds
FROM runs WHERE totals IS NOT NULL AND started_at > :since
"""

_STATES_NOW = """
SELECT (r.started_at AT TIME ZONE 'UTC')::date AS day, counted.state, counted.shots
FROM runs r
CROSS JOIN LATERAL (SELECT state, count(*) AS shots FROM run_shots WHERE run = r.id GROUP BY state) counted
WHERE r.totals IS NULL AND r.started_at > now() - interval '14 days'
"""

_RUNNING = """
SELECT r.id, r.scene, r.started_at, (SELECT count(*) FROM run_shots rs WHERE rs.run = r.id) AS shots
FROM runs r WHERE r.state = 'running' AND r.started_at > now() - interval '7 days'
ORDER BY r.started_at DESC LIMIT 6
"""

# A stage notes its uses when a shard is through; the steps of the shard that it is at are there one by one before that.
# Of a shot with several candidates each counts, so the bar may be ahead by some shots of the shards in work.
_PROGRESS = """
SELECT coalesce(used.run, made.run) AS run, coalesce(used.stage, made.stage) AS stage,
       coalesce(used.shots, 0) + greatest(0, coalesce(made.steps, 0) - coalesce(used.computed, 0)) AS done
FROM (SELECT run, stage, count(*) FILTER (WHERE chosen) AS shots, count(*) FILTER (WHERE NOT reused) AS computed
      FROM run_steps WHERE run = ANY(CAST(:runs AS text[])) GROUP BY run, stage) used
FULL JOIN (SELECT run, stage, count(*) AS steps FROM steps WHERE run = ANY(CAST(:runs AS text[]))
           GROUP BY run, stage) made USING (run, stage)
"""
