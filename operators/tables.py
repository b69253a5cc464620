"""The tables that are checked: their rows, read from the ledger, and what follows when a check fails."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from airflow.sdk.exceptions import AirflowFailException

from operators.base import PROBLEM, PackshotOperator, Services

if TYPE_CHECKING:
    from airflow.sdk import Context

    from pipelines.contracts import Shot, Step
    from pipelines.quality.tables import Failure, Table
    from pipelines.scenes import Channel

Row = dict[str, Any]

ROWS_NAMED = 50
"""Rows of a failed expectation that the run's report names; the validation document has all of them."""


def catalogue_rows(shots: Iterable[Shot]) -> list[Row]:
    """The run's products as they were read, one row a product."""
    return [
        {
            "sku": shot.sku,
            "row_number": shot.product.row,
            "title": shot.product.title,
            "category": shot.product.category,
            "photo": shot.product.photo,
            "photo_problem": shot.product.photo_problem,
        }
        for shot in shots
    ]


def score_rows(shots: Iterable[Shot], steps: Mapping[str, Mapping[str, Step]]) -> list[Row]:
    """Every verdict on the run's shots, one row a verdict."""
    return [
        {
            "sku": shot.sku,
            "check": verdict.check,
            "score": verdict.score,
            "threshold": verdict.threshold,
            "passed": verdict.passed,
        }
        for shot in shots
        for step in steps.get(shot.sku, {}).values()
        for verdict in step.verdicts
    ]


def publication_rows(
    shots: Iterable[Shot], steps: Mapping[str, Mapping[str, Step]], grounds: Mapping[str, str | None], channel: Channel
) -> list[Row]:
    """The set about to be published, one row an image. `grounds`: SKU → why it may be (`grounds_for_publication`)."""
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


def grounds_for_publication(
    services: Services, shots: Sequence[Shot], steps: Mapping[str, Mapping[str, Step]]
) -> dict[str, str | None]:
    """SKU → why its image may be published, for every image without an objection.

    `approved` if a person approved it, `passed` if all its verdicts passed and no person rejected it. None if it has
    no verdict: it stays in the set, so that the table check stops the set.
    """
    from pipelines.contracts import State
    from pipelines.ledger.decisions import Choice

    inspected = {s.sku: steps[s.sku]["inspect"] for s in shots if "inspect" in steps.get(s.sku, {})}
    finals = {sku: step.job.inputs["final"] for sku, step in inspected.items() if step.state is State.DONE}
    decided = services.ledger.decided(sorted(finals.values()))
    grounds: dict[str, str | None] = {}
    for sku, final in finals.items():
        verdicts = [verdict for step in steps[sku].values() for verdict in step.verdicts]
        if decided.get(final) is Choice.APPROVE:
            grounds[sku] = "approved"
        elif decided.get(final) is Choice.REJECT:
            continue
        elif all(verdict.passed for verdict in verdicts):
            grounds[sku] = "passed" if verdicts else None
    return grounds


def check_table(
    task: PackshotOperator, services: Services, context: Context, table: Table, rows: Sequence[Row]
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
        "rows": len(rows),
        "document": digest,
        "warnings": [_said(failure) for failure in result.failures],
    }


def _said(failure: Failure) -> str:
    """The expectation and the rows that violate it, on one line."""
    named = ", ".join(failure.rows[:5]) + (", …" if len(failure.rows) > 5 else "")
    return f"{failure.reason} ({failure.expectation} on {failure.column or 'the table'})" + (named and f": {named}")
