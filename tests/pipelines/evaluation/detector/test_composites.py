"""Composites: the area that is left out is known, and sizes, kinds and backgrounds are as documented."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from pipelines.evaluation.detector.composites import (
    BACKGROUNDS,
    LARGEST,
    PARTS,
    SIDE,
    SMALL,
    SMALLEST,
    Composite,
    CutoutProduct,
    compose_photo,
    cut_out,
    draw_composite,
    draw_composites,
)


def jar(seed: int) -> CutoutProduct:
    """A jar with a neck and a tag on a thread: something thick and something thin."""
    rng = np.random.default_rng(seed)
    alpha = np.zeros((300, 200), np.float32)
    alpha[90:, 20:150] = 1
    alpha[0:95, 60:110] = 1
    alpha[150:154, 150:180] = 1
    alpha[140:165, 176:200] = 1
    rgb = np.clip(rng.uniform(0.2, 0.8, 3) + rng.normal(0, 0.05, (300, 200, 3)), 0, 1).astype(np.float32)
    return CutoutProduct(f"jar {seed}", rgb, alpha, {"smaller": np.roll(alpha, 1, axis=0)})


@pytest.fixture(scope="module")
def drawn() -> list[Composite]:
    rng = np.random.default_rng(0)
    scenes = [rng.integers(0, 256, (90, 120, 3), np.uint8) for _ in range(3)]
    return list(draw_composites([jar(n) for n in range(4)], scenes, 56, seed=0))


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
    (again,) = draw_composites([jar(0)], scenes, 1, seed=0)
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
    small = CutoutProduct("dot", np.ones((40, 40, 3), np.float32), np.ones((40, 40), np.float32), {})
    (composite,) = draw_composites([small], [np.zeros((64, 64, 3), np.uint8)], 1, seed=3)
    assert (composite.masks[1].matte > 127).sum() <= 40 * 40 * 1.45  # a handle or cord may have been drawn onto it


def test_a_part_that_does_not_touch_the_rest_is_not_left_out():
    alpha = np.zeros((200, 200), np.float32)
    alpha[40:, 20:180] = 1
    alpha[0:12, 20:180] = 1  # a bar that floats above: thin, and 7 % of the whole
    pair = CutoutProduct("pair", np.full((200, 200, 3), 0.4, np.float32), alpha, {})
    scenes = [np.zeros((64, 64, 3), np.uint8)]
    masks = [(c.masks[0], mask) for c in draw_composites([pair], scenes, 24, seed=1) for mask in c.masks if mask.share]
    assert len(masks) > 24
    for whole, lacking in masks:
        kept, missing = lacking.matte > 127, (whole.matte > 127) & (lacking.matte <= 127)
        assert (ndimage.binary_dilation(kept, iterations=3) & missing).any()


def test_another_product_stands_behind_where_it_is_crowded():
    """A red one behind a grey one in a grey scene: it shows beside the grey one, and never over it."""
    scenes = [np.full((90, 120, 3), 128, np.uint8)]
    shape = jar(0).alpha
    grey, red = (
        CutoutProduct(name, np.broadcast_to(np.float32(colour), (*shape.shape, 3)), shape, {})
        for name, colour in (("grey", (0.5, 0.5, 0.5)), ("red", (0.9, 0.1, 0.1)))
    )
    for seed in range(4):
        alone, crowded = (
            draw_composite(grey, scenes, "scene", np.random.default_rng(seed), behind) for behind in (None, red)
        )
        for composite, behind in ((alone, False), (crowded, True)):
            reddish = composite.image[..., 0].astype(int) - composite.image[..., 1] > 60
            assert reddish.any() == behind
            assert not reddish[composite.masks[0].matte == 255].any()


def test_crowded_ones_drawn_again_are_the_same():
    scenes, items = [np.full((90, 120, 3), 128, np.uint8)], [jar(n) for n in range(3)]
    first, again = (list(draw_composites(items, scenes, 3, seed=0, crowded=True)) for _ in range(2))
    assert all((one.image == other.image).all() for one, other in zip(first, again, strict=True))


def test_a_photo_keeps_its_pixels_and_lacks_known_parts():
    matte = np.zeros((200, 160), np.uint8)
    matte[40:180, 30:130] = 255
    image = np.random.default_rng(0).integers(0, 256, (200, 160, 3), np.uint8)
    composite = compose_photo("shirt", image, matte, ((20, 10),), np.random.default_rng(0))
    whole, *lacking = composite.masks
    assert (composite.image == image).all()
    assert composite.lacking == ((20, 10),)
    assert (whole.matte == matte).all()
    assert lacking
    for mask in lacking:
        missing = ((matte > 127) & (mask.matte <= 127)).sum() / (matte > 127).sum()
        assert missing == pytest.approx(mask.share, abs=0.02)
