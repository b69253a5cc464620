"""What a channel shows now, and what is no longer to be shown: products that left their feed.

The rows of `publications` that nothing superseded are the truth. Whoever publishes, undoes, rolls back or withdraws
changes them in one transaction; a stable address and the channel's feed are read from them at every request.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection, Engine, text

from pipelines.contracts import ShownImage

LEFT = "the product left its feed"
"""Who withdrew the images of such a product."""


def shown_images(engine: Engine, channel: str) -> Iterator[ShownImage]:
    """Every image that a channel shows, by the product's SKU, photo and scene, in one snapshot."""
    with engine.connect() as connection:
        found = connection.execution_options(yield_per=5000).execute(text(_OF_CHANNEL), {"channel": channel})
        for row in found:
            yield ShownImage(row.sku, row.scene, row.digest, row.photo_of or "")


def current_image(engine: Engine, channel: str, scene: str, sku: str) -> tuple[str, str] | None:
    """Digest and media type of the image that a channel shows of a product in a scene; None where it shows none."""
    with engine.connect() as connection:
        row = connection.execute(text(_CURRENT), {"channel": channel, "scene": scene, "sku": sku}).first()
    return None if row is None else (row.digest, row.media_type)


@dataclass(frozen=True, slots=True)
class SheetImage:
    """An image of a contact sheet; `id` is the number of its publication."""

    id: int
    sku: str
    title: str
    scene: str
    channel: str


def count_shown(engine: Engine, choice: Mapping[str, str]) -> tuple[int, datetime]:
    """How many images of a choice (`scene`, `channel`, `run`, `sku`; "" for all) are shown now, and when that is."""
    with engine.connect() as connection:
        now = connection.execute(text("SELECT now()")).scalar_one()
        count = connection.execute(text(f"SELECT count(*) {_ON_SHEET}"), {**choice, "made": now}).scalar_one()
    return count, now


def sheet_images(
    engine: Engine, choice: Mapping[str, str], made: datetime, limit: int, offset: int
) -> list[SheetImage]:
    """Some of the images of a choice that were shown at a time and not taken back since, in the order in which they
    were published."""
    values = {**choice, "made": made, "limit": limit, "offset": offset}
    with engine.connect() as connection:
        return [SheetImage(**row._asdict()) for row in connection.execute(text(_SHEET), values)]


def sheet_picture(engine: Engine, publication: int) -> str | None:
    """Digest of an image that was published under this number; None if it was taken back since."""
    query = text("SELECT digest FROM publications WHERE id = :id AND withdrawn_by IS NULL")
    with engine.connect() as connection:
        return connection.scalar(query, {"id": publication})


def withdraw_gone(connection: Connection) -> int:
    """Withdraws the images of all products that left their feed, in every scene and channel. Returns how many."""
    # one publisher at a time for a shot, in the order of `PostgresLedger.publish`
    shots = connection.scalars(text(_SHOWN_OF_GONE)).all()
    return connection.execute(text(_WITHDRAW), {"shots": shots, "by": LEFT}).rowcount


def feeds_behind(engine: Engine) -> list[str]:
    """Runs that ended, and whose feed is older than a withdrawal of an image that it may name: those that worked on the
    shot, and the newest run of their line that has it unchanged."""
    with engine.connect() as connection:
        return list(connection.scalars(text(_FEEDS_BEHIND)))


_OF_CHANNEL = """
SELECT s.sku, s.scene, p.digest, photo.photo_of
FROM publications p
JOIN shots s ON s.id = p.shot
LEFT JOIN (SELECT pr.sku, v.photo_of, v.photo_number FROM products pr
           JOIN product_versions v ON v.sku = pr.sku AND v.id = pr.version WHERE v.photo_of <> '') photo
       ON photo.sku = s.sku
WHERE p.superseded_at IS NULL AND s.channel = :channel
ORDER BY coalesce(photo.photo_of, s.sku) COLLATE "C", coalesce(photo.photo_number, 1), s.scene COLLATE "C"
"""

_CURRENT = """
SELECT p.digest, a.media_type
FROM shots s JOIN publications p ON p.shot = s.id AND p.superseded_at IS NULL JOIN artifacts a ON a.digest = p.digest
WHERE s.sku = :sku AND s.scene = :scene AND s.channel = :channel
"""

OF_SKU = """
(s.sku = :sku OR s.sku IN (SELECT f.sku FROM product_versions f WHERE f.photo_of = :sku AND f.photo_of <> ''))
"""
"""Whether a shot is of the product, or of one of its additional photos."""

_ON_SHEET = f"""
FROM publications p JOIN shots s ON s.id = p.shot
WHERE p.published_at <= :made AND (p.superseded_at IS NULL OR p.superseded_at > :made) AND p.withdrawn_by IS NULL
  AND (CAST(:scene AS text) = '' OR s.scene = :scene) AND (CAST(:channel AS text) = '' OR s.channel = :channel)
  AND (CAST(:run AS text) = '' OR p.run = :run) AND (CAST(:sku AS text) = '' OR {OF_SKU})
"""

_SHEET = f"""
SELECT shown.id, shown.sku, v.title, shown.scene, shown.channel
FROM (SELECT p.id, s.sku, s.scene, s.channel {_ON_SHEET} ORDER BY p.id LIMIT :limit OFFSET :offset) shown
JOIN products pr ON pr.sku = shown.sku JOIN product_versions v ON v.id = pr.version
ORDER BY shown.id
"""  # noqa: S608  # no value from outside

_SHOWN_OF_GONE = """
SELECT s.id FROM shots s
WHERE EXISTS (SELECT FROM products pr WHERE pr.sku = s.sku AND pr.left_at IS NOT NULL)
  AND EXISTS (SELECT FROM publications p WHERE p.shot = s.id AND p.superseded_at IS NULL)
ORDER BY s.id FOR UPDATE
"""

_WITHDRAW = """
UPDATE publications SET superseded_at = now(), withdrawn_by = :by
WHERE shot = ANY(CAST(:shots AS bigint[])) AND superseded_at IS NULL
"""

_FEEDS_BEHIND = """
WITH gone AS (
    SELECT shot, max(superseded_at) AS at FROM publications WHERE withdrawn_by IS NOT NULL GROUP BY shot
)
SELECT DISTINCT named.run
FROM gone
JOIN run_shots rs ON rs.shot = gone.shot
JOIN runs own ON own.id = rs.run
CROSS JOIN LATERAL (
    SELECT own.id AS run
    UNION
    (SELECT later.id FROM runs later
     WHERE own.line <> '' AND later.line = own.line AND later.number > own.number AND later.state <> 'running'
       AND (rs.until IS NULL OR rs.until > later.number)
     ORDER BY later.number DESC LIMIT 1)
) named
JOIN runs r ON r.id = named.run AND r.state <> 'running'
JOIN run_artifacts a ON a.run = named.run AND a.role = 'feed' AND a.created_at < gone.at
ORDER BY named.run
"""
