"""What an operator gets from Airflow, as much of it as ours use."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest


class TaskInstance:
    """Keeps what is pushed, and pulls it again. `states` are those of a run's other tasks."""

    def __init__(self) -> None:
        self.pushed: dict[str, Any] = {}
        self.states: dict[str, str] = {}

    def xcom_push(self, key: str, value: Any) -> None:
        self.pushed[key] = value

    def xcom_pull(self, task_ids: str, key: str) -> Any:
        return self.pushed.get(key)

    def get_task_states(self, dag_id: str, task_ids: list[str], run_ids: list[str]) -> dict[str, dict[str, str]]:
        return {run: {name: self.states[name] for name in task_ids if name in self.states} for run in run_ids}


@pytest.fixture
def context() -> dict[str, Any]:
    form = dict.fromkeys(("feed", "scene", "categories", "skus", "limit", "reprocess"))
    return {
        "ti": TaskInstance(),
        "dag": SimpleNamespace(dag_id="catalog_refresh", params=form),
        "dag_run": SimpleNamespace(conf={}),
        "params": {"asked": "by a test"},
    }
