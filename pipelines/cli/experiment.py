"""`packshot experiment overcompletion`: the table of the paper's claims, with pictures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

experiment_app = typer.Typer(no_args_is_help=True, help="Test the paper's claims: the same pairs, every method.")
out = Console(highlight=False)
err = Console(stderr=True, highlight=False)


@experiment_app.command(
    "overcompletion",
    epilog="Example: packshot experiment overcompletion --part claim --pairs 50 --out build/experiment",
)
def overcompletion(
    pairs: Annotated[
        int | None, typer.Option(min=1, help="Pairs a cell: of the claim, and a third in the others; up to 300.")
    ] = None,
    part: Annotated[
        list[str] | None, typer.Option(help="claim, methods or ablations; may be given again. All of them by default.")
    ] = None,
    folder: Annotated[Path, typer.Option("--out", help="Pictures, scores and the report page.")] = Path(
        "build/experiment"
    ),
    shared: Annotated[Path, typer.Option(help="Where the photos are that nothing was trained on.")] = Path("../shared"),
    jobs: Annotated[int, typer.Option(min=1, help="Processes on the CPU: a core and 2.3 GB each.")] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document and nothing else.")] = False,
) -> None:
    """How often does the scene grow the product? Every arm and method on the same pairs, with intervals.

    Writes a page (index.html), results.csv and results.json. What was painted before is not painted again: stop it
    when you like, and ask for more pairs later. Without the shared folder it is a smoke test on the sample catalogue.
    """
    from pipelines.evaluation.experiment.cells import PAIRS
    from pipelines.evaluation.experiment.overcompletion import run
    from pipelines.evaluation.experiment.report import as_json as to_json
    from pipelines.evaluation.experiment.report import write_report
    from pipelines.evaluation.processes import keep_freed_memory
    from pipelines.models.profile import load_profile
    from pipelines.settings import get_settings

    folder.mkdir(parents=True, exist_ok=True)  # before an hour's work, not after
    keep_freed_memory()
    settings = get_settings()
    device = settings.compute().device
    profile = load_profile(settings.profile, settings.models_dir)
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=err) as progress:
        task = progress.add_task("loading", total=None)
        table, results = run(
            profile,
            shared,
            folder,
            pairs,
            part or tuple(PAIRS),
            device,
            lambda cell, done, total: progress.update(task, description=cell, completed=done, total=total),
            jobs if device == "cpu" else 1,
        )
    page = write_report(table, results, folder)
    if as_json:
        print(json.dumps(to_json(table), indent=2))
        return
    if table.smoke_test:
        err.print("A smoke test on the sample catalogue: too few products to say anything.")
    shown = Table("cell", "n", "overcompleted", "mean E⁺", "KID", "CLIP", "seconds")
    for row in table.rows:
        low, high = row.rate.interval
        shown.add_row(
            row.cell,
            str(row.n),
            f"{row.rate.value:.1%} ({low:.1%} to {high:.1%})",
            f"{row.e_plus.value:.4f} ({row.e_plus.interval[0]:.4f} to {row.e_plus.interval[1]:.4f})",
            "" if row.kid is None else f"{row.kid.value:.2f}",
            f"{row.clip.value:.3f}",
            f"{row.seconds:.2f}",
        )
    out.print(shown)
    for c in table.comparisons:
        rate, mean = c.rate_ratio, c.mean_ratio
        out.print(
            f"{c.baseline} -> {c.treated}: rate {rate.value:.2f} times lower ({rate.interval[0]:.2f} to "
            f"{rate.interval[1]:.2f}), mean E+ {mean.value:.2f} times ({mean.interval[0]:.2f} to "
            f"{mean.interval[1]:.2f}), intervals {'apart' if c.apart else 'not apart'}"
        )
    for cell, why in table.missing.items():
        err.print(f"{cell} was not painted: {why}")
    out.print(f"The page: {page}", soft_wrap=True)
