"""Runs that their own last task does not close."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from pipelines.contracts import Product, Shot, ShotState
from pipelines.ledger.endings import end_run, note_failure, notifying, open_runs, open_unplanned, reopen_run
from pipelines.ledger.postgres import PostgresLedger
from pipelines.ledger.reports import report

KILLED = "task shots.generate[3] failed (its process was killed)"


def begin(ledger: PostgresLedger, run: str) -> None:
    product = Product("CUP-1", 2, "Cup", "Kitchen", "0" * 64)
    ledger.upsert_products([product])
    ledger.start_run(run, "catalog_refresh", "oak", "web")
    ledger.select(run, [Shot(product, "oak", "web")], 8)


def opened(ledger: PostgresLedger, run: str) -> str | None:
    """State of a run that is to be closed or notified."""
    return next((found.state for found in open_runs(ledger.engine) if found.run == run), None)


def try_to_notify(ledger: PostgresLedger, run: str) -> None:
    with notifying(ledger.engine, run) as mine:
        assert mine
        raise OSError("the receiver is away")


def test_a_run_that_airflow_ended_is_closed_once_and_leaves_no_shot_pending(ledger: PostgresLedger) -> None:
    begin(ledger, "ended")
    note_failure(ledger.engine, "ended", "catalog_refresh", KILLED, {})
    note_failure(ledger.engine, "ended", "catalog_refresh", "another, later", {})
    assert end_run(ledger.engine, "ended", "failed", "")
    assert not end_run(ledger.engine, "ended", "success", "")
    found = report(ledger.engine, "ended")
    assert (found.state, found.pending, found.problem) == ("failed", 0, {"reason": KILLED})
    assert found.finished_at is not None
    assert [(shot.state, "ended before" in shot.reason) for shot in found.shots] == [(ShotState.FAILED, True)]


def test_the_summary_of_a_run_keeps_the_failed_task_and_a_success_forgets_it(ledger: PostgresLedger) -> None:
    begin(ledger, "summed-up")
    note_failure(ledger.engine, "summed-up", "catalog_refresh", KILLED, {})
    ledger.finish_run("summed-up", "failed")
    assert report(ledger.engine, "summed-up").problem == {"reason": KILLED}
    ledger.finish_run("summed-up", "success")
    assert report(ledger.engine, "summed-up").problem is None


def test_a_run_whose_plan_failed_is_in_the_ledger_too(ledger: PostgresLedger) -> None:
    note_failure(ledger.engine, "unplanned", "catalog_refresh", KILLED, {"scene": "oak"})
    open_unplanned(ledger.engine, "unplanned", "catalog_refresh")
    assert opened(ledger, "unplanned") == "running"
    assert report(ledger.engine, "unplanned").scene == "oak"
    assert end_run(ledger.engine, "unplanned", "failed", "")


def test_people_are_notified_once_and_again_only_after_the_run_failed_again(ledger: PostgresLedger) -> None:
    begin(ledger, "ended-badly")
    end_run(ledger.engine, "ended-badly", "failed", KILLED)
    with pytest.raises(OSError, match="away"):
        try_to_notify(ledger, "ended-badly")
    assert opened(ledger, "ended-badly") == "failed"
    with (
        notifying(ledger.engine, "ended-badly") as mine,
        notifying(ledger.engine, "ended-badly") as of_another_scheduler,
    ):
        assert (mine, of_another_scheduler) == (True, False)
    assert opened(ledger, "ended-badly") is None

    now = datetime.now(UTC)
    reopen_run(ledger.engine, "ended-badly", now - timedelta(hours=1))
    assert report(ledger.engine, "ended-badly").state == "failed", "Airflow began it before it was closed"
    reopen_run(ledger.engine, "ended-badly", now + timedelta(seconds=1))
    assert (report(ledger.engine, "ended-badly").state, opened(ledger, "ended-badly")) == ("running", "running")
    end_run(ledger.engine, "ended-badly", "failed", KILLED)
    assert opened(ledger, "ended-badly") == "failed"
