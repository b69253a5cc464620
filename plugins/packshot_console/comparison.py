"""Two runs over the same products side by side: another scene, another channel, another model.

GET /compare                 choose two runs; with `a` and `b` the rates of both, and their pictures, product by product
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from http import HTTPStatus
from typing import Annotated

from fastapi import APIRouter, Query, Request, Response
from sqlalchemy import Connection, text

from packshot_console.pages import page as render
from packshot_console.services import ledger
from pipelines.contracts import ShotState
from pipelines.errors import UsageError
from pipelines.ledger.pairs import Pair, PairChoice, pair_groups, read_pairs
from pipelines.ledger.reports import list_runs
from pipelines.runs.comparison import Comparison, compared_runs, summarize

PAGE_SIZE = 12
RUNS_TO_CHOOSE = 100

router = APIRouter()

Name = Annotated[str, Query(max_length=300)]
State = Annotated[str, Query(pattern=f"^({'|'.join(ShotState)})?$")]


@dataclass(frozen=True, slots=True)
class ComparisonView:
    """The page: `pairs` are those of this page and choice, `matching` how many there are of that choice. `models` are
    those that only one of the runs used for the first of these pairs, as (name, revision in A, revision in B)."""

    found: Comparison
    pairs: tuple[Pair, ...]
    models: tuple[tuple[str, str, str], ...]
    chosen: PairChoice
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
            view = comparison(a, b, PairChoice(a_state, b_state, check), page)
        except UsageError as error:
            refusal = str(error)
    answer = render(request, "compare.html", view=view, runs=_to_choose(a, b), chosen=(a, b), refusal=refusal)
    answer.status_code = HTTPStatus.NOT_FOUND if refusal else HTTPStatus.OK
    return answer


def comparison(a: str, b: str, chosen: PairChoice, page: int) -> ComparisonView:
    """What the page shows, in seven queries. Raises UsageError as `runs.comparison.compared_runs` does."""
    with ledger().engine.connect() as connection:
        runs = compared_runs(connection, a, b)
        groups = pair_groups(connection, a, b)
        pairs = tuple(read_pairs(connection, a, b, chosen, PAGE_SIZE, (page - 1) * PAGE_SIZE))
        made = next((pair for pair in pairs if pair.a.final and pair.b.final), None)
        models = _models(connection, made) if made else ()
    matching = chosen.count(groups)
    return ComparisonView(
        found=summarize(*runs, groups),
        pairs=pairs,
        models=models,
        chosen=chosen,
        matching=matching,
        page=page,
        pages=max(1, -(-matching // PAGE_SIZE)),
    )


def _models(connection: Connection, pair: Pair) -> tuple[tuple[str, str, str], ...]:
    used: dict[str, list[str]] = defaultdict(lambda: ["", ""])
    for number, side in enumerate((pair.a, pair.b)):
        for row in connection.execute(text(_MODELS), {"run": side.made_by, "shot": side.shot}):
            used[row.name][number] = row.revision
    return tuple((name, a, b) for name, (a, b) in sorted(used.items()) if a != b)


def _to_choose(*chosen: str) -> list[tuple[str, str]]:
    """(id, words) of the newest runs, and of those that were chosen."""
    runs = list_runs(ledger().engine, RUNS_TO_CHOOSE)
    named = [(one.run, f"{one.started_at:%Y-%m-%d %H:%M} · {one.scene} for {one.channel} · {one.run}") for one in runs]
    known = {run for run, _ in named}
    return [*((run, run) for run in chosen if run and run not in known), *named]


_MODELS = """
SELECT DISTINCT m.name, m.revision FROM run_steps u JOIN step_models m USING (key)
WHERE u.run = :run AND u.shot = :shot AND u.chosen
"""
