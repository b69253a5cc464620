"""Decisions about held images: one each, about these bytes, taken back whole; in a real Postgres."""

from __future__ import annotations

import csv
import io
import re
import threading
from collections.abc import Callable
from itertools import count

import pytest
from sqlalchemy import text

from pipelines.contracts import Artifact, Job, Product, Publication, Shot, ShotStep, State, Step, Verdict, sha256_hex
from pipelines.errors import UsageError
from pipelines.ledger import decisions
from pipelines.ledger.decisions import (
    AlreadyDecided,
    Choice,
    DecisionFilter,
    Selection,
    SelectionChanged,
    Superseded,
    decide,
    undo,
)
from pipelines.ledger.postgres import PostgresLedger
from pipelines.runs.decision_list import decisions_csv

_runs = count(1)
GROWN = Verdict("overcompletion", 0.4, 0.05, False, "the product grew")


@pytest.fixture(autouse=True)
def an_empty_queue(ledger: PostgresLedger, damage: Callable[..., None]) -> None:
    damage("TRUNCATE runs, shots, products, product_versions, steps, artifacts CASCADE")


class Held:
    """A run that made one image of each product and held it; `finals` has their digests, by SKU."""

    def __init__(self, ledger: PostgresLedger, *skus: str, verdict: Verdict = GROWN, scene: str = "oak"):
        self.ledger, self.run = ledger, f"run {next(_runs)}"
        self.shots = [Shot(Product(sku, n, sku, "Kitchen", "a" * 64), scene, "web") for n, sku in enumerate(skus, 2)]
        ledger.start_run(self.run, "catalog_refresh", scene, "web")
        ledger.upsert_products([shot.product for shot in self.shots])
        ledger.select(self.run, self.shots, 100)
        self.finals = {}
        for shot in self.shots:
            final = Artifact(sha256_hex(f"{self.run} {shot.sku}".encode()), "final", "image/png", 1)
            self.finals[shot.sku] = final.sha256
            self._step(shot, "upscale", {}, final)
            self._step(shot, "inspect", {"final": final.sha256}, verdicts=(verdict,))
        ledger.settle(self.run)
        ledger.finish_run(self.run, "success")

    def _step(self, shot: Shot, stage: str, inputs: dict[str, str], *made: Artifact, **more: object) -> None:
        job = Job(stage, 1, inputs, {"of": f"{self.run} {shot.sku}"})
        step = self.ledger.record(Step(job.key, job, State.DONE, made, **more), self.run)  # type: ignore[arg-type]
        self.ledger.use(self.run, [(shot, [ShotStep(step, reused=False)])])

    def publish(self, sku: str) -> str:
        """Encodes the image and publishes it for its approval; returns the published file's digest."""
        shot = next(shot for shot in self.shots if shot.sku == sku)
        file = Artifact(sha256_hex(f"file {self.finals[sku]}".encode()), "published", "image/jpeg", 1)
        self._step(shot, "publish", {"final": self.finals[sku]}, file)
        (approved,) = [a for a in decisions.approved_images(self.ledger.engine) if a.final == self.finals[sku]]
        image = Publication(sku, shot.scene, shot.channel, file.sha256)
        assert self.ledger.publish_approved(self.run, [(approved.decision, image)]) == 1
        return file.sha256

    def states(self) -> list[str]:
        with self.ledger.engine.connect() as connection:
            query = text("SELECT state FROM run_shots WHERE run = :run ORDER BY position")
            return list(connection.scalars(query, {"run": self.run}))


def queue(ledger: PostgresLedger) -> list[str]:
    with ledger.engine.connect() as connection:
        return list(connection.scalars(text("SELECT final FROM review_queue ORDER BY started_at, run, position")))


def shown(ledger: PostgresLedger) -> list[str]:
    with ledger.engine.connect() as connection:
        return list(connection.scalars(text("SELECT digest FROM publications WHERE superseded_at IS NULL")))


def test_a_held_image_is_in_the_queue_until_somebody_decides_it_and_again_when_they_undo_it(ledger):
    held = Held(ledger, "cup", "pot")
    assert queue(ledger) == list(held.finals.values())
    made = decide(ledger.engine, held.finals["cup"], Choice.REJECT, "ada", "wrong handle")
    assert (made.sku, made.run, made.held_for, made.reason) == ("cup", held.run, "the product grew", "wrong handle")
    assert queue(ledger) == [held.finals["pot"]]
    assert undo(ledger.engine, made.id, "grace").undone_by == "grace"
    assert queue(ledger) == list(held.finals.values())
    with pytest.raises(UsageError, match="grace undid it before"):
        undo(ledger.engine, made.id, "ada")
    with pytest.raises(UsageError, match="no such decision"):
        undo(ledger.engine, 10**9, "ada")


def test_the_second_to_decide_is_refused_and_learns_who_was_first(ledger):
    held = Held(ledger, "cup")
    first = decide(ledger.engine, held.finals["cup"], Choice.APPROVE, "ada")
    assert decide(ledger.engine, held.finals["cup"], Choice.APPROVE, "ada") == first, "sent twice"
    with pytest.raises(AlreadyDecided, match="ada decided it before: approve") as caught:
        decide(ledger.engine, held.finals["cup"], Choice.REJECT, "grace")
    assert caught.value.decision == first


def test_of_many_at_once_exactly_one_decides(ledger):
    held, outcomes = Held(ledger, "cup"), []
    start = threading.Barrier(6)

    def attempt(n: int) -> None:
        start.wait()
        try:
            outcomes.append(decide(ledger.engine, held.finals["cup"], Choice.APPROVE, f"person {n}").by)
        except AlreadyDecided as refusal:
            outcomes.append(f"not {refusal.decision.by}")

    threads = [threading.Thread(target=attempt, args=(n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (winner,) = {outcome.removeprefix("not ") for outcome in outcomes}
    assert sorted(outcomes) == sorted([winner] + [f"not {winner}"] * 5)


def marked(ledger: PostgresLedger) -> list[str]:
    with ledger.engine.connect() as connection:
        return list(connection.scalars(text("SELECT final FROM run_shots WHERE superseded ORDER BY run, position")))


def test_an_image_waits_again_when_the_run_that_superseded_it_is_planned_anew(ledger):
    old, new = Held(ledger, "cup", "pot"), Held(ledger, "cup")
    assert marked(ledger) == [old.finals["cup"]]
    assert queue(ledger) == [old.finals["pot"], new.finals["cup"]]
    ledger.select(new.run, new.shots, 100)
    assert marked(ledger) == []
    assert queue(ledger) == list(old.finals.values())


def test_a_run_that_settles_after_a_later_one_marks_its_own_images(ledger, damage):
    old, new = Held(ledger, "cup"), Held(ledger, "cup")
    damage("UPDATE run_shots SET superseded = false")
    assert queue(ledger) == [new.finals["cup"]], "the mark spares a look, and decides nothing"
    ledger.settle(old.run)
    assert marked(ledger) == [old.finals["cup"]]


def test_a_mark_is_taken_back_where_no_later_image_is_left(ledger, damage):
    old, new = Held(ledger, "cup"), Held(ledger, "cup")
    damage("UPDATE run_shots SET final = NULL WHERE final = '" + new.finals["cup"] + "'")
    damage("UPDATE run_steps SET chosen = false WHERE run = '" + new.run + "'")
    ledger.settle(new.run)
    assert (marked(ledger), queue(ledger)) == ([], [old.finals["cup"]])


def test_an_image_that_was_superseded_is_not_decided(ledger):
    old = Held(ledger, "cup")
    new = Held(ledger, "cup")
    assert queue(ledger) == [new.finals["cup"]]
    with pytest.raises(Superseded) as caught:
        decide(ledger.engine, old.finals["cup"], Choice.APPROVE, "ada")
    assert caught.value.final == new.finals["cup"]
    with pytest.raises(UsageError, match="no run has an image"):
        decide(ledger.engine, "0" * 64, Choice.APPROVE, "ada")


def test_a_selection_is_decided_as_one_and_undone_as_one(ledger):
    oak = Held(ledger, "cup", "pot")
    sage = Held(ledger, "cup", "pot", scene="sage", verdict=Verdict("halo", 9.0, 3.0, False, "a rim"))
    engine = ledger.engine
    assert decisions.counted(engine, Selection()).count == 4
    assert decisions.counted(engine, Selection(run=oak.run, check="halo")).count == 0
    some = Selection(scene="sage", check="halo")
    seen = decisions.counted(engine, some)
    decide(engine, sage.finals["cup"], Choice.REJECT, "grace")
    with pytest.raises(SelectionChanged, match="has 1 images now"):
        decisions.decide_selection(engine, some, seen.fingerprint, Choice.APPROVE, "ada", "b1")
    assert seen.count == 2
    fingerprint = decisions.counted(engine, Selection()).fingerprint
    assert decisions.decide_selection(engine, Selection(), fingerprint, Choice.APPROVE, "ada", "b1", "fine") == 3
    assert queue(ledger) == []
    assert decisions.undo_batch(engine, "b1", "ada") == 3
    assert len(queue(ledger)) == 3, "what grace decided stays"
    with pytest.raises(UsageError):
        decisions.undo_batch(engine, "", "ada")


def test_an_approval_that_is_undone_takes_its_image_back_and_shows_the_one_before(ledger):
    before = Held(ledger, "cup", "pot")
    decide(ledger.engine, before.finals["cup"], Choice.APPROVE, "ada")
    first = before.publish("cup")
    assert before.states() == ["published", "held"]
    assert shown(ledger) == [first]
    after = Held(ledger, "cup")
    made = decide(ledger.engine, after.finals["cup"], Choice.APPROVE, "ada")
    second = after.publish("cup")
    assert shown(ledger) == [second]
    undo(ledger.engine, made.id, "ada")
    assert shown(ledger) == [first]
    assert after.states() == ["held"]
    again = decide(ledger.engine, after.finals["cup"], Choice.APPROVE, "ada")
    assert after.publish("cup") == second
    assert shown(ledger) == [second]
    assert [d.id for d in decisions.decisions_about(ledger.engine, ["cup"])][:2] == [again.id, made.id]


def test_an_approval_that_was_undone_while_its_image_was_encoded_is_not_published(ledger):
    held = Held(ledger, "cup")
    made = decide(ledger.engine, held.finals["cup"], Choice.APPROVE, "ada")
    (approved,) = decisions.approved_images(ledger.engine)
    undo(ledger.engine, made.id, "ada")
    image = Publication("cup", "oak", "web", held.finals["cup"])
    assert ledger.publish_approved(held.run, [(approved.decision, image)]) == 0
    assert shown(ledger) == []


def test_what_is_rolled_back_shows_the_image_before_and_is_not_published_again(ledger):
    before, after = Held(ledger, "cup", "pot"), Held(ledger, "cup", "pot")
    for held in (before, after):
        for sku in ("cup", "pot") if held is after else ("cup",):
            decide_anew(ledger, held, sku)
            held.publish(sku)
    old, (cup, pot) = file_of(before, "cup"), (file_of(after, "cup"), file_of(after, "pot"))
    assert sorted(shown(ledger)) == sorted([cup, pot])
    assert decisions.roll_back(ledger.engine, "ada", "too dark", "b2", run=after.run) == 2
    assert shown(ledger) == [old], "the pot showed nothing before"
    assert after.states() == ["held", "held"]
    assert [decisions.decisions_about(ledger.engine, [sku])[0].choice for sku in ("cup", "pot")] == [Choice.REJECT] * 2
    assert queue(ledger) == []
    with pytest.raises(UsageError, match="no image of run"):
        decisions.roll_back(ledger.engine, "ada", "", "b3", run=after.run)
    with ledger.engine.begin() as connection:
        connection.execute(text("UPDATE run_shots SET settled = true"))
    decisions.undo_batch(ledger.engine, "b2", "ada")
    assert queue(ledger) == list(after.finals.values())
    with ledger.engine.begin() as connection:
        unsettled = connection.scalars(text("SELECT run FROM run_shots WHERE NOT settled")).all()
    assert unsettled == [after.run] * 2, "the next run may publish them again"


def decide_anew(ledger: PostgresLedger, held: Held, sku: str) -> None:
    """Approves an image, also one that was superseded: it was approved before that."""
    with ledger.engine.begin() as connection:
        approve = """INSERT INTO decisions (final, run, shot, choice, by)
                     SELECT final, run, shot, 'approve', 'ada' FROM run_shots WHERE final = :final"""
        connection.execute(text(approve), {"final": held.finals[sku]})


def file_of(held: Held, sku: str) -> str:
    return sha256_hex(f"file {held.finals[sku]}".encode())


def test_what_is_sent_back_is_tried_again_once_by_scene_and_cannot_be_undone_then(ledger):
    oak, sage = Held(ledger, "cup", "pot"), Held(ledger, "cup", scene="sage")
    kept = decide(ledger.engine, oak.finals["cup"], Choice.RETRY, "ada")
    for final in (oak.finals["pot"], sage.finals["cup"]):
        decide(ledger.engine, final, Choice.RETRY, "ada")
    assert decisions.claim_retries(ledger.engine, grace_seconds=60) == []
    retries = decisions.claim_retries(ledger.engine)
    assert [(retry.scene, retry.skus) for retry in retries] == [("oak", ("cup", "pot")), ("sage", ("cup",))]
    assert len({retry.run for retry in retries}) == 2
    assert decisions.claim_retries(ledger.engine) == []
    with pytest.raises(UsageError, match="is being generated again: run retry__oak__"):
        undo(ledger.engine, kept.id, "ada")


def test_decisions_are_listed_newest_first_by_what_they_are_about(ledger):
    oak, pine = Held(ledger, "cup", "pot"), Held(ledger, "cup", scene="pine")
    first = decide(ledger.engine, oak.finals["cup"], Choice.REJECT, "ada", "=1+1")
    undo(ledger.engine, first.id, "bob")
    decide(ledger.engine, oak.finals["pot"], Choice.APPROVE, "ada")
    decide(ledger.engine, pine.finals["cup"], Choice.RETRY, "eve")

    def listed(**wanted: str) -> list[tuple[str, str]]:
        return [
            (one.choice.value, one.sku) for one in decisions.list_decisions(ledger.engine, DecisionFilter(**wanted))
        ]

    assert listed() == [("retry", "cup"), ("approve", "pot"), ("reject", "cup")]
    assert listed(run=oak.run) == [("approve", "pot"), ("reject", "cup")]
    assert listed(scene="pine", channel="web") == [("retry", "cup")]
    assert listed(sku="pot", check="overcompletion") == [("approve", "pot")]
    assert listed(check="fidelity") == listed(check="spot_check") == listed(channel="shop") == []
    rows = list(csv.DictReader(io.StringIO(b"".join(
        decisions_csv(decisions.list_decisions(ledger.engine, DecisionFilter(sku="cup", scene="oak")))
    ).decode())))  # fmt: skip
    (row,) = rows
    assert (row["decision"], row["by"], row["choice"], row["reason"]) == (str(first.id), "ada", "reject", "'=1+1")
    assert (row["held_for"], row["image"], row["undone_by"]) == ("the product grew", oak.finals["cup"], "bob")
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d", row["decided_at"])


def test_a_long_list_of_decisions_is_read_in_parts(ledger):
    held = Held(ledger, "cup")
    with ledger.engine.begin() as connection:
        made = text(
            "INSERT INTO decisions (final, run, shot, choice, by) "
            "SELECT md5(n::text), run, shot, 'reject', 'ada' FROM run_shots, generate_series(1, 5001) n "
            "WHERE run = :run"
        )
        connection.execute(made, {"run": held.run})
    parts = list(decisions_csv(decisions.list_decisions(ledger.engine, DecisionFilter())))
    assert len(parts) > 10
    assert b"".join(parts).count(b"\r\n") == 5002
