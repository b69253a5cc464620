"""Photos by address: unchanged ones are not sent again, and what one server says is about its own links alone."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from benchmarks.photos import counted, photo_server, write_feed
from pipelines.catalogue import downloads, links, photos
from pipelines.catalogue.downloads import Client, Validators
from pipelines.catalogue.feed import ingest
from pipelines.catalogue.links import Unreachable
from pipelines.catalogue.manifest import load_manifest
from pipelines.errors import Rejected
from pipelines.ledger.photo_links import PhotoLinks
from pipelines.ledger.postgres import connect
from pipelines.store import FolderStore, S3Store

PHOTOS = 200


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with photo_server(latency=0.02) as address:
        yield address


@pytest.fixture
def private(settings):
    return settings.model_copy(update={"allow_private_links": True})


@pytest.mark.medium
def test_the_second_night_asks_whether_photos_changed_and_none_is_sent(ledger, store, private, server, tmp_path):
    feed, memory = write_feed(tmp_path, server, PHOTOS), PhotoLinks(ledger.engine)
    first = ingest(feed, store, private, memory=memory)
    seen = counted(server)
    assert seen.sent == seen.requests == PHOTOS
    assert seen.connections <= private.photo_connections
    assert len({product.photo for product in load_manifest(store, first)}) == PHOTOS

    assert ingest(feed, store, private, memory=memory) == first
    night = counted(server).since(seen)
    assert (night.requests, night.conditional, night.sent) == (PHOTOS, PHOTOS, 0)

    store.remove(load_manifest(store, first)[7].photo)  # the server's word does not bring it back
    assert ingest(feed, store, private, memory=memory) == first
    assert counted(server).since(seen).sent == 1
    assert store.has(load_manifest(store, first)[7].photo)


@pytest.mark.medium
def test_a_fetch_that_is_killed_goes_on_where_it_was(ledger, store, private, server, tmp_path, monkeypatch):
    monkeypatch.setattr(photos, "CHUNK", 20)
    feed = write_feed(tmp_path, f"{server}/again", PHOTOS)
    began, before = datetime.now(UTC), counted(server)

    def fetch() -> None:
        engine = connect(private.database_url)
        ingest(feed, S3Store(private), private.model_copy(update={"photo_connections": 4}), memory=PhotoLinks(engine))

    process = multiprocessing.get_context("fork").Process(target=fetch)
    process.start()
    while counted(server).since(before).sent < PHOTOS // 2:
        time.sleep(0.01)
    os.kill(process.pid or 0, signal.SIGKILL)
    process.join()
    killed = counted(server)
    digest = ingest(feed, store, private, memory=PhotoLinks(ledger.engine, since=began))
    assert all(product.photo for product in load_manifest(store, digest))
    again = counted(server).since(killed)
    assert PHOTOS - killed.since(before).sent <= again.requests <= PHOTOS // 2 + 2 * 20 + 4
    assert counted(server).since(before).sent < PHOTOS + 2 * 20 + 4


class Shop(BaseHTTPRequestHandler):
    """A shop that keeps connections, names its photos' ETags, and is busy where the path says so."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        asked: list[tuple[str, str, str]] = self.server.asked  # type: ignore[attr-defined]
        asked.append((self.headers["Host"], self.path, self.headers.get("If-None-Match", "")))
        times = sum(path == self.path for _, path, _ in asked)
        if self.path == "/moved":
            self._answer(302, {"Location": "/mug.jpg"})
        elif self.path.startswith("/later") and times == 1:
            self._answer(429, {"Retry-After": self.path.partition("?")[2]})
        elif self.path.startswith("/never"):
            self._answer(503, {"Retry-After": "1"})
        elif self.headers.get("If-None-Match") == '"mug"':
            self._answer(304)
        else:
            self._answer(200, {"ETag": '"mug"'}, b"a mug")

    def _answer(self, status: int, headers: dict[str, str] | None = None, body: bytes = b"") -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        if status != 304:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments: object) -> None:
        pass


@contextmanager
def shop_at(context: ssl.SSLContext | None = None) -> Iterator[ThreadingHTTPServer]:
    shop = ThreadingHTTPServer(("127.0.0.1", 0), Shop)
    shop.daemon_threads = True
    shop.asked = []  # type: ignore[attr-defined]
    if context:
        shop.socket = context.wrap_socket(shop.socket, server_side=True)
    threading.Thread(target=shop.serve_forever, daemon=True).start()
    yield shop
    shop.shutdown()
    shop.server_close()


@pytest.fixture
def shop() -> Iterator[ThreadingHTTPServer]:
    with shop_at() as running:
        yield running


def get(shop: ThreadingHTTPServer, *paths: str, validators: Validators | None = None, seconds: float = 4) -> list:
    """What these paths give, one after the other, over one client; errors as they are."""

    async def fetch() -> list:
        found: list = []
        async with Client(1000, seconds, allow_private=True) as client:
            for path in paths:
                link = path if "://" in path else f"http://127.0.0.1:{shop.server_port}{path}"
                try:
                    found.append(await client.get(link, validators))
                except Rejected as error:
                    found.append(error)
        return found

    return asyncio.run(fetch())


@pytest.mark.medium
def test_a_server_that_asks_for_a_pause_gets_it_within_the_photos_time_limit(shop):
    began = time.monotonic()
    assert get(shop, "/later?1")[0].file.read() == b"a mug"
    assert 1 <= time.monotonic() - began < 3
    in_a_second = (datetime.now(UTC) + timedelta(seconds=1.5)).strftime("%a,%%20%d%%20%b%%20%Y%%20%H:%M:%S%%20GMT")
    assert get(shop, f"/later?{in_a_second.replace('%20', ' ')}")[0].file.read() == b"a mug"
    began = time.monotonic()
    assert isinstance(get(shop, "/later?3600")[0], Unreachable)
    assert time.monotonic() - began < 1
    assert isinstance(get(shop, "/never")[0], Unreachable)  # it was asked for, but not for ever
    assert sum(path == "/never" for _, path, _ in shop.asked) == 1 + len(downloads.PAUSES)


@pytest.mark.medium
def test_rows_of_another_server_wait_for_nobody(shop, tmp_path, private):
    with shop_at() as other:
        rows = [f"{n},Cup,http://127.0.0.1:{shop.server_port}/never{n}" for n in range(6)]
        rows += [f"m{n},Mug,http://127.0.0.1:{other.server_port}/{n}" for n in range(60)]
        feed = tmp_path / "feed.csv"
        feed.write_text("id,title,image_link\n" + "\n".join(rows))
        few = private.model_copy(update={"photo_connections": 2, "photo_timeout_seconds": 2})
        before = FolderStore(tmp_path / "store")
        done = threading.Event()
        threading.Thread(target=lambda: (ingest(feed, before, few), done.set()), daemon=True).start()
        deadline = time.monotonic() + 3
        while len(other.asked) < 60 and time.monotonic() < deadline:
            time.sleep(0.02)
        assert len(other.asked) == 60  # while the first server's rows still wait
        assert not done.is_set()
        assert done.wait(30)


def test_a_condition_goes_to_the_address_whose_word_it_is(shop):
    moved = get(shop, "/moved")[0]
    assert moved.validators == Validators(f"http://127.0.0.1:{shop.server_port}/mug.jpg", '"mug"')
    assert get(shop, "/moved", validators=moved.validators)[0].file is None
    assert [(path, etag) for _, path, etag in shop.asked[-2:]] == [("/moved", ""), ("/mug.jpg", '"mug"')]
    other = get(shop, "/cup.jpg", validators=moved.validators)[0]
    assert other.file.read() == b"a mug"
    assert shop.asked[-1][2] == ""


def resolve(monkeypatch, names: dict[str, str]) -> list[str]:
    """A name server that knows these names; returns the list of those that it was asked for."""
    asked: list[str] = []

    def answer(host: str, *_: object, **__: object) -> list:
        asked.append(host)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (names.get(host, host), 0))]

    monkeypatch.setattr(socket, "getaddrinfo", answer)
    return asked


def test_a_kept_connection_stays_at_the_address_that_was_checked(shop, monkeypatch):
    names = {"shop.example": "127.0.0.1"}
    asked = resolve(monkeypatch, names)
    monkeypatch.setattr(links, "is_public", lambda address: address == "127.0.0.1")

    async def fetch() -> None:
        async with Client(1000, 3) as client:
            for number in range(5):
                await client.get(f"http://shop.example:{shop.server_port}/{number}")
                names["shop.example"] = "10.0.0.1"  # where the second connection would go
            with pytest.raises(Rejected, match=r"10\.0\.0\.1, which is no public address"):
                await asyncio.gather(
                    *(client.get(f"http://shop.example:{shop.server_port}/later{n}?0") for n in range(3))
                )

    asyncio.run(fetch())
    assert asked.count("shop.example") >= 2
    assert [host for host, _, _ in shop.asked[:5]] == [f"shop.example:{shop.server_port}"] * 5


def authority(folder: Path, name: str) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """TLS of a server with a certificate for `name`, and of a client that trusts it."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder(subject, subject, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = folder / "shop.pem"
    pem.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        + certificate.public_bytes(serialization.Encoding.PEM)
    )
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(pem)
    return server, ssl.create_default_context(cafile=str(pem))


def test_a_certificate_is_held_against_the_name_also_where_another_name_has_the_address(tmp_path, monkeypatch):
    server, client = authority(tmp_path, "shop.example")
    monkeypatch.setattr(downloads, "certificates", lambda: client)
    resolve(monkeypatch, {"shop.example": "127.0.0.1", "other.example": "127.0.0.1"})
    with shop_at(server) as shop:
        at = f".example:{shop.server_port}/mug.jpg"
        good, bad, again = get(shop, f"https://shop{at}", f"https://other{at}", f"https://shop{at}")
        assert good.file.read() == again.file.read() == b"a mug"
        assert isinstance(bad, Rejected)
        assert "CERTIFICATE_VERIFY_FAILED" in bad.reason or "certificate" in bad.reason.lower()
        assert {host for host, _, _ in shop.asked} == {f"shop.example:{shop.server_port}"}
