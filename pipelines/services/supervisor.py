"""Starts again what died of the embedded services, or lives and works no more: a process beside them.

`packshot up` starts it, and `packshot down` stops it before everything else. What is to be done about a dead service is
`up`'s knowledge: it runs in a process of its own, as `packshot up` does.
"""

from __future__ import annotations

import logging
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from pipelines.services.airflow_client import Airflow
from pipelines.services.airflow_server import API_SERVER, COMPONENTS, mute
from pipelines.services.daemons import Daemon, log_file, nobody_works, process
from pipelines.settings import Settings, read_settings

log = logging.getLogger("supervisor")

SUPERVISOR = "supervisor"

PAUSE = 5.0
"""Seconds between two looks."""

LONGEST_PAUSE = 60.0
"""After each attempt that failed the pause doubles, up to so long: a full disk is not mended by trying."""

MUTE = 45.0
"""Seconds for which a component of Airflow may be late, once Airflow calls its heartbeat too old (after 30 s)."""


def supervisor(env: Mapping[str, str], services: Sequence[str]) -> Daemon:
    """The process that looks after these services, with the settings in `env` besides those that `up` writes."""
    return Daemon(SUPERVISOR, _argv("main", services), env)


def last_word(state_dir: Path) -> str:
    """What the supervisor did last, with its time; "" if nothing has died."""
    file = log_file(state_dir, SUPERVISOR)
    return file.read_text("utf-8", errors="replace").strip().rpartition("\n")[2] if file.exists() else ""


def main() -> None:
    """Looks after the services that the command line names, for ever."""
    logging.basicConfig(format="%(asctime)s %(message)s", datefmt="%Y-%m-%d %H:%M:%S", stream=sys.stderr)
    services, late, pause = sys.argv[1:], _Late(), PAUSE
    while True:
        time.sleep(pause)
        settings = read_settings()
        if not nobody_works(settings.state_dir):  # an `up` or a `down` is doing it
            late = _Late()
            continue
        gone = {name: "died" for name in services if process(settings.state_dir, name) is None}
        if not gone:
            gone = dict.fromkeys(late.see(_mute(settings, services)), "works no more")
        pause = PAUSE if not gone or _start_again(gone, services) else min(2 * pause, LONGEST_PAUSE)


def start() -> None:
    """`up` for the services that the command line names."""
    from pipelines.services.lifecycle import AIRFLOW, up

    up(read_settings(), airflow=any(name in AIRFLOW for name in sys.argv[1:]))


class _Late:
    """Since when each component has been late."""

    def __init__(self) -> None:
        self._since: dict[str, float] = {}

    def see(self, late: Sequence[str]) -> list[str]:
        """Takes in what is late now; returns what has been so for MUTE seconds."""
        now = time.monotonic()
        self._since = {name: self._since.get(name, now) for name in late}
        return [name for name, since in self._since.items() if now - since >= MUTE]


def _mute(settings: Settings, services: Sequence[str]) -> list[str]:
    if API_SERVER not in services:
        return []
    with Airflow(settings, timeout=10) as api:
        return [name for name in mute(api) if name in COMPONENTS and name in services]


def _start_again(gone: Mapping[str, str], services: Sequence[str]) -> bool:
    what, since = ", ".join(f"{name} {how}" for name, how in gone.items()), time.monotonic()
    log.warning("%s: starting again", what)
    done = subprocess.run(_argv("start", services), stderr=subprocess.PIPE, text=True)
    if done.returncode:
        log.error("%s, and could not be started again: %s", what, done.stderr.strip().rpartition("\n")[2][:300])
        return False
    log.warning("%s, and runs again since %.0f s after that was noticed", what, time.monotonic() - since)
    return True


def _argv(function: str, services: Sequence[str]) -> list[str]:
    # not with -m: the package imports this module before it would be run
    return [sys.executable, "-c", f"from pipelines.services.supervisor import {function}; {function}()", *services]
