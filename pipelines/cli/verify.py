"""`packshot verify`: the ledger beside the store."""

from __future__ import annotations

from typing import Annotated

import typer

from pipelines.cli.console import AsJson, answer, err, table

app = typer.Typer()


@app.command()
def verify(
    read: Annotated[bool, typer.Option("--hash", help="Read every object too, and compare its bytes.")] = False,
    repair: Annotated[bool, typer.Option("--repair", help="Mend what can be mended.")] = False,
    as_json: AsJson = False,
) -> None:
    """Compare the store with the ledger: is every photo and every image there? The exit code is 1 if one is lost.

    A repair fetches photos again, and takes back the steps whose files are lost: the next run makes them anew.
    """
    from pipelines.ledger.postgres import PostgresLedger, connect
    from pipelines.runs.verify import verify as compare
    from pipelines.settings import get_settings
    from pipelines.store import S3Store

    settings = get_settings()
    with err.status("Comparing the store with the ledger") as status:
        found = compare(
            PostgresLedger(connect(settings.database_url)),
            S3Store(settings),
            settings,
            read,
            repair,
            lambda count: status.update(f"{count} objects read"),
        )
    rows = [(one.digest[:16], one.problem, one.made_by, one.sku, one.remedy) for one in found.lost]
    answer(
        as_json,
        found,
        f"{found.objects} objects, {len(found.lost)} of them lost",
        *([table("object", "problem", "made by", "SKU", "remedy", rows=rows)] if rows else []),
    )
    if any(one.open for one in found.lost):
        raise typer.Exit(1)
