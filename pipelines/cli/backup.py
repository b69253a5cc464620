"""`packshot backup | restore`: ledger and store as one point in time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.filesize import decimal

from pipelines.cli.console import AsJson, answer, err, progress_bar

app = typer.Typer()

Folder = Annotated[Path, typer.Argument(metavar="FOLDER", help="Folder of the backup.")]


@app.command()
def backup(folder: Folder, as_json: AsJson = False) -> None:
    """Write ledger and store, as they are at this moment, into a folder. Packshot may work meanwhile.

    A later backup into the same folder copies only new objects. The exit code is 1 if an object is lost.
    """
    from pipelines.runs.backup import backup as write
    from pipelines.settings import get_settings

    with _shown("Reading the ledger") as show:
        made = write(folder, get_settings(), show)
    answer(
        as_json,
        made,
        f"{made.objects} objects, {decimal(made.bytes)}, {made.copied} of them new: "
        f"ledger and store as of {made.taken_at} in {folder}",
    )
    if made.lost:
        err.print(
            f"{len(made.lost)} objects are lost and not in the backup; `packshot verify --hash` names them, and what "
            "to do",
            soft_wrap=True,
        )
        raise typer.Exit(1)


@app.command()
def restore(folder: Folder, as_json: AsJson = False) -> None:
    """Bring a backup into an empty installation, whose Postgres and store run.

    Start them before with `packshot up --no-airflow`. The exit code is 1 if the backup has lost an object.
    """
    from pipelines.runs.backup import restore as bring
    from pipelines.settings import get_settings

    with _shown("Reading the backup") as show:
        done = bring(folder, get_settings(), show)
    answer(
        as_json,
        done,
        f"{done.objects} objects, {decimal(done.bytes)}, {done.copied} of them new: "
        f"ledger and store are as of {done.taken_at}",
    )
    if done.lost:
        err.print(
            f"{len(done.lost)} objects are missing or damaged in the backup; `packshot verify --repair` takes back the "
            "steps that made them",
            soft_wrap=True,
        )
        raise typer.Exit(1)


@contextmanager
def _shown(doing: str) -> Iterator[Callable[[str, int, int | None], None]]:
    with progress_bar() as progress:
        bar = progress.add_task(doing, total=None, note="")

        def show(doing: str, count: int, total: int | None) -> None:
            progress.update(bar, description=doing, completed=count, total=total)

        yield show
