"""What every store promises, held against a folder and a real S3 server."""

from __future__ import annotations

import hashlib
import io
import itertools
from pathlib import Path

import pytest
from minio import Minio

import pipelines.store
from pipelines.errors import IntegrityError
from pipelines.settings import Settings
from pipelines.store import FolderStore, S3Store, object_name

PNG = "image/png"


@pytest.fixture(params=["folder", "s3"])
def any_store(request: pytest.FixtureRequest, tmp_path: Path) -> FolderStore | S3Store:
    if request.param == "s3":
        return request.getfixturevalue("store")
    folder = FolderStore(tmp_path / "store")
    folder.prepare()
    return folder


def overwrite(store: FolderStore | S3Store, settings: Settings | None, digest: str, data: bytes) -> None:
    """What a failing disk, or somebody with the store's key, may do."""
    if isinstance(store, FolderStore):
        (store.path / object_name(digest)).write_bytes(data)
        return
    assert settings is not None
    client = Minio(
        endpoint=settings.s3_endpoint,
        access_key=settings.s3_access_key,
        secret_key=settings.s3_secret_key.get_secret_value(),
        secure=False,
        region=settings.s3_region,
    )
    client.put_object(
        bucket_name=settings.s3_bucket, object_name=object_name(digest), data=io.BytesIO(data), length=len(data)
    )


def settings_of(store: FolderStore | S3Store, request: pytest.FixtureRequest) -> Settings | None:
    return request.getfixturevalue("settings") if isinstance(store, S3Store) else None


def test_bytes_come_back_under_their_sha256(any_store):
    digest = any_store.put(b"a photo", PNG)
    assert digest == hashlib.sha256(b"a photo").hexdigest()
    assert any_store.get(digest) == b"a photo"
    assert any_store.has(digest)
    found = any_store.stat(digest)
    assert (found.sha256, found.media_type, found.size) == (digest, PNG, 7)


def test_storing_twice_is_storing_once(any_store):
    assert any_store.put(b"same", PNG) == any_store.put(b"same", PNG)
    name = object_name(hashlib.sha256(b"same").hexdigest())
    assert [checked.name for checked in any_store.verify_all()].count(name) == 1


def test_an_empty_object_is_an_object(any_store):
    assert any_store.get(any_store.put(b"", PNG)) == b""


def test_a_missing_object_is_a_key_error(any_store):
    absent = "0" * 64
    assert not any_store.has(absent)
    with pytest.raises(KeyError):
        any_store.get(absent)
    with pytest.raises(KeyError):
        any_store.stat(absent)


@pytest.mark.parametrize("name", ["../../etc/passwd", "ABC", "", "0" * 63, "0" * 64 + "\n"])
def test_only_digests_are_names(any_store, name):
    with pytest.raises(KeyError, match="not a sha256"):
        any_store.get(name)


def test_bytes_that_are_not_what_their_name_says_are_not_handed_out(any_store, request):
    digest = any_store.put(b"the true bytes", PNG)
    overwrite(any_store, settings_of(any_store, request), digest, b"other bytes in there")
    with pytest.raises(IntegrityError, match=digest):
        any_store.get(digest)
    assert [c.name for c in any_store.verify_all() if not c.ok] == [object_name(digest)]


@pytest.mark.parametrize("size", [0, 14, 15], ids=["none", "as many", "more"])
def test_putting_the_true_bytes_again_mends_a_damaged_object(any_store, request, size):
    digest = any_store.put(b"the true bytes", PNG)
    overwrite(any_store, settings_of(any_store, request), digest, b"x" * size)
    any_store.put(b"the true bytes", PNG)
    assert any_store.get(digest) == b"the true bytes"
    assert any_store.stat(digest).media_type == PNG


@pytest.mark.parametrize("size", [0, 100, 9 * 2**20], ids=["none", "some", "more than S3's least part"])
def test_what_the_server_has_is_not_sent_again(store, monkeypatch, size):
    data = bytes(range(250)) * (size // 250)
    store.put(data, PNG)
    monkeypatch.setattr(Minio, "put_object", lambda *_, **__: pytest.fail("sent again"))
    assert store.get(store.put(data, PNG)) == data


@pytest.mark.parametrize(
    ("wanted", "listed_for_one", "asked"),
    [(30, 10, 0), (30, 1, 30), (3, 10, 3)],
    ids=["many are listed", "few of a full store are asked for", "few are asked for"],
)
def test_what_the_store_lacks_is_found_however_it_is_looked_for(store, monkeypatch, wanted, listed_for_one, asked):
    monkeypatch.setattr(pipelines.store, "LISTED_FOR_ONE", listed_for_one)
    ask, found = S3Store.has, []
    monkeypatch.setattr(S3Store, "has", lambda self, digest: found.append(digest) or ask(self, digest))
    folders = {f"{name:02x}": [] for name in (7, 91, 200)}
    for number in itertools.count():
        data = f"{wanted} {listed_for_one} {number}".encode()
        digest = hashlib.sha256(data).hexdigest()
        if len(folders.get(digest[:2], range(99))) < 25:
            folders[digest[:2]].append(store.put(data, PNG, new=True))
        if all(len(digests) == 25 for digests in folders.values()):
            break
    chosen = [digests[n // 3] for n, digests in zip(range(wanted), itertools.cycle(folders.values()), strict=False)]
    gone = {chosen[0], chosen[-1]}
    for digest in gone:
        store.remove(digest)
    assert store.lacking([*chosen, *chosen]) == gone
    assert len(found) == asked
    assert store.lacking([]) == set()


def test_preparing_a_bucket_twice_is_harmless(store):
    store.prepare()
    store.prepare()


def test_half_a_file_is_never_seen(tmp_path):
    folder = FolderStore(tmp_path)
    digest = folder.put(b"x" * 100_000, PNG)
    names = {file.name for file in (tmp_path / object_name(digest)).parent.iterdir()}
    assert names == {digest, digest + ".json"}
