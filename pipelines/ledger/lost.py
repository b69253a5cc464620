"""Objects that the ledger names and the store has lost: finding them, and taking back the steps that made them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from more_itertools import chunked
from sqlalchemy import Connection, Engine, text

from pipelines.contracts import Step, canonical_json, sha256_hex
from pipelines.ledger.rows import CHUNK


@dataclass(frozen=True, slots=True)
class Named:
    """What an object is to the ledger. `made_by` is the stage that made it, `photo`, or the role of a run's document;
    `sku` is a product that it belongs to, `link` where its photo came from."""

    digest: str
    made_by: str
    sku: str
    link: str


def not_stored(engine: Engine, objects: Iterable[tuple[str, int]]) -> tuple[int, list[str], list[str]]:
    """Compares the ledger with digest and size of every object in the store.

    Returns how many objects the ledger names, those of them that are missing, and those of another size.
    """
    with engine.connect() as connection:
        connection.execute(text("CREATE TEMPORARY TABLE stored (digest text, size bigint) ON COMMIT DROP"))
        for chunk in chunked(objects, 10 * CHUNK):
            columns = {"digests": [digest for digest, _ in chunk], "sizes": [size for _, size in chunk]}
            connection.execute(text(_STORED), columns)
        connection.execute(text("ANALYZE stored"))
        return connection.scalar(text(_COUNT)) or 0, *compare(connection)


def compare(connection: Connection) -> tuple[list[str], list[str]]:
    """Digests of what the ledger names and the temporary table `stored` does not have, or has in another size."""
    found = connection.execute(text(_NOT_STORED)).all()
    return [row.digest for row in found if row.missing], [row.digest for row in found if not row.missing]


def all_named(engine: Engine) -> Iterator[str]:
    """Digests of all objects that the ledger names."""
    with engine.connect() as connection:
        yield from connection.execution_options(yield_per=5000).scalars(text(_ALL))


def describe(engine: Engine, digests: Sequence[str]) -> list[Named]:
    """What these objects are."""
    with engine.connect() as connection:
        return [Named(*row) for row in connection.execute(text(_DESCRIBE), {"digests": list(digests)})]


def withdraw(connection: Connection, digests: Sequence[str]) -> int:
    """Takes back the steps that made these objects, so that the next run makes them anew. Returns how many steps.

    What ran stays recorded. But nobody finds these steps any more, and their shots are settled no more.
    """
    keys = list(connection.scalars(text(_LOSE), {"digests": list(digests)}))
    connection.execute(text(_UNSETTLE), {"keys": keys})
    return len(keys)


def made_again(connection: Connection, recorded: Step, step: Step) -> Step:
    """What counts of a step that was computed although `recorded` has its key.

    `recorded` itself, unless its outputs were lost. Then it is found again if the same bytes were made. Other bytes
    make another attempt, which the caller records.
    """
    if connection.scalar(text("SELECT key FROM lost_steps WHERE key = :key"), {"key": step.key}) is None:
        return recorded
    if step.outputs == recorded.outputs:
        connection.execute(text("DELETE FROM lost_steps WHERE key = :key"), {"key": step.key})
        return recorded
    made = canonical_json([step.state, step.reason, *(output.sha256 for output in step.outputs)])
    job = replace(step.job, attempt=f"after {step.key} {sha256_hex(made.encode())}")
    return replace(step, key=job.key, job=job)


_STORED = "INSERT INTO stored SELECT * FROM unnest(CAST(:digests AS text[]), CAST(:sizes AS bigint[]))"

# What a step or a run made, and the photos of products as they are now.
_ALL = """
SELECT digest FROM artifacts
UNION SELECT v.photo FROM products p JOIN product_versions v ON v.id = p.version WHERE v.photo IS NOT NULL
"""

_COUNT = """
SELECT (SELECT count(*) FROM artifacts)
     + (SELECT count(DISTINCT v.photo) FROM products p JOIN product_versions v ON v.id = p.version)
"""

# Without what was made anew in other bytes: another attempt takes its place. And without what was pruned.
_NOT_STORED = """
SELECT named.digest, stored.digest IS NULL AS missing
FROM (SELECT digest, size FROM artifacts
      UNION ALL
      SELECT DISTINCT v.photo, CAST(NULL AS bigint) FROM products p JOIN product_versions v ON v.id = p.version
      WHERE v.photo IS NOT NULL) named
LEFT JOIN stored ON stored.digest = named.digest
WHERE (stored.digest IS NULL OR stored.size <> named.size) AND NOT EXISTS (
    SELECT FROM step_outputs o JOIN lost_steps USING (key) JOIN steps s USING (key)
    JOIN steps newer ON newer.base = s.base AND newer.created_at > s.created_at AND newer.state = 'done'
    WHERE o.digest = named.digest
) AND NOT (
    EXISTS (SELECT FROM step_outputs o JOIN lost_steps l USING (key) WHERE o.digest = named.digest AND l.pruned)
    AND NOT EXISTS (SELECT FROM step_outputs o WHERE o.digest = named.digest
                    AND NOT EXISTS (SELECT FROM lost_steps l WHERE l.key = o.key AND l.pruned))
)
"""

_DESCRIBE = """
SELECT gone.digest,
       coalesce(made.stage, CASE WHEN photo.sku IS NOT NULL THEN 'photo' END, document.role, '') AS made_by,
       coalesce(shots.sku, photo.sku, '') AS sku, coalesce(photo.image_link, '') AS link
FROM unnest(CAST(:digests AS text[])) AS gone (digest)
LEFT JOIN LATERAL (
    SELECT s.stage, u.shot FROM step_outputs o JOIN steps s USING (key) LEFT JOIN run_steps u USING (key)
    WHERE o.digest = gone.digest LIMIT 1
) made ON true
LEFT JOIN shots ON shots.id = made.shot
LEFT JOIN LATERAL (
    SELECT v.sku, v.image_link FROM product_versions v JOIN products p ON p.version = v.id
    WHERE v.photo = gone.digest LIMIT 1
) photo ON true
LEFT JOIN LATERAL (SELECT d.role FROM run_artifacts d WHERE d.digest = gone.digest LIMIT 1) document ON true
ORDER BY sku, made_by, gone.digest
"""

_LOSE = """
INSERT INTO lost_steps (key)
SELECT DISTINCT key FROM step_outputs WHERE digest = ANY(CAST(:digests AS text[]))
ON CONFLICT DO NOTHING RETURNING key
"""

_UNSETTLE = """
UPDATE run_shots SET settled = false FROM run_steps u
WHERE u.key = ANY(CAST(:keys AS text[])) AND run_shots.run = u.run AND run_shots.shot = u.shot AND run_shots.settled
"""
