"""What a fine-tune's form may ask wrongly; the whole of it runs in tests/dags/test_finetune_dag.py."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from operators.finetune import gather, train
from pipelines.errors import UsageError

FORM = {
    "source": "ledger", "folder": "", "salient_folder": "", "scenes": [], "categories": [], "salient_minutes": 0,
    "salient_steps": None, "minutes": 30.0, "steps": 1, "side": 64, "products": 2, "seeds": 1, "evaluate_minutes": 0,
    "promote": True,
}  # fmt: skip


def gathered(conf: dict[str, Any] | None = None, **changed: Any) -> dict[str, str]:
    dag, dag_run = SimpleNamespace(dag_id="brushnet_finetune", params=FORM), SimpleNamespace(conf=conf)
    return gather.function(params=FORM | changed, dag=dag, dag_run=dag_run)


def test_what_is_asked_wrongly_fails_at_once(ledger, store, context, tmp_path):
    with pytest.raises(UsageError, match="no parameter 'minute': is it 'minutes'"):
        gathered({"minute": 5})
    with pytest.raises(UsageError, match="name the folder"):
        gathered(source="folder")
    with pytest.raises(UsageError, match="not there"):
        gathered(source="folder", folder=str(tmp_path / "nowhere"))
    with pytest.raises(UsageError, match="minutes or steps"):
        gathered(minutes=0, steps=None)
    with pytest.raises(UsageError, match="no product with a published"):
        gathered()


def test_a_stage_without_a_budget_is_left_out(context):
    pictures = {"salient": "training", "instance": "0" * 64}
    assert train.function("salient", pictures, params=FORM) == {}
