"""Processes that outlive the command that started them: each has a file under `run/` and a log under `logs/`."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from pipelines.errors import PackshotError
from pipelines.services.installation import write_private
from pipelines.settings import ROOT


class ServiceFailed(PackshotError):
    """A service did not start or does not answer. One line names it, and its log if it has one."""


@dataclass(frozen=True, slots=True)
class Daemon:
    """One process: its command, additions to our environment, and the signal for a clean stop."""

    name: str
    argv: Sequence[str]
    env: Mapping[str, str] = field(default_factory=dict)
    stop_signal: int = signal.SIGTERM
    cwd: Path = ROOT
    code: str = ""  # digest of code that the process reads only when it starts

    @property
    def fingerprint(self) -> str:
        """Changes if a running process no longer matches the settings."""
        what = [list(self.argv), sorted(self.env.items()), self.code]
        return hashlib.sha256(json.dumps(what).encode()).hexdigest()


@contextmanager
def one_at_a_time(state_dir: Path) -> Iterator[None]:
    """A lock: two `up` at the same time would start everything twice."""
    state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    for name in ("logs", "run"):
        (state_dir / name).mkdir(mode=0o700, exist_ok=True)
    with (state_dir / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def nobody_works(state_dir: Path) -> bool:
    """Whether no `up` and no `down` is at work."""
    with (state_dir / "lock").open("w") as lock, suppress(BlockingIOError):
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    return False


def log_file(state_dir: Path, name: str) -> Path:
    """The log of service `name`."""
    return state_dir / "logs" / f"{name}.log"


def _pid_file(state_dir: Path, name: str) -> Path:
    return state_dir / "run" / f"{name}.json"


def _recorded(state_dir: Path, name: str) -> dict | None:
    path = _pid_file(state_dir, name)
    return json.loads(path.read_text()) if path.exists() else None


def _started(pid: int) -> int:
    """Start time in clock ticks since boot: unlike a time of day it never shifts when the clock is set."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
    except (FileNotFoundError, ProcessLookupError):
        raise psutil.NoSuchProcess(pid) from None


def process(state_dir: Path, name: str) -> psutil.Process | None:
    """The running process of this service. A recycled pid has another start time, and does not count."""
    record = _recorded(state_dir, name)
    if record is None:
        return None
    with suppress(psutil.NoSuchProcess):
        leader = psutil.Process(record["pid"])
        if _started(leader.pid) == record["started"] and leader.status() != psutil.STATUS_ZOMBIE:
            return leader
    return None


def _session(state_dir: Path, name: str) -> list[psutil.Process]:
    """Every live process of the service's session, also workers and tasks that outlive a killed leader."""
    record = _recorded(state_dir, name)
    if record is None:
        return []
    members = []
    for member in psutil.process_iter():
        with suppress(psutil.NoSuchProcess, ProcessLookupError):
            same = os.getsid(member.pid) == record["pid"] and _started(member.pid) >= record["started"]
            if same and member.status() != psutil.STATUS_ZOMBIE:
                members.append(member)
    return members


def _start(state_dir: Path, daemon: Daemon) -> None:
    with log_file(state_dir, daemon.name).open("ab") as log:
        started = subprocess.Popen(
            daemon.argv,
            env={**os.environ, **daemon.env},
            cwd=daemon.cwd,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            umask=0o077,
        )
    record = {
        "pid": started.pid,
        "started": _started(started.pid),
        "fingerprint": daemon.fingerprint,
        "stop_signal": int(daemon.stop_signal),
    }
    write_private(_pid_file(state_dir, daemon.name), json.dumps(record))


def ask_to_stop(state_dir: Path, name: str) -> psutil.Process | None:
    """Signal the service's process, if there is one."""
    leader, record = process(state_dir, name), _recorded(state_dir, name)
    if leader is not None and record is not None:
        with suppress(psutil.NoSuchProcess):
            leader.send_signal(record["stop_signal"])
    return leader


def stop(state_dir: Path, name: str, seconds: float = 20) -> bool:
    """Signals the service, waits, kills what remains of its session. Returns whether anything was running."""
    members = _session(state_dir, name)
    leader = ask_to_stop(state_dir, name)
    if leader is not None:
        psutil.wait_procs([leader], timeout=seconds)
    leftovers = _session(state_dir, name)
    for leftover in leftovers:
        with suppress(psutil.NoSuchProcess):
            leftover.kill()
    psutil.wait_procs(leftovers, timeout=10)
    _pid_file(state_dir, name).unlink(missing_ok=True)
    return bool(members)


def ensure(state_dir: Path, daemon: Daemon) -> bool:
    """Starts `daemon`, or restarts it if its description changed. Returns whether it was started."""
    record = _recorded(state_dir, daemon.name)
    if record and record["fingerprint"] == daemon.fingerprint and process(state_dir, daemon.name):
        return False
    stop(state_dir, daemon.name)
    _start(state_dir, daemon)
    return True


def wait(state_dir: Path, name: str, ready: Callable[[], bool], seconds: float) -> None:
    """Waits for `ready()`. Raises ServiceFailed if the process ended or `seconds` are over."""
    log, deadline = log_file(state_dir, name), time.monotonic() + seconds
    while not ready():
        if process(state_dir, name) is None:
            last = log.read_text(errors="replace").strip().rpartition("\n")[2][:200]
            raise ServiceFailed(f"{name} stopped while starting ({last}): see {log}")
        if time.monotonic() > deadline:
            raise ServiceFailed(f"{name} did not answer within {seconds:.0f} s: see {log}")
        time.sleep(0.2)
