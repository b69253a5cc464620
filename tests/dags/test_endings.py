"""However a run ends in Airflow, it ends in the ledger within a minute, and people are notified of a failure."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine, text

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
