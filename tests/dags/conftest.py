"""A running installation in which two products of the sample were refreshed, for everything that starts runs of it."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipelines.scenes import scene_names
from pipelines.services.airflow_client import Airflow
from pipelines.settings import ROOT, Settings

SAMPLE = ROOT / "pipelines" / "sample"
PRODUCTS = ("SMP-004", "SMP-013")  # the checks pass them by a wide margin in every scene that these tests use


@pytest.fixture(scope="session")
def airflow(airflow_up: Settings):
    with Airflow(airflow_up) as api:
        yield api


@pytest.fixture(scope="session")
def packshot(airflow_up: Settings) -> Callable[..., dict[str, Any]]:
    """Run the command with --json; returns its document."""

    def run(*arguments: str, code: int = 0) -> dict[str, Any]:
        argv = [sys.executable, "-m", "pipelines.cli.main", *arguments, "--json"]
        done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == code, done.stderr[-3000:]
        return json.loads(done.stdout)

    return run


@pytest.fixture(scope="session")
def feed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A feed of PRODUCTS alone. Tests that share a ledger read no other one: some count all products."""
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
    return folder / "catalog.csv"


@pytest.fixture(scope="session")
def refreshed(packshot, feed: Path) -> dict[str, Any]:
    """The report of a refresh of PRODUCTS in the first scene, which is the one that the form of a refresh offers."""
    return packshot("run", str(feed), "--scene", scene_names()[0], "--wait")
