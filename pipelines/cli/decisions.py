"""`packshot decisions`: what people decided about images, as a CSV."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipelines.cli.console import AsJson, answer

app = typer.Typer()


@app.command()
def decisions(
    out: Annotated[Path, typer.Option("--out", "-o", help="The CSV to write.")],
    run_id: Annotated[str, typer.Option("--run", help="Only images that this run held, or latest.")] = "",
    scene: Annotated[str, typer.Option(help="Only images of this scene.")] = "",
    channel: Annotated[str, typer.Option(help="Only images for this channel.")] = "",
    sku: Annotated[str, typer.Option(help="Only images of this product.")] = "",
    check: Annotated[str, typer.Option(help="Only images that this check held; `spot_check`: answers to those.")] = "",
    as_json: AsJson = False,
) -> None:
    """Write what people decided about images as a CSV: who, when, what, why, and who undid it.

    The newest decision comes first. Text that a spreadsheet would compute begins with an apostrophe.
    """
    from more_itertools import countable

    from pipelines.ledger.decisions import DecisionFilter, list_decisions
    from pipelines.ledger.postgres import connect
    from pipelines.ledger.reports import latest_run, run_params
    from pipelines.runs.decision_list import decisions_csv
    from pipelines.settings import get_settings

    settings = get_settings()
    engine = connect(settings.database_url)
    run = latest_run(engine, settings.state_dir) if run_id == "latest" else run_id
    if run:
        run_params(engine, run)  # an unknown run is an error, not an empty list
    found = countable(list_decisions(engine, DecisionFilter(run, scene, channel, sku, check)))
    partial = out.with_name(f".{out.name}.part")
    with partial.open("wb") as file:
        file.writelines(decisions_csv(found))
    partial.replace(out)
    answer(as_json, {"decisions": found.items_seen, "file": out}, f"{found.items_seen} decisions in {out}")
