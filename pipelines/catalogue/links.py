"""The bytes behind a catalogue's links: a file beside the catalogue, or a page at a public address. Nothing else.

A catalogue comes from outside. Its paths may not leave its folder, by `..`, by root or by symlink. Its addresses
must not lead into this program's network (server-side request forgery): every resolved address is checked, at every
redirect. The connection goes to the checked address, so that a second answer of the name server changes nothing.
"""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import os
import re
import socket
import ssl
import stat
import threading
from contextlib import suppress
from difflib import get_close_matches
from functools import lru_cache, partial
from itertools import islice
from pathlib import Path, PurePosixPath, PureWindowsPath
from unicodedata import normalize
from urllib.parse import unquote

import httpx

from pipelines.errors import Rejected

USER_AGENT = "packshot"

MEDIA_TYPE = re.compile(r"[a-z0-9!#$&^_.+-]{1,64}/[a-z0-9!#$&^_.+-]{1,64}")

MOST_NAMES = 10_000
"""Names of a folder that are searched for one like a missing file's."""


class Unreachable(Rejected):
    """A photo that cannot be had for now: a server that is busy or down, a name or a network that is away."""


def is_web(link: str) -> bool:
    """Whether a link is an address and not a path."""
    return "://" in link


def read_beside(folder: Path, link: str, max_bytes: int) -> bytes:
    """The file at `link`, relative to `folder` and inside of it. Raises Rejected with the reason it cannot be had.

    Tools spell one path in several ways. Those are tried in this order: as written, with `%20` and its like decoded,
    with `/` for `\\`, and each in both normal forms of Unicode.
    """
    failed: OSError | ValueError | None = None
    for spelling in _spellings(link):
        if PurePosixPath(spelling).is_absolute() or PureWindowsPath(spelling).drive:
            raise Rejected(f"{link} is an absolute path: name the file relative to the catalogue")
        try:
            return _read_inside(folder, spelling, max_bytes)
        except (OSError, ValueError) as error:  # ValueError: a NUL in the name
            failed = failed or error
    assert failed is not None  # a link has one spelling at least
    raise Rejected(_why_unreadable(folder, link, failed)) from failed


def _spellings(link: str) -> list[str]:
    written = [link, unquote(link), link.replace("\\", "/"), unquote(link).replace("\\", "/")]
    forms = [normal for name in written for normal in (name, normalize("NFC", name), normalize("NFD", name))]
    return list(dict.fromkeys(forms))


def _read_inside(folder: Path, link: str, max_bytes: int) -> bytes:
    target = Path(os.path.realpath(folder / link))
    if not target.is_relative_to(os.path.realpath(folder)):
        raise Rejected(f"{link} leaves the catalogue's folder: put the file into it")
    # resolved, so it is no link; should it become one now, or a pipe, it is not followed and not waited for
    descriptor = os.open(target, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    with open(descriptor, "rb") as file:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise Rejected(f"{link} is no file")
        _check_size(link, found.st_size, max_bytes)
        return file.read()


def _why_unreadable(folder: Path, link: str, error: OSError | ValueError) -> str:
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        near = _near_name(folder, link)
        remedy = f"is it {near}?" if near else "put the file into the catalogue's folder or correct the path"
        return f"{link} is not there: {remedy}"
    if isinstance(error, IsADirectoryError):
        return f"{link} is no file"
    if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
        return f"{link[:80]}… is too long for a file name"
    return f"{link!r} cannot be read: {getattr(error, 'strerror', None) or error}"


def _near_name(folder: Path, link: str) -> str:
    """A file beside the missing one whose name is nearly its name, as a link; "" where there is none."""
    parent = Path(os.path.realpath(folder / _spellings(link)[-1])).parent
    if not parent.is_relative_to(os.path.realpath(folder)) or not parent.is_dir():
        return ""
    names = {normalize("NFC", name).casefold(): name for name in islice(os.listdir(parent), MOST_NAMES)}
    wanted = normalize("NFC", PurePosixPath(_spellings(link)[-1]).name).casefold()
    close = get_close_matches(wanted, names, n=1, cutoff=0.8)
    return str((parent / names[close[0]]).relative_to(os.path.realpath(folder))) if close else ""


@lru_cache
def certificates() -> ssl.SSLContext:
    """The authorities of https. Cached: reading them takes longer than a small photo."""
    return httpx.create_ssl_context(trust_env=False)


def _check_size(link: str, size: int, max_bytes: int) -> None:
    if size > max_bytes:
        raise Rejected(f"{link} is larger than {max_bytes / 2**20:g} MiB")


NOT_PUBLIC = tuple(
    map(ipaddress.ip_network, ("192.0.0.0/24", "192.88.99.0/24", "168.63.129.16/32", "fec0::/10", "64:ff9b:1::/48"))
)
"""Networks that Python counts as global and that are none: IETF assignments, the old 6to4 relays, Azure's host,
site-local addresses, and a local use of NAT64."""


async def checked_address(host: str, port: int, allow_private: bool) -> str:
    """One address of the host, when all of them are public or `allow_private`. Raises Rejected, or Unreachable if the
    name server does not answer."""
    try:
        addresses = await _addresses(host, port)
    except socket.gaierror as error:
        away = error.errno == socket.EAI_AGAIN
        raise (Unreachable if away else Rejected)(f"{host} is no known host{' for now' * away}") from error
    for address in addresses:
        if not allow_private and not is_public(address):
            raise Rejected(f"{host} is at {address}, which is no public address")
    return addresses[0]


async def _addresses(host: str, port: int) -> list[str]:
    """The host's addresses. Raises socket.gaierror, or another OSError of the resolver.

    A resolver cannot be interrupted. The event loop's own executor would wait for it at the end, so a daemon thread
    asks: neither the loop nor the process waits for an answer that comes too late.
    """
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[list[str]] = loop.create_future()

    def settle(addresses: list[str], error: OSError | UnicodeError | None) -> None:
        if answer.done():  # cancelled: the time was up
            return
        answer.set_exception(error) if error else answer.set_result(addresses)

    def ask() -> None:
        addresses: list[str] = []
        failed: OSError | UnicodeError | None = None
        try:
            addresses = [str(entry[4][0]) for entry in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]
        except (OSError, UnicodeError) as error:
            failed = error
        with suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(partial(settle, addresses, failed))

    threading.Thread(target=ask, name=f"resolve {host[:64]}", daemon=True).start()
    return await answer


def is_public(address: str) -> bool:
    """Whether an IP address is one of the internet at large, also when it is written into an IPv6 address (mapped,
    6to4, Teredo, NAT64)."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if any(ip in network for network in NOT_PUBLIC if network.version == ip.version):
        return False
    if isinstance(ip, ipaddress.IPv6Address):
        embedded = [ip.ipv4_mapped, ip.sixtofour, *(ip.teredo or ())]
        low = int(ip) & 0xFFFFFFFF
        if ip in ipaddress.ip_network("64:ff9b::/96") or ip in ipaddress.ip_network("::/96"):
            embedded.append(ipaddress.IPv4Address(low))
        if (int(ip) >> 32) & 0xFDFFFFFF == 0x00005EFE:  # ISATAP (RFC 5214): an interface id of 0[2]00:5efe:IPv4
            embedded.append(ipaddress.IPv4Address(low))
        if any(inner is not None and not is_public(str(inner)) for inner in embedded):
            return False
        if ip.ipv4_mapped is not None:
            return True
    return ip.is_global and not (ip.is_multicast or ip.is_reserved or ip.is_unspecified)
