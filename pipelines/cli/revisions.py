"""`packshot models revisions | promote | rollback`: which fine-tuned weights a profile uses, and why."""

from __future__ import annotations

import getpass
from typing import TYPE_CHECKING, Annotated

import typer

from pipelines.cli.console import AsJson, answer, table

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from pipelines.revisions.registry import Revision

app = typer.Typer()

Part = Annotated[str, typer.Argument(metavar="PART", help="A part of the profile, such as brushnet.")]


@app.command("revisions")
def list_all(
    part: Annotated[str | None, typer.Argument(metavar="[PART]", help="Only its revisions.")] = None,
    as_json: AsJson = False,
) -> None:
    """List registered revisions, newest first: E+ on the frozen set, the parent's E+, and whether it is promoted."""
    from pipelines.ledger.postgres import connect
    from pipelines.revisions.registry import revisions
    from pipelines.settings import get_settings

    settings = get_settings()
    found = revisions(connect(settings.database_url), settings.profile, part)
    headings = ("part", "revision", "parent", "mean E+", "parent's", "lower by (95 %)", "n", "products", "trained on")
    rows = [_row(revision) for revision in found]
    answer(as_json, [revision.to_json() for revision in found], table(*headings, "", rows=rows))


def _row(one: Revision) -> tuple[object, ...]:
    compared = one.comparison
    low, high = compared.interval
    stages = ", ".join(f"{name} {stage.get('pictures', '?')}" for name, stage in one.stages.items())
    state = "promoted" if one.promoted else "better" if compared.better else "not better"
    return (
        one.part, one.revision, one.parent[:12], f"{one.evaluation.mean:.4f}", f"{one.baseline.mean:.4f}",
        f"{compared.gain:.4f} ({low:.4f} to {high:.4f})", compared.n, compared.products, stages, state,
    )  # fmt: skip


@app.command()
def promote(
    part: Part,
    revision: Annotated[str, typer.Argument(metavar="REVISION", help="As `packshot models revisions` names it.")],
    force: Annotated[
        bool, typer.Option("--force", help="Promote it although it is not better; this is recorded.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Use a revision from the next task on. Refused unless it is better beyond its confidence interval."""
    from pipelines.models.profile import active_profile
    from pipelines.revisions.registry import promote as promote_revision

    engine = _engine()
    made = promote_revision(engine, active_profile(), part, revision, getpass.getuser(), force)
    _install(engine)
    answer(as_json, made.to_json(), f"{part} is {made.revision} now: {made.comparison}")


@app.command()
def rollback(part: Part, as_json: AsJson = False) -> None:
    """Undo the last promotion of a part. The revision before it is used again, or the profile's own weights."""
    from pipelines.models.profile import active_profile
    from pipelines.revisions.registry import rollback as rollback_part

    engine = _engine()
    now = rollback_part(engine, active_profile(), part, getpass.getuser())
    _install(engine)
    answer(as_json, {"part": part, "revision": now}, f"{part} is {now} again")


def _engine() -> Engine:
    from pipelines.ledger.postgres import connect
    from pipelines.settings import get_settings

    return connect(get_settings().database_url)


def _install(engine: Engine) -> None:
    """Brings the promoted weights onto this machine."""
    from pipelines.revisions.registry import install
    from pipelines.settings import get_settings
    from pipelines.store import S3Store

    settings = get_settings()
    install(engine, S3Store(settings), settings.profile, settings.state_dir)
