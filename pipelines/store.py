"""Content-addressed bytes: an object's name is the sha256 of what it holds. Written once, verified when read.

`S3Store` speaks to any S3 server through the MinIO SDK (conditional writes are not needed: whoever writes a name
writes the same bytes). `FolderStore` keeps the same contract in a directory, for a designer's own machine. Putting
bytes whose object is damaged mends it.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.contracts import sha256_hex
from pipelines.errors import IntegrityError

if TYPE_CHECKING:
    from minio.datatypes import Object

    from pipelines.settings import Settings

ONE_PART = 5 * 2**30
"""Bytes that S3 takes in one request: of an object sent in several, the ETag is not the MD5."""

ASKED_AT_ONCE = 8
"""Requests on their way at the same time, as many as the client keeps connections."""

FEW_IN_A_FOLDER = 4
"""Digests in a folder up to which each is asked for: listing it costs a few requests' time."""

LISTED_FOR_ONE = 10
"""Names in a listing that cost as much as asking for one object."""

PREFIX = "sha256/"
DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Stat:
    """What the store knows of an object without reading it. `size` in bytes."""

    sha256: str
    media_type: str
    size: int


@dataclass(frozen=True, slots=True)
class Checked:
    """One object of `verify_all`: `sha256` is of what was read; `ok` where that is the object's name."""

    name: str
    sha256: str
    size: int

    @property
    def ok(self) -> bool:
        """The bytes are what their name says."""
        return self.name == object_name(self.sha256)


def object_name(digest: str) -> str:
    """`sha256/ab/abcd…`: two digits of fan-out keep folders and listings small. Raises KeyError on no sha256."""
    if not DIGEST.fullmatch(digest):
        raise KeyError(f"not a sha256 digest: {digest[:80]!r}")
    return f"{PREFIX}{digest[:2]}/{digest}"


def _verified(digest: str, data: bytes) -> bytes:
    found = sha256_hex(data)
    if found != digest:
        raise IntegrityError(f"object {digest} holds {len(data)} bytes whose sha256 is {found}")
    return data


class S3Store:
    """Artifacts in one bucket of an S3 server. The SDK is imported here, because a folder needs none."""

    def __init__(self, settings: Settings):
        import certifi
        import urllib3
        from minio import Minio

        self.bucket = settings.s3_bucket
        self._damaged: set[str] = set()
        self._client = Minio(
            endpoint=settings.s3_endpoint,
            access_key=settings.s3_access_key,
            secret_key=settings.s3_secret_key.get_secret_value(),
            secure=settings.s3_secure,
            region=settings.s3_region,
            # the SDK's own pool retries a dead endpoint for minutes and has no read timeout to speak of
            http_client=urllib3.PoolManager(
                maxsize=ASKED_AT_ONCE,
                timeout=urllib3.Timeout(connect=5, read=60),
                retries=urllib3.Retry(total=3, backoff_factor=0.2, status_forcelist=[500, 502, 503, 504]),
                cert_reqs="CERT_REQUIRED",
                ca_certs=os.environ.get("SSL_CERT_FILE", certifi.where()),
            ),
        )

    def prepare(self) -> None:
        """Make the bucket where it is not there yet."""
        from minio.error import S3Error

        if self._client.bucket_exists(bucket_name=self.bucket):
            return
        try:
            self._client.make_bucket(bucket_name=self.bucket)
        except S3Error as error:
            if error.code not in ("BucketAlreadyOwnedByYou", "BucketAlreadyExists"):
                raise

    def put(self, data: bytes, media_type: str, *, new: bool = False) -> str:
        """Stores `data` under its sha256 and returns that. Bytes that the server already has are not sent again.

        `new` says that it probably has not: then they are sent without asking, which halves the requests.

        They are compared by the ETag, which is the MD5, except on a server that encrypts with its own keys. The server
        remembers the ETag of what was sent, so bytes that could not be read here are always sent again.
        """
        digest = sha256_hex(data)
        present = None if new or digest in self._damaged else self._find(digest)
        if present is None or present.etag != hashlib.md5(data, usedforsecurity=False).hexdigest():
            self._client.put_object(
                bucket_name=self.bucket,
                object_name=object_name(digest),
                data=io.BytesIO(data),
                length=len(data),
                content_type=media_type,
                part_size=ONE_PART,
            )
            self._damaged.discard(digest)
        return digest

    def get(self, digest: str) -> bytes:
        """The bytes. Raises KeyError if the object is missing, IntegrityError if its sha256 is not its name."""
        try:
            return _verified(digest, self._read(object_name(digest)))
        except Exception:
            self._damaged.add(digest)
            raise

    def has(self, digest: str) -> bool:
        """Whether an object of this name is there (its bytes are not read)."""
        return self._find(digest) is not None

    def stat(self, digest: str) -> Stat:
        """Media type and size. Raises KeyError if the object is missing."""
        found = self._find(digest)
        if found is None:
            raise KeyError(digest)
        return Stat(digest, found.content_type or "application/octet-stream", found.size or 0)

    def lacking(self, digests: Sequence[str]) -> set[str]:
        """Those of `digests` that no object is named after; no object is read.

        Many digests are looked up in listings of their folders, a thousand names a request. A few digests, or few of
        what the store has, are asked for one by one. ASKED_AT_ONCE requests are on their way at the same time.
        """
        wanted = set(digests)
        folders = sorted({object_name(digest).removesuffix(digest) for digest in wanted})
        with ThreadPoolExecutor(ASKED_AT_ONCE) as pool:
            if len(wanted) > FEW_IN_A_FOLDER * len(folders):
                most = LISTED_FOR_ONE * len(wanted) // len(folders)
                first = set(islice(self._names(folders[0]), most + 1))
                if len(first) <= most:  # digests are spread evenly, so the other folders are about as full
                    return wanted.difference(first, *pool.map(lambda folder: set(self._names(folder)), folders[1:]))
            has = dict(zip(wanted, pool.map(self.has, wanted), strict=True))
        return {digest for digest in wanted if not has[digest]}

    def _names(self, folder: str) -> Iterator[str]:
        """Names of the objects in a folder of the fan-out, without it."""
        for item in self._client.list_objects(bucket_name=self.bucket, prefix=folder):
            yield item.object_name.removeprefix(folder)

    def objects(self) -> Iterator[tuple[str, int]]:
        """Digest and size, bytes, of every object."""
        for digest, size, _ in self.dated_objects():
            yield digest, size

    def dated_objects(self) -> Iterator[tuple[str, int, datetime]]:
        """Digest and size, bytes, of every object, and when it was last written."""
        for item in self._client.list_objects(bucket_name=self.bucket, prefix=PREFIX, recursive=True):
            yield item.object_name.rsplit("/", 1)[-1], item.size or 0, item.last_modified or datetime.now(UTC)

    def remove(self, digest: str) -> None:
        """Removes an object: its bytes are damaged, or nobody needs them."""
        self._client.remove_object(bucket_name=self.bucket, object_name=object_name(digest))

    def verify_all(self) -> Iterator[Checked]:
        """Read every object and say what its bytes hash to."""
        for item in self._client.list_objects(bucket_name=self.bucket, prefix=PREFIX, recursive=True):
            data = self._read(item.object_name)
            yield Checked(item.object_name, sha256_hex(data), len(data))

    def _read(self, name: str) -> bytes:
        from minio.error import S3Error

        try:
            response = self._client.get_object(bucket_name=self.bucket, object_name=name)
        except S3Error as error:
            if error.code == "NoSuchKey":
                raise KeyError(name.rsplit("/", 1)[-1]) from error
            raise
        try:
            return response.read()
        finally:
            response.close()
            response.release_conn()

    def _find(self, digest: str) -> Object | None:
        from minio.error import S3Error

        try:
            return self._client.stat_object(bucket_name=self.bucket, object_name=object_name(digest))
        except S3Error as error:
            if error.code in ("NoSuchKey", "NoSuchObject"):
                return None
            raise


class FolderStore:
    """Artifacts as files. A file appears by rename, so that no reader sees a part of it."""

    def __init__(self, path: Path):
        self.path = path

    def prepare(self) -> None:
        """Make the folder where it is not there yet."""
        self.path.mkdir(parents=True, exist_ok=True)

    def put(self, data: bytes, media_type: str, *, new: bool = False) -> str:
        """Stores `data` under its sha256 and returns that. An object that exists is not written again."""
        digest = sha256_hex(data)
        target = self.path / object_name(digest)
        if not target.exists() or target.read_bytes() != data:
            target.parent.mkdir(parents=True, exist_ok=True)
            _write(self._about(target), json.dumps({"media_type": media_type}).encode())
            _write(target, data)
        return digest

    def get(self, digest: str) -> bytes:
        """The bytes. Raises KeyError if the object is missing, IntegrityError if its sha256 is not its name."""
        try:
            return _verified(digest, (self.path / object_name(digest)).read_bytes())
        except FileNotFoundError as error:
            raise KeyError(digest) from error

    def has(self, digest: str) -> bool:
        """Whether an object of this name is there (its bytes are not read)."""
        return (self.path / object_name(digest)).exists()

    def stat(self, digest: str) -> Stat:
        """Media type and size. Raises KeyError if the object is missing."""
        target = self.path / object_name(digest)
        if not target.exists():
            raise KeyError(digest)
        return Stat(digest, json.loads(self._about(target).read_bytes())["media_type"], target.stat().st_size)

    def verify_all(self) -> Iterator[Checked]:
        """Read every object and say what its bytes hash to."""
        for file in sorted((self.path / PREFIX).glob("*/*")):
            if DIGEST.fullmatch(file.name):
                data = file.read_bytes()
                yield Checked(file.relative_to(self.path).as_posix(), sha256_hex(data), len(data))

    @staticmethod
    def _about(target: Path) -> Path:
        return target.with_suffix(".json")


def _write(target: Path, data: bytes) -> None:
    """Writes, flushes to disk, renames: after a crash the file is whole or missing."""
    with tempfile.NamedTemporaryFile(dir=target.parent, prefix=".", delete=False) as file:
        try:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
            os.replace(file.name, target)
        except BaseException:
            os.unlink(file.name)
            raise
