"""A proxy before the store that answers wrongly when it should."""

from __future__ import annotations

import http.client
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

KINDS = ("slow", "500", "half a body", "wrong bytes")
SLOW = 8.0
"""Seconds before a slow answer."""


class Proxy(ThreadingHTTPServer):
    """Passes requests for objects on. The next `left` answers to `method` are of the fault `kind`."""

    daemon_threads = True

    def __init__(self, store: str, port: int):
        self.store, self.kind, self.method, self.left, self.faults = store, "", "", 0, 0
        self.lock = threading.Lock()
        super().__init__(("127.0.0.1", port), _Handler)

    def arm(self, kind: str, method: str, times: int) -> None:
        """From now on."""
        with self.lock:
            self.kind, self.method, self.left, self.faults = kind, method, times, 0

    def fault(self, method: str, path: str) -> str:
        """The fault of this answer, or ""."""
        with self.lock:
            if self.left and method == self.method and "/sha256/" in path:
                self.left -= 1
                self.faults += 1
                return self.kind
        return ""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Proxy

    def _pass(self) -> None:
        fault = self.server.fault(self.command, self.path)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if fault == "slow":
            time.sleep(SLOW)
        if fault == "500":
            self._answer(500, [], b"<Error><Code>InternalError</Code><Message>a drill</Message></Error>")
            return
        try:
            store = http.client.HTTPConnection(self.server.store, timeout=60)
            store.request(self.command, self.path, body or None, dict(self.headers))
            answer = store.getresponse()
            data = answer.read()
        except OSError:
            self.close_connection = True  # the store is down: so is what stands before it
            return
        if fault == "wrong bytes" and data:
            data = bytes([data[0] ^ 255]) + data[1:]
        half = fault == "half a body"
        self._answer(answer.status, answer.getheaders(), data[: len(data) // 2] if half else data, len(data))
        store.close()
        self.close_connection |= half

    def _answer(self, status: int, headers: list[tuple[str, str]], data: bytes, length: int | None = None) -> None:
        self.send_response_only(status)
        for name, value in headers:
            if name.lower() not in ("transfer-encoding", "connection", "content-length") or self.command == "HEAD":
                self.send_header(name, value)
        if self.command != "HEAD":
            self.send_header("Content-Length", str(len(data) if length is None else length))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _pass

    def log_message(self, *about: object) -> None:
        """Says nothing."""


@contextmanager
def proxy_before(store: str, port: int) -> Iterator[Proxy]:
    """A running proxy before `store` (host:port)."""
    server = Proxy(store, port)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
