"""What a BrushNet in training sees: random masks cut through products, whole ones never do."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.training.masks import GROWTH, SMALLEST_PIECE, random_mask, whole_mask

SIDE = 96


def disc(x: int, y: int, radius: int) -> np.ndarray:
    across, down = np.meshgrid(np.arange(SIDE), np.arange(SIDE))
    return (((across - x) ** 2 + (down - y) ** 2 <= radius**2) * 255).astype(np.uint8)


discs = st.builds(disc, st.integers(20, 75), st.integers(20, 75), st.integers(4, 30))


@given(discs, st.integers(0, 10_000))
def test_a_whole_mask_keeps_all_of_the_product_and_little_more(product: np.ndarray, seed: int) -> None:
    kept = whole_mask(product, np.random.default_rng(seed))
    assert (kept[product >= 128] == 1).all()
    rows, columns = np.nonzero(kept)
    down, across = np.nonzero(product)
    assert rows.min() >= down.min() - GROWTH
    assert columns.max() <= across.max() + GROWTH


@given(discs, st.integers(0, 10_000))
def test_a_random_mask_is_binary_and_depends_on_its_seed_alone(product: np.ndarray, seed: int) -> None:
    kept = random_mask(product, np.random.default_rng(seed))
    assert set(np.unique(kept)) <= {0.0, 1.0}
    assert kept.shape == product.shape
    assert kept.any()
    assert (kept == random_mask(product, np.random.default_rng(seed))).all()


@pytest.mark.parametrize("radius", [16, 28])
def test_most_random_masks_cut_through_the_product(radius: int) -> None:
    product = disc(48, 48, radius)
    shares = np.array([random_mask(product, np.random.default_rng(n))[product >= 128].mean() for n in range(300)])
    cut = (shares > 0) & (shares < 1)
    assert cut.mean() > 0.6
    pieces = [random_mask(product, np.random.default_rng(n)) for n in range(300)]
    inside = [kept for kept in pieces if kept[product < 128].sum() == 0]
    assert len(inside) > 45  # a piece of the product and nothing else
    assert min(kept.mean() for kept in inside) >= SMALLEST_PIECE
