"""The detector's figures: rates of the masks above tau, with intervals over products."""

from __future__ import annotations

import numpy as np
import pytest

from pipelines.evaluation.detector.measure import MaskResult, PhotoResult, summarise
from pipelines.quality.intervals import clustered


def mask(product: str, share: float, e_plus: float, part: str = "cord", background: str = "studio") -> MaskResult:
    return MaskResult(product, background, part if share else "", "true alpha", share, e_plus, e_plus, 0.1)


def test_an_interval_resamples_products_not_measurements() -> None:
    values = np.repeat([0.0, 1.0], 500)
    of_two, of_many = (
        clustered(names, lambda rows: float(values[rows].mean()))
        for names in (["a"] * 500 + ["b"] * 500, [str(n) for n in range(1000)])
    )
    assert of_two == (0.5, (0.0, 1.0))  # two products, a thousand masks: nothing is known
    assert 0.46 < of_many[1][0] < of_many[1][1] < 0.54


def test_figures_are_of_the_masks_above_tau() -> None:
    masks = [
        *(mask(f"jar {n}", 0.0, 0.0) for n in range(9)),
        mask("jar 9", 0.0, 0.5, background="shadow"),
        *(mask(f"jar {n}", 0.02, 0.02) for n in range(8)),
        mask("jar 8", 0.2, 0.2, part="handle"),
        mask("jar 9", 0.2, 0.0, part="handle"),
    ]
    photos = [
        PhotoResult("mug", 0.0),
        PhotoResult("cap", 0.02),
        PhotoResult("coat", 0.3, lacks=True, saw=True),  # its sleeve, which the cutout lacks
        PhotoResult("hat", 0.0, lacks=True),
    ]
    found = summarise(masks, photos, tau=0.01, seconds=1.0)
    assert (found.n, found.products) == (20, 10)
    assert found.recall == pytest.approx(0.9)
    assert found.precision == pytest.approx(0.9)
    assert found.auroc == pytest.approx((9 * 9 + 0.5 * 9) / 100)
    assert (found.alarms, found.false_alarms, found.photos) == (0.5, 0.25, 4)
    assert (found.noticed, found.lacking) == (0.5, 2)
    assert found.by_kind["handle"].rate == 0.5
    assert found.by_kind["whole"].rate == pytest.approx(0.1)
    assert found.by_size["2% to 5%"].n == 8
    assert found.by_size["10% to 30%"].n == 2
    assert found.by_background["shadow, whole"].rate == 1
    low, high = found.intervals["recall"]
    assert low < 0.9 <= high


def test_precision_where_the_recall_is_high_enough() -> None:
    masks = [
        # grown: 19 of 20 are high, one is low; whole: one is higher still, the others lie between
        *(mask(f"jar {n}", 0.1, 0.5 if n < 19 else 0.01) for n in range(20)),
        *(mask(f"jar {n}", 0.0, 0.6 if n == 0 else 0.02) for n in range(20)),
    ]
    found = summarise(masks, [], tau=0.005, seconds=1.0)
    assert found.precision == pytest.approx(0.5)  # tau is too low for these
    assert found.precision_at_recall == pytest.approx(19 / 20)


def test_without_photos_there_is_no_rate_of_false_alarms() -> None:
    found = summarise([mask("jar", 0.0, 0.0), mask("jar", 0.1, 0.1)], [], tau=0.01, seconds=1.0)
    assert found.false_alarms is found.alarms is found.noticed is None
    assert "false_alarms" not in found.intervals
