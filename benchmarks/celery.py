"""Throughput of two Celery workers against one, with stages that only sleep. `make bench-celery`.

    python -m benchmarks.celery [SHARDS] [SECONDS]

Starts an installation of its own with Redis and Celery workers that take one task at a time. A run of SHARDS shards (4
by default) goes through the real DAG, ledger and store. `generate` sleeps SECONDS (90 by default) a shard, which stands
for an accelerator at work; the other stages cost what their tasks cost. First both workers run, then one alone.

Prints for each: seconds from the first task of a shard to the end of the last one, and shards an hour.
"""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

DAG = "catalog_refresh"
SCENE = "white-plain"
WIDTH = 4096
"""Width and height that the simulated images claim: more than any channel asks for."""

NEEDS = {
    "cutout": (),
    "describe": ("cutout",),
    "generate": ("cutout", "describe"),
    "upscale": ("generate",),
    "inspect": ("upscale",),
    "publish": ("inspect", "upscale"),
}


def install(seconds: float) -> None:
    """Replaces the stages of this process: Airflow imports `airflow_local_settings`, which calls this."""
    from pipelines.stages import keys

    for name in keys.STAGES:
        keys.STAGES[name] = simulated(name, seconds if name == "generate" else 0)
    keys.fingerprint = lambda recipe: "0" * 64  # it makes up what the real stages would write


def simulated(name: str, seconds: float) -> Any:
    """A stage that sleeps and writes a few bytes."""
    from pipelines.contracts import Job, Made, Output, Shot, Verdict
    from pipelines.workflow import Recipe, Stage

    needs: tuple[str, ...] = NEEDS[name]

    def job(shot: Shot, upstream: Any, recipe: Recipe, candidate: int) -> Job:
        inputs = {"before": upstream[needs[-1]].output(needs[-1])} if needs else {"photo": shot.product.photo or ""}
        if name in ("inspect", "publish"):
            inputs["final"] = inputs["before"]
        return Job(name, 1, inputs, {"title": shot.product.title}, attempt=recipe.attempt)

    def compute(works: Sequence[Any], models: None, recipe: Recipe) -> list[Made]:
        made = []
        for work in works:
            time.sleep(seconds)
            role = "published" if name == "publish" else name
            outputs = (Output(role, f"{name} {work.job.key}".encode(), "image/png"),)
            verdicts = (Verdict("overcompletion", 0.0, 0.05, True),) if name == "inspect" else ()
            made.append(Made(outputs, {"width": WIDTH, "height": WIDTH}, verdicts))
        return made

    return Stage(name, 1, needs, job, lambda recipe: None, compute)


def refresh(api: Any, settings: Any, name: str, shards: int) -> float:
    """One run over `shards` new products, each a shard; returns seconds from the first start to the last end."""
    from pipelines.catalogue.manifest import write_manifest
    from pipelines.contracts import Product
    from pipelines.store import S3Store

    store = S3Store(settings)
    products = [
        Product(f"{name}-{row}", row, f"Mug {name} {row}", "Home", store.put(f"{name} {row}".encode(), "image/png"))
        for row in range(2, shards + 2)
    ]
    feed = write_manifest(store, f"{name}.csv", "0" * 64, products)
    run = api.trigger(DAG, {"feed": feed, "scene": SCENE, "limit": shards})
    if not api.follow(DAG, run, timeout_seconds=3600):
        raise RuntimeError(f"the run failed: {api.failed(DAG, run)}")
    tasks = [task for task in api.tasks(DAG, run) if task["task_id"].startswith("shots.")]
    if len(tasks) != 5 * shards or {task["state"] for task in tasks} != {"success"}:
        raise RuntimeError(f"{len(tasks)} tasks in {shards} shards: {tasks}")
    times: Callable[[str], list[datetime]] = lambda key: [datetime.fromisoformat(task[key]) for task in tasks]  # noqa: E731
    return (max(times("end_date")) - min(times("start_date"))).total_seconds()


def stop(settings: Any, name: str) -> None:
    """Ends one worker, after the task that it is at."""
    from pipelines.services.daemons import process

    leader = process(settings.state_dir, name)
    if leader is not None:
        leader.send_signal(signal.SIGTERM)
        with suppress(Exception):
            leader.wait(120)


def main(shards: int, seconds: float) -> None:
    """Print the table."""
    from pipelines.services import down, up
    from pipelines.services.airflow_client import Airflow
    from pipelines.services.celery_workers import WORKERS
    from pipelines.settings import read_settings

    with tempfile.TemporaryDirectory(prefix="packshot-bench-") as folder:
        os.environ |= {
            "PACKSHOT_STATE_DIR": folder,
            "PACKSHOT_EXECUTOR": "celery",
            "PACKSHOT_AIRFLOW_PARALLELISM": str(len(WORKERS)),  # a task a worker
            "PACKSHOT_GPU_SLOTS": str(len(WORKERS)),
            "PACKSHOT_SHARD_SIZE": "1",
        }
        config = Path(folder) / "airflow" / "config"
        config.mkdir(parents=True)
        (config / "airflow_local_settings.py").write_text(
            f"from benchmarks.celery import install\ninstall({seconds})\n", "utf-8"
        )
        try:
            up(read_settings())
            settings = read_settings()
            print(f"{shards} shards, {seconds:g} s of sleep each")
            print(f"{'workers':>7} {'seconds':>8} {'shards/h':>9}")
            found = {}
            with Airflow(settings) as api:
                for count in (2, 1):
                    if count < len(WORKERS):
                        stop(settings, WORKERS[-1])
                    found[count] = refresh(api, settings, f"workers-{count}", shards)
                    print(f"{count:>7} {found[count]:>8.0f} {3600 * shards / found[count]:>9.1f}", flush=True)
            print(f"two workers have {found[1] / found[2]:.2f} times the throughput of one")
        finally:
            down(read_settings())


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 4, float(sys.argv[2]) if len(sys.argv) > 2 else 90.0)
