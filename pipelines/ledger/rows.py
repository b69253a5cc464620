"""The ledger's rows and what they mean: contracts to rows and back, and the statements that the ledger is built from.

Every function takes the connection of a transaction that its caller opened.
"""

from __future__ import annotations

import os
import socket
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import datetime
from typing import TYPE_CHECKING, Any

from more_itertools import chunked
from sqlalchemy import Connection, Row, Select, column, select, table, text, tuple_
from sqlalchemy.dialects.postgresql import insert

from pipelines.catalogue.manifest import Line
from pipelines.contracts import (
    Artifact,
    Job,
    ModelRef,
    Product,
    Shot,
    ShotStep,
    State,
    Step,
    Verdict,
)
from pipelines.errors import IntegrityError
from pipelines.ledger.schema import (
    artifacts,
    product_versions,
    products,
    run_steps,
    shots,
    step_inputs,
    step_models,
    step_outputs,
    steps,
    verdicts,
)

if TYPE_CHECKING:
    from pipelines.contracts import Publication

CHUNK = 1000
"""Keys or rows of one statement."""


def product_digest(product: Product) -> str:
    """Digest of a product's content in the feed. A product that only changed its row has the same digest."""
    return Line.of(product).content


def artifact_row(artifact: Artifact) -> dict[str, Any]:
    """Row of `artifacts`."""
    return {"digest": artifact.sha256, "media_type": artifact.media_type, "size": artifact.size}


def step_row(step: Step, run: str) -> dict[str, Any]:
    """Row of `steps`, with this host, process and run as its worker."""
    return {
        "key": step.key,
        "base": step.job.base,
        "stage": step.job.stage,
        "version": step.job.version,
        "parameters": dict(step.job.parameters),
        "seed": step.job.seed,
        "attempt": step.job.attempt,
        "state": step.state,
        "reason": step.reason.replace("\x00", "\ufffd"),  # an error may quote bytes that Postgres has no text for
        "facts": dict(step.facts),
        "seconds": step.seconds,
        "device": step.device,
        "worker": f"{socket.gethostname()}:{os.getpid()}",
        "run": run,
    }


def write_parts(connection: Connection, step: Step) -> None:
    """Writes a step's inputs, models, outputs and verdicts."""
    key = step.key
    inputs = [{"key": key, "role": role, "digest": digest} for role, digest in step.job.inputs.items()]
    outputs = [
        {"key": key, "role": made.role, "digest": made.sha256, "position": position}
        for position, made in enumerate(step.outputs)
    ]
    insert_missing(connection, step_inputs, inputs)
    insert_missing(connection, step_models, [{"key": key, **asdict(model)} for model in step.job.models])
    insert_missing(connection, step_outputs, outputs)
    insert_missing(
        connection, verdicts, [{"key": key, "position": i, **asdict(v)} for i, v in enumerate(step.verdicts)]
    )


def newest_keys(connection: Connection, keys: Sequence[str], states: Sequence[State]) -> dict[str, str]:
    """Requested key → key of the newest step in these states that has it as its base or as its key."""
    return {
        row.wanted: row.key
        for chunk in chunked(keys, CHUNK)
        for row in connection.execute(text(_NEWEST), {"keys": chunk, "states": list(states)})
    }


_NEWEST = """
SELECT wanted, newest.key
FROM unnest(CAST(:keys AS text[])) AS wanted
CROSS JOIN LATERAL (
    SELECT key FROM (
        SELECT key, created_at FROM steps WHERE base = wanted AND state = ANY(CAST(:states AS text[]))
        UNION ALL
        SELECT key, created_at FROM steps WHERE key = wanted AND state = ANY(CAST(:states AS text[]))
    ) step
    WHERE NOT EXISTS (SELECT FROM lost_steps WHERE lost_steps.key = step.key)
    ORDER BY created_at DESC, key LIMIT 1
) newest
"""


def read_steps(connection: Connection, keys: Sequence[str], states: Sequence[State]) -> dict[str, Step]:
    """Steps in these states, by key, with inputs, models, outputs and verdicts."""
    found: dict[str, Step] = {}
    for chunk in chunked(keys, CHUNK):
        rows = connection.execute(select(steps).where(steps.c.key.in_(chunk), steps.c.state.in_(states))).all()
        present = [row.key for row in rows]
        inputs = _by_key(connection, select(step_inputs).where(step_inputs.c.key.in_(present)))
        models = _by_key(
            connection,
            select(step_models).where(step_models.c.key.in_(present)).order_by(step_models.c.name),
        )
        outputs = _by_key(
            connection,
            select(step_outputs, artifacts.c.media_type, artifacts.c.size)
            .join(artifacts, step_outputs.c.digest == artifacts.c.digest)
            .where(step_outputs.c.key.in_(present))
            .order_by(step_outputs.c.position),
        )
        checks = _by_key(connection, select(verdicts).where(verdicts.c.key.in_(present)).order_by(verdicts.c.position))
        for row in rows:
            job = Job(
                stage=row.stage,
                version=row.version,
                inputs={i.role: i.digest for i in inputs[row.key]},
                parameters=row.parameters,
                models=tuple(ModelRef(m.name, m.revision, m.sha256) for m in models[row.key]),
                seed=row.seed,
                attempt=row.attempt,
            )
            found[row.key] = Step(
                key=row.key,
                job=job,
                state=State(row.state),
                outputs=tuple(Artifact(o.digest, o.role, o.media_type, o.size) for o in outputs[row.key]),
                facts=row.facts,
                verdicts=tuple(
                    Verdict(v.check, v.score, v.threshold, v.passed, v.reason, v.picture) for v in checks[row.key]
                ),
                reason=row.reason,
                seconds=row.seconds,
                device=row.device,
            )
    return found


def _by_key(connection: Connection, statement: Any) -> dict[str, list[Row]]:
    grouped: dict[str, list[Row]] = defaultdict(list)
    for row in connection.execute(statement):
        grouped[row.key].append(row)
    return grouped


def write_uses(connection: Connection, run: str, uses: Sequence[tuple[Shot, ShotStep]]) -> None:
    """Records which steps a run used for which shots. They replace those that it used before in the same stages."""
    numbers = shot_ids(connection, [shot for shot, _ in uses])
    rows = {
        "run": run,
        "shots": [numbers[shot.sku, shot.scene, shot.channel] for shot, _ in uses],
        "keys": [used.step.key for _, used in uses],
        "stages": [used.step.job.stage for _, used in uses],
        "reused": [used.reused for _, used in uses],
        "chosen": [used.chosen for _, used in uses],
    }
    connection.execute(text(_FORGET), rows)
    connection.execute(text(_USE), rows)


# By number, not by a join: a stage that no run was in when Postgres last counted has one row to it.
_FORGET = """
DELETE FROM run_steps
WHERE run = :run AND shot = ANY(CAST(:shots AS bigint[]))
  AND (shot, stage) IN (SELECT * FROM unnest(CAST(:shots AS bigint[]), CAST(:stages AS text[])))
  AND (shot, key) NOT IN (SELECT * FROM unnest(CAST(:shots AS bigint[]), CAST(:keys AS text[])))
"""

_USE = """
INSERT INTO run_steps (run, shot, key, stage, reused, chosen)
SELECT :run, used.shot, used.key, steps.stage, bool_and(used.reused) AND steps.run <> :run, bool_or(used.chosen)
FROM unnest(CAST(:shots AS bigint[]), CAST(:keys AS text[]), CAST(:reused AS boolean[]), CAST(:chosen AS boolean[]))
     AS used (shot, key, reused, chosen)
JOIN steps ON steps.key = used.key
GROUP BY used.shot, used.key, steps.stage, steps.run
ON CONFLICT (run, shot, key) DO UPDATE
SET chosen = excluded.chosen, reused = run_steps.reused AND excluded.reused
"""


def chosen_keys(
    connection: Connection, run: str, wanted: Sequence[Shot], stages: Sequence[str] | None
) -> list[tuple[str, str]]:
    """(SKU, key) of every chosen step of these shots."""
    statement = (
        select(shots.c.sku, run_steps.c.key)
        .join_from(run_steps, shots, run_steps.c.shot == shots.c.id)
        .where(run_steps.c.run == run, run_steps.c.chosen)
    )
    return _keys_of(connection, statement, wanted, stages)


shots_of_runs = table(
    "shots_of_runs",
    *(column(name) for name in ("run", "made_by", "position", "shot", "version", "row", "state", "reason", "settled")),
)
"""Every shot of every run: a view, see `pipelines.ledger.selection`."""


def inherited_keys(
    connection: Connection, run: str, wanted: Sequence[Shot], stages: Sequence[str] | None
) -> list[tuple[str, str]]:
    """(SKU, key) of every chosen step of these shots in the run that `run` has them from."""
    statement = (
        select(shots.c.sku, run_steps.c.key)
        .join_from(shots_of_runs, shots, shots_of_runs.c.shot == shots.c.id)
        .join(run_steps, (run_steps.c.run == shots_of_runs.c.made_by) & (run_steps.c.shot == shots_of_runs.c.shot))
        .where(shots_of_runs.c.run == run, shots_of_runs.c.made_by != run, run_steps.c.chosen)
    )
    return _keys_of(connection, statement, wanted, stages)


def _keys_of(
    connection: Connection, statement: Select[tuple[str, str]], wanted: Sequence[Shot], stages: Sequence[str] | None
) -> list[tuple[str, str]]:
    """(SKU, key) of a statement over `run_steps` and `shots`, of these shots and stages."""
    if stages is not None:
        statement = statement.where(run_steps.c.stage.in_(stages))
    names = tuple_(shots.c.sku, shots.c.scene, shots.c.channel)
    return [
        (row.sku, row.key)
        for chunk in chunked(_names(wanted), CHUNK)
        for row in connection.execute(statement.where(names.in_(chunk)))
    ]


def shot_ids(connection: Connection, wanted: Sequence[Shot]) -> dict[tuple[str, str, str], int]:
    """The numbers of shots; a new shot gets one."""
    add_shots(connection, wanted)
    return {
        (row.sku, row.scene, row.channel): row.id
        for chunk in chunked(_names(wanted), CHUNK)
        for row in connection.execute(text(_NUMBERS), _columns(chunk))
    }


def add_shots(connection: Connection, wanted: Sequence[Shot] | Sequence[Publication]) -> None:
    """Numbers new shots. The order is fixed, so that two runs that add the same shots do not deadlock."""
    for chunk in chunked(_names(wanted), CHUNK):
        connection.execute(text(_ADD), _columns(chunk))


def _names(wanted: Sequence[Shot] | Sequence[Publication]) -> list[tuple[str, str, str]]:
    return sorted({(shot.sku, shot.scene, shot.channel) for shot in wanted})


def _columns(names: Sequence[tuple[str, str, str]]) -> dict[str, list[str]]:
    return {column: [name[n] for name in names] for n, column in enumerate(("skus", "scenes", "channels"))}


_NUMBERS = """
SELECT shots.*
FROM unnest(CAST(:skus AS text[]), CAST(:scenes AS text[]), CAST(:channels AS text[])) AS wanted (sku, scene, channel)
JOIN shots USING (sku, scene, channel)
"""

# Known shots are left out first, because a conflict uses up a number. Collation "C" is Python's order.
_ADD = """
INSERT INTO shots (sku, scene, channel)
SELECT sku, scene, channel
FROM unnest(CAST(:skus AS text[]), CAST(:scenes AS text[]), CAST(:channels AS text[])) AS wanted (sku, scene, channel)
WHERE NOT EXISTS (SELECT FROM shots known WHERE known.sku = wanted.sku AND known.scene = wanted.scene
                  AND known.channel = wanted.channel)
ORDER BY sku COLLATE "C", scene COLLATE "C", channel COLLATE "C"
ON CONFLICT DO NOTHING
"""

_PLACE = """
INSERT INTO run_shots (run, position, shot, version, row, shard)
SELECT :run, position, shots.id, newest.id, wanted.row, position / :shard_size
FROM unnest(CAST(:skus AS text[]), CAST(:scenes AS text[]), CAST(:channels AS text[]), CAST(:contents AS text[]),
            CAST(:rows AS int[])) WITH ORDINALITY AS wanted (sku, scene, channel, content, row, nth)
CROSS JOIN LATERAL (SELECT (:start + nth - 1)::int AS position) place
JOIN shots USING (sku, scene, channel)
CROSS JOIN LATERAL (SELECT id FROM product_versions
                    WHERE product_versions.sku = wanted.sku AND product_versions.content = wanted.content
                    ORDER BY id DESC LIMIT 1) newest
RETURNING position
"""


def add_versions(connection: Connection, items: Sequence[Product], now: datetime) -> None:
    """Write a version of each product and make it the current one."""
    if not items:
        return
    rows = [
        {
            "sku": product.sku,
            "content": product_digest(product),
            "title": product.title,
            "category": product.category,
            "image_link": product.image_link,
            "photo": product.photo,
            "photo_problem": product.photo_problem,
            "item_group_id": product.item_group_id,
            "extra": dict(product.extra),
            "photo_of": product.photo_of,
            "photo_number": product.photo_number,
            "changed_at": now,
        }
        for product in items
    ]
    written = insert(product_versions).returning(product_versions.c.sku, product_versions.c.id)
    versions = dict(connection.execute(written, rows).tuples().all())
    statement = insert(products)
    connection.execute(
        statement.on_conflict_do_update(
            index_elements=[products.c.sku],
            set_={"version": statement.excluded.version},
        ),
        [{"sku": p.sku, "row": p.row, "version": versions[p.sku], "first_seen_at": now} for p in items],
    )


def place_shots(connection: Connection, run: str, selected: Sequence[Shot], shard_size: int) -> None:
    """Writes the run's shots in this order, each with the newest version of its product's content. Raises
    IntegrityError for a product without such a version."""
    for start, chunk in zip(range(0, len(selected), CHUNK), chunked(selected, CHUNK), strict=True):
        placed = connection.execute(
            text(_PLACE),
            {
                "run": run,
                "start": start,
                "shard_size": shard_size,
                **_columns([(shot.sku, shot.scene, shot.channel) for shot in chunk]),
                "contents": [product_digest(shot.product) for shot in chunk],
                "rows": [shot.product.row for shot in chunk],
            },
        )
        missing = set(range(start, start + len(chunk))) - set(placed.scalars())
        if missing:
            raise IntegrityError(f"product {selected[min(missing)].sku!r} is not in the ledger as it was selected")


def product_of(row: Row) -> Product:
    """The product of a row of `product_versions` joined with its feed row."""
    return Product(
        sku=row.sku,
        row=row.row,
        title=row.title,
        category=row.category,
        photo=row.photo,
        photo_problem=row.photo_problem,
        image_link=row.image_link,
        item_group_id=row.item_group_id,
        extra=row.extra,
        photo_of=row.photo_of,
        photo_number=row.photo_number,
    )


def shot_of(row: Row) -> Shot:
    """The shot of a row of `product_versions` joined with its feed row, scene and channel."""
    return Shot(product_of(row), row.scene, row.channel)


def insert_missing(connection: Connection, table: Any, rows: Sequence[Mapping[str, Any]]) -> None:
    """Inserts the rows whose key is new."""
    if rows:
        connection.execute(insert(table).on_conflict_do_nothing(), rows)
