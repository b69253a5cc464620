"""What a fine-tune's form may ask wrongly; the whole of it runs in tests/dags/test_finetune_dag.py."""

from __future__ import annotations

from typing import Any

import pytest

from operators.finetune import GatherPicturesOperator, TrainStageOperator
from pipelines.errors import UsageError

BUDGET = {"salient_minutes": "0", "salient_steps": "", "minutes": "30.0", "steps": "1", "side": "64"}


def gathering(**changed: Any) -> GatherPicturesOperator:
    asked = {"source": "ledger", "folder": "", "salient_folder": "", "scenes": "null", "categories": '[""]'}
    return GatherPicturesOperator(task_id="gather", **(asked | BUDGET | changed))


def test_what_is_asked_wrongly_fails_at_once(ledger, store, context, tmp_path):
    with pytest.raises(UsageError, match="name the folder"):
        gathering(source="folder").execute(context)
    with pytest.raises(UsageError, match="not there"):
        gathering(source="folder", folder=str(tmp_path / "nowhere")).execute(context)
    with pytest.raises(UsageError, match="minutes or steps"):
        gathering(minutes="0", steps="").execute(context)
    with pytest.raises(UsageError, match="no product with a published"):
        gathering().execute(context)


def test_a_stage_without_a_budget_is_left_out(context):
    pictures = {"salient": "training", "instance": "0" * 64}
    more = {"products": "2", "seeds": "1", "evaluate_minutes": "0"}
    assert TrainStageOperator(task_id="s", stage="salient", pictures=pictures, **BUDGET, **more).execute(context) == {}
