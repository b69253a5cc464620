"""What nothing needs leaves the store, and a run that wants it makes it anew."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

import pytest
from typer.testing import CliRunner

from pipelines.cli.main import app
from pipelines.contracts import sha256_hex
from pipelines.errors import UsageError
from pipelines.ledger.decisions import Choice, decide, held_image, withdraw
from pipelines.runs.export import export_run
from pipelines.runs.prune import Pruned, prune
from pipelines.runs.verify import verify
from pipelines.stages import keys
from tests.operators.test_differences import STAGES, Shop

pytestmark = pytest.mark.medium


@pytest.fixture
def shop(ledger, store, context, monkeypatch) -> Shop:
    monkeypatch.setattr(keys, "STAGES", STAGES)
    monkeypatch.setattr(keys, "fingerprint", lambda recipe: sha256_hex(b"the recipe"))
    shop = Shop(ledger, store, context)
    after(shop, 999)  # what other tests left
    return shop


def after(shop: Shop, days: int, apply: bool = True, **about) -> Pruned:
    """What is pruned so many days from now."""
    return prune(shop.ledger, shop.store, 30, 7, apply=apply, now=datetime.now(UTC) + timedelta(days=days), **about)


def stored(shop: Shop) -> set[str]:
    """Digests of all objects."""
    return {digest for digest, _ in shop.store.objects()}


def outputs(shop: Shop, run: str, name: str) -> set[str]:
    """Digests of all that was made for a product."""
    [shot] = shop.ledger.shots(run, skus=[shop.sku(name)])
    steps = shop.ledger.chosen(run, [shot])[shot.sku].values()
    return {output.sha256 for step in steps for output in step.outputs}


def test_nothing_that_is_current_or_recent_goes(shop) -> None:
    shop.night()
    shop.feed["cup"] = "another cup"
    shop.night()
    before = stored(shop)
    assert after(shop, 29).removed == 0, "the first cup was superseded lately"
    shown = after(shop, 31, apply=False)
    assert {kind.made_by for kind in shown.kinds} == set(STAGES)
    assert (shown.objects, shown.removed, shown.steps) == (6, 0, 0)
    assert stored(shop) == before, "a dry run"
    assert verify(shop.ledger, shop.store, None).lost == ()


def test_a_superseded_cup_goes_and_is_made_anew_when_it_comes_back(shop, settings) -> None:
    first = shop.night()
    old = outputs(shop, first.run, "cup")
    shop.feed["cup"] = "another cup"
    second = shop.night()
    before = stored(shop)
    assert after(shop, 31, keep=["publish"]).removed == len(old) - 1
    assert after(shop, 31).removed == 1
    assert stored(shop) == before - old
    assert all(outputs(shop, second.run, name) <= stored(shop) for name in shop.feed)
    assert verify(shop.ledger, shop.store, settings, read=True).lost == ()
    third = shop.night()
    assert shop.looked_at == 0
    assert sum(count.computed for count in third.steps.values()) == 0, "nothing that counts was pruned"
    shop.feed["cup"] = "cup"
    fourth = shop.night()
    assert fourth.steps["cutout"].computed == 1
    assert shop.states(fourth) == shop.states(first)
    assert shop.shown(fourth) == shop.shown(first)
    assert old <= stored(shop)


def test_what_is_shown_decided_or_to_be_decided_stays_with_what_it_was_made_of(shop) -> None:
    first = shop.night()
    shown = outputs(shop, first.run, "pot")
    assert len(shown) == 6
    vase = outputs(shop, first.run, "grown-vase")
    assert len(vase) == 5
    decide(shop.ledger.engine, held_image(shop.ledger.engine, first.run, shop.sku("grown-vase")), Choice.REJECT, "ada")
    shop.feed["grown-vase"] = "grown again"
    second = shop.night()
    waiting = outputs(shop, second.run, "grown-vase")
    shop.feed = {"mug": "mug"}  # another catalogue: nothing is withdrawn
    shop.night()
    after(shop, 31)
    for needed in (shown, vase, waiting):
        assert needed <= stored(shop)


def test_an_image_that_was_pruned_is_not_shown_again(shop, settings, tmp_path) -> None:
    first = shop.night()
    shop.feed["cup"] = "another cup"
    second = shop.night()
    after(shop, 31)
    with pytest.raises(UsageError, match=f"no longer has the image of {shop.sku('cup')}"):
        export_run(first.run, tmp_path, settings)
    [shot] = shop.ledger.shots(second.run, skus=[shop.sku("cup")])
    final = shop.ledger.chosen(second.run, [shot])[shot.sku]["publish"].job.inputs["final"]
    with shop.ledger.engine.begin() as connection:
        number = connection.exec_driver_sql(f"SELECT id FROM shots WHERE sku = '{shot.sku}'").scalar_one()
        assert withdraw(connection, [number], [final], "ada") == 1
        current = f"SELECT count(*) FROM publications WHERE shot = {number} AND superseded_at IS NULL"
        assert connection.exec_driver_sql(current).scalar_one() == 0
    after(shop, 31)
    assert outputs(shop, second.run, "cup") <= stored(shop), "taken back, but still the newest"


def test_orphans_go_after_their_grace_and_documents_keep_what_they_name(shop) -> None:
    shop.night()
    orphan = shop.store.put(b"nobody names it", "text/plain")
    assert after(shop, 6).objects == 0
    assert after(shop, 8, keep=["orphan"]).objects == 0
    before = stored(shop)
    assert [(kind.made_by, kind.objects, kind.bytes) for kind in after(shop, 8).kinds] == [("orphan", 1, 15)]
    assert stored(shop) == before - {orphan}
    assert (shop.night().published, shop.looked_at) == (2, 0), "the feed's parts are there"


def test_nothing_is_removed_beside_a_run(shop) -> None:
    shop.ledger.start_run("busy", "catalog_refresh", "studio", "web")
    try:
        with pytest.raises(UsageError, match="run busy is in progress"):
            after(shop, 31)
        after(shop, 31, apply=False)
    finally:
        shop.ledger.finish_run("busy", "success")


def test_the_command_lists_and_removes(shop) -> None:
    shop.night()
    run = CliRunner().invoke
    assert "0 objects" in run(app, ["prune"]).stdout
    assert json.loads(run(app, ["prune", "--apply", "--json"]).stdout)["removed"] == 0
    assert isinstance(run(app, ["prune", "--keep", "tea"]).exception, UsageError)
