"""The ports and random credentials of the embedded services, drawn once and kept."""

from __future__ import annotations

import json
import os
import random
import secrets
import socket
from base64 import urlsafe_b64encode
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

LOOPBACK = "127.0.0.1"
WORKER = "packshot_worker"
"""The role that reads and inserts in the embedded ledger."""
PORTS = range(15_000, 22_000)  # below the kernel's ephemeral ports, and so is the gRPC port that SeaweedFS adds
GRPC_OFFSET = 10_000


def free_port() -> int:
    """A free port of PORTS."""
    return next(port for port in random.sample(PORTS, len(PORTS)) if port_is_free(port))


def port_is_free(port: int) -> bool:
    """Whether `port` is free, and the gRPC port that SeaweedFS derives from it."""
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
    """Ports and credentials of the embedded services: drawn at the first `up`, kept in `services.json`."""

    postgres_port: int = field(default_factory=free_port)
    postgres_password: str = field(default_factory=_password)  # of the superuser, for `up` alone
    packshot_password: str = field(default_factory=_password)  # of the ledger's owner, likewise
    worker_password: str = field(default_factory=_password)
    airflow_database_password: str = field(default_factory=_password)
    s3_ports: list[int] = field(default_factory=lambda: [free_port() for _ in range(5)])
    s3_access_key: str = field(default_factory=_password)
    s3_secret_key: str = field(default_factory=_password)
    airflow_port: int = field(default_factory=free_port)
    redis_port: int = field(default_factory=free_port)
    redis_password: str = field(default_factory=_password)
    admin_password: str = field(default_factory=_password)
    merchandiser_password: str = field(default_factory=_password)
    viewer_password: str = field(default_factory=_password)
    fernet_key: str = field(default_factory=lambda: urlsafe_b64encode(secrets.token_bytes(32)).decode())
    api_secret_key: str = field(default_factory=_password)
    sheet_key: str = field(default_factory=_password)
    jwt_secret: str = field(default_factory=lambda: secrets.token_urlsafe(64))  # as long as HS512's digest: 64 bytes

    @classmethod
    def read(cls, state_dir: Path) -> Installation:
        """The installation in `state_dir`, or a new one. A field that an older version did not draw is drawn now."""
        path = state_dir / "services.json"
        known = json.loads(path.read_text()) if path.exists() else {}
        names = {f.name for f in fields(cls)}
        return cls(**{name: value for name, value in known.items() if name in names})

    def draw_sheet_key(self) -> None:
        """Draws another key for links to contact sheets: those that were made end."""
        self.sheet_key = _password()

    def write(self, state_dir: Path) -> None:
        """Writes it, readable by the owner only."""
        write_private(state_dir / "services.json", json.dumps(asdict(self), indent=1))

    @property
    def database_url(self) -> str:
        """SQLAlchemy URL of the ledger in the embedded Postgres, for everything but migrations."""
        return f"postgresql+psycopg2://{WORKER}:{self.worker_password}@{LOOPBACK}:{self.postgres_port}/packshot"

    @property
    def owner_database_url(self) -> str:
        """SQLAlchemy URL of the ledger's owner there, who migrates."""
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
    def redis_url(self) -> str:
        """Address of the embedded Redis, password included."""
        return f"redis://:{self.redis_password}@{LOOPBACK}:{self.redis_port}/0"

    @property
    def airflow_url(self) -> str:
        """Base URL of the embedded Airflow."""
        return f"http://{LOOPBACK}:{self.airflow_port}"


def write_private(path: Path, text: str) -> None:
    """Replace `path` by `text`, mode 0600 from its first byte on."""
    temporary = path.with_name(path.name + ".new")
    temporary.unlink(missing_ok=True)
    with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)
    temporary.replace(path)
