"""Checking a table of the run, and what follows when a check fails. `pipelines.ledger.checked` reads the tables."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from airflow.sdk.exceptions import AirflowFailException

from operators.base import PROBLEM, PackshotOperator, Services

if TYPE_CHECKING:
    from airflow.sdk import Context

    from pipelines.contracts import Shot, Step
    from pipelines.ledger.checked import Columns
    from pipelines.quality.tables import Failure, Table
    from pipelines.scenes import Channel

ROWS_NAMED = 50
"""Rows of a failed expectation that the run's report names; the validation document has all of them."""


def publication_rows(
    shots: Iterable[Shot], steps: Mapping[str, Mapping[str, Step]], grounds: Mapping[str, str | None], channel: Channel
) -> list[dict[str, Any]]:
    """The set about to be published, one row an image. `grounds`: SKU → why it may be ."""
    return [
        {
            "key": f"{shot.sku}/{shot.scene}/{shot.channel}",
            "sku": shot.sku,
            "scene": shot.scene,
            "channel": shot.channel,
            "digest": next((a.sha256 for a in published.outputs if a.role == "published"), None),
            "final": published.job.inputs.get("final"),
            "width": published.facts.get("width"),
            "height": published.facts.get("height"),
            "min_width": channel.min_width,
            "min_height": channel.min_height,
            # the verdicts speak for the very image that was inspected, and for no other
            "approval": grounds.get(shot.sku)
            if inspected.job.inputs["final"] == published.job.inputs["final"]
            else None,
        }
        for shot in shots
        for published, inspected in [(steps[shot.sku]["publish"], steps[shot.sku]["inspect"])]
    ]


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
