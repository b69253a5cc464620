"""The sample catalogue is what a stranger sees first: it has to be whole, licensed, and sharp enough to publish."""

from __future__ import annotations

import csv
import itertools
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipelines.catalogue.feed import read_catalogue
from pipelines.sample import CATALOGUE
from pipelines.vision.photos import read_photo

FOLDER = CATALOGUE.parent
ROWS = list(csv.DictReader(CATALOGUE.open(encoding="utf-8")))
EACH = pytest.mark.parametrize("row", ROWS, ids=lambda row: row["id"])


def photo_of(row: dict[str, str]) -> Path:
    return FOLDER / row["image_link"]


def alpha_of(row: dict[str, str]) -> np.ndarray:
    return np.asarray(Image.open(FOLDER / row["ground_truth_alpha"]).convert("L")) / 255


def test_the_catalogue_reads_without_a_complaint() -> None:
    catalogue = read_catalogue(CATALOGUE)
    assert 12 <= len(catalogue.rows) <= 16
    assert catalogue.problems == ()


def test_skus_photos_and_titles_are_each_products_own() -> None:
    for column in ("id", "title", "image_link", "ground_truth_alpha"):
        values = [row[column] for row in ROWS]
        assert len(set(values)) == len(values), column


@EACH
def test_a_row_says_what_the_product_is_and_who_may_use_the_picture(row: dict[str, str]) -> None:
    assert row["licence"] == "CC0-1.0"
    assert len(row["title"].split()) >= 3
    assert " > " in row["product_type"]


@EACH
def test_a_photo_is_large_enough_to_publish_and_small_enough_to_bundle(row: dict[str, str]) -> None:
    path = photo_of(row)
    photo = read_photo(path.read_bytes())
    assert max(photo.size) >= 1000
    assert path.stat().st_size <= 350_000


@EACH
def test_the_mask_fits_the_photo_and_holds_one_whole_product(row: dict[str, str]) -> None:
    photo, alpha = read_photo(photo_of(row).read_bytes()), alpha_of(row)
    assert alpha.shape == photo.rgb.shape[:2]
    assert 0.05 < (alpha > 0.5).mean() < 0.7
    rim = np.concatenate([alpha[0], alpha[-1], alpha[:, 0], alpha[:, -1]])
    assert rim.max() == 0, "the product is cut off by the frame"


@EACH
def test_where_the_photo_has_alpha_it_is_the_mask(row: dict[str, str]) -> None:
    photo = read_photo(photo_of(row).read_bytes())
    if photo.alpha is not None:
        assert np.abs(photo.alpha - alpha_of(row)).max() < 0.02
    else:
        assert photo_of(row).suffix == ".jpg"


@EACH
def test_the_mask_lies_on_the_product(row: dict[str, str]) -> None:
    """Just inside of the outline the picture differs from just outside of it, all the way round on the average."""
    photo, alpha = read_photo(photo_of(row).read_bytes()), alpha_of(row)
    if photo.alpha is not None:
        pytest.skip("arrives cut out: there is no outside")
    import cv2

    mask = (alpha > 0.5).astype(np.uint8)
    rim = np.ones((9, 9), np.uint8)
    inside = (mask - cv2.erode(mask, rim)).astype(bool)
    outside = (cv2.dilate(mask, rim) - mask).astype(bool)
    grey = photo.rgb.astype(np.float32).mean(2)
    edge = np.hypot(cv2.Sobel(grey, cv2.CV_32F, 1, 0), cv2.Sobel(grey, cv2.CV_32F, 0, 1))
    assert edge[inside | outside].mean() > 3 * np.median(edge), "the mask does not follow the product's outline"


def test_some_products_arrive_cut_out_some_in_a_room_and_most_in_a_studio() -> None:
    with_alpha = [row["id"] for row in ROWS if read_photo(photo_of(row).read_bytes()).alpha is not None]
    borders = {}
    for row in ROWS:
        if row["id"] not in with_alpha:
            rgb = read_photo(photo_of(row).read_bytes()).rgb
            borders[row["id"]] = rgb[: rgb.shape[0] // 12].reshape(-1, 3).mean(0)
    white = [sku for sku, colour in borders.items() if colour.min() > 240]
    assert 1 <= len(with_alpha) <= 3
    assert len(white) >= 5
    assert len(ROWS) - len(white) - len(with_alpha) >= 5


def test_no_two_photos_look_alike() -> None:
    def signature(row: dict[str, str]) -> np.ndarray:
        small = Image.fromarray(read_photo(photo_of(row).read_bytes()).rgb).convert("L").resize((17, 16))
        values = np.asarray(small).astype(int)
        return (values[:, 1:] > values[:, :-1]).ravel()

    for (a, first), (b, second) in itertools.combinations([(row["id"], signature(row)) for row in ROWS], 2):
        assert (first != second).mean() > 0.1, f"{a} and {b}"


def test_every_product_is_credited() -> None:
    credits = (FOLDER / "CREDITS.md").read_text("utf-8")
    assert set(re.findall(r"^\| (SMP-\d+) ", credits, re.M)) == {row["id"] for row in ROWS}
    assert "unknown" not in credits


def test_the_folder_stays_small() -> None:
    files = [path for path in FOLDER.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    assert sum(path.stat().st_size for path in files) <= 5_000_000
