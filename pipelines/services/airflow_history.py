"""What the embedded Airflow keeps of old runs: rows of its metadata, and the logs of its tasks. Packshot needs neither:
what was made, reused, held or rejected is in the ledger."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from pipelines.errors import UsageError
from pipelines.services.airflow_server import airflow_environment
from pipelines.services.daemons import ServiceFailed, process
from pipelines.services.installation import Installation
from pipelines.services.lifecycle import with_embedded
from pipelines.settings import ROOT, Settings

TABLES = ("dag_run", "task_instance", "task_instance_history", "task_reschedule", "xcom", "log", "job", "import_error")
"""What grows with every run. Runs take their task instances along."""


@dataclass(frozen=True, slots=True)
class History:
    """What is older than asked for: rows by table, files of task logs, and the bytes of these files."""

    applied: bool
    rows: dict[str, int]
    logs: int
    bytes: int


def old_history(settings: Settings, days: int, apply: bool, now: datetime | None = None) -> History:
    """Finds what is older than `days`, and with `apply` removes it. A run in progress is younger than that.

    Raises UsageError if Airflow is not ours, ServiceFailed if its own command fails.
    """
    settings = with_embedded(settings)
    if settings.airflow_url != Installation.read(settings.state_dir).airflow_url:
        raise UsageError(f"the Airflow at {settings.airflow_url} is not ours: run `airflow db clean` there")
    if process(settings.state_dir, "postgres") is None and "127.0.0.1" in settings.airflow_database_url:
        raise UsageError("Airflow's database does not run: `packshot up` starts it")
    before = (now or datetime.now(UTC)) - timedelta(days=days)
    rows = _clean(settings, before, apply)
    files = [(file, file.stat().st_size) for file in _old_logs(settings.state_dir / "logs" / "tasks", before)]
    if apply:
        for file, _ in files:
            file.unlink(missing_ok=True)
        _remove_empty(settings.state_dir / "logs" / "tasks")
    return History(apply, rows, len(files), sum(size for _, size in files))


def _clean(settings: Settings, before: datetime, apply: bool) -> dict[str, int]:
    """`airflow db clean`: table → rows that it found, where there are any."""
    argv = [sys.executable, "-m", "airflow", "db", "clean", "--clean-before-timestamp", before.isoformat(), "--yes"]
    argv += ["--skip-archive", "--error-on-cleanup-failure", "--tables", ",".join(TABLES)]
    env = {**os.environ, **airflow_environment(settings, Installation.read(settings.state_dir))}
    done = subprocess.run([*argv, *([] if apply else ["--dry-run"])], env=env, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise ServiceFailed(f"airflow db clean failed: {done.stderr.strip().rpartition(chr(10))[2][:300]}")
    found: dict[str, int] = {}
    for table, rows in re.findall(r"(?:Checking|dry run for) table (\w+)(?:.|\n)*?Found (\d+) rows", done.stdout):
        found[table] = int(rows)
    return {table: rows for table, rows in found.items() if rows}


def _old_logs(folder: Path, before: datetime) -> Iterator[Path]:
    for file in sorted(folder.rglob("*.log")):
        if file.is_file() and file.stat().st_mtime < before.timestamp():
            yield file


def _remove_empty(folder: Path) -> None:
    """Folders of runs whose last log is gone."""
    for inside in sorted((path for path in folder.rglob("*") if path.is_dir()), reverse=True):
        if not any(inside.iterdir()):
            inside.rmdir()
