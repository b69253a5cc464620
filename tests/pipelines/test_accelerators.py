"""Two tasks on one machine compute on two accelerators."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from pipelines.accelerators import devices, lease
from pipelines.settings import ROOT

TASK = """
import sys
from pathlib import Path
from pipelines.accelerators import lease
print(lease(["0", "1"], Path(sys.argv[1])), flush=True)
sys.stdin.read()
"""


def start(folder: Path) -> tuple[subprocess.Popen[str], str]:
    argv = [sys.executable, "-c", TASK, str(folder)]
    task = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert task.stdout is not None
    return task, task.stdout.readline().strip()


def test_each_task_has_an_accelerator_until_it_is_killed(tmp_path: Path) -> None:
    (first, a), (second, b), (third, none) = (start(tmp_path) for _ in range(3))
    assert (a, b, none) == ("0", "1", "None")
    first.kill()
    first.wait()
    fourth, again = start(tmp_path)
    assert again == "0"
    for task in (second, third, fourth):
        task.kill()
        task.communicate()


def test_what_the_environment_shows_is_leased_and_one_device_needs_no_lease(tmp_path: Path) -> None:
    environment = {"CUDA_VISIBLE_DEVICES": "2,5"}
    assert devices(environment) == ["2", "5"]
    assert lease(None, tmp_path, environment) == environment["CUDA_VISIBLE_DEVICES"] == "2"
    assert lease(["0"], tmp_path, environment) is None
