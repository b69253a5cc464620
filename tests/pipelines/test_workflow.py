"""A step is found by its key, computed once, and what goes wrong costs one shot."""

from __future__ import annotations

import json
import re
import signal
import threading
import time
from dataclasses import asdict, replace

import pytest

from pipelines.contracts import Job, Made, ModelRef, Output, Product, Shot, State, sha256_hex
from pipelines.errors import IntegrityError, Rejected
from pipelines.ledger.memory import MemoryLedger
from pipelines.store import FolderStore, object_name
from pipelines.workflow import Limits, Recipe, Stage, run_stage

WAITS = {"starved": 0.5, "stuck": 60}
"""Seconds for which a photo's work waits and does not compute."""


class Painter:
    """A stage that writes its seed; photos called `bad`, `bug`, `slow` and those of WAITS misbehave; `room` is the
    largest batch."""

    def __init__(self, candidates: int = 1, room: int = 99):
        self.loaded, self.batches, self.room = 0, [], room
        self.stage = Stage(
            name="paint",
            version=1,
            needs=(),
            job=lambda shot, upstream, recipe, candidate: Job(
                "paint", 1, {"photo": shot.product.photo}, {"scene": shot.scene}, seed=candidate, attempt=recipe.attempt
            ),
            load=self.load,
            compute=self.compute,
            batched=True,
            candidates=lambda recipe: candidates,
            score=lambda step, recipe: step.facts["score"],
            passes=lambda step, recipe: step.facts["score"] < 0.5,
        )

    def load(self, recipe):
        self.loaded += 1
        return "brush"

    def compute(self, works, models, recipe):
        assert models == "brush"
        self.batches.append(len(works))
        if len(works) > self.room:
            error = type("OutOfMemoryError", (RuntimeError,), {})
            raise error("full")
        return [self.paint(work) for work in works]

    def paint(self, work):
        photo = work.inputs["photo"].decode()
        if photo == "bad":
            return Rejected("no product found")
        if photo == "bug":
            raise ZeroDivisionError("oops")
        if photo == "slow":  # computes, and never ends
            while time.thread_time() < 1e6:
                pass
        if photo in WAITS:
            time.sleep(WAITS[photo])
        score = {"stubborn": (0.9, 0.7, 0.8), "second": (0.9, 0.1, 0.0)}.get(photo, (0.0,) * 3)[work.job.seed]
        return Made((Output("picture", f"{photo}{work.job.seed}".encode(), "text/plain"),), {"score": score})


@pytest.fixture
def world(tmp_path):
    store, ledger = FolderStore(tmp_path), MemoryLedger()

    def shots(*photos: str) -> list[Shot]:
        return [
            Shot(Product(name, row, name, "", store.put(name.encode(), "text/plain")), "scene", "web")
            for row, name in enumerate(photos, 1)
        ]

    return store, ledger, shots


MODEL = ModelRef("salient", "r1", sha256_hex(b"weights"))
RECIPE = Recipe(profile=None, scene=None)  # type: ignore[arg-type]


def test_what_is_there_is_reused_and_no_model_is_loaded_for_it(world):
    store, ledger, shots = world
    painter = Painter()
    first = run_stage(painter.stage, "run1", shots("a", "b"), RECIPE, ledger, store)
    second = run_stage(painter.stage, "run2", shots("a", "b", "c"), RECIPE, ledger, store)
    third = run_stage(painter.stage, "run3", shots("a", "b"), RECIPE, ledger, store)
    assert (first.computed, first.reused) == (2, 0)
    assert (second.computed, second.reused) == (1, 2)
    assert (third.computed, third.reused) == (0, 2)
    assert painter.loaded == 2
    chosen = ledger.chosen("run2", shots("a", "b", "c"))
    assert store.get(chosen["c"]["paint"].output("picture")) == b"c0"


def test_a_forced_attempt_computes_again_and_leaves_the_first_alone(world):
    store, ledger, shots = world
    painter = Painter()
    run_stage(painter.stage, "run1", shots("a"), RECIPE, ledger, store)
    again = run_stage(painter.stage, "run2", shots("a"), replace(RECIPE, attempt="run2"), ledger, store)
    assert again.computed == 1
    assert ledger.chosen("run1", shots("a"))["a"]["paint"].key != ledger.chosen("run2", shots("a"))["a"]["paint"].key


def test_what_was_forced_supersedes_what_was_there(world):
    store, ledger, shots = world
    painter = Painter(candidates=2)
    photos = ("a", "second", "bad")

    def keys(run: str) -> dict[str, str]:
        return {sku: steps["paint"].key for sku, steps in ledger.chosen(run, shots(*photos)).items()}

    run_stage(painter.stage, "run1", shots(*photos), RECIPE, ledger, store)
    forced = replace(RECIPE, attempt="run2")
    run_stage(painter.stage, "run2", shots(*photos), forced, ledger, store)
    retried = run_stage(painter.stage, "run2", shots(*photos), forced, ledger, store)
    later = run_stage(painter.stage, "run3", shots(*photos), RECIPE, ledger, store)
    assert [(summary.computed, summary.reused) for summary in (retried, later)] == [(0, 4), (0, 4)]
    assert keys("run3") == keys("run2")
    assert not set(keys("run3").values()) & set(keys("run1").values())


def test_an_old_rejection_does_not_return_once_the_photo_was_tried_again(world, monkeypatch):
    store, ledger, shots = world
    painter = Painter()
    run_stage(painter.stage, "run1", shots("bad"), RECIPE, ledger, store)
    monkeypatch.setattr(painter, "paint", lambda work: Made(facts={"score": 0.0}))
    run_stage(painter.stage, "run2", shots("bad"), replace(RECIPE, attempt="run2"), ledger, store)
    run_stage(painter.stage, "run3", shots("bad"), RECIPE, ledger, store)
    assert ledger.chosen("run3", shots("bad"))["bad"]["paint"].state is State.DONE


def test_what_is_missing_is_computed_in_full_batches_and_asked_for_at_once(world, monkeypatch):
    store, ledger, shots = world
    painter, asked = Painter(), []
    run_stage(painter.stage, "run1", shots(*"aceg"), RECIPE, ledger, store)
    find = ledger.find
    monkeypatch.setattr(ledger, "find", lambda keys: asked.append(len(keys)) or find(keys))
    summary = run_stage(painter.stage, "run2", shots(*"abcdefgh"), RECIPE, ledger, store, Limits(batch_size=4))
    assert (summary.reused, summary.computed) == (4, 4)
    assert painter.batches == [4, 4]
    assert asked == [8, 4]  # the shard; then, under its claim, what was missing
    assert set(ledger.chosen("run2", shots(*"abcdefgh"))) == set("abcdefgh")


def test_who_waited_for_a_claim_reuses_what_was_made_meanwhile(world, monkeypatch):
    store, ledger, shots = world
    painter, items, summaries = Painter(), shots("a", "b"), []
    both_looked, local, find = threading.Barrier(2), threading.local(), ledger.find

    def find_together(keys):
        found = find(keys)
        if not getattr(local, "looked", False):
            local.looked = True
            both_looked.wait(timeout=20)
        return found

    monkeypatch.setattr(ledger, "find", find_together)
    threads = [
        threading.Thread(
            target=lambda run=run: summaries.append(run_stage(painter.stage, run, items, RECIPE, ledger, store))
        )
        for run in ("run1", "run2")
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=20)
    assert painter.batches == [2]
    assert sorted((one.computed, one.reused) for one in summaries) == [(0, 2), (2, 0)]
    assert ledger.chosen("run1", items) == ledger.chosen("run2", items)


def test_bad_input_and_a_bug_cost_one_shot_each(world):
    store, ledger, shots = world
    painter = Painter()
    summary = run_stage(painter.stage, "run", shots("a", "bad", "bug", "b"), RECIPE, ledger, store)
    chosen = {sku: steps["paint"] for sku, steps in ledger.chosen("run", shots("a", "bad", "bug", "b")).items()}
    assert [chosen[sku].state for sku in ("a", "bad", "bug", "b")] == [
        State.DONE, State.REJECTED, State.FAILED, State.DONE,
    ]  # fmt: skip
    assert chosen["bad"].reason == "no product found"
    assert chosen["bug"].reason == "ZeroDivisionError: oops"
    assert (summary.rejected, summary.failed) == (1, 1)
    document = json.loads(json.dumps(asdict(summary)))
    assert document["reasons"] == {"no product found": 1, "ZeroDivisionError: oops": 1}
    assert document == asdict(summary)


def test_a_rejection_is_remembered_and_a_failure_is_tried_again(world):
    store, ledger, shots = world
    painter = Painter()
    run_stage(painter.stage, "run1", shots("bad", "bug"), RECIPE, ledger, store)
    again = run_stage(painter.stage, "run2", shots("bad", "bug"), RECIPE, ledger, store)
    assert (again.computed, again.reused) == (1, 1)


def test_the_free_memory_decides_the_batch_once_the_models_are_loaded(world):
    store, ledger, shots = world
    painter = Painter()
    stage = replace(painter.stage, fits=lambda recipe: 3 * painter.loaded)
    run_stage(stage, "run", shots(*"abcdefg"), RECIPE, ledger, store, Limits(batch_size=0))
    assert painter.batches == [3, 3, 1]


def test_out_of_memory_halves_the_batch_and_goes_on(world):
    store, ledger, shots = world
    painter = Painter(room=2)
    summary = run_stage(painter.stage, "run", shots(*"abcdefg"), RECIPE, ledger, store, Limits(batch_size=7))
    assert summary.computed == 7
    assert summary.failed == 0
    assert painter.batches == [7, 3, 1, 2, 4, 2, 2]


def test_a_shot_past_its_time_fails_alone(world):
    store, ledger, shots = world
    limits = Limits(batch_size=2, shot_seconds=0.2)
    run_stage(Painter().stage, "run", shots("slow", "a"), RECIPE, ledger, store, limits)
    chosen = ledger.chosen("run", shots("slow", "a"))
    assert chosen["slow"]["paint"].state is State.FAILED
    assert "s of computing" in chosen["slow"]["paint"].reason
    assert chosen["a"]["paint"].state is State.DONE


def test_a_shot_that_waits_for_a_core_is_not_late_and_one_that_waits_for_ever_is(world):
    store, ledger, shots = world
    limits = Limits(batch_size=1, shot_seconds=0.1)
    run_stage(Painter().stage, "run", shots("starved", "stuck", "a"), RECIPE, ledger, store, limits)
    steps = {sku: steps["paint"] for sku, steps in ledger.chosen("run", shots("starved", "stuck", "a")).items()}
    assert steps["starved"].state is State.DONE
    assert steps["starved"].seconds > limits.shot_seconds
    assert steps["stuck"].state is State.FAILED
    assert re.fullmatch(r"ShotTimeout: no result after 1\S* s, 0\S* s of it computing", steps["stuck"].reason)
    assert steps["a"].state is State.DONE


def test_a_patient_shot_does_not_outlive_the_tasks_own_time_limit(world):
    store, ledger, shots = world

    def task_is_over(*_):
        raise KeyboardInterrupt("the task's time is over")

    previous = signal.signal(signal.SIGALRM, task_is_over)
    signal.setitimer(signal.ITIMER_REAL, 0.5)
    try:
        limits = Limits(shot_seconds=0.2)
        with pytest.raises(KeyboardInterrupt, match="the task's time is over"):
            run_stage(Painter().stage, "run", shots("stuck"), RECIPE, ledger, store, limits)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


def test_seeds_are_tried_until_one_passes_and_the_best_is_kept_otherwise(world):
    store, ledger, shots = world
    summary = run_stage(Painter(3).stage, "run", shots("easy", "second", "stubborn"), RECIPE, ledger, store)
    chosen = ledger.chosen("run", shots("easy", "second", "stubborn"))
    assert {sku: steps["paint"].job.seed for sku, steps in chosen.items()} == {"easy": 0, "second": 1, "stubborn": 1}
    assert summary.computed == 1 + 2 + 3


def test_a_shot_without_its_upstream_step_is_skipped(world):
    store, ledger, shots = world
    follows = replace(Painter().stage, name="follow", needs=("paint",))
    run_stage(Painter().stage, "run", shots("a", "bad"), RECIPE, ledger, store)
    summary = run_stage(follows, "run", shots("a", "bad"), RECIPE, ledger, store)
    assert summary.skipped == 1


def test_a_store_that_is_away_is_the_tasks_problem_not_the_shots(world):
    store, ledger, shots = world
    items = shots("a")

    class Away(FolderStore):
        def put(self, data, media_type):
            raise ConnectionError("the store does not answer")

    with pytest.raises(ConnectionError):
        run_stage(Painter().stage, "run", items, RECIPE, ledger, Away(store.path))
    assert ledger.chosen("run", items).get("a", {}) == {}


@pytest.mark.parametrize(
    "said", ["CUDA error: out of memory", "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"]
)
def test_a_library_without_room_halves_the_batch_like_torch_itself(world, said):
    store, ledger, shots = world
    painter = Painter()

    def compute(works, models, recipe):
        if len(works) > 1:
            raise RuntimeError(said)
        return painter.compute(works, models, recipe)

    summary = run_stage(replace(painter.stage, compute=compute), "run", shots("a", "b", "c"), RECIPE, ledger, store)
    assert (summary.computed, summary.failed) == (3, 0)


def test_a_device_that_is_lost_is_the_tasks_problem_not_the_shots(world):
    store, ledger, shots = world
    items = shots("a", "b", "c")

    def lost(works, models, recipe):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    with pytest.raises(RuntimeError, match="illegal memory access"):
        run_stage(replace(Painter().stage, compute=lost), "run", items, RECIPE, ledger, store)
    assert not any(ledger.chosen("run", items).values())
    summary = run_stage(Painter().stage, "run", items, RECIPE, ledger, store)  # as a new process, on the second try
    assert (summary.computed, summary.failed) == (3, 0)


@pytest.mark.parametrize("harm", ["damaged", "gone", "unreadable"])
def test_an_input_that_cannot_be_used_fails_its_shot_alone_until_it_is_mended(world, harm):
    store, ledger, shots = world
    items = shots("a", "b", "c")
    file = store.path / object_name(items[1].product.photo)
    file.write_bytes(b"x") if harm == "damaged" else file.unlink()
    if harm == "unreadable":
        file.mkdir()
    summary = run_stage(Painter().stage, "run1", items, RECIPE, ledger, store)
    steps = {sku: steps["paint"] for sku, steps in ledger.chosen("run1", items).items()}
    assert [steps[sku].state for sku in "abc"] == [State.DONE, State.FAILED, State.DONE]
    assert steps["b"].reason.startswith("its photo cannot be used (")
    assert (summary.computed, summary.failed) == (3, 1)
    if harm == "unreadable":
        file.rmdir()
    shots("b")  # a catalogue that is run again puts its photos again
    again = run_stage(Painter().stage, "run2", items, RECIPE, ledger, store)
    assert (again.computed, again.reused, again.failed) == (1, 2, 0)


@pytest.mark.parametrize("error", [ConnectionError("500"), IntegrityError("half a body")])
def test_a_read_that_fails_once_costs_no_shot(world, error):
    store, ledger, shots = world
    items = shots("a", "b")

    class Shaky(FolderStore):
        failed = False

        def get(self, digest):
            if digest == items[1].product.photo and not self.failed:
                self.failed = True
                raise error
            return super().get(digest)

    shaky = Shaky(store.path)
    summary = run_stage(Painter().stage, "run", items, RECIPE, ledger, shaky)
    assert shaky.failed
    assert (summary.computed, summary.failed) == (2, 0)


def test_a_store_that_does_not_answer_is_no_shots_fault(world):
    store, ledger, shots = world
    items = shots("a", "b")
    store.path.rename(store.path.with_name("away"))
    store.path.write_bytes(b"")
    with pytest.raises(NotADirectoryError):
        run_stage(Painter().stage, "run", items, RECIPE, ledger, store)
    assert not any(ledger.chosen("run", items).values())


def test_every_part_of_a_job_is_in_its_key():
    job = Job("paint", 1, {"photo": "a"}, {"x": 1.0}, seed=1)
    others = [
        replace(job, stage="p"), replace(job, version=2), replace(job, inputs={"photo": "b"}),
        replace(job, parameters={"x": 2}), replace(job, seed=2), replace(job, attempt="again"),
        replace(job, models=(MODEL,)), replace(job, models=(replace(MODEL, revision="r2"),)),
        replace(job, models=(replace(MODEL, sha256=sha256_hex(b"other weights")),)),
    ]  # fmt: skip
    assert len({job.key, *(other.key for other in others)}) == 1 + len(others)
    varied = {name for name in Job.__dataclass_fields__ for one in others if getattr(one, name) != getattr(job, name)}
    assert varied == set(Job.__dataclass_fields__)
    assert job.key == replace(job, parameters={"x": 1.0}).key != sha256_hex(b"")
