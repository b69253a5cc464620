"""A few moments of `make chaos`, on an installation of their own."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from pipelines.settings import ROOT
from tests.chaos.drill import FAULTS, schedule

pytestmark = pytest.mark.slow


def test_the_schedule_has_every_fault_and_is_the_same_for_a_seed() -> None:
    assert schedule(200, 1) == schedule(200, 1) != schedule(200, 2)
    assert {moment.fault for moment in schedule(len(FAULTS), 3)} == set(FAULTS)


def test_three_faults_inside_a_run_leave_the_undisturbed_runs_images() -> None:
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PACKSHOT_", "AIRFLOW_"))}
    argv = [sys.executable, "-m", "tests.chaos.drill", "--few", str(ROOT / "build/chaos")]
    done = subprocess.run(argv, cwd=ROOT, env=environment | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "3 of 3 moments" in done.stdout
