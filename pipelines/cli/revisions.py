"""`packshot models revisions | promote | rollback`: which weights a profile's parts have, and why."""

from __future__ import annotations

import getpass
from typing import Annotated

import typer

revisions_app = typer.Typer()

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document and nothing else.")]
Part = Annotated[str, typer.Argument(metavar="PART", help="A part of the profile, such as brushnet.")]


@revisions_app.command("revisions")
def list_revisions(
    part: Annotated[str | None, typer.Argument(metavar="[PART]", help="Only its revisions.")] = None,
    as_json: AsJson = False,
) -> None:
    """Every registered revision, newest first: its E+ on the frozen set, its parent's, and whether it is promoted."""
    from rich.table import Table

    from pipelines.cli.main import _print_json, out
    from pipelines.ledger.postgres import connect
    from pipelines.revisions.registry import revisions
    from pipelines.settings import get_settings

    settings = get_settings()
    found = revisions(connect(settings.database_url), settings.profile, part)
    if as_json:
        _print_json([revision.to_json() for revision in found])
        return
    table = Table("part", "revision", "parent", "mean E+", "parent's", "lower by (95 %)", "n", "products", "trained on")
    table.add_column("")
    for one in found:
        compared = one.comparison
        low, high = compared.interval
        stages = ", ".join(f"{name} {stage.get('pictures', '?')}" for name, stage in one.stages.items())
        gain = f"{compared.gain:.4f} ({low:.4f} to {high:.4f})"
        state = "promoted" if one.promoted else "better" if compared.better else "not better"
        table.add_row(
            one.part, one.revision, one.parent[:12], f"{one.evaluation.mean:.4f}", f"{one.baseline.mean:.4f}", gain,
            str(compared.n), str(compared.products), stages, state,
        )  # fmt: skip
    out.print(table)


@revisions_app.command("promote")
def promote_revision(
    part: Part,
    revision: Annotated[str, typer.Argument(metavar="REVISION", help="As `packshot models revisions` names it.")],
    force: Annotated[bool, typer.Option("--force", help="You decide so whatever the figures say; it is kept.")] = False,
    as_json: AsJson = False,
) -> None:
    """Use a revision from the next task on. Refused unless it is better beyond its confidence interval."""
    from pipelines.cli.main import _print_json, out
    from pipelines.ledger.postgres import connect
    from pipelines.models.profile import load_profile
    from pipelines.revisions.registry import install, promote
    from pipelines.settings import get_settings
    from pipelines.store import S3Store

    settings = get_settings()
    engine = connect(settings.database_url)
    profile = load_profile(settings.profile, settings.models_dir)
    made = promote(engine, profile, part, revision, getpass.getuser(), force)
    install(engine, S3Store(settings), profile.name, settings.state_dir)
    if as_json:
        _print_json(made.to_json())
    else:
        out.print(f"{part} is {made.revision} now: {made.comparison}", soft_wrap=True)


@revisions_app.command("rollback")
def rollback_part(part: Part, as_json: AsJson = False) -> None:
    """Take the last promotion of a part back: the revision before it is used again, the profile's own at last."""
    from pipelines.cli.main import _print_json, out
    from pipelines.ledger.postgres import connect
    from pipelines.models.profile import load_profile
    from pipelines.revisions.registry import install, rollback
    from pipelines.settings import get_settings
    from pipelines.store import S3Store

    settings = get_settings()
    engine = connect(settings.database_url)
    profile = load_profile(settings.profile, settings.models_dir)
    now = rollback(engine, profile, part, getpass.getuser())
    install(engine, S3Store(settings), profile.name, settings.state_dir)
    if as_json:
        _print_json({"part": part, "revision": now})
    else:
        out.print(f"{part} is {now} again")
