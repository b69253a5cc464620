"""How a session of the tests ends."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from pipelines.settings import ROOT

FAILS = """
import os
import pytest

@pytest.fixture
def browser(services):
    yield
    raise RuntimeError("no browser: " + os.environ["PACKSHOT_STATE_DIR"])

def test_one(browser): ...
def test_two(services): ...
"""


@pytest.mark.medium
def test_a_session_that_stops_at_an_error_of_a_fixtures_end_leaves_no_service_behind(tmp_path: Path) -> None:
    (tmp_path / "test_fails.py").write_text(FAILS)
    argv = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "tests.conftest", "-p", "no:cacheprovider"]
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PACKSHOT_", "AIRFLOW_", "PYTEST_"))}
    done = subprocess.run(
        [*argv, "--rootdir", str(tmp_path), str(tmp_path)],
        cwd=ROOT, env=environment | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
    )  # fmt: skip
    assert "stopping after 1 failures" in done.stdout
    state = Path(done.stdout.rpartition("no browser: ")[2].split()[0])
    assert not state.exists()
    left = [" ".join(process.info["cmdline"] or ()) for process in psutil.process_iter(["cmdline"])]
    assert [line for line in left if str(state) in line] == []
