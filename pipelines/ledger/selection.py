"""What a run works on: how a feed differs from the ledger, and from what the runs before left, in a few statements.

Runs that select in the same way form a line. A row of `run_shots` stands for its run and for the later runs of its
line, until one of them replaces it (`until`). So a run writes rows for its differences alone: products that are new,
changed or gone, and shots that are not settled. `sql/views/shots_of_runs.sql` is how a run's shots are read.

A shot is settled when nothing is left to be tried under its run's recipe. `outcomes.settle_shots` says so at the end of
a run. A forced step, a decision and a lost object take it back at once; a later publication by another line counts
when the next run is planned.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, cast

from more_itertools import chunked
from sqlalchemy import Connection, text

from pipelines.catalogue.manifest import Line
from pipelines.contracts import Changes
from pipelines.errors import IntegrityError, UsageError
from pipelines.ledger import outcomes, rows


@dataclass(frozen=True, slots=True)
class Selected:
    """Shots of a run: those that it has to look at, and those that stand as an earlier run left them."""

    shots: int
    unchanged: int


MOST_LOST = 0.2
"""Share of a feed's products that may be gone at its next reading without anybody's word."""


def upsert(
    connection: Connection,
    lines: Iterable[Line],
    now: datetime,
    feed: str = "",
    accept_loss: bool = False,
    additional_photos: int = 0,
) -> Changes:
    """Updates the products to a feed. A product that differs gets a new version, dated `now`. `lines` is read twice
    where something differs.

    `feed` names a whole feed: products that its last reading had and this one has not have left it. A feed that has no
    product of its last reading is another catalogue of that name, and nothing leaves. Raises UsageError if more than
    MOST_LOST left, unless `accept_loss`.

    An additional photo leaves with its product, or alone where the reading looked for it: it looked for so many
    `additional_photos` of a product. Products alone are counted.
    """
    connection.execute(text(_LOCK), {"name": "packshot feed"})
    count = _list(connection, lines)
    gone = _leave(connection, feed, now, accept_loss, additional_photos) if feed else 0
    new = {row.sku: row.new for row in connection.execute(text(_DIFFERING))}
    if new:
        for chunk in chunked((line for line in lines if line.sku in new), rows.CHUNK):
            rows.add_versions(connection, [line.product for line in chunk], now)
    connection.execute(text(_MOVE))
    connection.execute(text(_UNSETTLE_RETURNED))
    connection.execute(text(_JOIN), {"feed": feed})
    listed = connection.execute(text("SELECT sku FROM listed WHERE photo_of <> ''")).scalars()
    photos = set(listed)
    products = {sku: is_new for sku, is_new in new.items() if sku not in photos}
    fresh = sum(products.values())
    return Changes(fresh, len(products) - fresh, count - len(photos) - len(products), gone)


def _leave(connection: Connection, feed: str, now: datetime, accept_loss: bool, additional_photos: int) -> int:
    """Notes which products left the feed of this name; returns how many."""
    known = connection.execute(text(_KNOWN), {"feed": feed}).one()
    if known.lost == known.all and not accept_loss:  # none in common
        connection.execute(text("UPDATE products SET feed = '' WHERE feed = :feed AND left_at IS NULL"), {"feed": feed})
        return 0
    if known.lost > MOST_LOST * known.all and not accept_loss:
        raise UsageError(
            f"feed {feed} lost {known.lost} of its {known.all} products ({known.lost / known.all:.0%}), and a loss of "
            f"more than {MOST_LOST:.0%} is not taken unseen: mend the feed, or start the run with --accept-loss (on "
            "the form: 'Accept loss'), which withdraws their images"
        )
    connection.execute(text(_LEAVE), {"feed": feed, "now": now, "looked_at": 1 + additional_photos})
    return int(known.lost)


def refresh(
    connection: Connection,
    run: str,
    lines: Iterable[Line],
    scene: str,
    channel: str,
    line: str,
    recipe: str,
    forced: bool,
) -> Selected:
    """Selects these products for a run of this line, and writes rows for what differs; with `forced`, for all.

    A run without a line ("") stands alone, and so does one that is planned for the first time after a later one of its
    line. A run that is planned again is selected anew, except where a later run of its line builds on it: then its
    selection stays.

    Raises IntegrityError for a product that was not upserted.
    """
    connection.execute(text(_LOCK), {"name": f"packshot line {line}"})
    about = {"run": run, "scene": scene, "channel": channel, "line": line, "recipe": recipe}
    before = connection.execute(text(_BEFORE), about).one()
    if line and before.is_built_on and before.line == line:
        return _selected(connection, run)
    if before.is_built_on:
        about["line"] = ""
    about["number"] = before.number
    outcomes.remove_shots(connection, run)
    connection.execute(text(_REOPEN), about)
    connection.execute(text("UPDATE runs SET line = :line, recipe = :recipe, put_off = 0 WHERE id = :run"), about)

    _list(connection, lines)
    connection.execute(text(_ADD_SHOTS), about)
    connection.execute(text(_WANTED), about)
    connection.execute(text("ANALYZE wanted"))
    missing = connection.scalar(text("SELECT sku FROM wanted WHERE version IS NULL ORDER BY nth LIMIT 1"))
    if missing is not None:
        raise IntegrityError(f"product {missing!r} is not in the ledger as it was selected")
    connection.execute(text(_KEPT), about | {"forced": forced})
    connection.execute(text("ANALYZE kept"))
    connection.execute(text(_UNTIL), about)
    connection.execute(text(_PLACE), about)
    # without fresh statistics Postgres expects one row for this run, and settles it with nested loops
    connection.execute(text("ANALYZE run_shots"))
    selected = _selected(connection, run)
    counted = about | {"count": selected.shots + selected.unchanged}
    connection.execute(text("UPDATE runs SET selected = :count WHERE id = :run"), counted)
    return selected


def cut(connection: Connection, run: str, positions: Sequence[int], size: int) -> int:
    """Puts these of the run's shots into shards of `size`, in order; the others need no stage. Returns how many."""
    connection.execute(text("UPDATE run_shots SET shard = NULL WHERE run = :run AND shard IS NOT NULL"), {"run": run})
    for number, chunk in enumerate(chunked(positions, rows.CHUNK)):
        shards = [(number * rows.CHUNK + nth) // size for nth in range(len(chunk))]
        connection.execute(text(_CUT), {"run": run, "positions": chunk, "shards": shards})
    return -(-len(positions) // size)


def adopt_unsettled(connection: Connection, run: str) -> None:
    """Makes those shots the run's own that an earlier run left it and that are settled no more, with their steps."""
    connection.execute(text(_LOCK), {"name": "packshot adopt"})
    adopted = connection.execute(text(_ADOPT), {"run": run}).all()
    shots = {"run": run, "shots": [row.shot for row in adopted]}
    if adopted:
        connection.execute(text(_ADOPT_STEPS), shots)
        connection.execute(text(_HAND_OVER), shots)


def _selected(connection: Connection, run: str) -> Selected:
    return Selected(*connection.execute(text(_COUNT), {"run": run}).one())


def _list(connection: Connection, lines: Iterable[Line]) -> int:
    """Copies SKU, row, content digest and `photo_of` of these lines into a temporary table; returns how many."""
    connection.execute(text("DROP TABLE IF EXISTS listed"))
    connection.execute(text(_LISTED))
    copied, cursor = _Text(lines), cast("Any", connection.connection.cursor())  # psycopg2's
    cursor.copy_expert("COPY listed FROM STDIN WITH (FORMAT csv)", copied)
    connection.execute(text("ANALYZE listed"))
    return copied.count


class _Text(io.TextIOBase):
    """Lines as a file in Postgres' CSV, made while it is read."""

    def __init__(self, lines: Iterable[Line]):
        self.count = 0
        self._parts = self._encoded(lines)

    def readable(self) -> bool:
        return True

    def read(self, size: int | None = -1) -> str:
        """The next lines, "" at the end."""
        return next(self._parts, "")

    def _encoded(self, lines: Iterable[Line]) -> Iterator[str]:
        for chunk in chunked(lines, 50):  # psycopg2 takes no more than it asked for: 8 KiB
            yield "".join(
                f"{self.count + nth},{_quoted(line.sku)},{line.row},{line.content},{_quoted(line.photo_of)}\n"
                for nth, line in enumerate(chunk)
            )
            self.count += len(chunk)


def _quoted(value: str) -> str:
    return f'"{value.replace(chr(34), chr(34) * 2)}"'


_LISTED = """
CREATE TEMPORARY TABLE listed (nth int, sku text, row int, content text, photo_of text) ON COMMIT DROP
"""

_LOCK = "SELECT pg_advisory_xact_lock(hashtextextended(:name, 0))"

_DIFFERING = """
SELECT l.sku, p.sku IS NULL AS new
FROM listed l LEFT JOIN products p ON p.sku = l.sku LEFT JOIN product_versions v ON v.id = p.version
WHERE v.content IS DISTINCT FROM l.content
"""

_MOVE = """
UPDATE products SET row = l.row FROM listed l WHERE products.sku = l.sku AND products.row <> l.row
"""

_KNOWN = """
SELECT count(*) AS "all", count(*) FILTER (WHERE l.sku IS NULL) AS lost
FROM products p LEFT JOIN listed l ON l.sku = p.sku
WHERE p.feed = :feed AND p.left_at IS NULL
  AND NOT EXISTS (SELECT FROM product_versions v WHERE v.id = p.version AND v.photo_of <> '')
"""

# of the additional photos that nobody looked for, those leave whose product does
_LEAVE = """
UPDATE products p SET left_at = :now FROM product_versions v
WHERE v.id = p.version AND p.feed = :feed AND p.left_at IS NULL
  AND NOT EXISTS (SELECT FROM listed l WHERE l.sku = p.sku)
  AND (v.photo_number <= :looked_at OR NOT EXISTS (SELECT FROM listed l WHERE l.sku = v.photo_of))
"""

# what was shown of a product before it left is to be shown again, in all scenes and channels
_UNSETTLE_RETURNED = """
UPDATE run_shots SET settled = false
FROM products p JOIN listed l ON l.sku = p.sku JOIN shots s ON s.sku = p.sku
WHERE p.left_at IS NOT NULL AND run_shots.shot = s.id AND run_shots.settled
"""

# part of a feed tells nothing of where a product belongs, only that it is there
_JOIN = """
UPDATE products p SET feed = CASE WHEN :feed = '' THEN p.feed ELSE :feed END, left_at = NULL
FROM listed l WHERE l.sku = p.sku AND (p.left_at IS NOT NULL OR p.feed <> :feed AND :feed <> '')
"""

_BEFORE = """
SELECT r.number, r.line,
       EXISTS (SELECT FROM runs later WHERE later.line = :line AND later.number > r.number) AS is_built_on
FROM runs r WHERE r.id = :run
"""

_REOPEN = """
UPDATE run_shots SET until = NULL FROM runs r
WHERE r.id = run_shots.run AND r.line = :line AND :line <> '' AND run_shots.until = :number
"""

_ADD_SHOTS = """
INSERT INTO shots (sku, scene, channel)
SELECT l.sku, :scene, :channel FROM listed l
WHERE NOT EXISTS (SELECT FROM shots s WHERE s.sku = l.sku AND s.scene = :scene AND s.channel = :channel)
ORDER BY l.sku COLLATE "C"
ON CONFLICT DO NOTHING
"""

# the current version where its content is the line's, else the newest one that had it
_WANTED = """
CREATE TEMPORARY TABLE wanted ON COMMIT DROP AS
SELECT l.nth, l.sku, l.row, s.id AS shot, coalesce(v.id, old.id) AS version
FROM listed l
JOIN shots s ON s.sku = l.sku AND s.scene = :scene AND s.channel = :channel
LEFT JOIN products p ON p.sku = l.sku
LEFT JOIN product_versions v ON v.id = p.version AND v.content = l.content
LEFT JOIN LATERAL (SELECT max(o.id) AS id FROM product_versions o
                   WHERE v.id IS NULL AND o.sku = l.sku AND o.content = l.content) old ON true
"""

# A later run of another line may have published another image of the shot meanwhile: then it is looked at again.
_KEPT = """
CREATE TEMPORARY TABLE kept ON COMMIT DROP AS
SELECT w.shot
FROM runs r
JOIN run_shots rs ON rs.run = r.id AND rs.until IS NULL
JOIN wanted w ON w.shot = rs.shot AND w.version = rs.version
LEFT JOIN publications p ON p.shot = rs.shot AND p.superseded_at IS NULL
LEFT JOIN runs shown ON shown.id = p.run
WHERE NOT :forced AND :line <> '' AND r.line = :line AND r.number < :number AND r.recipe = :recipe
  AND rs.settled AND (shown.number IS NULL OR shown.number <= r.number)
"""

_UNTIL = """
UPDATE run_shots SET until = :number FROM runs r
WHERE r.id = run_shots.run AND :line <> '' AND r.line = :line AND r.number < :number AND run_shots.until IS NULL
  AND NOT EXISTS (SELECT FROM kept k WHERE k.shot = run_shots.shot)
"""

_PLACE = """
INSERT INTO run_shots (run, position, shot, version, row)
SELECT :run, w.nth, w.shot, w.version, w.row FROM wanted w
WHERE NOT EXISTS (SELECT FROM kept k WHERE k.shot = w.shot)
"""

# what was put off stands as another recipe left it: the next wave takes it up
_ADOPT = """
INSERT INTO run_shots (run, position, shot, version, row, until)
SELECT :run, (SELECT coalesce(max(position), -1) FROM run_shots WHERE run = :run) + row_number() OVER (ORDER BY a.row),
       a.shot, a.version, a.row, rs.until
FROM shots_of_runs a JOIN run_shots rs ON rs.run = a.made_by AND rs.shot = a.shot
JOIN runs r ON r.id = a.made_by JOIN runs n ON n.id = a.run
WHERE a.run = :run AND a.made_by <> :run AND NOT a.settled AND r.recipe = n.recipe
RETURNING shot
"""

_ADOPT_STEPS = """
INSERT INTO run_steps (run, shot, key, stage, reused, chosen)
SELECT :run, u.shot, u.key, u.stage, true, u.chosen
FROM run_shots rs
JOIN runs r ON r.id = rs.run
JOIN runs n ON n.id = :run AND n.line = r.line AND n.number > r.number
JOIN run_steps u ON u.run = rs.run AND u.shot = rs.shot
WHERE rs.shot = ANY(CAST(:shots AS bigint[])) AND (rs.until IS NULL OR rs.until > n.number)
ON CONFLICT DO NOTHING
"""

_HAND_OVER = """
UPDATE run_shots SET until = n.number
FROM runs r, runs n
WHERE r.id = run_shots.run AND n.id = :run AND n.line = r.line AND r.number < n.number
  AND run_shots.shot = ANY(CAST(:shots AS bigint[])) AND (run_shots.until IS NULL OR run_shots.until > n.number)
"""

_CUT = """
UPDATE run_shots SET shard = cut.shard
FROM unnest(CAST(:positions AS int[]), CAST(:shards AS int[])) AS cut (position, shard)
WHERE run_shots.run = :run AND run_shots.position = cut.position
"""

_COUNT = """
SELECT count(*) FILTER (WHERE made_by = :run), count(*) FILTER (WHERE made_by <> :run)
FROM shots_of_runs WHERE run = :run
"""
