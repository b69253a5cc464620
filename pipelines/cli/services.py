"""`packshot up | down | status`: the embedded Postgres, S3 store and Airflow."""

from __future__ import annotations

import dataclasses
import json
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from pipelines.cli.console import AsJson, answer, err, line, out, table
from pipelines.errors import UsageError

if TYPE_CHECKING:
    from pipelines.services import Status

app = typer.Typer()


class Executor(StrEnum):
    """Where Airflow's tasks run."""

    LOCAL = "local"
    CELERY = "celery"


@app.command()
def up(
    airflow: Annotated[bool, typer.Option("--airflow/--no-airflow", help="Airflow too.")] = True,
    executor: Annotated[
        Executor | None, typer.Option(help="Where tasks run: `local`, or `celery` with Redis and two workers.")
    ] = None,
    end_sheet_links: Annotated[
        bool, typer.Option("--end-sheet-links", help="Draw another key: every link to a contact sheet ends.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Start Postgres, the S3 store and Airflow, or restart what died. Their data stay where they were.

    A supervisor runs beside them and starts what dies again within a minute; `packshot status` shows what it did.
    """
    from pipelines import services
    from pipelines.settings import get_settings

    settings = get_settings()
    if executor is not None:
        settings = settings.model_copy(update={"executor": executor.value})
    if end_sheet_links and not airflow:
        raise UsageError("--end-sheet-links starts Airflow's API server with another key: leave out --no-airflow")
    if end_sheet_links and settings.sheet_key.get_secret_value():
        raise UsageError("PACKSHOT_SHEET_KEY is set, and has precedence: set another one to end the links")
    with err.status("Starting the services"):
        now = services.up(
            settings,
            airflow=airflow,
            supervised=True,
            end_sheet_links=end_sheet_links,
            report=lambda line: err.print(line, soft_wrap=True),
        )
    _show(now, as_json)


@app.command()
def down(as_json: AsJson = False) -> None:
    """Stop what `packshot up` started. The data stay."""
    from pipelines import services
    from pipelines.settings import get_settings

    stopped: list[str] = []
    with err.status("Stopping the services"):
        services.down(get_settings(), report=stopped.append)
    answer(as_json, {"stopped": stopped})
    if not as_json:
        err.print(f"stopped: {', '.join(stopped)}" if stopped else "nothing was running", soft_wrap=True)


@app.command()
def status(as_json: AsJson = False) -> None:
    """Show which services answer, and where they log. The exit code is 1 if one does not."""
    from pipelines import services
    from pipelines.settings import get_settings
    from pipelines.vision.reader import reading_state

    settings = get_settings()
    _show(services.status(settings), as_json, reading_state(settings))


def _show(now: Status, as_json: bool, *more: str) -> None:
    rows = [
        (one.name, line((one.state, "green" if one.state == "up" else "red")), one.address,
         one.detail if one.embedded else "not ours")
        for one in now.services
    ]  # fmt: skip
    with_airflow = any(one.name.startswith("airflow") for one in now.services)
    answer(
        as_json,
        {"healthy": now.healthy, **dataclasses.asdict(now)},
        table("service", "state", "address", "", rows=rows),
        *([f"Airflow: {now.ui}  log in as {_logins(now)}"] if with_airflow and now.ui else []),
        *_remedies(now),
        *more,
    )
    if not now.healthy:
        raise typer.Exit(1)


def _remedies(now: Status) -> list[str]:
    """Where the services log, and what to do about those that are not up."""
    if not now.set_up:
        return [f"Nothing is set up in {now.logs.parent}: `packshot up` starts the services"]
    away = {one.embedded for one in now.services if one.state != "up"}
    starts = ["`packshot up` starts what is down"] if True in away else []
    checks = ["A service that is not ours is away: check its address"] if False in away else []
    return [f"Logs: {now.logs}", *starts, *checks]


def _logins(now: Status) -> str:
    """Users and passwords on a terminal. A file or a pipe, which others may read, gets the name of the passwords'
    file instead."""
    if now.passwords is None or not now.passwords.exists():
        return f"{now.user} / …"
    logins = json.loads(now.passwords.read_text())
    if not out.is_terminal:
        return f"{' or '.join(logins)}; the passwords are in {now.passwords}"
    return " or ".join(f"{user} / {password}" for user, password in logins.items())
