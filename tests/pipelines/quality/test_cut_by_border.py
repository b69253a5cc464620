"""A product that the photo's border cuts is held with the side; one that only touches it is not."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from pipelines.quality.cut_by_border import LIMIT, measure_border_contact


def disc(x: int, y: int) -> np.ndarray:
    return cv2.circle(np.zeros((400, 500), np.float32), (x, y), 100, 1.0, -1)


@pytest.mark.parametrize(
    ("x", "y", "side"), [(40, 200, "left"), (460, 200, "right"), (250, 40, "top"), (250, 360, "bottom")]
)
def test_a_cut_product_is_held_with_the_side(x: int, y: int, side: str) -> None:
    found = measure_border_contact(disc(x, y))
    assert found.score > LIMIT
    assert f"the photo's {side} border cuts the product" in found.reason
    assert found.where.any()


def test_a_whole_product_is_not_held() -> None:
    assert measure_border_contact(disc(250, 200)).score == 0
    assert not measure_border_contact(np.zeros((40, 40))).reason
