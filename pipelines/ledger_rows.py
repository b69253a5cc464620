"""The ledger's rows and what they mean: contracts to rows and back, and the statements that the ledger is built from.

Every function takes the connection of a transaction that its caller opened.
"""

from __future__ import annotations

import os
import socket
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from datetime import datetime
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection, Row, func, select, text, tuple_
from sqlalchemy.dialects.postgresql import insert

from pipelines.contracts import Artifact, Job, ModelRef, Product, Shot, State, Step, Verdict, canonical_json, sha256_hex
from pipelines.errors import IntegrityError
from pipelines.schema import (
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
    from pipelines.ledger import Publication

CHUNK = 1000
"""Keys or rows of one statement."""


def product_digest(product: Product) -> str:
    """Digest of what a feed says about a product. The row is left out: a product that only moved is unchanged."""
    content = asdict(product)
    del content["row"]
    return sha256_hex(canonical_json(content).encode())


def artifact_row(artifact: Artifact) -> dict[str, Any]:
    """Row of `artifacts`."""
    return {"digest": artifact.sha256, "media_type": artifact.media_type, "size": artifact.size}


def step_row(step: Step) -> dict[str, Any]:
    """Row of `steps`, signed by this host and process."""
    return {
        "key": step.key,
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
    }


def write_parts(connection: Connection, step: Step) -> None:
    """What hangs on a step: inputs, models, outputs, verdicts."""
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


def read_steps(connection: Connection, keys: Sequence[str], states: Sequence[State]) -> dict[str, Step]:
    """Steps in these states, by key, with all that hangs on them."""
    found: dict[str, Step] = {}
    for chunk in chunks(keys):
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


def chosen_keys(connection: Connection, run: str, wanted: Sequence[Shot]) -> list[tuple[str, str]]:
    """(SKU, key) of every chosen step of these shots."""
    statement = (
        select(shots.c.sku, run_steps.c.key)
        .join_from(run_steps, shots, run_steps.c.shot == shots.c.id)
        .where(run_steps.c.run == run, run_steps.c.chosen)
    )
    return [
        (row.sku, row.key)
        for chunk in chunks([(s.sku, s.scene, s.channel) for s in wanted])
        for row in connection.execute(statement.where(tuple_(shots.c.sku, shots.c.scene, shots.c.channel).in_(chunk)))
    ]


def shot_ids(connection: Connection, wanted: Sequence[Shot] | Sequence[Publication]) -> dict[tuple[str, str, str], int]:
    """The shots' numbers; shots that were never seen before get one."""
    names = sorted({(shot.sku, shot.scene, shot.channel) for shot in wanted})
    numbers: dict[tuple[str, str, str], int] = {}
    for chunk in chunks(names):
        insert_missing(connection, shots, [dict(zip(("sku", "scene", "channel"), name, strict=True)) for name in chunk])
        for row in connection.execute(
            select(shots).where(tuple_(shots.c.sku, shots.c.scene, shots.c.channel).in_(chunk))
        ):
            numbers[row.sku, row.scene, row.channel] = row.id
    return numbers


def current_contents(connection: Connection, skus: Sequence[str]) -> dict[str, str]:
    """SKU → content digest of its current version; the rows are locked, so that two feeds do not cross."""
    rows = connection.execute(
        select(products.c.sku, product_versions.c.content)
        .join_from(products, product_versions, products.c.version == product_versions.c.id)
        .where(products.c.sku.in_(skus))
        .order_by(products.c.sku)
        .with_for_update(of=products)
    )
    return dict(rows.tuples().all())


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


def move_rows(connection: Connection, items: Sequence[Product]) -> None:
    """Note where in the feed the products are, where that has changed."""
    connection.execute(
        text(
            "UPDATE products SET row = moved.row FROM unnest(CAST(:skus AS text[]), CAST(:rows AS int[]))"
            " AS moved (sku, row) WHERE products.sku = moved.sku AND products.row <> moved.row"
        ),
        {"skus": [p.sku for p in items], "rows": [p.row for p in items]},
    )


def version_ids(connection: Connection, items: Sequence[Product]) -> dict[str, int]:
    """SKU → the newest version that says what this product says."""
    wanted = {product.sku: product_digest(product) for product in items}
    found: dict[str, int] = {}
    for chunk in chunks(sorted(wanted.items())):
        found |= dict(
            connection.execute(
                select(product_versions.c.sku, func.max(product_versions.c.id))
                .where(tuple_(product_versions.c.sku, product_versions.c.content).in_(chunk))
                .group_by(product_versions.c.sku)
            )
            .tuples()
            .all()
        )
    for sku in wanted.keys() - found.keys():
        raise IntegrityError(f"product {sku!r} is not in the ledger as it was selected")
    return found


def product_of(row: Row) -> Product:
    """The product that a row of `product_versions`, with the feed row beside it, stands for."""
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
    )


def insert_missing(connection: Connection, table: Any, rows: Sequence[Mapping[str, Any]]) -> None:
    """Insert what is not there yet."""
    if rows:
        connection.execute(insert(table).on_conflict_do_nothing(), rows)


def chunks(items: Sequence[Any]) -> Iterable[Sequence[Any]]:
    """Cut into pieces that one statement takes."""
    return (items[start : start + CHUNK] for start in range(0, len(items), CHUNK))
