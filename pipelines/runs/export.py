"""A run's published images, byte for byte as stored, with their feed and a contact sheet of every shot."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from more_itertools import chunked

from pipelines.catalogue.feed import PublishedImage, published_feed
from pipelines.contracts import ShotState
from pipelines.errors import UsageError
from pipelines.ledger.postgres import PostgresLedger, connect
from pipelines.ledger.reports import ReportedShot, latest_run, report, reported_shots
from pipelines.runs.contact_sheet import SheetRow, contact_sheet
from pipelines.runs.local import SUFFIXES, file_name, sheet_row
from pipelines.settings import Settings
from pipelines.store import S3Store

SHOTS_AT_ONCE = 200
"""Shots whose steps are read at once."""


@dataclass(frozen=True, slots=True)
class ExportedImage:
    """One published image: `file` is relative to the export folder, `sha256` its name in the store."""

    sku: str
    file: str
    sha256: str


@dataclass(frozen=True, slots=True)
class Export:
    """What an export wrote."""

    run: str
    images: tuple[ExportedImage, ...]
    feed: Path
    contact_sheet: Path


def export_run(run: str, out: Path, settings: Settings) -> Export:
    """Writes the published images of `run`, their feed and a contact sheet into `out`.

    `run` may be "latest", the last one that `packshot run` triggered. Raises UsageError for an unknown run,
    and if the store no longer has one of its images.
    """
    engine = connect(settings.database_url)
    store, ledger = S3Store(settings), PostgresLedger(engine)
    run = latest_run(engine, settings.state_dir) if run == "latest" else run
    outcomes = reported_shots(engine, report(engine, run, with_shots=False).run)
    out.mkdir(parents=True, exist_ok=True)

    images, shown_images = [], []
    for shown in chunked((outcome for outcome in outcomes if outcome.state is ShotState.PUBLISHED), SHOTS_AT_ONCE):
        shots = ledger.shots(run, skus=[outcome.sku for outcome in shown])
        steps = ledger.chosen(run, shots)
        for shot in shots:
            artifact = next(a for a in steps[shot.sku]["publish"].outputs if a.role == "published")
            name = f"{file_name(shot.sku)}-{artifact.sha256[:12]}.{SUFFIXES[artifact.media_type]}"
            (out / name).write_bytes(_published(store, run, shot.sku, artifact.sha256))
            images.append(ExportedImage(shot.sku, name, artifact.sha256))
            about = shot.product
            shown_images.append(PublishedImage(about.sku, about.title, name, artifact.sha256, about.photo_of))
    with_additional = any(image.photo_of for image in shown_images)
    (out / "feed.csv").write_bytes(published_feed(shown_images, with_additional))
    sheet = out / "contact_sheet.png"
    contact_sheet(_sheet_rows(run, outcomes, ledger, store), [outcome.state for outcome in outcomes], sheet)
    return Export(run, tuple(images), out / "feed.csv", sheet)


def _published(store: S3Store, run: str, sku: str, digest: str) -> bytes:
    try:
        return store.get(digest)
    except KeyError as error:
        what = f"run {run}: the store no longer has the image of {sku} ({digest[:16]})"
        raise UsageError(f"{what}: it was pruned, or `packshot verify` names it; export a newer run") from error


def _sheet_rows(
    run: str, outcomes: Sequence[ReportedShot], ledger: PostgresLedger, store: S3Store
) -> Iterator[SheetRow]:
    """The rows of the contact sheet, some shots at a time."""
    for some in chunked(outcomes, SHOTS_AT_ONCE):
        shots = ledger.shots(run, skus=[outcome.sku for outcome in some])
        steps = ledger.chosen(run, shots)
        for shot, outcome in zip(shots, some, strict=True):
            yield sheet_row(shot, steps.get(shot.sku, {}), outcome.state, outcome.reason, store)
