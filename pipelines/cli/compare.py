"""`packshot compare`: two runs over the same products."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from pipelines.cli.console import AsJson, answer, line, table

if TYPE_CHECKING:
    from rich.text import Text

    from pipelines.runs.comparison import ComparedRate, ComparedRun

app = typer.Typer()


@app.command()
def compare(
    a: Annotated[str, typer.Argument(metavar="A", help="A run's id, or 'latest'.")],
    b: Annotated[str, typer.Argument(metavar="B", help="Another run's id, or 'latest'.")],
    as_json: AsJson = False,
) -> None:
    """Compare two runs on the products that both have: another scene, another channel, another model.

    It shows how many were published, held, rejected or failed, how many images grew their product, and which checks
    failed, each with its 95 % interval. The console's page *Compare* shows the pictures beside one another.
    """
    from pipelines.ledger.postgres import connect
    from pipelines.ledger.reports import latest_run
    from pipelines.runs.comparison import compare as compare_runs
    from pipelines.settings import get_settings

    settings = get_settings()
    engine = connect(settings.database_url)
    first, second = (latest_run(engine, settings.state_dir) if run == "latest" else run for run in (a, b))
    with engine.connect() as connection:
        found = compare_runs(connection, first, second)
    rates = [*found.states, found.overcompletion, *found.checks]
    answer(
        as_json,
        found,
        _about("A", found.a),
        _about("B", found.b),
        f"{found.pairs} products in both, {found.only_a} in A alone, {found.only_b} in B alone; "
        f"{found.same_image} with the same image",
        table("", "n", "A", "B", "B - A, points", rows=[_row(rate) for rate in rates if rate.n]),
    )


def _about(name: str, run: ComparedRun) -> Text:
    return line((name, "bold"), f": {run.run}, {run.scene} for {run.channel}, {run.products} products")


def _row(rate: ComparedRate) -> tuple[str, ...]:
    def percent(count: int, ends: tuple[float, float]) -> str:
        return f"{count}, {100 * count / rate.n:.1f} % ({100 * ends[0]:.1f} to {100 * ends[1]:.1f})"

    low, high = rate.difference_interval
    difference = f"{100 * rate.difference:+.1f} ({100 * low:.1f} to {100 * high:.1f})"
    return rate.name, str(rate.n), percent(rate.a, rate.a_interval), percent(rate.b, rate.b_interval), difference
