"""The outcome of a shot in a run, derived from its steps, verdicts and publications.

The rule stands here twice. `outcome_of` is for a run in memory; `settle` is one statement over all shots of a run, so
that a run of 100 000 shots does not load its steps. A test holds both to the same outcomes on generated runs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from pipelines.contracts import STAGES, ShotState, State, Step

if TYPE_CHECKING:  # `packshot shoot` takes `outcome_of` alone
    from sqlalchemy import Connection


def outcome_of(steps: Mapping[str, Step]) -> tuple[ShotState, str]:
    """State and reason of a shot without approvals, from its chosen step of each stage. The first that applies: a step
    that was rejected or failed, a failed check, a published image."""
    ordered = [steps[stage] for stage in STAGES if stage in steps]
    for step in ordered:
        if step.state is not State.DONE:
            return ShotState(step.state), step.reason
    failing = [verdict for step in ordered for verdict in step.verdicts if not verdict.passed]
    if failing:
        return ShotState.HELD, "; ".join(verdict.reason or verdict.check for verdict in failing)
    return (ShotState.PUBLISHED, "") if "publish" in steps else (ShotState.PENDING, "")


def settle(connection: Connection, run: str) -> None:
    """Sets state and reason of every shot of a run from its steps, verdicts and publications so far."""
    from sqlalchemy import text

    connection.execute(text(_SETTLE), {"run": run, "stages": list(STAGES)})


def close(connection: Connection, run: str, problem: str | None) -> None:
    """Ends pending shots: held if they were ready and a problem stopped publication, failed otherwise."""
    from sqlalchemy import text

    connection.execute(text(_CLOSE), {"run": run, "problem": problem})


def settle_shots(connection: Connection, run: str) -> None:
    """Says of every shot that the run worked on whether it is settled: nothing is left to be tried under its recipe."""
    from sqlalchemy import text

    connection.execute(text(_SETTLED), {"run": run})


def unsettle_steps(connection: Connection, step: Step) -> None:
    """Takes it back for the shots of the steps that this one supersedes: those with its key without the attempt."""
    from sqlalchemy import text

    connection.execute(text(_UNSETTLE_STEPS), {"key": step.key, "base": step.job.base})


def unsettle_images(connection: Connection, final: str) -> None:
    """Takes it back for the shots that were held with this `final` image."""
    from sqlalchemy import text

    connection.execute(text(_UNSETTLE_IMAGES), {"final": final})


def rates(connection: Connection) -> dict[str, float]:
    """Mean seconds a shot, by stage, over the last 500 computed steps. Candidates that were not chosen count."""
    from sqlalchemy import text

    return dict(connection.execute(text(_RATES), {"stages": list(STAGES)}).tuples().all())


# The first that applies: a step that was rejected or failed; a publication of what this run made, by any run, unless it
# was superseded before this run began; failed checks that nobody approved.
_SETTLE = """
UPDATE run_shots SET state = outcome.state, reason = outcome.reason
FROM (
    SELECT rs.position,
           CASE WHEN bad.key IS NOT NULL THEN bad.state
                WHEN shown.digest IS NOT NULL THEN 'published'
                WHEN held.reasons IS NOT NULL THEN 'held'
                ELSE 'pending' END AS state,
           CASE WHEN bad.key IS NOT NULL THEN bad.reason
                WHEN shown.digest IS NOT NULL THEN ''
                ELSE coalesce(held.reasons, '') END AS reason
    FROM run_shots rs
    LEFT JOIN LATERAL (
        SELECT s.key, s.state, s.reason FROM run_steps u JOIN steps s USING (key)
        WHERE u.run = rs.run AND u.shot = rs.shot AND u.chosen AND s.state IN ('rejected', 'failed')
        ORDER BY array_position(CAST(:stages AS text[]), u.stage) LIMIT 1
    ) bad ON true
    LEFT JOIN LATERAL (
        SELECT p.digest FROM run_steps u JOIN step_outputs o USING (key)
        JOIN publications p ON p.shot = u.shot AND p.digest = o.digest
        JOIN runs r ON r.id = u.run
        WHERE u.run = rs.run AND u.shot = rs.shot AND u.chosen AND u.stage = 'publish'
          AND (p.superseded_at IS NULL OR p.superseded_at > r.started_at) LIMIT 1
    ) shown ON true
    LEFT JOIN LATERAL (
        SELECT string_agg(coalesce(nullif(v.reason, ''), v."check"), '; '
                          ORDER BY array_position(CAST(:stages AS text[]), u.stage), v.position) AS reasons
        FROM run_steps u JOIN verdicts v USING (key)
        WHERE u.run = rs.run AND u.shot = rs.shot AND u.chosen AND NOT v.passed
          AND NOT EXISTS (SELECT FROM step_inputs i JOIN approvals a USING (digest)
                          WHERE i.key = v.key AND i.role = 'final')
    ) held ON true
    WHERE rs.run = :run
) outcome
WHERE run_shots.run = :run AND run_shots.position = outcome.position
  AND (run_shots.state, run_shots.reason) IS DISTINCT FROM (outcome.state, outcome.reason)
"""

_CLOSE = """
UPDATE run_shots SET
    state = CASE WHEN inspected.done AND CAST(:problem AS text) IS NOT NULL THEN 'held' ELSE 'failed' END,
    reason = CASE WHEN inspected.done AND CAST(:problem AS text) IS NOT NULL THEN CAST(:problem AS text)
                  WHEN inspected.done THEN 'the run ended before publication'
                  ELSE 'the run ended before the shot was through its stages' END
FROM (
    SELECT rs.position, EXISTS (SELECT FROM run_steps u WHERE u.run = rs.run AND u.shot = rs.shot
                                AND u.stage = 'inspect' AND u.chosen) AS done
    FROM run_shots rs WHERE rs.run = :run
) inspected
WHERE run_shots.run = :run AND run_shots.position = inspected.position AND run_shots.state = 'pending'
"""

# A published image has to be the current one, and no step may have been superseded meanwhile.
_SETTLED = """
WITH used AS MATERIALIZED (
    SELECT u.shot, u.key, u.stage, u.chosen, s.base, s.created_at
    FROM run_steps u JOIN steps s USING (key) WHERE u.run = :run
), superseded AS MATERIALIZED (
    SELECT DISTINCT used.shot FROM used JOIN steps newer ON newer.base = used.base
    WHERE newer.created_at > used.created_at AND newer.state <> 'failed'
    UNION SELECT used.shot FROM used JOIN lost_steps USING (key)
), images AS MATERIALIZED (
    SELECT used.shot, o.digest FROM used JOIN step_outputs o USING (key) WHERE used.chosen AND used.stage = 'publish'
), current AS MATERIALIZED (
    SELECT images.shot FROM images JOIN publications p USING (shot, digest) WHERE p.superseded_at IS NULL
)
UPDATE run_shots SET settled = NOT run_shots.settled
FROM runs r
WHERE r.id = :run AND run_shots.run = r.id AND run_shots.settled <> (
    r.recipe <> ''
    AND (run_shots.state IN ('held', 'rejected')
         OR run_shots.state = 'published' AND run_shots.shot IN (SELECT shot FROM current))
    AND run_shots.shot NOT IN (SELECT shot FROM superseded)
)
"""

_UNSETTLE_STEPS = """
UPDATE run_shots SET settled = false
FROM steps s JOIN run_steps u ON u.key = s.key
WHERE s.base = :base AND s.key <> :key AND run_shots.run = u.run AND run_shots.shot = u.shot AND run_shots.settled
"""

_UNSETTLE_IMAGES = """
UPDATE run_shots SET settled = false
FROM step_inputs i JOIN run_steps u ON u.key = i.key
WHERE i.role = 'final' AND i.digest = :final AND run_shots.run = u.run AND run_shots.shot = u.shot
  AND run_shots.settled AND run_shots.state = 'held'
"""

_RATES = """
SELECT recent.stage, sum(recent.seconds) / count(DISTINCT (u.run, u.shot))
FROM unnest(CAST(:stages AS text[])) AS of (stage)
CROSS JOIN LATERAL (
    SELECT s.key, s.stage, s.seconds FROM steps s
    WHERE s.stage = of.stage AND s.state = 'done' ORDER BY s.created_at DESC LIMIT 500
) recent
JOIN run_steps u ON u.key = recent.key AND NOT u.reused
GROUP BY recent.stage
"""
