"""What the run pages show, read from the ledger: dataclasses that the templates need no logic for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import exists, or_, select, text

from packshot_console.photos import PHOTOS, photo_words
from packshot_console.services import ledger
from packshot_console.walks import Walk, read_walks
from pipelines.ledger.outcomes import stage_progress
from pipelines.ledger.reports import ChannelRun, RunRow, StageCount, list_runs, stage_totals
from pipelines.ledger.retries import Cause, count_states
from pipelines.ledger.schema import artifacts, product_versions
from pipelines.ledger.waves import next_wave

STATES = ("published", "held", "rejected", "failed", "pending")


@dataclass(frozen=True, slots=True)
class ShotView:
    """One shot's card. `made_by` is the run that last worked on it: an earlier one if it did not change. `photo` says
    which of its product's photos it is of, "" where there is one."""

    sku: str
    row: int
    title: str
    category: str
    state: str
    reason: str
    made_by: str
    photo: str
    walk: Walk


@dataclass(frozen=True, slots=True)
class RunView:
    """One run's page: `shots` are those of this page and state, `matching` how many there are of that state.

    `channels` are the runs that one start made for several channels, or (). `documents` maps the role of a document of
    the run to its digest. `seconds` are of computed steps. `causes` say what kept shots from being published.
    `waiting` images of the run wait for a person. `put_off` shots wait for the run `next_wave`, "" until that is
    planned.
    """

    run: str
    dag_id: str
    scene: str
    channel: str
    channels: tuple[ChannelRun, ...]
    run_state: str
    started_at: datetime
    finished_at: datetime | None
    problem: Mapping[str, Any] | None
    documents: Mapping[str, str]
    steps: Mapping[str, StageCount]
    seconds: Mapping[str, float]
    counts: Mapping[str, int]
    causes: tuple[Cause, ...]
    shots: tuple[ShotView, ...]
    state: str
    page: int
    pages: int
    matching: int
    waiting: int
    put_off: int
    next_wave: str


def runs(page: int, size: int) -> list[RunRow]:
    """One page of the runs, newest first."""
    return list_runs(ledger().engine, size, (page - 1) * size)


def run_page(run: str, state: str, page: int, size: int) -> RunView | None:
    """One page of a run's shots, of one state or ("") of all; None for a run that is not there."""
    values = {"run": run, "state": state, "limit": size, "offset": (page - 1) * size, "next_wave": next_wave(run)}
    with ledger().engine.connect() as connection:
        about = connection.execute(text(_ABOUT), values).first()
        if about is None:
            return None
        counted, causes = count_states(connection, run)
        rows = connection.execute(text(_PAGE), values).all()
        walks = read_walks(connection, {(row.made_by, row.shot): row.photo for row in rows})
        totals = about.totals or {"stages": stage_progress(connection, run)}
        steps, seconds = stage_totals(connection, run, totals)
    matching = counted.get(state, 0) if state else sum(counted.values())
    return RunView(
        run=run,
        dag_id=about.dag_id,
        scene=about.scene,
        channel=about.channel,
        channels=tuple(ChannelRun(*one) for one in about.channels) if len(about.channels) > 1 else (),
        run_state=about.state,
        started_at=about.started_at,
        finished_at=about.finished_at,
        problem=about.problem,
        documents=about.documents or {},
        steps=steps,
        seconds=seconds,
        counts={name: counted[name] for name in STATES if counted.get(name)},
        causes=causes,
        shots=tuple(
            ShotView(
                row.sku,
                row.row,
                row.title,
                row.category,
                row.state,
                row.reason,
                row.made_by,
                photo_words(row.photo_number, row.photos),
                walks[row.made_by, row.shot],
            )
            for row in rows
        ),
        state=state,
        page=page,
        pages=max(1, -(-matching // size)),
        matching=matching,
        waiting=about.waiting,
        put_off=about.put_off,
        next_wave=next_wave(run) if about.goes_on else "",
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


_ABOUT = """
SELECT r.*, (SELECT json_object_agg(a.role, a.digest ORDER BY a.role)
             FROM run_artifacts a WHERE a.run = r.id) AS documents,
       (SELECT json_agg(json_build_array(o.channel, o.id, o.state) ORDER BY o.started_at, o.id) FROM runs o
        WHERE coalesce(nullif(r.params ->> 'group', ''), r.id) IN (o.id, o.params ->> 'group')) AS channels,
       EXISTS (SELECT FROM runs WHERE id = :next_wave) AS goes_on,
       (SELECT count(*) FROM review_queue q WHERE q.run = r.id) AS waiting
FROM runs r WHERE r.id = :run
"""

# The page is chosen before anything is joined to it: first what the run worked on, in its feed's order, then what it
# left as it was.
_PAGE = f"""
SELECT chosen.made_by, chosen.shot, CASE WHEN chosen.made_by = :run THEN rs.row ELSE p.row END AS row, chosen.state,
       chosen.reason, v.sku, v.title, v.category, v.photo, v.photo_number, {PHOTOS} AS photos
FROM (
    SELECT made_by, shot, version, position, state, reason FROM shots_of_runs
    WHERE run = :run AND (CAST(:state AS text) = '' OR state = :state)
    ORDER BY made_by <> :run, made_by, position LIMIT :limit OFFSET :offset
) chosen
JOIN run_shots rs ON rs.run = chosen.made_by AND rs.shot = chosen.shot
JOIN product_versions v ON v.id = chosen.version
LEFT JOIN products p ON p.sku = v.sku
ORDER BY chosen.made_by <> :run, chosen.made_by, chosen.position
"""  # noqa: S608  # no value from outside
