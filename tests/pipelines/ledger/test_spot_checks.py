"""Spot checks of passed images: drawn the same way again, answered once, and counted; in a real Postgres."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from sqlalchemy import text

from pipelines.contracts import Artifact, Publication, Verdict, sha256_hex
from pipelines.errors import UsageError
from pipelines.ledger import decisions
from pipelines.ledger.decisions import Choice, Selection, decide, undo
from pipelines.ledger.postgres import PostgresLedger
from pipelines.ledger.spot_checks import draw, false_passes
from pipelines.quality.intervals import wilson
from tests.pipelines.ledger.test_decisions import Held, queue, shown

PASSED = Verdict("overcompletion", 0.0, 0.05, True)
SKUS = tuple(f"cup {n}" for n in range(8))


@pytest.fixture(autouse=True)
def an_empty_ledger(ledger: PostgresLedger, damage: Callable[..., None]) -> None:
    damage("TRUNCATE runs, shots, products, product_versions, steps, artifacts CASCADE")


def published(ledger: PostgresLedger, *skus: str, scene: str = "oak") -> Held:
    """A run whose images passed and are shown."""
    run = Held(ledger, *skus, verdict=PASSED, scene=scene)
    images = []
    for shot in run.shots:
        file = Artifact(sha256_hex(f"file {run.finals[shot.sku]}".encode()), "published", "image/jpeg", 1)
        run._step(shot, "publish", {"final": run.finals[shot.sku]}, file)
        images.append(Publication(shot.sku, scene, "web", file.sha256))
    ledger.publish(run.run, images)
    ledger.finish_run(run.run, "success")
    return run


def test_a_run_draws_passed_images_alone_and_the_same_ones_however_often_it_ends(ledger):
    passed, held = published(ledger, *SKUS), Held(ledger, "pot")
    drawn = draw(ledger.engine, passed.run, 3)
    assert len(drawn) == 3
    assert set(drawn) < set(passed.finals.values())
    assert draw(ledger.engine, passed.run, 3) == []
    assert draw(ledger.engine, held.run, 3) == []
    assert set(queue(ledger)) == {*drawn, held.finals["pot"]}
    with ledger.engine.begin() as connection:
        connection.execute(text("SET LOCAL packshot.mend = 'on'"))
        expected = connection.scalars(
            text("SELECT final FROM run_shots WHERE run = :run ORDER BY md5(run || '/' || final) LIMIT 3"),
            {"run": passed.run},
        ).all()
    assert set(drawn) == set(expected)


def test_a_wrong_one_is_withdrawn_and_shown_again_if_that_is_undone_and_the_rate_is_measured(ledger):
    before, after = published(ledger, "cup"), published(ledger, "cup", "pot")
    draw(ledger.engine, after.run, 2)
    old, (cup, pot) = sha256_hex(f"file {before.finals['cup']}".encode()), sorted(after.finals)
    files = {sku: sha256_hex(f"file {after.finals[sku]}".encode()) for sku in (cup, pot)}
    with pytest.raises(UsageError, match="right or wrong"):
        decide(ledger.engine, after.finals["cup"], Choice.APPROVE, "ada")
    with pytest.raises(UsageError, match="newer image"):
        decide(ledger.engine, before.finals["cup"], Choice.CONFIRM, "ada")
    decide(ledger.engine, after.finals["pot"], Choice.CONFIRM, "ada")
    wrong = decide(ledger.engine, after.finals["cup"], Choice.REJECT, "ada", "grown product")
    assert set(shown(ledger)) == {old, files["pot"]}
    assert after.states() == ["held", "published"]
    assert queue(ledger) == []
    with ledger.engine.connect() as connection:
        (oak,) = false_passes(connection)
    assert (oak.scene, oak.wrong, oak.checked, oak.rate) == ("oak", 1, 2, 0.5)
    assert (oak.low, oak.high) == pytest.approx(wilson(1, 2))

    undo(ledger.engine, wrong.id, "ada")
    assert set(shown(ledger)) == set(files.values())
    assert after.states() == ["published", "published"]
    assert queue(ledger) == [after.finals["cup"]]
    with ledger.engine.connect() as connection:
        assert [(one.wrong, one.checked) for one in false_passes(connection)] == [(0, 1)]


def test_a_wrong_one_stays_withdrawn_if_a_later_run_shows_another(ledger):
    drawn = published(ledger, "cup")
    draw(ledger.engine, drawn.run, 1)
    wrong = decide(ledger.engine, drawn.finals["cup"], Choice.REJECT, "ada")
    later = published(ledger, "cup")
    undo(ledger.engine, wrong.id, "ada")
    assert shown(ledger) == [sha256_hex(f"file {later.finals['cup']}".encode())]


def test_a_wrong_one_stays_withdrawn_if_its_product_left_the_feed(ledger, damage):
    drawn = published(ledger, "cup")
    draw(ledger.engine, drawn.run, 1)
    wrong = decide(ledger.engine, drawn.finals["cup"], Choice.REJECT, "ada")
    damage("UPDATE products SET left_at = now()")
    undo(ledger.engine, wrong.id, "ada")
    assert shown(ledger) == []


def test_a_batch_leaves_spot_checks_alone_and_an_image_that_was_not_drawn_has_none(ledger):
    passed, held = published(ledger, "cup"), Held(ledger, "pot")
    with pytest.raises(UsageError, match="not drawn"):
        decide(ledger.engine, held.finals["pot"], Choice.CONFIRM, "ada")
    draw(ledger.engine, passed.run, 1)
    batch = decisions.counted(ledger.engine, Selection())
    assert batch.count == 1
    assert decisions.decide_selection(ledger.engine, Selection(), batch.fingerprint, Choice.REJECT, "ada", "b1") == 1
    assert queue(ledger) == [passed.finals["cup"]]
