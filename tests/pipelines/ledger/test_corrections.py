"""A cutout that a person draws: recorded with its decisions, found by later runs, kept when steps are forced."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from pipelines.contracts import BY_HAND, Artifact, Job, ShotStep, State, Step, sha256_hex
from pipelines.errors import UsageError
from pipelines.ledger import decisions
from pipelines.ledger.decisions import AlreadyDecided, Choice, affected, decide, undo
from pipelines.ledger.embeddings import Embeddings
from pipelines.ledger.postgres import PostgresLedger
from pipelines.models.profile import load_profile
from pipelines.scenes import load_scene
from pipelines.stages.keys import STAGES
from pipelines.store import FolderStore
from pipelines.workflow import Recipe, find_steps
from tests.pipelines.ledger.test_decisions import Held, queue

CUTOUT = Job("cutout", 10, {"photo": "a" * 64}, {"title": "cup"})


@pytest.fixture(autouse=True)
def an_empty_ledger(ledger: PostgresLedger, damage: Callable[..., None]) -> None:
    damage("TRUNCATE runs, shots, products, product_versions, steps, artifacts, embeddings CASCADE")


def cut_out(job: Job, name: str, **facts: str) -> Step:
    return Step(job.key, job, State.DONE, (Artifact(sha256_hex(name.encode()), "cutout", "image/png", 1),), facts)


def held(ledger: PostgresLedger, scene: str, job: Job = CUTOUT) -> Held:
    """A run that held the cup in a scene, with this cutout."""
    run = Held(ledger, "cup", scene=scene)
    ledger.use(run.run, [(run.shots[0], [ShotStep(ledger.record(cut_out(job, "machine")), reused=False)])])
    return run


def by_hand(name: str = "1") -> Step:
    return cut_out(replace(CUTOUT, attempt=f"{BY_HAND} {name}"), name, by="ada")


def test_a_corrected_cutout_sends_back_all_that_stands_on_the_old_one(ledger):
    oak, sage, other = held(ledger, "oak"), held(ledger, "sage"), held(ledger, "blue", replace(CUTOUT, version=9))
    assert affected(ledger.engine, [CUTOUT.base]) == (2, 2)
    final = oak.finals["cup"]
    sent = ledger.correct(by_hand(), [CUTOUT.base], final, "ada", "a strap", "b1")
    assert set(sent) == {final, sage.finals["cup"]}
    assert queue(ledger) == [other.finals["cup"]]
    assert ledger.find([CUTOUT.key])[CUTOUT.key].facts == {"by": "ada"}
    made = decisions.decisions_about(ledger.engine, ["cup"])
    assert {(one.choice, one.by, one.batch) for one in made} == {(Choice.EDIT, "ada", "b1")}
    with pytest.raises(UsageError, match="correct it anew"):
        undo(ledger.engine, made[0].id, "ada")
    runs = decisions.claim_retries(ledger.engine)
    assert [(one.scene, one.skus, one.choice) for one in runs] == [
        ("oak", ("cup",), "edit"),
        ("sage", ("cup",), "edit"),
    ]


def test_nothing_is_recorded_if_somebody_decided_the_image_before(ledger):
    oak = held(ledger, "oak")
    decide(ledger.engine, oak.finals["cup"], Choice.APPROVE, "grace")
    with pytest.raises(AlreadyDecided, match="grace decided it before"):
        ledger.correct(by_hand(), [CUTOUT.base], oak.finals["cup"], "ada", "", "b1")
    assert ledger.find([CUTOUT.key])[CUTOUT.key].facts == {}
    with pytest.raises(UsageError, match="in its editor"):
        decide(ledger.engine, oak.finals["cup"], Choice.EDIT, "ada")


def test_a_forced_run_keeps_what_a_person_drew_and_repeats_what_a_machine_made(ledger):
    recipe = Recipe(load_profile("mini", None), load_scene("oak-window"), attempt="a forced run")
    shot, stage, forced = Held(ledger, "cup").shots[0], STAGES["cutout"], replace(CUTOUT, attempt="a forced run")
    ledger.record(cut_out(CUTOUT, "machine"))
    assert find_steps(stage, [(shot, forced)], recipe, ledger)[1] == {}
    drawn = ledger.record(by_hand())
    assert find_steps(stage, [(shot, forced)], recipe, ledger)[1] == {forced.key: drawn}
    again = ledger.record(by_hand("2"))
    assert find_steps(stage, [(shot, CUTOUT)], recipe, ledger)[1] == {CUTOUT.key: again}


def test_of_kept_embeddings_those_that_were_used_least_recently_are_dropped(ledger, store):
    kept = Embeddings(ledger.engine, store, limit=2)
    kept.keep("photo 1", "hqsam", b"one")
    kept.keep("photo 2", "hqsam", b"two")
    assert kept.find("photo 1", "hqsam") == b"one"
    kept.keep("photo 3", "hqsam", b"three")
    assert [kept.find(f"photo {n}", "hqsam") for n in (1, 2, 3)] == [b"one", b"", b"three"]
    assert not store.has(sha256_hex(b"two"))
    assert kept.find("photo 1", "another model") == b""
    store.remove(sha256_hex(b"one"))
    assert kept.find("photo 1", "hqsam") == b"", "then it is computed again"


def test_a_store_that_takes_no_embedding_costs_no_shot(ledger, tmp_path, caplog):
    (tmp_path / "store").touch()  # a file is no folder of objects
    kept = Embeddings(ledger.engine, FolderStore(tmp_path / "store"))
    kept.keep("photo 9", "hqsam", b"nine")
    assert kept.find("photo 9", "hqsam") == b""
    assert "photo 9" in caplog.text
