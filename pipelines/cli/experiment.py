"""`packshot experiment`: the table of the paper's claims, and what of growth reaches images over backdrops."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipelines.cli.console import AsJson, answer, err, progress_bar, table

if TYPE_CHECKING:
    from rich.table import Table

    from pipelines.evaluation.experiment.overcompletion import Table as Results

app = typer.Typer(no_args_is_help=True, help="Test the paper's claims: the same pairs, every method.")


@app.command(
    "overcompletion",
    epilog="Example: packshot experiment overcompletion --part claim --pairs 50 --out build/experiment",
)
def overcompletion(
    pairs: Annotated[
        int | None, typer.Option(min=1, help="Pairs a cell of the claim, up to 300; the other cells have a third.")
    ] = None,
    part: Annotated[
        list[str] | None, typer.Option(help="claim, methods or ablations; may be repeated. All of them by default.")
    ] = None,
    folder: Annotated[Path, typer.Option("--out", help="Pictures, scores and the report page.")] = Path(
        "build/experiment"
    ),
    shared: Annotated[Path, typer.Option(help="Folder of the photos that nothing was trained on.")] = Path("../shared"),
    jobs: Annotated[int, typer.Option(min=1, help="Processes on the CPU: a core and 2.3 GB each.")] = 1,
    as_json: AsJson = False,
) -> None:
    """How often does the scene grow the product? Every arm and method paints the same pairs.

    Writes a page (index.html), results.csv and results.json. An image is painted once: you may stop at any time, and
    ask for more pairs later. Without the shared folder it is a smoke test on the sample catalogue.
    """
    from pipelines.evaluation.experiment.cells import PAIRS
    from pipelines.evaluation.experiment.overcompletion import run
    from pipelines.evaluation.experiment.report import as_json as to_json
    from pipelines.evaluation.experiment.report import write_report
    from pipelines.models.profile import active_profile
    from pipelines.processors import keep_pages
    from pipelines.settings import get_settings

    folder.mkdir(parents=True, exist_ok=True)  # before an hour's work, not after
    keep_pages()
    device = get_settings().compute().device
    with progress_bar() as progress:
        bar = progress.add_task("loading", total=None, note="")
        found, results = run(
            active_profile(),
            shared,
            folder,
            pairs,
            part or tuple(PAIRS),
            device,
            lambda cell, done, total: progress.update(bar, description=cell, completed=done, total=total),
            jobs if device == "cpu" else 1,
        )
    page = write_report(found, results, folder)
    if not as_json:
        if found.smoke_test:
            err.print("A smoke test on the sample catalogue: too few products to say anything.")
        for cell, why in found.missing.items():
            err.print(f"{cell} was not painted: {why}")
    answer(as_json, to_json(found), _cells(found), *_comparisons(found), f"The page: {page}")


@app.command("backdrops", epilog="Example: packshot experiment backdrops --products 20 --out build/experiment")
def backdrops(
    products: Annotated[int | None, typer.Option(min=1, help="The first so many products; by default all.")] = None,
    folder: Annotated[Path, typer.Option("--out", help="Where measures are stored.")] = Path("build/experiment"),
    shared: Annotated[Path, typer.Option(help="Folder of the photos that nothing was trained on.")] = Path("../shared"),
    as_json: AsJson = False,
) -> None:
    """How much of what the model grows over a backdrop reaches the final image?

    Makes every product in every bundled scene whose light is generated, with the baseline's BrushNet and with the
    method. A measure is stored at once: you may stop at any time, and the same command continues.
    """
    from pipelines.evaluation.experiment.backdrops import rows_of, run
    from pipelines.models.profile import active_profile
    from pipelines.processors import keep_pages
    from pipelines.scenes import Checks
    from pipelines.settings import get_settings

    folder.mkdir(parents=True, exist_ok=True)
    keep_pages()
    with progress_bar() as progress:
        bar = progress.add_task("loading", total=None, note="")
        measured = run(
            active_profile(),
            shared,
            folder,
            products,
            compute=get_settings().compute(),
            progress=lambda cell, done, total: progress.update(bar, description=cell, completed=done, total=total),
        )
    rows = rows_of(measured, Checks().overcompletion)
    shown = [
        (
            row.arm,
            row.n,
            row.products,
            f"{row.generated.value:.1%} ({row.generated.interval[0]:.1%} to {row.generated.interval[1]:.1%})",
            f"{row.final.value:.1%} ({row.final.interval[0]:.1%} to {row.final.interval[1]:.1%})",
            f"{row.over_products[0]:.1%} to {row.over_products[1]:.1%}",
        )
        for row in rows
    ]
    headings = ("arm", "n", "products", "generated overcompleted", "finals overcompleted", "products with one (Wilson)")
    answer(as_json, [asdict(row) for row in rows], table(*headings, rows=shown))


def _cells(found: Results) -> Table:
    rows = [
        (
            row.cell,
            row.n,
            f"{row.rate.value:.1%} ({row.rate.interval[0]:.1%} to {row.rate.interval[1]:.1%})",
            f"{row.e_plus.value:.4f} ({row.e_plus.interval[0]:.4f} to {row.e_plus.interval[1]:.4f})",
            "" if row.kid is None else f"{row.kid.value:.2f}",
            f"{row.clip.value:.3f}",
            f"{row.seconds:.2f}",
        )
        for row in found.rows
    ]
    return table("cell", "n", "overcompleted", "mean E⁺", "KID", "CLIP", "seconds", rows=rows)


def _comparisons(found: Results) -> list[str]:
    return [
        f"{c.baseline} -> {c.treated}: rate {c.rate_ratio.value:.2f} times lower ({c.rate_ratio.interval[0]:.2f} to "
        f"{c.rate_ratio.interval[1]:.2f}), mean E+ {c.mean_ratio.value:.2f} times ({c.mean_ratio.interval[0]:.2f} to "
        f"{c.mean_ratio.interval[1]:.2f}), intervals {'apart' if c.apart else 'not apart'}"
        for c in found.comparisons
    ]
