"""A person overrules the checks: an image that was held, and is right, may be published (`packshot approve`)."""

from __future__ import annotations

from dataclasses import dataclass

from pipelines.contracts import ShotState
from pipelines.errors import UsageError
from pipelines.ledger.postgres import PostgresLedger
from pipelines.ledger.reports import report, reported_shots


@dataclass(frozen=True, slots=True)
class Approval:
    """An image that a person approved: `final` is its sha256, `reason` what it was held for."""

    run: str
    sku: str
    final: str
    reason: str
    by: str


def approve(ledger: PostgresLedger, run: str, sku: str, by: str) -> Approval:
    """Approves the image of product `sku` that `run` held. The next publication includes it.

    The approval covers these bytes only, no other image of the product. Raises UsageError for an unknown run, a product
    that is not in it or that no check held, and a product without an image.
    """
    report(ledger.engine, run, with_shots=False)  # raises for an unknown run
    found = next(iter(reported_shots(ledger.engine, run, sku=sku)), None)
    if found is None:
        raise UsageError(f"run {run} has no product {sku!r}: `packshot report {run}` lists what was not published")
    if found.state is not ShotState.HELD:
        raise UsageError(f"{sku} is {found.state} in run {run}: only a held image is approved")
    [shot] = ledger.shots(run, skus=[sku])
    steps = ledger.chosen(run, [shot])[sku]
    if all(verdict.passed for step in steps.values() for verdict in step.verdicts):
        raise UsageError(f"{sku} passed its checks; the whole publication was stopped: {found.reason}")
    if "inspect" not in steps:
        raise UsageError(f"{sku} has no image in run {run} yet: wait until it was inspected")
    final = steps["inspect"].job.inputs["final"]
    return Approval(run, sku, final, found.reason, ledger.approve(final, by))
