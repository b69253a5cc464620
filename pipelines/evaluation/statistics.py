"""Means with 95 % intervals over products, AUROC, KID, and the ratios of the claim."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipelines.quality.intervals import Interval, clustered

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Figure:
    """A value and its 95 % bootstrap interval over products."""

    value: float
    interval: Interval

    def apart(self, other: Figure) -> bool:
        """Whether the two intervals do not overlap."""
        return self.interval[1] < other.interval[0] or other.interval[1] < self.interval[0]


def auroc(whole: Floats, grown: Floats) -> float:
    """Area under the ROC curve: P(grown > whole) + P(grown = whole) / 2, by ranks (Mann and Whitney 1947)."""
    order = np.sort(whole)
    below, upto = np.searchsorted(order, grown, "left"), np.searchsorted(order, grown, "right")
    return float((below + upto).mean() / 2 / len(whole))


def by_product(products: Sequence[str], statistic: Callable[[NDArray[np.int64]], float]) -> Figure:
    """A statistic of pictures, and its interval from resampling whole products.

    Args:
        products: The product of each picture.
        statistic: Maps the count of each picture, (n,) integers, to the value.
    """
    pictures = len(products)
    value, ends = clustered(products, lambda rows: statistic(np.bincount(rows, minlength=pictures)))
    return Figure(value, ends)


def mean(products: Sequence[str], values: Sequence[float]) -> Figure:
    """The mean over pictures whose value is not NaN."""
    given = np.asarray(values, np.float64)
    there = ~np.isnan(given)
    filled = np.where(there, given, 0)

    def weighted(counts: NDArray[np.int64]) -> float:
        return float((counts * filled).sum() / (counts * there).sum()) if (counts * there).any() else float("nan")

    return by_product(products, weighted)


def rate_ratio(products: Sequence[str], baseline: Sequence[float], treated: Sequence[float], tau: float) -> Figure:
    """How many times fewer pictures of the same pairs have an E+ above tau: (baseline + 0.5) / (treated + 0.5)."""
    before, after = (np.asarray(e_plus, np.float64) > tau for e_plus in (baseline, treated))
    return by_product(products, lambda counts: float(((counts * before).sum() + 0.5) / ((counts * after).sum() + 0.5)))


def mean_ratio(products: Sequence[str], baseline: Sequence[float], treated: Sequence[float]) -> Figure:
    """Ratio of the means of the same pairs, baseline / treated."""
    before, after = np.asarray(baseline, np.float64), np.asarray(treated, np.float64)
    return by_product(products, lambda counts: float((counts * before).sum() / max((counts * after).sum(), 1e-9)))


def difference(products: Sequence[str], baseline: Sequence[float], treated: Sequence[float]) -> Figure:
    """Mean of treated - baseline over the same pairs."""
    return mean(products, [after - before for before, after in zip(baseline, treated, strict=True)])


def margins(agreements: Floats) -> Floats:
    """How much higher each picture's agreement with its own prompt is than its mean agreement with the others, (n,).

    Args:
        agreements: (n, n), of picture and prompt; own prompts on the diagonal. The agreement that a picture has with
            any prompt, by its style, cancels out. NaN if there is no other prompt.
    """
    own, n = np.diag(agreements), len(agreements)
    if n == 1:
        return np.full(1, np.nan)
    difference: Floats = own - (agreements.sum(axis=1) - own) / (n - 1)
    return difference


def kid(products: Sequence[str], features: Floats, reference: Floats) -> Figure:
    """Kernel inception distance (Binkowski et al. 2018): unbiased MMD² under (x·y / d + 1)³, times 1,000.

    Args:
        products: The product of each picture.
        features: (n, d) of the pictures.
        reference: (m, d) of real pictures, which are not resampled.
    """
    return by_product(products, _mmd(features, reference))


def kid_difference(products: Sequence[str], baseline: Floats, treated: Floats, reference: Floats) -> Figure:
    """KID of treated - baseline, (n, d) each, of pictures of the same pairs."""
    before, after = _mmd(baseline, reference), _mmd(treated, reference)
    return by_product(products, lambda counts: after(counts) - before(counts))


def _mmd(features: Floats, reference: Floats) -> Callable[[NDArray[np.int64]], float]:
    """Returns a function from the count of each picture to the KID of these pictures."""
    own, across, real = _kernel(features, features), _kernel(features, reference), _kernel(reference, reference)
    m = len(reference)
    constant = (real.sum() - np.trace(real)) / (m * (m - 1))
    to_reference, diagonal = across.mean(axis=1), np.diag(own)

    def mmd(counts: NDArray[np.int64]) -> float:
        total = counts.sum()
        # only pairs of two different pictures: a picture drawn twice is not compared with itself
        different = counts @ own @ counts - (counts**2 * diagonal).sum()
        pairs = total**2 - (counts**2).sum()
        return float(1000 * (different / pairs + constant - 2 * (counts * to_reference).sum() / total))

    return mmd


def _kernel(a: Floats, b: Floats) -> Floats:
    kernel: Floats = (a @ b.T / a.shape[1] + 1) ** 3
    return kernel
