"""Two runs over the same products, product by product: what became of each in the one run and in the other.

A pair is a product that both runs have; each run has it in one scene and channel. Pairs are counted in one query, in
groups of those that fared alike, and every number is a sum of groups.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from sqlalchemy import Connection, text


@dataclass(frozen=True, slots=True)
class PairGroup:
    """Products that fared alike: their states and failed checks in both runs, and how many they are.

    A state is "" where a run does not have them. `seen` says that both runs have a final image, `same` that it is the
    same one.
    """

    a_state: str
    b_state: str
    a_checks: frozenset[str]
    b_checks: frozenset[str]
    seen: bool
    same: bool
    products: int

    @property
    def is_paired(self) -> bool:
        """Whether both runs have these products."""
        return bool(self.a_state and self.b_state)


@dataclass(frozen=True, slots=True)
class PairChoice:
    """Some pairs: those with these states, and those that a check failed in either run; "" for all."""

    a_state: str = ""
    b_state: str = ""
    check: str = ""

    def count(self, groups: Iterable[PairGroup]) -> int:
        """How many pairs are chosen."""
        return sum(group.products for group in groups if group.is_paired and self._has(group))

    def _has(self, group: PairGroup) -> bool:
        return (
            self.a_state in ("", group.a_state)
            and self.b_state in ("", group.b_state)
            and (not self.check or self.check in group.a_checks | group.b_checks)
        )


@dataclass(frozen=True, slots=True)
class PairSide:
    """A product in one of the runs. `final` is the digest of its image, None where it did not come so far; `made_by` is
    the run that last worked on it."""

    state: str
    reason: str
    final: str | None
    made_by: str
    shot: int


@dataclass(frozen=True, slots=True)
class Pair:
    """A product in both runs."""

    sku: str
    title: str
    a: PairSide
    b: PairSide


def pair_groups(connection: Connection, a: str, b: str) -> list[PairGroup]:
    """All products of two runs in groups."""
    return [
        PairGroup(
            row.a_state or "",
            row.b_state or "",
            frozenset(row.a_checks or ()),
            frozenset(row.b_checks or ()),
            row.seen,
            row.same,
            row.products,
        )
        for row in connection.execute(text(_GROUPS.format(by=_joined_by(connection, a, b))), {"a": a, "b": b})
    ]


def read_pairs(connection: Connection, a: str, b: str, choice: PairChoice, limit: int, offset: int) -> Iterator[Pair]:
    """Some of the chosen pairs, in the order of run `a`."""
    wanted = {"a_state": choice.a_state, "b_state": choice.b_state, "check": choice.check}
    statement = text(_PAIRS.format(by=_joined_by(connection, a, b)))
    for row in connection.execute(statement, {"a": a, "b": b, "limit": limit, "offset": offset, **wanted}):
        first, second = (PairSide(*side) for side in (row.in_a, row.in_b))
        yield Pair(row.sku, row.title, first, second)


def _joined_by(connection: Connection, a: str, b: str) -> str:
    """The column that pairs the shots of two runs. In one scene and channel a product is one shot, which needs no look
    at the shots' SKUs."""
    same = connection.scalar(text(_SAME_SHOTS), {"a": a, "b": b})
    return "shot" if same else "sku"


_SAME_SHOTS = "SELECT count(DISTINCT (scene, channel)) = 1 FROM runs WHERE id IN (:a, :b)"

_GROUPS = """
SELECT a.state AS a_state, b.state AS b_state, a.checks AS a_checks, b.checks AS b_checks,
       coalesce(a.final IS NOT NULL AND b.final IS NOT NULL, false) AS seen, coalesce(a.final = b.final, false) AS same,
       count(*) AS products
FROM (SELECT {by}, state, checks, final FROM shots_of_runs WHERE run = :a) a
FULL JOIN (SELECT {by}, state, checks, final FROM shots_of_runs WHERE run = :b) b USING ({by})
GROUP BY 1, 2, 3, 4, 5, 6
"""

_PAIRS = """
SELECT v.sku, v.title, json_build_array(a_state, a_reason, a_final, a_made_by, a_shot) AS in_a,
       json_build_array(b_state, b_reason, b_final, b_made_by, b_shot) AS in_b
FROM (
    SELECT a.position, a.state AS a_state, a.reason AS a_reason, a.final AS a_final, a.made_by AS a_made_by,
           a.a_shot, b.state AS b_state, b.reason AS b_reason, b.final AS b_final, b.made_by AS b_made_by,
           b.b_shot, b.version
    FROM (SELECT {by}, position, state, reason, final, checks, made_by, shot AS a_shot
          FROM shots_of_runs WHERE run = :a) a
    JOIN (SELECT {by}, version, state, reason, final, checks, made_by, shot AS b_shot
          FROM shots_of_runs WHERE run = :b) b USING ({by})
    WHERE (CAST(:a_state AS text) = '' OR a.state = :a_state) AND (CAST(:b_state AS text) = '' OR b.state = :b_state)
      AND (CAST(:check AS text) = '' OR :check = ANY(a.checks) OR :check = ANY(b.checks))
    ORDER BY a.position, a_shot LIMIT :limit OFFSET :offset
) shown
JOIN product_versions v ON v.id = shown.version
ORDER BY shown.position, shown.a_shot
"""
