"""A refresh that is too large for one run goes in waves: runs, one after the other, each checked and published alone.

A wave looks at the whole feed, works on as many shots as it takes, and leaves the others as earlier runs left them. The
next one is a run of the same line (`pipelines.ledger.selection`), so it finds what is done. It reads the manifest of
the first wave and changes no product: a newer reading of the feed stays in force.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from more_itertools import chunked
from sqlalchemy import Connection, Engine, text

from pipelines.ledger import rows

_WAVE = re.compile(r"(?P<first>.*)__wave_(?P<number>[1-9][0-9]*)", re.DOTALL)


def wave_of(run: str) -> int:
    """Which wave a run is, by its id; 1 for a run that no other one started."""
    found = _WAVE.fullmatch(run)
    return int(found["number"]) if found else 1


def next_wave(run: str) -> str:
    """Id of the run that goes on with what `run` put off."""
    found = _WAVE.fullmatch(run)
    return f"{found['first'] if found else run}__wave_{wave_of(run) + 1}"


def wave_before(run: str) -> str:
    """Id of the run that put off what `run` works on; "" for a first wave."""
    found, number = _WAVE.fullmatch(run), wave_of(run)
    if found is None:
        return ""
    return found["first"] if number <= 2 else f"{found['first']}__wave_{number - 1}"


def put_off(connection: Connection, run: str, positions: Sequence[int]) -> int:
    """Leaves the shots at these positions to the run's next wave; returns how many.

    They are the run's no more. What an earlier run settled about them stands; what it did not settle, the next wave
    takes up. A run that a later one builds on leaves nothing: what it selected stays.
    """
    if connection.scalar(text(_IS_BUILT_ON), {"run": run}):
        return 0
    for chunk in chunked(positions, rows.CHUNK):
        connection.execute(text(_PUT_OFF), {"run": run, "positions": chunk})
    connection.execute(text(_COUNT), {"run": run, "put_off": len(positions)})
    return len(positions)


def cancelled_before(engine: Engine, run: str, group: str, channel: str) -> str:
    """The run that a person cancelled and that leads to `run`: the wave before it, or, in a group of runs for several
    channels, one for which `channel` came later. "" if there is none."""
    values = {"wave": wave_before(run), "group": group, "channel": channel}
    with engine.connect() as connection:
        return connection.scalar(text(_CANCELLED_BEFORE), values) or ""


def waiting(engine: Engine, run: str) -> int:
    """Shots that the run left to its next wave."""
    with engine.connect() as connection:
        return connection.scalar(text("SELECT put_off FROM runs WHERE id = :run"), {"run": run}) or 0


def feeds_since(engine: Engine, run: str) -> tuple[str, list[str]]:
    """Manifests by digest: the run's own ("" where there is none), and those of later runs of its line, but its own."""
    with engine.connect() as connection:
        own = connection.scalar(text("SELECT feed FROM runs WHERE id = :run"), {"run": run}) or ""
        return own, list(connection.scalars(text(_LATER), {"run": run}))


_IS_BUILT_ON = """
SELECT EXISTS (SELECT FROM runs r JOIN runs later ON later.line = r.line AND later.number > r.number
               WHERE r.id = :run AND r.line <> '')
"""

_PUT_OFF = """
WITH gone AS (
    DELETE FROM run_shots WHERE run = :run AND position = ANY(CAST(:positions AS int[])) RETURNING shot
)
UPDATE run_shots SET until = NULL
FROM runs n JOIN runs r ON r.line = n.line AND r.number < n.number, gone
WHERE n.id = :run AND n.line <> '' AND run_shots.run = r.id AND run_shots.until = n.number
  AND run_shots.shot = gone.shot AND run_shots.settled
"""

_COUNT = """
UPDATE runs SET put_off = :put_off, selected = (SELECT count(*) FROM shots_of_runs s WHERE s.run = :run)
WHERE id = :run
"""

_CANCELLED_BEFORE = """
SELECT id FROM runs
WHERE state = 'cancelled'
  AND (id = :wave OR :group <> '' AND (id = :group OR params ->> 'group' = :group)
                     AND CAST(params -> 'channels' AS jsonb) - 0 ? :channel)
ORDER BY started_at LIMIT 1
"""

_LATER = """
SELECT DISTINCT later.feed FROM runs r JOIN runs later ON later.line = r.line AND later.number > r.number
WHERE r.id = :run AND r.line <> '' AND later.feed NOT IN ('', r.feed)
"""
