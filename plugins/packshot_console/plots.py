"""Plots as plain numbers: where each bar and interval of an SVG stands. Templates draw them, classes colour them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date

HEIGHT = 160
"""Height of the bars' plot in px. Its width is 100 units."""

SCALE = 100
"""Width of the intervals' plot in units."""


@dataclass(frozen=True, slots=True)
class Part:
    """One state's part of a day's bar: `top` and `height` in px."""

    state: str
    count: int
    top: float
    height: float


@dataclass(frozen=True, slots=True)
class DayBar:
    """One day's bar: `left` and `width` in units of a plot that is 100 wide."""

    day: date
    total: int
    left: float
    width: float
    parts: tuple[Part, ...]


@dataclass(frozen=True, slots=True)
class IntervalRow:
    """A rate with its interval; `x`, `left` and `width` in units of a plot that is 100 wide and ends at `scale`."""

    name: str
    hits: int
    of: int
    rate: float
    low: float
    high: float
    x: float
    left: float
    width: float
    scale: float


def day_bars(days: Sequence[tuple[date, Mapping[str, int]]], states: Sequence[str]) -> tuple[DayBar, ...]:
    """Stacked bars, the first state at the bottom, the largest day as high as the plot."""
    highest = max((sum(counts.values()) for _, counts in days), default=0) or 1
    step = 100 / max(1, len(days))
    bars = []
    for n, (day, counts) in enumerate(days):
        below, parts = 0.0, []
        for state in states:
            height = counts[state] * HEIGHT / highest
            below += height
            parts.append(Part(state, counts[state], HEIGHT - below, height))
        bars.append(DayBar(day, sum(counts.values()), n * step + step * 0.12, step * 0.76, tuple(parts)))
    return tuple(bars)


def interval_rows(rates: Sequence[tuple[str, int, int, tuple[float, float]]]) -> tuple[IntervalRow, ...]:
    """Rates by name, each (name, hits, of, (low, high)), on one scale that ends at a round number."""
    largest = max((high for *_, (_, high) in rates), default=0.0)
    scale = next((end for end in (0.05, 0.1, 0.2, 0.5) if largest <= end), 1.0)
    return tuple(
        IntervalRow(
            name, hits, of, hits / of, low, high,
            SCALE * hits / of / scale, SCALE * low / scale, SCALE * (high - low) / scale, scale,
        )
        for name, hits, of, (low, high) in rates
    )  # fmt: skip
