"""One shard through one stage: what a task does, what it survives and what it gives up on."""

from __future__ import annotations

import json
import signal
import time
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.sdk import DAG, RetryAction
from sqlalchemy.exc import OperationalError

import pipelines.stages
from operators.base import RETRY_POLICY, RunPage
from operators.stages import CutoutOperator
from pipelines.contracts import Job, Made, Output, Product, Shot
from pipelines.errors import IntegrityError, Rejected, UsageError
from pipelines.ledger.postgres import PostgresLedger
from pipelines.ledger.reports import report
from pipelines.scenes import load_scene, scene_names
from pipelines.workflow import Stage

SCENE = load_scene(scene_names()[0])


@pytest.fixture
def stage(monkeypatch) -> SimpleNamespace:
    """A stage of our own in the place of `cutout`: its output is the SKU; `loads` counts how often models were loaded,
    `slow` and `bad` are SKUs that take too long or are refused."""
    told = SimpleNamespace(loads=0, slow=set(), bad=set())

    def load(recipe) -> None:
        told.loads += 1

    def compute(works, models, recipe) -> list[Made | Rejected]:
        sku = works[0].job.parameters["sku"]
        if sku in told.slow:
            time.sleep(30)
        if sku in told.bad:
            return [Rejected(f"{sku} is bad")]
        return [Made((Output("cutout", sku.encode(), "text/plain"),))]

    def job(shot, upstream, recipe, candidate) -> Job:
        return Job("cutout", 1, {}, {"sku": shot.sku}, attempt=recipe.attempt)

    toy = Stage(name="cutout", version=1, needs=(), job=job, load=load, compute=compute)
    monkeypatch.setattr(pipelines.stages, "stage", lambda name: toy)
    return told


@pytest.fixture
def run(ledger: PostgresLedger, store, request) -> str:
    """A run of three shots in two shards."""
    name = request.node.name
    products = [Product(f"{name}-{n}", n, f"Product {n}", "Kitchen", None, "none") for n in (1, 2, 3)]
    ledger.upsert_products(products)
    ledger.start_run(name, "catalog_refresh", SCENE.name, SCENE.channel.name)
    ledger.select(name, [Shot(product, SCENE.name, SCENE.channel.name) for product in products], 2)
    return name


def cut_out(run: str, context: dict[str, Any], shard: int = 0, **about: Any) -> dict[str, Any]:
    about = {"scene": SCENE.name, "channel": "", "reprocess": "missing"} | about
    return CutoutOperator(task_id="cutout", run=run, shard=shard, **about).execute(context)


def test_a_task_takes_its_own_shard_and_sums_it_up_as_json(stage, run, context, ledger) -> None:
    summary = cut_out(run, context)
    assert json.loads(json.dumps(summary)) == summary
    assert (summary["stage"], summary["shots"], summary["computed"], summary["reused"]) == ("cutout", 2, 2, 0)
    assert set(ledger.chosen(run, ledger.shots(run))) == {f"{run}-1", f"{run}-2"}


def test_a_retry_repeats_nothing_and_loads_no_model(stage, run, context) -> None:
    cut_out(run, context)
    summary = cut_out(run, context)
    assert (summary["computed"], summary["reused"]) == (0, 2)
    assert stage.loads == 1


def test_reprocess_all_computes_anew_once_a_run(stage, run, context) -> None:
    cut_out(run, context)
    assert cut_out(run, context, reprocess="all")["computed"] == 2
    assert cut_out(run, context, reprocess="all")["reused"] == 2, "a retry of the same run still repeats nothing"


def test_a_bad_photo_and_a_slow_shot_cost_themselves_alone(stage, run, context, ledger) -> None:
    stage.bad, stage.slow = {f"{run}-1"}, {f"{run}-2"}
    started = time.monotonic()
    summary = cut_out(run, context, shot_seconds=0.3)
    assert time.monotonic() - started < 20
    assert (summary["rejected"], summary["failed"]) == (1, 1)
    bad, late = sorted(summary["reasons"], key=lambda reason: "ShotTimeout" in reason)
    assert bad == f"{run}-1 is bad"
    assert late.startswith("ShotTimeout: no result after ")
    ledger.settle(run)
    assert [shot.state for shot in report(ledger.engine, run).shots] == ["rejected", "failed", "pending"]


def test_the_tasks_own_time_limit_outlives_those_of_its_shots(stage, run, context) -> None:
    def task_is_over(*_: object) -> None:
        pytest.fail("the task's time is not over")

    previous = signal.signal(signal.SIGALRM, task_is_over)
    signal.setitimer(signal.ITIMER_REAL, 500)
    try:
        cut_out(run, context)
        left = signal.getitimer(signal.ITIMER_REAL)[0]
        assert 0 < left < 500
        assert signal.getsignal(signal.SIGALRM) is task_is_over
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


def test_a_database_that_is_away_is_worth_another_try(stage, run, context, monkeypatch) -> None:
    from pipelines.settings import get_settings

    monkeypatch.setenv("PACKSHOT_DATABASE_URL", "postgresql+psycopg2://nobody@127.0.0.1:1/nothing")
    get_settings.cache_clear()
    try:
        with pytest.raises(OperationalError) as refused:
            cut_out(run, context)
    finally:
        get_settings.cache_clear()
    assert RETRY_POLICY.evaluate(refused.value, 1, 2).action is not RetryAction.FAIL


@pytest.mark.parametrize("error", [UsageError("no scene 'x'"), IntegrityError("object 1 is 2")])
def test_what_no_retry_can_mend_fails_at_once(error) -> None:
    decision = RETRY_POLICY.evaluate(error, 1, 2)
    assert decision.action is RetryAction.FAIL
    assert decision.reason


def test_an_unknown_scene_ends_in_one_line(stage, run, context) -> None:
    with pytest.raises(UsageError, match="no scene 'nowhere'"):
        cut_out(run, context, scene="nowhere")


def test_defaults_survive_mapping() -> None:
    with DAG("mapped", schedule=None):
        mapped = CutoutOperator.partial(task_id="cutout", pool="gpu").expand(shard=[0, 1])
    assert mapped.pool == "gpu"
    assert mapped.retry_policy is RETRY_POLICY
    assert mapped.execution_timeout == timedelta(hours=6)
    assert mapped.map_index_template == "shard {{ task.shard }}"


def test_the_link_leads_to_the_runs_page_below_airflows_base_path(monkeypatch) -> None:
    monkeypatch.setenv("AIRFLOW__API__BASE_URL", "https://shop.example/airflow/")
    key = SimpleNamespace(run_id="manual__2026-05-01T10:00:00+00:00")
    link = RunPage().get_link(CutoutOperator(task_id="cutout", shard=0), ti_key=key)
    assert link == "/airflow/packshot/runs/manual__2026-05-01T10%3A00%3A00%2B00%3A00"
