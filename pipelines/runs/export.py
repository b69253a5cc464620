"""A run's published images, byte for byte as stored, with their feed and a contact sheet of every shot."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pipelines.catalogue.feed import published_feed
from pipelines.contracts import ShotState
from pipelines.ledger.postgres import PostgresLedger, connect
from pipelines.ledger.reports import latest_run, report
from pipelines.runs.contact_sheet import contact_sheet
from pipelines.runs.local import SUFFIXES, file_name, sheet_row
from pipelines.settings import Settings
from pipelines.store import S3Store


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

    `run` may be "latest", the last one that `packshot run` triggered. Raises UsageError for an unknown run.
    """
    engine = connect(settings.database_url)
    store, ledger = S3Store(settings), PostgresLedger(engine)
    run = latest_run(engine, settings.state_dir) if run == "latest" else run
    states = {shot.sku: (shot.state, shot.reason) for shot in report(engine, run).shots}
    shots = ledger.shots(run)
    steps = ledger.chosen(run, shots)
    out.mkdir(parents=True, exist_ok=True)

    images = []
    for shot in shots:
        if states[shot.sku][0] is ShotState.PUBLISHED:
            artifact = next(a for a in steps[shot.sku]["publish"].outputs if a.role == "published")
            name = f"{file_name(shot.sku)}-{artifact.sha256[:12]}.{SUFFIXES[artifact.media_type]}"
            (out / name).write_bytes(store.get(artifact.sha256))
            images.append(ExportedImage(shot.sku, name, artifact.sha256))
    titles = {shot.sku: shot.product.title for shot in shots}
    (out / "feed.csv").write_bytes(published_feed((i.sku, titles[i.sku], i.file, i.sha256) for i in images))
    sheet = out / "contact_sheet.png"
    rows = (sheet_row(shot, steps.get(shot.sku, {}), *states[shot.sku], store) for shot in shots)
    contact_sheet(rows, [states[shot.sku][0] for shot in shots], sheet)
    return Export(run, tuple(images), out / "feed.csv", sheet)
