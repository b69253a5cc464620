"""Who may write what in the ledger. Its owner migrates; a worker reads and inserts, and rewrites no evidence.

What ran, what was judged, what a person decided and what was published stays as it was written: triggers refuse every
change of such rows, also the owner's, unless it says so for its transaction (`MEND`), as a migration may have to. A
worker's role has no right to it in the first place. Every table is in one of the two lists; a test compares them with
the schema.
"""

from __future__ import annotations

from sqlalchemy import Connection, text

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
    "approvals": NEVER,
    "publications": _sets("superseded_at"),
    "model_revisions": NEVER,
    "model_promotions": _sets("rolled_back_at", "rolled_back_by"),
}
"""Table → the condition on OLD and NEW under which a row may change. No row is ever deleted."""

WORKING = {
    "products": "UPDATE",
    "runs": "UPDATE",
    "run_shots": "UPDATE, DELETE",
    "run_steps": "UPDATE, DELETE",
    "run_artifacts": "UPDATE",
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

_PROTECTED = "SELECT tgrelid::regclass::text FROM pg_trigger WHERE tgname = 'packshot_keep_rows'"


def protect(connection: Connection) -> None:
    """Give the tables of evidence their triggers. Tables that have them are left alone: no writer is waited for."""
    connection.execute(text(_REFUSE))
    there = set(connection.scalars(text(_PROTECTED)))
    for table in [table for table in EVIDENCE if table not in there]:
        refuse = "EXECUTE FUNCTION packshot_refuse()"
        may_change = EVIDENCE[table]
        for statement in (
            f"packshot_keep_values BEFORE UPDATE ON {table} FOR EACH ROW WHEN (NOT ({may_change})) {refuse}",
            f"packshot_keep_rows BEFORE DELETE ON {table} FOR EACH ROW {refuse}",
            f"packshot_keep_table BEFORE TRUNCATE ON {table} FOR EACH STATEMENT {refuse}",
        ):
            connection.execute(text(f"CREATE TRIGGER {statement}"))


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
    if (connection.dialect.server_version_info or ()) >= (
        17,
    ):  # before, ANALYZE by a worker is a warning and does nothing
        connection.execute(text(f"GRANT MAINTAIN ON run_shots TO {role}"))
