"""Links lead to public addresses only, whatever names, redirects and name servers say."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from pipelines.catalogue import downloads, links
from pipelines.catalogue.feed import ingest
from pipelines.catalogue.manifest import load_manifest
from pipelines.contracts import sha256_hex
from pipelines.errors import Rejected, Unavailable, UsageError
from pipelines.settings import Settings
from pipelines.store import FolderStore


class Shop(BaseHTTPRequestHandler):
    """Serves a photo, and everything that a hostile or broken shop might."""

    def do_GET(self) -> None:
        self.server.hosts.append(self.headers["Host"])  # type: ignore[attr-defined]
        port = self.server.server_port  # type: ignore[attr-defined]
        if self.path == "/feed.csv":
            self._answer(f"id,title,image_link\n1,Mug,http://127.0.0.1:{port}/mug.jpg\n2,Cup,cup.jpg\n".encode())
        elif self.path == "/mug.jpg":
            self._answer(b"a mug", "image/jpeg; charset=binary")
        elif self.path == "/moved":
            self._answer(b"", status=302, location="/mug.jpg")
        elif self.path == "/inside":
            self._answer(b"", status=302, location=f"http://127.0.0.2:{port}/mug.jpg")
        elif self.path == "/local":
            self._answer(b"", status=302, location="file:///etc/passwd")
        elif self.path == "/round":
            self._answer(b"", status=302, location="/round")
        elif self.path in ("/302", "/304"):
            self._answer(b"", status=int(self.path[1:]))
        elif self.path == "/busy":  # twice; then it is a photo again
            self._answer(b"a mug", status=200 if len(self.server.hosts) > 2 else 503)  # type: ignore[attr-defined]
        elif self.path.startswith("/down"):
            self._answer(b"", status=503)
        elif self.path == "/large":
            self._answer(b"x" * 5000)
        elif self.path == "/endless":
            self.send_response(200)
            self.end_headers()
            self._drip(b"x" * 500)
        elif self.path == "/slow-header":
            self._drip(b"H")
        else:
            self._answer(b"", status=404)

    def _answer(self, data: bytes, media_type: str = "text/csv", status: int = 200, location: str = "") -> None:
        self.send_response(status)
        self.send_header("Content-Type", media_type)
        self.send_header("Content-Length", str(len(data)))
        if location:
            self.send_header("Location", location)
        self.end_headers()
        self.wfile.write(data)

    def _drip(self, data: bytes) -> None:
        try:
            for _ in range(100):
                self.wfile.write(data)
                time.sleep(0.05)
        except OSError:
            pass

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def shop() -> Iterator[ThreadingHTTPServer]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Shop)
    server.hosts = []  # type: ignore[attr-defined]
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def get(shop: ThreadingHTTPServer, path: str, host: str = "127.0.0.1", private: bool = True) -> downloads.Fetched:
    url = f"http://{host}:{shop.server_port}{path}"
    return asyncio.run(downloads.fetch(url, max_bytes=1000, seconds=3, allow_private=private))


def test_a_photo_is_fetched_through_a_redirect(shop):
    assert get(shop, "/moved") == downloads.Fetched(b"a mug", "image/jpeg")


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("/absent", "answers 404"),
        ("/local", "is no http or https address"),
        ("/round", "redirects more than"),
        ("/302", "answers 302"),
        ("/304", "answers 304"),
        ("/large", "is larger than"),
        ("/endless", "is larger than"),
        ("/slow-header", "did not arrive within 3 s"),
    ],
)
def test_what_a_hostile_server_answers_is_a_reason(shop, path, said):
    started = time.monotonic()
    with pytest.raises(Rejected, match=said):
        get(shop, path)
    assert time.monotonic() - started < 4.5


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(downloads, "PAUSES", (0.01, 0.01))


def test_a_server_that_is_busy_is_asked_again(shop, impatient):
    assert get(shop, "/busy").data == b"a mug"
    assert len(shop.hosts) == 3


def test_a_server_that_stays_away_is_unreachable_and_a_wrong_address_is_not_asked_twice(shop, impatient):
    with pytest.raises(links.Unreachable, match="answers 503"):
        get(shop, "/down")
    assert len(shop.hosts) == 3
    with pytest.raises(Rejected, match="answers 404") as caught:
        get(shop, "/absent")
    assert not isinstance(caught.value, links.Unreachable)
    assert len(shop.hosts) == 4
    shop.server_close()
    with pytest.raises(links.Unreachable, match="cannot be fetched"):
        get(shop, "/mug.jpg")


def test_the_whole_time_is_the_limit_and_the_reason_is_the_servers(shop, monkeypatch):
    monkeypatch.setattr(downloads, "PAUSES", (60.0,))
    started = time.monotonic()
    with pytest.raises(links.Unreachable, match="answers 503"):
        get(shop, "/down")
    assert time.monotonic() - started < 4.5


def test_a_resolver_that_stalls_ends_with_the_time_limit(monkeypatch):
    stalled = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: stalled.wait(20) and [])
    started = time.monotonic()
    with pytest.raises(links.Unreachable, match=r"did not arrive within 0\.2 s"):
        asyncio.run(downloads.fetch("https://shop.example/mug.jpg", max_bytes=1000, seconds=0.2))
    assert time.monotonic() - started < 2
    assert all(thread.daemon for thread in threading.enumerate() if "shop.example" in thread.name)
    stalled.set()


def test_a_server_that_is_down_for_every_photo_is_waited_for_a_few_times_only(shop, monkeypatch, tmp_path):
    monkeypatch.setattr(downloads, "PAUSES", (0.3, 0.3))
    feed = tmp_path / "feed.csv"
    rows = [f"{n},Cup,http://127.0.0.1:{shop.server_port}/down{n}" for n in range(60)]
    feed.write_text("id,title,image_link\n" + "\n".join(rows))
    with pytest.raises(Unavailable, match="60 of 60"):
        ingest(feed, FolderStore(tmp_path / "store"), Settings(allow_private_links=True))
    assert 60 < len(shop.hosts) <= 60 + 10  # ten requests are repeated, all links together


@pytest.mark.parametrize(("down", "stops"), [(10, True), (9, False)])
def test_photos_that_are_all_away_are_the_networks_fault_and_no_rows(shop, impatient, tmp_path, down, stops):
    at = f"http://127.0.0.1:{shop.server_port}"
    feed = tmp_path / "feed.csv"
    rows = [f"{n},Cup,{at}/down{n}" for n in range(down)] + [f"mug,Mug,{at}/mug.jpg"]
    feed.write_text("id,title,image_link\n" + "\n".join(rows))
    store, settings = FolderStore(tmp_path / "store"), Settings(allow_private_links=True)
    if stops:
        with pytest.raises(Unavailable, match=r"10 of 11 photos cannot be reached for now; the first: .* answers 503"):
            ingest(feed, store, settings)
        return
    products = load_manifest(store, ingest(feed, store, settings))
    assert [bool(product.photo_problem) for product in products] == [True] * down + [False]


def test_addresses_that_are_not_public_are_not_asked(shop):
    for host in ("127.0.0.1", "localhost", "[::1]", "[::ffff:127.0.0.1]", "0.0.0.0", "2130706433"):
        with pytest.raises(Rejected, match="which is no public address"):
            get(shop, "/mug.jpg", host, private=False)
    assert shop.hosts == []


def test_a_redirect_into_the_network_is_not_followed(shop, monkeypatch):
    monkeypatch.setattr(links, "is_public", lambda address: address == "127.0.0.1")
    assert get(shop, "/moved", private=False).data == b"a mug"
    with pytest.raises(Rejected, match=r"127\.0\.0\.2, which is no public address"):
        get(shop, "/inside", private=False)


def test_the_connection_goes_to_the_address_that_was_checked(shop, monkeypatch):
    answers = [("127.0.0.1", 0), ("10.0.0.1", 0)]  # a name server that changes its mind
    monkeypatch.setattr(links, "is_public", lambda address: address == "127.0.0.1")
    monkeypatch.setattr(
        socket, "getaddrinfo", lambda *_, **__: [(socket.AF_INET, socket.SOCK_STREAM, 6, "", answers.pop(0))]
    )
    assert get(shop, "/mug.jpg", "shop.example", private=False).data == b"a mug"
    assert shop.hosts == [f"shop.example:{shop.server_port}"]
    assert len(answers) == 1


def test_one_private_address_among_public_ones_is_enough_to_refuse(shop, monkeypatch):
    both = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (a, 0)) for a in ("93.184.216.34", "192.168.0.1")]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: both)
    with pytest.raises(Rejected, match=r"192\.168\.0\.1"):
        get(shop, "/mug.jpg", "shop.example", private=False)


def test_a_login_in_an_address_is_refused_and_not_repeated(shop):
    with pytest.raises(Rejected) as caught:
        get(shop, "/mug.jpg", "ada:hunter2@127.0.0.1")
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    "link",
    [
        "http://",
        "http://[",
        "https://\x00/",
        "ftp://x.org/a",
        "http://no.such.invalid/",
        "https://xn--ls8h.la/a.jpg",
        "http://xn--a/b",
        "http://127.0.0.1:99999/a",
    ],
)
def test_what_is_no_address_is_a_reason(link, impatient):
    with pytest.raises(Rejected):
        asyncio.run(downloads.fetch(link, 1000, 5))


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1", "0.0.0.0", "224.0.1.1",
        "240.0.0.1", "255.255.255.255", "192.0.2.1", "::1", "::", "fe80::1%eth0", "fc00::1", "ff02::1", "2001:db8::1",
        "::ffff:10.0.0.1", "::ffff:169.254.169.254", "2002:7f00:1::", "64:ff9b::7f00:1", "::7f00:1",
        "192.0.0.9", "192.88.99.1", "168.63.129.16", "fec0::1", "2001:470::5efe:10.0.0.1",
        "2001:470::200:5efe:10.0.0.1",
    ],
)  # fmt: skip
def test_not_public(address):
    assert not links.is_public(address)


@pytest.mark.parametrize(
    "address", ["93.184.216.34", "8.8.8.8", "2606:2800:220:1:248:1893:25c8:1946", "::ffff:8.8.8.8"]
)
def test_public(address):
    assert links.is_public(address)


def test_a_feed_from_the_web_brings_its_photos_and_no_files_of_ours(shop, tmp_path, monkeypatch):
    (tmp_path / "cup.jpg").write_bytes(b"ours")
    monkeypatch.chdir(tmp_path)
    store = FolderStore(tmp_path / "store")
    url = f"http://127.0.0.1:{shop.server_port}/feed.csv"
    mug, cup = load_manifest(store, ingest(url, store, Settings(allow_private_links=True)))
    assert mug.photo == sha256_hex(b"a mug")
    assert cup.photo is None
    assert "came from the web" in cup.photo_problem
    with pytest.raises(UsageError, match="no public address"):
        ingest(url, store, Settings())


@pytest.mark.parametrize(
    ("header", "media_type"),
    [
        ("image/jpeg; charset=binary", "image/jpeg"),
        ("Image/PNG", "image/png"),
        ("image/jp\xe9g", ""),  # a signed request to the store could not carry it
        ("image/\tpng", ""),
        ("picture", ""),
        ("", ""),
    ],
)
def test_only_a_media_type_is_believed_of_a_server(header, media_type):
    assert downloads.media_type_of(header) == media_type
