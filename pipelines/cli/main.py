"""The `packshot` command. Every command imports what it needs when it runs, so that `--help` answers at once.

Exit codes: 0 done, 1 something failed, 2 wrong usage or input (also where every product was rejected). With `--json`,
one document on standard output and nothing else there; progress and messages go to standard error.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import unicodedata
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import date, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TransferSpeedColumn,
)
from rich.table import Table
from rich.text import Text

from pipelines.cli.experiment import experiment_app
from pipelines.cli.revisions import revisions_app
from pipelines.errors import PackshotError, UsageError

if TYPE_CHECKING:
    from pipelines.contracts import Shot, ShotState, Step
    from pipelines.evaluation.cutout import BaselineMeasure, CutoutMeasure
    from pipelines.ledger.reports import Report
    from pipelines.services import Status
    from pipelines.workflow import Recipe

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_show_locals=False,
    rich_markup_mode="rich",
    help="Catalogue photos in, publishable scene images out, without altering the product.",
    epilog="Try one photo without any service: [bold]packshot shoot photo.jpg --scene oak-window --out shots[/bold]",
)
scenes_app = typer.Typer(no_args_is_help=True, help="The scenes there are, and whether a file is a valid one.")
measure_app = typer.Typer(no_args_is_help=True)
models_app = typer.Typer(no_args_is_help=True, help="The models of a profile: where from, which bytes, which licence.")
app.add_typer(scenes_app, name="scenes")
app.add_typer(measure_app, name="measure")
app.add_typer(models_app, name="models")
app.add_typer(experiment_app, name="experiment")
models_app.add_typer(revisions_app)


class Terminal(Console):
    """Prints strings as they are: SKUs, titles and reasons are written by strangers, so brackets are no markup, `:cup:`
    is no emoji, and a control character comes out as its escape (`\\x1b`) and not as an order to the terminal."""

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, emoji=False, highlight=False, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        """What every string goes through, whether printed or in a table's cell."""
        return super().render_str(_visible(text), **options)


def _visible(text: str) -> str:
    """Control characters, and halves of surrogate pairs, as escapes; line breaks and tabs stay."""
    return "".join(
        char.encode("unicode_escape").decode()
        if unicodedata.category(char) in ("Cc", "Cs") and char not in "\n\t"
        else char
        for char in text
    )


FAILURES_SHOWN = 5
"""Failed tasks of a run that are named: a full disk may fail hundreds of shards."""

out = Terminal()
err = Terminal(stderr=True)

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document and nothing else.")]
SceneName = Annotated[str, typer.Option("--scene", "-s", help="A scene: see `packshot scenes list`.")]
Reprocess = Annotated[Literal["missing", "failed", "all"], typer.Option(help="Which finished steps to compute anew.")]
RunId = Annotated[str, typer.Argument(metavar="RUN", help="A run's id, or 'latest': the last that `run` triggered.")]


def main() -> None:
    """Entry point: turns what a user can mend into one line and an exit code; the unforeseen keeps its traceback."""
    try:
        app(standalone_mode=True)
    except UsageError as error:
        _print_error(str(error))
        sys.exit(2)
    except PackshotError as error:
        _print_error(str(error))
        sys.exit(1)
    except Exception as error:
        if not (line := _outside(error)):
            raise
        _print_error(line)
        sys.exit(1)


def _outside(error: Exception) -> str:
    """What a file system or a service that is away has to do with an error, in a line; "" where it is neither."""
    from httpx import HTTPError, HTTPStatusError
    from minio.error import MinioException
    from sqlalchemy.exc import OperationalError
    from urllib3.exceptions import MaxRetryError

    services = "`packshot status` shows the services, `packshot up` starts the embedded ones"
    if isinstance(error, OperationalError) and getattr(error.orig, "pgcode", None) is None:  # it never got to talk
        said, *_ = str(error.orig).splitlines() or ["it hung up"]
        return f"the database does not answer ({said}); {services}"
    if isinstance(error, MaxRetryError):
        return f"{getattr(error.pool, 'host', '')}:{getattr(error.pool, 'port', '')} does not answer; {services}"
    if isinstance(error, MinioException):
        return f"the S3 store: {str(error).partition(', resource:')[0]}; check PACKSHOT_S3_*; {services}"
    if isinstance(error, HTTPStatusError):
        url, answer = error.request.url.copy_with(userinfo=b""), error.response
        return f"{url} answers {answer.status_code} {answer.reason_phrase}"
    if isinstance(error, HTTPError):
        return f"the network: {str(error) or type(error).__name__}; {services}"
    if isinstance(error, OSError) and error.filename and error.strerror:
        return f"{error.filename}: {error.strerror}"
    return ""


@app.callback()
def _options(
    trust: Annotated[
        bool,
        typer.Option("--trust", help="Load model files whose sha256 no profile names, torch files among them."),
    ] = False,
) -> None:
    """Catalogue photos in, publishable scene images out, without altering the product."""
    if trust:
        from pipelines.settings import get_settings

        os.environ |= {"PACKSHOT_TRUST_UNPINNED": "1", "PACKSHOT_TRUST_PICKLE": "1"}
        get_settings.cache_clear()


def _print_error(line: str) -> None:
    err.print("packshot:", style="red", end=" ")
    err.print(line, soft_wrap=True)


def _print_json(document: Any) -> None:
    print(json.dumps(document, indent=2, ensure_ascii=False, default=_plain))


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    if isinstance(value, date | datetime):
        return value.isoformat()
    return str(value)


@contextmanager
def _bar() -> Iterator[Progress]:
    """A progress bar on standard error; lines that scroll where that is not a terminal."""
    columns = (
        SpinnerColumn(), TextColumn("{task.description}", style="bold", markup=False), BarColumn(),
        MofNCompleteColumn(), TextColumn("{task.fields[note]}", markup=False), TimeElapsedColumn(),
    )  # fmt: skip
    with Progress(*columns, console=err, transient=False) as progress:
        yield progress


# ------------------------------------------------------------------------------------------------ one photo, no service


@app.command()
def shoot(
    source: Annotated[Path, typer.Argument(metavar="IMAGE|CATALOG", help="A photo, or a catalogue as CSV or TSV.")],
    scene: SceneName,
    out_dir: Annotated[Path, typer.Option("--out", "-o", help="Folder for the images and the contact sheet.")],
    seed: Annotated[
        int | None, typer.Option(min=0, help="Base seed instead of the scene's: another one, another image.")
    ] = None,
    method: Annotated[str | None, typer.Option(help="Inpainting method instead of the scene's.")] = None,
    mask_guidance: Annotated[
        bool, typer.Option("--mask-guidance/--no-mask-guidance", help="Bound the ControlNet by the product mask.")
    ] = True,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first N products.")] = None,
    as_json: AsJson = False,
) -> None:
    """Take a photo or a catalogue through every stage in this process, without services."""
    from pipelines.runs.local import shoot as run_shoot
    from pipelines.settings import get_settings

    settings = get_settings()
    recipe = _recipe(scene, seed=seed, method=method, mask_guidance=mask_guidance)
    with _bar() as progress:
        bars: dict[str, Any] = {}

        def started(stage: str, shots: int) -> None:
            bars[stage] = progress.add_task(stage, total=shots, note="")

        def done(stage: str, shot: Shot, step: Step) -> None:
            note = f"{shot.sku}: {step.reason}" if step.reason else shot.sku
            progress.update(bars[stage], advance=1, note=" ".join(_visible(note).split()))

        outcomes = run_shoot(source, recipe, out_dir, settings, limit=limit, progress=done, started=started)
    if as_json:
        _print_json({"shots": outcomes, "contact_sheet": out_dir / "contact_sheet.png"})
    else:
        table = Table("SKU", "became", "file or reason")
        for outcome in outcomes:
            table.add_row(outcome.sku, outcome.state.value, str(outcome.picture or outcome.reason))
        out.print(table)
        out.print(f"Contact sheet: {out_dir / 'contact_sheet.png'}", soft_wrap=True)
    raise typer.Exit(_exit_code([outcome.state for outcome in outcomes]))


def _exit_code(states: Sequence[ShotState]) -> int:
    """1 where a product failed, 2 where none of them could be used. Some rejected or held are ordinary outcomes."""
    if "failed" in states:
        return 1
    return 2 if states and set(states) == {"rejected"} else 0


def _recipe(scene: str, method: str | None, **overrides: Any) -> Recipe:
    from pipelines.diffusion.methods import check_parts
    from pipelines.models.profile import load_profile
    from pipelines.scenes import Scene, load_scene
    from pipelines.settings import get_settings
    from pipelines.workflow import Recipe

    settings = get_settings()
    methods = get_args(Scene.model_fields["method"].annotation)
    if method not in (None, *methods):
        raise UsageError(f"--method {method}: there are {', '.join(methods)}")
    profile, look = load_profile(settings.profile, settings.models_dir), load_scene(scene)
    check_parts(profile, method or look.method)
    return Recipe(
        profile,
        look,
        method=method,
        compute=settings.compute(),
        max_megapixels=settings.photo_max_megapixels,
        **overrides,
    )


# ------------------------------------------------------------------------------------------------ services


@app.command()
def up(
    airflow: Annotated[bool, typer.Option("--airflow/--no-airflow", help="Airflow too.")] = True,
    as_json: AsJson = False,
) -> None:
    """Start Postgres, the S3 store and Airflow, or repair what died. Their data stay where they were."""
    from pipelines import services
    from pipelines.settings import get_settings

    with err.status("Starting the services"):
        now = services.up(get_settings(), airflow=airflow, report=lambda line: err.print(line, soft_wrap=True))
    _show_status(now, as_json)


@app.command()
def down(as_json: AsJson = False) -> None:
    """Stop what `packshot up` started. The data stay."""
    from pipelines import services
    from pipelines.settings import get_settings

    stopped: list[str] = []
    with err.status("Stopping the services"):
        services.down(get_settings(), report=stopped.append)
    if as_json:
        _print_json({"stopped": stopped})
    else:
        names = f"stopped: {', '.join(stopped)}" if stopped else "nothing was running"
        err.print(names, soft_wrap=True)


@app.command()
def status(as_json: AsJson = False) -> None:
    """Which services answer, and where they log. Exit code 1 where one does not."""
    from pipelines import services
    from pipelines.settings import get_settings

    _show_status(services.status(get_settings()), as_json)


def _show_status(now: Status, as_json: bool) -> None:
    if as_json:
        _print_json({"healthy": now.healthy, **dataclasses.asdict(now)})
    else:
        table = Table("service", "state", "address", "")
        for service in now.services:
            colour = "green" if service.state == "up" else "red"
            whose = service.detail if service.embedded else "not ours"
            table.add_row(service.name, Text(service.state, colour), service.address, whose)
        out.print(table)
        logins = json.loads(now.passwords.read_text()) if now.passwords and now.passwords.exists() else {now.user: "…"}
        names = " or ".join(f"{user} / {password}" for user, password in logins.items())
        out.print(f"Airflow: {now.ui}  log in as {names}", soft_wrap=True)
        out.print(f"Logs: {now.logs}", soft_wrap=True)
    if not now.healthy:
        raise typer.Exit(1)


# ------------------------------------------------------------------------------------------------ runs through Airflow


@app.command()
def run(
    catalogue: Annotated[Path, typer.Argument(metavar="CATALOG", help="CSV or TSV with id, title, image_link.")],
    scene: SceneName,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first N products.")] = None,
    reprocess: Reprocess = "missing",
    wait: Annotated[bool, typer.Option("--wait", help="Follow the run to its end.")] = False,
    as_json: AsJson = False,
) -> None:
    """Put a catalogue into the store and trigger `catalog_refresh` through Airflow's API."""
    from pipelines.catalogue.feed import ingest
    from pipelines.ledger.reports import remember_latest
    from pipelines.scenes import load_scene
    from pipelines.services.airflow_client import Airflow
    from pipelines.settings import get_settings
    from pipelines.store import S3Store

    settings = get_settings()
    load_scene(scene)
    with err.status("Putting feed and photos into the store"):
        feed = ingest(catalogue, S3Store(settings), settings, limit)
    conf = {"feed": feed, "scene": scene, "limit": limit, "reprocess": reprocess, "triggered_by": "packshot run"}
    with Airflow(settings) as airflow:
        run_id = airflow.trigger("catalog_refresh", conf)
        try:
            remember_latest(settings.state_dir, run_id)
        except OSError as error:  # the run is under way all the same
            err.print(f"{settings.state_dir}: {error.strerror}: `latest` will not mean this run", soft_wrap=True)
        if not wait:
            _print_json({"run": run_id}) if as_json else out.print(f"Run {run_id} was triggered.", soft_wrap=True)
            return
        success = _follow(airflow, "catalog_refresh", run_id)
    if not _planned([run_id]):
        raise PackshotError(f"run {run_id} ended before it was planned: nothing was made")
    found = _report(run_id)
    _print_json(found.to_json()) if as_json else _show_report(found)
    raise typer.Exit(_exit_code([shot.state for shot in found.shots]) if success else 1)


def _follow(airflow: Any, dag_id: str, run_id: str) -> bool:
    """Follow a run with a bar over its tasks; returns whether it succeeded, and where not, says which tasks failed."""
    with _bar() as progress:
        task = progress.add_task(dag_id, total=None, note="")

        def seen(done: int, total: int, note: str) -> None:
            progress.update(task, completed=done, total=total or None, note=note)

        success = bool(airflow.follow(dag_id, run_id, seen))
    for task in [] if success else airflow.failed(dag_id, run_id)[:FAILURES_SHOWN]:
        err.print(f"task {task.name} failed; its log: {task.page}", soft_wrap=True)
    return success


@app.command()
def campaign(
    scene: SceneName,
    first: Annotated[datetime, typer.Option("--from", formats=["%Y-%m-%d"], help="First day.")],
    last: Annotated[datetime, typer.Option("--to", formats=["%Y-%m-%d"], help="Last day, included.")],
    category: Annotated[list[str] | None, typer.Option(help="Only this category; may be repeated.")] = None,
    sku: Annotated[list[str] | None, typer.Option(help="Only this SKU, whenever it changed; may be repeated.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="At most N products a day.")] = None,
    reprocess: Reprocess = "missing",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Count shots, reuse and time; compute nothing.")] = False,
    wait: Annotated[bool, typer.Option("--wait", help="Follow the backfill to its end.")] = False,
    as_json: AsJson = False,
) -> None:
    """Start a backfill of `campaign_backfill` over a range of days through Airflow's API."""
    from pipelines.scenes import load_scene
    from pipelines.services.airflow_client import Airflow
    from pipelines.settings import get_settings

    load_scene(scene)
    if last < first:
        raise UsageError(f"--to {last:%Y-%m-%d} is before --from {first:%Y-%m-%d}")
    conf = {
        "scene": scene, "categories": category or [], "skus": sku or [], "limit": limit, "reprocess": reprocess,
        "dry_run": dry_run,
    }  # fmt: skip
    with Airflow(get_settings()) as airflow, err.status("Starting the backfill"):
        backfill = airflow.backfill("campaign_backfill", first.date(), last.date(), conf)
    success = True
    if wait or dry_run:
        with Airflow(get_settings()) as airflow:
            for run_id in backfill.runs:
                success &= _follow(airflow, "campaign_backfill", run_id)
    document = _campaign_document(backfill.runs, known=wait or dry_run)
    if as_json:
        _print_json(document)
    else:
        out.print(f"{len(backfill.runs)} runs", end="")
        if wait or dry_run:
            out.print(f", {document['shots']} shots, {document['reused']} steps reused", end="")
        if document["seconds_expected"] is not None:
            out.print(f", about {document['seconds_expected']:.0f} s to compute", end="")
        out.print()
        for run_id in backfill.runs:
            out.print(f"  {run_id}", soft_wrap=True)
    raise typer.Exit(0 if success else 1)


def _campaign_document(run_ids: Sequence[str], known: bool) -> dict[str, Any]:
    """The document of `campaign --json`: sums over its runs, null as long as these are not planned.

    A dry run's figures are its forecasts; a real one's are what its runs did, and nothing is left to expect.
    """
    document: dict[str, Any] = {"runs": run_ids, "shots": None, "reused": None, "seconds_expected": None}
    if not known:
        return document
    found = [_report(run_id) for run_id in _planned(run_ids)]
    forecasts = [report.params["forecast"] for report in found if "forecast" in report.params]
    document["shots"] = sum(report.products for report in found) + sum(f["shots"] for f in forecasts)
    document["reused"] = sum(count.reused for report in found for count in report.steps.values())
    document["reused"] += sum(f["reused"] for f in forecasts)
    document["seconds_expected"] = sum(f["seconds_expected"] for f in forecasts) if forecasts else None
    return document


# ------------------------------------------------------------------------------------------------ what became of it


def _report(run_id: str) -> Report:
    from pipelines.ledger.postgres import connect
    from pipelines.ledger.reports import latest_run, report
    from pipelines.settings import get_settings

    settings = get_settings()
    engine = connect(settings.database_url)
    return report(engine, latest_run(engine, settings.state_dir) if run_id == "latest" else run_id)


def _planned(run_ids: Sequence[str]) -> list[str]:
    """Those of the runs that the ledger knows; one whose `plan` failed it does not."""
    from pipelines.ledger.postgres import connect
    from pipelines.ledger.reports import is_planned
    from pipelines.settings import get_settings

    engine = connect(get_settings().database_url)
    return [run_id for run_id in run_ids if is_planned(engine, run_id)]


def _show_report(found: Report) -> None:
    out.print(found.run, style="bold", soft_wrap=True, end="")
    counts = (
        f": {found.products} products, ", (f"{found.published} published", "green"), ", ",
        (f"{found.held} held", "yellow"), f", {found.rejected} rejected, ", (f"{found.failed} failed", "red"),
    )  # fmt: skip
    out.print(Text.assemble(*counts), soft_wrap=True)
    if found.problem:
        out.print("the run was stopped", style="red", end=": ")
        out.print(found.problem["reason"], soft_wrap=True)
    table = Table("stage", "computed", "reused", "seconds")
    for name, count in found.steps.items():
        table.add_row(name, str(count.computed), str(count.reused), f"{found.seconds.get(name, 0):.1f}")
    out.print(table)
    rows = [shot for shot in found.shots if shot.state != "published"]
    if rows:
        table = Table("row", "SKU", "state", "reason")
        for shot in rows:
            table.add_row(str(shot.row), shot.sku, shot.state.value, shot.reason)
        out.print(table)


@app.command()
def report(run_id: RunId = "latest", as_json: AsJson = False) -> None:
    """What became of every product of a run: published, held, rejected or failed, and why."""
    found = _report(run_id)
    _print_json(found.to_json()) if as_json else _show_report(found)


@app.command()
def approve(
    sku: Annotated[str, typer.Argument(metavar="SKU", help="A product whose image was held.")],
    run_id: Annotated[str, typer.Option("--run", help="The run that held it, or latest.")] = "latest",
    by: Annotated[str, typer.Option(help="Who looked at it.", show_default="the login name")] = "",
    as_json: AsJson = False,
) -> None:
    """Let a held image be published: a person has looked at it, and it is right.

    The next run of the catalogue publishes it and computes nothing; so does clearing `publish`, and what follows, of
    the run that held it. The approval is of this very image: another one of the product is checked as ever.
    """
    import getpass

    from pipelines.ledger.approval import approve as approve_image
    from pipelines.ledger.postgres import PostgresLedger, connect
    from pipelines.ledger.reports import latest_run
    from pipelines.settings import get_settings

    settings = get_settings()
    ledger = PostgresLedger(connect(settings.database_url))
    run_id = latest_run(ledger.engine, settings.state_dir) if run_id == "latest" else run_id
    done = approve_image(ledger, run_id, sku, by or getpass.getuser())
    if as_json:
        _print_json(done)
        return
    out.print(f"{done.sku}: approved by {done.by}, held for: {done.reason}", soft_wrap=True)
    out.print(f"Image {done.final}; the next run, or `publish` cleared in this one, publishes it.", soft_wrap=True)


@app.command()
def lineage(
    what: Annotated[str, typer.Argument(metavar="SKU|DIGEST", help="A product, or an image's sha256.")],
    as_json: AsJson = False,
) -> None:
    """Where an image came from, down to the photo, the model revisions and the parameters."""
    from pipelines.ledger.postgres import connect
    from pipelines.ledger.reports import lineage as trace
    from pipelines.settings import get_settings

    found = trace(connect(get_settings().database_url), what).to_json()
    if as_json:
        _print_json(found)
        return
    out.print(found["sku"], style="bold", soft_wrap=True, end="")
    out.print(f"  image {found['artifact']['sha256']}  photo {found['photo']['sha256']}", soft_wrap=True)
    table = Table("stage", "key", "models", "seconds", "device")
    for step in found["steps"]:
        models = ", ".join(f"{model['name']}@{model['revision']}" for model in step["models"])
        table.add_row(step["stage"], step["key"][:12], models, f"{step['seconds']:.2f}", step["device"])
    out.print(table)


@app.command()
def export(
    run_id: RunId,
    out_dir: Annotated[Path, typer.Option("--out", "-o", help="Folder for images, feed and contact sheet.")],
    as_json: AsJson = False,
) -> None:
    """Write a run's published images, byte for byte as stored, their feed and a contact sheet."""
    from pipelines.runs.export import export_run
    from pipelines.settings import get_settings

    done = export_run(run_id, out_dir, get_settings())
    if as_json:
        _print_json(done)
    else:
        out.print(f"{len(done.images)} images and {done.feed.name} in {out_dir}", soft_wrap=True)
        out.print(f"Contact sheet: {done.contact_sheet}", soft_wrap=True)


# ---------------------------------------------------------------------------------------- scenes, models, measures


@scenes_app.command("list")
def scenes_list(as_json: AsJson = False) -> None:
    """The scenes there are: name, title, picture."""
    from pipelines.scenes import list_scenes, picture_of

    scenes = list_scenes()
    if as_json:
        _print_json([{"name": s.name, "title": s.title, "picture": picture_of(s)} for s in scenes])
        return
    table = Table("name", "title", "method", "channel", "picture")
    for s in scenes:
        table.add_row(s.name, s.title, s.method, f"{s.channel.width}×{s.channel.height}", str(picture_of(s) or "–"))
    out.print(table)


@scenes_app.command("check")
def scenes_check(
    file: Annotated[Path, typer.Argument(help="A scene's YAML file.")],
    as_json: AsJson = False,
) -> None:
    """Validate one scene file."""
    from pipelines.scenes import check_scene

    scene = check_scene(file)
    _print_json({"name": scene.name, "digest": scene.digest}) if as_json else out.print(f"{file}: {scene.title}: valid")


@measure_app.callback()
def _measure() -> None:
    """Measure a stage against exact truth."""
    from pipelines.evaluation.processes import keep_freed_memory

    keep_freed_memory()


@measure_app.command("cutout")
def measure_cutout(
    catalogue: Annotated[Path, typer.Argument(metavar="CATALOG", help="A catalogue with a ground_truth_alpha column.")],
    path: Annotated[str, typer.Option(help="auto: as the pipeline does it; hqsam: HQ-SAM for every photo.")] = "auto",
    over_scenes: Annotated[Path | None, typer.Option(help="Composite each product over these backgrounds.")] = None,
    baselines: Annotated[
        Path | None, typer.Option(help="A folder with u2netp.onnx and mobile_sam.pt, measured on the same photos.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """IoU and boundary F (2 px) of cutouts against the alpha masks that a catalogue names."""
    from pipelines.evaluation.cutout import measure_cutouts
    from pipelines.models.profile import load_profile
    from pipelines.settings import get_settings

    settings = get_settings()
    profile = load_profile(settings.profile, settings.models_dir)
    found = measure_cutouts(catalogue, path, over_scenes, profile, baselines=baselines)
    if as_json:
        _print_json(found)
        return
    table = Table("SKU", "path", "IoU", "boundary F")
    for product in found.products:
        table.add_row(product.sku, product.path, f"{product.iou:.4f}", f"{product.boundary_f:.4f}")
    out.print(table)
    rows: list[tuple[str, CutoutMeasure | BaselineMeasure]] = [("packshot", found)]
    rows += [(baseline.name, baseline) for baseline in found.baselines]
    means = Table(f"n = {found.n}", "mean IoU", "95 %", "mean boundary F", "95 %")
    for name, row in rows:
        iou, edges = row.iou_interval, row.boundary_f_interval
        means.add_row(
            name,
            f"{row.mean_iou:.4f}",
            f"{iou[0]:.4f} to {iou[1]:.4f}",
            f"{row.mean_boundary_f:.4f}",
            f"{edges[0]:.4f} to {edges[1]:.4f}",
        )
    out.print(means)


@measure_app.command("describe")
def measure_describe(
    data: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="The training folder: its held-out photos are described.")
    ] = Path("../shared/training"),
    as_json: AsJson = False,
) -> None:
    """Category top-1 and tag recall@5 on photos of held-out products, against title and majority class."""
    from pipelines.evaluation.describe import measure_describe
    from pipelines.models.profile import load_profile
    from pipelines.settings import get_settings

    settings = get_settings()
    found = measure_describe(data, load_profile(settings.profile, settings.models_dir))
    if as_json:
        _print_json(found)
        return
    table = Table("measure", "way", "right", "95 %")
    for measure, shares in (("category top-1", found.category_top1), ("tag recall@5", found.tag_recall5)):
        for share in shares:
            low, high = share.interval
            table.add_row(measure, share.way, f"{share.value:.1%}", f"{low:.1%} to {high:.1%}")
    out.print(table)
    out.print(f"n = {found.n} photos of {found.products} products")


@measure_app.command("detector")
def measure_detector(
    shared: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="The shared data: catalog, training and models in it.")
    ] = Path("../shared"),
    limit: Annotated[int | None, typer.Option(help="Only so many composites and photos, for a first look.")] = None,
    as_json: AsJson = False,
) -> None:
    """How well overcompletion is told, on composites whose truth is known and products that tau was not set on."""
    from pipelines.evaluation.detector import measure
    from pipelines.models.profile import load_profile
    from pipelines.scenes import Checks
    from pipelines.settings import get_settings

    settings = get_settings()
    profile = load_profile(settings.profile, settings.models_dir)
    found = measure.measure_detector(shared, profile, Checks().overcompletion, limit)
    if as_json:
        _print_json(found)
        return
    table = Table(f"n = {found.n}, tau = {found.tau:g}", "", "95 %", "of")
    for name, (low, high) in found.intervals.items():
        of = {"noticed": f"{found.lacking} photos whose cutout lacks a part"}
        of |= dict.fromkeys(("alarms", "false_alarms"), f"{found.photos} photos")
        n = of.get(name, f"{found.n} masks")
        table.add_row(name, f"{getattr(found, name):.4f}", f"{low:.4f} to {high:.4f}", n)
    out.print(table)
    kinds = Table("above tau", "", "95 %", "masks", "products")
    for groups in (found.by_size, found.by_kind, found.by_background, found.by_mask):
        for name, group in groups.items():
            low, high = group.interval
            kinds.add_row(name, f"{group.rate:.1%}", f"{low:.1%} to {high:.1%}", str(group.n), str(group.products))
        kinds.add_section()
    out.print(kinds)


@models_app.command("list")
def models_list(as_json: AsJson = False) -> None:
    """Every model of the profile: source, revision, sha256, licence."""
    _models(check=False, as_json=as_json)


@models_app.command("verify")
def models_verify(as_json: AsJson = False) -> None:
    """Compare every model's bytes with the profile's sha256. Exit code 1 where one differs."""
    _models(check=True, as_json=as_json)


def _models(*, check: bool, as_json: bool) -> None:
    from pipelines.models.profile import load_profile, verify
    from pipelines.settings import get_settings

    settings = get_settings()
    profile = load_profile(settings.profile, settings.models_dir)
    problems = {checked.name: checked.problem for checked in verify(profile)} if check else {}
    rows = [
        {
            "profile": profile.name, "name": part.name, "source": part.source, "revision": part.ref.revision,
            "sha256": part.ref.sha256, "licence": part.licence, "problem": problems.get(part.name, ""),
        }
        for part in profile.parts
    ]  # fmt: skip
    if as_json:
        _print_json(rows)
    else:
        table = Table("name", "source", "revision", "sha256", "licence", *(["problem"] if check else []))
        for row in rows:
            cells = [row["name"], row["source"], row["revision"], row["sha256"][:16] or "unpinned", row["licence"]]
            table.add_row(*cells, *([row["problem"] or "ok"] if check else []))
        out.print(table)
    raise typer.Exit(1 if any(problems.values()) else 0)


@models_app.command("fetch", epilog="Example: PACKSHOT_MODELS_DIR=~/models packshot models fetch sd15")
def models_fetch(
    profile_name: Annotated[str, typer.Argument(metavar="PROFILE", help="sd15 or sdxl; mini is bundled.")],
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="[PART]...", help="Only these; optional parts are fetched only when named."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Download a profile's published files into PACKSHOT_MODELS_DIR; say it again to go on where it was cut off.

    What is there is not fetched again. Bytes that the profile names are compared with it; of the rest the sha256 is
    told, to be pinned in <models directory>/<profile>.yaml once you trust it.
    """
    from pipelines.models.download import fetch
    from pipelines.models.profile import UNPINNED, load_profile
    from pipelines.settings import get_settings

    profile = load_profile(profile_name, get_settings().models_dir)
    parts = [profile.part(name) for name in names] if names else [part for part in profile.parts if not part.optional]
    rows = []
    with _bytes_bar() as progress:
        for part in parts:
            bar = progress.add_task(part.name, total=None)

            def there(done: int, total: int | None, bar: Any = bar) -> None:
                progress.update(bar, completed=done, total=total)

            digest = fetch(part, there)
            size = sum(file.stat().st_size for file in part.weights)
            progress.update(bar, completed=size, total=size)
            rows.append({"name": part.name, "path": part.path, "sha256": digest, "pinned": part.pinned})
    if as_json:
        _print_json(rows)
        return
    table = Table("name", "path", "sha256", "")
    for row in rows:
        table.add_row(*(str(row[key]) for key in ("name", "path", "sha256")), "" if row["pinned"] else UNPINNED)
    out.print(table)


@contextmanager
def _bytes_bar() -> Iterator[Progress]:
    columns = (
        SpinnerColumn(), TextColumn("{task.description}", style="bold", markup=False), BarColumn(), DownloadColumn(),
        TransferSpeedColumn(), TimeElapsedColumn(),
    )  # fmt: skip
    with Progress(*columns, console=err) as progress:
        yield progress


@models_app.command(
    "merge",
    epilog="Example: packshot models merge --base dreams.safetensors --inpainting sd-v1-5-inpainting.safetensors "
    "--original v1-5-pruned-emaonly.safetensors --out dreams-inpainting.safetensors",
)
def models_merge(
    base: Annotated[Path, typer.Option(help="Any model that descends from the original, of 4 channels.")],
    inpainting: Annotated[Path, typer.Option(help="The published inpainting model, of 9 channels.")],
    original: Annotated[Path, typer.Option(help="What the inpainting model was trained from.")],
    merged: Annotated[Path, typer.Option("--out", "-o", help="The .safetensors file to write.")],
    as_json: AsJson = False,
) -> None:
    """Make an inpainting model of any base: base + (inpainting - original), tensor by tensor.

    All three are safetensors, single-file checkpoints or diffusers' files of a UNet; torch files are read with
    `packshot --trust` only. Put the result into PACKSHOT_MODELS_DIR and name it as `base_inpaint9` in the profile.
    """
    from pipelines.models.files import sha256_of
    from pipelines.models.merging import how_to_use, merge_inpainting
    from pipelines.settings import get_settings

    with _bar() as progress:
        bar = progress.add_task("merge", total=None, note="tensors")
        merge_inpainting(
            base, inpainting, original, merged,
            trust=get_settings().trust_pickle,
            progress=lambda done, total: progress.update(bar, completed=done, total=total),
        )  # fmt: skip
    digest = sha256_of(merged)
    if as_json:
        _print_json({"path": merged, "sha256": digest})
        return
    out.print(f"{merged}: {how_to_use(merged, digest)}", soft_wrap=True)


# `--help` is the part's own where one is named
@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []})
def train(
    context: typer.Context,
    part: Annotated[
        str,
        typer.Argument(
            help="autoencoder, clip, unet, unet_inpaint9, brushnet, brushnet_random, brushnet_salient, "
            "brushnet_control, controlnet_canny, controlnet_inpaint, lora_oak_window, base_high_key, blip, upscaler, "
            "salient or hqsam."
        ),
    ],
) -> None:
    """Train, or go on training, a bundled model. Options follow the part; `packshot train unet --help` lists them.

    `packshot train brushnet` fine-tunes it in the paper's two stages, also on your own pictures.
    """
    if part == "--help":
        typer.echo(context.get_help(), nl=False)
        return
    trainers = typer.Typer(add_completion=False)
    if part == "brushnet":
        from pipelines.training.finetune import main as finetune

        trainers.command()(finetune)
        trainers(context.args, prog_name="packshot train brushnet")
    from pipelines.training.__main__ import main as trainer

    trainers.command()(trainer)
    trainers([part, *context.args], prog_name="packshot train")


if __name__ == "__main__":
    main()
