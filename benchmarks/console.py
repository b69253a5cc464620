"""How long the console's pages take on a large ledger, and how many queries each makes.

    python -m benchmarks.console 100000

It starts a Postgres of its own, fills it with that many shots in 20 runs, and prints a table. A page should answer in
300 ms with 10 queries at most. Rendering and Airflow's login come on top.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

from sqlalchemy import Engine, event, text

RUNS = 20
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
CROSS JOIN LATERAL (SELECT (v.id * 7919 + length(r.id)) %% 20 = 0 AS held) h;
INSERT INTO steps (key, base, stage, version, parameters, seed, state, facts, seconds, device, worker, run)
SELECT key, key, stage, 1, '{{}}', 7, 'done', '{{}}', 2.0, 'cpu', 'host:1', rs.run
FROM run_shots rs, unnest(ARRAY['cutout', 'describe', 'generate', 'upscale', 'inspect', 'publish']) stage,
     LATERAL (SELECT md5(rs.run || '/' || rs.shot || stage) AS key) made
WHERE stage <> 'publish' OR rs.state = 'published';
INSERT INTO run_steps (run, shot, key, stage, reused, chosen)
SELECT rs.run, rs.shot, md5(rs.run || '/' || rs.shot || stage), stage, false, true
FROM run_shots rs, unnest(ARRAY['cutout', 'describe', 'generate', 'upscale', 'inspect', 'publish']) stage
WHERE stage <> 'publish' OR rs.state = 'published';
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


def seed(engine: Engine, shots: int) -> None:
    """Fills an empty ledger: every product is in each of the runs of its scene, and one image in 20 is held."""
    from pipelines.ledger.outcomes import remember_totals

    with engine.begin() as connection:
        connection.exec_driver_sql(SEED.format(products=shots // RUNS, runs=RUNS))
    with engine.begin() as connection:
        for run in range(1, RUNS):
            remember_totals(connection, f"run-{run}")
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("VACUUM ANALYZE"))


def pages(shots: int) -> dict[str, Callable[[], Any]]:
    """What each page asks of the ledger."""
    from packshot_console import comparison, live, overview, products, queue, views
    from packshot_console.services import ledger

    from pipelines.ledger import decisions
    from pipelines.ledger.decisions import Selection

    first = queue.items(Selection(), "", 6)
    last_page = shots // RUNS // 40
    return {
        "overview": overview.overview,
        "runs": lambda: views.runs(1, 50),
        "run, first page": lambda: views.run_page("run-5", "", 1, 40),
        "run, last page": lambda: views.run_page("run-5", "", last_page, 40),
        "run, held": lambda: views.run_page("run-5", "held", 1, 40),
        "run in progress": lambda: views.run_page(f"run-{RUNS}", "", 1, 40),
        "two runs": lambda: comparison.comparison("run-5", "run-9", comparison.PairChoice(), 1),
        "two runs, moved": lambda: comparison.comparison(
            "run-5", "run-6", comparison.PairChoice("published", "held"), 2
        ),
        "review": queue.choices,
        "review, next images": lambda: (
            queue.count(Selection()),
            queue.items(Selection(), first[-1].final, 6),
        ),
        "review, of a check": lambda: (
            queue.count(Selection(scene="scene-1", check="overcompletion")),
            queue.items(Selection(scene="scene-1", check="overcompletion"), "", 6),
        ),
        "review, a batch": lambda: (
            decisions.counted(ledger().engine, Selection()),
            queue.sample(Selection(), 12),
        ),
        "product": lambda: products.product("SKU-7", 1),
        "live": lambda: live.live("", "", "", "", 1),
        "live, a scene's last page": lambda: live.live("scene-1", "web", "", "", shots // RUNS // 24),
    }


def main(shots: int) -> None:
    """Seeds, measures, prints."""
    os.environ["PACKSHOT_STATE_DIR"] = tempfile.mkdtemp(prefix="packshot-bench-")
    from pipelines.services import down, up
    from pipelines.settings import get_settings, read_settings

    up(read_settings(), airflow=False)
    try:
        get_settings.cache_clear()
        from packshot_console.services import ledger

        engine, began = ledger().engine, time.perf_counter()
        seed(engine, shots)
        print(f"{shots:,} shots seeded in {time.perf_counter() - began:.0f} s")
        queries: list[str] = []
        event.listen(engine, "before_cursor_execute", lambda *about: queries.append(about[2]))
        print(f"{'page':<26} {'median ms':>10} {'queries':>8}")
        for name, ask in pages(shots).items():
            times = []
            for _ in range(REPEATS):
                queries.clear()
                start = time.perf_counter()
                ask()
                times.append(1000 * (time.perf_counter() - start))
            print(f"{name:<26} {statistics.median(times):>10.0f} {len(queries):>8}", flush=True)
    finally:
        down(read_settings())


if __name__ == "__main__":
    sys.path.insert(0, "plugins")
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 100_000)
