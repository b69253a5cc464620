"""A campaign on a running installation: Airflow's own scheduler, workers and REST API, driven by the command line."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from typing import Any

import pytest

from pipelines.errors import UsageError
from pipelines.services.airflow_client import Airflow

pytestmark = pytest.mark.slow

PRODUCTS = 2


def days() -> tuple[date, date]:
    """Yesterday and today, now: midnight may fall within the test."""
    today = datetime.now(UTC).date()
    return today - timedelta(days=1), today


@pytest.fixture(scope="module")
def campaign(packshot) -> Callable[..., dict[str, Any]]:
    """Two days of another scene than the refresh's."""

    def run(*more: str) -> dict[str, Any]:
        first, last = days()
        return packshot("campaign", "--scene", "studio-sage", "--from", str(first), "--to", str(last), *more)

    return run


def test_airflow_reads_the_dags_and_has_the_pool(airflow: Airflow) -> None:
    assert airflow.import_errors() == []
    assert airflow.dag_ids() == [
        "brushnet_finetune",
        "campaign_backfill",
        "catalog_refresh",
        "housekeeping",
        "publish_reviewed",
    ]
    assert airflow.pools()["gpu"] == 1
    assert airflow.health()["scheduler"] == "healthy"


def test_what_airflow_refuses_is_told_in_one_line(airflow: Airflow) -> None:
    yesterday, today = days()
    for refused, reason in (
        (lambda: airflow.trigger("catalog_refresh", {"scene": "nowhere"}), "'nowhere' is not one of"),
        (lambda: airflow.trigger("no_such_dag", {}), "no_such_dag"),
        (lambda: airflow.trigger("campaign_backfill", {"scene": "nowhere"}), "'nowhere' is not one of"),
        (lambda: airflow.backfill("campaign_backfill", today, yesterday, {}), "ends .* before it begins"),
        (lambda: airflow.backfill("campaign_backfill", today + timedelta(5), today + timedelta(6), {}), "future"),
    ):
        with pytest.raises(UsageError, match=reason) as error:
            refused()
        assert "\n" not in str(error.value)


def test_the_run_went_through_pool_gpu(airflow: Airflow, refreshed) -> None:
    tasks = airflow.tasks("catalog_refresh", refreshed["run"])
    in_gpu = {task["task_id"] for task in tasks if task["pool"] == "gpu"}
    assert in_gpu == {f"shots.{stage}" for stage in ("cutout", "describe", "generate", "upscale", "inspect")}
    assert refreshed["products"] == PRODUCTS
    assert refreshed["failed"] == 0


def test_a_run_for_two_channels_is_followed_through_both(refreshed, packshot, feed) -> None:
    about = ("--scene", refreshed["scene"], "--channel", "shopify", "--channel", "google-merchant")
    told = packshot("run", str(feed), *about, "--reprocess", "failed", "--wait")  # nothing did, so nothing is made
    assert [(one["channel"], one["state"]) for one in told["channels"]] == [
        ("shopify", "success"),
        ("google-merchant", "success"),
    ]
    second = packshot("report", told["channels"][1]["run"])
    assert (second["group"], second["channel"]) == (told["run"], "google-merchant")
    assert (second["params"]["triggered_by"], second["products"]) == ("packshot run", 0)


def test_a_dry_run_forecasts_and_computes_nothing(refreshed, campaign, packshot) -> None:
    told = campaign("--dry-run")
    assert len(told["runs"]) == 2
    assert told["shots"] == PRODUCTS
    assert told["reused"] == 2 * PRODUCTS, "cutout and description of each"
    assert told["seconds_expected"] > 0
    for run in told["runs"]:
        assert packshot("report", run)["products"] == 0


def test_a_run_of_the_api_covers_the_named_products_whenever_they_changed(
    airflow: Airflow, refreshed, packshot
) -> None:
    conf = {"scene": "studio-sage", "skus": ["SMP-004"], "dry_run": True, "triggered_by": "the shop's own system"}
    run = airflow.trigger("campaign_backfill", conf)
    assert airflow.follow("campaign_backfill", run)
    told = packshot("report", run)
    assert told["params"]["forecast"]["shots"] == 1
    assert told["params"]["triggered_by"] == "the shop's own system"


def test_a_campaign_reuses_cutouts_and_descriptions_and_its_repetition_everything(
    refreshed, campaign, packshot
) -> None:
    told = campaign("--wait")
    assert told["shots"] == PRODUCTS
    reports = [packshot("report", run) for run in told["runs"]]
    reports.sort(key=lambda report: report["products"])
    assert [report["products"] for report in reports] == [0, PRODUCTS], "the products were new on one day"
    for report in reports:
        assert report["steps"]["cutout"]["computed"] == 0
        assert report["steps"]["describe"]["computed"] == 0
        assert report["failed"] == 0
    assert reports[1]["steps"]["generate"]["computed"] >= PRODUCTS
    assert reports[1]["published"] == PRODUCTS

    again = campaign("--wait")
    assert set(again["runs"]).isdisjoint(told["runs"])
    for run in again["runs"]:
        steps = packshot("report", run)["steps"]
        assert {stage: count["computed"] for stage, count in steps.items()} == dict.fromkeys(steps, 0)
