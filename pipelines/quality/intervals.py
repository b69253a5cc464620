"""95 % intervals over products: the bootstrap resamples products, never pictures.

Pictures of one product are correlated, so many pictures of few products carry little information (cluster bootstrap,
Field and Welsh 2007). `wilson` and `paired_difference` are for counts of independent things.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

RESAMPLES, MANY = 1000, 10_000
"""Number of resamples: for any statistic, and for a mean, which is cheaper."""

Interval = tuple[float, float]


def wilson(hits: int, n: int) -> Interval:
    """Return Wilson's 95 % score interval of the rate `hits` of `n` (Wilson 1927); 0 to 1 for `n` of 0."""
    if n == 0:
        return 0.0, 1.0
    rate, z2 = hits / n, 1.96**2
    middle, half = rate + z2 / (2 * n), 1.96 * (rate * (1 - rate) / n + z2 / (4 * n * n)) ** 0.5
    low, high = (middle - half) / (1 + z2 / n), (middle + half) / (1 + z2 / n)
    return max(0.0, low), min(1.0, high)


def paired_difference(both: int, only_first: int, only_second: int, n: int) -> Interval:
    """Return the 95 % interval of the difference of two rates of the same `n` things, second minus first.

    Newcombe 1998 (Statistics in Medicine 17, 2635), method 10: the Wilson intervals of both rates, put together with
    the correlation of the pairs. It holds for few pairs and for rates of 0 and 1; -1 to 1 for `n` of 0.

    Args:
        both, only_first, only_second: Counts of things of which it is true both times, the first or the second time.
    """
    if n == 0:
        return -1.0, 1.0
    neither = n - both - only_first - only_second
    first, second = both + only_first, both + only_second
    (low1, high1), (low2, high2) = wilson(first, n), wilson(second, n)
    rate1, rate2 = first / n, second / n
    margins = float(first * (n - first) * second * (n - second))
    product = both * neither - only_first * only_second
    corrected = max(product - n / 2, 0.0) if product > 0 else float(product)
    phi = corrected / margins**0.5 if margins else 0.0

    def reach(one: float, other: float) -> float:
        return max(0.0, one * one - 2 * phi * one * other + other * other) ** 0.5

    difference = rate2 - rate1
    low, high = difference - reach(rate2 - low2, high1 - rate1), difference + reach(high2 - rate2, rate1 - low1)
    return max(-1.0, low), min(1.0, high)


def interval(products: Sequence[str], values: Sequence[float]) -> Interval:
    """Return the 95 % bootstrap interval of the mean of `values`, one per picture. It resamples whole products."""
    _, group = np.unique(np.asarray(products), return_inverse=True)
    sums = np.bincount(group, weights=np.asarray(values, np.float64))
    counts = np.bincount(group)
    drawn = np.random.default_rng(0).integers(0, len(sums), (MANY, len(sums)))
    means = sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1)
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


def clustered(
    products: Sequence[str], figure: Callable[[np.ndarray], float], resamples: int = RESAMPLES
) -> tuple[float, Interval]:
    """Return a statistic and its 95 % interval over products.

    `products` has the product of each measurement. `figure` maps indices of measurements, with repetitions, to the
    statistic; NaN results are ignored.
    """
    names = np.array(products)
    clusters = [np.flatnonzero(names == name) for name in np.unique(names)]
    rng = np.random.default_rng(0)
    drawn = [
        figure(np.concatenate([clusters[n] for n in rng.integers(len(clusters), size=len(clusters))]))
        for _ in range(resamples)
    ]
    value = figure(np.arange(len(names)))
    if np.isnan(drawn).all():
        return value, (float("nan"), float("nan"))
    low, high = np.nanquantile(drawn, [0.025, 0.975])
    return value, (float(low), float(high))
