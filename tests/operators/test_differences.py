"""A night's run records how it differs from the run before it, and every report reads through."""

from __future__ import annotations

import csv
import io
import itertools
import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import text

from operators.plan import PlanRefreshOperator
from operators.publish import PublishOperator, SummaryOperator
from operators.reviewed import PublishApprovedOperator
from pipelines.catalogue.manifest import write_manifest
from pipelines.contracts import Job, Made, Output, Product, Shot, Verdict, sha256_hex
from pipelines.ledger.decisions import Choice, Decision, decide, held_image, roll_back, undo, undo_batch
from pipelines.ledger.endings import end_run
from pipelines.ledger.postgres import PostgresLedger
from pipelines.ledger.reports import Report, list_runs, report
from pipelines.ledger.schema import metadata
from pipelines.runs import planning
from pipelines.runs.verify import verify
from pipelines.scenes import load_scene, scene_names
from pipelines.settings import ROOT, Settings
from pipelines.stages import keys
from pipelines.store import S3Store
from pipelines.workflow import Recipe, Stage, run_stage
from tests.pipelines.test_store import overwrite

SCENE = load_scene(scene_names()[0])
WIDTH = SCENE.channel.min_width
_shops = itertools.count(1)


def stage(name: str, needs: tuple[str, ...]) -> Stage:
    """A stage that writes what it read. Products called `bad` have no product, those called `grown` are held."""

    def job(shot: Shot, upstream: Any, recipe: Recipe, candidate: int) -> Job:
        inputs = {"before": upstream[needs[-1]].output(needs[-1])} if needs else {"photo": shot.product.photo or ""}
        if name in ("inspect", "publish"):
            inputs["final"] = inputs["before"]
        return Job(name, 1, inputs, {"title": shot.product.title}, attempt=recipe.attempt)

    def compute(works: Any, models: None, recipe: Recipe) -> list[Made]:
        [work] = works
        role = "published" if name == "publish" else name
        title = work.job.parameters["title"]
        held = name == "inspect" and title.startswith("grown")
        verdict = Verdict("overcompletion", 0.9 if held else 0.0, 0.05, not held, "it grew" if held else "")
        data = f"{name} {title} {work.job.key}".encode()
        facts = {"width": WIDTH, "height": WIDTH}
        return [Made((Output(role, data, "image/png"),), facts, (verdict,) if name == "inspect" else ())]

    return Stage(name, 1, needs, job, lambda recipe: None, compute)


STAGES = {
    made.name: made
    for made in (
        stage("cutout", ()),
        stage("describe", ("cutout",)),
        stage("generate", ("cutout", "describe")),
        stage("upscale", ("generate",)),
        stage("inspect", ("upscale",)),
        stage("publish", ("inspect", "upscale")),
    )
}


class Shop:
    """A feed that is refreshed night after night, through the operators and real stages of no weight."""

    def __init__(self, ledger: PostgresLedger, store: S3Store, context: dict[str, Any]):
        self.ledger, self.store, self.context = ledger, store, context
        self.name = f"shop-{next(_shops)}"
        self.nights = itertools.count(1)
        self.killed = False
        self.further: list[str] = []
        self.checks: list[str] = []
        self.feed = {name: name for name in ("cup", "pot", "grown-vase")}

    def sku(self, name: str) -> str:
        return f"{self.name}-{name}"

    def manifest(self) -> str:
        """Digest of the feed as it is now."""
        products = [
            Product(self.sku(name), row, title, "Home", self.store.put(self.sku(name).encode(), "image/png"))
            for row, (name, title) in enumerate(self.feed.items(), 2)
        ]
        return write_manifest(self.store, "feed.csv", "0" * 64, products)

    def night(self, run: str = "", **about: Any) -> Report:
        """One whole run; its report."""
        run = run or f"{self.name}-night-{next(self.nights)}"
        about = {
            "feed": self.manifest(), "categories": [], "skus": [],
            "limit": None, "reprocess": "missing", "channels": [], "accept_loss": False,
        } | about  # fmt: skip
        plan = PlanRefreshOperator(task_id="plan", run=run, scene=SCENE.name, triggered_by="test", **about)
        self.looked_at = 0
        for shard in plan.execute(self.context):
            shots = self.ledger.shots(run, shard)
            self.looked_at += len(shots)
            recipe = replace(RECIPE, attempt=run if about["reprocess"] != "missing" else "")
            for name in list(STAGES)[:-1]:
                run_stage(STAGES[name], run, shots, recipe, self.ledger, self.store)
        self.finish(run, about["reprocess"], next(iter(about["channels"]), ""))
        return report(self.ledger.engine, run)

    def finish(self, run: str, reprocess: str = "missing", channel: str = "") -> None:
        """Publish and sum up, as their tasks do."""
        about = {"scene": SCENE.name, "channel": channel, "reprocess": reprocess}
        PublishOperator(task_id="publish", run=run, **about).execute(self.context)
        if self.killed:  # before its summary: the watch over the runs closes it
            assert end_run(self.ledger.engine, run, "failed", "somebody marked it")
        else:
            channels = ["the scene's own", *self.further]
            starts = ["next_channel", "next_wave"]
            summary = SummaryOperator(task_id="summary", run=run, checks=self.checks, starts=starts, channels=channels)
            summary.execute(self.context)

    def shown(self, found: Report) -> dict[str, str]:
        """Name → digest of its image, by the run's feed."""
        rows = csv.DictReader(io.StringIO(self.store.get(found.documents["feed"]).decode()))
        return {row["id"].removeprefix(f"{self.name}-"): row["sha256"] for row in rows}

    def held_image(self, found: Report) -> str:
        """Digest of the image of the vase, which is held."""
        [vase] = self.ledger.shots(found.run, skus=[self.sku("grown-vase")])
        return self.ledger.chosen(found.run, [vase])[vase.sku]["inspect"].job.inputs["final"]

    def decide(self, found: Report, choice: Choice) -> Decision:
        """What a person decides about the vase that a run shows as held."""
        engine = self.ledger.engine
        return decide(engine, held_image(engine, found.run, self.sku("grown-vase")), choice, "ada")

    def queue(self) -> list[tuple[str, str]]:
        """Run and final image of what waits for a person, spot checks apart."""
        statement = """SELECT q.run, q.final FROM review_queue q JOIN shots s ON s.id = q.shot
                       WHERE s.sku LIKE :skus AND NOT q.spot"""
        with self.ledger.engine.connect() as connection:
            return connection.execute(text(statement), {"skus": f"{self.name}-%"}).tuples().all()

    def states(self, found: Report) -> dict[str, str]:
        """Name → state."""
        return {shot.sku.removeprefix(f"{self.name}-"): shot.state.value for shot in found.shots}

    def own_shots(self, found: Report) -> int:
        """Rows of the run's own: what it had to look at."""
        with self.ledger.engine.connect() as connection:
            statement = text("SELECT count(*) FROM run_shots WHERE run = :run")
            return connection.scalar(statement, {"run": found.run}) or 0

    def totals(self, found: Report) -> dict[str, Any]:
        """What the run came to, as it remembers it."""
        with self.ledger.engine.connect() as connection:
            return connection.scalar(text("SELECT totals FROM runs WHERE id = :run"), {"run": found.run}) or {}

    def rows(self) -> int:
        """Rows of the whole ledger."""
        with self.ledger.engine.connect() as connection:
            return sum(connection.scalar(text(f'SELECT count(*) FROM "{table}"')) or 0 for table in metadata.tables)


RECIPE = Recipe(None, SCENE)  # type: ignore[arg-type]  # the stages above read nothing of it


@pytest.fixture
def shop(ledger, store, context, monkeypatch) -> Shop:
    monkeypatch.setattr(keys, "STAGES", STAGES)
    monkeypatch.setattr(keys, "fingerprint", lambda recipe: sha256_hex(b"the recipe"))
    return Shop(ledger, store, context)


def test_a_night_without_change_adds_a_row_for_the_run_and_reports_every_product(shop) -> None:
    first = shop.night()
    assert shop.looked_at == 3
    before = shop.rows()
    second = shop.night()
    assert shop.rows() - before <= 10
    assert shop.looked_at == 0
    assert shop.states(second) == shop.states(first) == {"cup": "published", "pot": "published", "grown-vase": "held"}
    assert shop.shown(second) == shop.shown(first)
    assert (second.products, second.published, second.held) == (3, 2, 1)
    assert {name: count.computed for name, count in second.steps.items()} == dict.fromkeys(STAGES, 0)
    assert {name: count.reused for name, count in second.steps.items()} == {
        name: count.computed for name, count in first.steps.items()
    }


def test_what_a_run_settled_that_airflow_ended_is_no_difference_to_the_next(shop) -> None:
    shop.killed = True
    first = shop.night()
    shop.killed = False
    second = shop.night()
    assert (first.state, shop.own_shots(second)) == ("failed", 0)
    assert shop.states(second) == shop.states(first) == {"cup": "published", "pot": "published", "grown-vase": "held"}


def test_images_that_were_encoded_before_are_found_without_reading_a_step(shop, monkeypatch) -> None:
    first = shop.night()
    with shop.ledger.engine.begin() as connection:
        connection.execute(text("DELETE FROM run_steps WHERE run = :run AND stage = 'publish'"), {"run": first.run})
    read: list[str] = []
    monkeypatch.setattr(PostgresLedger, "find", lambda self, keys: read.extend(keys) or {})
    shop.finish(first.run)
    assert (read, shop.shown(report(shop.ledger.engine, first.run))) == ([], shop.shown(first))


def test_only_what_is_new_changed_or_gone_is_looked_at(shop) -> None:
    first = shop.night()
    del shop.feed["pot"]
    shop.feed = {"new": "new"} | shop.feed | {"cup": "another cup"}
    second = shop.night(accept_loss=True)
    assert shop.looked_at == 2
    assert shop.states(second) == {"new": "published", "cup": "published", "grown-vase": "held"}
    assert [shot.row for shot in second.shots] == [2, 3, 4], "an unchanged product has moved down in the feed"
    assert shop.shown(second).keys() == {"new", "cup"}
    assert shop.shown(second)["cup"] != shop.shown(first)["cup"]
    assert shop.states(report(shop.ledger.engine, first.run)).keys() == {"cup", "pot", "grown-vase"}
    shop.feed |= {"pot": "pot"}
    third = shop.night()
    assert shop.looked_at == 0, "every step of the product that came back is there"
    assert shop.states(third) == {"new": "published", "cup": "published", "grown-vase": "held", "pot": "published"}


def test_a_forced_step_of_another_run_is_noticed(shop) -> None:
    first = shop.night()
    shop.night(skus=[shop.sku("cup"), shop.sku("grown-vase")], reprocess="all")
    third = shop.night()
    assert shop.looked_at == 0, "it is found, not computed"
    assert shop.held_image(third) != shop.held_image(first)
    assert shop.shown(third)["pot"] == shop.shown(first)["pot"]
    assert shop.shown(third)["cup"] != shop.shown(first)["cup"]


def test_an_approved_image_is_published_in_the_run_that_is_cleared_and_by_the_next(shop) -> None:
    shop.night()
    second = shop.night()
    shop.decide(second, Choice.APPROVE)
    shop.finish(second.run)
    again = report(shop.ledger.engine, second.run)
    assert set(shop.states(again).values()) == {"published"}
    assert shop.shown(shop.night()) == shop.shown(again)
    assert shop.looked_at == 0


def test_a_held_image_that_did_not_change_is_decided_once_published_and_unchanged_the_next_night(shop) -> None:
    first = shop.night()
    final = shop.held_image(first)
    second = shop.night()
    assert shop.queue() == [(first.run, final)], "two runs show it, one held it"
    made = shop.decide(second, Choice.APPROVE)
    assert (made.run, made.final, made.held_for) == (first.run, final, "it grew")
    assert shop.queue() == []

    PublishApprovedOperator(task_id="publish", run="the DAG's own", grace_seconds=0).execute(shop.context)
    for run in (first, second):
        now = report(shop.ledger.engine, run.run)
        assert set(shop.states(now).values()) == {"published"}
        assert shop.shown(now).keys() == {"cup", "pot", "grown-vase"}, "the feed has it, also the newest one"
    third = shop.night()
    assert (third.products, third.published) == (3, 3)
    assert shop.shown(third) == shop.shown(now)
    assert shop.held_image(third) == final
    assert shop.own_shots(third) == 0, "it is no difference"

    undo(shop.ledger.engine, made.id, "ada")
    assert shop.queue() == [(first.run, final)]
    assert shop.totals(first)["states"] == {"published": 2, "held": 1}
    fourth = shop.night()
    assert (shop.states(fourth)["grown-vase"], shop.own_shots(fourth)) == ("held", 1)
    assert shop.queue() == [(fourth.run, final)]
    shop.decide(fourth, Choice.REJECT)
    fifth = shop.night()
    assert shop.states(fifth)["grown-vase"] == "held"
    assert shop.queue() == []
    assert "grown-vase" not in shop.shown(fifth)


def test_an_image_that_was_taken_back_is_held_the_next_night_and_published_when_that_is_undone(shop) -> None:
    first = shop.night()
    second = shop.night()
    taken = roll_back(shop.ledger.engine, "ada", "too dark", "b1", run=first.run)
    assert taken == 2
    third = shop.night()
    assert (third.held, third.published, shop.shown(third)) == (3, 0, {})
    undo_batch(shop.ledger.engine, "b1", "ada")
    fourth = shop.night()
    assert shop.shown(fourth) == shop.shown(second)


def test_a_days_shots_count_in_the_run_that_worked_on_them(shop) -> None:
    for found in (shop.night(), shop.night()):
        [listed] = [run for run in list_runs(shop.ledger.engine) if run.run == found.run]
        assert listed.shots == found.products == 3
        assert sum(shop.totals(found)["states"].values()) == shop.own_shots(found)
        steps = {stage: tuple(count[:2]) for stage, count in shop.totals(found)["stages"].items()}
        assert steps == {stage: (count.computed, count.reused) for stage, count in found.steps.items()}
        assert sum(computed + reused for computed, reused in steps.values()) == 17


def test_what_failed_is_tried_again_the_next_night(shop, monkeypatch) -> None:
    broken = replace(STAGES["generate"], compute=lambda works, models, recipe: 1 / 0)
    with monkeypatch.context() as patch:
        patch.setitem(STAGES, "generate", broken)
        with pytest.raises(Exception, match="3 of 3 shots failed"):
            shop.night()
    assert shop.states(shop.night())["cup"] == "published"
    assert shop.looked_at == 3


def test_planning_a_run_again_keeps_what_later_runs_build_on(shop) -> None:
    first = shop.night()
    shop.feed["cup"] = "another cup"
    second = shop.night()
    planned = {
        "channels": [],
        "accept_loss": False,
        "scene": SCENE.name,
        "categories": [],
        "skus": [],
        "limit": None,
        "reprocess": "missing",
    }
    for run in (first.run, second.run):  # the first is built on, the second is not
        PlanRefreshOperator(task_id="plan", run=run, feed="", triggered_by="test", **planned).execute(shop.context)
        shop.finish(run)
    for run in (first, second):
        assert shop.states(report(shop.ledger.engine, run.run)) == shop.states(run)


def test_a_run_that_stands_alone_can_be_planned_again_after_a_later_one(shop) -> None:
    shop.night()
    again: dict[str, Any] = {
        "channels": [],
        "accept_loss": False,
        "scene": SCENE.name,
        "categories": [],
        "skus": [],
        "limit": None,
        "reprocess": "failed",
    }
    for run in ("alone-1", "alone-2", "alone-1"):
        plan = PlanRefreshOperator(task_id="plan", run=run, feed=shop.manifest(), triggered_by="test", **again)
        plan.execute(shop.context)
        assert [shot.sku for shot in shop.ledger.shots(run)] == [shop.sku("grown-vase")]


def test_a_published_image_that_the_store_lost_is_encoded_again(shop) -> None:
    shown = shop.shown(shop.night())
    shop.store.remove(shown["cup"])
    assert shop.shown(shop.night()) == shown
    assert shop.store.has(shown["cup"])
    assert shop.looked_at == 0


def test_verify_names_what_is_lost_and_the_next_night_makes_it_anew(shop, settings) -> None:
    found = shop.night()
    [cup, pot, vase] = shop.ledger.shots(found.run)
    steps = shop.ledger.chosen(found.run, [cup, pot])
    missing, rotten = steps[cup.sku]["cutout"].output("cutout"), steps[pot.sku]["generate"].output("generate")
    shop.store.remove(missing)
    shop.store.remove(vase.product.photo)
    overwrite(shop.store, settings, rotten, b"\0" * len(shop.store.get(rotten)))
    assert {one.problem for one in verify(shop.ledger, shop.store, settings).lost} == {"missing"}
    lost = {one.digest: one for one in verify(shop.ledger, shop.store, settings, read=True, repair=True).lost}
    assert {digest: (one.problem, one.made_by, one.sku, one.open) for digest, one in lost.items()} == {
        missing: ("missing", "cutout", cup.sku, False),
        rotten: ("damaged", "generate", pot.sku, False),
        vase.product.photo: ("missing", "photo", vase.sku, True),
    }
    night = shop.night()
    assert shop.states(night) == shop.states(found)
    assert shop.looked_at == 2
    shop.store.put(shop.sku("grown-vase").encode(), "image/png")
    assert verify(shop.ledger, shop.store, settings, read=True).lost == ()
    assert (shop.night().published, shop.looked_at) == (2, 0)


def test_planning_and_a_task_without_work_import_no_torch(settings: Settings, ledger, store) -> None:
    products = [Product(f"plain-{row}", row, "Mug", "Home", None, "row 2: no photo") for row in (2, 3)]
    feed = write_manifest(store, "feed.csv", "0" * 64, products)
    code = f"""
import sys
from types import SimpleNamespace
from operators.base import open_services
from operators.plan import PlanRefreshOperator
from operators.stages import CutoutOperator, GenerateOperator
from pipelines.contracts import State, Step
from pipelines.stages import stage
dag, dag_run = SimpleNamespace(dag_id="catalog_refresh", params={{}}), SimpleNamespace(conf={{}})
context = {{"ti": None, "dag": dag, "dag_run": dag_run, "params": {{}}}}
def plan(run):
    task = PlanRefreshOperator(task_id="plan", run=run, feed={feed!r}, scene={SCENE.name!r}, categories=[], skus=[],
                               limit=None, reprocess="missing", channels=[], accept_loss=False, triggered_by="test")
    return task.execute(context)
assert plan("plain-1") == [0]
services = open_services()
recipe = services.recipe({SCENE.name!r}, "missing", "plain-1")
for shot in services.ledger.shots("plain-1", 0):
    job = stage("cutout").job(shot, {{}}, recipe, 0)
    services.ledger.record(Step(job.key, job, State.REJECTED, reason="no photo"))
for task in (CutoutOperator, GenerateOperator):
    about = {{"scene": {SCENE.name!r}, "channel": "", "reprocess": "missing"}}
    task(task_id="stage", run="plain-1", shard=0, **about).execute(context)
services.ledger.finish_run("plain-1", "success")
assert plan("plain-2") == []
heavy = {{"torch", "cv2", "diffusers", "transformers"}} & set(sys.modules)
assert not heavy, heavy
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.parametrize(
    ("shots", "rates", "size"),
    [
        (0, {}, 1),
        (5, {}, 5),
        (100, {}, 8),
        (10_000, {"cutout": 1.0, "generate": 6.0}, 100),
        (100, {"generate": 0.01}, 50),  # both accelerators have work
        (1_000_000, {"generate": 6.0}, 7813),  # 128 shards
    ],
)
def test_a_shard_lasts_about_ten_minutes_and_there_are_128_at_most(shots: int, rates: dict, size: int) -> None:
    assert planning.shard_size(shots, rates, slots=2 if shots == 100 and rates else 1) == size
