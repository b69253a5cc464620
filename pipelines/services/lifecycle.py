"""Start, stop and check all services."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from pydantic import SecretStr

from pipelines.services.airflow_client import Airflow
from pipelines.services.airflow_server import (
    API_SERVER,
    COMPONENTS,
    DAG_PROCESSOR,
    TRIGGERER,
    health,
    start_airflow,
)
from pipelines.services.celery_workers import CELERY, REDIS, WORKERS, queues_of_workers, redis_answers, start_redis
from pipelines.services.daemons import ServiceFailed, ask_to_stop, ensure, log_file, one_at_a_time, process, stop
from pipelines.services.installation import LOOPBACK, Installation, free_port, port_is_free, write_private
from pipelines.services.postgres import database_answers, have_airflow_database, host, start_postgres
from pipelines.services.s3 import start_store, store_answers, store_client
from pipelines.services.supervisor import SUPERVISOR, last_word, supervisor
from pipelines.settings import Settings, environment_file, get_settings

AIRFLOW = (API_SERVER, *COMPONENTS)
DAEMONS = ("postgres", "s3", *AIRFLOW)

Report = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Service:
    """The state of one service: up, down or failing. `embedded` is False for an external service."""

    name: str
    state: str
    embedded: bool
    address: str
    detail: str = ""
    log: str = ""


@dataclass(frozen=True, slots=True)
class Status:
    """All services, and where to log in. `passwords` is a file (0600) with the passwords by user.

    `set_up` is False before the first `up`: it draws the addresses of the embedded services.
    """

    services: tuple[Service, ...]
    ui: str
    user: str
    passwords: Path | None
    logs: Path
    set_up: bool = True

    @property
    def healthy(self) -> bool:
        """Every service is up."""
        return all(service.state == "up" for service in self.services)


def up(
    settings: Settings,
    *,
    airflow: bool = True,
    supervised: bool = False,
    end_sheet_links: bool = False,
    report: Report = lambda line: None,
) -> Status:
    """Starts or restarts every service that does not run, and migrates the schemas.

    A later `up` keeps the executor, unless the settings name another one. `airflow` False leaves Airflow out (tests of
    the ledger and the store). `supervised` starts a process that starts again what dies. `end_sheet_links` draws
    another key for links to contact sheets, which ends them. `report` gets a line a service. Takes seconds if
    everything runs. Raises ServiceFailed.
    """
    state_dir = settings.state_dir

    def timed(name: str, start: Callable[[], bool]) -> bool:
        since = time.monotonic()
        started = start()
        report(f"{name}: {'started' if started else 'was running'} ({time.monotonic() - since:.1f} s)")
        return started

    with one_at_a_time(state_dir):
        # 1. Ports and credentials; what the environment names is somebody else's
        installation = Installation.read(state_dir)
        settings = _without_embedded(settings, installation)
        _redraw_taken_ports(state_dir, installation)
        if end_sheet_links:
            installation.draw_sheet_key()
        installation.write(state_dir)
        embedded = _embedded(settings)
        settings = _connected(settings, installation)

        # 2. Postgres and the store
        if "postgres" in embedded:
            if timed("postgres", lambda: start_postgres(settings, installation)):
                for name in (*AIRFLOW, *WORKERS):  # what survived the server dies of it later, while it is waited for
                    stop(state_dir, name)
        elif not database_answers(settings.database_url):
            raise ServiceFailed(
                f"Postgres at {host(settings.database_url)} lets nobody in: check PACKSHOT_DATABASE_URL"
            )
        if "s3" in embedded:
            timed("s3", lambda: start_store(settings, installation))
        elif not store_answers(store_client(settings), settings.s3_bucket, make=True):
            raise ServiceFailed(f"the store at {settings.s3_endpoint} takes no object: check PACKSHOT_S3_*")
        write_private(environment_file(state_dir), _environment_text(settings, embedded))
        migrate_ledger(settings)

        # 3. Airflow on top of them
        if airflow and "airflow" in embedded:
            if "postgres" not in embedded:
                have_airflow_database(settings)
            if settings.executor == "celery":
                timed("redis", lambda: start_redis(settings, installation))
            else:
                for name in reversed(CELERY):
                    stop(state_dir, name)
            timed("airflow", lambda: start_airflow(settings, installation, report))

        # 4. Who starts them again
        if supervised:
            airflows = (*AIRFLOW, *(CELERY if settings.executor == "celery" else ())) if airflow else ()
            watched = [name for name in ("postgres", "s3", *airflows) if process(state_dir, name)]
            ours = _written(embedded)  # it reads them in the file, as they are by then
            given = {name: value for name, value in settings.environment().items() if name not in ours}
            timed(SUPERVISOR, lambda: ensure(state_dir, supervisor(given, watched)))
    get_settings.cache_clear()
    return status(settings, airflow=airflow)


def with_embedded(settings: Settings) -> Settings:
    """`settings` with the addresses of the embedded services where none is given, the ledger's owner's among them."""
    if not is_set_up(settings.state_dir):
        return settings
    installation = Installation.read(settings.state_dir)
    return _connected(_without_embedded(settings, installation), installation)


def migrate_ledger(settings: Settings) -> None:
    """Migrates as the owner. The user of `database_url` gets a worker's rights, where it is another."""
    from psycopg2.errors import InsufficientPrivilege
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ProgrammingError

    from pipelines.ledger.schema import migrate

    owner = settings.owner_database_url or settings.database_url
    worker = make_url(settings.database_url).username or ""
    try:
        migrate(owner, worker if worker != make_url(owner).username else "")
    except ProgrammingError as error:
        if not isinstance(error.orig, InsufficientPrivilege):
            raise
        raise ServiceFailed(
            f"user {make_url(owner).username!r} is not the owner of the ledger at {host(owner)} and cannot migrate it: "
            "set PACKSHOT_OWNER_DATABASE_URL to the owner's address"
        ) from error


def down(settings: Settings, *, report: Report = lambda line: None) -> None:
    """Stops everything that `up` started, in reverse order. The data stay. `report` gets each service's name."""
    if not settings.state_dir.exists():
        return
    with one_at_a_time(settings.state_dir):
        stop(settings.state_dir, SUPERVISOR)  # else it starts again what is stopped here
        # Airflow's own at once: each takes seconds
        asked = [name for name in (*AIRFLOW, *WORKERS) if ask_to_stop(settings.state_dir, name)]
        for name in reversed((*DAEMONS, *CELERY)):
            if stop(settings.state_dir, name) or name in asked:
                report(name)


def status(settings: Settings, *, airflow: bool = True) -> Status:
    """Checks which services answer; without Airflow if `airflow` is False. Starts nothing."""
    state_dir, installation = settings.state_dir, Installation.read(settings.state_dir)
    embedded = _embedded(_without_embedded(settings, installation))
    settings = _connected(settings, installation)
    set_up = is_set_up(state_dir) or not embedded

    def service(name: str, own: bool, address: str, answers: Callable[[], bool], detail: str = "") -> Service:
        running = not own or process(state_dir, name) is not None  # else nobody is there to be asked
        state = "up" if running and answers() else "failing" if running else "down"
        address = address if set_up or not own else ""
        return Service(name, state, own, address, detail, str(log_file(state_dir, name)) if own else "")

    services = [
        service(
            "postgres",
            "postgres" in embedded,
            host(settings.database_url),
            lambda: database_answers(settings.database_url),
        ),
        service(
            "s3",
            "s3" in embedded,
            settings.s3_endpoint,
            lambda: store_answers(store_client(settings), settings.s3_bucket),
            f"bucket {settings.s3_bucket}",
        ),
    ]
    if airflow:
        with Airflow(settings, timeout=10) as api:
            found = health(api)
            read = f"{len(api.dag_ids())} DAGs, {len(api.import_errors())} import errors" if found else ""
        for name, component in {API_SERVER: "metadatabase", **COMPONENTS}.items():
            if name == TRIGGERER and "airflow" not in embedded:
                continue  # somebody else's may have none: no DAG of packshot's defers a task
            detail = read if name == DAG_PROCESSOR else ""
            answers = partial("healthy".__eq__, found.get(component, ""))  # asked above, for all at once
            services.append(service(name, "airflow" in embedded, settings.airflow_url, answers, detail))
        if "airflow" in embedded and settings.executor == "celery":
            address = f"{LOOPBACK}:{installation.redis_port}"
            services.append(service(REDIS, True, address, lambda: redis_answers(installation)))
            queues = queues_of_workers(installation) if services[-1].state == "up" else {}
            for name in WORKERS:
                detail = f"queues {', '.join(queues[name])}" if name in queues else ""
                services.append(service(name, True, "", partial(queues.__contains__, name), detail))
    if (state_dir / "run" / f"{SUPERVISOR}.json").exists():
        services.append(service(SUPERVISOR, True, "", lambda: True, last_word(state_dir)))
    passwords = state_dir / "airflow" / "passwords.json" if "airflow" in embedded else None
    ui = settings.airflow_url if set_up or "airflow" not in embedded else ""
    return Status(tuple(services), ui, settings.airflow_user, passwords, state_dir / "logs", set_up)


def is_set_up(state_dir: Path) -> bool:
    """Whether an `up` drew the ports and credentials of the embedded services there."""
    return (state_dir / "services.json").exists()


def _without_embedded(settings: Settings, installation: Installation) -> Settings:
    """`settings` without the embedded addresses that an earlier `up` left in the environment file."""
    ours = {"database_url", "owner_database_url", "airflow_database_url", "s3_endpoint", "airflow_url"}
    update = {name: "" for name in ours if getattr(settings, name) == getattr(installation, name)}
    if settings.database_url == installation.owner_database_url:  # left by an `up` before there was a worker's role
        update["database_url"] = ""
    return settings.model_copy(update=update)


def _embedded(settings: Settings) -> set[str]:
    """The services that are ours to start, of settings `_without_embedded`."""
    addresses = {"postgres": settings.database_url, "s3": settings.s3_endpoint, "airflow": settings.airflow_url}
    return {name for name, address in addresses.items() if not address}


def _connected(settings: Settings, installation: Installation) -> Settings:
    """`settings` with the addresses of the embedded services where none is given."""
    update: dict[str, object] = {}
    if not settings.database_url:
        update["database_url"] = installation.database_url
        update["owner_database_url"] = installation.owner_database_url
    if not settings.airflow_database_url:
        update["airflow_database_url"] = installation.airflow_database_url
        if settings.database_url:
            from sqlalchemy.engine import make_url

            beside = make_url(settings.database_url).set(database="airflow")
            update["airflow_database_url"] = beside.render_as_string(hide_password=False)
    if not settings.s3_endpoint:
        update["s3_endpoint"] = installation.s3_endpoint
        update["s3_access_key"] = installation.s3_access_key
        update["s3_secret_key"] = SecretStr(installation.s3_secret_key)
    if not settings.airflow_url:
        update["airflow_url"] = installation.airflow_url
        update["airflow_user"] = "admin"
        update["airflow_password"] = SecretStr(installation.admin_password)
    return settings.model_copy(update=update)


def _redraw_taken_ports(state_dir: Path, installation: Installation) -> None:
    """Draws new ports for those that another process took, for instance after a reboot."""
    if not process(state_dir, "postgres") and not port_is_free(installation.postgres_port):
        installation.postgres_port = free_port()
    if not process(state_dir, "s3") and not all(map(port_is_free, installation.s3_ports)):
        installation.s3_ports = [free_port() for _ in range(5)]
    if not process(state_dir, "airflow-api-server") and not port_is_free(installation.airflow_port):
        installation.airflow_port = free_port()
    if not process(state_dir, REDIS) and not port_is_free(installation.redis_port):
        installation.redis_port = free_port()


def _environment_text(settings: Settings, embedded: set[str]) -> str:
    """Lines of the environment file: the embedded services only. External credentials are never written."""
    variables, kept = settings.environment(), _written(embedded)
    return "".join(f"{name}={variables[name]}\n" for name in kept if name in variables)


def _written(embedded: set[str]) -> list[str]:
    """The variables that `up` writes for these services."""
    names = {
        "postgres": ("database_url", "airflow_database_url"),
        "s3": ("s3_endpoint", "s3_access_key", "s3_secret_key"),
        "airflow": ("airflow_url", "airflow_user", "airflow_password", "executor"),
    }
    return [f"PACKSHOT_{name.upper()}" for service in sorted(embedded) for name in names[service]]
