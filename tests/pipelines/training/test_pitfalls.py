"""Composites of what cutouts get wrong, from drawn cutouts, scenes and photos."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.training.pitfalls import PitfallSource, hand, hard_shadow
from tests.pipelines.training.drawn import drawn_folder

KINDS = ("", "hard shadow", "floor", "opening", "shop", "neighbour", "hand")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> PitfallSource:
    return PitfallSource(drawn_folder(tmp_path_factory.mktemp("drawn")))


def disc(side: int = 128) -> np.ndarray:
    rows, columns = np.mgrid[:side, :side] - side / 2
    return (np.hypot(rows, columns) < side / 5).astype(np.float32)


@pytest.mark.parametrize("kind", KINDS)
def test_equal_generators_draw_equal_composites(source: PitfallSource, kind: str) -> None:
    one, two, other = (source.draw(128, np.random.default_rng(seed), kind) for seed in (3, 3, 4))
    assert one.kind == kind
    assert max(one.image.shape[:2]) == 128
    assert one.mask.shape == one.image.shape[:2]
    assert np.array_equal(one.image, two.image)
    assert np.array_equal(one.mask, two.mask)
    assert one.image.shape != other.image.shape or (one.image != other.image).any()


def test_every_kind_is_drawn_and_most_have_a_format_of_their_own(source: PitfallSource) -> None:
    drawn = [source.draw(64, np.random.default_rng(seed)) for seed in range(120)]
    assert {one.kind for one in drawn} == set(source.kinds) == set(KINDS)
    assert len({one.image.shape for one in drawn}) > 10


@given(seed=st.integers(0, 10_000))
def test_a_hard_shadow_is_dark_and_has_a_sharp_edge(seed: int) -> None:
    shade = hard_shadow(disc(), np.random.default_rng(seed)).mean(axis=2)
    assert 0.2 < shade.max() < 0.91
    step = max(np.abs(np.diff(shade, axis=axis)).max() for axis in (0, 1))
    assert step > 0.35 * shade.max(), "between two neighbouring pixels"


def test_a_shadow_is_no_product(source: PitfallSource) -> None:
    """The mask is what the cutout's alpha covers, whatever is dark around it."""
    for seed in range(8):
        composite = source.draw(160, np.random.default_rng(seed), "hard shadow")
        _, _, stats, _ = cv2.connectedComponentsWithStats((composite.mask > 0.5).astype(np.uint8))
        box = stats[1:].max(axis=0)
        assert (composite.mask > 0.5).sum() > 0.5 * box[2] * box[3], "a drawn cutout fills most of its box"


@pytest.mark.parametrize("kind", ["neighbour", "hand"])
def test_the_other_thing_is_not_in_the_mask(source: PitfallSource, kind: str) -> None:
    for seed in range(8):
        composite = source.draw(160, np.random.default_rng(seed), kind)
        assert composite.other is not None
        assert composite.other.shape == composite.mask.shape
        assert (composite.other > 0.5).any()
        assert not ((composite.other > 0.5) & (composite.mask > 0.5)).any()


def test_an_opening_shows_the_background(source: PitfallSource) -> None:
    for seed in range(6):
        mask = source.draw(160, np.random.default_rng(seed), "opening").mask
        around = np.pad(mask < 0.5, 1, constant_values=True).astype(np.uint8)
        assert cv2.connectedComponents(around)[0] - 1 >= 2


def test_held_out_products_are_not_drawn_for_training(tmp_path: Path) -> None:
    data = drawn_folder(tmp_path)
    train, test = PitfallSource(data), PitfallSource(data, "test")
    pictures = [source.draw(96, np.random.default_rng(0), "shop").image for source in (train, test)]
    assert pictures[0].shape != pictures[1].shape or (pictures[0] != pictures[1]).any()


@given(seed=st.integers(0, 10_000))
def test_a_hand_covers_a_part_of_the_product_and_comes_from_beyond_it(seed: int) -> None:
    product = disc()
    alpha = hand(product, np.random.default_rng(seed))[..., 3] / 255
    covered = (alpha * product).sum() / product.sum()
    assert 0 < covered < 0.7
    assert max(alpha[0].max(), alpha[-1].max(), alpha[:, 0].max(), alpha[:, -1].max()) > 0.9


def test_nothing_is_held_where_there_is_nothing() -> None:
    nothing = np.zeros((64, 64), np.float32)
    assert not hand(nothing, np.random.default_rng(0)).any()
    assert not hard_shadow(nothing, np.random.default_rng(0)).any()
