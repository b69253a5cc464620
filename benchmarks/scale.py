"""What a large catalogue costs beside its images: planning, checking, publishing and reporting. `make bench-scale`.

    python -m benchmarks.scale [PRODUCTS]

Starts a Postgres and an S3 store of its own, plants a finished run of PRODUCTS (2,000 by default) and prints, for each
task of the runs after it: seconds, peak memory in MB, rows that it added to the ledger, and whether torch was imported.

first      the finished run: its tables are checked, its images are published, its report is read
unchanged  a refresh of the same feed
1 %        a refresh of a feed in which every hundredth title changed
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from sqlalchemy import text

PRODUCTS = 2000
SCENE = "white-plain"
IMAGES = 100
"""Published pictures that the planted shots share."""

FEEDS = {"first": 0, "unchanged": 0, "changed": 100}
"""Run → every how many products have another title; 0 for none."""

TASKS = [
    ("first", "check_scores"),
    ("first", "publish"),
    ("first", "summary"),
    ("first", "report"),
    ("unchanged", "plan"),
    ("unchanged", "check_catalogue"),
    ("unchanged", "check_scores"),
    ("unchanged", "publish"),
    ("unchanged", "summary"),
    ("unchanged", "report"),
    ("changed", "plan"),
]


def products(count: int, every: int) -> Iterator[Any]:
    """The products of a feed; every `every`-th has another title."""
    from pipelines.contracts import Product, sha256_hex

    for row in range(2, count + 2):
        sku = f"SKU-{row:07}"
        title = f"Stoneware mug {row}" + (", new" if every and row % every == 0 else "")
        extra = {"brand": "Acme", "gtin": f"{row:013}", "price": "12.50 EUR", "availability": "in_stock"}
        photo = sha256_hex(sku.encode())
        yield Product(sku, row, title, "Home > Kitchen > Mugs", photo, "", f"https://shop.example/{sku}.jpg", "", extra)


def feed_of(run: str, count: int) -> str:
    """Digest of the run's manifest, which is put into the store."""
    from operators.base import open_services
    from pipelines.catalogue.manifest import write_manifest

    return write_manifest(open_services().store, "catalog.csv", "0" * 64, products(count, FEEDS[run]))


def plan(run: str, feed: str) -> None:
    """The task `plan` over a manifest."""
    from operators.plan import PlanRefreshOperator

    given: dict[str, Any] = {"feed": feed, "categories": [], "skus": [], "limit": None}
    task = PlanRefreshOperator(
        task_id="plan", run=run, scene=SCENE, channel="", reprocess="missing", triggered_by="bench", **given
    )
    task.execute(context())  # type: ignore[arg-type]


def context() -> dict[str, Any]:
    """What an operator reads of Airflow's context."""
    ti = SimpleNamespace(xcom_push=lambda **_: None, xcom_pull=lambda **_: None)
    dag, dag_run = SimpleNamespace(dag_id="catalog_refresh", params={}), SimpleNamespace(conf={})
    return {"ti": ti, "dag": dag, "dag_run": dag_run, "params": {}}


def perform(run: str, task: str, feed: str) -> None:
    """One task of a run, as Airflow would start it. `feed` is the digest of its manifest."""
    from operators.base import open_services
    from operators.publish import CheckTableOperator, PublishOperator, SummaryOperator
    from pipelines.ledger.reports import report

    if task == "plant":
        plant(feed)
    elif task == "plan":
        plan(run, feed)
    elif task == "report":
        report(open_services().ledger.engine, run, with_shots=False)
    elif task == "publish":
        PublishOperator(task_id=task, run=run, scene=SCENE, channel="", reprocess="missing").execute(context())  # type: ignore[arg-type]
    elif task == "summary":
        SummaryOperator(task_id=task, run=run, checks=[]).execute(context())  # type: ignore[arg-type]
    else:
        table: Any = task.removeprefix("check_")
        CheckTableOperator(task_id=task, run=run, table=table).execute(context())  # type: ignore[arg-type]


def measured(run: str, task: str, count: int) -> dict[str, Any]:
    """Seconds, MB, rows and torch of one task, in a process of its own."""
    argv = [sys.executable, "-m", "benchmarks.scale", "--here", run, task, str(count)]
    done = subprocess.run(argv, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr[-3000:])
    figures: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return figures


def here(run: str, task: str, count: int) -> dict[str, Any]:
    """What `measured` returns, in this process."""
    feed = feed_of(run, count) if task in ("plan", "plant") else ""
    before, began = rows(), time.perf_counter()
    perform(run, task, feed)
    seconds = time.perf_counter() - began
    status = Path("/proc/self/status").read_text("utf-8")
    peak = int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1])
    return {
        "seconds": round(seconds, 1),
        "mb": round(peak / 1024),
        "rows": rows() - before,
        "torch": "torch" in sys.modules,
    }


def rows() -> int:
    """Rows of all tables of the ledger."""
    from operators.base import open_services
    from pipelines.ledger.schema import metadata

    with open_services().ledger.engine.connect() as connection:
        return sum(connection.scalar(text(f'SELECT count(*) FROM "{table}"')) for table in metadata.tables)  # noqa: S608


def plant(feed: str) -> None:
    """A planned run `first` whose shots are through every stage, with the key that `publish` will look for."""
    from operators.base import open_services
    from pipelines.contracts import Artifact, Job, Product, Shot, State, Step, sha256_hex
    from pipelines.scenes import load_scene
    from pipelines.stages.keys import STAGES

    plan("first", feed)
    services = open_services()
    recipe, scene = services.recipe(SCENE, "missing", "first"), load_scene(SCENE)
    images = [services.store.put(b"picture %d" % number, "image/jpeg") for number in range(IMAGES)]
    with services.ledger.engine.begin() as connection:
        connection.execute(text("CREATE TEMPORARY TABLE keys (sku text, final text, key text, image text)"))
        cursor: Any = connection.connection.cursor()
        cursor.execute("SELECT sku FROM shots")
        lines: list[str] = []
        for (sku,) in cursor.fetchall():
            shot = Shot(Product(sku, 2, "", "", None), scene.name, scene.channel.name)
            final = Artifact(sha256_hex(f"final {sku}".encode()), "final", "image/png", 1)
            job = Job("upscale", 1, {}, {})
            upscaled = Step(job.key, job, State.DONE, (final,))
            key = STAGES["publish"].job(shot, {"upscale": upscaled}, recipe, 0).key
            lines.append(f"{sku},{final.sha256},{key},{images[len(lines) % IMAGES]}")
        with tempfile.TemporaryFile("w+") as file:
            file.write("\n".join(lines))
            file.seek(0)
            cursor.copy_expert("COPY keys FROM STDIN WITH (FORMAT csv)", file)
        for statement in PLANTED.split(";"):
            if statement.strip():
                connection.execute(text(statement))


PLANTED = """
CREATE TEMPORARY TABLE made ON COMMIT DROP AS
SELECT rs.shot, k.final, k.image, st.stage,
       CASE st.stage WHEN 'publish' THEN k.key
                     ELSE encode(sha256(convert_to(st.stage || k.sku, 'UTF8')), 'hex') END AS key
FROM keys k JOIN shots s ON s.sku = k.sku JOIN run_shots rs ON rs.shot = s.id
CROSS JOIN unnest(ARRAY['cutout', 'describe', 'generate', 'upscale', 'inspect', 'publish']) AS st (stage);
INSERT INTO artifacts (digest, media_type, size)
SELECT DISTINCT CASE stage WHEN 'upscale' THEN final WHEN 'publish' THEN image ELSE key END, 'image/png', 1
FROM made
ON CONFLICT DO NOTHING;
INSERT INTO steps (key, base, stage, version, parameters, state, facts, seconds, device, worker, run)
SELECT key, key, stage, 1, '{"scene": "white-plain", "prompt": "a photo of a mug on white"}', 'done',
       '{"width": 4096, "height": 4096}', 5, 'cpu', 'bench:1', 'first' FROM made;
INSERT INTO step_inputs (key, role, digest)
SELECT key, CASE WHEN stage IN ('inspect', 'publish') THEN 'final' ELSE 'photo' END, final FROM made;
INSERT INTO step_outputs (key, role, digest, position)
SELECT key, CASE stage WHEN 'publish' THEN 'published' WHEN 'upscale' THEN 'final' ELSE stage END,
       CASE stage WHEN 'upscale' THEN final WHEN 'publish' THEN image ELSE key END, 0
FROM made WHERE stage NOT IN ('describe', 'inspect');
INSERT INTO verdicts (key, position, "check", score, threshold, passed, reason, picture)
SELECT key, nth, "check", 0.01, 0.05, true, '', '' FROM made
CROSS JOIN unnest(ARRAY['overcompletion', 'fidelity', 'halo', 'background']) WITH ORDINALITY AS c ("check", nth)
WHERE stage = 'inspect';
INSERT INTO run_steps (run, shot, key, stage, reused, chosen)
SELECT 'first', shot, key, stage, false, true FROM made WHERE stage <> 'publish';
ANALYZE
"""


def main(count: int) -> None:
    """Print the table."""
    from pipelines.services import down, up
    from pipelines.settings import read_settings

    with tempfile.TemporaryDirectory(prefix="packshot-bench-") as folder:
        os.environ["PACKSHOT_STATE_DIR"] = folder
        settings = read_settings()
        up(settings, airflow=False)
        try:
            planted = measured("first", "plant", count)
            print(f"{count} products, scene {SCENE}")
            print(f"{'run':<10} {'task':<16} {'seconds':>8} {'MB':>6} {'rows':>9}  torch")
            print(
                f"{'first':<10} {'plan, planted':<16} {planted['seconds']:>8} {planted['mb']:>6} {planted['rows']:>9}"
            )
            for run, task in TASKS:
                found = measured(run, task, count)
                torch = "imported" if found["torch"] else "no"
                print(
                    f"{run:<10} {task:<16} {found['seconds']:>8} {found['mb']:>6} {found['rows']:>9}  {torch}",
                    flush=True,
                )
        finally:
            down(settings)


if __name__ == "__main__":
    if "--here" in sys.argv:
        _, _, run, task, count = sys.argv
        print(json.dumps(here(run, task, int(count))))
    else:
        main(int(sys.argv[1]) if len(sys.argv) > 1 else PRODUCTS)
