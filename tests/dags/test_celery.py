"""Two Celery workers make the bytes that one process makes, also where one of them is killed amid a shard."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sqlalchemy import Engine, text

from pipelines.contracts import State
from pipelines.ledger.postgres import PostgresLedger, connect
from pipelines.ledger.reports import report
from pipelines.models.profile import load_profile
from pipelines.runs.local import read_record, shoot
from pipelines.scenes import load_scene, scene_names
from pipelines.services import down, up
from pipelines.services.airflow_client import Airflow
from pipelines.services.celery_workers import WORKERS
from pipelines.services.daemons import process
from pipelines.settings import ROOT, Settings, get_settings, read_settings
from pipelines.workflow import Recipe

pytestmark = [
    pytest.mark.exhaustive,
    pytest.mark.skipif(shutil.which("redis-server") is None, reason="needs Redis: apt-get install redis-server"),
]

DAG = "catalog_refresh"
SCENE = scene_names()[0]
TAKEN_OVER = 90.0
"""Seconds after a worker's end in which another works on its task: about 60 on a quiet machine."""


@pytest.fixture(scope="module")
def celery(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    """An installation of this module's own, with Redis and two workers."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PACKSHOT_STATE_DIR", str(tmp_path_factory.mktemp("celery") / "state"))
        patch.setenv("PACKSHOT_EXECUTOR", "celery")
        patch.setenv("PACKSHOT_SHARD_SIZE", "8")
        get_settings.cache_clear()
        try:
            up(read_settings())
            yield read_settings()
        finally:
            down(read_settings())
            get_settings.cache_clear()


def until(holds: Callable[[], object], seconds: float) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "it did not come to that"
        time.sleep(0.2)


def cut_out(engine: Engine) -> dict[str, str]:
    """Key → process of every recorded step of `cutout`."""
    with engine.connect() as connection:
        return dict(connection.execute(text("SELECT key, worker FROM steps WHERE stage = 'cutout'")).tuples().all())


def kill_worker_of(pid: int, settings: Settings) -> None:
    """Kills the worker below which this process is, with all that it has started, at once."""
    for name in WORKERS:
        leader = process(settings.state_dir, name)
        assert leader is not None
        family = [leader, *leader.children(recursive=True)]
        if pid in (member.pid for member in family):
            for member in family:
                member.kill()
            return
    raise AssertionError(f"process {pid} is no worker's")


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The feed of the whole sample, with its photos."""
    folder = tmp_path_factory.mktemp("sample") / "feed"
    shutil.copytree(ROOT / "pipelines" / "sample", folder)
    return folder / "catalog.csv"


def local_bytes(feed: Path, folder: Path, settings: Settings) -> dict[str, str]:
    """SKU → digest of the published image, as one process makes it, of what is published."""
    recipe = Recipe(load_profile(settings.profile, settings.models_dir), load_scene(SCENE))
    shoot(feed, recipe, folder, settings)
    return {
        shot.sku: steps["publish"].output("published")
        for shot, steps in read_record(folder)
        if "publish" in steps and steps["publish"].state is State.DONE
    }


def run_bytes(engine: Engine, run: str) -> dict[str, str]:
    """The same of a run."""
    ledger = PostgresLedger(engine)
    chosen = ledger.chosen(run, ledger.shots(run), ["publish"])
    return {
        sku: steps["publish"].output("published")
        for sku, steps in chosen.items()
        if "publish" in steps and steps["publish"].state is State.DONE
    }


def test_a_killed_workers_shard_is_ended_by_the_other_with_the_bytes_of_a_local_run(
    celery: Settings, feed: Path, tmp_path: Path
) -> None:
    local = local_bytes(feed, tmp_path, celery)
    assert len(local) == 2

    engine = connect(celery.database_url)
    with Airflow(celery) as airflow:
        run = airflow.trigger(DAG, {"feed": str(feed), "scene": SCENE})
        until(lambda: cut_out(engine), 400)
        [before] = {*cut_out(engine).values()}
        kill_worker_of(int(before.rpartition(":")[2]), celery)
        killed, there = time.monotonic(), len(cut_out(engine))
        assert there < len(local), "the shard was not ended"

        def again() -> bool:
            tries = [task for task in airflow.tasks(DAG, run) if task["task_id"] == "shots.cutout"]
            return any(task["try_number"] == 2 and task["state"] in ("running", "success") for task in tries)

        until(again, TAKEN_OVER)
        print(f"taken over after {time.monotonic() - killed:.0f} s")
        assert airflow.follow(DAG, run, timeout_seconds=400), airflow.failed(DAG, run)
        path = f"/api/v2/dags/{DAG}/dagRuns/{run}/taskInstances/shots.cutout/xcomEntries/return_value?map_index=0"
        counted = airflow._call("GET", path)["value"]

    assert counted["computed"] == len(local) - there, "what was recorded is not computed again"
    assert {*cut_out(engine).values()} > {before}, "the other worker made the rest"
    assert run_bytes(engine, run) == local


def test_the_whole_sample_has_the_same_bytes_on_two_workers_and_in_one_process(
    celery: Settings, sample: Path, tmp_path: Path
) -> None:
    up(celery)  # the worker that another test killed
    local = local_bytes(sample, tmp_path, celery)
    engine = connect(celery.database_url)
    with Airflow(celery) as airflow:
        run = airflow.trigger(DAG, {"feed": str(sample), "scene": SCENE})
        assert airflow.follow(DAG, run, timeout_seconds=3600), airflow.failed(DAG, run)
    assert report(engine, run, with_shots=False).products == 16
    assert len(local) >= 8, "most of the sample is published"
    assert run_bytes(engine, run) == local
