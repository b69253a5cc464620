"""The ledger as a file: Postgres' own `pg_dump` and `pg_restore`."""

from __future__ import annotations

import os
import shutil
import subprocess
from contextlib import suppress
from pathlib import Path

from sqlalchemy.engine import URL, make_url

from pipelines.services.daemons import ServiceFailed
from pipelines.services.postgres import host, postgres_binaries

OTHER_VERSION = "version mismatch"
"""What `pg_dump` says of a server that is newer than itself."""


def dump(url: str, snapshot: str, schema: str, file: Path) -> None:
    """Writes what `snapshot` of the database sees in `schema` into `file`, readable by the owner only."""
    file.touch(mode=0o600)
    options = ["--format=custom", "--no-owner", "--no-privileges", f"--schema={schema}", f"--snapshot={snapshot}"]
    _call("pg_dump", [*options, f"--file={file}"], url)


def load(url: str, schema: str, file: Path) -> None:
    """Brings what `file` has of `schema` into a database that has none of it: all or, on any error, nothing."""
    options = ["--single-transaction", "--exit-on-error", "--no-owner", "--no-privileges", f"--schema={schema}"]
    _call("pg_restore", [*options, str(file)], url)


def _call(program: str, options: list[str], url: str) -> None:
    """Calls a program of Postgres: the embedded server's, or, if the server is newer than it, the one on the PATH."""
    address, said = make_url(url), "it is not installed"
    known = URL.create(
        "postgresql", address.username, None, address.host, address.port, address.database, address.query
    )
    for binary in _binaries(program):
        done = subprocess.run(
            [binary, *options, f"--dbname={known.render_as_string()}"],
            env=os.environ | {"PGPASSWORD": address.password or ""},  # arguments are for everybody to read
            capture_output=True,
            text=True,
        )
        if done.returncode == 0:
            return
        said = next((line for line in done.stderr.splitlines() if "error:" in line), done.stderr.strip()[-300:])
        if OTHER_VERSION not in done.stderr:
            break
        said += f"; put the {program} of the server's version on the PATH"
    raise ServiceFailed(f"{program} of the ledger at {host(url)} failed: {said.strip()}")


def _binaries(program: str) -> list[str]:
    found = []
    with suppress(ServiceFailed):
        found.append(str(postgres_binaries() / program))
    if own := shutil.which(program):
        found.append(own)
    return found
