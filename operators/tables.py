"""Checking a table of the run, what follows when a check fails, and the feed of what is shown.

`pipelines.ledger.checked` reads the tables.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from airflow.sdk.exceptions import AirflowFailException

from operators.base import PROBLEM, PackshotOperator, Services

if TYPE_CHECKING:
    from airflow.sdk import Context

    from pipelines.contracts import Publication
    from pipelines.ledger.checked import Columns
    from pipelines.quality.tables import Failure, Table
    from pipelines.scenes import Scene

ROWS_NAMED = 50
"""Rows of a failed expectation that the run's report names; the validation document has all of them."""


def publication_columns(services: Services, run: str, scene: Scene, finals: Sequence[str] | None = None) -> Columns:
    """The set of the run that is about to be shown, one row an image; with `finals`, the images made of those."""
    from pipelines.ledger import checked

    channel = scene.channel
    common = {
        "scene": scene.name, "channel": channel.name, "min_width": channel.min_width, "min_height": channel.min_height,
    }  # fmt: skip
    with services.ledger.engine.connect() as connection:
        return checked.publication(connection, run, common, finals)


def images_of(rows: Columns) -> list[Publication]:
    """The images of such a set."""
    from pipelines.contracts import Publication

    named = (rows[column] for column in ("sku", "scene", "channel", "digest"))
    return [Publication(*image) for image in zip(*named, strict=True)]


def attach_feed(services: Services, run: str) -> None:
    """Attaches the feed of the run's published images, unchanged ones too: never of what is not shown."""
    from pipelines.catalogue.feed import PublishedImage, published_feed
    from pipelines.contracts import Artifact
    from pipelines.ledger import checked
    from pipelines.store import object_name

    bucket = services.settings.s3_bucket
    engine = services.ledger.engine
    feed = published_feed(
        (
            PublishedImage(sku, title, f"s3://{bucket}/{object_name(digest)}", digest, photo_of)
            for sku, title, digest, photo_of in checked.shown(engine, run)
        ),
        with_additional=checked.shows_additional(engine, run),
    )
    digest = services.store.put(feed, "text/csv")
    services.ledger.attach(run, Artifact(digest, "feed", "text/csv", len(feed)))


def check_table(
    task: PackshotOperator, services: Services, context: Context, table: Table, rows: Columns
) -> dict[str, Any]:
    """Validates `rows` against the suite of `table`, and attaches the document to the run; returns its digest.

    A failed critical expectation is recorded in the run, with its rows, and raised as AirflowFailException, because a
    retry would fail again. A failed warning is logged.
    """
    from pipelines.contracts import Artifact
    from pipelines.quality.tables import validate

    result = validate(table, rows)
    data = json.dumps(result.document, indent=1, sort_keys=True).encode()
    digest = services.store.put(data, "application/json")
    services.ledger.attach(task.run, Artifact(digest, f"validation of the {table}", "application/json", len(data)))
    critical = [failure for failure in result.failures if failure.critical]
    for failure in result.failures:
        task.log.warning("expectation failed", table=table, expectation=_said(failure), critical=failure.critical)
    if critical:
        problem = {
            "reason": f"table check `{table}`: " + "; ".join(_said(failure) for failure in critical),
            "table": table,
            "failures": [
                {
                    "expectation": failure.expectation,
                    "column": failure.column,
                    "reason": failure.reason,
                    "rows": list(failure.rows[:ROWS_NAMED]),
                }
                for failure in critical
            ],
            "document": digest,
        }
        services.ledger.finish_run(task.run, "failed", problem)
        context["ti"].xcom_push(key=PROBLEM, value=problem)
        raise AirflowFailException(problem["reason"])
    return {
        "table": table,
        "rows": len(next(iter(rows.values()))),
        "document": digest,
        "warnings": [_said(failure) for failure in result.failures],
    }


def _said(failure: Failure) -> str:
    """The expectation and the rows that violate it, on one line."""
    named = ", ".join(failure.rows[:5]) + (", …" if len(failure.rows) > 5 else "")
    return f"{failure.reason} ({failure.expectation} on {failure.column or 'the table'})" + (named and f": {named}")
