"""Draw the experiment's rates with their intervals as one SVG.

    python -m pipelines.evaluation.experiment.plot docs/research/experiment/results.json

writes `rates.svg` beside the JSON. A filled mark is the share of pictures with E+ above tau, an open one the share that
remains on the clean plate; the line is the 95 % interval over products.
"""

from __future__ import annotations

import html
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

WIDTH, LEFT, RIGHT = 860, 300, 30
ROW, HEAD = 22, 34
COLOURS = {"random": "#b3432b", "control": "#b0762a", "stage1": "#5a7d3a", "stage2": "#1f6f8b"}
OTHER = "#6b6660"
TITLES = {"claim": "The claim", "methods": "Other methods", "ablations": "The method, one setting changed"}


def draw_rates(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the SVG of the table's rows, as `results.json` has them: `cell`, `group`, `rate`, `plated_rate`."""
    parts: list[str] = []
    y = HEAD + 16
    for group in dict.fromkeys(row["group"] for row in rows):
        parts.append(f'<text x="10" y="{y}" font-weight="bold">{html.escape(TITLES.get(group, group))}</text>')
        y += ROW
        for row in (one for one in rows if one["group"] == group):
            colour = COLOURS.get(row["cell"].split("/")[0], OTHER)
            parts.append(f'<text x="{LEFT - 14}" y="{y + 4}" text-anchor="end">{html.escape(row["cell"])}</text>')
            parts += _mark(row["plated_rate"], y + 4, colour, filled=False)
            parts += _mark(row["rate"], y - 3, colour, filled=True)
            y += ROW
        y += 8
    grid = []
    for percent in range(0, 101, 20):
        x = _x(percent / 100)
        grid.append(f'<line x1="{x:.1f}" y1="{HEAD}" x2="{x:.1f}" y2="{y - 12}" stroke="#e3ded6"/>')
        grid.append(f'<text x="{x:.1f}" y="{HEAD - 6}" text-anchor="middle" fill="#77736c">{percent} %</text>')
    legend = (
        f'<circle cx="16" cy="14" r="4.5" fill="{OTHER}"/><text x="26" y="18">overcompleted</text>'
        f'<circle cx="136" cy="14" r="3.5" fill="#fff" stroke="{OTHER}"/><text x="146" y="18">on the clean plate</text>'
    )
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {y}" font-family="sans-serif" font-size="13" '
        'fill="#22211f"><title>Rate of overcompletion in each cell, with 95 % intervals over products</title>'
    )
    return "\n".join([head, '<rect width="100%" height="100%" fill="#fff"/>', legend, *grid, *parts, "</svg>"]) + "\n"


def _x(share: float) -> float:
    return LEFT + share * (WIDTH - LEFT - RIGHT)


def _mark(figure: Mapping[str, Any], y: float, colour: str, filled: bool) -> list[str]:
    low, high = figure["interval"]
    fill, radius = (colour, 4.5) if filled else ("#fff", 3.5)
    return [
        f'<line x1="{_x(low):.1f}" y1="{y}" x2="{_x(high):.1f}" y2="{y}" stroke="{colour}" stroke-width="1.5"/>',
        f'<circle cx="{_x(figure["value"]):.1f}" cy="{y}" r="{radius}" fill="{fill}" stroke="{colour}"/>',
    ]


def main(results: Path) -> Path:
    """Write `rates.svg` beside a `results.json`; return its path."""
    drawn = results.with_name("rates.svg")
    drawn.write_text(draw_rates(json.loads(results.read_text(encoding="utf-8"))["rows"]), encoding="utf-8")
    return drawn


if __name__ == "__main__":
    print(main(Path(sys.argv[1])))
