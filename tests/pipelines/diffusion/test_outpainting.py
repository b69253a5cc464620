"""Outpainting: the canvas grows, the photo stays."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from pipelines.diffusion.outpainting import grow
from tests.pipelines.diffusion.tiny_models import SIDE, product

sides = st.integers(0, 40)


@given(sides, sides, sides, st.integers(1, 40), st.integers(1, 90), st.integers(1, 90))
def test_the_photo_stays_to_the_byte_whatever_is_painted_around_it(left, top, right, bottom, width, height):
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8))
    grown = grow(photo, left, top, right, bottom)
    assert grown.image.width % 8 == grown.image.height % 8 == 0
    assert grown.image.width >= left + width + right
    assert np.asarray(grown.kept).sum() == 255 * width * height
    finished = grown.lay_back(Image.new("RGB", grown.image.size, "red"))
    box = (left, top, left + width, top + height)
    assert finished.crop(box).tobytes() == photo.tobytes()
    assert (np.asarray(finished)[np.asarray(grown.kept) == 0] == (255, 0, 0)).all()


@pytest.mark.parametrize("method", ["brushnet", "blended", "inpaint9"])
def test_the_sampler_paints_the_new_margin_and_its_picture_depends_on_the_photo(parts, method):
    pipeline = parts.pipeline(method)

    def painted(colour: str) -> Image.Image:
        grown = grow(product(colour)[0], right=24, bottom=8)
        image = pipeline(
            grown.image, grown.kept, "a lamp", num_inference_steps=2, generator=torch.Generator().manual_seed(0)
        ).images[0]
        assert image.size == (SIDE + 24, SIDE + 8)
        return grown.lay_back(image)

    red, green = np.asarray(painted("red")), np.asarray(painted("green"))
    margin = np.s_[:, SIDE:]
    assert red[margin].std() > 0
    assert not np.array_equal(red[margin], green[margin])


def test_nothing_to_grow_and_a_canvas_of_another_size_are_refused():
    photo = Image.new("RGB", (16, 16))
    with pytest.raises(ValueError, match="by some somewhere"):
        grow(photo)
    with pytest.raises(ValueError, match="px >= 0"):
        grow(photo, left=-8, right=8)
    with pytest.raises(ValueError, match="what was painted is"):
        grow(photo, left=8).lay_back(photo)
