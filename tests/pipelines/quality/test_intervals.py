"""Intervals of rates: known values, and the ends of the range."""

from __future__ import annotations

import pytest

from pipelines.quality.intervals import interval, paired_difference, wilson


def test_wilson_interval_of_known_cases() -> None:
    low, high = wilson(8, 10)
    assert (round(low, 3), round(high, 3)) == (0.490, 0.943)
    assert wilson(4, 200) == pytest.approx((0.0078, 0.0503), abs=1e-4)


def test_a_wilson_interval_stays_within_0_and_1() -> None:
    assert wilson(0, 10)[0] == 0.0
    assert wilson(10, 10)[1] == 1.0
    assert wilson(0, 0) == (0.0, 1.0)


def test_the_interval_of_a_paired_difference_is_that_of_resampled_pairs() -> None:
    both, only_first, only_second, n = 40, 60, 20, 500
    differences = [0.0] * (n - only_first - only_second) + [-1.0] * only_first + [1.0] * only_second
    resampled = interval([str(i) for i in range(n)], differences)
    assert paired_difference(both, only_first, only_second, n) == pytest.approx(resampled, abs=0.004)
    mirrored = paired_difference(both, only_second, only_first, n)
    assert mirrored == pytest.approx([-end for end in reversed(paired_difference(both, only_first, only_second, n))])


def test_pairs_that_agree_narrow_the_interval_and_no_pair_decides_nothing() -> None:
    """36 of 50 both times, 12 the first time alone, 2 the second: an example of Newcombe's paper."""
    low, high = paired_difference(36, 12, 2, 50)
    assert (round(-high, 4), round(-low, 4)) == (0.0569, 0.3404)
    assert paired_difference(0, 0, 0, 0) == (-1.0, 1.0)
    low, high = paired_difference(0, 0, 0, 20)
    assert -0.2 < low < 0 < high < 0.2, "20 pairs without a case prove no equality"
    low, high = paired_difference(0, 0, 20, 20)
    assert 0.6 < low < high <= 1.0
