"""How long the console's pages take on a large ledger, and how many queries each makes.

    python -m benchmarks.console 100000

It starts a Postgres of its own, fills it with that many shots in 20 runs, asks the console's app for each page, and
prints a table. A page should answer in 300 ms with 10 queries at most, the metrics in 2 s, and the process should grow
by 150 MB at most. Airflow's login comes on top. The CPU time, this process's and Postgres', is what a busy machine
does not distort.
"""

from __future__ import annotations

import logging
import os
import shutil
import statistics
import sys
import tempfile
import time
from typing import TYPE_CHECKING

import psutil
from sqlalchemy import Engine, create_engine, event, text
from sqlalchemy.engine import make_url

if TYPE_CHECKING:
    from starlette.testclient import TestClient

    from pipelines.settings import Settings

RUNS = 20
TOKEN = "a token for Prometheus"  # noqa: S105  # of this process alone
REPEATS = 5

SEED = """
INSERT INTO product_versions (sku, content, title, category, image_link, photo, extra, changed_at)
SELECT 'SKU-' || n, md5(n::text), 'Product ' || n, 'Kitchen', '', md5('p' || n), '{{}}', now()
FROM generate_series(1, {products}) n;
INSERT INTO products SELECT sku, id, id, now() FROM product_versions;
INSERT INTO shots (sku, scene, channel)
SELECT sku, 'scene-' || s, 'web' FROM generate_series(0, 3) s, product_versions;
INSERT INTO runs (id, dag_id, scene, channel, params, state, started_at, finished_at)
SELECT 'run-' || r, 'catalog_refresh', 'scene-' || r %% 4, 'web', '{{}}',
       CASE WHEN r = {runs} THEN 'running' ELSE 'success' END,
       now() - make_interval(hours => 12 * ({runs} - r)), CASE WHEN r < {runs} THEN now() END
FROM generate_series(1, {runs}) r;
INSERT INTO run_shots (run, position, shot, version, row, shard, state, reason, final, checks)
SELECT r.id, v.id, s.id, v.id, v.id, v.id / 64, CASE WHEN h.held THEN 'held' ELSE 'published' END,
       CASE WHEN h.held THEN 'the scene grew the product by 31.0%% of its area' ELSE '' END,
       md5('f1' || r.id || '/' || v.id) || md5('f2' || r.id || '/' || v.id),
       CASE WHEN h.held THEN ARRAY['overcompletion'] ELSE '{{}}'::text[] END
FROM runs r JOIN shots s ON s.scene = r.scene JOIN product_versions v ON v.sku = s.sku
CROSS JOIN LATERAL (SELECT (v.id * 7919 + length(r.id)) %% 20 = 0 AS held) h ORDER BY r.number, v.id;
INSERT INTO steps (key, base, stage, version, parameters, seed, state, facts, seconds, device, worker, run, created_at)
SELECT key, key, stage, 1, '{{}}', 7, 'done', '{{}}', 2.0, 'cpu', 'host:1', rs.run, r.started_at
FROM run_shots rs JOIN runs r ON r.id = rs.run,
     unnest(ARRAY['cutout', 'describe', 'generate', 'upscale', 'inspect', 'publish']) stage,
     LATERAL (SELECT md5(rs.run || '/' || rs.shot || stage) AS key) made
WHERE stage <> 'publish' OR rs.state = 'published' ORDER BY r.number, rs.shard, stage;
INSERT INTO run_steps (run, shot, key, stage, reused, chosen)
SELECT rs.run, rs.shot, md5(rs.run || '/' || rs.shot || stage), stage, false, true
FROM run_shots rs JOIN runs r ON r.id = rs.run,
     unnest(ARRAY['cutout', 'describe', 'generate', 'upscale', 'inspect', 'publish']) stage
WHERE stage <> 'publish' OR rs.state = 'published' ORDER BY r.number, rs.shard, stage;
INSERT INTO step_inputs (key, role, digest)
SELECT md5(run || '/' || shot || 'inspect'), 'final', final FROM run_shots;
INSERT INTO verdicts (key, position, "check", score, threshold, passed, reason, picture)
SELECT md5(run || '/' || shot || 'inspect'), 0, 'overcompletion', 0.31, 0.05, state <> 'held', reason, 'overcompletion'
FROM run_shots;
INSERT INTO artifacts (digest, media_type, size) SELECT md5('a' || shot), 'image/webp', 1 FROM run_shots GROUP BY shot;
INSERT INTO publications (shot, digest, run)
SELECT DISTINCT ON (rs.shot) rs.shot, md5('a' || rs.shot), rs.run FROM run_shots rs WHERE rs.state = 'published';
INSERT INTO decisions (final, run, shot, choice, by)
SELECT final, run, shot, 'reject', 'ada' FROM run_shots WHERE state = 'held' AND shot %% 3 = 0;
"""


def as_superuser(settings: Settings) -> Engine:
    """The ledger without foreign keys' checks, which take most of the time of so many rows."""
    from pipelines.services import Installation

    url = make_url(Installation.read(settings.state_dir).superuser_url).set(database="packshot")
    options = "-c session_replication_role=replica -c synchronous_commit=off -c work_mem=256MB"
    return create_engine(url, connect_args={"options": options})


def seed(engine: Engine, shots: int) -> None:
    """Fills an empty ledger: every product is in each of the runs of its scene, and one image in 20 is held."""
    from pipelines.ledger.outcomes import note_superseded, remember_totals

    for statement in SEED.format(products=shots // RUNS, runs=RUNS).strip().split(";\n"):
        with engine.begin() as connection:
            connection.exec_driver_sql(statement)
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("VACUUM ANALYZE"))
    with engine.begin() as connection:
        for run in range(1, RUNS):
            remember_totals(connection, f"run-{run}")
            note_superseded(connection, f"run-{run}")
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("VACUUM ANALYZE run_shots"))


def pages(shots: int, first: str) -> dict[str, str]:
    """Address of each page. `first` is the first image of the queue."""
    last = shots // RUNS // 40
    return {
        "overview": "/overview",
        "runs": "/runs",
        "run, first page": "/runs/run-5",
        "run, last page": f"/runs/run-5?page={last}",
        "run, held": "/runs/run-5?state=held",
        "run in progress": f"/runs/run-{RUNS}",
        "run, count of a retry": "/runs/run-17/retries?state=held&cause=overcompletion",
        "two runs": "/compare?a=run-5&b=run-9",
        "two runs, moved": "/compare?a=run-5&b=run-6&a_state=published&b_state=held&page=2",
        "campaign": "/campaign",
        "review": "/review",
        "review, next images": f"/review/queue?after={first}&seat=a&fresh=true",
        "review, of a check": "/review/queue?scene=scene-1&check=overcompletion",
        "review, a batch": "/review/selection",
        "review, an image": f"/review/images/{first}",
        "product": "/products/SKU-7",
        "live": "/live",
        "live, a scene's last page": f"/live?scene=scene-1&channel=web&page={shots // RUNS // 24}",
        "live, of a run": "/live?run=run-5",
        "live, a product": "/live?sku=SKU-7",
        "metrics": "/metrics",
    }


def open_app() -> TestClient:
    """The console's app without Airflow's login, with all rights."""
    from airflow.api_fastapi.app import init_auth_manager
    from airflow.api_fastapi.auth.managers.simple.user import SimpleAuthManagerUser
    from airflow.api_fastapi.core_api.security import get_user
    from packshot_console.app import create_app
    from packshot_console.guards import CANCEL, DECIDE, LOOK, START
    from starlette.testclient import TestClient

    init_auth_manager()
    app = create_app()
    app.dependency_overrides[get_user] = lambda: SimpleAuthManagerUser(username="ada", role="admin")
    for guard in (*LOOK, *DECIDE, *START, *CANCEL):
        app.dependency_overrides[guard.dependency] = lambda: None
    return TestClient(app, headers={"Authorization": f"Bearer {TOKEN}"})


def cpu_seconds(server: psutil.Process | None) -> float:
    """CPU time of this process and of Postgres with the workers that it still has or waited for."""
    processes = [psutil.Process(), *([server, *server.children()] if server else [])]
    total = 0.0
    for process in processes:
        try:
            times = process.cpu_times()
        except psutil.NoSuchProcess:
            continue
        total += times.user + times.system + (times.children_user + times.children_system if process == server else 0.0)
    return total


def main(shots: int) -> None:
    """Seeds, measures, prints."""
    os.environ["PACKSHOT_STATE_DIR"] = os.environ["AIRFLOW_HOME"] = tempfile.mkdtemp(prefix="packshot-bench-")
    os.environ["PACKSHOT_METRICS_TOKEN"] = TOKEN
    from pipelines.services import down, up
    from pipelines.settings import get_settings, read_settings

    up(read_settings(), airflow=False)
    try:
        get_settings.cache_clear()
        client = open_app()
        logging.disable(logging.INFO)
        from packshot_console import metrics, queue
        from packshot_console.services import ledger

        from pipelines.ledger.decisions import Selection

        engine, began = ledger().engine, time.perf_counter()
        seed(as_superuser(get_settings()), shots)
        print(f"{shots:,} shots seeded in {time.perf_counter() - began:.0f} s", flush=True)
        with engine.connect() as connection:
            server = psutil.Process(connection.scalar(text("SELECT pg_backend_pid()"))).parent()
        queries: list[str] = []
        event.listen(engine, "before_cursor_execute", lambda *about: queries.append(about[2]))
        first = queue.items(Selection(), "", 1)[0][0].final
        before = psutil.Process().memory_info().rss
        print(f"{'page':<26} {'median ms':>10} {'slowest':>8} {'CPU ms':>7} {'queries':>8} {'kB':>6}")
        for name, address in pages(shots, first).items():
            times, cpu = [], cpu_seconds(server)
            for _ in range(REPEATS):
                metrics._exposition.cache_clear()
                queries.clear()
                start = time.perf_counter()
                answer = client.get(address)
                times.append(1000 * (time.perf_counter() - start))
                answer.raise_for_status()
            spent = 1000 * (cpu_seconds(server) - cpu) / REPEATS
            size = len(answer.content) / 1000
            print(
                f"{name:<26} {statistics.median(times):>10.0f} {max(times):>8.0f} {spent:>7.0f} {len(queries):>8} "
                f"{size:>6.0f}",
                flush=True,
            )
        print(f"memory: {(psutil.Process().memory_info().rss - before) / 1e6:+.0f} MB")
    finally:
        down(read_settings())
        shutil.rmtree(os.environ["PACKSHOT_STATE_DIR"], ignore_errors=True)


if __name__ == "__main__":
    sys.path.insert(0, "plugins")
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 100_000)
