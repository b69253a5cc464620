"""A campaign on a running installation: Airflow's own scheduler, workers and REST API, driven by the command line."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from pipelines.errors import UsageError
from pipelines.services.airflow_client import Airflow
from pipelines.settings import ROOT, Settings

pytestmark = pytest.mark.slow

SAMPLE = ROOT / "pipelines" / "sample"
PRODUCTS = ("SMP-003", "SMP-004")  # the checks pass them in both scenes by a wide margin


def packshot(*arguments: str, code: int = 0) -> dict[str, Any]:
    """Run the command with --json; returns its document."""
    argv = [sys.executable, "-m", "pipelines.cli.main", *arguments, "--json"]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == code, done.stderr[-3000:]
    return json.loads(done.stdout)


def days() -> tuple[date, date]:
    """Yesterday and today, now: midnight may fall within the test."""
    today = datetime.now(UTC).date()
    return today - timedelta(days=1), today


def campaign(*more: str) -> dict[str, Any]:
    """Two days of the other scene."""
    first, last = days()
    return packshot("campaign", "--scene", "studio-sage", "--from", str(first), "--to", str(last), *more)


@pytest.fixture(scope="module")
def airflow(airflow_up: Settings):
    with Airflow(airflow_up) as api:
        yield api


@pytest.fixture(scope="module")
def refreshed(airflow: Airflow, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Two products of the sample in one scene: what the campaign finds."""
    folder = tmp_path_factory.mktemp("feed")
    with (SAMPLE / "catalog.csv").open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["id"] in PRODUCTS]
    for row in rows:
        name = Path(row["image_link"]).name
        (folder / name).write_bytes((SAMPLE / row["image_link"]).read_bytes())
        row["image_link"] = name
    with (folder / "catalog.csv").open("w", encoding="utf-8", newline="") as file:
        out = csv.DictWriter(file, ("id", "title", "product_type", "image_link"), extrasaction="ignore")
        out.writeheader()
        out.writerows(rows)
    return packshot("run", str(folder / "catalog.csv"), "--scene", "oak-window", "--wait")


def test_airflow_reads_the_dags_and_has_the_pool(airflow: Airflow) -> None:
    assert airflow.import_errors() == []
    assert airflow.dag_ids() == ["brushnet_finetune", "campaign_backfill", "catalog_refresh"]
    assert airflow.pools()["gpu"] == 1
    assert airflow.health()["scheduler"] == "healthy"


def test_what_airflow_refuses_is_told_in_one_line(airflow: Airflow) -> None:
    yesterday, today = days()
    for refused, reason in (
        (lambda: airflow.trigger("catalog_refresh", {"scene": "nowhere"}), "'nowhere' is not one of"),
        (lambda: airflow.trigger("no_such_dag", {}), "no_such_dag"),
        (lambda: airflow.trigger("campaign_backfill", {}), "does not allow manual runs"),
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
    assert refreshed["products"] == len(PRODUCTS)
    assert refreshed["failed"] == 0


def test_a_dry_run_forecasts_and_computes_nothing(refreshed) -> None:
    told = campaign("--dry-run")
    assert len(told["runs"]) == 2
    assert told["shots"] == len(PRODUCTS)
    assert told["reused"] == 2 * len(PRODUCTS), "cutout and description of each"
    assert told["seconds_expected"] > 0
    for run in told["runs"]:
        assert packshot("report", run)["products"] == 0


def test_a_campaign_reuses_cutouts_and_descriptions_and_its_repetition_everything(refreshed) -> None:
    told = campaign("--wait")
    assert told["shots"] == len(PRODUCTS)
    reports = [packshot("report", run) for run in told["runs"]]
    reports.sort(key=lambda report: report["products"])
    assert [report["products"] for report in reports] == [0, len(PRODUCTS)], "the products were new on one day"
    for report in reports:
        assert report["steps"]["cutout"]["computed"] == 0
        assert report["steps"]["describe"]["computed"] == 0
        assert report["failed"] == 0
    assert reports[1]["steps"]["generate"]["computed"] >= len(PRODUCTS)
    assert reports[1]["published"] == len(PRODUCTS)

    again = campaign("--wait")
    assert set(again["runs"]).isdisjoint(told["runs"])
    for run in again["runs"]:
        steps = packshot("report", run)["steps"]
        assert {stage: count["computed"] for stage, count in steps.items()} == dict.fromkeys(steps, 0)
