"""Decisions as a CSV, for people who work with a spreadsheet."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from pipelines.catalogue.spreadsheet import csv_parts
from pipelines.ledger.decisions import Decision

HEADING = (
    "decision", "decided_at", "by", "choice", "reason", "held_for", "sku", "scene", "channel", "run", "image", "batch",
    "acted_run", "undone_at", "undone_by",
)  # fmt: skip


def decisions_csv(decisions: Iterable[Decision]) -> Iterator[bytes]:
    """The CSV in parts. Times are UTC; `image` is the sha256 of the decided image."""
    return csv_parts(HEADING, (_row(one) for one in decisions))


def _row(one: Decision) -> tuple[object, ...]:
    times = [at and f"{at:%Y-%m-%d %H:%M:%S}" for at in (one.at, one.undone_at)]
    return (
        one.id, times[0], one.by, one.choice.value, one.reason, one.held_for, one.sku, one.scene, one.channel, one.run,
        one.final, one.batch, one.acted_run, times[1], one.undone_by,
    )  # fmt: skip
