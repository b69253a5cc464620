"""Downloads of photos and feeds from http(s) addresses, over connections that are kept.

`pipelines.catalogue.links` says which addresses may be asked. Each connection checks that itself: it resolves its host,
checks the addresses and connects to one of them. So a kept connection stays at an address that was checked. Connections
are kept by host name, never by address, because a certificate is held against the name.

A server is asked over a bounded number of connections. What it answers decides about its own links alone: other links
wait for no pause that it asks for, and no wait for a turn counts against a link's time limit.
"""

from __future__ import annotations

import asyncio
import re
import tempfile
from collections import OrderedDict
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import IO, Any, Self

import httpcore
import httpx

from pipelines.catalogue.links import MEDIA_TYPE, USER_AGENT, Unreachable, certificates, checked_address
from pipelines.errors import Rejected

MAX_REDIRECTS = 5
PAUSES = (1.0, 4.0)
"""Seconds before each retry of an address, unless the server asks for another pause (`Retry-After`)."""

MANY = 10
"""Failed requests after which a server's links are not retried, until it answers again."""

MANY_PAUSES = 256
"""The same for requests for which the server asked for a pause."""

MANY_STALLS = 256
"""Links without an answer in time, one after the other, after which a server is asked no more."""

CONNECTIONS = 64
"""Connections to one server at most. At 100 ms a photo they take 640 photos a second."""

KEPT = 256
"""Unused connections that are kept, over all servers."""

KEPT_SECONDS = 15.0
"""An unused connection is closed after this time."""

IN_MEMORY = 2**19
"""Bytes of a download that are kept in memory. The rest goes to a temporary file."""

IGNORED_BODY = 2**14
"""Bytes of a redirect's or an error's body that are read, so that the connection can be used again."""

ETAG = re.compile(r'(?:W/)?"[\x21\x23-\x7e]{0,512}"')
DATE = re.compile(r"[\x20-\x7e]{1,64}")

_BROKEN = (
    httpcore.NetworkError,
    httpcore.TimeoutException,
    httpcore.ProtocolError,
    httpcore.ConnectionNotAvailable,
)


@dataclass(frozen=True, slots=True)
class Validators:
    """What the server `address` said of its answer, so that it can be asked whether that changed. "" = nothing."""

    address: str
    etag: str = ""
    last_modified: str = ""

    def headers(self) -> list[tuple[str, str]]:
        """The conditions of a request."""
        pairs = (("If-None-Match", self.etag), ("If-Modified-Since", self.last_modified))
        return [(name, value) for name, value in pairs if value]


@dataclass(frozen=True, slots=True)
class Fetched:
    """What an address answered with. `media_type` is the server's word."""

    data: bytes
    media_type: str


@dataclass(frozen=True, slots=True)
class Download:
    """An answer. `file` holds its bytes, from the beginning; None where the server says that nothing changed."""

    file: IO[bytes] | None
    media_type: str
    validators: Validators


class Client:
    """Fetches from any number of servers. Use it in one event loop, as a context manager.

    Args:
        max_bytes: largest body.
        seconds: time limit of one link, redirects and retries included; without the wait for a connection's turn.
        allow_private: ask private network addresses too.
        connections: to one server at most.
    """

    def __init__(self, max_bytes: int, seconds: float, allow_private: bool = False, connections: int = CONNECTIONS):
        self.max_bytes = max_bytes
        self.seconds = seconds
        self._backend = _CheckedBackend(allow_private)
        self._connections = connections
        self._servers: dict[tuple[str, str, int | None], _Server] = {}
        self._kept: OrderedDict[httpcore.AsyncConnectionPool, _Server] = OrderedDict()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        for connection in self._kept:
            await connection.aclose()

    async def get(self, link: str, validators: Validators | None = None) -> Download:
        """Downloads a link; with `validators`, only if it changed.

        Raises Rejected for an address that is not public, a file that is too large and an error of the server;
        Unreachable if the address does not answer in time.
        """
        try:
            async with asyncio.timeout(self.seconds) as clock:
                return await self._follow(link, validators, clock)
        except TimeoutError as error:
            raise Unreachable(f"{link} did not arrive within {self.seconds:g} s") from error
        except (httpx.InvalidURL, UnicodeError) as error:  # UnicodeError: a name that is no international one
            raise Rejected(f"{link} cannot be fetched: {str(error) or type(error).__name__}") from error

    async def _follow(self, link: str, validators: Validators | None, clock: asyncio.Timeout) -> Download:
        url = httpx.URL(link)
        for _ in range(MAX_REDIRECTS + 1):
            _check(url)
            conditions = validators.headers() if validators and validators.address == str(url) else []
            reply = await self._ask(url, link, conditions, clock)
            if reply.location is not None:
                url = url.join(reply.location)
            elif validators and reply.status == httpx.codes.NOT_MODIFIED and conditions:
                return Download(None, "", validators)
            elif reply.status != httpx.codes.OK or reply.file is None:
                raise Rejected(f"{link} answers {reply.status} {reply.reason}".strip())
            else:
                said = _said(reply.headers, "ETag", ETAG), _said(reply.headers, "Last-Modified", DATE)
                media_type = media_type_of(reply.headers.get("Content-Type", ""))
                return Download(reply.file, media_type, Validators(str(url), *said))
        raise Rejected(f"{link} redirects more than {MAX_REDIRECTS} times")

    async def _ask(
        self, url: httpx.URL, link: str, conditions: Iterable[tuple[str, str]], clock: asyncio.Timeout
    ) -> _Reply:
        """The answer of one address, which is retried after a pause. The turn is kept meanwhile: a server that wants
        to be asked less often is."""
        server = self._server(url)
        async with _turn(server.turns, clock):
            if server.stalls >= MANY_STALLS:
                raise Unreachable(f"{url.host} did not answer {server.stalls} times, and is asked no more")
            pauses = iter(PAUSES)
            while True:
                try:
                    reply = await self._send(server, url, link, conditions)
                except Unreachable as error:
                    await _pause(server, error, next(pauses, None), clock)
                except asyncio.CancelledError:
                    server.stalls += 1
                    raise
                else:
                    server.failures = server.stalls = 0
                    return reply

    async def _send(self, server: _Server, url: httpx.URL, link: str, conditions: Iterable[tuple[str, str]]) -> _Reply:
        headers = [
            ("Host", url.netloc.decode()),
            ("User-Agent", USER_AGENT),
            ("Accept-Encoding", "identity"),
            *conditions,
        ]
        target = httpcore.URL(scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path)
        limits = dict.fromkeys(("connect", "read", "write", "pool"), self.seconds)
        connection = self._connection(server)
        try:
            async with connection.stream("GET", target, headers=headers, extensions={"timeout": limits}) as response:
                reply = await _read(link, response, self.max_bytes)
        except _BROKEN as error:
            await connection.aclose()
            raise _unreachable(link, error) from error
        except BaseException:
            await connection.aclose()
            raise
        await self._keep(connection, server)
        if _for_now(reply.status):
            asked = _asked_pause(reply.headers.get("Retry-After", ""))
            raise _Busy(f"{link} answers {reply.status} {reply.reason}".strip(), asked)
        return reply

    def _server(self, url: httpx.URL) -> _Server:
        name = url.scheme, url.host, url.port
        if name not in self._servers:
            self._servers[name] = _Server(asyncio.Semaphore(self._connections))
        return self._servers[name]

    def _connection(self, server: _Server) -> httpcore.AsyncConnectionPool:
        """A connection that is kept, or will be. A pool of httpcore's looks through all its connections for every
        request, so each has one only."""
        if server.kept:
            connection = server.kept.pop()
            del self._kept[connection]
            return connection
        return httpcore.AsyncConnectionPool(
            ssl_context=certificates(),
            max_connections=1,
            keepalive_expiry=KEPT_SECONDS,
            network_backend=self._backend,
        )

    async def _keep(self, connection: httpcore.AsyncConnectionPool, server: _Server) -> None:
        server.kept.append(connection)
        self._kept[connection] = server
        if len(self._kept) > KEPT:
            oldest, its_server = self._kept.popitem(last=False)
            its_server.kept.remove(oldest)
            await oldest.aclose()


async def fetch(link: str, max_bytes: int, seconds: float, allow_private: bool = False) -> Fetched:
    """Downloads one http(s) address, as `Client.get` does, over a connection of its own."""
    async with Client(max_bytes, seconds, allow_private) as client:
        download = await client.get(link)
        assert download.file is not None  # no condition was sent
        with download.file as file:
            return Fetched(file.read(), download.media_type)


def media_type_of(header: str) -> str:
    """The media type of a Content-Type header; "" where it is none. It goes into a signed header of the store."""
    media_type = header.partition(";")[0].strip().lower()
    return media_type if MEDIA_TYPE.fullmatch(media_type) else ""


# ------------------------------------------------------------------ one request


class _CheckedBackend(httpcore.AnyIOBackend):
    """Connects to addresses that were checked, and to none else."""

    def __init__(self, allow_private: bool):
        self.allow_private = allow_private

    async def connect_tcp(self, host: str, port: int, *arguments: Any, **more: Any) -> httpcore.AsyncNetworkStream:
        address = await checked_address(host, port, self.allow_private)
        return await super().connect_tcp(address, port, *arguments, **more)


@dataclass(slots=True)
class _Server:
    """One server: its turns, its unused connections, and how many requests failed since its last answer."""

    turns: asyncio.Semaphore
    kept: list[httpcore.AsyncConnectionPool] = field(default_factory=list)
    failures: int = 0
    stalls: int = 0


class _Busy(Unreachable):
    """A server that wants to be asked later, perhaps after `pause` seconds."""

    def __init__(self, reason: str, pause: float | None):
        super().__init__(reason)
        self.pause = pause


@dataclass(frozen=True, slots=True)
class _Reply:
    status: int
    reason: str
    headers: httpx.Headers
    file: IO[bytes] | None

    @property
    def location(self) -> str | None:
        return self.headers.get("Location") if self.status in (301, 302, 303, 307, 308) else None


def _check(url: httpx.URL) -> None:
    """Raises Rejected for what is no http(s) address."""
    if url.scheme not in ("http", "https") or not url.host:
        raise Rejected(f"{url} is no http or https address")
    if url.port is not None and not 0 < url.port < 2**16:
        raise Rejected(f"{url.host}:{url.port} is no address: ports end at {2**16 - 1}")
    if url.userinfo:
        raise Rejected(f"the address at {url.host} has a login in it: name one that needs none")


@asynccontextmanager
async def _turn(turns: asyncio.Semaphore, clock: asyncio.Timeout) -> AsyncIterator[None]:
    """Waits for a turn while the clock stands still."""
    began, ends = asyncio.get_running_loop().time(), clock.when()
    clock.reschedule(None)
    async with turns:
        if ends is not None:
            clock.reschedule(ends + asyncio.get_running_loop().time() - began)
        yield


async def _pause(server: _Server, error: Unreachable, pause: float | None, clock: asyncio.Timeout) -> None:
    """Waits before the next try; raises the error if there is to be none, or no time for it."""
    server.failures += 1
    asked = error.pause if isinstance(error, _Busy) else None
    ends = clock.when()
    if pause is None or server.failures > (MANY if asked is None else MANY_PAUSES) or ends is None:
        raise error
    seconds = pause if asked is None else asked
    if asyncio.get_running_loop().time() + seconds >= ends:
        raise error
    await asyncio.sleep(seconds)


async def _read(link: str, response: httpcore.Response, max_bytes: int) -> _Reply:
    headers = httpx.Headers(response.headers)
    reason = response.extensions.get("reason_phrase", b"").decode("ascii", "replace")
    if response.status != httpx.codes.OK:
        received = 0
        async for chunk in response.aiter_stream():
            received += len(chunk)
            if received > IGNORED_BODY:
                break
        return _Reply(response.status, reason, headers, None)
    length = headers.get("Content-Length", "")
    _check_size(link, int(length) if length.isdecimal() else 0, max_bytes)
    file: IO[bytes] = tempfile.SpooledTemporaryFile(IN_MEMORY)  # noqa: SIM115  the caller closes it
    try:
        async for chunk in response.aiter_stream():
            file.write(chunk)
            _check_size(link, file.tell(), max_bytes)
        file.seek(0)
    except BaseException:
        file.close()
        raise
    return _Reply(response.status, reason, headers, file)


def _check_size(link: str, size: int, max_bytes: int) -> None:
    if size > max_bytes:
        raise Rejected(f"{link} is larger than {max_bytes / 2**20:g} MiB")


def _said(headers: httpx.Headers, name: str, form: re.Pattern[str]) -> str:
    value = headers.get(name, "").strip()
    return value if form.fullmatch(value) else ""


def _for_now(status: int) -> bool:
    return status == httpx.codes.TOO_MANY_REQUESTS or httpx.codes.is_server_error(status)


def _asked_pause(header: str) -> float | None:
    """Seconds of a Retry-After header, which is a number or a date; None where it is neither."""
    if re.fullmatch(r"\d{1,9}", header.strip()):
        return float(header)
    try:
        until = parsedate_to_datetime(header)
    except ValueError:
        return None
    return max(0.0, (until.replace(tzinfo=until.tzinfo or UTC) - datetime.now(UTC)).total_seconds())


def _unreachable(link: str, error: Exception) -> Rejected:
    kind = Rejected if "CERTIFICATE_VERIFY_FAILED" in str(error) else Unreachable  # that mends itself less often
    return kind(f"{link} cannot be fetched: {str(error) or type(error).__name__}")
