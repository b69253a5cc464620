"""Policy over the whole DagBag: what Airflow would only tell at three in the morning."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from dataclasses import fields
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from airflow.dag_processing.dagbag import DagBag
from airflow.sdk import BaseOperator
from airflow.sdk.definitions.mappedoperator import MappedOperator
from airflow.timetables.base import DagRunInfo
from airflow.triggers.callback import CallbackTrigger
from packshot_timetable import ByHandOrBackfill

from operators.base import RETRY_POLICY
from operators.deadline import notify_late
from operators.finetune import Form
from operators.policy import OWNER, Tag
from operators.stages import StageOperator
from pipelines.scenes import scene_names
from pipelines.settings import ROOT, Settings, get_settings
from tests.receivers import webhook

MAKING = {"catalog_refresh": "catalog_refresh.py", "campaign_backfill": "campaign_backfill.py"}
"""DAGs that make images."""

DAGS = MAKING | {
    "brushnet_finetune": "brushnet_finetune.py",
    "housekeeping": "housekeeping.py",
    "publish_reviewed": "publish_reviewed.py",
}
STAGES = ["cutout", "describe", "generate", "upscale", "inspect"]
POOLS = {"default_pool": 128, "gpu": Settings.model_fields["gpu_slots"].default}
HEAVY = ["torch", "torchvision", "diffusers", "transformers", "PIL", "numpy", "pandas", "cv2", "scipy"]
HEAVY += ["great_expectations", "pipelines.ledger", "minio", "segment_anything_hq"]
MODULES_OF_A_DAG = 100
"""That parsing a DAG imports besides Airflow: the dag processor does it every few seconds."""


@pytest.fixture(scope="module")
def bag() -> DagBag:
    return DagBag(str(ROOT / "dags"), known_pools=set(POOLS))


@pytest.fixture(scope="module")
def tasks(bag: DagBag) -> list[tuple[str, BaseOperator | MappedOperator]]:
    return [(f"{dag.dag_id}.{task.task_id}", task) for dag in bag.dags.values() for task in dag.tasks]


def test_every_file_is_one_dag_of_its_name_without_errors(bag: DagBag) -> None:
    assert bag.import_errors == {}
    assert {dag_id: Path(dag.fileloc).name for dag_id, dag in bag.dags.items()} == DAGS


def test_tags_are_known_and_every_dag_explains_itself(bag: DagBag) -> None:
    for dag in bag.dags.values():
        assert dag.tags
        assert dag.tags <= {tag.value for tag in Tag}, f"{dag.dag_id}: unknown tag in {dag.tags}"
        assert dag.description
        assert len(dag.doc_md or "") > 400, f"{dag.dag_id}: too little documentation"
        assert not dag.catchup
        assert dag.max_active_runs <= 2
        assert dag.dagrun_timeout


def test_every_task_has_owner_retries_and_a_time_limit(tasks) -> None:
    for name, task in tasks:
        assert task.owner == OWNER, name
        waits = [task.retry_delay * task.retry_exponential_backoff**n for n in range(task.retries)]
        assert len(waits) == 4, name
        assert sum((min(wait, task.max_retry_delay) for wait in waits), timedelta()) >= timedelta(minutes=15), name
        assert task.execution_timeout is not None, name
        assert task.execution_timeout <= timedelta(hours=6), name


def test_every_task_gives_up_at_once_on_what_no_retry_can_mend(tasks) -> None:
    for name, task in tasks:
        assert task.retry_policy is RETRY_POLICY, name


def test_gpu_work_is_in_pool_gpu_and_nothing_else_is(tasks) -> None:
    in_gpu = {name for name, task in tasks if task.pool == "gpu"}
    painting = {f"{dag}.shots.{stage}" for dag in MAKING for stage in STAGES}
    assert in_gpu == painting | {f"brushnet_finetune.{task}" for task in ("salient", "instance", "register")}
    assert all(task.pool == "default_pool" for name, task in tasks if name not in in_gpu)
    assert {name: task.queue for name, task in tasks} == {
        name: "gpu" if name in in_gpu else "default" for name, _ in tasks
    }  # Celery workers of machines without an accelerator take the others


def test_what_is_ready_is_published_before_more_is_made_and_begun_shards_are_finished_first(bag: DagBag, tasks) -> None:
    assert {str(task.weight_rule) for _, task in tasks} == {"absolute"}
    weights = {name: task.priority_weight for name, task in tasks}
    for dag in MAKING:
        stages = [weights[f"{dag}.shots.{stage}"] for stage in STAGES]
        assert stages == sorted(set(stages))
        assert max(stages) < min(weights[f"{dag}.{task}"] for task in ("check_scores", "publish", "summary"))


@pytest.mark.medium
def test_a_run_may_use_every_slot_of_a_larger_pool_and_a_nightly_run_has_a_deadline() -> None:
    code = """
from airflow.dag_processing.dagbag import DagBag
from airflow.serialization.serialized_objects import DagSerialization
dag = DagBag('dags').dags['catalog_refresh']
kept, (alert,) = DagSerialization.to_dict(dag)['dag'], dag.deadline
print('DAG', dag.max_active_tasks, alert.interval, alert.callback.path, bool(kept['deadline']))
"""
    told = _python(
        code, {"PACKSHOT_GPU_SLOTS": "32", "PACKSHOT_NIGHTLY_SCHEDULE": "@daily", "PACKSHOT_NIGHTLY_HOURS": "4"}
    )
    most, interval, callback, kept = told.rsplit("DAG ", 1)[1].split()
    assert int(most) > 32
    assert (interval, callback, kept) == ("4:00:00", "operators.deadline.notify_late", "True")


async def triggered(context: dict[str, Any]) -> str:
    """The state in which Airflow's triggerer ends the deadline's callback."""
    trigger = CallbackTrigger(f"{notify_late.__module__}.{notify_late.__name__}", {"context": context})
    return [event.payload["state"] async for event in trigger.run()][-1]


def test_only_a_nightly_run_that_is_still_going_is_late(monkeypatch: pytest.MonkeyPatch) -> None:
    run = {
        "run_type": "scheduled",
        "state": "running",
        "dag_id": "catalog_refresh",
        "dag_run_id": "night",
        "conf": None,
    }
    with webhook() as hook, monkeypatch.context() as patch:
        patch.setenv("PACKSHOT_WEBHOOK_URL", hook.url)
        patch.setenv("PACKSHOT_ALLOW_PRIVATE_WEBHOOK", "true")
        get_settings.cache_clear()
        for other in ({}, {"run_type": "manual"}, {"state": "failed"}, {"state": "success"}):
            assert asyncio.run(triggered({"dag_run": run | other})) == "success"
    get_settings.cache_clear()
    (told,) = hook.received
    assert (told["event"], told["run"]) == ("run_late", "night")
    assert "has not ended after 6 hours" in told["reason"]


def test_no_task_names_a_pool_that_is_not_there_or_asks_for_more_slots_than_it_has(bag: DagBag, tasks) -> None:
    assert list(bag.dag_warnings) == []
    for name, task in tasks:
        assert task.pool_slots <= POOLS[task.pool], name


def test_stages_are_mapped_over_shards_in_the_papers_order(bag: DagBag) -> None:
    for dag in (bag.dags[name] for name in MAKING):
        group = dag.task_group.get_child_by_label("shots")
        chain = [task.label for task in group.topological_sort()]
        assert chain == STAGES
        for stage in STAGES:
            task = dag.get_task(f"shots.{stage}")
            assert isinstance(task, StageOperator)
            assert task.get_closest_mapped_task_group() is group
            assert {"run", "shard", "scene"} <= set(task.template_fields)
            assert [link.name for link in task.operator_extra_links] == ["Pictures of this run"]


def test_nothing_is_published_before_every_check(bag: DagBag) -> None:
    for dag in (bag.dags[name] for name in MAKING):
        publish = dag.get_task("publish")
        checks = {"check_scores"} | ({"check_catalogue"} if dag.dag_id == "catalog_refresh" else set())
        assert publish.upstream_task_ids == checks
        assert publish.trigger_rule == "all_success"
        assert dag.get_task("check_scores").upstream_task_ids == {"plan", "shots.inspect"}
        # with any other rule, publication is skipped where every shot is known and there is no shard
        assert dag.get_task("check_scores").trigger_rule == "all_done"
        assert [task.task_id for task in dag.leaves] == ["summary"], "the run's state must be the summary's"
        summary = dag.get_task("summary")
        starts = {name for name in dag.task_ids if name.startswith("next_")}
        assert set(summary.starts) == starts, "a run is whole only if what comes after it was started"
        assert starts | {"publish"} <= summary.upstream_task_ids
        assert summary.trigger_rule == "all_done"


def test_forms_have_valid_defaults(bag: DagBag) -> None:
    for dag in bag.dags.values():
        dag.params.validate()
    for dag in (bag.dags[name] for name in MAKING):
        assert dag.params.get_param("reprocess").schema["enum"] == ["missing", "failed", "all"]
        assert set(scene_names()) <= set(dag.params.get_param("scene").schema["enum"])
    assert bag.dags["catalog_refresh"].params["scene"] in scene_names()
    assert bag.dags["campaign_backfill"].params["scene"] is None, "a campaign's scene is chosen by a person"


def test_a_fine_tune_is_started_by_hand_alone_and_promotes_what_was_registered(bag: DagBag) -> None:
    dag = bag.dags["brushnet_finetune"]
    assert dag.schedule is None
    assert [task.task_id for task in dag.topological_sort()] == [
        "gather",
        "salient",
        "instance",
        "register",
        "promote",
    ]
    assert dag.get_task("instance").upstream_task_ids == {"gather", "salient"}
    assert dag.get_task("promote").upstream_task_ids == {"register"}
    assert {field.name for field in fields(Form)} <= set(dag.params)
    longest = dag.params.get_param("minutes").schema["maximum"]
    assert timedelta(minutes=longest) < dag.get_task("instance").execution_timeout


@pytest.mark.parametrize("schedule", ["", "0 3 * * *", "@daily"])
def test_the_nightly_refresh_is_off_until_it_is_turned_on(schedule: str) -> None:
    code = (
        "from airflow.dag_processing.dagbag import DagBag; bag = DagBag('dags');"
        "print('TIMETABLE', bag.dags['catalog_refresh'].schedule)"
    )
    env = {"PACKSHOT_NIGHTLY_SCHEDULE": schedule}
    told = _python(code, env).rsplit("TIMETABLE ", 1)[1].strip()
    assert told == (schedule or "None")


def test_housekeeping_is_off_until_it_is_turned_on_and_lists_before_it_removes(bag: DagBag) -> None:
    dag = bag.dags["housekeeping"]
    assert dag.schedule is None
    assert dag.params["remove"] is False
    assert dag.params["days"] == 90
    [listing, removing] = dag.topological_sort()
    assert (listing.task_id, listing.apply) == ("list_history", None)
    assert (removing.task_id, removing.upstream_task_ids) == ("remove_history", {"list_history"})


def test_a_campaign_is_never_scheduled_but_can_be_backfilled(bag: DagBag) -> None:
    from airflow.serialization.serialized_objects import DagSerialization

    dag = DagSerialization.from_dict(DagSerialization.to_dict(bag.dags["campaign_backfill"]))
    assert dag.timetable.periodic
    assert dag.allowed_run_types is None
    for last in (None, DagRunInfo(datetime(2026, 5, 1, tzinfo=UTC), None, None, "2026-05-01")):
        for restricted in (True, False):
            assert dag.next_dagrun_info(last_automated_run_info=last, restricted=restricted) is None


@pytest.mark.parametrize(
    ("first", "last", "days"),
    [
        ("2026-05-01T00:00", "2026-05-02T00:00", ["2026-05-01", "2026-05-02"]),
        ("2026-05-01T08:30", "2026-05-02T17:00", ["2026-05-01", "2026-05-02"]),
        ("2026-05-02T08:30", "2026-05-02T08:30", ["2026-05-02"]),
    ],
)
def test_a_backfill_has_every_day_that_is_named_whatever_the_time_of_day(
    first: str, last: str, days: list[str]
) -> None:
    assert backfilled(datetime.fromisoformat(f"{first}+00:00"), datetime.fromisoformat(f"{last}+00:00")) == days


def test_a_backfill_ends_today_at_the_latest() -> None:
    today = datetime.now(UTC)
    days = backfilled(today - timedelta(days=1), today + timedelta(days=5))
    assert days[:2] == [f"{today - timedelta(days=1):%Y-%m-%d}", f"{today:%Y-%m-%d}"]
    assert len(days) <= 3, "midnight may have fallen within this test"


def backfilled(first: datetime, last: datetime) -> list[str]:
    """The partitions that Airflow makes of a backfill."""
    infos = ByHandOrBackfill.deserialize({}).iter_partition_dagrun_infos(earliest=first, latest=last)
    return [info.partition_key for info in infos]


@pytest.mark.parametrize("file", sorted(DAGS.values()))
def test_a_dag_file_imports_little_and_nothing_heavy(file: str) -> None:
    code = f"""
import json, sys
import airflow.sdk
from airflow.sdk import BaseOperator, BaseOperatorLink, Param, chain, conf, dag, task, task_group
from airflow import settings  # as every process of Airflow has it
settings.prepare_syspath_for_config_and_plugins()
import airflow.timetables.trigger
before = set(sys.modules)
exec(compile(open("dags/{file}").read(), "dags/{file}", "exec"), {{"__name__": "parsed", "__doc__": "parsed"}})
print("PARSED", json.dumps(sorted(set(sys.modules) - before)))
"""
    imported = json.loads(_python(code).rsplit("PARSED ", 1)[1])
    assert set(HEAVY) & set(imported) == set()
    assert len(imported) < MODULES_OF_A_DAG


def test_plugin_files_shadow_no_package() -> None:
    code = """
import sys
import operators.stages, pipelines.contracts
from airflow import plugins_manager
plugins, errors = plugins_manager._get_plugins()
assert not errors, errors
import operators.stages, pipelines.contracts
print("PLUGINS", sorted(p.name for p in plugins if p.name == "packshot"), "torch" in sys.modules,
      "packshot_console" in sys.modules, operators.__file__, pipelines.__file__)
"""
    told = _python(code).rsplit("PLUGINS ", 1)[1].split()
    assert told[:3] == ["['packshot']", "False", "False"], "the web app must not be loaded in a task's process"
    assert told[3:] == [str(ROOT / "operators/__init__.py"), str(ROOT / "pipelines/__init__.py")]


def _python(code: str, env: dict[str, str] | None = None) -> str:
    """Standard output of `code` in a process of its own, in the checkout's root."""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env={**os.environ, **(env or {})}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout
