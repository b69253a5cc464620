"""Objects that nothing needs any more: finding them, and taking back the steps that made them.

A step is kept if it is young, if a recent run used it, or if it is the newest for a product as it is now. So is
whatever a publication, a decision or an image in the review queue was made of, back to the photo. All other steps are
taken back: a later run that wants one computes it anew. Photos, feeds, data sets and revisions of models always stay.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime

from more_itertools import chunked
from sqlalchemy import Connection, text

from pipelines.errors import UsageError
from pipelines.ledger import lost
from pipelines.ledger.rows import CHUNK

ORPHAN = "orphan"
"""Kind of an object that no row names."""


@dataclass(frozen=True, slots=True)
class Unneeded:
    """An object that nothing needs. `made_by` is the stage that made it, and `role` its role there; an orphan has
    ORPHAN and ""."""

    digest: str
    size: int
    made_by: str
    role: str


def hold_runs(connection: Connection) -> None:
    """Lets no run begin until the end of the transaction. Raises UsageError if one is in progress."""
    connection.execute(text("LOCK TABLE runs IN SHARE ROW EXCLUSIVE MODE"))
    running = connection.scalar(text("SELECT id FROM runs WHERE state = 'running' ORDER BY started_at LIMIT 1"))
    if running is not None:
        raise UsageError(f"run {running} is in progress: prune when it has ended")


def list_stored(connection: Connection, objects: Iterable[tuple[str, int, datetime]]) -> None:
    """Writes digest, size and time of every object in the store into a temporary table."""
    connection.execute(text(_STORED))
    for chunk in chunked(objects, 10 * CHUNK):
        digests, sizes, times = zip(*chunk, strict=True)
        columns = {"digests": list(digests), "sizes": list(sizes), "times": list(times)}
        connection.execute(text(_STORE), columns)
    connection.execute(text("ANALYZE stored"))


def documents(connection: Connection) -> list[str]:
    """Digests of the stored documents that name further objects: manifests of feeds, and data sets."""
    return list(connection.scalars(text(_DOCUMENTS)))


def find(
    connection: Connection, named: Iterable[str], since: datetime, grace: datetime, keep: Sequence[str]
) -> list[Unneeded]:
    """The listed objects that nothing needs.

    Args:
        connection: Of the transaction of `list_stored`.
        named: Digests that documents name.
        since: What is younger, was used or was shown later stays.
        grace: An orphan that was written later stays.
        keep: Stages of which everything stays, or ORPHAN.
    """
    times = {"since": since, "grace": grace, "keep": list(keep), "orphan": ORPHAN}
    connection.execute(text(_ROOTS), times)
    connection.execute(text(_KEPT), times)
    connection.execute(text("ALTER TABLE kept ADD PRIMARY KEY (key)"))
    while connection.execute(text(_UPSTREAM)).rowcount:  # as often as there are stages
        connection.execute(text("ANALYZE kept"))
    connection.execute(text(_NEEDED))
    connection.execute(text("ALTER TABLE needed ADD PRIMARY KEY (digest)"))
    for chunk in chunked(named, 10 * CHUNK):
        connection.execute(text(_NEED), {"digests": chunk})
    connection.execute(text("ANALYZE needed"))
    return [Unneeded(*row) for row in connection.execute(text(_UNNEEDED), times)]


def take_back(connection: Connection, digests: Sequence[str]) -> int:
    """Takes back the steps that made these objects, and notes that they were pruned. Returns how many steps."""
    keys = set()
    for chunk in chunked(digests, 10 * CHUNK):
        lost.withdraw(connection, chunk)
        keys |= set(connection.scalars(text(_NOTE), {"digests": chunk}))
    return len(keys)


def still_unneeded(connection: Connection, digests: Sequence[str]) -> list[str]:
    """Those of these objects that nothing has named and no step has made since."""
    return list(connection.scalars(text(_STILL), {"digests": list(digests)}))


_STORED = """
CREATE TEMPORARY TABLE stored (digest text, size bigint, written_at timestamptz) ON COMMIT DROP
"""

_STORE = """
INSERT INTO stored
SELECT * FROM unnest(CAST(:digests AS text[]), CAST(:sizes AS bigint[]), CAST(:times AS timestamptz[]))
    AS listed (digest, size, written_at)
WHERE digest ~ '^[0-9a-f]{64}$'
"""

_DOCUMENTS = """
SELECT DISTINCT named.digest FROM (
    SELECT feed AS digest FROM runs
    UNION ALL
    SELECT found[1] FROM runs, regexp_matches(CAST(params AS text), '[0-9a-f]{64}', 'g') AS found
    UNION ALL
    SELECT data FROM model_revisions
    UNION ALL
    SELECT found[1] FROM model_revisions, regexp_matches(CAST(stages AS text), '[0-9a-f]{64}', 'g') AS found
) named
JOIN stored USING (digest)
"""

# Shots of runs with all that was tried for them, and images: what is shown or was until lately, what a person decided
# or has to decide, what a recent run made, left as it was or replaced.
_ROOTS = """
CREATE TEMPORARY TABLE roots ON COMMIT DROP AS
WITH recent AS (
    SELECT id, line, number FROM runs
    WHERE state = 'running' OR finished_at IS NULL OR started_at > :since OR finished_at > :since
)
SELECT rs.run, rs.shot, rs.final AS digest FROM run_shots rs JOIN recent ON recent.id = rs.run
UNION
SELECT rs.run, rs.shot, rs.final FROM run_shots rs JOIN runs r ON r.id = rs.run
WHERE r.line <> '' AND EXISTS (SELECT FROM recent WHERE recent.line = r.line
                               AND (rs.until IS NULL OR rs.until >= recent.number))
UNION
SELECT run, shot, final FROM review_queue
UNION
SELECT run, shot, final FROM decisions WHERE undone_at IS NULL
UNION
SELECT run, shot, digest FROM publications WHERE superseded_at IS NULL OR superseded_at > :since
"""

# Of what a product has now, the newest step: the one that is found.
_KEPT = """
CREATE TEMPORARY TABLE kept ON COMMIT DROP AS
SELECT key FROM steps WHERE created_at > :since
UNION
SELECT u.key FROM roots JOIN run_steps u ON u.run = roots.run AND u.shot = roots.shot
UNION
SELECT o.key FROM roots JOIN step_outputs o ON o.digest = roots.digest
UNION
SELECT newest.key
FROM run_shots rs
JOIN products p ON p.version = rs.version
JOIN run_steps u ON u.run = rs.run AND u.shot = rs.shot
JOIN steps s ON s.key = u.key
CROSS JOIN LATERAL (
    SELECT n.key FROM steps n
    WHERE n.base = s.base AND n.state <> 'failed' AND NOT EXISTS (SELECT FROM lost_steps l WHERE l.key = n.key)
    ORDER BY n.created_at DESC, n.key LIMIT 1
) newest
WHERE rs.until IS NULL
"""

_UPSTREAM = """
INSERT INTO kept
SELECT DISTINCT o.key FROM kept JOIN step_inputs i ON i.key = kept.key JOIN step_outputs o ON o.digest = i.digest
WHERE NOT EXISTS (SELECT FROM kept known WHERE known.key = o.key)
"""

_NEEDED = """
CREATE TEMPORARY TABLE needed ON COMMIT DROP AS
SELECT o.digest FROM step_outputs o JOIN kept USING (key)
UNION SELECT i.digest FROM step_inputs i JOIN kept USING (key)
UNION SELECT digest FROM roots WHERE digest IS NOT NULL
UNION SELECT digest FROM run_artifacts
UNION SELECT photo FROM product_versions WHERE photo IS NOT NULL
UNION SELECT feed FROM runs
UNION SELECT digest FROM embeddings
UNION SELECT data FROM model_revisions
UNION SELECT file.value FROM model_revisions, jsonb_each_text(files) AS file
UNION SELECT found[1] FROM runs, regexp_matches(CAST(params AS text), '[0-9a-f]{64}', 'g') AS found
UNION SELECT found[1] FROM model_revisions, regexp_matches(CAST(stages AS text), '[0-9a-f]{64}', 'g') AS found
"""

_NEED = "INSERT INTO needed SELECT unnest(CAST(:digests AS text[])) ON CONFLICT DO NOTHING"

# What an input names and no step made is a photo or a backdrop: it stays.
_UNNEEDED = """
SELECT s.digest, s.size, coalesce(made.stage, :orphan) AS made_by, coalesce(made.role, '') AS role
FROM stored s
LEFT JOIN LATERAL (
    SELECT st.stage, o.role FROM step_outputs o JOIN steps st USING (key)
    WHERE o.digest = s.digest ORDER BY st.created_at DESC, o.role LIMIT 1
) made ON true
WHERE NOT EXISTS (SELECT FROM needed WHERE needed.digest = s.digest)
  AND CASE WHEN made.stage IS NOT NULL THEN s.written_at < :since
           ELSE s.written_at < :grace
                AND NOT EXISTS (SELECT FROM artifacts a WHERE a.digest = s.digest)
                AND NOT EXISTS (SELECT FROM step_inputs i WHERE i.digest = s.digest) END
  AND coalesce(made.stage, :orphan) <> ALL(CAST(:keep AS text[]))
  AND NOT EXISTS (SELECT FROM step_outputs o JOIN steps st USING (key)
                  WHERE o.digest = s.digest AND st.stage = ANY(CAST(:keep AS text[])))
ORDER BY s.digest
"""

_NOTE = """
UPDATE lost_steps SET pruned = true
WHERE key IN (SELECT key FROM step_outputs WHERE digest = ANY(CAST(:digests AS text[])))
RETURNING key
"""

_STILL = """
SELECT gone.digest FROM unnest(CAST(:digests AS text[])) AS gone (digest)
WHERE NOT EXISTS (SELECT FROM step_outputs o WHERE o.digest = gone.digest
                  AND NOT EXISTS (SELECT FROM lost_steps l WHERE l.key = o.key))
  AND (EXISTS (SELECT FROM step_outputs o WHERE o.digest = gone.digest)
       OR NOT EXISTS (SELECT FROM artifacts a WHERE a.digest = gone.digest)
          AND NOT EXISTS (SELECT FROM step_inputs i WHERE i.digest = gone.digest))
  AND NOT EXISTS (SELECT FROM product_versions v WHERE v.photo = gone.digest)
  AND NOT EXISTS (SELECT FROM run_artifacts d WHERE d.digest = gone.digest)
  AND NOT EXISTS (SELECT FROM publications p WHERE p.digest = gone.digest AND p.superseded_at IS NULL)
  AND NOT EXISTS (SELECT FROM runs r WHERE r.feed = gone.digest)
  AND NOT EXISTS (SELECT FROM decisions d WHERE d.final = gone.digest AND d.undone_at IS NULL)
"""
