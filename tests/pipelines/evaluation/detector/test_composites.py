"""The yardstick's promises: what is left out is known, sizes and kinds are as said, sides share no product."""

from __future__ import annotations

import csv
import hashlib
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from pipelines.errors import UsageError
from pipelines.evaluation.detector.composites import (
    BACKGROUNDS,
    LARGEST,
    PARTS,
    SIDE,
    SIDES,
    SMALL,
    SMALLEST,
    Composite,
    Item,
    composites,
    cut_out,
    photographed,
    photographed_scenes,
    read_products,
    read_scenes,
)
from pipelines.evaluation.detector.photos import MISSING, PhotoFile, lesson_files, photo_files, untouched_photos
from pipelines.models.profile import load_profile
from pipelines.training.data import is_held_out

SAMPLE = Path(__file__).parents[4] / "pipelines" / "sample"
SHARED = Path(__file__).parents[4].parent / "shared"
needs_shared = pytest.mark.skipif(
    not (SHARED / "catalog").is_dir(), reason="the shared data are not beside the project"
)


def jar(seed: int) -> Item:
    """A jar with a neck and a tag on a thread: something thick and something thin."""
    rng = np.random.default_rng(seed)
    alpha = np.zeros((300, 200), np.float32)
    alpha[90:, 20:150] = 1
    alpha[0:95, 60:110] = 1
    alpha[150:154, 150:180] = 1
    alpha[140:165, 176:200] = 1
    rgb = np.clip(rng.uniform(0.2, 0.8, 3) + rng.normal(0, 0.05, (300, 200, 3)), 0, 1).astype(np.float32)
    return Item(f"jar {seed}", rgb, alpha, {"smaller": np.roll(alpha, 1, axis=0)})


@pytest.fixture(scope="module")
def drawn() -> list[Composite]:
    rng = np.random.default_rng(0)
    scenes = [rng.integers(0, 256, (90, 120, 3), np.uint8) for _ in range(3)]
    return list(composites([jar(n) for n in range(4)], scenes, 56, seed=0))


def test_half_of_the_masks_are_whole(drawn):
    for composite in drawn:
        assert composite.image.shape == (SIDE, SIDE, 3)
        assert [mask.share > 0 for mask in composite.masks] == [False, False, True, True]
        assert [mask.part in PARTS for mask in composite.masks] == [False, False, True, True]


def test_the_share_said_is_the_area_that_is_missing(drawn):
    for composite in drawn:
        whole, lacking = composite.masks[0], composite.masks[2]
        assert (whole.make, lacking.make) == ("true alpha", "true alpha")
        area = (whole.matte > 127).sum()
        missing = ((whole.matte > 127) & (lacking.matte <= 127)).sum() / area
        assert missing == pytest.approx(lacking.share, abs=0.01)
        assert not ((lacking.matte > 127) & (whole.matte <= 127)).any()


def test_shares_are_1_to_30_percent_and_a_third_is_small(drawn):
    shares = np.array([mask.share for composite in drawn for mask in composite.masks[2:]])
    assert shares.min() >= SMALLEST
    assert shares.max() <= LARGEST
    assert 0.2 < (shares < SMALL).mean() < 0.5


def test_every_kind_of_part_and_background_occurs(drawn):
    assert {mask.part for composite in drawn for mask in composite.masks if mask.part} == set(PARTS)
    assert {composite.background for composite in drawn} == set(BACKGROUNDS)


def test_masks_by_another_segmenter_are_its_own(drawn):
    for composite in drawn:
        true, other = composite.masks[0], composite.masks[1]
        assert other.make == "smaller"
        assert (true.matte != other.matte).any()


def test_drawn_again_they_are_the_same(drawn):
    rng = np.random.default_rng(0)
    scenes = [rng.integers(0, 256, (90, 120, 3), np.uint8) for _ in range(3)]
    (again,) = composites([jar(0)], scenes, 1, seed=0)
    assert (again.image == drawn[0].image).all()
    assert all((a.matte == b.matte).all() for a, b in zip(again.masks, drawn[0].masks, strict=True))


def test_a_cutout_that_loses_a_part_or_takes_the_paper_is_no_whole_mask():
    def seen(photo: np.ndarray) -> np.ndarray:
        return (photo.min(axis=2) < 235).astype(np.float32)  # darker than the paper

    true = jar(0)
    kept = cut_out(
        "jar",
        true.rgb,
        true.alpha,
        {
            "exact": seen,
            "loses the neck": lambda photo: seen(photo) * (np.arange(photo.shape[0]) > 120)[:, None],
            "takes all": lambda photo: np.ones(photo.shape[:2], np.float32),
        },
    )
    assert set(kept.cutouts) == {"exact"}
    assert kept.cutouts["exact"].shape == kept.alpha.shape


def test_no_cutout_is_enlarged():
    small = Item("dot", np.ones((40, 40, 3), np.float32), np.ones((40, 40), np.float32), {})
    (composite,) = composites([small], [np.zeros((64, 64, 3), np.uint8)], 1, seed=3)
    assert (composite.masks[1].matte > 127).sum() <= 40 * 40 * 1.45  # a handle or cord may have been drawn onto it


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


@pytest.mark.slow
def test_photos_without_a_mask_to_place_are_passed_over_and_counted(tmp_path):
    (tmp_path / "broken.jpg").write_text("no picture")
    cup = SAMPLE / "images" / "smp-011-porcelain-espresso-cup-and-saucer.jpg"
    files = [PhotoFile("broken", tmp_path / "broken.jpg", ""), PhotoFile("cup", cup, "")]
    [found] = untouched_photos(files, load_profile("mini"), 2)
    assert (found.product, found.passed_over) == ("cup", 1)


def test_without_the_shared_data_it_says_so(tmp_path):
    with pytest.raises(UsageError, match="no shared data"):
        read_products(tmp_path, "test")


def test_a_part_that_does_not_touch_the_rest_is_not_left_out():
    alpha = np.zeros((200, 200), np.float32)
    alpha[40:, 20:180] = 1
    alpha[0:12, 20:180] = 1  # a bar that floats above: thin, and 7 % of the whole
    pair = Item("pair", np.full((200, 200, 3), 0.4, np.float32), alpha, {})
    scenes = [np.zeros((64, 64, 3), np.uint8)]
    masks = [(c.masks[0], mask) for c in composites([pair], scenes, 24, seed=1) for mask in c.masks if mask.share]
    assert len(masks) > 24
    for whole, lacking in masks:
        kept, missing = lacking.matte > 127, (whole.matte > 127) & (lacking.matte <= 127)
        assert (ndimage.binary_dilation(kept, iterations=3) & missing).any()


def test_another_product_stands_behind_where_it_is_crowded():
    scenes = [np.full((90, 120, 3), 128, np.uint8)]
    items = [jar(n) for n in range(3)]
    alone, crowded = (list(composites(items, scenes, 6, seed=0, crowded=each)) for each in (False, True))
    for empty, full in zip(alone, crowded, strict=True):
        assert (full.masks[0].matte > 127).any()
        assert full.image.shape == empty.image.shape
    assert any((one.image != other.image).any() for one, other in zip(alone, crowded, strict=True))
    again = list(composites(items, scenes, 6, seed=0, crowded=True))
    assert all((one.image == other.image).all() for one, other in zip(crowded, again, strict=True))


def test_a_photo_keeps_its_pixels_and_lacks_known_parts():
    matte = np.zeros((200, 160), np.uint8)
    matte[40:180, 30:130] = 255
    image = np.random.default_rng(0).integers(0, 256, (200, 160, 3), np.uint8)
    composite = photographed("shirt", image, matte, ((20, 10),), np.random.default_rng(0))
    whole, *lacking = composite.masks
    assert (composite.image == image).all()
    assert composite.lacking == ((20, 10),)
    assert (whole.matte == matte).all()
    assert lacking
    for mask in lacking:
        missing = ((matte > 127) & (mask.matte <= 127)).sum() / (matte > 127).sum()
        assert missing == pytest.approx(mask.share, abs=0.02)


@needs_shared
def test_photos_to_learn_from_are_of_no_product_that_is_measured():
    lessons, measured = lesson_files(SHARED), photo_files(SHARED)
    assert len(lessons) > 100
    assert not {one.product for one in lessons} & {one.product for one in measured}
    assert not {one.path for one in lessons} & {one.path for one in measured}


@needs_shared
def test_the_parts_that_cutouts_are_known_to_lack_are_of_photos_that_are_asked_about() -> None:
    with MISSING.open(newline="", encoding="utf-8") as file:
        named = {row["photo"] for row in csv.DictReader(file)}
    assert named <= {photo.path.name for photo in (*photo_files(SHARED), *lesson_files(SHARED))}
