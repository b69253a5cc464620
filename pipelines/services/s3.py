"""The embedded S3 store: SeaweedFS in one process, and a check whether a store is ready."""

from __future__ import annotations

import io
import sysconfig
from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.contracts import sha256_hex
from pipelines.services.daemons import Daemon, ensure, wait
from pipelines.services.installation import LOOPBACK, Installation
from pipelines.settings import Settings

if TYPE_CHECKING:
    from minio import Minio

PROBE = "probe"
"""Name and bytes of the object that tests a store. No digest has this name."""


def start_store(settings: Settings, installation: Installation) -> bool:
    """Starts SeaweedFS in one process. Every port but S3's own wants a certificate that only its parts have."""
    from pipelines.services.s3_security import secure  # with cryptography: `status` needs none of it

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
    security = secure(settings.state_dir / "s3-security")
    drawn = sha256_hex((security / "security.toml").read_bytes())  # a store that runs without it is restarted
    started = ensure(settings.state_dir, Daemon("s3", argv, env, cwd=security, code=drawn))
    client = store_client(settings)
    wait(settings.state_dir, "s3", lambda: store_answers(client, settings.s3_bucket, make=True), 90)
    return started


def store_client(settings: Settings) -> Minio:
    """A client that gives up on a dead endpoint within seconds, unlike the SDK's own pool."""
    import minio
    import urllib3

    pool = urllib3.PoolManager(timeout=urllib3.Timeout(connect=2, read=10), retries=urllib3.Retry(0))
    return minio.Minio(
        endpoint=settings.s3_endpoint,
        access_key=settings.s3_access_key,
        secret_key=settings.s3_secret_key.get_secret_value(),
        secure=settings.s3_secure,
        region=settings.s3_region,
        http_client=pool,
    )


def store_answers(client: Minio, bucket: str, make: bool = False) -> bool:
    """Whether an object can be put and got: SeaweedFS lists buckets before it can write. `make` creates the bucket."""
    from minio.error import MinioException
    from urllib3.exceptions import HTTPError

    data = PROBE.encode()  # always the same: two that ask at once are in nobody's way
    try:
        if make and not client.bucket_exists(bucket_name=bucket):
            client.make_bucket(bucket_name=bucket)
        client.put_object(bucket_name=bucket, object_name=PROBE, data=io.BytesIO(data), length=len(data))
        response = client.get_object(bucket_name=bucket, object_name=PROBE)
        try:
            return response.data == data
        finally:
            response.close()
    except (HTTPError, MinioException):
        return False
