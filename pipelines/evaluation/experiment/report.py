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
from pipelines.evaluation.experiment.overcompletion import CellComparison, Row, Table
from pipelines.evaluation.experiment.plot import draw_rates
from pipelines.evaluation.statistics import Figure

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
    """Write `index.html` with its pictures, `rates.svg`, `results.csv` and `results.json` into `out`.

    Returns the page's path.
    """
    out.mkdir(parents=True, exist_ok=True)
    document = as_json(table)
    (out / "results.json").write_text(json.dumps(document, indent=1), encoding="utf-8")
    (out / "rates.svg").write_text(draw_rates(document["rows"]), encoding="utf-8")
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
    """The table as one JSON document; a missing figure is null."""
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
<p><img src="rates.svg" alt="Rate of overcompletion in each cell, with intervals"></p>
<h2>Comparisons</h2>{_comparisons(table.comparisons)}
{_labelled(table)}<h2>Cells</h2>{_rows(table)}
{f"<h3>Not painted</h3><ul>{missing}</ul>" if missing else ""}
<h2>Pictures</h2><p>The first {SHOWN} pairs of each cell, with the product laid back.</p>{pictures}
</html>
"""


def _rows(table: Table) -> str:
    rows = []
    for row in table.rows:
        figures = [_figure(getattr(row, name), name.endswith("rate")) for name in COLUMNS]
        eye = f"{row.grown_by_eye} of {row.labelled}" if row.labelled else ""
        rows.append([html.escape(row.cell), row.n, eye, *figures, f"{row.seconds:.2f}"])
    for name, reference in table.references.items():
        figures = [_figure(getattr(reference, column, None)) for column in COLUMNS]
        rows.append([html.escape(name), "", "", *figures, ""])
    return _as_html(("cell", "n", "grown by eye", *COLUMNS.values(), "seconds"), rows)


def _comparisons(comparisons: Sequence[CellComparison]) -> str:
    rows = []
    for c in comparisons:
        all_products = [c.n, _figure(c.rate_ratio), _figure(c.mean_ratio), "yes" if c.apart else "no"]
        new = [c.unfamiliar, _figure(c.unfamiliar_rate_ratio), _figure(c.unfamiliar_mean_ratio)]
        others = (c.kid_difference, c.clip_difference, c.clip_margin_difference, c.scene_difference)
        name = f"{html.escape(c.baseline)} → {html.escape(c.treated)}"
        rows.append([name, *all_products, *new, *(_figure(figure) for figure in others)])
    first = ("cells", "n", "rate ratio", "mean ratio", "intervals apart", "n of products new to the detector")
    more = ("their rate ratio", "their mean ratio", "KID", "CLIP", "CLIP beyond others", "wall and floor")
    return _as_html((*first, *more), rows)


def _labelled(table: Table) -> str:
    found = table.labelled
    if found is None:
        return ""
    figures = [[_figure(figure) for figure in (found.precision, found.recall, found.auroc)]]
    return (
        f"<h2>Against the eye</h2><p>{found.n} pictures of {found.products} products were labelled without knowing "
        f"their cells; {found.grown} of them as grown. E⁺ &gt; τ against these labels:</p>"
        + _as_html(("precision", "recall", "AUROC"), figures)
    )


def _as_html(titles: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A table; `rows` are HTML already."""
    lines = [[f"<th>{html.escape(title)}</th>" for title in titles]]
    lines += [[f"<td>{cell}</td>" for cell in row] for row in rows]
    return "<table>" + "".join("<tr>" + "".join(line) + "</tr>" for line in lines) + "</table>"


def _figure(figure: Figure | None, percent: bool = False) -> str:
    if figure is None or not math.isfinite(figure.value):
        return ""
    low, high = figure.interval
    if percent:
        return f"{figure.value:.1%}<small>{low:.1%} to {high:.1%}</small>"
    return f"{figure.value:.3g}<small>{low:.3g} to {high:.3g}</small>"
