"""The ledger's promises, on a real Postgres: one result a key, claims that die with their holder, what a run made."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import inspect, text
from sqlalchemy.engine import make_url

from pipelines.contracts import (
    STAGES,
    Artifact,
    Job,
    ModelRef,
    Product,
    Publication,
    Shot,
    ShotState,
    ShotStep,
    State,
    Step,
    Verdict,
    sha256_hex,
)
from pipelines.errors import IntegrityError, UsageError
from pipelines.ledger.decisions import Choice, decide
from pipelines.ledger.memory import MemoryLedger
from pipelines.ledger.postgres import PostgresLedger, connect
from pipelines.ledger.schema import metadata, migrate

MONDAY = datetime(2026, 11, 2, 3, tzinfo=UTC)


@pytest.fixture(params=["memory", "postgres"])
def any_ledger(request: pytest.FixtureRequest) -> MemoryLedger | PostgresLedger:
    return request.getfixturevalue("ledger") if request.param == "postgres" else MemoryLedger()


@pytest.fixture
def shot(any_ledger, request: pytest.FixtureRequest) -> Shot:
    """A shot of a run named like the test."""
    made = Shot(Product(request.node.name, 1, "Kettle", "Kitchen", sha256_hex(b"photo")), "studio", "web")
    if isinstance(any_ledger, PostgresLedger):
        open_run(any_ledger, request.node.name, [made])
    return made


def open_run(ledger: PostgresLedger, run: str, shots: Sequence[Shot], **about: Any) -> None:
    ledger.start_run(run, "catalog_refresh", "studio", "web", **about)
    ledger.upsert_products([shot.product for shot in shots], MONDAY)
    ledger.select(run, shots, shard_size=2)


def product(sku: str, row: int = 1, **about: Any) -> Product:
    return replace(Product(sku, row, f"Title of {sku}", "Kitchen", sha256_hex(sku.encode())), **about)


def artifact(role: str, data: bytes) -> Artifact:
    return Artifact(sha256_hex(data), role, "image/png", len(data))


def step(stage: str, name: str, state: State = State.DONE, seed: int | None = None, **more: Any) -> Step:
    """A step whose key is its stage's, name's and seed's, with one output where it is done."""
    job = Job(
        stage=stage,
        version=1,
        inputs={"photo": sha256_hex(name.encode())},
        parameters={"name": name, "size": 1.5, "path": ["auto", None, True]},
        models=(ModelRef("salient", "r2", sha256_hex(b"net")), ModelRef("sam", "r1", sha256_hex(b"sam"))),
        seed=seed,
    )
    role = {"publish": "published", "upscale": "final"}.get(stage, stage)
    outputs = (artifact(role, f"{stage} {name} {seed}".encode()),) if state is State.DONE else ()
    reason = "" if state is State.DONE else f"{stage} says no"
    made = Step(job.key, job, state, outputs, {"score": 0.25}, reason=reason, seconds=2.0, device="cpu")
    return replace(made, **more)


FAILING = (
    Verdict("fidelity", 0.99, 0.9, True),
    Verdict("overcompletion", 0.31, 0.05, False, "the product grew by 31 %", "where"),
    Verdict("halo", 9.0, 3.0, False, "a bright edge"),
)
PASSING = (Verdict("overcompletion", 0.01, 0.05, True),)


def walk(
    ledger: PostgresLedger, run: str, shot: Shot, checks: tuple[Verdict, ...] = PASSING, to: str = "publish"
) -> str:
    """Record and use a shot's steps up to `to`; returns the digest of what the last one made."""
    for stage in STAGES[: STAGES.index(to) + 1]:
        made = step(stage, shot.sku, verdicts=checks if stage == "inspect" else ())
        if stage == "inspect":
            final = step("upscale", shot.sku).output("final")
            made = replace(made, job=replace(made.job, inputs={"final": final}))
            made = replace(made, key=made.job.key)
        known = ledger.find([made.key])
        ledger.use(run, [(shot, [ShotStep(ledger.record(made), reused=made.key in known)])])
    return made.outputs[0].sha256


def states(ledger: PostgresLedger, run: str) -> list[tuple[str, str]]:
    with ledger.engine.connect() as connection:
        rows = connection.execute(
            text("SELECT state, reason FROM run_shots WHERE run = :run ORDER BY position"), {"run": run}
        )
        return [tuple(row) for row in rows]


# ------------------------------------------------------------------------ schema


def test_the_migrations_make_the_tables_that_the_code_declares(ledger):
    with ledger.engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []


def test_migrating_again_changes_nothing_and_keeps_the_views(settings, ledger):
    migrate(settings.owner_database_url, make_url(settings.database_url).username)
    assert set(inspect(ledger.engine).get_view_names()) == {
        "shots_by_state_and_day",
        "review_queue",
        "shots_of_runs",
        "seconds_by_stage",
        "overcompletion_by_scene_and_category",
        "false_passes_by_scene",
    }


# ------------------------------------------------------------------------- steps


def test_a_step_comes_back_as_it_was_recorded(any_ledger, request):
    made = step("inspect", request.node.name, verdicts=FAILING, seed=7)
    assert any_ledger.record(made) == made
    (found,) = any_ledger.find([made.key, "0" * 64]).values()
    assert found == made
    assert found.job.key == made.key


def test_a_rejection_is_a_result_and_a_failure_is_none(any_ledger, request):
    rejected = step("cutout", request.node.name, State.REJECTED)
    failed = step("describe", request.node.name, State.FAILED)
    any_ledger.record(rejected)
    any_ledger.record(failed)
    assert any_ledger.find([rejected.key, failed.key]) == {rejected.key: rejected}


def test_the_first_result_of_a_key_wins(any_ledger, request):
    first = step("generate", request.node.name)
    second = replace(first, outputs=(artifact("generate", b"other pixels"),), seconds=9.0)
    any_ledger.record(first)
    assert any_ledger.record(second) == first
    assert any_ledger.find([first.key]) == {first.key: first}


def test_the_newest_attempt_answers_for_its_base_and_an_attempt_for_itself(any_ledger, request):
    first = step("generate", request.node.name)

    def attempt(name: str, state: State = State.DONE) -> Step:
        job = replace(first.job, attempt=name)
        return any_ledger.record(replace(first, key=job.key, job=job, state=state))

    any_ledger.record(first)
    monday, tuesday = attempt("monday"), attempt("tuesday", State.REJECTED)
    broken = attempt("wednesday", State.FAILED)
    other = any_ledger.record(step("generate", f"other {request.node.name}"))
    keys = [first.key, monday.key, tuesday.key, broken.key, other.key, replace(first.job, attempt="thursday").key]
    assert any_ledger.find(keys) == {
        first.key: tuesday, monday.key: monday, tuesday.key: tuesday, other.key: other,
    }  # fmt: skip
    assert first.job.base == monday.job.base == first.key


def test_a_failure_gives_way_to_what_comes_later(any_ledger, request):
    done = step("generate", request.node.name)
    any_ledger.record(replace(done, state=State.FAILED, outputs=(), reason="ShotTimeout: no result"))
    assert any_ledger.record(done) == done
    assert any_ledger.record(replace(done, state=State.FAILED, outputs=(), reason="late")) == done


def test_thousands_of_keys_are_found_at_once(ledger, request):
    made = step("cutout", request.node.name)
    ledger.record(made)
    assert set(ledger.find([f"{n:064x}" for n in range(5000)] + [made.key])) == {made.key}


def test_the_chosen_step_is_the_one_that_was_used(any_ledger, shot, request):
    run = request.node.name
    passed_over, best = step("generate", run, seed=1), step("generate", run, seed=2)
    for made in (passed_over, best):
        any_ledger.record(made)
    uses = [ShotStep(passed_over, False, chosen=False), ShotStep(best, False)]
    any_ledger.use(run, [(shot, uses)])
    any_ledger.use(run, [(shot, uses)])
    assert any_ledger.chosen(run, [shot]) == {shot.sku: {"generate": best}}
    assert any_ledger.chosen("another run", [shot]) == {}


def test_a_retry_that_finds_its_own_steps_does_not_turn_them_into_reused_ones(ledger, request):
    run, shot = request.node.name, Shot(product(request.node.name), "studio", "web")
    open_run(ledger, run, [shot])
    made = ledger.record(step("cutout", shot.sku))
    ledger.use(run, [(shot, [ShotStep(made, reused=False)])])
    ledger.use(run, [(shot, [ShotStep(made, reused=True)])])
    with ledger.engine.connect() as connection:
        assert connection.scalar(text("SELECT reused FROM run_steps WHERE run = :run"), {"run": run}) is False


def test_another_try_forgets_what_the_one_before_it_used_in_that_stage_alone(ledger, request):
    run = request.node.name
    shots = [Shot(product(f"{run}-{n}"), "studio", "web") for n in range(3)]
    open_run(ledger, run, shots)

    def use(stage: str, seeds: Sequence[int]) -> None:
        made = {(shot.sku, seed): ledger.record(step(stage, shot.sku, seed=seed)) for shot in shots for seed in seeds}
        best = seeds[-1]
        ledger.use(run, [(s, [ShotStep(made[s.sku, n], False, chosen=n == best) for n in seeds]) for s in shots])

    use("cutout", [0])
    use("generate", [1, 2, 3])
    use("generate", [2, 4, 5])
    with ledger.engine.connect() as connection:
        rows = connection.execute(
            text(
                "SELECT u.stage, s.seed, u.chosen, count(*) FROM run_steps u JOIN steps s USING (key)"
                " WHERE u.run = :run GROUP BY 1, 2, 3 ORDER BY 1, 2"
            ),
            {"run": run},
        )
        assert [tuple(row) for row in rows] == [
            ("cutout", 0, True, 3),
            ("generate", 2, False, 3),
            ("generate", 4, False, 3),
            ("generate", 5, True, 3),
        ]


# ------------------------------------------------------------------------ claims


def test_threads_that_want_one_key_take_turns(any_ledger, request):
    keys, inside, most = [sha256_hex(request.node.name.encode()), sha256_hex(b"other")], [], []

    def work(order: int) -> None:
        with any_ledger.claim(keys[::order]):
            inside.append(1)
            most.append(len(inside))
            time.sleep(0.05)
            inside.pop()

    threads = [threading.Thread(target=work, args=(order,)) for order in (1, -1, 1, -1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=20)
    assert most == [1, 1, 1, 1]


def test_different_keys_do_not_wait_for_each_other(any_ledger):
    with any_ledger.claim(["1" * 64]):
        other = threading.Thread(target=lambda: any_ledger.claim(["2" * 64]).__enter__())
        other.start()
        other.join(timeout=10)
        assert not other.is_alive()


CLAIMANT = """
import sys, time
from pipelines.contracts import Job, Made, Output, Product, Shot, sha256_hex
from pipelines.ledger.decisions import Choice, decide
from pipelines.ledger.postgres import PostgresLedger, connect
from pipelines.store import FolderStore
from pathlib import Path
ledger = PostgresLedger(connect(sys.argv[1]))
if sys.argv[2] == "hold":
    with ledger.claim([sys.argv[3]]):
        print("held", flush=True)
        time.sleep(600)
else:
    from pipelines.workflow import Recipe, Stage, run_stage
    def compute(works, models, recipe):
        time.sleep(1)
        return [Made((Output("matte", b"same bytes", "image/png"),)) for _ in works]
    stage = Stage("cutout", 1, (), lambda shot, upstream, recipe, n: Job("cutout", 1, {}, {"of": sys.argv[3]}),
                  lambda recipe: None, compute)
    print("ready", flush=True)
    sys.stdin.readline()
    shot = Shot(Product(sys.argv[3], 1, "", "", None), "studio", "web")
    done = run_stage(stage, sys.argv[3], [shot], Recipe(None, None), ledger, FolderStore(Path(sys.argv[4])))
    print(done.computed, done.reused, flush=True)
"""


def claimant(settings, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", CLAIMANT, settings.database_url, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def test_a_claim_dies_with_its_holder(settings, ledger, request):
    key = sha256_hex(request.node.name.encode())
    holder = claimant(settings, "hold", key)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    got = threading.Event()

    def wait() -> None:
        with ledger.claim([key]):
            got.set()

    waiter = threading.Thread(target=wait)
    waiter.start()
    assert not got.wait(timeout=3), "the claim was not exclusive"  # longer than one poll
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    assert got.wait(timeout=10)
    waiter.join()


def test_two_processes_that_want_one_key_compute_it_once(settings, ledger, request, tmp_path):
    run = request.node.name
    open_run(ledger, run, [Shot(product(run), "studio", "web")])
    workers = [claimant(settings, "work", run, str(tmp_path)) for _ in range(2)]
    for worker in workers:
        assert worker.stdout is not None
        assert worker.stdout.readline() == "ready\n"
    outputs = [worker.communicate("go\n", timeout=60)[0] for worker in workers]
    assert sorted(outputs) == ["0 1\n", "1 0\n"]


# ---------------------------------------------------------- products, runs, shots


def test_a_feed_is_compared_with_what_was_known(ledger, request):
    name = request.node.name
    items = [product(f"{name}-{n}", row=n) for n in range(3)]
    assert ledger.upsert_products(items, MONDAY).new == 3
    moved = replace(items[0], row=9)
    changed = replace(items[1], row=7, photo=sha256_hex(b"retouched"))
    changes = ledger.upsert_products([moved, changed, items[2], product(f"{name}-new")], MONDAY + timedelta(days=1))
    assert (changes.new, changes.changed, changes.unchanged) == (1, 1, 2)
    now = ledger.products_changed_between(MONDAY, MONDAY, skus=[item.sku for item in items])
    assert now == [items[2], changed, moved]  # in the feed's order of today


def test_a_day_covers_what_was_new_or_changed_on_it(ledger, request):
    name = request.node.name
    day = datetime(2025, 6, 1, tzinfo=UTC)
    vase, lamp = product(f"{name}-vase", 1, category="Decor"), product(f"{name}-lamp", 2, category="Light")
    ledger.upsert_products([vase, lamp], day)
    brighter = replace(lamp, title="A brighter lamp")
    ledger.upsert_products([vase, brighter], day + timedelta(days=1))

    def on(days: float, **which: Sequence[str]) -> list[Product]:
        start = day + timedelta(days=days)
        return ledger.products_changed_between(start, start + timedelta(days=1), **which)

    assert on(0) == [vase, brighter]
    assert on(1) == [brighter]
    assert on(2) == []
    assert on(2, skus=[vase.sku]) == [vase]


def test_shots_are_cut_into_shards_in_order_and_keep_the_product_of_that_time(ledger, request):
    run = request.node.name
    shots = [Shot(product(f"{run}-{n}", n, extra={"color": "blue"}), "studio", "web") for n in range(5)]
    ledger.start_run(run, "catalog_refresh", "studio", "web")
    ledger.upsert_products([shot.product for shot in shots], MONDAY)
    assert ledger.select(run, shots, shard_size=2) == 3
    assert ledger.select(run, shots, shard_size=2) == 3
    ledger.upsert_products([replace(shots[0].product, title="Renamed meanwhile")])
    assert ledger.shots(run) == shots
    assert ledger.shots(run, shard=1) == shots[2:4]
    assert ledger.select(run, [], shard_size=2) == 0
    assert ledger.shots(run) == []


def test_thousands_of_shots_are_selected_in_order_and_none_twice(ledger, request):
    run, count = request.node.name, 2500
    shots = [Shot(product(f"{run}-{count - n:04d}", n), "studio", "web") for n in range(count)]
    open_run(ledger, f"{run}-1", shots[::2])
    open_run(ledger, f"{run}-2", shots)
    assert ledger.shots(f"{run}-2") == shots
    assert ledger.shots(f"{run}-2", shard=600) == shots[1200:1202]
    with ledger.engine.connect() as connection:
        known = text("SELECT count(*) FROM shots WHERE sku LIKE :skus")
        assert connection.scalar(known, {"skus": f"{run}-%"}) == count


def test_runs_that_add_the_same_shots_in_opposite_orders_both_get_them(ledger, request):
    run = request.node.name
    shots = [Shot(product(f"{run}-{n}", n), "studio", "web") for n in range(1500)]
    ledger.upsert_products([shot.product for shot in shots], MONDAY)
    selections = {f"{run}-1": shots, f"{run}-2": shots[::-1]}
    for name in selections:
        ledger.start_run(name, "catalog_refresh", "studio", "web")
    threads = [threading.Thread(target=ledger.select, args=(name, selections[name], 8)) for name in selections]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert all(ledger.shots(name) == shots for name in selections)


def test_postgres_knows_how_large_a_selected_run_is(ledger, request):
    """It joins run_shots by that estimate: one row expected where there are thousands makes settling them quadratic."""
    run, count = request.node.name, 3000
    open_run(ledger, f"{run}-before", [Shot(product(f"{run}-{n}", n), "studio", "web") for n in range(count)])
    open_run(ledger, run, [Shot(product(f"{run}-{n}", n), "studio", "web") for n in range(count)])
    with ledger.engine.connect() as connection:
        plan = connection.scalar(text("EXPLAIN (FORMAT JSON) SELECT FROM run_shots WHERE run = :run"), {"run": run})
    assert plan[0]["Plan"]["Plan Rows"] > count / 4


def test_products_that_the_ledger_does_not_know_cannot_be_selected(ledger, request):
    ledger.start_run(request.node.name, "catalog_refresh", "studio", "web")
    with pytest.raises(IntegrityError, match="nowhere"):
        ledger.select(request.node.name, [Shot(product("nowhere"), "studio", "web")], 2)


def test_two_dags_cannot_share_a_run(ledger, request):
    ledger.start_run(request.node.name, "catalog_refresh", "studio", "web")
    ledger.start_run(request.node.name, "catalog_refresh", "studio", "web")
    with pytest.raises(IntegrityError, match="another DAG"):
        ledger.start_run(request.node.name, "campaign_backfill", "studio", "web")


# ---------------------------------------------------------------------- outcomes


def test_every_shot_ends_in_the_state_that_its_steps_give_it(ledger, request):
    run = request.node.name
    names = ["published", "held", "rejected", "failed", "ready", "early"]
    shots = {name: Shot(product(f"{run}-{name}", n), "studio", "web") for n, name in enumerate(names)}
    open_run(ledger, run, list(shots.values()))
    digest = walk(ledger, run, shots["published"])
    walk(ledger, run, shots["held"], FAILING, to="inspect")
    for name, state in (("rejected", State.REJECTED), ("failed", State.FAILED)):
        ledger.use(run, [(shots[name], [ShotStep(ledger.record(step("cutout", shots[name].sku, state)), False)])])
    walk(ledger, run, shots["ready"], to="inspect")
    walk(ledger, run, shots["early"], to="describe")
    ledger.publish(run, [Publication(shots["published"].sku, "studio", "web", digest)])
    ledger.settle(run)
    assert states(ledger, run) == [
        ("published", ""),
        ("held", "the product grew by 31 %; a bright edge"),
        ("rejected", "cutout says no"),
        ("failed", "cutout says no"),
        ("pending", ""),
        ("pending", ""),
    ]
    ledger.finish_run(run, "failed", {"reason": "publication stopped: a key twice", "failures": []})
    assert states(ledger, run)[4:] == [
        ("held", "publication stopped: a key twice"),
        ("failed", "the run ended before the shot was through its stages"),
    ]
    skus = [shot.sku for shot in shots.values()]
    assert ledger.last_outcomes("studio", "web", skus)[shots["held"].sku] is ShotState.HELD
    assert ledger.last_outcomes("another", "web", skus) == {}


def test_options_of_an_address_of_ones_own_are_kept(settings):
    url = make_url(settings.database_url).update_query_dict({"options": "-c search_path=shop"})
    engine = connect(url.render_as_string(hide_password=False))
    try:
        with engine.connect() as connection:
            assert connection.scalar(text("SHOW search_path")) == "shop"
            assert connection.scalar(text("SHOW timezone")) == "UTC"
    finally:
        engine.dispose()


@pytest.mark.parametrize("url", ["", "sesame", "postgres://a:sesame@b/c", "postgresql+psycopg2://a:sesame@b:port/c"])
def test_an_address_that_is_none_is_not_repeated(url):
    with pytest.raises(UsageError, match="PACKSHOT_DATABASE_URL") as caught:
        connect(url)
    assert "sesame" not in str(caught.value)
    assert caught.value.__suppress_context__


def test_what_a_person_approved_is_held_until_it_is_published(ledger, request):
    run, shot = request.node.name, Shot(product(request.node.name), "studio", "web")
    open_run(ledger, run, [shot])
    walk(ledger, run, shot, FAILING, to="inspect")
    ledger.settle(run)
    final = step("upscale", shot.sku).output("final")
    decide(ledger.engine, final, Choice.APPROVE, "ada")
    ledger.settle(run)
    assert [state for state, _ in states(ledger, run)] == ["held"]
    digest = walk(ledger, run, shot, FAILING)
    ledger.publish(run, [Publication(shot.sku, "studio", "web", digest)])
    ledger.settle(run)
    assert states(ledger, run) == [("published", "")]


def test_a_new_image_supersedes_and_the_same_image_does_not(ledger, request):
    run, shot = request.node.name, Shot(product(request.node.name), "studio", "web")
    open_run(ledger, run, [shot])
    first = walk(ledger, run, shot)
    second = ledger.record(step("publish", shot.sku, seed=2)).output("published")
    images = [Publication(shot.sku, "studio", "web", digest) for digest in (first, second)]
    assert [ledger.publish(run, [image]) for image in (images[0], images[0], images[1])] == [1, 0, 1]
    with ledger.engine.connect() as connection:
        rows = connection.execute(
            text("SELECT digest, superseded_at IS NULL FROM publications WHERE run = :run ORDER BY id"), {"run": run}
        )
        assert [tuple(row) for row in rows] == [(first, False), (second, True)]


def test_a_set_is_published_whole_or_not_at_all(ledger, request):
    run, shot = request.node.name, Shot(product(request.node.name), "studio", "web")
    open_run(ledger, run, [shot])
    good = Publication(shot.sku, "studio", "web", walk(ledger, run, shot))
    with pytest.raises(Exception, match="publications_digest_fkey"):
        ledger.publish(run, [good, Publication(f"{shot.sku}-2", "studio", "web", "0" * 64)])
    ledger.settle(run)
    assert states(ledger, run) == [("pending", "")]


def test_a_reused_publication_counts_for_the_run_that_reused_it(ledger, request):
    shot = Shot(product(request.node.name), "studio", "web")
    for run in (f"{request.node.name}-1", f"{request.node.name}-2"):
        open_run(ledger, run, [shot])
        ledger.publish(run, [Publication(shot.sku, "studio", "web", walk(ledger, run, shot))])
        ledger.finish_run(run, "success")
        assert states(ledger, run) == [("published", "")]


def test_an_image_that_was_superseded_before_a_run_does_not_count_as_published_by_it(ledger, request):
    shot = Shot(product(request.node.name), "studio", "web")
    first, second, third = (f"{request.node.name}-{n}" for n in range(3))
    open_run(ledger, first, [shot])
    image = walk(ledger, first, shot)
    ledger.publish(first, [Publication(shot.sku, "studio", "web", image)])
    open_run(ledger, second, [shot])
    newer = ledger.record(step("publish", shot.sku, seed=2)).output("published")
    ledger.publish(second, [Publication(shot.sku, "studio", "web", newer)])
    open_run(ledger, third, [shot])
    assert walk(ledger, third, shot) == image
    ledger.finish_run(third, "failed", {"reason": "publication stopped: a key twice"})
    assert states(ledger, third) == [("held", "publication stopped: a key twice")]
    ledger.finish_run(first, "success")  # whose own image it was
    assert states(ledger, first) == [("published", "")]


def test_an_image_that_another_run_superseded_meanwhile_was_published_all_the_same(ledger, request):
    shot = Shot(product(request.node.name), "studio", "web")
    first, second, third = (f"{request.node.name}-{n}" for n in range(3))
    for run in (first, second):  # the second finds its image shown
        open_run(ledger, run, [shot])
        ledger.publish(run, [Publication(shot.sku, "studio", "web", walk(ledger, run, shot))])
    open_run(ledger, third, [shot])
    newer = ledger.record(step("publish", shot.sku, seed=2)).output("published")
    ledger.publish(third, [Publication(shot.sku, "studio", "web", newer)])
    ledger.finish_run(second, "success")
    assert states(ledger, second) == [("published", "")]


def test_runs_supersede_each_other_in_the_order_in_which_they_began(ledger, request):
    shot, new = (Shot(product(f"{request.node.name}-{n}"), "studio", "web") for n in range(2))
    earlier, later = (f"{request.node.name}-{n}" for n in range(2))
    open_run(ledger, earlier, [shot, new])
    open_run(ledger, later, [shot])
    images = {run: ledger.record(step("publish", shot.sku, seed=n)) for n, run in enumerate((earlier, later))}
    shown = [Publication(shot.sku, "studio", "web", images[run].output("published")) for run in (earlier, later)]
    both = [shown[0], Publication(new.sku, "studio", "web", walk(ledger, earlier, new))]
    ledger.use(earlier, [(shot, [ShotStep(images[earlier], reused=False)])])
    assert ledger.publish(later, [shown[1]]) == 1
    assert [ledger.publish(earlier, both) for _ in range(2)] == [1, 0]  # the other shot's image alone; then a retry
    with ledger.engine.connect() as connection:
        rows = connection.execute(
            text(
                "SELECT sku, run, superseded_at IS NULL FROM publications p JOIN shots s ON s.id = p.shot"
                " WHERE run IN (:earlier, :later) ORDER BY sku, p.id"
            ),
            {"earlier": earlier, "later": later},
        )
        assert [tuple(row) for row in rows] == [
            (shot.sku, later, True),
            (shot.sku, earlier, False),
            (new.sku, earlier, True),
        ]
    ledger.finish_run(earlier, "success")
    assert states(ledger, earlier) == [("published", ""), ("published", "")]


def test_rates_are_seconds_a_shot_and_count_the_candidates_that_were_passed_over(ledger, request):
    run, shot = request.node.name, Shot(product(request.node.name), "studio", "web")
    open_run(ledger, run, [shot])
    with ledger.engine.begin() as connection:
        connection.execute(text("UPDATE run_steps SET reused = true"))
    pair = [ledger.record(step("generate", shot.sku, seed=n, seconds=3.0)) for n in (1, 2)]
    ledger.use(run, [(shot, [ShotStep(pair[0], False, chosen=False), ShotStep(pair[1], False)])])
    assert ledger.rates() == {"generate": 6.0}
