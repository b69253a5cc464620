"""Intervals of rates: known values, and the ends of the range."""

from __future__ import annotations

import pytest

from pipelines.quality.intervals import wilson


def test_wilson_interval_of_known_cases() -> None:
    low, high = wilson(8, 10)
    assert (round(low, 3), round(high, 3)) == (0.490, 0.943)
    assert wilson(4, 200) == pytest.approx((0.0078, 0.0503), abs=1e-4)


def test_a_wilson_interval_stays_within_0_and_1() -> None:
    assert wilson(0, 10)[0] == 0.0
    assert wilson(10, 10)[1] == 1.0
    assert wilson(0, 0) == (0.0, 1.0)
