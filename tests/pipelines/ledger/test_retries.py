"""What a run did not publish, by cause, and which of it another run tries again."""

from __future__ import annotations

from dataclasses import replace

import pytest
from sqlalchemy import text

from pipelines.contracts import Job, Product, Reprocess, Shot, ShotState, ShotStep, State, Step
from pipelines.ledger.decisions import Choice, decide
from pipelines.ledger.endings import end_run, notifying, open_runs
from pipelines.ledger.postgres import PostgresLedger
from pipelines.ledger.retries import count_states, find_retry
from tests.plugins.conftest import GROWN, hold

SKUS = [f"CUP-{n}" for n in range(6)]


def begin(ledger: PostgresLedger, run: str, skus: list[str], scene: str = "oak") -> list[Shot]:
    products = [Product(sku, row, sku, "Kitchen", "0" * 64) for row, sku in enumerate(skus, 2)]
    ledger.upsert_products(products)
    ledger.start_run(run, "catalog_refresh", scene, "web")
    shots = [Shot(product, scene, "web") for product in products]
    ledger.select(run, shots, 8)
    return shots


def step(ledger: PostgresLedger, run: str, shot: Shot, stage: str, state: State = State.DONE, reason: str = "") -> None:
    job = Job(
        stage, 1, {"photo": "0" * 64, **({"final": "f" * 64} if stage == "inspect" else {})}, {"of": run + shot.sku}
    )
    made = Step(job.key, job, state, (), reason=reason)
    ledger.use(run, [(shot, [ShotStep(ledger.record(made), reused=False)])])


def test_a_cancelled_run_keeps_what_is_done_tells_who_and_why_and_notifies_nobody(ledger: PostgresLedger) -> None:
    ready, begun, *_ = begin(ledger, "cancelled", SKUS[:3])
    for stage in ("cutout", "inspect"):
        step(ledger, "cancelled", ready, stage)
    step(ledger, "cancelled", begun, "cutout")
    assert end_run(ledger.engine, "cancelled", "cancelled", "ada cancelled the run: wrong scene")
    assert "cancelled" not in {found.run for found in open_runs(ledger.engine)}
    with notifying(ledger.engine, "cancelled") as mine:
        assert not mine
    with ledger.engine.connect() as connection:
        counts, causes = count_states(connection, "cancelled")
    assert counts == {"failed": 3}
    assert [(one.cause, one.shots) for one in causes] == [
        ("the run ended before the shot was through its stages", 2),
        ("the run ended before publication", 1),
    ]
    found = find_retry(ledger.engine, "cancelled", ShotState.FAILED, causes[1].cause)
    assert (found.skus, found.left, found.reprocess) == (("CUP-0",), 0, Reprocess.MISSING)
    ledger.settle("cancelled")  # as a task does that ends a moment later
    with ledger.engine.connect() as connection:
        assert count_states(connection, "cancelled") == (counts, causes)


def test_reasons_that_differ_in_a_number_or_a_file_have_one_cause(ledger: PostgresLedger) -> None:
    reasons = [
        "a/b-1.jpg: no such file",
        "c.jpg: no such file",
        "the photo has 3 products",
        "the photo has 12 products",
    ]
    for shot, reason in zip(begin(ledger, "rejecting", SKUS[:4], "pine"), reasons, strict=True):
        step(ledger, "rejecting", shot, "cutout", State.REJECTED, reason)
    ledger.finish_run("rejecting", "success")
    with ledger.engine.connect() as connection:
        _, causes = count_states(connection, "rejecting")
    assert {(one.cause, one.shots) for one in causes} == {("no such file", 2), ("the photo has # products", 2)}
    found = find_retry(ledger.engine, "rejecting", ShotState.REJECTED, "no such file")
    assert (found.skus, found.reprocess) == (("CUP-0", "CUP-1"), Reprocess.FAILED)


def test_what_was_decided_made_again_or_left_the_feed_is_left_out(ledger: PostgresLedger, store, damage) -> None:
    finals = hold(ledger, store, "held", {sku: sku for sku in SKUS}, replace(GROWN, check="halo"), scene="elm")
    cause = (ShotState.HELD, "halo")
    assert find_retry(ledger.engine, "held", *cause).skus == tuple(SKUS)
    decide(ledger.engine, finals["CUP-0"], Choice.APPROVE, "ada")
    decide(ledger.engine, finals["CUP-1"], Choice.REJECT, "ada")
    begin(ledger, "later", ["CUP-2"], "elm")
    with ledger.engine.begin() as connection:
        connection.execute(text("UPDATE products SET left_at = now() WHERE sku = 'CUP-3'"))
    found = find_retry(ledger.engine, "held", *cause)
    assert (found.skus, found.left) == (("CUP-1", "CUP-4", "CUP-5"), 3)


def test_a_run_in_progress_is_not_tried_again(ledger: PostgresLedger) -> None:
    begin(ledger, "going", SKUS[:1])
    assert find_retry(ledger.engine, "going", ShotState.FAILED, "") is None
    assert find_retry(ledger.engine, "no such run", ShotState.FAILED, "") is None


@pytest.mark.parametrize("state", list(ShotState))
def test_every_state_is_counted_though_only_some_have_causes(ledger: PostgresLedger, state: ShotState) -> None:
    run = f"all {state}"
    begin(ledger, run, SKUS[:2], f"of {state}")
    with ledger.engine.begin() as connection:
        connection.execute(text("UPDATE run_shots SET state = :state WHERE run = :run"), {"state": state, "run": run})
        counts, causes = count_states(connection, run)
    assert counts == {state.value: 2}
    assert len(causes) == (state not in (ShotState.PUBLISHED, ShotState.PENDING))
