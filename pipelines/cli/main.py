"""The `packshot` command. Each command imports what it needs when it runs, so that `--help` answers at once.

Exit codes: 0 done; 1 something failed; 2 wrong usage or input, also where every product was rejected. With `--json`
standard output holds one document and nothing else; progress and messages go to standard error.
"""

from __future__ import annotations

import errno
import os
import sys
from typing import Annotated

import typer

from pipelines.cli import (
    backup,
    channels,
    compare,
    decisions,
    experiment,
    measure,
    models,
    prune,
    revisions,
    runs,
    scenes,
    services,
    shoot,
    train,
    verify,
)
from pipelines.cli.console import print_error
from pipelines.errors import PackshotError, UsageError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_show_locals=False,
    rich_markup_mode="rich",
    help="Catalogue photos in, publishable scene images out, without altering the product.",
    epilog="Try one photo without any service: [bold]packshot shoot photo.jpg --scene oak-window --out shots[/bold]",
)
for part in (shoot, services, runs, compare, decisions, verify, backup, prune, train):
    app.add_typer(part.app)
models.app.add_typer(revisions.app)
for name, group in {
    "scenes": scenes,
    "channels": channels,
    "measure": measure,
    "models": models,
    "experiment": experiment,
}.items():
    app.add_typer(group.app, name=name)


@app.callback()
def _options(
    trust: Annotated[
        bool,
        typer.Option("--trust", help="Load model files whose sha256 no profile names, torch files among them."),
    ] = False,
) -> None:
    """Catalogue photos in, publishable scene images out, without altering the product."""
    if trust:
        from pipelines.settings import get_settings

        os.environ |= {"PACKSHOT_TRUST_UNPINNED": "1", "PACKSHOT_TRUST_PICKLE": "1"}
        get_settings.cache_clear()


def main() -> None:
    """Entry point. An error that a user can correct becomes one line and an exit code; a bug keeps its traceback."""
    try:
        app(standalone_mode=True)
    except UsageError as error:
        print_error(str(error))
        sys.exit(2)
    except PackshotError as error:
        print_error(str(error))
        sys.exit(1)
    except Exception as error:
        if not (message := _environment_error(error)):
            raise
        print_error(message)
        sys.exit(1)


def _environment_error(error: Exception) -> str:
    """One line on an error of the file system or of an unreachable service; "" for any other error."""
    from httpx import HTTPError, HTTPStatusError
    from minio.error import MinioException
    from sqlalchemy.exc import OperationalError
    from urllib3.exceptions import MaxRetryError

    services = "`packshot status` shows the services, `packshot up` starts the embedded ones"
    if isinstance(error, OperationalError) and getattr(error.orig, "pgcode", None) is None:  # it never got to talk
        said, *_ = str(error.orig).splitlines() or ["it hung up"]
        return f"the database does not answer ({said}); {services}"
    if isinstance(error, MaxRetryError):
        return f"{getattr(error.pool, 'host', '')}:{getattr(error.pool, 'port', '')} does not answer; {services}"
    if isinstance(error, MinioException):
        return f"the S3 store: {str(error).partition(', resource:')[0]}; check PACKSHOT_S3_*; {services}"
    if isinstance(error, HTTPStatusError):
        url, response = error.request.url.copy_with(userinfo=b""), error.response
        return f"{url} answers {response.status_code} {response.reason_phrase}"
    if isinstance(error, HTTPError):
        return f"the network: {str(error) or type(error).__name__}; {services}"
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):  # a write does not name its file
        where = error.filename or "the folder that this command writes to"
        return f"{where}: {error.strerror}: make room, and repeat the command"
    if isinstance(error, OSError) and error.filename and error.strerror:
        return f"{error.filename}: {error.strerror}"
    return ""


if __name__ == "__main__":
    main()
