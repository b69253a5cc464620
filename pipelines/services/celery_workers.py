"""Redis and two Celery workers on this machine, for the embedded Airflow with `PACKSHOT_EXECUTOR=celery`.

Redis is Debian's. It listens on the loopback interface and wants a password, which stands in no command line. Both
workers take tasks of both queues, so that one ends what the other leaves behind.
"""

from __future__ import annotations

import importlib.metadata
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path

from pipelines.errors import UsageError
from pipelines.services.daemons import Daemon, ensure, wait
from pipelines.services.installation import LOOPBACK, Installation, write_private
from pipelines.settings import Settings

REDIS = "redis"
WORKERS = ("airflow-worker-1", "airflow-worker-2")
CELERY = (REDIS, *WORKERS)

QUEUES = ("gpu", "default")
"""Tasks in pool `gpu` are in queue `gpu`, all others in `default`."""


def celery_environment(settings: Settings, installation: Installation) -> dict[str, str]:
    """Airflow's configuration of the executor, its broker and the workers."""
    return {
        "AIRFLOW__CORE__EXECUTOR": "CeleryExecutor",
        "AIRFLOW__OPERATORS__DEFAULT_QUEUE": "default",
        "AIRFLOW__CELERY__BROKER_URL": installation.redis_url,
        "AIRFLOW__CELERY__WORKER_CONCURRENCY": str(-(-settings.airflow_parallelism // len(WORKERS))),
        "AIRFLOW__CELERY__WORKER_PREFETCH_MULTIPLIER": "1",  # a waiting task is the other worker's as well
    }


def start_redis(settings: Settings, installation: Installation) -> bool:
    """Starts Redis. Raises UsageError if it, or Celery, is not installed."""
    try:
        importlib.metadata.version("apache-airflow-providers-celery")
    except importlib.metadata.PackageNotFoundError as error:
        raise UsageError("PACKSHOT_EXECUTOR=celery needs the extra `celery`: pip install 'packshot[celery]'") from error
    program = shutil.which("redis-server")
    if program is None:
        raise UsageError("PACKSHOT_EXECUTOR=celery needs Redis: apt-get install redis-server")
    folder = settings.state_dir / "redis"
    folder.mkdir(mode=0o700, exist_ok=True)
    lines = {
        "bind": LOOPBACK,
        "port": str(installation.redis_port),
        "requirepass": installation.redis_password,
        "dir": f'"{folder}"',
        "appendonly": "yes",  # tasks that are queued outlive Redis
        "save": '""',
        "daemonize": "no",
    }
    config = folder / "redis.conf"
    write_private(config, "".join(f"{name} {value}\n" for name, value in lines.items()))
    started = ensure(settings.state_dir, Daemon(REDIS, [program, str(config)], code=config.read_text("utf-8")))
    wait(settings.state_dir, REDIS, lambda: redis_answers(installation), 30)
    return started


def redis_answers(installation: Installation) -> bool:
    """Whether Redis is there and knows our password."""
    from redis import Redis
    from redis.exceptions import RedisError

    try:
        with Redis.from_url(installation.redis_url, socket_timeout=5) as client:
            return bool(client.ping())
    except RedisError:
        return False


def start_workers(settings: Settings, env: Mapping[str, str]) -> list[bool]:
    """Starts the workers that do not run; returns of each whether it was started. `wait_for_workers` waits."""
    return [ensure(settings.state_dir, _worker(settings.state_dir, name, env)) for name in WORKERS]


def wait_for_workers(settings: Settings, installation: Installation) -> None:
    """Returns when both workers take tasks. Raises ServiceFailed if one does not."""
    for name in WORKERS:
        wait(settings.state_dir, name, lambda name=name: name in queues_of_workers(installation), 180)  # type: ignore[misc]


def queues_of_workers(installation: Installation, seconds: float = 1.0) -> dict[str, list[str]]:
    """The queues of each worker that answers within that time."""
    from celery import Celery
    from kombu.exceptions import OperationalError

    with Celery(broker=installation.redis_url, set_as_current=False) as app:
        app.conf.broker_connection_timeout = seconds
        try:
            answers = app.control.inspect(timeout=seconds).active_queues() or {}
        except OperationalError:
            return {}
    return {name.partition("@")[0]: sorted(queue["name"] for queue in queues) for name, queues in answers.items()}


def _worker(state_dir: Path, name: str, env: Mapping[str, str]) -> Daemon:
    options = ["--celery-hostname", f"{name}@%h", "--queues", ",".join(QUEUES), "--skip-serve-logs", "--without-gossip"]
    pid = str(state_dir / "run" / f"{name}.pid")
    return Daemon(name, [sys.executable, "-m", "airflow", "celery", "worker", *options, "--pid", pid], env)
