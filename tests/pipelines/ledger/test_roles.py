"""Workers add to the ledger; nobody rewrites what ran, what was judged, what was decided and what was published."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import Engine, Text, text
from sqlalchemy.exc import DBAPIError

from pipelines.contracts import (
    Artifact,
    Job,
    ModelRef,
    Product,
    Publication,
    Shot,
    ShotStep,
    State,
    Step,
    Verdict,
    sha256_hex,
)
from pipelines.ledger.decisions import Choice, decide, undo
from pipelines.ledger.postgres import PostgresLedger, connect
from pipelines.ledger.roles import EVIDENCE, LOCKED, MEND, WORKING
from pipelines.ledger.schema import metadata, migrate

IMAGE = Artifact(sha256_hex(b"image"), "final", "image/jpeg", 5)


@pytest.fixture(scope="module")
def written(ledger: PostgresLedger, damage: Any) -> PostgresLedger:
    """A row in every table."""
    cup = Product("CUP-1", 2, "Cup", "Home", sha256_hex(b"photo"))
    shot = Shot(cup, "studio", "web")
    ledger.upsert_products([cup])
    ledger.record_scene("studio", {"name": "studio"})
    ledger.start_run("run", "catalog_refresh", "studio", "web")
    ledger.select("run", [shot], 8)
    job = Job("inspect", 1, {"final": IMAGE.sha256}, {}, (ModelRef("clip", "1", "a" * 64),))
    held = Verdict("halo", 0.4, 0.1, False, "a rim")
    step = ledger.record(Step(job.key, job, State.DONE, (IMAGE,), verdicts=(held,), seconds=1.0, device="cpu"))
    ledger.use("run", [(shot, [ShotStep(step, reused=False)])])
    ledger.settle("run")
    decide(ledger.engine, IMAGE.sha256, Choice.REJECT, "a person")
    ledger.publish("run", [Publication("CUP-1", "studio", "web", IMAGE.sha256)])
    damage("INSERT INTO spot_checks (final, run, shot) SELECT final, run, shot FROM run_shots WHERE final IS NOT NULL")
    revision = "'mini', 'unet', 'b'"
    damage(f"INSERT INTO model_revisions VALUES ({revision}, '', '{{}}', '', '{{}}', '{{}}', '{{}}', 'a person')")
    damage(
        'INSERT INTO model_promotions (profile, part, sha256, "by", reason, forced)'
        f" VALUES ({revision}, 'a person', '', false)"
    )
    return ledger


@pytest.fixture(scope="module")
def owner(settings, written: PostgresLedger) -> Engine:
    return connect(settings.owner_database_url)


def refusal(engine: Engine, statement: str) -> str:
    with pytest.raises(DBAPIError) as refused, engine.begin() as connection:
        connection.execute(text(statement))
    return str(refused.value.orig)


def test_every_table_is_evidence_or_work() -> None:
    assert set(EVIDENCE) ^ set(WORKING) == set(metadata.tables), "add a new table to EVIDENCE or to WORKING"
    assert set(EVIDENCE) >= LOCKED


@pytest.mark.parametrize("table", EVIDENCE)
def test_nobody_rewrites_evidence(written: PostgresLedger, owner: Engine, table: str) -> None:
    column = next(column.name for column in metadata.tables[table].columns if isinstance(column.type, Text))
    rewrite = f"UPDATE {table} SET {column} = {column} || 'x'"
    for statement in (rewrite, f"DELETE FROM {table}", f"TRUNCATE {table} CASCADE"):
        assert "append-only" in refusal(owner, statement), statement
        said = refusal(written.engine, statement)
        assert "permission denied" in said or "append-only" in said, statement
    with owner.connect() as connection:
        assert connection.scalar(text(f"SELECT count(*) FROM {table}")) > 0


@pytest.mark.parametrize(
    "statement",
    [
        "ALTER TABLE verdicts DISABLE TRIGGER ALL",
        "DROP TRIGGER packshot_rows ON verdicts",
        "CREATE OR REPLACE FUNCTION packshot_refuse() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END'",
        "SET session_replication_role = replica",
        "SET ROLE packshot",
        "CREATE TABLE mine (a int)",
        "DELETE FROM runs",
        "DELETE FROM products",
    ],
)
def test_a_worker_cannot_get_around_it(written: PostgresLedger, statement: str) -> None:
    said = refusal(written.engine, statement)
    assert "permission denied" in said or "must be owner" in said


def test_the_owner_mends_evidence_where_it_says_so_and_a_worker_cannot(written: PostgresLedger, owner: Engine) -> None:
    forged = "CREATE TEMPORARY TABLE pg_class AS SELECT oid, 'packshot_worker'::regrole::oid AS relowner FROM pg_class"
    said = refusal(written.engine, f"{forged}; {MEND}; UPDATE steps SET facts = '{{}}'")
    assert "append-only" in said
    for statement in ("UPDATE verdicts SET reason = 'mended'", "DELETE FROM verdicts", "TRUNCATE step_models"):
        said = refusal(written.engine, f"{MEND}; {statement}")
        assert "permission denied" in said or "append-only" in said
        with owner.begin() as connection:
            connection.execute(text(MEND))
            assert connection.execute(text(statement)).rowcount in (1, -1)
            connection.rollback()
    assert "append-only" in refusal(owner, "DELETE FROM verdicts")  # the next transaction


def test_migrating_replaces_the_triggers_of_an_older_condition(
    settings, written: PostgresLedger, owner: Engine
) -> None:
    names = "SELECT tgname FROM pg_trigger WHERE tgrelid = 'publications'::regclass AND tgname LIKE 'packshot%'"
    with owner.begin() as connection:
        before = set(connection.scalars(text(names)))
        (condition,) = [name for name in before if "values" in name]
        connection.execute(text(f"DROP TRIGGER {condition} ON publications"))
        older = "BEFORE UPDATE ON publications FOR EACH ROW WHEN (false) EXECUTE FUNCTION packshot_refuse()"
        connection.execute(text(f"CREATE TRIGGER packshot_values_older {older}"))
    migrate(settings.owner_database_url, "packshot_worker")
    with owner.connect() as connection:
        assert set(connection.scalars(text(names))) == before
    assert "append-only" in refusal(written.engine, "UPDATE publications SET digest = digest || 'x'")


def test_an_image_is_superseded_once_and_a_failed_step_is_tried_again(written: PostgresLedger) -> None:
    job = Job("cutout", 1, {"photo": sha256_hex(b"photo")}, {})
    written.record(Step(job.key, job, State.FAILED, reason="the disk was full"))
    done = Step(job.key, job, State.DONE, (IMAGE,), seconds=1.0, device="cpu")
    assert written.record(done) == done
    both = "UPDATE publications SET superseded_at = now(), digest = digest || 'x'"
    assert "append-only" in refusal(written.engine, both)
    with written.engine.begin() as connection:
        connection.execute(text("UPDATE publications SET superseded_at = now()"))
    assert "append-only" in refusal(written.engine, "UPDATE publications SET superseded_at = NULL")


def test_a_decision_is_undone_once_and_keeps_what_it_was(written: PostgresLedger) -> None:
    for change in ("choice = 'approve'", "\"by\" = 'x'", "acted_run = 'run', final = 'x'"):
        assert "append-only" in refusal(written.engine, f"UPDATE decisions SET {change}")
    undo(written.engine, 1, "another person")
    assert "append-only" in refusal(written.engine, "UPDATE decisions SET undone_by = 'x'")
