"""Throughput of two Celery workers against one, through the real DAG. `make bench-workers`.

    python -m benchmarks.workers [SHARDS] [SECONDS]

Starts an installation of its own, whose stages sleep for SECONDS a shot (10 by default) instead of computing. A run of
SHARDS shots (4 by default), one a shard, is timed from the first task of a stage to the end of the last: with two
workers of one process each, then with one.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

SCENE = "white-plain"
DAG = "catalog_refresh"
ROLES = ("cutout", "plate", "light", "final", "published")
FACTS = {"subject": "mug", "placement": {}, "e_plus": 0.0, "halo": 0.0, "width": 4096, "height": 4096}


def simulate(seconds: float) -> None:
    """In this process, stages sleep and make a few bytes. Airflow's configuration calls it in each of its processes."""
    from pipelines.contracts import Made, Output, Verdict
    from pipelines.stages import keys

    def compute(works: Sequence[Any], models: None, recipe: Any) -> list[Made]:
        made = []
        for work in works:
            time.sleep(0 if work.job.stage == "publish" else seconds)
            outputs = tuple(Output(role, f"{role} {work.job.key}".encode(), "image/png") for role in ROLES)
            verdicts = (Verdict("overcompletion", 0.0, 0.05, True),) if work.job.stage == "inspect" else ()
            made.append(Made(outputs, FACTS, verdicts))
        return made

    for name, stage in keys.STAGES.items():
        keys.STAGES[name] = replace(stage, load=lambda recipe: None, compute=compute)


def feed(settings: Any, name: str, shots: int) -> str:
    """Digest of a manifest of products that no run has seen."""
    from pipelines.catalogue.manifest import write_manifest
    from pipelines.contracts import Product
    from pipelines.store import S3Store

    store = S3Store(settings)
    products = [
        Product(f"{name}-{row}", row, f"Mug {row}", "Home", store.put(f"{name} {row}".encode(), "image/jpeg"))
        for row in range(2, shots + 2)
    ]
    return write_manifest(store, "feed.csv", "0" * 64, products)


def timed(settings: Any, name: str, shots: int) -> float:
    """Seconds from the first stage's start to the last one's end."""
    from pipelines.services.airflow_client import Airflow

    with Airflow(settings) as airflow:
        run = airflow.trigger(DAG, {"feed": feed(settings, name, shots), "scene": SCENE})
        if not airflow.follow(DAG, run, timeout_seconds=1200):
            raise RuntimeError(f"the run failed: {airflow.failed(DAG, run)}")
        stages = [task for task in airflow.tasks(DAG, run) if task["task_id"].startswith("shots.")]
        starts = [datetime.fromisoformat(task["start_date"]) for task in stages]
        ends = [datetime.fromisoformat(task["end_date"]) for task in stages]
        return (max(ends) - min(starts)).total_seconds()


def main(shots: int, seconds: float) -> None:
    """Print the table."""
    from pipelines.services import down, up
    from pipelines.services.celery_workers import WORKERS
    from pipelines.services.daemons import stop
    from pipelines.settings import read_settings

    with tempfile.TemporaryDirectory(prefix="packshot-bench-") as folder:
        os.environ |= {
            "PACKSHOT_STATE_DIR": folder, "PACKSHOT_EXECUTOR": "celery", "PACKSHOT_SHARD_SIZE": "1",
            "PACKSHOT_GPU_SLOTS": "2", "PACKSHOT_AIRFLOW_PARALLELISM": "2",
        }  # fmt: skip
        config = Path(folder, "airflow", "config")
        config.mkdir(parents=True)
        call = f"from benchmarks.workers import simulate\n\nsimulate({seconds})\n"
        (config / "airflow_local_settings.py").write_text(call)
        try:
            up(read_settings())
            settings = read_settings()
            print(f"{shots} shards, five stages of {seconds:g} s\n{'workers':>7} {'seconds':>8} {'shots an hour':>14}")
            two = timed(settings, "two", shots)
            print(f"{2:>7} {two:>8.0f} {3600 * shots / two:>14.0f}", flush=True)
            stop(settings.state_dir, WORKERS[1])
            one = timed(settings, "one", shots)
            print(f"{1:>7} {one:>8.0f} {3600 * shots / one:>14.0f}\nratio {one / two:.2f}")
        finally:
            down(read_settings())


if __name__ == "__main__":
    given = sys.argv[1:]
    main(int(given[0]) if given else 4, float(given[1]) if len(given) > 1 else 10.0)
