"""Worker processes end with the one that began them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

PARENT = """
import multiprocessing, os, sys, time
from pipelines.evaluation.processes import end_with_parent

def work():
    end_with_parent()
    print(os.getpid(), flush=True)
    time.sleep(600)

if __name__ == "__main__":
    multiprocessing.get_context("spawn").Process(target=work).start()
    time.sleep(600)
"""


def test_a_worker_ends_when_its_parent_is_killed(tmp_path: Path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(PARENT, encoding="utf-8")
    parent = subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    worker = int(parent.stdout.readline())
    parent.kill()
    try:
        parent.communicate(timeout=20)  # the pipe ends when nobody holds it any more, the worker neither
    except subprocess.TimeoutExpired:
        os.kill(worker, signal.SIGKILL)
        raise
