"""Labels by eye: read as they were written, matched to the very pictures, compared with E+."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from pipelines.evaluation.experiment.cells import CLAIM, PAIRS
from pipelines.evaluation.experiment.labels import Label, agreement, draw_sample, draw_sheets, read_labels
from pipelines.evaluation.experiment.making import picture_key
from pipelines.evaluation.experiment.pairs import load_pairs, load_subjects
from pipelines.models.profile import load_profile
from pipelines.vision.placement import LaidProduct

SHARED = Path(__file__).resolve().parents[5] / "shared"


def result(number: int, e_plus: float, key: str = "k") -> SimpleNamespace:
    """A picture of one of five products, with nothing but what labels look at."""
    pair = SimpleNamespace(number=number, subject=SimpleNamespace(name=f"p{number % 5}"), side=16)
    return SimpleNamespace(
        pair=pair, scores=SimpleNamespace(e_plus=e_plus), picture=Path(f"cell/{number:04d}-{key}.png")
    )


def test_precision_and_recall_are_those_of_the_labelled_pictures_alone() -> None:
    results = {"a": [result(n, 0.5 if n < 6 else 0.0) for n in range(10)]}
    labels = [Label("a", n, "k", n in (0, 1, 2, 7)) for n in (0, 1, 2, 3, 7, 8)]
    found = agreement(labels, results, 0.1)
    assert found is not None
    assert (found.n, found.grown) == (6, 4)
    assert found.precision is not None
    assert found.precision.value == pytest.approx(3 / 4)
    assert found.recall is not None
    assert found.recall.value == pytest.approx(3 / 4)


def test_a_label_of_a_picture_that_other_weights_painted_is_no_label_of_this_one() -> None:
    results = {"a": [result(0, 0.5, key="new")]}
    assert agreement([Label("a", 0, "old", True)], results, 0.1) is None


def test_cells_are_drawn_alike_and_no_pair_twice_while_there_are_others() -> None:
    results = {name: [result(n, 0.0) for n in range(30)] for name in "abc"}
    chosen = draw_sample(results, 30)
    assert sorted({cell: [c for c, _ in chosen].count(cell) for cell in "abc"}.values()) == [10, 10, 10]
    assert len({one.pair.number for _, one in chosen}) == 30


def test_the_place_on_the_sheets_does_not_tell_the_cell() -> None:
    """Neither one by one (a, b, c, a, b, c, …) nor in blocks (a, a, …, b, b, …)."""
    chosen = draw_sample({name: [result(n, 0.0) for n in range(30)] for name in "abc"}, 30)
    for places in (chosen[0::3], chosen[1::3], chosen[2::3], chosen[:10], chosen[10:20], chosen[20:]):
        assert {cell for cell, _ in places} == set("abc")


def test_a_sheet_shows_the_product_beside_the_picture_and_not_where_it_comes_from(tmp_path: Path) -> None:
    matte = np.zeros((16, 16), np.uint8)
    matte[4:12, 4:12] = 255
    product = LaidProduct(np.full((16, 16, 3), 200, np.uint8), matte)
    one = result(0, 0.0)
    one.pair.product = product
    one.composite = lambda: product.over(np.zeros((16, 16, 3), np.uint8))
    (sheet,) = draw_sheets([("cell of a name", one)], tmp_path)
    picture = np.asarray(Image.open(sheet))
    (other,) = draw_sheets([("another cell", one)], tmp_path / "other")
    assert (np.asarray(Image.open(other)) == picture).all()
    assert (picture[22, 2] == 128).all()
    assert (picture[22, 18] == 0).all()
    assert "name" not in sheet.name


def test_two_hundred_pictures_are_labelled_each_once() -> None:
    labels = read_labels()
    assert len(labels) >= 200
    assert len({(label.cell, label.pair, label.key) for label in labels}) == len(labels)
    assert 0 < sum(label.grown for label in labels) < len(labels)


@pytest.mark.skipif(not (SHARED / "training" / "index.csv").exists(), reason="the shared folder is not here")
def test_the_labels_are_of_pictures_that_todays_weights_paint() -> None:
    profile, cells = load_profile("mini", promoted=False), {cell.name: cell for cell in CLAIM}
    pairs = load_pairs(load_subjects(SHARED), PAIRS["claim"], profile.native_size)
    labels = read_labels()[::10]
    assert [label.key for label in labels] == [
        picture_key(cells[label.cell], pairs[label.pair], profile) for label in labels
    ]
