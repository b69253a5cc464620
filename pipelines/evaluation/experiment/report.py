"""The report page: the table as HTML with pictures, as CSV and as JSON."""

from __future__ import annotations

import csv
import html
import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pipelines.evaluation.experiment.making import Result
from pipelines.evaluation.experiment.overcompletion import Comparison, Row, Table
from pipelines.evaluation.experiment.statistics import Figure

SHOWN = 8
"""Pairs whose pictures the page shows, of each cell."""

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 76rem; margin: 2rem auto; padding: 0 1rem; color: #22211f;
  background: #f4f2ee } table { border-collapse: collapse; background: #fff; font-variant-numeric: tabular-nums }
th, td { padding: .3rem .6rem; border: 1px solid #dedad3; text-align: right } th:first-child, td:first-child
{ text-align: left } td small { color: #77736c; display: block } img { display: block; max-width: 100% }
.warn { background: #fbe9d0; padding: .6rem 1rem } figure { margin: 1.2rem 0 } figcaption { color: #77736c }
"""
COLUMNS = {
    "rate": "overcompleted (E⁺ > τ)",
    "plated_rate": "overcompleted on the clean plate",
    "e_plus": "mean E⁺",
    "d_plus": "mean D⁺",
    "kid": "KID × 1000",
    "sharpness": "sharpness",
    "clip": "CLIP agreement",
    "clip_margin": "CLIP agreement beyond that with other prompts",
    "scene": "wall and floor right",
    "product_error": "product error before the paste",
    "uncertainty": "uncertainty by HQ-SAM",
}


def write_report(table: Table, results: dict[str, list[Result]], out: Path) -> Path:
    """Write `index.html` with its pictures, `results.csv` and `results.json` into `out`; return the page's path."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "results.json").write_text(json.dumps(as_json(table), indent=1), encoding="utf-8")
    _write_csv(table.rows, out / "results.csv")
    strips = {}
    for name, made in results.items():
        strip = out / "strips" / f"{name.replace('/', '-').replace(' ', '-')}.jpg"
        strip.parent.mkdir(exist_ok=True)
        shown = [result.composite() for result in made[:SHOWN]]
        Image.fromarray(np.concatenate(shown, axis=1)).save(strip, quality=88)
        strips[name] = strip.relative_to(out).as_posix()
    page = out / "index.html"
    page.write_text(_page(table, strips), encoding="utf-8")
    return page


def as_json(table: Table) -> dict[str, Any]:
    """The table as one JSON document; a figure that does not exist is null."""
    document: dict[str, Any] = _finite(asdict(table))
    return document


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _write_csv(rows: Sequence[Row], path: Path) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        bounds = [f"{name}{end}" for name in COLUMNS for end in ("", "_low", "_high")]
        writer.writerow(
            ["cell", "group", "n", "products", "overcompleted", "labelled", "grown_by_eye", *bounds, "seconds"]
        )
        for row in rows:
            figures = []
            for name in COLUMNS:
                figure = getattr(row, name)
                figures += [figure.value, *figure.interval] if figure is not None else ["", "", ""]
            counts = [row.cell, row.group, row.n, row.products, row.overcompleted, row.labelled, row.grown_by_eye]
            writer.writerow([*counts, *figures, row.seconds])


def _page(table: Table, strips: dict[str, str]) -> str:
    warning = ""
    if table.smoke_test:
        warning = (
            '<p class="warn">A smoke test on the sample catalogue: too few products to say anything. '
            "Put the shared folder beside the checkout for the experiment.</p>"
        )
    missing = "".join(f"<li>{html.escape(cell)}: {html.escape(why)}</li>" for cell, why in table.missing.items())
    pictures = "".join(
        f'<figure><img loading="lazy" src="{html.escape(source)}" alt="{html.escape(name)}">'
        f"<figcaption>{html.escape(name)}</figcaption></figure>"
        for name, source in strips.items()
    )
    return f"""<!doctype html>
<html lang="en"><meta charset="utf-8"><title>Overcompletion: the experiment</title><style>{STYLE}</style>
<h1>Overcompletion: the experiment</h1>{warning}
<p>The same pairs of product and scene, and the same noise, in every cell: {table.pairs} pairs at most, of
{table.subjects} products that nothing which paints was trained on. Small print: 95 % bootstrap intervals over products.
A picture is overcompleted when E⁺ &gt; {table.tau:g}. Agreement with prompts is by CLIP {html.escape(table.clip)}.</p>
<h2>Comparisons</h2>{_comparisons(table.comparisons)}
{_labelled(table)}<h2>Cells</h2>{_rows(table)}
{f"<h3>Not painted</h3><ul>{missing}</ul>" if missing else ""}
<h2>Pictures</h2><p>The first {SHOWN} pairs of each cell, with the product laid back.</p>{pictures}
</html>
"""


def _rows(table: Table) -> str:
    heads = "".join(
        f"<th>{html.escape(title)}</th>" for title in ("cell", "n", "grown by eye", *COLUMNS.values(), "seconds")
    )
    lines = []
    for row in table.rows:
        cells = "".join(f"<td>{_figure(getattr(row, name), name.endswith('rate'))}</td>" for name in COLUMNS)
        eye = f"{row.grown_by_eye} of {row.labelled}" if row.labelled else ""
        start = f"<td>{html.escape(row.cell)}</td><td>{row.n}</td><td>{eye}</td>"
        lines.append(f"<tr>{start}{cells}<td>{row.seconds:.2f}</td></tr>")
    for name, reference in table.references.items():
        empty = "<td></td>"
        cells = "".join(f"<td>{_figure(getattr(reference, column, None))}</td>" for column in COLUMNS)
        lines.append(f"<tr><td>{html.escape(name)}</td>{empty * 2}{cells}{empty}</tr>")
    return f"<table><tr>{heads}</tr>{''.join(lines)}</table>"


def _comparisons(comparisons: Sequence[Comparison]) -> str:
    lines = []
    for c in comparisons:
        lines.append(
            f"<tr><td>{html.escape(c.baseline)} → {html.escape(c.treated)}</td><td>{c.n}</td>"
            f"<td>{_figure(c.rate_ratio)}</td><td>{_figure(c.mean_ratio)}</td><td>{'yes' if c.apart else 'no'}</td>"
            f"<td>{c.unfamiliar}</td><td>{_figure(c.unfamiliar_rate_ratio)}</td>"
            f"<td>{_figure(c.unfamiliar_mean_ratio)}</td><td>{_figure(c.kid_difference)}</td><td>{_figure(c.clip_difference)}</td><td>{_figure(c.clip_margin_difference)}</td>"
            f"<td>{_figure(c.scene_difference)}</td></tr>"
        )
    titles = (
        "cells",
        "n",
        "rate ratio",
        "mean ratio",
        "intervals apart",
        "n of products new to the detector",
        "their rate ratio",
        "their mean ratio",
        "KID",
        "CLIP",
        "CLIP beyond others",
        "wall and floor",
    )
    return f"<table><tr>{''.join(f'<th>{title}</th>' for title in titles)}</tr>{''.join(lines)}</table>"


def _labelled(table: Table) -> str:
    found = table.labelled
    if found is None:
        return ""
    figures = zip(("precision", "recall", "AUROC"), (found.precision, found.recall, found.auroc), strict=True)
    heads, cells = zip(*((f"<th>{name}</th>", f"<td>{_figure(figure)}</td>") for name, figure in figures), strict=True)
    return (
        f"<h2>Against the eye</h2><p>{found.n} pictures of {found.products} products were labelled without knowing "
        f"their cells; {found.grown} of them as grown. E⁺ &gt; τ against these labels:</p>"
        f"<table><tr>{''.join(heads)}</tr><tr>{''.join(cells)}</tr></table>"
    )


def _figure(figure: Figure | None, percent: bool = False) -> str:
    if figure is None or not math.isfinite(figure.value):
        return ""
    low, high = figure.interval
    if percent:
        return f"{figure.value:.1%}<small>{low:.1%} to {high:.1%}</small>"
    return f"{figure.value:.3g}<small>{low:.3g} to {high:.3g}</small>"
