"""Who may write what in the ledger. Its owner migrates; a worker reads and inserts, and rewrites no evidence.

What ran, what was judged, what a person decided and what was published stays as it was written: triggers refuse every
change of such rows, also the owner's, unless it says so for its transaction (`MEND`), as a migration may have to. A
worker's role has no right to it in the first place. Every table is in one of the two lists; a test compares them with
the schema.
"""

from __future__ import annotations

from sqlalchemy import Connection, text

from pipelines.contracts import sha256_hex

NEVER = "false"

MEND = "SET LOCAL packshot.mend = 'on'"
"""Statement by which the owner, and nobody else, may rewrite evidence until the end of the transaction."""


def _sets(*columns: str) -> str:
    """The condition that nothing but these columns changes, which were empty."""
    names = ", ".join(f"'{column}'" for column in columns)
    kept = f"to_jsonb(OLD) - ARRAY[{names}] = to_jsonb(NEW) - ARRAY[{names}]"
    return f"OLD.{columns[0]} IS NULL AND {kept}"


EVIDENCE = {
    "product_versions": NEVER,
    "scenes": NEVER,
    "shots": NEVER,
    "artifacts": NEVER,
    "steps": "OLD.state = 'failed' AND OLD.key = NEW.key",
    "step_inputs": NEVER,
    "step_outputs": NEVER,
    "step_models": NEVER,
    "verdicts": NEVER,
    "decisions": f"({_sets('undone_at', 'undone_by')}) OR ({_sets('acted_run')})",
    "spot_checks": NEVER,
    "publications": _sets("superseded_at", "withdrawn_by"),
    "model_revisions": NEVER,
    "model_promotions": _sets("rolled_back_at", "rolled_back_by"),
}
"""Table → the condition on OLD and NEW under which a row may change. No row is ever deleted."""

WORKING = {
    "products": "UPDATE",
    "photo_links": "UPDATE",
    "runs": "UPDATE",
    "run_shots": "UPDATE, DELETE",
    "run_steps": "UPDATE, DELETE",
    "run_artifacts": "UPDATE",
    "lost_steps": "UPDATE, DELETE",
    "embeddings": "UPDATE, DELETE",
}
"""Table → what a worker may do besides reading and inserting: where runs and products stand now."""

LOCKED = frozenset({"shots"})
"""Evidence whose rows a publisher locks, for which Postgres asks for the right to update."""

_REFUSE = """
CREATE OR REPLACE FUNCTION packshot_refuse() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF current_setting('packshot.mend', true) = 'on'
       AND pg_has_role(current_user, (SELECT relowner FROM pg_class WHERE oid = TG_RELID), 'USAGE') THEN
        RETURN coalesce(NEW, OLD);
    END IF;
    RAISE EXCEPTION 'table % is append-only: what was written stays', TG_TABLE_NAME
        USING ERRCODE = 'insufficient_privilege';
END $$
"""

_THERE = r"""
SELECT tgrelid::regclass::text AS "table", array_agg(tgname::text) AS names
FROM pg_trigger WHERE tgname LIKE 'packshot\_%' GROUP BY tgrelid
"""


def protect(connection: Connection) -> None:
    """Give the tables of evidence their triggers. Tables that have them are left alone: no writer is waited for."""
    connection.execute(text(_REFUSE))
    there = {row.table: set(row.names) for row in connection.execute(text(_THERE))}
    for table in EVIDENCE:
        wanted = _triggers(table)
        if there.get(table) == set(wanted):
            continue
        for name in there.get(table, ()):  # of a version with another condition
            connection.execute(text(f"DROP TRIGGER {name} ON {table}"))
        for name, event in wanted.items():
            connection.execute(text(f"CREATE TRIGGER {name} BEFORE {event} EXECUTE FUNCTION packshot_refuse()"))


def _triggers(table: str) -> dict[str, str]:
    """Name → event of a table's triggers. A name holds the condition's digest, so that a changed one is noticed."""
    may_change = EVIDENCE[table]
    return {
        f"packshot_values_{sha256_hex(may_change.encode())[:8]}": (
            f"UPDATE ON {table} FOR EACH ROW WHEN (NOT ({may_change}))"
        ),
        "packshot_rows": f"DELETE ON {table} FOR EACH ROW",
        "packshot_table": f"TRUNCATE ON {table} FOR EACH STATEMENT",
    }


def grant(connection: Connection, worker: str, views: list[str]) -> None:
    """Give role `worker` its rights to every table and view. The role exists, and is not the owner."""
    role = connection.dialect.identifier_preparer.quote(worker)
    for table, may_change in EVIDENCE.items():
        update = ", UPDATE" if may_change != NEVER or table in LOCKED else ""
        connection.execute(text(f"GRANT SELECT, INSERT{update} ON {table} TO {role}"))
    for table, rights in WORKING.items():
        connection.execute(text(f"GRANT SELECT, INSERT, {rights} ON {table} TO {role}"))
    for view in views:
        connection.execute(text(f'GRANT SELECT ON "{view}" TO {role}'))
    # before version 17 ANALYZE by a worker is a warning and does nothing
    if (connection.dialect.server_version_info or ()) >= (17,):
        connection.execute(text(f"GRANT MAINTAIN ON run_shots TO {role}"))
