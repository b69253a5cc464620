"""The bad catalogue, up to where photos are decoded: every row has its reason, and no reason costs another row."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipelines.catalogue.feed import ingest
from pipelines.catalogue.manifest import load_manifest
from pipelines.contracts import Product
from pipelines.errors import Rejected
from pipelines.settings import Settings
from pipelines.store import FolderStore
from pipelines.vision.photos import Photo, read_photo
from tests.bad_catalogue import BadCatalogue, blank_png, write_bad_catalogue

NO_PRODUCT = {"FLAT-GREY", "GRADIENT"}
"""Readable photos; it takes the cutout stage to see that there is nothing on them."""


@pytest.fixture(scope="module")
def bad(tmp_path_factory: pytest.TempPathFactory) -> BadCatalogue:
    return write_bad_catalogue(tmp_path_factory.mktemp("bad"))


@pytest.fixture(scope="module")
def products(bad: BadCatalogue, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Product | Photo | str]:
    """SKU → the decoded photo, or the reason why there is none."""
    store = FolderStore(tmp_path_factory.mktemp("store"))
    found: dict[str, Product | Photo | str] = {}
    for product in load_manifest(store, ingest(bad.path, store, Settings())):
        if product.photo is None:
            found[product.sku] = product.photo_problem
            continue
        try:
            found[product.sku] = read_photo(store.get(product.photo))
        except Rejected as rejected:
            found[product.sku] = rejected.reason
    return found


def test_every_row_is_accounted_for(bad: BadCatalogue, products: dict[str, Photo | str]) -> None:
    assert set(products) == set(bad.expected)


def test_usable_photos_are_read_whatever_their_format(bad: BadCatalogue, products: dict[str, Photo | str]) -> None:
    read = {sku for sku, found in products.items() if isinstance(found, Photo)}
    assert read - NO_PRODUCT == bad.usable


def test_every_other_row_says_what_is_wrong(bad: BadCatalogue, products: dict[str, Photo | str]) -> None:
    for sku, expected in bad.expected.items():
        if not expected.usable and sku not in NO_PRODUCT:
            reason = products[sku]
            assert isinstance(reason, str), sku
            assert expected.reason in reason, f"{sku}: {reason}"
            assert "\n" not in reason


@pytest.mark.parametrize(
    ("sku", "tolerance"), [("CMYK", 12), ("SIXTEEN-BIT", 1), ("PALETTE", 24), ("SIDEWAYS", 12)], ids=str
)
def test_the_odd_formats_show_the_same_picture(sku: str, tolerance: int, products: dict[str, Photo | str]) -> None:
    plain, odd = products["SMP-003"], products[sku]
    assert isinstance(plain, Photo)
    assert isinstance(odd, Photo)
    assert odd.rgb.shape == plain.rgb.shape
    assert np.abs(odd.rgb.astype(int) - plain.rgb.astype(int)).mean() < tolerance


def test_the_huge_picture_is_small_on_disk_and_in_memory() -> None:
    tracemalloc.start()
    data = blank_png(40_000, 40_000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20e6
    assert len(data) < 2e6


def test_the_huge_picture_is_a_valid_one(tmp_path: Path) -> None:
    """Its smaller twin, made by the same code, decodes: it is refused for its size and for nothing else."""
    (tmp_path / "small.png").write_bytes(blank_png(400, 300))
    image = Image.open(tmp_path / "small.png")
    image.load()
    assert image.size == (400, 300)
