"""The photos of a feed: read beside it or fetched, and put into the store.

What a link gave is remembered in the ledger with the server's ETag and Last-Modified. The next time its server is
asked whether the photo changed, and an unchanged one is not sent. A fetch that was killed goes on where it was.
"""

from __future__ import annotations

import asyncio
import mimetypes
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeVar, TypeVarTuple

from more_itertools import chunked

from pipelines.catalogue.downloads import Client, Download, Validators
from pipelines.catalogue.links import Unreachable, is_web, read_beside
from pipelines.errors import Rejected, Unavailable

if TYPE_CHECKING:
    from pipelines.contracts import Store
    from pipelines.settings import Settings

T = TypeVar("T")
Arguments = TypeVarTuple("Arguments")

AT_ONCE = 256
"""Links that are under way at once."""

STORING = 8
"""Threads that talk to the store and the ledger."""

CHUNK = 500
"""Links that the ledger is asked about, and remembers, at once. A killed fetch repeats these and those under way."""

MANY = 10
"""If at least this many photos, and more than half of all, are unreachable, we assume a network outage."""


@dataclass(frozen=True, slots=True)
class FetchedPhoto:
    """What a link gave when it was last asked: the photo's digest, and how to ask whether it changed."""

    photo: str
    validators: Validators


class Memory(Protocol):
    """What links gave before."""

    def recall(self, links: Sequence[str]) -> dict[str, FetchedPhoto]:
        """What these links gave; those that never gave a photo are left out."""

    def recent(self, links: Sequence[str]) -> set[str]:
        """Those of the links that this fetch asked already, before it was killed."""

    def remember(self, photos: Mapping[str, FetchedPhoto]) -> None:
        """Keep what links gave just now."""


@dataclass(frozen=True, slots=True)
class Source:
    """Where photos come from: `folder` is the feed's, None where the feed came from the web."""

    folder: Path | None
    settings: Settings


async def fetch_photos(
    links: Iterable[str], source: Source, store: Store, memory: Memory | None = None
) -> dict[str, str | Rejected]:
    """Link → digest in the store, or why there is none. Each link is read once.

    Raises Unavailable in a network outage: `MANY` photos, and more than half of all, are unreachable.
    """
    settings = source.settings
    client = Client(
        settings.photo_max_bytes,
        settings.photo_timeout_seconds,
        settings.allow_private_links,
        settings.photo_connections,
    )
    with ThreadPoolExecutor(STORING, thread_name_prefix="photos") as threads:
        async with client:
            fetching = _Fetching(client, source, store, memory, threads)
            await fetching.run(links)
    photos = fetching.photos
    away = [problem for problem in photos.values() if isinstance(problem, Unreachable)]
    if len(away) >= MANY and 2 * len(away) > len(photos):
        raise Unavailable(f"{len(away)} of {len(photos)} photos cannot be reached for now; the first: {away[0].reason}")
    return photos


class _Fetching:
    """One call of `fetch_photos`: `AT_ONCE` workers take links from a queue that is filled as the ledger answers."""

    def __init__(
        self, client: Client, source: Source, store: Store, memory: Memory | None, threads: ThreadPoolExecutor
    ):
        self.client = client
        self.source = source
        self.store = store
        self.memory = memory
        self.threads = threads
        self.photos: dict[str, str | Rejected] = {}
        self.unsaved: dict[str, FetchedPhoto] = {}
        self.queue: asyncio.Queue[tuple[str, FetchedPhoto | None] | None] = asyncio.Queue(AT_ONCE)

    async def run(self, links: Iterable[str]) -> None:
        """Fetch all links. Whatever ends it, what was fetched is remembered."""
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(AT_ONCE):
                    group.create_task(self._work())
                await self._fill(links)
        except BaseExceptionGroup as failed:
            raise failed.exceptions[0] from None
        finally:
            if self.memory is not None and self.unsaved:
                self.memory.remember(self.unsaved)

    async def _fill(self, links: Iterable[str]) -> None:
        for chunk in chunked(links, CHUNK):
            known: Mapping[str, FetchedPhoto] = {}
            if self.memory is not None and (web := [link for link in chunk if is_web(link)]):
                known = await self._thread(self.memory.recall, web)
                done = await self._thread(self.memory.recent, web)
                self.photos |= {link: known[link].photo for link in done}
            for link in chunk:
                if link not in self.photos:
                    await self.queue.put((link, known.get(link)))
        for _ in range(AT_ONCE):
            await self.queue.put(None)

    async def _work(self) -> None:
        while (item := await self.queue.get()) is not None:
            link, known = item
            try:
                self.photos[link] = await (self._fetch(link, known) if is_web(link) else self._thread(self._read, link))
            except Rejected as problem:
                self.photos[link] = problem

    async def _fetch(self, link: str, known: FetchedPhoto | None) -> str:
        download = await self.client.get(link, known.validators if known else None)
        if known is not None and download.file is None and not await self._thread(self.store.has, known.photo):
            download = await self.client.get(link)
        if known is None or download.file is not None:
            known = await self._thread(self._put, link, download, known)
        await self._remember(link, known)
        return known.photo

    def _put(self, link: str, download: Download, known: FetchedPhoto | None) -> FetchedPhoto:
        assert download.file is not None  # an answer without bytes is one about a known photo
        with download.file as file:
            data = file.read()
        _refuse_empty(link, data)
        media_type = download.media_type or _media_type(link)
        return FetchedPhoto(self.store.put(data, media_type, new=known is None), download.validators)

    def _read(self, link: str) -> str:
        if self.source.folder is None:
            raise Rejected(
                f"{link} is a path, and the catalogue came from the web: name photos by http or https addresses"
            )
        data = read_beside(self.source.folder, link, self.source.settings.photo_max_bytes)
        _refuse_empty(link, data)
        return self.store.put(data, _media_type(link))

    async def _remember(self, link: str, photo: FetchedPhoto) -> None:
        self.unsaved[link] = photo
        if self.memory is not None and len(self.unsaved) >= CHUNK:
            full, self.unsaved = self.unsaved, {}
            await self._thread(self.memory.remember, full)

    async def _thread(self, call: Callable[[*Arguments], T], *arguments: *Arguments) -> T:
        return await asyncio.get_running_loop().run_in_executor(self.threads, call, *arguments)


def _refuse_empty(link: str, data: bytes) -> None:
    if not data:
        raise Rejected(f"{link} is empty (0 bytes)")


def _media_type(link: str) -> str:
    return mimetypes.guess_type(link)[0] or "application/octet-stream"
