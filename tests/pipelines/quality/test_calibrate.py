"""What is said of tau: by products that had no say in it."""

from __future__ import annotations

import numpy as np
import pytest

from pipelines.quality.calibrate import Rate, Sample, leave_one_out, tune


def scores(clean: list[float], grown: list[float]) -> list[Sample]:
    """A product a pair of scores."""
    pairs = enumerate(zip(clean, grown, strict=True))
    return [
        Sample(f"sku-{n}", "scene.jpg", share, score, 0.0)
        for n, both in pairs
        for share, score in zip((0.0, 0.08), both, strict=True)
    ]


def test_tau_lies_in_the_middle_of_what_separates() -> None:
    assert tune(np.array([0.0, 0.01, 0.02]), np.array([0.06, 0.07])) == pytest.approx(0.04)
    assert tune(np.array([0.0, 0.01, 0.50]), np.array([0.05, 0.07, 0.09])) == pytest.approx(0.03)


def test_products_that_are_alike_are_judged_rightly_by_each_other() -> None:
    held_out = leave_one_out(scores([0.0, 0.01, 0.0, 0.02], [0.07, 0.06, 0.08, 0.06]))
    assert (held_out.false_alarms.count, held_out.misses.count) == (0, 0)
    assert (held_out.false_alarms.n, held_out.misses.n) == (4, 4)
    assert 0.02 < held_out.taus[0] <= held_out.taus[1] < 0.06


def test_a_product_unlike_the_others_is_an_error_though_a_tau_for_all_would_be_right() -> None:
    clean, grown = [0.0, 0.0, 0.0, 0.05], [0.07, 0.07, 0.07, 0.07]
    assert tune(np.array(clean), np.array(grown)) == pytest.approx(0.06)
    held_out = leave_one_out(scores(clean, grown))
    assert (held_out.false_alarms.count, held_out.misses.count) == (1, 0)


def test_none_of_few_is_no_certainty() -> None:
    low, high = Rate(0, 18).interval()
    assert (low, high) == (0, pytest.approx(0.1759, abs=1e-4))
    assert str(Rate(1, 2)) == "1 of 2 (9.5% to 90.5%)"
