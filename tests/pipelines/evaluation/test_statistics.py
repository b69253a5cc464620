"""Figures and their intervals: exact where arithmetic says what they are, and honest about products, not pictures."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.evaluation import statistics
from pipelines.evaluation.statistics import Figure

PRODUCTS = [f"p{n % 12}" for n in range(48)]


@given(st.lists(st.floats(0, 1), min_size=48, max_size=48))
@settings(max_examples=20, deadline=None)
def test_the_mean_lies_within_its_interval_and_the_interval_within_the_values(values: list[float]) -> None:
    figure = statistics.mean(PRODUCTS, values)
    assert figure.value == pytest.approx(np.mean(values))
    assert min(values) - 1e-9 <= figure.interval[0] <= figure.interval[1] <= max(values) + 1e-9


def test_pictures_of_one_product_count_as_one_witness() -> None:
    values = [float(n % 2) for n in range(48)]
    many = statistics.mean([f"p{n}" for n in range(48)], values)
    few = statistics.mean(["a" if n % 2 else "b" for n in range(48)], values)
    assert few.interval == (0.0, 1.0)
    assert many.interval[1] - many.interval[0] < 0.35


def test_pictures_without_a_value_are_left_out() -> None:
    assert statistics.mean(["a", "b", "c"], [1.0, float("nan"), 3.0]).value == 2.0
    assert np.isnan(statistics.mean(["a", "b"], [float("nan")] * 2).value)


def test_ratios_are_baseline_over_treated_and_a_rate_of_nought_is_finite() -> None:
    before, after = [0.3] * 24 + [0.1] * 24, [0.1] * 48
    assert statistics.rate_ratio(PRODUCTS, before, after, 0.1).value == pytest.approx(24.5 / 0.5)
    assert statistics.mean_ratio(PRODUCTS, [0.5] * 48, [0.1] * 48).value == pytest.approx(5)
    same = statistics.rate_ratio(PRODUCTS, before, before, 0.1)
    assert same.value == 1
    assert same.interval == (1, 1)


def test_intervals_are_apart_only_where_they_do_not_meet() -> None:
    assert Figure(1, (0, 2)).apart(Figure(4, (3, 5)))
    assert Figure(4, (3, 5)).apart(Figure(1, (0, 2)))
    assert not Figure(1, (0, 3)).apart(Figure(4, (3, 5)))


def test_kid_is_nought_for_the_same_kind_of_picture_and_grows_with_the_distance() -> None:
    rng = np.random.default_rng(0)
    real = rng.normal(size=(200, 16))
    products = [f"p{n % 40}" for n in range(120)]
    alike = statistics.kid(products, rng.normal(size=(120, 16)), real)
    near = statistics.kid(products, rng.normal(0.3, 1, size=(120, 16)), real)
    far = statistics.kid(products, rng.normal(1, 1, size=(120, 16)), real)
    assert alike.interval[0] < 0 < alike.interval[1] or abs(alike.value) < 20
    assert alike.value < near.value < far.value
    assert far.apart(alike)


def test_the_difference_of_two_kids_of_the_same_pairs_is_known_better_than_either() -> None:
    rng = np.random.default_rng(1)
    real, products = rng.normal(size=(200, 16)), [f"p{n % 40}" for n in range(120)]
    before = rng.normal(0.3, 1, size=(120, 16))
    after = before - 0.1
    first, second = statistics.kid(products, before, real), statistics.kid(products, after, real)
    found = statistics.kid_difference(products, before, after, real)
    assert found.value == pytest.approx(second.value - first.value)
    assert found.interval[1] < 0
    assert found.interval[1] - found.interval[0] < first.interval[1] - first.interval[0]


def test_what_a_picture_has_with_every_prompt_is_no_agreement_with_its_own():
    agreements = np.array([[0.5, 0.1, 0.3], [0.2, 0.4, 0.2], [0.0, 0.2, 0.9]])
    expected = [0.3, 0.2, 0.8]
    np.testing.assert_allclose(statistics.margins(agreements), expected)
    blurred = agreements + np.array([[0.1], [0.7], [-0.2]])  # a style that suits any prompt more, or less
    np.testing.assert_allclose(statistics.margins(blurred), expected)
    assert np.isnan(statistics.margins(np.array([[0.4]]))).all()


def test_auroc_counts_pairs_and_halves_ties() -> None:
    assert statistics.auroc(np.array([0.0, 0.1]), np.array([0.2, 0.3])) == 1
    assert statistics.auroc(np.array([0.2, 0.3]), np.array([0.0, 0.1])) == 0
    assert statistics.auroc(np.array([0.0, 0.0]), np.array([0.0, 0.5])) == pytest.approx(0.75)
