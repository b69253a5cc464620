"""Shots that a run did not publish, by what kept them from it, and those of them that another run can try again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, Engine, text

from pipelines.contracts import Reprocess, ShotState

MOST_CAUSES = 12
"""Causes of one state that are listed: the most frequent ones."""

MOST_SHOTS = 5000
"""Shots of one retry. Those beyond them are left for the next one."""

RETRIED = (ShotState.HELD, ShotState.REJECTED, ShotState.FAILED)


@dataclass(frozen=True, slots=True)
class Cause:
    """Why shots of a run have a state: the failed checks, or the reason with `#` for each number in it."""

    state: str
    cause: str
    shots: int


@dataclass(frozen=True, slots=True)
class Retry:
    """What a retry would make again. `left` counts shots of the cause that it leaves out: they were made again or
    decided since, their product left the feed, or they are beyond MOST_SHOTS."""

    scene: str
    channel: str
    skus: tuple[str, ...]
    left: int
    reprocess: Reprocess


def count_states(connection: Connection, run: str) -> tuple[dict[str, int], tuple[Cause, ...]]:
    """A run's shots by state, and the causes of those that it did not publish, the most frequent first."""
    rows = connection.execute(text(_COUNTED), {"run": run, "most": MOST_CAUSES}).all()
    listed = tuple(Cause(row.state, row.cause, row.shots) for row in rows if row.state in RETRIED)
    return {row.state: row.of_state for row in rows}, listed


def find_retry(engine: Engine, run: str, state: ShotState, cause: str) -> Retry | None:
    """The shots of this cause that can be tried again; None for a run that is not there or did not end.

    Failed shots go on where they stopped: finished steps are reused. Held and rejected ones are made anew with the next
    seed, because the same one would be held again.
    """
    values = {"run": run, "state": state.value, "cause": cause}
    with engine.connect() as connection:
        about = connection.execute(text(_ENDED), values).first()
        if about is None:
            return None
        rows: Sequence = connection.execute(text(_SHOTS), values).all()
    skus = [row.sku for row in rows if row.open][:MOST_SHOTS]
    reprocess = Reprocess.MISSING if state is ShotState.FAILED else Reprocess.FAILED
    return Retry(about.scene, about.channel, tuple(skus), len(rows) - len(skus), reprocess)


_ENDED = "SELECT scene, channel FROM runs WHERE id = :run AND state <> 'running'"

# A reason may begin with the name of a file, and may have numbers: shots that differ in nothing else have one cause.
_CAUSE = r"""
CASE WHEN rs.state = 'held' AND rs.checks <> '{}' THEN array_to_string(rs.checks, ', ')
     WHEN rs.state IN ('held', 'rejected', 'failed')
     THEN regexp_replace(regexp_replace(rs.reason, '^\S*[./]\S*: ', ''), '\d+([.,]\d+)*', '#', 'g')
     ELSE '' END
"""

_COUNTED = f"""
SELECT * FROM (
    SELECT state, cause, shots, CAST(sum(shots) OVER (PARTITION BY state) AS bigint) AS of_state,
           row_number() OVER (PARTITION BY state ORDER BY shots DESC, cause) AS nth
    FROM (SELECT rs.state, {_CAUSE} AS cause, count(*) AS shots FROM shots_of_runs rs WHERE rs.run = :run
          GROUP BY 1, 2) counted
) ranked
WHERE nth <= :most ORDER BY shots DESC, state, cause
"""  # noqa: S608  # no value from outside

_SHOTS = f"""
SELECT s.sku,
       p.left_at IS NULL
       AND NOT EXISTS (SELECT FROM run_shots later JOIN runs l ON l.id = later.run
                       WHERE later.shot = rs.shot AND l.number > made.number)
       AND NOT EXISTS (SELECT FROM decisions d WHERE d.final = rs.final AND d.undone_at IS NULL
                       AND d.choice <> 'reject' AND d.acted_run IS NULL) AS open
FROM shots_of_runs rs
JOIN runs made ON made.id = rs.made_by
JOIN shots s ON s.id = rs.shot
JOIN products p ON p.sku = s.sku
WHERE rs.run = :run AND rs.state = :state AND {_CAUSE} = :cause
ORDER BY rs.row, rs.position
"""  # noqa: S608  # no value from outside
