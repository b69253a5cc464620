"""Starts what died again: a process beside the embedded services that sees every few seconds whether they live.

    python -m pipelines.services.supervisor SERVICE...

`packshot up` starts it and names what to look after; `packshot down` stops it before everything else. What is to be
done about a dead service is `up`'s knowledge: it runs in a process of its own, so that this one stays small.
"""

from __future__ import annotations

import logging
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from pipelines.services.daemons import Daemon, log_file, nobody_works, process
from pipelines.settings import read_settings

log = logging.getLogger("supervisor")

SUPERVISOR = "supervisor"

PAUSE = 5.0
"""Seconds between two looks."""

LONGEST_PAUSE = 300.0
"""After each attempt that failed the pause doubles, up to so long: a full disk is not mended by trying."""


def supervisor(env: Mapping[str, str], services: Sequence[str]) -> Daemon:
    """The process that looks after these services, with the settings in `env` besides those that `up` writes."""
    return Daemon(SUPERVISOR, [sys.executable, "-m", "pipelines.services.supervisor", *services], env)


def last_word(state_dir: Path) -> str:
    """What the supervisor did last, with its time; "" if nothing has died."""
    file = log_file(state_dir, SUPERVISOR)
    return file.read_text("utf-8", errors="replace").strip().rpartition("\n")[2] if file.exists() else ""


def look_after(state_dir: Path, services: Sequence[str]) -> None:
    """Never returns."""
    pause = PAUSE
    while True:
        time.sleep(pause)
        if not nobody_works(state_dir):  # an `up` or a `down` is doing it
            continue
        dead = [name for name in services if process(state_dir, name) is None]
        pause = PAUSE if not dead or _start_again(dead, services) else min(2 * pause, LONGEST_PAUSE)


def _start_again(dead: Sequence[str], services: Sequence[str]) -> bool:
    names, since = ", ".join(dead), time.monotonic()
    log.warning("%s died: starting again", names)
    argv = [sys.executable, "-m", "pipelines.services.supervisor", "--once", *services]
    done = subprocess.run(argv, stderr=subprocess.PIPE, text=True)
    if done.returncode:
        why = done.stderr.strip().rpartition("\n")[2][:300]
        log.error("%s died and could not be started again: %s", names, why)
        return False
    log.warning("%s died, and runs again since %.0f s after that was noticed", names, time.monotonic() - since)
    return True


def _once(services: Sequence[str]) -> None:
    from pipelines.services.lifecycle import AIRFLOW, up

    up(read_settings(), airflow=any(name in AIRFLOW for name in services))


if __name__ == "__main__":
    logging.basicConfig(format="%(asctime)s %(message)s", datefmt="%Y-%m-%d %H:%M:%S", stream=sys.stderr)
    if sys.argv[1] == "--once":
        _once(sys.argv[2:])
    else:
        look_after(read_settings().state_dir, sys.argv[1:])
