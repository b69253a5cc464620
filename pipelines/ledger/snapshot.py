"""One point in time of the ledger: its snapshot, and every object that it names; and whether a ledger is empty.

A snapshot is Postgres' own: `pg_dump` reads the same one. An object is in the store before a row names it, so every
object of a snapshot is there, unless the store has lost it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime

from more_itertools import chunked
from sqlalchemy import Connection, Engine, create_engine, inspect, select, text
from sqlalchemy.pool import NullPool

from pipelines.ledger import lost, pruning
from pipelines.ledger.rows import CHUNK
from pipelines.ledger.schema import metadata

_STORE_LOCK = "hashtextextended('packshot objects leave the store', 0)"


@dataclass(frozen=True, slots=True)
class Snapshot:
    """An open transaction that sees one point in time. `id` is the name by which `pg_dump` sees the same one."""

    connection: Connection
    id: str
    taken_at: datetime
    revision: str
    schema: str

    def documents(self, stored: Iterable[tuple[str, int, datetime]]) -> list[str]:
        """Takes the listing of the store. Returns digests of the documents in it that name further objects."""
        pruning.list_stored(self.connection, stored)
        return pruning.documents(self.connection)

    def objects(self, named: Iterable[str]) -> Iterator[tuple[str, int]]:
        """Digest and size, bytes, of every object in the store that the ledger or these `named` digests name."""
        self.connection.execute(text("CREATE TEMPORARY TABLE also_named (digest text) ON COMMIT DROP"))
        for chunk in chunked(named, 10 * CHUNK):
            statement = "INSERT INTO also_named SELECT unnest(CAST(:digests AS text[]))"
            self.connection.execute(text(statement), {"digests": chunk})
        found = self.connection.execution_options(yield_per=5000).execute(text(_NAMED))
        yield from ((row.digest, row.size) for row in found)

    def lost(self) -> list[str]:
        """Digests of the objects that `packshot verify` would call missing, or of another size."""
        missing, damaged = lost.compare(self.connection)
        return [*missing, *damaged]


@contextmanager
def snapshot(url: str) -> Iterator[Snapshot]:
    """One point in time of the ledger. `url` is the owner's."""
    engine = _owner(url)
    with engine.connect().execution_options(isolation_level="REPEATABLE READ") as connection:
        row = connection.execute(text(_OPEN)).one()
        yield Snapshot(connection, *row)


@contextmanager
def objects_held(url: str) -> Iterator[None]:
    """Lets nobody prune the store meanwhile."""
    with _owner(url).connect() as connection:
        connection.execute(text(f"SELECT pg_advisory_lock_shared({_STORE_LOCK})"))
        connection.commit()  # the lock is the session's, and no transaction stays open
        yield


def may_prune(connection: Connection) -> bool:
    """Whether nobody holds the objects of the store. Nobody can hold them until the end of the transaction."""
    return bool(connection.scalar(text(f"SELECT pg_try_advisory_xact_lock({_STORE_LOCK})")))


def is_empty(engine: Engine) -> bool:
    """Whether no table of the ledger has a row."""
    there = set(inspect(engine).get_table_names())
    with engine.connect() as connection:
        return not any(
            connection.scalar(select(select(table).exists())) for table in metadata.sorted_tables if table.name in there
        )


def clear(url: str) -> str:
    """Removes the tables of an empty ledger, so that a dump can bring its own. Returns the name of their schema."""
    with _owner(url).begin() as connection:
        for table in (*metadata.tables, "alembic_version"):
            connection.execute(text(f'DROP TABLE IF EXISTS "{table}" CASCADE'))  # with its views and triggers
        connection.execute(text("DROP FUNCTION IF EXISTS packshot_refuse()"))
        return str(connection.scalar(text("SELECT current_schema()")))


def analyze(url: str) -> None:
    """Gathers the statistics that a dump does not have."""
    with _owner(url).begin() as connection:
        connection.execute(text("ANALYZE"))


def _owner(url: str) -> Engine:
    return create_engine(url, poolclass=NullPool, connect_args={"application_name": "packshot backup"})


_OPEN = """
SELECT pg_export_snapshot(), now(), (SELECT version_num FROM alembic_version), current_schema()
"""

_NAMED = """
SELECT stored.digest, stored.size FROM stored JOIN (
    SELECT digest FROM artifacts
    UNION SELECT digest FROM step_inputs
    UNION SELECT photo FROM product_versions
    UNION SELECT feed FROM runs
    UNION SELECT found[1] FROM runs, regexp_matches(CAST(params AS text), '[0-9a-f]{64}', 'g') AS found
    UNION SELECT data FROM model_revisions
    UNION SELECT file.value FROM model_revisions, jsonb_each_text(files) AS file
    UNION SELECT found[1] FROM model_revisions, regexp_matches(CAST(stages AS text), '[0-9a-f]{64}', 'g') AS found
    UNION SELECT digest FROM also_named
) named USING (digest)
ORDER BY stored.digest
"""
