"""A painted checkerboard is found at any usual cell and shade; checks, stripes and a product's own pattern are not."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from pipelines.quality.checkerboard import LIMIT, measure_checkerboard


def board(cell: int, dark: int = 204, light: int = 255) -> np.ndarray:
    rows, columns = np.mgrid[:400, :500]
    grey = np.where((rows // cell + columns // cell) % 2 == 0, light, dark)
    return np.repeat(grey[..., None], 3, axis=2).astype(np.uint8)


@pytest.mark.parametrize(("cell", "dark", "light"), [(6, 204, 255), (10, 102, 153), (16, 191, 255), (25, 229, 255)])
def test_a_checkerboard_behind_a_product_is_held_with_its_cell(cell: int, dark: int, light: int) -> None:
    image = board(cell, dark, light)
    image[80:320, 120:380] = (190, 40, 35)
    found = measure_checkerboard(image)
    assert found.score > LIMIT
    assert f"checkerboard of {cell} px" in found.reason
    assert not found.where[200, 250]
    assert found.where[:60].mean() > 0.9


def test_an_enlarged_checkerboard_is_held() -> None:
    image = cv2.resize(board(9), (730, 610), interpolation=cv2.INTER_LINEAR)
    assert measure_checkerboard(image).score > LIMIT


def test_stripes_grain_and_a_coloured_check_are_not() -> None:
    stripes = np.where(np.mgrid[:400, :500][1] // 10 % 2 == 0, 255, 204).astype(np.uint8)
    grain = np.random.default_rng(0).choice([204, 255], (400, 500)).astype(np.uint8)
    for grey in (stripes, grain):
        assert measure_checkerboard(np.repeat(grey[..., None], 3, axis=2)).score < 0.2
    cloth = board(20)
    cloth[..., 1:] = np.where(cloth[..., 1:] == 204, 30, 255)
    assert not measure_checkerboard(cloth).reason
    assert not measure_checkerboard(np.full((300, 300, 3), 250, np.uint8)).reason
