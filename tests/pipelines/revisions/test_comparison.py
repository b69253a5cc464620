"""Whether a model is better: only beyond chance, only on enough products, only on the same pictures."""

from __future__ import annotations

import json

import numpy as np
import pytest

from pipelines.quality.intervals import interval
from pipelines.revisions.comparison import Evaluation, Score, compare

TAU = 0.03


def evaluation(e_plus: list[float], seeds: int = 2, tau: float = TAU) -> Evaluation:
    """`e_plus` of each product, the same for each of its seeds."""
    return Evaluation(tau, tuple(Score(f"p{n}", s, value) for n, value in enumerate(e_plus) for s in range(seeds)))


def test_a_clear_gain_is_better_and_the_reverse_is_not():
    worse = evaluation([0.1, 0.3, 0.2, 0.1, 0.2, 0.4, 0.1, 0.2])
    good = evaluation([0.0, 0.01, 0.02, 0.0, 0.0, 0.1, 0.0, 0.0])
    found = compare(worse, good)
    assert found.better
    assert found.gain == pytest.approx(worse.mean - good.mean)
    assert 0 < found.interval[0] < found.gain < found.interval[1]
    assert (found.n, found.products) == (16, 8)
    assert not compare(good, worse).better
    assert not compare(worse, worse).better


def test_a_gain_that_one_product_makes_is_not_better():
    before, after = evaluation([0.02] * 9 + [0.9]), evaluation([0.021] * 9 + [0.0])
    assert compare(before, after).gain > 0.08
    assert not compare(before, after).better


def test_seven_products_are_too_few_however_clear_the_gain():
    assert compare(evaluation([0.5] * 8), evaluation([0.0] * 8)).better
    assert not compare(evaluation([0.5] * 7, seeds=50), evaluation([0.0] * 7, seeds=50)).better


def test_a_lower_mean_with_more_overcompleted_pictures_is_not_better():
    before, after = evaluation([0.9] * 2 + [0.0] * 8), evaluation([0.04] * 10)
    assert compare(before, after).gain > 0
    assert not compare(before, after).better
    before, after = evaluation([0.9] * 9 + [0.0]), evaluation([0.04] * 10)
    assert compare(before, after).interval[0] > 0
    assert not compare(before, after).better


def test_other_pictures_or_another_threshold_cannot_be_compared():
    one = evaluation([0.1] * 8)
    for other in (evaluation([0.1] * 9), evaluation([0.1] * 8, tau=0.05)):
        with pytest.raises(ValueError, match="same pictures"):
            compare(one, other)


def test_the_interval_is_over_products_not_pictures():
    rng = np.random.default_rng(1)
    level = rng.normal(0, 1, 20)
    few = interval([f"p{n}" for n in range(20)], level.tolist())
    many = interval([f"p{n}" for n in range(20) for _ in range(50)], np.repeat(level, 50).tolist())
    assert many == pytest.approx(few)
    half = 1.96 * level.std() / np.sqrt(20)
    assert few == pytest.approx((level.mean() - half, level.mean() + half), abs=0.1 * half)


def test_an_evaluation_is_the_same_after_the_ledger_kept_it():
    one = evaluation([0.1, 0.02])
    assert Evaluation.from_json(json.loads(json.dumps(one.to_json()))) == one
    figures = one.figures()
    assert (figures["n"], figures["products"], figures["rate"]) == (4, 2, 0.5)
    assert figures["mean_interval"] == [0.02, 0.1]
