"""Runs through Airflow, and what became of them: `packshot run | campaign | report | approve | lineage | export`."""

from __future__ import annotations

import getpass
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipelines.cli.console import (
    AsJson,
    ChannelNames,
    RunId,
    SceneName,
    answer,
    as_warnings,
    err,
    exit_code,
    line,
    progress_bar,
    table,
)
from pipelines.contracts import Reprocess, run_of_channel
from pipelines.errors import PackshotError, UsageError

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text
    from sqlalchemy import Engine

    from pipelines.ledger.reports import Report
    from pipelines.services.airflow_client import Airflow

app = typer.Typer()

FAILURES_SHOWN = 5
"""Failed tasks that are named. A full disk may fail hundreds of shards."""

ReprocessOption = Annotated[Reprocess, typer.Option("--reprocess", help="Which finished steps to compute again.")]


@app.command()
def run(
    catalogue: Annotated[
        Path, typer.Argument(metavar="CATALOG", help="CSV, TSV or Merchant XML: id, title, image_link.")
    ],
    scene: SceneName,
    channel: ChannelNames = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first N products.")] = None,
    reprocess: ReprocessOption = Reprocess.MISSING,
    accept_loss: Annotated[
        bool, typer.Option("--accept-loss", help="Take the feed even if over 20 % of its products are gone.")
    ] = False,
    wait: Annotated[bool, typer.Option("--wait", help="Follow the run to its end.")] = False,
    as_json: AsJson = False,
) -> None:
    """Put a catalogue into the store and trigger `catalog_refresh` through Airflow's API."""
    from pipelines.catalogue.feed import ingest
    from pipelines.catalogue.manifest import read_manifest
    from pipelines.ledger.photo_links import PhotoLinks
    from pipelines.ledger.postgres import connect
    from pipelines.ledger.reports import remember_latest
    from pipelines.scenes import load_scene
    from pipelines.services.airflow_client import Airflow
    from pipelines.settings import get_settings
    from pipelines.store import S3Store

    settings = get_settings()
    for name in channel or [""]:
        look = load_scene(scene, channel=name)
    store = S3Store(settings)
    with err.status("Putting feed and photos into the store"):
        memory = PhotoLinks(connect(settings.database_url))
        feed = ingest(catalogue, store, settings, limit, memory, look.additional_photos)
    if note := read_manifest(store, feed).encoding_note:
        err.print(note, soft_wrap=True)
    conf = {
        "feed": feed, "scene": scene, "channels": channel, "limit": limit, "reprocess": reprocess,
        "accept_loss": accept_loss, "triggered_by": "packshot run",
    }  # fmt: skip
    with Airflow(settings) as airflow:
        run_id = airflow.trigger("catalog_refresh", conf)
        try:
            remember_latest(settings.state_dir, run_id)
        except OSError as error:  # the run is under way all the same
            err.print(f"{settings.state_dir}: {error.strerror}: `latest` will not mean this run", soft_wrap=True)
        if not wait:
            answer(as_json, {"run": run_id}, f"Run {run_id} was triggered.", *_to_follow(run_id, channel))
            return
        success = _follow_all(airflow, "catalog_refresh", run_id, channel)
    if not _planned([run_id]):
        raise PackshotError(f"run {run_id} ended before it was planned: nothing was made")
    found = [_report(one) for one in _planned(_runs_for(run_id, channel))]
    _answer(as_json, *found)
    raise typer.Exit(exit_code([shot.state for one in found for shot in one.shots]) if success else 1)


def _runs_for(first: str, channels: Sequence[str] | None) -> list[str]:
    """The run that was started, and those that it leads to, one for each further channel."""
    return [first, *(run_of_channel(first, name) for name in list(dict.fromkeys(channels or []))[1:])]


def _to_follow(first: str, channels: Sequence[str] | None) -> list[str]:
    return [f"It starts run {run_id}." for run_id in _runs_for(first, channels)[1:]]


def _follow_all(airflow: Airflow, dag_id: str, first: str, channels: Sequence[str] | None) -> bool:
    """Follows a run and those for its further channels. Where one is not planned, the next is not started."""
    success = _follow(airflow, dag_id, first)
    for run_id in _runs_for(first, channels)[1:]:
        if airflow.run(dag_id, run_id) is None:
            err.print(f"run {run_id} was not started: the run before it was not planned", soft_wrap=True)
            return False
        success &= _follow(airflow, dag_id, run_id)
    return success


def _follow(airflow: Airflow, dag_id: str, run_id: str) -> bool:
    """Follows a run with a bar over its tasks. Returns whether it succeeded; otherwise names the tasks that failed."""
    with progress_bar() as progress:
        bar = progress.add_task(dag_id, total=None, note="")

        def seen(done: int, total: int, note: str) -> None:
            progress.update(bar, completed=done, total=total or None, note=note)

        try:
            success = airflow.follow(dag_id, run_id, seen, lambda line: err.print(line, soft_wrap=True))
        except KeyboardInterrupt:
            goes_on = f"run {run_id} goes on in Airflow: `packshot report {run_id}` shows what becomes of it"
            err.print(goes_on, soft_wrap=True)
            raise
    for task in [] if success else airflow.failed(dag_id, run_id)[:FAILURES_SHOWN]:
        err.print(f"task {task.name} failed; its log: {task.page}", soft_wrap=True)
    return success


@app.command()
def campaign(
    scene: SceneName,
    first: Annotated[datetime, typer.Option("--from", formats=["%Y-%m-%d"], help="First day.")],
    last: Annotated[datetime, typer.Option("--to", formats=["%Y-%m-%d"], help="Last day, included.")],
    channel: ChannelNames = None,
    category: Annotated[list[str] | None, typer.Option(help="Only this category; may be repeated.")] = None,
    sku: Annotated[
        list[str] | None, typer.Option(help="Only this SKU, whenever it last changed; may be repeated.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="At most N products a day.")] = None,
    reprocess: ReprocessOption = Reprocess.MISSING,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Count shots, reuse and time; compute nothing.")] = False,
    wait: Annotated[bool, typer.Option("--wait", help="Follow the backfill to its end.")] = False,
    as_json: AsJson = False,
) -> None:
    """Start a backfill of `campaign_backfill` over a range of days through Airflow's API."""
    from pipelines.scenes import load_scene
    from pipelines.services.airflow_client import Airflow
    from pipelines.settings import get_settings

    for name in channel or [""]:
        load_scene(scene, channel=name)
    if last < first:
        raise UsageError(f"--to {last:%Y-%m-%d} is before --from {first:%Y-%m-%d}")
    conf = {
        "scene": scene, "channels": channel, "categories": category or [], "skus": sku or [], "limit": limit,
        "reprocess": reprocess, "dry_run": dry_run,
    }  # fmt: skip
    success, known = True, wait or dry_run
    with Airflow(get_settings()) as airflow:
        with err.status("Starting the backfill"):
            backfill = airflow.backfill("campaign_backfill", first.date(), last.date(), conf)
        # a dry run counts all channels, and starts no run for the others
        of_days = [None if dry_run else channel for _ in backfill.runs]
        for run_id, channels in zip(backfill.runs if known else [], of_days, strict=False):
            success &= _follow_all(airflow, "campaign_backfill", run_id, channels)
    runs = [one for run_id in backfill.runs for one in _runs_for(run_id, None if dry_run else channel)]
    document = _campaign_document(runs, known)
    answer(as_json, document, _campaign_total(document, success), *(f"  {run_id}" for run_id in runs))
    raise typer.Exit(0 if success else 1)


def _campaign_document(run_ids: Sequence[str], known: bool) -> dict[str, Any]:
    """The document of `campaign --json`: sums over its runs, or null until these are planned.

    A dry run counts what it forecasts. A real run counts what it did, and expects nothing more.
    """
    document: dict[str, Any] = {"runs": run_ids, "shots": None, "reused": None, "seconds_expected": None}
    if not known:
        return document
    found = [_report(run_id, with_shots=False) for run_id in _planned(run_ids)]
    forecasts = [report.params["forecast"] for report in found if "forecast" in report.params]
    document["shots"] = sum(report.products for report in found) + sum(f["shots"] for f in forecasts)
    document["reused"] = sum(count.reused for report in found for count in report.steps.values())
    document["reused"] += sum(f["reused"] for f in forecasts)
    document["seconds_expected"] = sum(f["seconds_expected"] for f in forecasts) if forecasts else None
    return document


def _campaign_total(document: Mapping[str, Any], success: bool) -> str:
    """The document's figures in a line. Runs that failed may have lost their products: then none is missed."""
    from pipelines.runs.cost import cost
    from pipelines.settings import get_settings

    runs, shots, seconds = len(document["runs"]), document["shots"], document["seconds_expected"]
    total = f"{runs} run{'s' if runs != 1 else ''}"
    if shots is not None:
        total += f", {shots} shots, {document['reused']} steps reused"
    if seconds is not None:
        price = cost(seconds, get_settings())
        total += f", about {seconds:.0f} s to compute{f' ({price})' if price else ''}"
    if shots == 0 and success:
        total += "; no product is in this choice: check --sku, --category, --reprocess and the days"
    return total


def _engine() -> Engine:
    from pipelines.ledger.postgres import connect
    from pipelines.settings import get_settings

    return connect(get_settings().database_url)


def _resolved(engine: Engine, run_id: str) -> str:
    """The run's id, where `latest` was asked for."""
    from pipelines.ledger.reports import latest_run
    from pipelines.settings import get_settings

    return latest_run(engine, get_settings().state_dir) if run_id == "latest" else run_id


def _report(run_id: str, with_shots: bool = True) -> Report:
    from pipelines.ledger.reports import report

    engine = _engine()
    return report(engine, _resolved(engine, run_id), with_shots)


def _answer(as_json: bool, found: Report, *others: Report) -> None:
    """A report as JSON or text, with the pairs of products that show nearly the same picture. Those of further channels
    are text; the document names their runs."""
    from pipelines.ledger.reports import likenesses
    from pipelines.quality.likeness import find_twins

    alike = find_twins(likenesses(_engine(), found.run))
    further = [part for other in others for part in _as_text(other)]
    answer(as_json, {**found.to_json(), "alike": alike}, *_as_text(found), *further, *as_warnings(alike))


def _planned(run_ids: Sequence[str]) -> list[str]:
    """The runs that the ledger knows. It does not know a run whose `plan` failed."""
    from pipelines.ledger.reports import is_planned

    engine = _engine()
    return [run_id for run_id in run_ids if is_planned(engine, run_id)]


def _as_text(found: Report) -> list[Text | Table]:
    """A report for a reader: its totals, its stages, and every product that was not published."""
    from pipelines.ledger.waves import next_wave

    parts: list[Text | Table] = [
        line(
            (found.run, "bold"), f": {found.products} products, ", (f"{found.published} published", "green"), ", ",
            (f"{found.held} held", "yellow"), f", {found.rejected} rejected, ", (f"{found.failed} failed", "red"),
        )
    ]  # fmt: skip
    if found.channels:
        each = ", ".join(f"{one.channel or one.run} {one.state}" for one in found.channels)
        parts.append(line(f"for {found.channel}, one of the channels of {found.group}: {each}"))
    if found.problem:
        parts.append(line(("what went wrong", "red"), f": {found.problem['reason']}"))
    if found.put_off:
        parts.append(line(f"left to the next wave, run {next_wave(found.run)}: {found.put_off}"))
    stages = [
        (name, count.computed, count.reused, f"{found.seconds.get(name, 0):.1f}") for name, count in found.steps.items()
    ]
    parts.append(table("stage", "computed", "reused", "seconds", rows=stages))
    if rows := [(s.row, s.sku, s.state.value, s.reason) for s in found.shots if s.state != "published"]:
        parts.append(table("row", "SKU", "state", "reason", rows=rows))
    return parts


@app.command()
def report(run_id: RunId = "latest", as_json: AsJson = False) -> None:
    """Show for every product of a run whether it was published, held, rejected or failed, and why."""
    _answer(as_json, _report(run_id))


@app.command()
def approve(
    sku: Annotated[str, typer.Argument(metavar="SKU", help="A product whose image was held.")],
    run_id: Annotated[str, typer.Option("--run", help="The run that held it, or latest.")] = "latest",
    by: Annotated[str, typer.Option(help="Who looked at it.", show_default="the login name")] = "",
    reason: Annotated[str, typer.Option(help="Why it is right.")] = "",
    as_json: AsJson = False,
) -> None:
    """Let a held image be published: a person has looked at it, and it is right.

    DAG `publish_reviewed` publishes it in the run that held it. Without a running Airflow, the DAG's next run does.
    The approval covers this image only; a new image of the product is checked again.
    """
    from pipelines.ledger.decisions import Choice, decide, held_image

    engine = _engine()
    final = held_image(engine, _resolved(engine, run_id), sku)
    done = decide(engine, final, Choice.APPROVE, by or getpass.getuser(), reason)
    answer(
        as_json, done, f"{done.sku}: approved by {done.by}, held for: {done.held_for}", _publish_reviewed(done.final)
    )


def _publish_reviewed(final: str) -> str:
    """Starts the DAG that publishes approved images; returns what happens to this one."""
    import httpx

    from pipelines.services.airflow_client import Airflow
    from pipelines.settings import get_settings

    try:
        with Airflow(get_settings(), timeout=10) as airflow:
            return f"Image {final}; run {airflow.trigger('publish_reviewed', {})} of publish_reviewed publishes it."
    except (PackshotError, httpx.HTTPError):  # the decision is in the ledger all the same
        return f"Image {final}; Airflow does not answer, so the next run of publish_reviewed publishes it."


@app.command()
def lineage(
    what: Annotated[str, typer.Argument(metavar="SKU|DIGEST", help="A product, or an image's sha256.")],
    as_json: AsJson = False,
) -> None:
    """Show where an image came from: the photo, the model revisions and the parameters."""
    from pipelines.ledger.reports import lineage as trace

    found = trace(_engine(), what).to_json()
    rows = [
        (
            step["stage"], step["key"][:12], ", ".join(f"{m['name']}@{m['revision']}" for m in step["models"]),
            f"{step['seconds']:.2f}", step["device"],
        )
        for step in found["steps"]
    ]  # fmt: skip
    image, photo = found["artifact"]["sha256"], found["photo"]["sha256"]
    answer(
        as_json,
        found,
        line((found["sku"], "bold"), f"  image {image}  photo {photo}"),
        table("stage", "key", "models", "seconds", "device", rows=rows),
    )


@app.command()
def export(
    run_id: RunId,
    out_dir: Annotated[Path, typer.Option("--out", "-o", help="Folder for images, feed and contact sheet.")],
    as_json: AsJson = False,
) -> None:
    """Write a run's published images, byte for byte as stored, with their feed and a contact sheet."""
    from pipelines.runs.export import export_run
    from pipelines.settings import get_settings

    done = export_run(run_id, out_dir, get_settings())
    answer(
        as_json,
        done,
        f"{len(done.images)} images and {done.feed.name} in {out_dir}",
        f"Contact sheet: {done.contact_sheet}",
    )
