"""However a run ends in Airflow, it ends in the ledger within a minute, and people are notified of a failure."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine, text

from pipelines.contracts import run_of_channel
from pipelines.ledger.postgres import connect
from pipelines.ledger.reports import Report, is_planned, report
from pipelines.services.airflow_client import Airflow
from pipelines.settings import Settings
from tests.receivers import Webhook

pytestmark = pytest.mark.slow

PATIENCE = 240  # seconds: a minute on a quiet machine


def soon(what: Callable[[], Any], seconds: float) -> Any:
    """What `what` returns, as soon as it is something."""
    until = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < until, f"not within {seconds} s"
        time.sleep(0.5)
    return found


def test_a_failed_a_timed_out_and_a_marked_run_close_within_a_minute_and_people_are_notified(
    airflow: Airflow, airflow_up: Settings, feed: Path, hook: Webhook
) -> None:
    ledger = connect(airflow_up.database_url)

    def started(dag_id: str, **conf: Any) -> str:
        run = airflow.trigger(dag_id, conf)
        soon(lambda: is_planned(ledger, run), 240)
        return run

    def closed(run: str) -> Report | None:
        found = report(ledger, run)
        return found if found.finished_at else None

    # 1. It fails by itself
    failed = started("campaign_backfill")
    soon(lambda: airflow.progress("campaign_backfill", failed).ended, 240)
    assert "no scene was chosen" in soon(lambda: closed(failed), PATIENCE).problem["reason"]

    # 2. A person marks it, 3. it takes too long: both while they compute
    marked, late = (started("catalog_refresh", feed=str(feed), limit=1) for _ in range(2))
    airflow.mark("catalog_refresh", marked, "failed")
    found = soon(lambda: closed(marked), PATIENCE)
    assert (found.state, found.pending) == ("failed", 0)
    assert found.problem["reason"].startswith("admin marked the run as failed in Airflow")

    with create_engine(airflow_up.airflow_database_url).begin() as metadata:
        metadata.execute(
            text("UPDATE dag_run SET start_date = now() - interval '3 days' WHERE run_id = :run"), {"run": late}
        )
    found = soon(lambda: closed(late), PATIENCE)
    assert (found.state, found.pending) == ("failed", 0)
    assert "time limit of 2 days" in found.problem["reason"]

    # 4. One notification each
    runs = {failed, marked, late}
    soon(lambda: runs <= {sent["run"] for sent in hook.received}, PATIENCE)
    sent = {one["run"]: one for one in hook.received if one["run"] in runs}
    assert sorted(one["run"] for one in hook.received if one["run"] in runs) == sorted(runs)
    assert {one["event"] for one in sent.values()} == {"run_failed"}
    assert "no scene was chosen" in sent[failed]["reason"]
    assert sent[late]["page"] == airflow.page("catalog_refresh", late)


def test_a_run_whose_next_channel_is_not_started_fails_and_names_it_until_the_task_is_cleared(
    airflow: Airflow, airflow_up: Settings, feed: Path, hook: Webhook
) -> None:
    """Of a run over no product, so that no stage runs."""
    ledger = connect(airflow_up.database_url)
    conf = {"feed": str(feed), "skus": ["none"], "channels": ["google-merchant", "shopify"]}
    run = airflow.trigger("catalog_refresh", conf)
    path = f"/api/v2/dags/catalog_refresh/dagRuns/{run}/taskInstances/next_channel"
    airflow._call("PATCH", path, json={"new_state": "failed"})

    def ended() -> str:
        found = airflow.progress("catalog_refresh", run)
        return found.state if found.ended else ""

    assert soon(ended, 300) == "failed"
    found = report(ledger, run)
    assert found.state == "failed"
    assert found.problem["reason"].startswith("the runs for shopify were not started: task next_channel failed")
    soon(lambda: run in {sent["run"] for sent in hook.received}, PATIENCE)
    assert "shopify" in next(sent["reason"] for sent in hook.received if sent["run"] == run)

    how = {"dry_run": False, "reset_dag_runs": True, "include_downstream": True, "only_failed": False}
    body = {"dag_run_id": run, "task_ids": ["next_channel"], **how}
    airflow._call("POST", "/api/v2/dags/catalog_refresh/clearTaskInstances", json=body)
    soon(lambda: report(ledger, run).state == "success", 300)
    soon(lambda: is_planned(ledger, run_of_channel(run, "shopify")), 300)


def test_old_history_of_airflow_is_listed_and_then_removed(airflow: Airflow, airflow_up: Settings, feed: Path) -> None:
    def ended(run: str) -> str:
        found = airflow.progress("housekeeping", run)
        return found.state if found.ended else ""

    with create_engine(airflow_up.airflow_database_url).begin() as metadata:
        old = metadata.execute(
            text("UPDATE log SET dttm = now() - interval '200 days' WHERE id = (SELECT min(id) FROM log) RETURNING id")
        ).scalar_one()

    def there() -> bool:
        with create_engine(airflow_up.airflow_database_url).connect() as metadata:
            return metadata.execute(text("SELECT count(*) FROM log WHERE id = :id"), {"id": old}).scalar_one() == 1

    listing = airflow.trigger("housekeeping", {})
    assert soon(lambda: ended(listing), 300) == "success"
    states = {task["task_id"]: task["state"] for task in airflow.tasks("housekeeping", listing)}
    assert states == {"list_history": "success", "remove_history": "skipped"}
    assert there()
    removing = airflow.trigger("housekeeping", {"remove": True, "days": 100})
    assert soon(lambda: ended(removing), 300) == "success"
    assert not there()
