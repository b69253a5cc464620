"""Run A against run B on the same products: rates with 95 % intervals, and those of their differences."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Row, text

from pipelines.contracts import ShotState
from pipelines.errors import UsageError
from pipelines.ledger.pairs import PairGroup, pair_groups
from pipelines.quality.intervals import Interval, paired_difference, wilson

GROWN = "overcompletion"

Holds = Callable[[PairGroup], tuple[bool, bool]]
"""Whether something is true of a group's products in run A, and in run B."""


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
    """Compares two runs, in two queries. Raises UsageError as `compared_runs` does."""
    runs = compared_runs(connection, a, b)
    return summarize(*runs, pair_groups(connection, a, b))


def compared_runs(connection: Connection, a: str, b: str) -> tuple[Row, Row]:
    """The rows of two runs. Raises UsageError for a run that is not there, and for one run twice."""
    if a == b:
        raise UsageError("a run is compared with another one: these two are the same")
    rows = {row.id: row for row in connection.execute(text(_RUNS), {"runs": [a, b]})}
    if unknown := next((run for run in (a, b) if run not in rows), None):
        raise UsageError(f"no run {unknown!r} in the ledger: `packshot run` and `packshot campaign` print their ids")
    return rows[a], rows[b]


def summarize(a: Row, b: Row, groups: Sequence[PairGroup]) -> Comparison:
    """The rates of two runs' products, which `groups` has."""
    paired = [group for group in groups if group.is_paired]
    seen = [group for group in paired if group.seen]
    moved: Counter[tuple[str, str]] = Counter()
    for group in paired:
        moved[group.a_state, group.b_state] += group.products
    pairs = moved.total()
    only_a = sum(group.products for group in groups if not group.b_state)
    only_b = sum(group.products for group in groups if not group.a_state)
    checks = sorted({check for group in paired for check in group.a_checks | group.b_checks} - {GROWN})
    return Comparison(
        a=_run(a, pairs + only_a),
        b=_run(b, pairs + only_b),
        pairs=pairs,
        only_a=only_a,
        only_b=only_b,
        same_image=sum(group.products for group in paired if group.same),
        states=tuple(
            _rate(state.value, paired, _in_state(state)) for state in ShotState if any(state in both for both in moved)
        ),
        overcompletion=_rate(GROWN, seen, _failed(GROWN)),
        checks=tuple(_rate(check, paired, _failed(check)) for check in checks),
        moved=tuple(Moved(*states, number) for states, number in moved.most_common()),
    )


def _run(row: Row, products: int) -> ComparedRun:
    return ComparedRun(row.id, row.dag_id, row.scene, row.channel, row.state, row.started_at, products, row.params)


def _in_state(state: str) -> Holds:
    return lambda group: (group.a_state == state, group.b_state == state)


def _failed(check: str) -> Holds:
    return lambda group: (check in group.a_checks, check in group.b_checks)


def _rate(name: str, groups: Sequence[PairGroup], holds: Holds) -> ComparedRate:
    counted: Counter[tuple[bool, bool]] = Counter()
    for group in groups:
        counted[holds(group)] += group.products
    both, only_a, only_b = counted[True, True], counted[True, False], counted[False, True]
    n, a, b = counted.total(), both + only_a, both + only_b
    return ComparedRate(
        name=name,
        n=n,
        a=a,
        b=b,
        a_interval=wilson(a, n),
        b_interval=wilson(b, n),
        difference=(b - a) / n if n else 0.0,
        difference_interval=paired_difference(both, only_a, only_b, n),
    )


_RUNS = "SELECT id, dag_id, scene, channel, state, started_at, params FROM runs WHERE id = ANY(CAST(:runs AS text[]))"
