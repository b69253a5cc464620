"""The outcome of a shot in a run, derived from its steps, verdicts and publications.

The rule stands here twice. `outcome_of` is for a run in memory; `settle` is one statement over all shots of a run, so
that a run of 100 000 shots does not load its steps. A test holds both to the same outcomes on generated runs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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


def settle(connection: Connection, run: str, shard: int | None = None, shots: Sequence[int] | None = None) -> None:
    """Sets state, reason, image and failed checks of a run's shots from its steps, verdicts and publications so far: of
    all shots, of one shard, or of the shots with these numbers. Notes which held images of these shots are superseded.
    """
    from sqlalchemy import text

    some = {"shard": shard, "shots": None if shots is None else list(shots)}
    connection.execute(text(_SETTLE), {"run": run, "stages": list(STAGES), **some})
    note_superseded(connection, run, shard, shots)


def note_superseded(
    connection: Connection, run: str, shard: int | None = None, shots: Sequence[int] | None = None
) -> None:
    """Notes which held images, of any run, of these shots have a later image."""
    from sqlalchemy import text

    some = {"run": run, "shard": shard, "shots": None if shots is None else list(shots)}
    connection.execute(text(_SUPERSEDED), some)


def remove_shots(connection: Connection, run: str) -> None:
    """Removes all shots of a run, which is planned anew. What its images superseded is looked at again."""
    from sqlalchemy import text

    connection.execute(text(_REMOVE), {"run": run})


def close(connection: Connection, run: str, problem: str | None) -> None:
    """Ends pending shots: held if they were ready and a problem stopped publication, failed otherwise."""
    from sqlalchemy import text

    connection.execute(text(_CLOSE), {"run": run, "problem": problem})


def stage_totals(connection: Connection, run: str) -> dict[str, tuple[int, int, float]]:
    """Stage → steps that a run computed, finished steps that it reused, and seconds of those it computed. A step that
    two shots share counts once; those of unchanged shots count as reused."""
    from sqlalchemy import text

    rows = connection.execute(text(_TOTALS), {"run": run})
    return {row.stage: (row.computed, row.reused, row.seconds) for row in rows}


def stage_progress(connection: Connection, run: str) -> dict[str, tuple[int, int, float]]:
    """What `stage_totals` returns, of a run in progress and without the steps of unchanged shots: at once, also for a
    large run, because no step is looked up by its key."""
    from sqlalchemy import text

    rows = connection.execute(text(_PROGRESS), {"run": run})
    return {row.stage: (row.computed, row.reused, row.seconds) for row in rows}


def remember_totals(connection: Connection, run: str) -> None:
    """Writes a run's totals into its row, because to count them takes a look at all its shots and steps."""
    from sqlalchemy import text

    connection.execute(text(_REMEMBER), {"run": run})


def remember_states(connection: Connection, run: str) -> None:
    """Counts the states in the totals of a run that ended anew: its steps are those that it had."""
    from sqlalchemy import text

    connection.execute(text(_REMEMBER_STATES), {"run": run})


def settle_shots(connection: Connection, run: str, shots: Sequence[int] | None = None) -> None:
    """Says of every shot that the run worked on, or of the shots with these numbers, whether it is settled: nothing is
    left to be tried under its recipe."""
    from sqlalchemy import text

    connection.execute(text(_SETTLED), {"run": run, "shots": None if shots is None else list(shots)})


def unsettle_steps(connection: Connection, step: Step) -> None:
    """Takes it back for the shots of the steps that this one supersedes: those with its key without the attempt."""
    from sqlalchemy import text

    connection.execute(text(_UNSETTLE_STEPS), {"key": step.key, "base": step.job.base})


def unsettle_images(connection: Connection, finals: Sequence[str]) -> None:
    """Takes it back for the shots that were held with one of these `final` images: the next run looks at them."""
    from sqlalchemy import text

    connection.execute(text(_UNSETTLE_IMAGES), {"finals": list(finals)})


def rates(connection: Connection) -> dict[str, float]:
    """Mean seconds a shot, by stage, over the last 500 computed steps. Candidates that were not chosen count."""
    from sqlalchemy import text

    return dict(connection.execute(text(_RATES), {"stages": list(STAGES)}).tuples().all())


# The first that applies: a step that was rejected or failed; a publication of what this run made, by any run, unless it
# was superseded before this run began or was withdrawn; failed checks; a person's rejection. An image that a person
# approved is held until it is published. A task that ends after its run was closed makes no failed shot pending again.
_SETTLE = """
UPDATE run_shots SET state = outcome.state, reason = outcome.reason, final = outcome.final, checks = outcome.checks
FROM (
    SELECT rs.position,
           CASE WHEN bad.key IS NOT NULL THEN bad.state
                WHEN shown.digest IS NOT NULL THEN 'published'
                WHEN failed.reasons IS NOT NULL OR refused.words IS NOT NULL THEN 'held'
                ELSE 'pending' END AS state,
           CASE WHEN bad.key IS NOT NULL THEN bad.reason
                WHEN shown.digest IS NOT NULL THEN ''
                ELSE coalesce(failed.reasons, refused.words, '') END AS reason,
           image.digest AS final,
           coalesce(failed.checks, '{}') AS checks
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
          AND (p.superseded_at IS NULL OR p.superseded_at > r.started_at AND p.withdrawn_by IS NULL) LIMIT 1
    ) shown ON true
    LEFT JOIN LATERAL (
        SELECT i.digest FROM run_steps u JOIN step_inputs i USING (key)
        WHERE u.run = rs.run AND u.shot = rs.shot AND u.chosen AND u.stage = 'inspect' AND i.role = 'final' LIMIT 1
    ) image ON true
    LEFT JOIN LATERAL (
        SELECT string_agg(coalesce(nullif(v.reason, ''), v."check"), '; '
                          ORDER BY array_position(CAST(:stages AS text[]), u.stage), v.position) AS reasons,
               array_agg(v."check" ORDER BY array_position(CAST(:stages AS text[]), u.stage), v.position) AS checks
        FROM run_steps u JOIN verdicts v USING (key)
        WHERE u.run = rs.run AND u.shot = rs.shot AND u.chosen AND NOT v.passed
    ) failed ON true
    LEFT JOIN LATERAL (
        SELECT concat_ws(': ', 'rejected by ' || d.by, nullif(d.reason, '')) AS words FROM decisions d
        WHERE d.final = image.digest AND d.choice = 'reject' AND d.undone_at IS NULL
        UNION ALL
        SELECT 'the product left its feed' FROM shots s JOIN products p ON p.sku = s.sku
        WHERE s.id = rs.shot AND p.left_at IS NOT NULL
        LIMIT 1
    ) refused ON true
    WHERE rs.run = :run
      AND (CAST(:shard AS int) IS NULL OR rs.shard = :shard)
      AND (CAST(:shots AS bigint[]) IS NULL OR rs.shot = ANY(CAST(:shots AS bigint[])))
) outcome
WHERE run_shots.run = :run AND run_shots.position = outcome.position
  AND NOT (outcome.state = 'pending' AND run_shots.state = 'failed'
           AND EXISTS (SELECT FROM runs r WHERE r.id = :run AND r.state <> 'running'))
  AND (run_shots.state, run_shots.reason, run_shots.final, run_shots.checks)
      IS DISTINCT FROM (outcome.state, outcome.reason, outcome.final, outcome.checks)
"""

# The queue needs no look at a superseded image, and it looks for a later one of every other. So a row that another
# transaction holds may be left for the next time: runs do not wait for each other here.
_SUPERSEDED = """
UPDATE run_shots SET superseded = NOT superseded WHERE (run, position) IN (
    SELECT held.run, held.position
    FROM run_shots rs JOIN run_shots held ON held.shot = rs.shot JOIN runs r ON r.id = held.run
    WHERE rs.run = :run
      AND (CAST(:shard AS int) IS NULL OR rs.shard = :shard)
      AND (CAST(:shots AS bigint[]) IS NULL OR rs.shot = ANY(CAST(:shots AS bigint[])))
      AND held.state = 'held' AND held.final IS NOT NULL
      AND held.superseded <> EXISTS (
          SELECT FROM run_shots later JOIN runs later_run ON later_run.id = later.run
          WHERE later.shot = held.shot AND later.final IS NOT NULL
            AND (later_run.started_at, later_run.id) > (r.started_at, r.id))
    FOR UPDATE OF held SKIP LOCKED)
"""

_REMOVE = """
WITH gone AS (DELETE FROM run_shots WHERE run = :run RETURNING shot, final)
UPDATE run_shots SET superseded = false FROM gone
WHERE gone.final IS NOT NULL AND run_shots.shot = gone.shot AND run_shots.run <> :run AND run_shots.superseded
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

# Of unchanged shots, the steps of the run that left them so are reused.
_TOTALS = """
SELECT used.stage, count(*) FILTER (WHERE NOT used.reused) AS computed, count(*) FILTER (WHERE used.reused) AS reused,
       coalesce(sum(steps.seconds) FILTER (WHERE NOT used.reused), 0.0) AS seconds
FROM (SELECT stage, key, bool_and(reused) AS reused
      FROM (SELECT stage, key, reused FROM run_steps WHERE run = :run
            UNION ALL
            SELECT u.stage, u.key, true
            FROM shots_of_runs all_of JOIN run_steps u ON u.run = all_of.made_by AND u.shot = all_of.shot
            WHERE all_of.run = :run AND all_of.made_by <> :run) each_use
      GROUP BY stage, key) used
JOIN steps USING (key)
GROUP BY used.stage
"""

_PROGRESS = """
SELECT stage, coalesce(made.computed, 0) AS computed, coalesce(used.reused, 0) AS reused,
       coalesce(made.seconds, 0.0) AS seconds
FROM (SELECT stage, count(*) AS computed, sum(seconds) AS seconds FROM steps WHERE run = :run GROUP BY stage) made
FULL JOIN (SELECT stage, count(*) AS reused FROM run_steps WHERE run = :run AND reused GROUP BY stage) used
USING (stage)
"""

# `states` counts the shots that this run worked on, so that an unchanged shot counts in one run and not every night;
# `runs.selected` has all. `inspected` and `overcompleted` count images that this run made; `images` those that it
# published first.
_STATES = """
coalesce((SELECT jsonb_object_agg(state, shots) FROM (
    SELECT state, count(*) AS shots FROM run_shots WHERE run = :run GROUP BY state) counted), '{}')
"""

_REMEMBER_STATES = f"""
UPDATE runs SET totals = totals || jsonb_build_object('states', {_STATES}) WHERE id = :run AND totals IS NOT NULL
"""  # noqa: S608  # no value from outside

_REMEMBER = f"""
UPDATE runs SET totals = jsonb_build_object(
    'stages', coalesce((
        SELECT jsonb_object_agg(stage, jsonb_build_array(computed, reused, seconds)) FROM ({_TOTALS}) counted), '{{}}'),
    'states', {_STATES},
    'inspected', (SELECT count(*) FROM run_steps u
                  WHERE u.run = :run AND u.stage = 'inspect' AND u.chosen AND NOT u.reused),
    'overcompleted', (SELECT count(*) FROM run_steps u JOIN verdicts v USING (key)
                      WHERE u.run = :run AND u.stage = 'inspect' AND u.chosen AND NOT u.reused
                        AND v."check" = 'overcompletion' AND NOT v.passed),
    'images', (SELECT count(*) FROM publications p WHERE p.run = :run))
WHERE id = :run
"""  # noqa: S608  # no value from outside

# A published image has to be the current one, and no step may have been superseded meanwhile.
_SETTLED = """
WITH used AS MATERIALIZED (
    SELECT u.shot, u.key, u.stage, u.chosen, s.base, s.created_at
    FROM run_steps u JOIN steps s USING (key)
    WHERE u.run = :run AND (CAST(:shots AS bigint[]) IS NULL OR u.shot = ANY(CAST(:shots AS bigint[])))
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
WHERE r.id = :run AND run_shots.run = r.id
  AND (CAST(:shots AS bigint[]) IS NULL OR run_shots.shot = ANY(CAST(:shots AS bigint[])))
  AND run_shots.settled <> (
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
UPDATE run_shots SET settled = false WHERE final = ANY(CAST(:finals AS text[])) AND settled AND state = 'held'
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
