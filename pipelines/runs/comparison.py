"""Run A against run B on the same products: rates with 95 % intervals, and those of their differences."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, text

from pipelines.contracts import ShotState
from pipelines.errors import UsageError
from pipelines.ledger.pairs import GROWN, PairCounts, PairedCount, count_pairs
from pipelines.quality.intervals import Interval, paired_difference, wilson


@dataclass(frozen=True, slots=True)
class ComparedRun:
    """One of the two runs. `products` counts all its products, `params` are those that it was started with."""

    run: str
    dag_id: str
    scene: str
    channel: str
    state: str
    started_at: datetime
    products: int
    params: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class ComparedRate:
    """Of `n` products of both runs, how many: `a` and `b` count them, with the Wilson interval of each rate.

    `difference` is the rate of B minus that of A. Its interval is of pairs (`intervals.paired_difference`).
    """

    name: str
    n: int
    a: int
    b: int
    a_interval: Interval
    b_interval: Interval
    difference: float
    difference_interval: Interval

    @property
    def is_clear(self) -> bool:
        """Whether the interval of the difference does not have 0 in it."""
        low, high = self.difference_interval
        return low > 0 or high < 0


@dataclass(frozen=True, slots=True)
class Moved:
    """How many products were in state `a` in run A, and in state `b` in run B."""

    a: str
    b: str
    products: int


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two runs on the products that both have: `pairs` of them; `only_a` and `only_b` count the others.

    `same_image` pairs show the same image. `overcompletion` is of the pairs that were inspected in both runs, and
    `checks` are the other checks that held an image.
    """

    a: ComparedRun
    b: ComparedRun
    pairs: int
    only_a: int
    only_b: int
    same_image: int
    states: tuple[ComparedRate, ...]
    overcompletion: ComparedRate
    checks: tuple[ComparedRate, ...]
    moved: tuple[Moved, ...]


def compare(connection: Connection, a: str, b: str) -> Comparison:
    """Compares two runs, in three queries. Raises UsageError for a run that is not there, and for one run twice."""
    if a == b:
        raise UsageError("a run is compared with another one: these two are the same")
    rows = {row.id: row for row in connection.execute(text(_RUNS), {"runs": [a, b]})}
    if unknown := next((run for run in (a, b) if run not in rows), None):
        raise UsageError(f"no run {unknown!r} in the ledger: `packshot run` and `packshot campaign` print their ids")
    counts = count_pairs(connection, a, b)
    return Comparison(
        a=_run(rows[a], counts.pairs + counts.only_a),
        b=_run(rows[b], counts.pairs + counts.only_b),
        pairs=counts.pairs,
        only_a=counts.only_a,
        only_b=counts.only_b,
        same_image=counts.same_image,
        states=tuple(_of_state(state, counts) for state in ShotState if any(state in pair for pair in counts.states)),
        overcompletion=_rate(GROWN, counts.overcompleted),
        checks=tuple(_rate(name, counted) for name, counted in counts.checks.items() if name != GROWN),
        moved=tuple(Moved(*pair, number) for pair, number in sorted(counts.states.items(), key=lambda one: -one[1])),
    )


def _run(row: Any, products: int) -> ComparedRun:
    return ComparedRun(row.id, row.dag_id, row.scene, row.channel, row.state, row.started_at, products, row.params)


def _of_state(state: ShotState, counts: PairCounts) -> ComparedRate:
    both = counts.states.get((state, state), 0)
    first, second = (sum(n for pair, n in counts.states.items() if pair[side] == state) for side in (0, 1))
    return _rate(state.value, PairedCount(counts.pairs, both, first - both, second - both))


def _rate(name: str, counted: PairedCount) -> ComparedRate:
    n, a, b = counted.n, counted.both + counted.only_a, counted.both + counted.only_b
    return ComparedRate(
        name=name,
        n=n,
        a=a,
        b=b,
        a_interval=wilson(a, n),
        b_interval=wilson(b, n),
        difference=(b - a) / n if n else 0.0,
        difference_interval=paired_difference(counted.both, counted.only_a, counted.only_b, n),
    )


_RUNS = "SELECT id, dag_id, scene, channel, state, started_at, params FROM runs WHERE id = ANY(CAST(:runs AS text[]))"
