"""What fetching the photos of a feed costs, from a server that answers after 100 ms. `make bench-photos`.

    python -m benchmarks.photos [PHOTOS]

Starts a Postgres, an S3 store and a photo server of its own, and reads a feed of PHOTOS links (20,000 by default):

first      every photo is new; the process is killed in the middle (SIGKILL)
resumed    the same feed again, as a retried task reads it
unchanged  the next night: every photo is asked for, and none is sent

Printed are, for each: seconds, photos a second, CPU seconds of the process that fetches, and what the server counted:
connections, requests, requests with a condition, and photos that it sent.
"""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from urllib.request import urlopen

PHOTOS = 20_000
LATENCY = 0.1
"""Seconds before each answer."""

BODY = os.urandom(30_000)
"""What photos have in common; their number makes them different."""


@dataclass
class Counts:
    """What the server saw so far."""

    connections: int = 0
    requests: int = 0
    conditional: int = 0
    sent: int = 0

    def since(self, before: Counts) -> Counts:
        """What it saw after `before`."""
        return Counts(*(now - then for now, then in zip(asdict(self).values(), asdict(before).values(), strict=True)))


class _Photos(asyncio.Protocol):
    """HTTP/1.1 of one connection: any path is a photo with an ETag; `/counts` is what was counted."""

    def __init__(self, counts: Counts, latency: float):
        self.counts = counts
        self.latency = latency
        self.received = b""
        self.transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.received += data
        while b"\r\n\r\n" in self.received:
            request, self.received = self.received.split(b"\r\n\r\n", 1)
            latency, answer = self._answer(request)
            asyncio.get_running_loop().call_later(latency, self.transport.write, answer)

    def _answer(self, request: bytes) -> tuple[float, bytes]:
        path = request.split(b" ", 2)[1]
        if path == b"/counts":
            return 0.0, _http(b"200 OK", json.dumps(asdict(self.counts)).encode())
        self.counts.connections += not hasattr(self, "counted")
        self.counted = True
        self.counts.requests += 1
        etag = b'"%s"' % path[1:]
        if b"\r\nif-none-match:" in request.lower():
            self.counts.conditional += 1
            if etag in request:
                return self.latency, _http(b"304 Not Modified", None, etag)
        self.counts.sent += 1
        return self.latency, _http(b"200 OK", path + BODY, etag)


def _http(status: bytes, body: bytes | None, etag: bytes = b"") -> bytes:
    length = b"" if body is None else b"Content-Type: image/jpeg\r\nContent-Length: %d\r\n" % len(body)
    return b"HTTP/1.1 %s\r\n%s%s\r\n%s" % (status, length, b"ETag: %s\r\n" % etag if etag else b"", body or b"")


def _serve(port: multiprocessing.Queue[int], latency: float) -> None:
    async def serve() -> None:
        counts = Counts()
        server = await asyncio.get_running_loop().create_server(lambda: _Photos(counts, latency), "127.0.0.1", 0)
        port.put(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    asyncio.run(serve())


@contextmanager
def photo_server(latency: float = LATENCY) -> Iterator[str]:
    """A photo server in a process of its own; yields its address."""
    spawn = multiprocessing.get_context("spawn")
    port = spawn.Queue()
    process = spawn.Process(target=_serve, args=(port, latency), daemon=True)
    process.start()
    try:
        yield f"http://127.0.0.1:{port.get(timeout=60)}"
    finally:
        process.kill()
        process.join()


def counted(server: str) -> Counts:
    """What the server saw so far."""
    with urlopen(f"{server}/counts") as answer:  # noqa: S310  its own server
        return Counts(**json.load(answer))


def write_feed(folder: Path, server: str, photos: int) -> Path:
    """A feed of that many links."""
    feed = folder / "catalog.csv"
    rows = (f"{number},Mug {number},{server}/{number}" for number in range(photos))
    feed.write_text("id,title,image_link\n" + "\n".join(rows), "utf-8")
    return feed


def here(feed: Path, since: datetime | None) -> float:
    """Read the feed in this process, as `plan` does; returns its CPU seconds."""
    from operators.base import open_services
    from pipelines.catalogue.feed import ingest
    from pipelines.ledger.photo_links import PhotoLinks

    services = open_services()
    before = time.process_time()
    ingest(feed, services.store, services.settings, memory=PhotoLinks(services.ledger.engine, since))
    return time.process_time() - before


def fetching(feed: Path, since: datetime | None) -> subprocess.Popen[str]:
    """A process that reads the feed and prints its CPU seconds."""
    argv = [sys.executable, "-m", "benchmarks.photos", "--here", str(feed), since.isoformat() if since else ""]
    return subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)


def _row(name: str, photos: int, seconds: float, cpu: str, seen: Counts) -> None:
    print(
        f"{name:<10} {photos:>7} {seconds:>8.1f} {photos / seconds:>9.0f} {cpu:>6} {seen.connections:>12} "
        f"{seen.requests:>9} {seen.conditional:>12} {seen.sent:>7}",
        flush=True,
    )


def main(photos: int) -> None:
    """Print the table."""
    from pipelines.services import down, up
    from pipelines.settings import read_settings

    with tempfile.TemporaryDirectory(prefix="packshot-bench-") as folder, photo_server() as server:
        os.environ["PACKSHOT_STATE_DIR"] = folder
        os.environ["PACKSHOT_ALLOW_PRIVATE_LINKS"] = "true"
        settings = read_settings()
        up(settings, airflow=False)
        try:
            feed = write_feed(Path(folder), server, photos)
            print(f"{photos} photos of {len(BODY) / 1000:g} kB, answers after {LATENCY * 1000:g} ms")
            print("pass        photos  seconds  a second  CPU s  connections  requests  conditional    sent")
            run_began = datetime.now(UTC)
            first = fetching(feed, run_began)
            while not (before := counted(server)).requests:
                time.sleep(0.01)
            began = time.perf_counter()
            while counted(server).sent < photos // 2:
                time.sleep(0.05)
            first.send_signal(signal.SIGKILL)
            first.wait()
            seconds = time.perf_counter() - began
            killed = counted(server)
            _row("first", killed.sent, seconds, "", killed.since(Counts(0, 0, 0, 0)))
            for name, since in (("resumed", run_began), ("unchanged", None)):
                before, began = counted(server), time.perf_counter()
                cpu, _ = fetching(feed, since).communicate()
                seconds, seen = time.perf_counter() - began, counted(server).since(before)
                _row(name, seen.requests, seconds, f"{float(cpu.splitlines()[-1]):.1f}", seen)
        finally:
            down(settings)


if __name__ == "__main__":
    if "--here" in sys.argv:
        print(here(Path(sys.argv[2]), datetime.fromisoformat(sys.argv[3]) if sys.argv[3] else None))
    else:
        main(int(sys.argv[1]) if len(sys.argv) > 1 else PHOTOS)
