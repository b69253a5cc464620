"""The set of a run is published as a whole, or, where its table is defective, not at all."""

from __future__ import annotations

import csv
import io
import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
from airflow.sdk.exceptions import AirflowFailException
from PIL import Image
from sqlalchemy import text

from operators.publish import CheckTableOperator, PublishOperator, SummaryOperator
from operators.reviewed import PlanRetriesOperator, PublishApprovedOperator
from pipelines.contracts import Artifact, Job, Product, Shot, ShotStep, State, Step, Verdict
from pipelines.errors import UsageError
from pipelines.ledger.decisions import Choice, Decision, decide, held_image, roll_back
from pipelines.ledger.endings import note_failure
from pipelines.ledger.postgres import PostgresLedger
from pipelines.ledger.reports import report
from pipelines.runs.export import export_run
from pipelines.scenes import load_scene, scene_names
from pipelines.store import S3Store
from pipelines.vision.placement import Placement

SCENE = load_scene(scene_names()[0])
PASSED = (Verdict("overcompletion", 0.01, 0.05, True), Verdict("fidelity", 0.0, 1.0, True))
HELD = (Verdict("overcompletion", 0.4, 0.05, False, "the product grew"),)
_runs = itertools.count(1)


class Catalogue:
    """A run whose shots are through every stage but the last."""

    def __init__(self, ledger: PostgresLedger, store: S3Store, damage: Callable[..., None], channel: str = ""):
        self.ledger, self.store, self.damage = ledger, store, damage
        self.scene, self.channel = load_scene(SCENE.name, channel=channel), channel
        self.run = f"run-{next(_runs)}"
        self.shots: list[Shot] = []

    def open(self, *skus: str) -> Catalogue:
        """Select these products."""
        products = [Product(f"{self.run}-{sku}", row, sku, "Kitchen", "a" * 64) for row, sku in enumerate(skus, 2)]
        self.shots = [Shot(product, SCENE.name, self.scene.channel.name) for product in products]
        self.ledger.upsert_products(products)
        self.ledger.start_run(self.run, "catalog_refresh", SCENE.name, self.scene.channel.name)
        self.ledger.select(self.run, self.shots, 8)
        return self

    def inspected(self, shot: Shot, verdicts: Sequence[Verdict] = PASSED, side: int = 600, margin: int = 100) -> Step:
        """Record everything up to and with `inspect` for one shot, whose final image is `side` px wide and high, and
        whose product is `margin` px away from its edges."""
        inner = side - 2 * margin
        placement = Placement(side, side, (0, 0, inner, inner), margin, margin, inner, inner, "none").facts()
        out = io.BytesIO()
        Image.effect_noise((side, side), 40).convert("RGB").save(out, "PNG")
        digest = self.store.put(out.getvalue(), "image/png")
        final = Artifact(digest, "final", "image/png", len(out.getvalue()))
        for stage, outputs, found in (("cutout", (), ()), ("upscale", (final,), ()), ("inspect", (), tuple(verdicts))):
            about = {"sku": shot.sku, "run": self.run} | ({"placement": placement} if stage == "upscale" else {})
            job = Job(stage, 1, {"final": digest} if stage == "inspect" else {}, about)
            step = Step(job.key, job, State.DONE, outputs, verdicts=found, seconds=1.0, device="cpu")
            self.ledger.use(self.run, [(shot, [ShotStep(self.ledger.record(step), reused=False)])])
        return step

    def publish(self, context: dict[str, Any]) -> dict[str, Any]:
        """Run the operator, as its task would."""
        task = PublishOperator(
            task_id="publish", run=self.run, scene=SCENE.name, channel=self.channel, reprocess="missing"
        )
        return task.execute(context)

    def summary(self, context: dict[str, Any]) -> dict[str, Any]:
        """Run the operator, as its task would."""
        return SummaryOperator(task_id="summary", run=self.run, checks=["publish"]).execute(context)

    def outcomes(self) -> dict[str, str]:
        """Title → state."""
        return {
            shot.sku.removeprefix(f"{self.run}-"): shot.state.value
            for shot in report(self.ledger.engine, self.run).shots
        }

    def execute(self, statement: str) -> None:
        """Plant or mend something behind the ledger's back."""
        self.damage(statement, run=self.run)

    def published(self) -> int:
        """Publications of this run."""
        with self.ledger.engine.connect() as connection:
            query = text("SELECT count(*) FROM publications WHERE run = :run")
            return connection.scalar(query, {"run": self.run})


def approve(catalogue: Catalogue, run: str, sku: str) -> Decision:
    """As `packshot approve` does."""
    engine = catalogue.ledger.engine
    return decide(engine, held_image(engine, run, sku), Choice.APPROVE, "ada")


@pytest.fixture
def catalogue(ledger: PostgresLedger, store: S3Store, damage: Callable[..., None]) -> Catalogue:
    return Catalogue(ledger, store, damage)


def test_what_passed_is_published_and_what_failed_a_check_is_held(catalogue, context) -> None:
    cup, pot, lamp = catalogue.open("cup", "pot", "lamp").shots
    catalogue.inspected(cup)
    catalogue.inspected(pot, HELD)
    catalogue.inspected(lamp)
    told = catalogue.publish(context)
    assert (told["images"], told["new"]) == (2, 2)
    assert catalogue.summary(context)["state"] == "success"
    assert catalogue.outcomes() == {"cup": "published", "pot": "held", "lamp": "published"}


def test_a_persons_approval_outweighs_a_failed_check(catalogue, context) -> None:
    cup, pot = catalogue.open("cup", "pot").shots
    final = catalogue.inspected(cup, HELD).job.inputs["final"]
    catalogue.inspected(pot)
    catalogue.publish(context)
    catalogue.summary(context)
    assert catalogue.outcomes() == {"cup": "held", "pot": "published"}
    done = approve(catalogue, catalogue.run, cup.sku)
    assert (done.final, done.by, done.held_for) == (final, "ada", "the product grew")
    catalogue.publish(context)  # the task was cleared, and what follows
    catalogue.summary(context)
    assert catalogue.outcomes() == {"cup": "published", "pot": "published"}


def test_only_a_held_image_is_approved(catalogue, context) -> None:
    cup, pot, lamp = catalogue.open("cup", "pot", "lamp").shots
    catalogue.inspected(cup)
    catalogue.inspected(pot, HELD)
    catalogue.publish(context)
    with pytest.raises(AirflowFailException, match="1 of 3 shots failed"):
        catalogue.summary(context)
    with pytest.raises(UsageError, match="is published in run"):
        approve(catalogue, catalogue.run, cup.sku)
    with pytest.raises(UsageError, match="has no product 'no-such'"):
        approve(catalogue, catalogue.run, "no-such")
    with pytest.raises(UsageError, match="no run 'r-none'"):
        approve(catalogue, "r-none", cup.sku)
    with pytest.raises(UsageError, match="is failed in run"):  # it never came to its checks
        approve(catalogue, catalogue.run, lamp.sku)


def test_approved_images_are_published_in_the_run_that_held_them_and_its_feed_has_them(
    catalogue, context, store
) -> None:
    cup, pot, lamp = catalogue.open("cup", "pot", "lamp").shots
    for shot, verdicts in ((cup, HELD), (pot, PASSED), (lamp, HELD)):
        catalogue.inspected(shot, verdicts)
    catalogue.publish(context)
    catalogue.summary(context)
    approve(catalogue, catalogue.run, cup.sku)
    act = PublishApprovedOperator(task_id="publish", run="the DAG's own", grace_seconds=0.2)
    assert act.execute(context) == {"images": 1}
    assert catalogue.outcomes() == {"cup": "published", "pot": "published", "lamp": "held"}
    feed = store.get(report(catalogue.ledger.engine, catalogue.run).documents["feed"]).decode()
    assert [row["title"] for row in csv.DictReader(io.StringIO(feed))] == ["cup", "pot"]
    assert act.execute(context) == {"images": 0}, "nothing is done twice"


def test_an_approved_image_that_the_table_check_refuses_is_not_published_and_the_others_are(catalogue, context) -> None:
    (cup,) = catalogue.open("cup").shots
    catalogue.inspected(cup, HELD, side=100)
    other = Catalogue(catalogue.ledger, catalogue.store, catalogue.damage).open("lamp")
    other.inspected(other.shots[0], HELD)
    for run in (catalogue, other):
        run.ledger.finish_run(run.run, "success")
    approve(catalogue, catalogue.run, cup.sku)
    approve(other, other.run, other.shots[0].sku)
    with pytest.raises(AirflowFailException, match=f"{catalogue.run}: .*{cup.sku}"):
        PublishApprovedOperator(task_id="publish", run="the DAG's own", grace_seconds=0).execute(context)
    assert catalogue.outcomes()["cup"] == "held"
    assert other.outcomes() == {"lamp": "published"}


def test_a_passed_image_that_a_person_took_back_is_not_published_again(catalogue, context) -> None:
    cup, pot = catalogue.open("cup", "pot").shots
    for shot in (cup, pot):
        catalogue.inspected(shot)
    catalogue.publish(context)
    catalogue.summary(context)
    with catalogue.ledger.engine.connect() as connection:
        query = text("SELECT p.id FROM publications p JOIN shots s ON s.id = p.shot WHERE s.sku = :sku")
        (shown,) = connection.scalars(query, {"sku": cup.sku})
    assert roll_back(catalogue.ledger.engine, "ada", "too dark", "b1", publications=[shown]) == 1
    catalogue.publish(context)
    assert catalogue.summary(context)["state"] == "success", "a person's rejection is no failure"
    assert catalogue.outcomes() == {"cup": "held", "pot": "published"}
    (held,) = [shot for shot in report(catalogue.ledger.engine, catalogue.run).shots if shot.state == "held"]
    assert held.reason == "rejected by ada: too dark"


def test_what_was_sent_back_becomes_one_campaign_of_its_scene(catalogue, context) -> None:
    cup, pot = catalogue.open("cup", "pot").shots
    for shot in (cup, pot):
        catalogue.inspected(shot, HELD)
    catalogue.ledger.finish_run(catalogue.run, "success")
    for shot in (cup, pot):
        engine = catalogue.ledger.engine
        decide(engine, held_image(engine, catalogue.run, shot.sku), Choice.RETRY, "ada")
    (again,) = PlanRetriesOperator(task_id="plan_retries", grace_seconds=0).execute(context)
    assert again["conf"] | {"skus": sorted(again["conf"]["skus"])} == {
        "scene": SCENE.name,
        "channels": None,
        "skus": sorted([cup.sku, pot.sku]),
        "reprocess": "failed",
        "triggered_by": "review",
    }


def test_a_corrected_cutout_becomes_a_campaign_that_forces_nothing(catalogue, context) -> None:
    (cup,) = catalogue.open("cup").shots
    final = catalogue.inspected(cup, HELD).job.inputs["final"]
    catalogue.ledger.finish_run(catalogue.run, "success")
    machine = catalogue.ledger.chosen(catalogue.run, [cup], ["cutout"])[cup.sku]["cutout"]
    job = replace(machine.job, attempt="by hand 1")
    catalogue.ledger.correct(Step(job.key, job, State.DONE), [job.base], final, "ada", "", "b1")
    (again,) = PlanRetriesOperator(task_id="plan_retries", grace_seconds=0).execute(context)
    assert again["campaign"].startswith(f"edit__{SCENE.name}__")
    assert again["conf"] == {
        "scene": SCENE.name,
        "channels": None,
        "skus": [cup.sku],
        "reprocess": "missing",
        "triggered_by": "review",
    }


def test_the_end_of_a_run_draws_passed_images_for_a_spot_check(catalogue, context) -> None:
    for n, shot in enumerate(catalogue.open("cup", "pot", "pan", "lamp").shots):
        catalogue.inspected(shot, HELD if n == 3 else PASSED)
    catalogue.publish(context)
    catalogue.summary(context)
    with catalogue.ledger.engine.connect() as connection:
        query = text("SELECT shot FROM spot_checks WHERE run = :run")
        assert len(connection.execute(query, {"run": catalogue.run}).all()) == 2


def test_the_feed_and_the_validation_are_kept_beside_the_run(catalogue, context, store) -> None:
    (cup,) = catalogue.open("cup").shots
    catalogue.inspected(cup)
    catalogue.publish(context)
    kept = report(catalogue.ledger.engine, catalogue.run).documents
    assert set(kept) == {"feed", "validation of the publication"}
    (row,) = csv.DictReader(io.StringIO(store.get(kept["feed"]).decode()))
    assert (row["id"], row["title"]) == (cup.sku, "cup")
    image = Image.open(io.BytesIO(store.get(row["sha256"])))
    assert (image.format, image.size) == ("JPEG", (600, 600))


def test_an_export_holds_what_was_published_byte_for_byte(catalogue, context, store, settings, tmp_path) -> None:
    cup, pot = catalogue.open("cup", "pot").shots
    catalogue.inspected(cup)
    catalogue.inspected(pot, HELD)
    catalogue.publish(context)
    catalogue.summary(context)
    catalogue.execute("DELETE FROM run_steps WHERE run = :run AND stage = 'cutout'")  # here it has no picture
    done = export_run(catalogue.run, tmp_path, settings)
    [image] = done.images
    assert image.sku == cup.sku
    assert (tmp_path / image.file).read_bytes() == store.get(image.sha256)
    [row] = csv.DictReader(io.StringIO(done.feed.read_text()))
    assert (row["id"], row["title"], row["image_link"]) == (cup.sku, "cup", image.file)
    assert Image.open(done.contact_sheet).size[1] > 100


def test_publishing_again_changes_nothing(catalogue, context) -> None:
    (cup,) = catalogue.open("cup").shots
    catalogue.inspected(cup)
    assert catalogue.publish(context)["new"] == 1
    assert catalogue.publish(context)["new"] == 0
    assert report(catalogue.ledger.engine, catalogue.run).steps["publish"].computed == 1


def plant_a_key_twice(catalogue: Catalogue) -> None:
    catalogue.execute("ALTER TABLE run_shots DROP CONSTRAINT run_shots_run_shot_key")
    catalogue.execute(
        "INSERT INTO run_shots (run, position, shot, version, row, shard)"
        " SELECT run, 99, shot, version, row, shard FROM run_shots WHERE run = :run AND position = 0"
    )


def mend_a_key_twice(catalogue: Catalogue) -> None:
    catalogue.execute("DELETE FROM run_shots WHERE run = :run AND position = 99")
    catalogue.execute("ALTER TABLE run_shots ADD CONSTRAINT run_shots_run_shot_key UNIQUE (run, shot)")


def plant_no_verdict(catalogue: Catalogue) -> None:
    assert catalogue.inspected(catalogue.shots[0], ()).verdicts == ()


def mend_no_verdict(catalogue: Catalogue) -> None:
    key = catalogue.ledger.chosen(catalogue.run, catalogue.shots)[catalogue.shots[0].sku]["inspect"].key
    catalogue.execute(
        'INSERT INTO verdicts (key, position, "check", score, threshold, passed, reason, picture)'
        f" VALUES ('{key}', 0, 'overcompletion', 0.01, 0.05, true, '', '')"
    )


def plant_too_small(catalogue: Catalogue) -> None:
    catalogue.inspected(catalogue.shots[0], side=SCENE.channel.min_width - 1)


def mend_too_small(catalogue: Catalogue) -> None:
    catalogue.execute(
        "DELETE FROM run_steps u USING shots s WHERE u.shot = s.id AND u.run = :run AND s.sku LIKE '%-cup'"
    )
    catalogue.ledger.settle(catalogue.run)


@pytest.mark.parametrize(
    ("plant", "mend", "expectation", "images"),
    [
        (plant_a_key_twice, mend_a_key_twice, "expect_column_values_to_be_unique", 2),
        (plant_no_verdict, mend_no_verdict, "expect_column_values_to_not_be_null", 2),
        (plant_too_small, mend_too_small, "expect_column_pair_values_a_to_be_greater_than_b", 1),
    ],
    ids=["a key twice", "no verdict", "too small"],
)
def test_a_defective_set_is_stopped_and_the_mended_one_published_without_a_step(
    catalogue, context, plant, mend, expectation, images, monkeypatch
) -> None:
    cup, pot = catalogue.open("cup", "pot").shots
    catalogue.inspected(pot)
    if plant is plant_a_key_twice:
        catalogue.inspected(cup)
    plant(catalogue)

    with pytest.raises(AirflowFailException, match="publication"):
        catalogue.publish(context)
    with pytest.raises(AirflowFailException, match="the run failed"):
        catalogue.summary(context)
    found = report(catalogue.ledger.engine, catalogue.run)
    assert catalogue.published() == 0, "nothing of the set is published, the sound rows neither"
    assert found.published == 0
    assert found.held == found.products
    assert found.state == "failed"
    assert {failure["expectation"] for failure in found.problem["failures"]} == {expectation}
    named = {row for failure in found.problem["failures"] for row in failure["rows"]}
    assert named == {f"{cup.sku}/{SCENE.name}/{SCENE.channel.name}"}
    assert found.problem["document"] == found.documents["validation of the publication"]

    mend(catalogue)
    context["ti"].pushed.clear()
    monkeypatch.setattr("pipelines.stages.publish._encode", lambda work: pytest.fail("a step is computed again"))
    assert catalogue.publish(context)["images"] == images
    assert catalogue.published() == images


def test_an_image_other_than_the_inspected_one_stops_publication(catalogue, context) -> None:
    (cup,) = catalogue.open("cup").shots
    catalogue.inspected(cup)
    catalogue.execute(
        "UPDATE step_inputs i SET digest = repeat('c', 64) FROM run_steps u"
        " WHERE u.key = i.key AND u.run = :run AND u.stage = 'inspect'"
    )
    with pytest.raises(AirflowFailException, match="every image passed its checks or was approved"):
        catalogue.publish(context)
    assert catalogue.published() == 0


def test_a_broken_catalogue_stops_publication_with_its_rows(catalogue, context) -> None:
    catalogue.open("cup", "pot")
    catalogue.execute(
        "UPDATE product_versions v SET photo = 'not-a-digest' FROM run_shots r"
        " WHERE r.version = v.id AND r.run = :run AND r.position = 1"
    )
    with pytest.raises(AirflowFailException, match="a photo is named by its sha256"):
        CheckTableOperator(task_id="check", run=catalogue.run, table="catalogue").execute(context)
    problem = report(catalogue.ledger.engine, catalogue.run).problem
    assert problem["table"] == "catalogue"
    assert problem["failures"][0]["rows"] == [f"3 {catalogue.shots[1].sku}"]


def test_a_verdict_without_a_sound_score_stops_publication(catalogue, context) -> None:
    (cup,) = catalogue.open("cup").shots
    catalogue.inspected(cup, (replace(PASSED[0], score=-0.5),))
    with pytest.raises(AirflowFailException, match="not negative"):
        CheckTableOperator(task_id="check", run=catalogue.run, table="scores").execute(context)


def test_the_summary_fails_a_run_with_a_failed_shot_and_not_one_with_a_rejected(catalogue, context) -> None:
    cup, pot = catalogue.open("cup", "pot").shots
    catalogue.inspected(cup)
    catalogue.publish(context)

    def ends(state: State, reason: str) -> None:
        job = Job("cutout", 1, {}, {"sku": pot.sku, "state": state})
        step = Step(job.key, job, state, reason=reason)
        catalogue.ledger.use(catalogue.run, [(pot, [ShotStep(catalogue.ledger.record(step), reused=False)])])

    ends(State.REJECTED, "no product in the photo")
    assert catalogue.summary(context)["rejected"] == 1
    ends(State.FAILED, "ShotTimeout: no result after 1 s")
    with pytest.raises(AirflowFailException, match="1 of 2 shots failed"):
        catalogue.summary(context)


def test_the_summary_of_a_run_that_was_never_planned_is_no_success(ledger: PostgresLedger, context) -> None:
    note_failure(ledger.engine, "unplanned", "catalog_refresh", "task plan failed (its process was killed)", {})
    with pytest.raises(AirflowFailException, match="the run was not planned"):
        SummaryOperator(task_id="summary", run="unplanned", checks=["publish"]).execute(context)
    found = report(ledger.engine, "unplanned")
    assert (found.state, found.problem) == ("failed", {"reason": "task plan failed (its process was killed)"})
