"""`packshot measure cutout | checks | describe | detector | scenes`: measure a stage, or the finished images."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipelines.cli.console import AsJson, answer, table

if TYPE_CHECKING:
    from pipelines.evaluation.cutout import BaselineMeasure, CutoutMeasure

app = typer.Typer(no_args_is_help=True)


@app.callback()
def _measure() -> None:
    """Measure a stage against exact truth."""
    from pipelines.processors import keep_pages

    keep_pages()


@app.command()
def cutout(
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
    from pipelines.models.profile import active_profile

    found = measure_cutouts(catalogue, path, over_scenes, active_profile(), baselines=baselines)
    products = [(p.sku, p.path, f"{p.iou:.4f}", f"{p.boundary_f:.4f}") for p in found.products]
    measures: list[tuple[str, CutoutMeasure | BaselineMeasure]] = [("packshot", found)]
    measures += [(baseline.name, baseline) for baseline in found.baselines]
    means = [
        (name, f"{m.mean_iou:.4f}", _range(m.iou_interval), f"{m.mean_boundary_f:.4f}", _range(m.boundary_f_interval))
        for name, m in measures
    ]
    answer(
        as_json,
        found,
        table("SKU", "path", "IoU", "boundary F", rows=products),
        table(f"n = {found.n}", "mean IoU", "95 %", "mean boundary F", "95 %", rows=means),
    )


@app.command()
def checks(
    data: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="The training folder: faults are made of its cutouts.")
    ] = Path("../shared/training"),
    limit: Annotated[int | None, typer.Option(min=6, help="Faults a check and clean photos; else 60 and 100.")] = None,
    as_json: AsJson = False,
) -> None:
    """Recall of each check of photos, cutouts and images on planted faults, and false holds on clean ones."""
    from pipelines.evaluation.checks import measure_checks
    from pipelines.models.profile import active_profile

    found = measure_checks(data, active_profile(), limit)
    rows = [
        (
            one.check,
            f"{one.recall:.1%}",
            _range(one.recall_interval, ".1%"),
            str(one.faults),
            f"{one.false_holds:.1%}",
            _range(one.false_holds_interval, ".1%"),
            f"{one.clean_photos} {one.clean}",
        )
        for one in found.checks
    ]
    answer(
        as_json,
        found,
        table("check", "recall", "95 %", "faults", "false holds", "95 %", "clean", rows=rows),
        f"any check of the photo alone: {found.held_photos:.1%} of clean photos; any check: {found.held_on_paper:.1%} "
        "of single products on paper",
    )


@app.command()
def describe(
    data: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="The training folder: its held-out photos are described.")
    ] = Path("../shared/training"),
    as_json: AsJson = False,
) -> None:
    """Category top-1 and tag recall@5 on photos of held-out products, against title and majority class."""
    from pipelines.evaluation.describe import measure_describe
    from pipelines.models.profile import active_profile

    found = measure_describe(data, active_profile())
    rows = [
        (measure, share.way, f"{share.value:.1%}", _range(share.interval, ".1%"))
        for measure, shares in (("category top-1", found.category_top1), ("tag recall@5", found.tag_recall5))
        for share in shares
    ]
    answer(
        as_json,
        found,
        table("measure", "way", "right", "95 %", rows=rows),
        f"n = {found.n} photos of {found.products} products",
    )


@app.command()
def detector(
    shared: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="The shared data: catalog, training and models in it.")
    ] = Path("../shared"),
    limit: Annotated[int | None, typer.Option(help="Only so many composites and photos, for a first look.")] = None,
    as_json: AsJson = False,
) -> None:
    """Accuracy of the overcompletion detector, on composites of known truth. Tau was set on other products."""
    from pipelines.evaluation.detector import measure
    from pipelines.models.profile import active_profile
    from pipelines.scenes import Checks

    found = measure.measure_detector(shared, active_profile(), Checks().overcompletion, limit)
    of = {"noticed": f"{found.lacking} photos whose cutout lacks a part"}
    of |= dict.fromkeys(("alarms", "false_alarms"), f"{found.photos} photos")
    rows = [
        (name, f"{getattr(found, name):.4f}", _range(interval), of.get(name, f"{found.n} masks"))
        for name, interval in found.intervals.items()
    ]
    kinds = table("above tau", "", "95 %", "masks", "products", rows=[])
    for groups in (found.by_size, found.by_kind, found.by_background, found.by_mask):
        for name, group in groups.items():
            shown = (f"{group.rate:.1%}", _range(group.interval, ".1%"), str(group.n), str(group.products))
            kinds.add_row(name, *shown)
        kinds.add_section()
    answer(as_json, found, table(f"n = {found.n}, tau = {found.tau:g}", "", "95 %", "of", rows=rows), kinds)


def _range(interval: tuple[float, float], form: str = ".4f") -> str:
    low, high = interval
    return f"{low:{form}} to {high:{form}}"


@app.command()
def scenes(
    source: Annotated[
        str, typer.Argument(metavar="RUN|FOLDER", help="A run's id, 'latest', or an output folder of `packshot shoot`.")
    ],
    as_json: AsJson = False,
) -> None:
    """Sharpness, contact shadow, overcompletion and halo of a run's final images against their bare backdrops."""
    from pipelines.evaluation.scenes import Figure, measure_scenes
    from pipelines.settings import get_settings

    found = measure_scenes(source, get_settings())
    named = {field.name: getattr(found, field.name) for field in dataclasses.fields(found)}
    figures = {name: value for name, value in named.items() if isinstance(value, Figure)}
    rows = [
        (
            name,
            "–" if figure.value is None else f"{figure.value:.4f}",
            "–" if figure.interval is None else _range(figure.interval),
            figure.n,
        )
        for name, figure in figures.items()
    ]
    answer(as_json, found, table(f"{found.n} finals", "value", "95 %", "n", rows=rows))
