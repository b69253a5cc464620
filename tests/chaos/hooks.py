"""What a drill adds to Airflow's processes: recorded stage outputs, and moments at which a process waits for a fault.

Airflow imports `airflow_local_settings` of its configuration folder in every process; the drill puts one there that
calls `install`. Packshot itself knows nothing of it. The folder of a drill has:

    recorded/KEY    what a stage made, by its key without the attempt; the first run computes and records it
    computed        a line for every step that was computed: time and key
    armed.json      the moment to wait for: task, where, and how many times it is passed
    reached.json    the process that has reached it; it waits until `go` is there
"""

from __future__ import annotations

import json
import os
import pickle
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import timedelta
from importlib import import_module
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, event

from pipelines.contracts import Made
from pipelines.errors import Rejected
from pipelines.stages import keys
from pipelines.store import S3Store
from pipelines.workflow import Recipe, Stage, Work

PLACES = ("computing", "reading", "writing", "committing")
WAIT = 240.0
"""Seconds that a process waits for its fault at most."""

HEAVY = (
    "torch",
    "great_expectations",
    "pipelines.quality.tables",
    "pipelines.stages.publish",
    "pipelines.ledger.checked",
)
"""What tasks import, once for all of them: a drill is not about that."""

_task = ""
_passed: Counter[str] = Counter()


def install(folder: Path) -> None:
    """Replays stages in this process, and lets it wait at moments."""
    for name, stage in keys.STAGES.items():
        keys.STAGES[name] = replace(stage, load=lambda recipe: None, compute=_replaying(stage, folder))
    S3Store.get = _waiting(S3Store.get, "reading", folder)  # type: ignore[method-assign]
    S3Store.put = _waiting(S3Store.put, "writing", folder)  # type: ignore[method-assign]
    event.listen(Engine, "commit", lambda connection: moment("committing", folder))
    if "scheduler" in sys.argv:
        for module in HEAVY:
            import_module(module)


def note_tasks(task: Any) -> None:
    """A cluster policy: tasks are retried within seconds, and each notes its name before it works."""
    from operators.base import PackshotOperator

    task.retry_delay, task.retry_exponential_backoff = timedelta(seconds=3), 0

    def pre_execute(self: Any, context: Any) -> None:
        global _task
        _task = self.task_id.rpartition(".")[2] if self.dag_id == "catalog_refresh" else ""
        _passed.clear()

    PackshotOperator.pre_execute = pre_execute  # type: ignore[method-assign]


def moment(where: str, folder: Path) -> None:
    """Waits here if this is the moment that the drill has armed."""
    armed = folder / "armed.json"
    if not _task or not armed.exists():
        return
    try:
        wanted = json.loads(armed.read_text())
        if (wanted["task"], wanted["where"]) != (_task, where):
            return
        _passed[where] += 1
        if _passed[where] < wanted["nth"]:
            return
        armed.rename(folder / "taken.json")
    except (FileNotFoundError, json.JSONDecodeError):
        return
    (folder / "reached.new").write_text(json.dumps({"pid": os.getpid()}))
    (folder / "reached.new").rename(folder / "reached.json")
    until = time.monotonic() + WAIT
    while not (folder / "go").exists() and time.monotonic() < until:
        time.sleep(0.05)


def _waiting(method: Callable[..., Any], where: str, folder: Path) -> Callable[..., Any]:
    def wrapped(self: S3Store, *arguments: Any) -> Any:
        moment(where, folder)
        return method(self, *arguments)

    return wrapped


def _replaying(stage: Stage, folder: Path) -> Callable[..., Any]:
    """The stage's function: what is recorded, otherwise the real one, recorded."""

    models: list[Any] = []

    def compute(works: Sequence[Work], _: None, recipe: Recipe) -> list[Made | Rejected]:
        made = []
        for work in works:
            with (folder / "computed").open("a") as log:
                log.write(f"{time.time()} {work.job.key}\n")
            file = folder / "recorded" / replace(work.job, attempt="").key
            if not file.exists():
                models[:] = models or [stage.load(recipe)]
                [result] = stage.compute([work], models[0], recipe)
                file.parent.mkdir(exist_ok=True)
                file.with_suffix(".new").write_bytes(pickle.dumps(result))
                file.with_suffix(".new").rename(file)
            made.append(pickle.loads(file.read_bytes()))  # of this drill's own folder
            moment("computing", folder)
        return made

    return compute
