"""Is every object that the ledger names in the store, and can what is not be had again?

The store is listed once. Sizes are compared; bytes are read and hashed on request. A repair fetches photos again from
their addresses and takes back the steps whose outputs are lost: the next run makes these anew, and nothing else.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from more_itertools import chunked

from pipelines.catalogue.downloads import fetch
from pipelines.catalogue.links import is_web
from pipelines.contracts import STAGES, sha256_hex
from pipelines.errors import PackshotError
from pipelines.ledger import lost
from pipelines.ledger.postgres import PostgresLedger
from pipelines.settings import Settings
from pipelines.store import S3Store

READERS = 8
"""Objects that are read at once."""


@dataclass(frozen=True, slots=True)
class LostObject:
    """An object that is `missing` or `damaged`. `remedy` says what was done, or what a person has to do; `open` whether
    somebody has to."""

    digest: str
    problem: str
    made_by: str
    sku: str
    remedy: str
    open: bool


@dataclass(frozen=True, slots=True)
class Verified:
    """Result of a comparison: how many objects the ledger names, and those that the store has lost."""

    objects: int
    lost: tuple[LostObject, ...]


def verify(
    ledger: PostgresLedger,
    store: S3Store,
    settings: Settings,
    read: bool = False,
    repair: bool = False,
    progress: Callable[[int], None] = lambda count: None,
) -> Verified:
    """Compares the ledger with the store; with `read`, hashes every object's bytes; with `repair`, mends what it can.

    `progress` is called with the number of objects that were read so far.
    """
    count, missing, damaged = lost.not_stored(ledger.engine, store.objects())
    gone = {*missing, *damaged}
    if read:
        unreadable = _unreadable(store, lost.all_named(ledger.engine), progress)
        damaged += [digest for digest in unreadable if digest not in gone]
    if repair:
        for digest in damaged:
            store.remove(digest)  # the server would take the same bytes for there
    about = lost.describe(ledger.engine, [*missing, *damaged])
    if repair:
        ledger.withdraw([one.digest for one in about if one.made_by in STAGES])
    problems = dict.fromkeys(missing, "missing") | dict.fromkeys(damaged, "damaged")
    found = []
    for one in about:
        remedy, is_open = _remedy(one, store, settings, repair)
        found.append(LostObject(one.digest, problems[one.digest], one.made_by, one.sku, remedy, is_open))
    return Verified(count, tuple(found))


def _unreadable(store: S3Store, digests: Iterable[str], progress: Callable[[int], None]) -> Iterator[str]:
    """The objects whose bytes cannot be read, or are not what their name says."""

    def is_sound(digest: str) -> bool:
        try:
            store.get(digest)
        except KeyError:
            return True  # missing: the listing says so
        except Exception:  # whatever the server answers to a broken block; that it is up, the other objects show
            return False
        return True

    done = 0
    with ThreadPoolExecutor(READERS) as pool:
        for chunk in chunked(digests, 100):
            sound = list(pool.map(is_sound, chunk))
            if not any(sound):
                store.get(chunk[0])  # none of them: then it is the server, and its error ends the comparison
            yield from (digest for digest, good in zip(chunk, sound, strict=True) if not good)
            done += len(chunk)
            progress(done)


def _remedy(one: lost.Named, store: S3Store, settings: Settings, repair: bool) -> tuple[str, bool]:
    """What was done about a lost object, or has to be done; and whether somebody has to."""
    if one.made_by in STAGES:
        done = "taken back: the next run of its catalogue makes it anew"
        return (done, False) if repair else ("`packshot verify --repair`, then run its catalogue", True)
    if one.made_by == "photo" and is_web(one.link):
        if not repair:
            return f"`packshot verify --repair` fetches {one.link}", True
        return _fetched(one, store, settings)
    if one.made_by == "photo":
        return f"run the catalogue with {one.link} again: `packshot run` puts its photos into the store", True
    return "none: it is a document of a run that has ended", False


def _fetched(one: lost.Named, store: S3Store, settings: Settings) -> tuple[str, bool]:
    """Fetches a photo again from its address."""
    limit, seconds, private = settings.photo_max_bytes, settings.photo_timeout_seconds, settings.allow_private_links
    try:
        photo = asyncio.run(fetch(one.link, limit, seconds, private))
    except PackshotError as error:
        return f"{one.link} does not give it: {error}", True
    if sha256_hex(photo.data) != one.digest:
        return f"{one.link} has another photo now: run the catalogue again", True
    store.put(photo.data, photo.media_type or "application/octet-stream")
    return f"fetched from {one.link}", False
