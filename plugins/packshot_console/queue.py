"""The queue of held images: a few at a time, in the order in which they were held, oldest run first."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from sqlalchemy import Connection, Row, text

from packshot_console.photos import PHOTOS, photo_words
from packshot_console.services import ledger
from packshot_console.walks import Walk, read_walks
from pipelines.ledger.decisions import IN_SELECTION, Selection

SEAT_SECONDS = 120.0
"""For so long, images that were handed to one open page are not handed to another."""


@dataclass(frozen=True, slots=True)
class QueueItem:
    """An image with all that a person needs to decide it. `spot`: it passed, and was drawn for a spot check. `photo`
    says which of its product's photos it is of, "" where there is one."""

    final: str
    run: str
    sku: str
    title: str
    category: str
    scene: str
    channel: str
    row: int
    photo: str
    reason: str
    checks: tuple[str, ...]
    spot: bool
    held_at: datetime
    walk: Walk


@dataclass(frozen=True, slots=True)
class Choices:
    """What a queue can be narrowed to, each with its number of images."""

    runs: tuple[tuple[str, int], ...]
    scenes: tuple[tuple[str, int], ...]
    checks: tuple[tuple[str, int], ...]


def items(selection: Selection, after: str, limit: int, seat: str = "") -> tuple[list[QueueItem], int]:
    """The next held images after the image `after`, or from the queue's start where that is ""; and how many images the
    selection has. The queue is read once for both.

    Images that another seat was handed lately are left out of the first. That is a convenience, held in this process
    alone: what keeps two people from deciding one image is the ledger.
    """
    values = {**selection.values(), "after": after, "limit": limit, "taken": _taken_by_others(seat)}
    with ledger().engine.connect() as connection:
        rows = connection.execute(text(_NEXT), values).all()
        found = _read(connection, [row for row in rows if row.final is not None])
    _take([item.final for item in found], seat)
    return found, rows[0].images


def item(final: str) -> QueueItem | None:
    """One image of the queue, or one that left it; None if no run ever held it."""
    with ledger().engine.connect() as connection:
        return next(iter(_read(connection, connection.execute(text(_ONE), {"final": final}).all())), None)


def described(finals: Sequence[str]) -> list[tuple[str, str, str]]:
    """(final, title, reason) of held images, in the given order. One that left the queue meanwhile is left out."""
    with ledger().engine.connect() as connection:
        rows = connection.execute(text(_DESCRIBED), {"finals": list(finals)})
        return [(row.final, row.title, row.reason) for row in rows]


def choices() -> Choices:
    """Runs, scenes and checks of the queue, those with most images first."""
    found: dict[str, list[tuple[str, int]]] = {"run": [], "scene": [], "check": []}
    with ledger().engine.connect() as connection:
        for row in connection.execute(text(_CHOICES)):
            found[row.kind].append((row.name, row.images))
    return Choices(*(tuple(found[kind][:50]) for kind in ("run", "scene", "check")))


def _read(connection: Connection, rows: Sequence[Row]) -> list[QueueItem]:
    walks = read_walks(connection, {(row.run, row.shot): row.photo for row in rows})
    return [
        QueueItem(
            final=row.final,
            run=row.run,
            sku=row.sku,
            title=row.title,
            category=row.category,
            scene=row.scene,
            channel=row.channel,
            row=row.row,
            photo=photo_words(row.photo_number, row.photos),
            reason=row.reason,
            checks=tuple(row.checks),
            spot=row.spot,
            held_at=row.started_at,
            walk=replace(walks[row.run, row.shot], steps=()),
        )
        for row in rows
    ]


# ------------------------------------------------------------------------------------------------------ seats

_lock = threading.Lock()
_seats: dict[str, tuple[str, float]] = {}
"""Image → the seat that it was handed to, and until when."""


def _taken_by_others(seat: str) -> list[str]:
    now = time.monotonic()
    with _lock:
        for final in [final for final, (_, until) in _seats.items() if until < now]:
            del _seats[final]
        return [final for final, (owner, _) in _seats.items() if owner != seat]


def _take(finals: list[str], seat: str) -> None:
    if seat:
        with _lock:
            for final in finals:
                _seats.setdefault(final, (seat, time.monotonic() + SEAT_SECONDS))


def leave(seat: str) -> None:
    """A page was closed, or filters otherwise now: what it was handed is free."""
    with _lock:
        for final in [final for final, (owner, _) in _seats.items() if owner == seat]:
            del _seats[final]


# The queue is counted and cut by what an index has of it; only then the images of this answer are looked up.
_NEXT = f"""
WITH q AS MATERIALIZED (
    SELECT q.started_at, q.run, q.position, q.final, q.spot FROM review_queue q
    WHERE {IN_SELECTION}
), next AS (
    SELECT * FROM q
    WHERE q.final <> ALL(CAST(:taken AS text[]))
      AND (CAST(:after AS text) = '' OR (q.started_at, q.run, q.position) > (
          SELECT r.started_at, rs.run, rs.position FROM run_shots rs JOIN runs r ON r.id = rs.run
          WHERE rs.final = :after ORDER BY rs.state = 'held' DESC, r.started_at DESC, r.id DESC LIMIT 1))
    ORDER BY q.started_at, q.run, q.position LIMIT :limit
)
SELECT counted.images, item.*
FROM (SELECT count(*) AS images FROM q) counted
LEFT JOIN (
    SELECT next.started_at, next.run, next.position, next.final, next.spot, shown.shot, shown.row, shown.reason,
           shown.checks, shown.scene, shown.channel, v.sku, v.title, v.category, v.photo,
           v.photo_number, {PHOTOS} AS photos
    FROM next
    CROSS JOIN LATERAL (
        SELECT * FROM review_queue q WHERE q.run = next.run AND q.position = next.position OFFSET 0) shown
    JOIN product_versions v ON v.id = shown.version
) item ON true
ORDER BY item.started_at, item.run, item.position
"""  # noqa: S608  # no value from outside

_ONE = f"""
SELECT r.started_at, rs.run, rs.shot, rs.row, rs.final, rs.reason, rs.checks, r.scene, r.channel, v.sku, v.title,
       v.category, v.photo, v.photo_number, {PHOTOS} AS photos,
       rs.state = 'published' AND EXISTS (SELECT FROM spot_checks c WHERE c.final = rs.final) AS spot
FROM run_shots rs
JOIN runs r ON r.id = rs.run
JOIN product_versions v ON v.id = rs.version
WHERE rs.final = :final
ORDER BY rs.state = 'held' DESC, r.started_at DESC, r.id DESC LIMIT 1
"""  # noqa: S608  # no value from outside

_DESCRIBED = """
SELECT wanted.final, v.title, rs.reason
FROM unnest(CAST(:finals AS text[])) WITH ORDINALITY AS wanted (final, nth)
CROSS JOIN LATERAL (
    SELECT rs.reason, rs.version FROM run_shots rs JOIN runs r ON r.id = rs.run
    WHERE rs.final = wanted.final AND rs.state = 'held' ORDER BY r.started_at DESC, r.id DESC LIMIT 1) rs
JOIN product_versions v ON v.id = rs.version
ORDER BY wanted.nth
"""

_CHOICES = """
WITH q AS MATERIALIZED (SELECT run, scene, checks FROM review_queue)
SELECT * FROM (
    SELECT 'run' AS kind, run AS name, count(*) AS images FROM q GROUP BY run
    UNION ALL
    SELECT 'scene', scene, count(*) FROM q GROUP BY scene
    UNION ALL
    SELECT 'check', name, count(*) FROM q, unnest(checks) AS name GROUP BY name
) counted ORDER BY images DESC, name
"""
