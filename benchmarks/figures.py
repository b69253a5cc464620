"""Measurements beside a baseline, and their table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Figure:
    """One measurement beside its baseline."""

    name: str
    value: float
    unit: str
    baseline: float
    ratio: float

    @classmethod
    def of(cls, name: str, value: float, unit: str, baseline: float) -> Figure:
        """With `ratio` = value / baseline."""
        return cls(name, value, unit, baseline, value / baseline)


def print_figures(figures: Sequence[Figure]) -> None:
    """Print a table."""
    print(f"{'':24}{'value':>12} {'':6}{'baseline':>12}{'ratio':>9}")
    for figure in figures:
        print(f"{figure.name:24}{figure.value:12.4g} {figure.unit:6}{figure.baseline:12.4g}{figure.ratio:9.3f}")
