"""Two runs over the same products side by side: another scene, another channel, another model.

GET /compare                 choose two runs; with `a` and `b` the rates of both, and their pictures, product by product
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from http import HTTPStatus
from typing import Annotated

from fastapi import APIRouter, Query, Request, Response
from sqlalchemy import Connection, Row, text

from packshot_console.pages import page as render
from packshot_console.services import ledger
from pipelines.contracts import ShotState
from pipelines.errors import UsageError
from pipelines.ledger.pairs import PAIRS
from pipelines.ledger.reports import list_runs
from pipelines.runs.comparison import Comparison, compare

PAGE_SIZE = 12
RUNS_TO_CHOOSE = 100

router = APIRouter()

Name = Annotated[str, Query(max_length=300)]
State = Annotated[str, Query(pattern=f"^({'|'.join(ShotState)})?$")]


@dataclass(frozen=True, slots=True)
class Side:
    """A product in one of the runs. `final` is the digest of its image, None where it did not come so far."""

    state: str
    reason: str
    final: str | None


@dataclass(frozen=True, slots=True)
class Pair:
    """A product in both runs."""

    sku: str
    title: str
    a: Side
    b: Side


@dataclass(frozen=True, slots=True)
class Choice:
    """Which pairs are shown: those with these states, and those that a check failed in either run; "" for all."""

    a_state: str
    b_state: str
    check: str


@dataclass(frozen=True, slots=True)
class ComparisonView:
    """The page: `pairs` are those of this page and choice, `matching` how many there are of that choice. `models` are
    those that only one of the runs used for the first of these pairs, as (name, revision in A, revision in B)."""

    found: Comparison
    pairs: tuple[Pair, ...]
    models: tuple[tuple[str, str, str], ...]
    chosen: Choice
    matching: int
    page: int
    pages: int


@router.get("/compare")
def compare_page(
    request: Request,
    a: Name = "",
    b: Name = "",
    a_state: State = "",
    b_state: State = "",
    check: Name = "",
    page: Annotated[int, Query(ge=1, le=100_000)] = 1,
) -> Response:
    """The page; 404 for a run that is not there."""
    view, refusal = None, ""
    if a and b:
        try:
            view = comparison(a, b, Choice(a_state, b_state, check), page)
        except UsageError as error:
            refusal = str(error)
    answer = render(request, "compare.html", view=view, runs=_to_choose(a, b), chosen=(a, b), refusal=refusal)
    answer.status_code = HTTPStatus.NOT_FOUND if refusal else HTTPStatus.OK
    return answer


def comparison(a: str, b: str, chosen: Choice, page: int) -> ComparisonView:
    """What the page shows, in six queries. Raises UsageError as `runs.comparison.compare` does."""
    values = {"a": a, "b": b, "a_state": chosen.a_state, "b_state": chosen.b_state, "check": chosen.check}
    with ledger().engine.connect() as connection:
        found = compare(connection, a, b)
        matching = connection.execute(text(_COUNT), values).scalar_one()
        rows = connection.execute(text(_PAGE), {**values, "limit": PAGE_SIZE, "offset": (page - 1) * PAGE_SIZE}).all()
        made = next((row for row in rows if row.a_final and row.b_final), None)
        models = _models(connection, made) if made else ()
    return ComparisonView(
        found=found,
        pairs=tuple(
            Pair(
                row.sku,
                row.title,
                Side(row.a_state, row.a_reason, row.a_final),
                Side(row.b_state, row.b_reason, row.b_final),
            )
            for row in rows
        ),
        models=models,
        chosen=chosen,
        matching=matching,
        page=page,
        pages=max(1, -(-matching // PAGE_SIZE)),
    )


def _models(connection: Connection, pair: Row) -> tuple[tuple[str, str, str], ...]:
    used: dict[str, list[str]] = defaultdict(lambda: ["", ""])
    for side, made_by, shot in ((0, pair.a_made_by, pair.a_shot), (1, pair.b_made_by, pair.b_shot)):
        for row in connection.execute(text(_MODELS), {"run": made_by, "shot": shot}):
            used[row.name][side] = row.revision
    return tuple((name, a, b) for name, (a, b) in sorted(used.items()) if a != b)


def _to_choose(*chosen: str) -> list[tuple[str, str]]:
    """(id, words) of the newest runs, and of those that were chosen."""
    runs = list_runs(ledger().engine, RUNS_TO_CHOOSE)
    named = [(one.run, f"{one.started_at:%Y-%m-%d %H:%M} · {one.scene} for {one.channel} · {one.run}") for one in runs]
    known = {run for run, _ in named}
    return [*((run, run) for run in chosen if run and run not in known), *named]


_CHOSEN = """
FROM a JOIN b USING (sku)
WHERE (CAST(:a_state AS text) = '' OR a.state = :a_state) AND (CAST(:b_state AS text) = '' OR b.state = :b_state)
  AND (CAST(:check AS text) = '' OR :check = ANY(a.checks) OR :check = ANY(b.checks))
"""

_COUNT = f"{PAIRS} SELECT count(*) {_CHOSEN}"

_PAGE = f"""
{PAIRS}
SELECT a.sku, v.title, a.state AS a_state, a.reason AS a_reason, a.final AS a_final, a.made_by AS a_made_by,
       a.shot AS a_shot, b.state AS b_state, b.reason AS b_reason, b.final AS b_final, b.made_by AS b_made_by,
       b.shot AS b_shot
FROM (SELECT sku {_CHOSEN} ORDER BY a.row, a.position LIMIT :limit OFFSET :offset) shown
JOIN a USING (sku) JOIN b USING (sku) JOIN product_versions v ON v.id = b.version
ORDER BY a.row, a.position
"""  # noqa: S608  # no value from outside

_MODELS = """
SELECT DISTINCT m.name, m.revision FROM run_steps u JOIN step_models m USING (key)
WHERE u.run = :run AND u.shot = :shot AND u.chosen
"""
