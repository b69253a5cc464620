"""Removes from the store what nothing needs any more; `pipelines.ledger.pruning` says what that is.

The store is listed once. The steps are taken back first, then the objects go: what is interrupted leaves objects that
the next pruning finds. No run begins while objects are removed, and none may be in progress.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from more_itertools import chunked, map_reduce
from sqlalchemy import Connection

from pipelines.contracts import STAGES
from pipelines.errors import UsageError
from pipelines.ledger import pruning, snapshot
from pipelines.ledger.postgres import PostgresLedger
from pipelines.ledger.pruning import ORPHAN, Unneeded
from pipelines.store import S3Store

REMOVERS = 8
"""Objects that are removed at once."""

AT_ONCE = 1000
"""Objects that are removed while a run that begins has to wait."""


@dataclass(frozen=True, slots=True)
class PrunedKind:
    """Objects of one kind: the stage that made them, or `orphan`, their role there, how many, and bytes of them all."""

    made_by: str
    role: str
    objects: int
    bytes: int


@dataclass(frozen=True, slots=True)
class Pruned:
    """What nothing needs, by kind. `applied` says whether it was to be removed, `removed` how many objects were, and
    `steps` how many steps were taken back for it."""

    applied: bool
    objects: int
    bytes: int
    removed: int
    steps: int
    kinds: tuple[PrunedKind, ...]


def prune(
    ledger: PostgresLedger,
    store: S3Store,
    older_than: int,
    grace: int,
    keep: Sequence[str] = (),
    apply: bool = False,
    progress: Callable[[str, int, int | None], None] = lambda doing, count, total: None,
    now: datetime | None = None,
) -> Pruned:
    """Finds what nothing needs, and with `apply` removes it.

    Args:
        ledger: What it names.
        store: What is there.
        older_than: Days for which what is no longer needed stays.
        grace: Days for which an object that no row names stays.
        keep: Stages of which everything stays, or `orphan`.
        apply: Remove.
        progress: Is called with what is being done, the number of objects so far, and of how many.
        now: The time that days are counted from; the clock's by default.

    Raises:
        UsageError: a run or a backup is in progress, or `keep` names no stage.
    """
    for name in keep:
        if name not in (*STAGES, ORPHAN):
            raise UsageError(f"--keep {name}: it is none of {', '.join((*STAGES, ORPHAN))}")
    now = now or datetime.now(UTC)
    since, young = now - timedelta(days=older_than), now - timedelta(days=grace)
    with ledger.engine.begin() as connection:
        pruning.list_stored(connection, _counted(store, progress))
        if apply:
            _hold(connection)
        named = _named(store, pruning.documents(connection))
        found = pruning.find(connection, named, since, young, keep)
        steps = pruning.take_back(connection, [one.digest for one in found]) if apply else 0
    removed = _remove(ledger, store, found, progress) if apply else 0
    of_kind = map_reduce(found, lambda one: (one.made_by, one.role), lambda one: one.size)
    kinds = tuple(PrunedKind(*kind, len(sizes), sum(sizes)) for kind, sizes in sorted(of_kind.items(), key=_order))
    return Pruned(apply, len(found), sum(one.size for one in found), removed, steps, kinds)


def _hold(connection: Connection) -> None:
    """Lets neither a run nor a backup begin until the end of the transaction."""
    pruning.hold_runs(connection)
    if not snapshot.may_prune(connection):
        raise UsageError("a backup is in progress: prune when it has ended")


def _order(item: tuple[tuple[str, str], list[int]]) -> tuple[int, str]:
    (made_by, role), _ = item
    return (*STAGES, made_by).index(made_by), role


def _counted(store: S3Store, progress: Callable[[str, int, int | None], None]) -> Iterator[tuple[str, int, datetime]]:
    """Every object of the store."""
    for count, listed in enumerate(store.dated_objects(), 1):
        yield listed
        if count % AT_ONCE == 0:
            progress("Listing the store", count, None)


def _named(store: S3Store, documents: Sequence[str]) -> Iterator[str]:
    """Digests that these documents name."""
    for digest in documents:
        yield from (found.decode() for found in re.findall(rb"\b[0-9a-f]{64}\b", store.get(digest)))


def _remove(
    ledger: PostgresLedger,
    store: S3Store,
    found: Sequence[Unneeded],
    progress: Callable[[str, int, int | None], None],
) -> int:
    """Removes the objects, except what a run has made or named meanwhile. Returns how many."""
    removed = 0
    with ThreadPoolExecutor(REMOVERS) as pool:
        for chunk in chunked(found, AT_ONCE):
            with ledger.engine.begin() as connection:
                _hold(connection)
                digests = pruning.still_unneeded(connection, [one.digest for one in chunk])
                removed += len(list(pool.map(store.remove, digests)))
            progress("Removing", removed, len(found))
    return removed
