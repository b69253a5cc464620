"""Publication of a run's images in few statements: which of them were encoded before, and showing them as one set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, Engine, text

from pipelines.contracts import FINISHED, Artifact, Job, Product, Publication, Shot, State, Step
from pipelines.ledger import rows


@dataclass(frozen=True, slots=True)
class Enlarged:
    """A shot at its position in a run, its number in the ledger, and its chosen `upscale` step: what was put in and
    what came out, without models, verdicts and sizes."""

    position: int
    number: int
    shot: Shot
    step: Step


def enlarged(engine: Engine, run: str, positions: Sequence[int]) -> list[Enlarged]:
    """What the run has at these positions, where its enlargement is done."""
    with engine.connect() as connection:
        return [
            Enlarged(
                row.position,
                row.number,
                Shot(Product(row.sku, row.row, row.title, row.category, row.photo), row.scene, row.channel),
                Step(
                    row.key,
                    Job("upscale", row.version, row.inputs or {}, row.parameters),
                    State.DONE,
                    tuple(Artifact(digest, role, "", 0) for role, digest in (row.outputs or {}).items()),
                ),
            )
            for row in connection.execute(text(_ENLARGED), {"run": run, "positions": list(positions)})
        ]


def use_encoded(engine: Engine, run: str, keys: Mapping[int, str]) -> set[int]:
    """Records the run as a user of the finished `publish` steps with these keys, by the shots' numbers. Returns the
    numbers of the shots of which there is such a step."""
    values = {"run": run, "shots": list(keys), "keys": list(keys.values()), "states": list(FINISHED)}
    with engine.begin() as connection:
        used = connection.execute(text(_USE), values).all()
        both = {"shots": [row.shot for row in used], "keys": [row.key for row in used]}
        connection.execute(text(_FORGET), {"run": run, **both})
    return {row.shot for row in used}


def publish(connection: Connection, run: str, images: Sequence[Publication]) -> int:
    """Makes these the current images of their shots (`PostgresLedger.publish`). Returns how many are new."""
    rows.add_shots(connection, images)
    connection.execute(text("CREATE TEMPORARY TABLE wanted (shot bigint PRIMARY KEY, digest text) ON COMMIT DROP"))
    columns = {
        "skus": [image.sku for image in images],
        "scenes": [image.scene for image in images],
        "channels": [image.channel for image in images],
        "digests": [image.digest for image in images],
    }
    connection.execute(text(_WANT), columns)
    connection.execute(text("ANALYZE wanted"))
    # one publisher at a time for a shot; the order prevents deadlocks
    connection.execute(text(_LOCK))
    connection.execute(text(_LEAVE_CURRENT))
    connection.execute(text(_LATE), {"run": run})
    connection.execute(text(_SUPERSEDE))
    return connection.execute(text(_SHOW), {"run": run}).rowcount


_ENLARGED = """
SELECT rs.position, rs.shot AS number, rs.row, v.sku, v.title, v.category, v.photo, s.scene, s.channel,
       st.key, st.version, st.parameters,
       (SELECT json_object_agg(i.role, i.digest) FROM step_inputs i WHERE i.key = st.key) AS inputs,
       (SELECT json_object_agg(o.role, o.digest) FROM step_outputs o WHERE o.key = st.key) AS outputs
FROM run_shots rs
JOIN shots s ON s.id = rs.shot
JOIN product_versions v ON v.id = rs.version
JOIN run_steps u ON u.run = rs.run AND u.shot = rs.shot AND u.stage = 'upscale' AND u.chosen
JOIN steps st ON st.key = u.key AND st.state = 'done'
WHERE rs.run = :run AND rs.position = ANY(CAST(:positions AS int[]))
"""

# The newest step counts that has the key as its base or as its key, as in `rows.newest_keys`. A step that this run
# computed counts as computed.
_USE = """
INSERT INTO run_steps (run, shot, key, stage, reused, chosen)
SELECT :run, wanted.shot, newest.key, 'publish', newest.run <> :run, true
FROM unnest(CAST(:shots AS bigint[]), CAST(:keys AS text[])) AS wanted (shot, key)
CROSS JOIN LATERAL (
    SELECT step.key, step.run FROM (
        SELECT key, run, created_at FROM steps WHERE base = wanted.key AND state = ANY(CAST(:states AS text[]))
        UNION ALL
        SELECT key, run, created_at FROM steps WHERE key = wanted.key AND state = ANY(CAST(:states AS text[]))
    ) step
    WHERE NOT EXISTS (SELECT FROM lost_steps WHERE lost_steps.key = step.key)
    ORDER BY step.created_at DESC, step.key LIMIT 1
) newest
ON CONFLICT (run, shot, key) DO UPDATE SET chosen = true, reused = run_steps.reused AND excluded.reused
RETURNING shot, key
"""

# By number, not by a join: a stage that no run was in when Postgres last counted has one row to it.
_FORGET = """
DELETE FROM run_steps
WHERE run = :run AND shot = ANY(CAST(:shots AS bigint[])) AND stage = 'publish'
  AND (shot, key) NOT IN (SELECT * FROM unnest(CAST(:shots AS bigint[]), CAST(:keys AS text[])))
"""

# without the images of products that left their feed
_WANT = """
INSERT INTO wanted (shot, digest)
SELECT s.id, image.digest
FROM unnest(CAST(:skus AS text[]), CAST(:scenes AS text[]), CAST(:channels AS text[]), CAST(:digests AS text[]))
     AS image (sku, scene, channel, digest)
JOIN shots s ON s.sku = image.sku AND s.scene = image.scene AND s.channel = image.channel
WHERE NOT EXISTS (SELECT FROM products p WHERE p.sku = s.sku AND p.left_at IS NOT NULL)
"""

_LOCK = """
SELECT count(*) FROM (SELECT s.id FROM shots s JOIN wanted ON wanted.shot = s.id ORDER BY s.id FOR UPDATE OF s) locked
"""

_LEAVE_CURRENT = """
DELETE FROM wanted USING publications p
WHERE p.shot = wanted.shot AND p.superseded_at IS NULL AND p.digest = wanted.digest
"""

# What a run published that began later stays: this run's image is recorded as superseded at once.
_LATE = """
WITH late AS (
    DELETE FROM wanted USING publications p JOIN runs r ON r.id = p.run
    WHERE p.shot = wanted.shot AND p.superseded_at IS NULL
      AND r.started_at > (SELECT started_at FROM runs WHERE id = :run)
    RETURNING wanted.shot, wanted.digest
)
INSERT INTO publications (shot, digest, run, superseded_at)
SELECT late.shot, late.digest, :run, now() FROM late
WHERE NOT EXISTS (SELECT FROM publications p WHERE p.shot = late.shot AND p.digest = late.digest AND p.run = :run)
"""

_SUPERSEDE = """
UPDATE publications p SET superseded_at = now() FROM wanted WHERE p.shot = wanted.shot AND p.superseded_at IS NULL
"""

_SHOW = "INSERT INTO publications (shot, digest, run) SELECT shot, digest, :run FROM wanted ORDER BY shot"
