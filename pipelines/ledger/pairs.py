"""Two runs over the same products, product by product: what became of each in the one run and in the other.

Everything is counted in SQL. A pair is a product that both runs have; each run has it in one scene and channel.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from sqlalchemy import Connection, text

GROWN = "overcompletion"


@dataclass(frozen=True, slots=True)
class PairedCount:
    """In how many of `n` pairs something is true of both runs, and of one run alone."""

    n: int
    both: int
    only_a: int
    only_b: int


@dataclass(frozen=True, slots=True)
class PairCounts:
    """The pairs of two runs. `states` maps a pair's two states to a number of pairs; `same_image` pairs have the same
    final image. `overcompleted` is of the pairs with a final image in both runs, and `checks` of all pairs, by check.
    """

    pairs: int
    only_a: int
    only_b: int
    same_image: int
    states: Mapping[tuple[str, str], int]
    overcompleted: PairedCount
    checks: Mapping[str, PairedCount]


def count_pairs(connection: Connection, a: str, b: str) -> PairCounts:
    """Counts the pairs of two runs, in two queries."""
    runs = {"a": a, "b": b}
    rows = connection.execute(text(_COUNTED), runs).all()
    paired = [row for row in rows if row.a and row.b]
    pairs = sum(row.products for row in paired)
    return PairCounts(
        pairs=pairs,
        only_a=sum(row.products for row in rows if row.b is None),
        only_b=sum(row.products for row in rows if row.a is None),
        same_image=sum(row.same for row in paired),
        states={(row.a, row.b): row.products for row in paired},
        overcompleted=PairedCount(
            sum(row.inspected for row in paired),
            sum(row.grown_both for row in paired),
            sum(row.grown_a for row in paired),
            sum(row.grown_b for row in paired),
        ),
        checks={
            row.name: PairedCount(pairs, row.in_both, row.only_a, row.only_b)
            for row in connection.execute(text(_CHECKS), runs)
        },
    )


OF_RUN = """
SELECT s.sku, v.made_by, v.shot, v.version, v.row, v.position, v.state, v.reason, v.final, v.checks
FROM shots_of_runs v JOIN shots s ON s.id = v.shot WHERE v.run = {run}
"""
"""A run's products; `run` is the name of a parameter."""

PAIRS = f"""
WITH a AS MATERIALIZED ({OF_RUN.format(run=":a")}), b AS MATERIALIZED ({OF_RUN.format(run=":b")})
"""
"""Two runs, `a` and `b`, to be joined by SKU."""

_COUNTED = f"""
{PAIRS}, compared AS (
    SELECT a.state AS a, b.state AS b, a.final = b.final AS same, a.final IS NOT NULL AND b.final IS NOT NULL AS seen,
           '{GROWN}' = ANY(a.checks) AS grown_a, '{GROWN}' = ANY(b.checks) AS grown_b
    FROM a FULL JOIN b USING (sku)
)
SELECT a, b, count(*) AS products, count(*) FILTER (WHERE same) AS same,
       count(*) FILTER (WHERE seen) AS inspected,
       count(*) FILTER (WHERE seen AND grown_a AND grown_b) AS grown_both,
       count(*) FILTER (WHERE seen AND grown_a AND NOT grown_b) AS grown_a,
       count(*) FILTER (WHERE seen AND grown_b AND NOT grown_a) AS grown_b
FROM compared GROUP BY a, b
"""  # noqa: S608  # no value from outside

_CHECKS = f"""
{PAIRS}
SELECT failed.name, count(*) FILTER (WHERE name = ANY(a.checks) AND name = ANY(b.checks)) AS in_both,
       count(*) FILTER (WHERE name = ANY(a.checks) AND name <> ALL(b.checks)) AS only_a,
       count(*) FILTER (WHERE name = ANY(b.checks) AND name <> ALL(a.checks)) AS only_b
FROM a JOIN b USING (sku)
CROSS JOIN LATERAL (SELECT DISTINCT unnest(a.checks || b.checks) AS name) failed
WHERE a.checks <> '{{}}' OR b.checks <> '{{}}'
GROUP BY failed.name ORDER BY failed.name
"""  # noqa: S608  # no value from outside
