"""What an operator gets from Airflow, as much of it as ours use."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest


class TaskInstance:
    """Keeps what is pushed; pulls it again."""

    def __init__(self) -> None:
        self.pushed: dict[str, Any] = {}

    def xcom_push(self, key: str, value: Any) -> None:
        self.pushed[key] = value

    def xcom_pull(self, task_ids: str, key: str) -> Any:
        return self.pushed.get(key)


@pytest.fixture
def context() -> dict[str, Any]:
    form = dict.fromkeys(("feed", "scene", "categories", "skus", "limit", "reprocess"))
    return {
        "ti": TaskInstance(),
        "dag": SimpleNamespace(dag_id="catalog_refresh", params=form),
        "dag_run": SimpleNamespace(conf={}),
        "params": {"asked": "by a test"},
    }
