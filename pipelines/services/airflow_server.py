"""The embedded Airflow: api-server, scheduler, dag-processor and triggerer; configured by environment alone.

Tasks are the scheduler's own processes (LocalExecutor), or those of Celery workers.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import httpx

from pipelines.errors import Unavailable, UsageError
from pipelines.services.airflow_client import Airflow
from pipelines.services.celery_workers import celery_environment, start_workers, wait_for_workers
from pipelines.services.daemons import Daemon, ServiceFailed, ensure, log_file, process, stop, wait
from pipelines.services.installation import LOOPBACK, Installation, write_private
from pipelines.settings import ROOT, Settings

API_SERVER, SCHEDULER, DAG_PROCESSOR = "airflow-api-server", "airflow-scheduler", "airflow-dag-processor"
TRIGGERER = "airflow-triggerer"

COMPONENTS = {SCHEDULER: "scheduler", DAG_PROCESSOR: "dag_processor", TRIGGERER: "triggerer"}
"""Process → its name in Airflow's health."""

ROLES = {"admin": "admin", "merchandiser": "user", "viewer": "viewer"}
"""Airflow's role of each account: a `user` may start and stop runs, a `viewer` may look."""


def airflow_environment(settings: Settings, installation: Installation) -> dict[str, str]:
    """Airflow's configuration, all of it by environment. `settings` name the services, as after `up`.

    One api-server worker and few task processes, because the whole demo fits in 7 GB.
    """
    home = settings.state_dir / "airflow"
    url = settings.airflow_url or installation.airflow_url
    options: dict[str, dict[str, object]] = {
        "core": {
            "dags_folder": ROOT / "dags",
            "plugins_folder": ROOT / "plugins",
            "load_examples": False,
            "executor": "LocalExecutor",
            "parallelism": settings.airflow_parallelism,
            "dags_are_paused_at_creation": False,  # runs of a paused DAG stay queued; Settings.nightly_schedule is off
            "fernet_key": installation.fernet_key,
            "execution_api_server_url": f"{url}/execution/",
            "auth_manager": "airflow.api_fastapi.auth.managers.simple.simple_auth_manager.SimpleAuthManager",
            "simple_auth_manager_users": ",".join(f"{name}:{role}" for name, role in ROLES.items()),
            "simple_auth_manager_passwords_file": home / "passwords.json",
        },
        "database": {"sql_alchemy_conn": settings.airflow_database_url},
        "api": {
            "base_url": url,
            "secret_key": installation.api_secret_key,
            "expose_config": False,
            "expose_stacktrace": False,
            "workers": 1,
        },
        "api_auth": {"jwt_secret": installation.jwt_secret},
        "dag_processor": {"refresh_interval": 10, "bundle_refresh_check_interval": 5, "parsing_processes": 1},
        "logging": {"base_log_folder": settings.state_dir / "logs" / "tasks"},
        "scheduler": {
            "enable_health_check": False,
            # a task whose worker or scheduler was killed runs again after a minute, not after six: half a minute until
            # it counts as lost, and the first pause before a retry (operators.policy)
            "task_instance_heartbeat_timeout": 30,
            "task_instance_heartbeat_timeout_detection_interval": 5,
            "orphaned_tasks_check_interval": 30,
        },
        "usage_data_collection": {"enabled": False},
    }
    variables = {
        f"AIRFLOW__{section.upper()}__{name.upper()}": str(value)
        for section, values in options.items()
        for name, value in values.items()
    }
    return {
        **variables,
        **settings.model_copy(update={"airflow_database_url": ""}).environment(),
        # empty, so that neither the environment of `packshot up` nor its file gives them to a task
        "PACKSHOT_AIRFLOW_PASSWORD": "",
        "PACKSHOT_OWNER_DATABASE_URL": "",
        "PACKSHOT_SHEET_KEY": "",
        "PACKSHOT_WATCH_USER": "viewer",  # the watch over the runs reads; a task can do no more with it
        "PACKSHOT_WATCH_PASSWORD": installation.viewer_password,
        "AIRFLOW_HOME": str(home),
        "PYTHONPATH": str(ROOT),
        "MALLOC_ARENA_MAX": "2",
        "GX_ANALYTICS_ENABLED": "false",
    }


def start_airflow(settings: Settings, installation: Installation, report: Callable[[str], None]) -> bool:
    """Migrates the metadata, starts what does not run, creates pool `gpu`. Returns whether anything was started."""
    home = settings.state_dir / "airflow"
    home.mkdir(mode=0o700, exist_ok=True)
    passwords = {
        "admin": installation.admin_password,
        "merchandiser": installation.merchandiser_password,
        "viewer": installation.viewer_password,
    }
    write_private(home / "passwords.json", json.dumps(passwords))
    env = airflow_environment(settings, installation)
    _migrate_metadata(settings, env, report)

    celery = settings.executor == "celery"
    executing = env | (celery_environment(settings, installation) if celery else {})

    airflow = [sys.executable, "-m", "airflow"]
    serving = env | {"PACKSHOT_SHEET_KEY": settings.sheet_key.get_secret_value() or installation.sheet_key}
    server = ["api-server", "--host", LOOPBACK, "--port", str(installation.airflow_port)]
    daemons = (
        Daemon(API_SERVER, [*airflow, *server], serving, code=_digest(ROOT / "plugins")),
        Daemon(SCHEDULER, [*airflow, "scheduler", "--skip-serve-logs"], executing),
        Daemon(DAG_PROCESSOR, [*airflow, "dag-processor"], env),
        Daemon(TRIGGERER, [*airflow, "triggerer", "--skip-serve-logs"], env),
    )
    with Airflow(settings) as api:
        for name in mute(api):  # its process lives and works no more
            stop(settings.state_dir, name)
        started = [ensure(settings.state_dir, daemon) for daemon in daemons]
        if celery:
            started += start_workers(settings, executing)
        wait(settings.state_dir, API_SERVER, lambda: bool(health(api)), 180)
        api.warm_up()
        api.set_pool("gpu", settings.gpu_slots, "One slot per GPU")
        for name in COMPONENTS:
            wait(settings.state_dir, name, lambda name=name: _beats(api, name, settings), 180)  # type: ignore[misc]
        if celery:
            wait_for_workers(settings, installation)
        files = len(list((ROOT / "dags").glob("*.py")))  # each is a DAG or an import error, once it was read
        wait(settings.state_dir, DAG_PROCESSOR, lambda: len(api.dag_ids()) + len(api.import_errors()) >= files, 120)
    return any(started)


def health(api: Airflow) -> dict[str, str]:
    """`Airflow.health`, empty where Airflow does not answer."""
    try:
        return api.health()
    except (UsageError, Unavailable, httpx.HTTPError):
        return {}


def mute(api: Airflow) -> list[str]:
    """Processes whose last heartbeat Airflow calls too old; none where Airflow does not answer."""
    found = health(api)
    return [name for name, component in COMPONENTS.items() if found.get(component) == "unhealthy"]


def _beats(api: Airflow, name: str, settings: Settings) -> bool:
    """Whether the running process sent its component's last heartbeat, and not a predecessor that was killed."""
    beat, running = api.heartbeats().get(COMPONENTS[name]), process(settings.state_dir, name)
    return beat is not None and running is not None and beat.timestamp() >= running.create_time()


def _digest(folder: Path) -> str:
    """One digest over the Python files, templates and styles of a folder."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.suffix != ".pyc":
            digest.update(path.read_bytes())
    return digest.hexdigest()


def _migrate_metadata(settings: Settings, env: Mapping[str, str], report: Callable[[str], None]) -> None:
    """Runs `airflow db migrate`, unless this version already migrated this database: it takes many seconds."""
    version = importlib.metadata.version("apache-airflow-core")
    mark = settings.state_dir / "airflow" / "migrated.json"
    done = {"version": version, "database": hashlib.sha256(settings.airflow_database_url.encode()).hexdigest()}
    if mark.exists() and json.loads(mark.read_text()) == done:
        return
    report(f"airflow: preparing its metadata for {version}")
    with log_file(settings.state_dir, "airflow-migrate").open("ab") as log:
        argv = [sys.executable, "-m", "airflow", "db", "migrate"]
        code = subprocess.run(argv, env={**os.environ, **env}, cwd=ROOT, stdout=log, stderr=log).returncode
    if code != 0:
        raise ServiceFailed(f"airflow db migrate failed: see {log.name}")
    write_private(mark, json.dumps(done))
