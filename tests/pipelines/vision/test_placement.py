"""The product's pixels on the canvas are the photo's own, resampled at most once."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy import ndimage

from pipelines.vision.placement import OPAQUE, Placement, lay_photo, lay_product, place


def product(width: int, height: int, box: tuple[int, int, int, int]) -> tuple[Image.Image, Image.Image]:
    """A noisy photo and its cutout with a one-pixel soft rim and decontaminated (here: green) rim colours."""
    photo = np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8)
    matte = np.zeros((height, width), np.uint8)
    left, top, right, bottom = box
    matte[top:bottom, left:right] = 128
    matte[top + 1 : bottom - 1, left + 1 : right - 1] = 255
    rim = np.where((matte >= OPAQUE)[..., None], photo, np.uint8([0, 255, 0]))
    return Image.fromarray(photo), Image.fromarray(np.dstack([rim, matte]))


@given(
    size=st.tuples(st.integers(8, 300), st.integers(8, 300)),
    scale=st.floats(0.1, 1.0),
    anchor=st.sampled_from(["ground", "centre"]),
    ground=st.floats(0.3, 1.0),
)
@settings(max_examples=60, deadline=None)
def test_the_product_never_leaves_the_canvas_and_keeps_its_shape(size, scale, anchor, ground):
    matte = np.full((size[1], size[0]), 255, np.uint8)
    placed = place(matte, (256, 192), scale, anchor, ground)
    assert placed.left >= 0
    assert placed.top >= 0
    assert placed.left + placed.width <= 256
    assert placed.top + placed.height <= 192
    assert placed.width / placed.height == pytest.approx(
        size[0] / size[1], rel=0.6 / min(placed.width, placed.height) + 0.02
    )
    assert Placement.from_facts(placed.facts()) == placed


def test_a_product_of_nearly_the_wanted_size_is_not_resampled():
    photo, cutout = product(200, 200, (40, 30, 140, 130))
    placed = place(np.asarray(cutout.getchannel("A")), (256, 256), 0.4, "ground", 0.9)
    assert placed.resample == "none"
    laid = lay_product(photo, cutout, placed)
    opaque = laid.matte >= OPAQUE
    source = np.asarray(photo)[31:129, 41:139]
    assert opaque.sum() == 98 * 98
    assert (laid.colour[opaque].reshape(98, 98, 3) == source).all()


def test_opaque_pixels_survive_compositing_and_the_rim_takes_the_clean_colour():
    photo, cutout = product(400, 300, (10, 10, 390, 290))
    placed = place(np.asarray(cutout.getchannel("A")), (256, 256), 0.8, "ground", 0.9)
    assert placed.resample == "lanczos"
    laid = lay_product(photo, cutout, placed)
    scene = np.full((256, 256, 3), 77, np.uint8)
    out = laid.over(scene)
    opaque = laid.matte >= OPAQUE
    assert (out[opaque] == laid.colour[opaque]).all()
    assert (out[laid.matte == 0] == 77).all()
    box = photo.crop(placed.source).resize((placed.width, placed.height), Image.Resampling.LANCZOS)
    rederived = np.zeros_like(out)
    rederived[placed.top : placed.top + placed.height, placed.left : placed.left + placed.width] = np.asarray(box)
    assert (out[opaque] == rederived[opaque]).all()


def test_the_reduced_canvas_keeps_colour_up_to_the_edge():
    matte = np.zeros((64, 64), np.uint8)
    matte[10:54, 10:54] = 255
    from pipelines.vision.placement import LaidProduct

    laid = LaidProduct(np.where(matte[..., None] > 0, np.uint8([200, 100, 50]), np.uint8(0)), matte)
    colour, small = laid.reduced(16, 16)
    inside = np.asarray(small) > 0
    assert np.abs(np.asarray(colour)[inside].astype(int) - [200, 100, 50]).max() <= 1


def test_an_empty_matte_is_refused():
    with pytest.raises(ValueError, match="no product"):
        place(np.zeros((8, 8), np.uint8), (64, 64), 0.5, "ground", 0.9)


@given(
    scale=st.floats(0.1, 0.98),
    anchor=st.sampled_from(["ground", "centre"]),
    left=st.integers(0, 60),
    top=st.integers(0, 60),
    side=st.integers(8, 60),
)
@settings(max_examples=60, deadline=None)
def test_the_photo_stands_where_its_product_does(scale, anchor, left, top, side):
    """A photo black but for a white product: reduced, it is the reduced matte. Its border draws no edge."""
    matte = np.zeros((120, 120), np.uint8)
    matte[top : top + side, left : left + side] = 255
    photo = Image.fromarray(matte).convert("RGB")
    where = place(matte, (256, 192), scale, anchor, 0.86)
    seen = np.asarray(lay_photo(photo, where, 128, 96), int)[..., 0]
    product = lay_product(photo, Image.merge("RGBA", (*photo.split(), Image.fromarray(matte))), where)
    expected = np.asarray(product.reduced(128, 96)[1], int)
    centre = ndimage.binary_erosion(expected > 250, iterations=2)
    assert seen.shape == (96, 128)
    assert (seen[centre] > 250).all()
    beyond = ~ndimage.binary_dilation(expected > 4, iterations=2)
    assert (seen[beyond & _on_the_photo(where)] < 5).all()


def _on_the_photo(where: Placement) -> np.ndarray:
    """(96, 128) bool: what of a canvas of 256 × 192 px, halved, lies on a photo of 120 px."""
    ratio = (where.source[2] - where.source[0]) / where.width
    x = where.source[0] + (np.arange(128) * 2 + 1 - where.left) * ratio
    y = where.source[1] + (np.arange(96) * 2 + 1 - where.top) * ratio
    return ((y > 0) & (y < 120))[:, None] & ((x > 0) & (x < 120))[None]


def test_a_photo_goes_on_beyond_its_border():
    photo = Image.new("RGB", (40, 40), (200, 30, 90))
    where = place(np.full((40, 40), 255, np.uint8), (256, 256), 0.5, "centre", 0.86)
    assert lay_photo(photo, where, 64, 64).getcolors() == [(64 * 64, (200, 30, 90))]
