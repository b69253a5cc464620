"""Peak memory of a command and of the embedded services while it runs: PSS, so that shared pages count once.

    python benchmarks/peak_memory.py make demo

Prints one JSON document: `peak_mb` (the largest sum that was seen), `seconds`, `by_service` at that moment.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

import psutil

from pipelines.settings import get_settings

EVERY_SECONDS = 1.0


def members(leader: int) -> set[psutil.Process]:
    """A process, its descendants, and whatever else lives in its session."""
    found = set()
    with suppress(psutil.NoSuchProcess):
        process = psutil.Process(leader)
        found |= {process, *process.children(recursive=True)}
    for process in psutil.process_iter():
        with suppress(ProcessLookupError, psutil.NoSuchProcess):
            if os.getsid(process.pid) == leader:
                found.add(process)
    return found


def pss_mb(process: psutil.Process) -> float:
    """Proportional set size; 0 for a process that has just ended."""
    with suppress(psutil.NoSuchProcess, psutil.AccessDenied, FileNotFoundError):
        return process.memory_full_info().pss / 1e6
    return 0.0


def sample(command: int, state_dir: Path) -> Counter[str]:
    """MB by service now, the command itself included."""
    leaders = {"command": command}
    for record in (state_dir / "run").glob("*.json"):
        with suppress(FileNotFoundError, ValueError):
            leaders[record.stem] = json.loads(record.read_text())["pid"]
    counted: set[psutil.Process] = set()
    by_service: Counter[str] = Counter()
    for name, leader in reversed(leaders.items()):  # the services first: `packshot up` is no longer their parent
        own = members(leader) - counted
        counted |= own
        by_service[name] = round(sum(map(pss_mb, own)))
    return by_service


def main() -> int:
    """Run the command, sample until it ends, print, and end as it did."""
    state_dir, since = get_settings().state_dir, time.monotonic()
    command = subprocess.Popen(sys.argv[1:], start_new_session=True)
    peak: Counter[str] = Counter()
    while command.poll() is None:
        peak = max(peak, sample(command.pid, state_dir), key=Counter.total)
        time.sleep(EVERY_SECONDS)
    seconds = round(time.monotonic() - since)
    print(json.dumps({"peak_mb": peak.total(), "seconds": seconds, "by_service": peak}))
    return command.returncode


if __name__ == "__main__":
    sys.exit(main())
