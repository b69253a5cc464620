"""Products and scenes to measure with: nothing was trained on them, and the two sides share none."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from pipelines.errors import UsageError
from pipelines.evaluation.products import SIDES, photographed_scenes, read_products, read_scenes
from pipelines.training.data import is_held_out

SHARED = Path(__file__).parents[3].parent / "shared"
needs_shared = pytest.mark.skipif(
    not (SHARED / "catalog").is_dir(), reason="the shared data are not beside the project"
)


@needs_shared
def test_products_were_never_trained_on_and_calibration_has_none_of_the_tests():
    products = {side: [name for name, _, _ in read_products(SHARED, side)] for side in SIDES}
    assert not set(products["calibration"]) & set(products["test"])
    catalogue = {path.stem for path in (SHARED / "catalog" / "masks").iterdir()}
    for name in products["calibration"] + products["test"]:
        assert name in catalogue or is_held_out(name)
    assert len(products["test"]) >= 50


@needs_shared
def test_backgrounds_were_never_trained_on():
    trained = {hashlib.sha256(path.read_bytes()).hexdigest() for path in (SHARED / "training/scenes").iterdir()}
    used = {hashlib.sha256(path.read_bytes()).hexdigest() for path in (SHARED / "catalog/scenes").glob("*.jpg")}
    assert not trained & used
    assert len(read_scenes(SHARED)) >= 30


@needs_shared
def test_no_chart_stands_among_the_real_photographs():
    """The experiment's KID compares with these, too."""
    names = {path.name for path in photographed_scenes(SHARED)}
    assert "codec-co-01239.jpg" not in names  # StockQuoteGraph
    assert names < {path.name for path in (SHARED / "catalog/scenes").glob("*.jpg")}


def test_without_the_shared_data_it_says_so(tmp_path):
    with pytest.raises(UsageError, match="no shared data"):
        read_products(tmp_path, "test")
