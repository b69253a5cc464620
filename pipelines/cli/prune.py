"""`packshot prune | prune-airflow`: what nothing needs any more leaves the store, and Airflow's history."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.filesize import decimal

from pipelines.cli.console import AsJson, answer, err, progress_bar, table

app = typer.Typer()


@app.command()
def prune(
    older_than: Annotated[
        int, typer.Option("--older-than", metavar="DAYS", min=1, help="Keep what was needed within so many days.")
    ] = 30,
    grace: Annotated[
        int, typer.Option("--grace", metavar="DAYS", min=1, help="Keep objects that no row names for so many days.")
    ] = 7,
    keep: Annotated[
        list[str] | None, typer.Option("--keep", metavar="KIND", help="Keep all that this stage made, or `orphan`.")
    ] = None,
    apply: Annotated[bool, typer.Option("--apply", help="Remove it; without this, only list it.")] = False,
    as_json: AsJson = False,
) -> None:
    """List or remove what nothing needs any more: superseded and unused images of old runs, and orphans.

    What is published, decided, waiting for review or current stays. What is removed is made anew if a run wants it.
    """
    from pipelines.ledger.postgres import PostgresLedger, connect
    from pipelines.runs.prune import prune as remove
    from pipelines.settings import get_settings
    from pipelines.store import S3Store

    settings = get_settings()
    with progress_bar() as progress:
        bar = progress.add_task("Listing the store", total=None, note="")

        def show(doing: str, count: int, total: int | None) -> None:
            progress.update(bar, description=doing, completed=count, total=total)

        found = remove(
            PostgresLedger(connect(settings.database_url)),
            S3Store(settings),
            older_than,
            grace,
            keep or [],
            apply,
            show,
        )
    rows = [(kind.made_by, kind.role, kind.objects, decimal(kind.bytes)) for kind in found.kinds]
    total = f"{found.objects} objects, {decimal(found.bytes)}"
    answer(
        as_json,
        found,
        *([table("made by", "role", "objects", "size", rows=rows)] if rows else []),
        f"{total}: {found.removed} removed" if apply else f"{total} can be removed: add --apply",
    )


@app.command("prune-airflow")
def prune_airflow(
    older_than: Annotated[
        int, typer.Option("--older-than", metavar="DAYS", min=7, help="Keep the history of so many days.")
    ] = 90,
    apply: Annotated[bool, typer.Option("--apply", help="Remove it; without this, only list it.")] = False,
    as_json: AsJson = False,
) -> None:
    """List or remove old history of the embedded Airflow: its runs, their tasks and logs.

    The ledger keeps what was made, reused, held or rejected: `packshot report` shows old runs as before.
    """
    from pipelines.services.airflow_history import old_history
    from pipelines.settings import get_settings

    with err.status("Looking through Airflow's history"):
        found = old_history(get_settings(), older_than, apply)
    rows = [*found.rows.items(), *([(f"task logs, {decimal(found.bytes)}", found.logs)] if found.logs else [])]
    total = sum(found.rows.values())
    said = f"{total} rows and {found.logs} logs older than {older_than} days"
    answer(
        as_json,
        found,
        *([table("what", "number", rows=rows)] if rows else []),
        f"{said}: removed" if apply else f"{said} can be removed: add --apply",
    )
