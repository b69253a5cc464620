"""Two runs over the same products: counted in a real Postgres, and how sure their differences are."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
from sqlalchemy import text
from typer.testing import CliRunner

from pipelines.cli.main import app
from pipelines.contracts import Product, Shot
from pipelines.errors import UsageError
from pipelines.ledger.postgres import PostgresLedger
from pipelines.quality.intervals import paired_difference, wilson
from pipelines.runs.comparison import Comparison, compare

Outcome = tuple[str, str, tuple[str, ...]]
"""State, final image ("" for none) and failed checks."""

GREW = ("overcompletion",)


@pytest.fixture(autouse=True)
def an_empty_ledger(ledger: PostgresLedger, damage: Callable[..., None]) -> None:
    damage("TRUNCATE runs, shots, products, product_versions CASCADE")


def made(ledger: PostgresLedger, run: str, scene: str, outcomes: dict[str, Outcome]) -> None:
    """A run with these outcomes, by SKU."""
    shots = [Shot(Product(sku, row, sku, "Kitchen", "a" * 64), scene, "web") for row, sku in enumerate(outcomes, 2)]
    ledger.upsert_products([shot.product for shot in shots])
    ledger.start_run(run, "catalog_refresh", scene, "web")
    ledger.select(run, shots, 8)
    with ledger.engine.begin() as connection:
        for position, (state, final, checks) in enumerate(outcomes.values()):
            values = {"run": run, "n": position, "state": state, "final": final or None, "checks": list(checks)}
            update = "UPDATE run_shots SET state = :state, final = :final, checks = :checks WHERE run = :run"
            connection.execute(text(f"{update} AND position = :n"), values)


def compared(ledger: PostgresLedger, a: str = "a", b: str = "b") -> Comparison:
    with ledger.engine.connect() as connection:
        return compare(connection, a, b)


A: dict[str, Outcome] = {
    "cup": ("published", "a1", ()),
    "pot": ("held", "a2", GREW),
    "jug": ("held", "a3", (*GREW, "halo")),
    "pan": ("rejected", "", ()),
    "old": ("published", "a5", ()),
}
B: dict[str, Outcome] = {
    "new": ("published", "b0", ()),
    "jug": ("held", "b1", ("halo",)),
    "pot": ("published", "b2", ()),
    "cup": ("published", "a1", ()),
    "pan": ("failed", "", ("product_photo",)),
}


def test_only_products_of_both_runs_are_compared_and_each_rate_has_its_interval(ledger) -> None:
    made(ledger, "a", "oak", A)
    made(ledger, "b", "pine", B)
    found = compared(ledger)
    assert (found.pairs, found.only_a, found.only_b, found.same_image) == (4, 1, 1, 1)
    assert (found.a.scene, found.a.products, found.b.scene, found.b.products) == ("oak", 5, "pine", 5)
    assert {one.name: (one.n, one.a, one.b) for one in found.states} == {
        "published": (4, 1, 2), "held": (4, 2, 1), "rejected": (4, 1, 0), "failed": (4, 0, 1),
    }  # fmt: skip
    grown = found.overcompletion
    assert (grown.n, grown.a, grown.b) == (3, 2, 0), "of images that both runs inspected"
    assert (grown.a_interval, grown.b_interval) == (wilson(2, 3), wilson(0, 3))
    assert grown.difference == pytest.approx(-2 / 3)
    assert grown.difference_interval == paired_difference(0, 2, 0, 3)
    assert {one.name: (one.n, one.a, one.b) for one in found.checks} == {"halo": (4, 1, 1), "product_photo": (4, 0, 1)}
    assert {(one.a, one.b): one.products for one in found.moved} == {
        ("published", "published"): 1, ("held", "published"): 1, ("held", "held"): 1, ("rejected", "failed"): 1,
    }  # fmt: skip


def test_what_only_one_run_has_often_is_a_clear_difference_and_chance_is_none(ledger) -> None:
    made(ledger, "a", "oak", {f"p{n}": ("held", f"a{n}", GREW if n % 2 else ()) for n in range(30)})
    made(ledger, "b", "oak", {f"p{n}": ("held", f"b{n}", GREW if n == 1 else ("halo",)) for n in range(30)})
    found = compared(ledger)
    assert found.overcompletion.is_clear
    (held,) = found.states
    assert not held.is_clear
    assert held.difference_interval[0] < 0 < held.difference_interval[1]
    assert compared(ledger, "b", "a").overcompletion.difference == pytest.approx(14 / 30)


def test_products_that_a_run_found_unchanged_count_as_its_own(ledger) -> None:
    made(ledger, "a", "oak", A)
    ledger.start_run("night", "catalog_refresh", "oak", "web")
    with ledger.engine.begin() as connection:
        connection.execute(text("UPDATE runs SET line = 'nightly'"))
    assert (compared(ledger, "a", "night").pairs, compared(ledger, "a", "night").same_image) == (5, 4)


def test_a_run_that_is_not_there_is_named(ledger) -> None:
    made(ledger, "a", "oak", A)
    with pytest.raises(UsageError, match="no run 'b' in the ledger"):
        compared(ledger)
    with pytest.raises(UsageError, match="these two are the same"):
        compared(ledger, "a", "a")


def test_the_command_prints_the_same_numbers(ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    made(ledger, "a", "oak", A)
    made(ledger, "b", "pine", B)
    told = json.loads(CliRunner().invoke(app, ["compare", "a", "b", "--json"]).stdout)
    assert (told["pairs"], told["overcompletion"]["a"], told["a"]["scene"]) == (4, 2, "oak")
    assert told["overcompletion"]["a_interval"] == list(wilson(2, 3))
    shown = CliRunner().invoke(app, ["compare", "a", "b"]).output
    assert "4 products in both, 1 in A alone, 1 in B alone; 1 with the same image" in shown
    assert "2, 66.7 % (20.8 to 93.9)" in shown
