from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pipelines.training.data import Composer, clean_name, is_held_out, product_of, read_index

DATA = Path(__file__).parents[3] / "../shared/training"
needs_data = pytest.mark.skipif(not DATA.exists(), reason="the shared training folder is not beside this checkout")


@needs_data
@pytest.mark.parametrize("folder", ["cutouts", "photos"])
def test_no_product_is_on_both_sides(folder):
    train, test = read_index(DATA, folder, "train"), read_index(DATA, folder, "test")
    assert not {product_of(item) for item in train} & {product_of(item) for item in test}
    assert len(train) + len(test) == len(read_index(DATA, folder))
    assert 0.02 < len(test) / (len(train) + len(test)) < 0.25


@needs_data
def test_the_stream_of_shots_is_seekable():
    one, other = Composer(DATA, "test", seed=3), Composer(DATA, "test", seed=3)
    other.shot(0, (64, 64))
    assert np.array_equal(one.shot(7, (64, 64)).image, other.shot(7, (64, 64)).image)


@needs_data
def test_cutouts_come_without_their_soft_shadow():
    composer = Composer(DATA, "train")
    touching = [product.alpha[-1].max() for product in composer.goods]
    assert min(touching) > 0.5


def test_the_side_depends_on_the_name_alone():
    assert is_held_out(" Red Mug ") == is_held_out("red mug")
    assert sum(is_held_out(f"product {n}") for n in range(2000)) == pytest.approx(200, abs=60)


def test_an_unknown_split_is_an_error():
    with pytest.raises(ValueError, match="split must be one of"):
        read_index(DATA, "photos", "validation")


@pytest.mark.parametrize(
    ("title", "noun"),
    [
        ("pants Pants", "pants"),
        ("saleor apple drink", "apple drink"),
        ("woman’s clothes", "woman's clothes"),
        ("#", "product"),
    ],
)
def test_clean_name(title, noun):
    assert clean_name(title) == noun
