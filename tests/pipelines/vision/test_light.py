"""Light carried from a small painted picture to a backdrop: what it must keep and where it must arrive."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.vision.light import BRIGHTEST, DARKEST, UNIT, enlarge, light_between, light_png, read_light, relight

SMALL, FULL = 64, 512
COLOURS = st.tuples(*[st.integers(40, 220)] * 3)


def texture(side: int, seed: int = 0) -> np.ndarray:
    """Noise of one pixel: detail that no small picture could carry."""
    return np.random.default_rng(seed).integers(60, 200, (side, side, 3)).astype(np.uint8)


def box(side: int = SMALL) -> np.ndarray:
    """The matte of a product in the middle."""
    matte = np.zeros((side, side), np.uint8)
    matte[side // 2 : side * 3 // 4, side * 3 // 8 : side * 5 // 8] = 255
    return matte


def blob(side: int, x: float, y: float) -> np.ndarray:
    """A round shadow that takes 60 % of the light at its middle: (side, side) float32."""
    rows, columns = np.mgrid[:side, :side] / side
    return (1 - 0.6 * np.exp(-(((columns - x) ** 2 + (rows - y) ** 2) / 0.006))).astype(np.float32)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 99), side=st.sampled_from([96, 200, 333]))
def test_where_the_light_is_one_the_backdrop_keeps_every_pixel(seed: int, side: int) -> None:
    painted = texture(SMALL, seed)
    light = light_between(painted, painted, box())
    assert (light == 1).all()
    backdrop = texture(side, seed + 1)
    assert (relight(backdrop, light) == backdrop).all()


@settings(max_examples=25, deadline=None)
@given(x=st.floats(0.35, 0.65), y=st.floats(0.6, 0.85), colour=COLOURS)
def test_a_shadow_painted_in_the_small_picture_arrives_at_full_size_in_its_place(x, y, colour) -> None:
    before = np.full((SMALL, SMALL, 3), colour, np.uint8)
    painted = np.rint(before * blob(SMALL, x, y)[..., None]).astype(np.uint8)
    light = light_between(painted, before, box(), reach=9.0)  # all of the picture is near
    backdrop = np.full((FULL, FULL, 3), 180, np.uint8)
    shade = 1 - relight(backdrop, light).mean(2) / 180
    rows, columns = np.mgrid[:FULL, :FULL] / FULL
    assert shade.max() > 0.3
    strong = np.where(shade > 0.5 * shade.max(), shade, 0)
    assert abs((columns * strong).sum() / strong.sum() - x) < 0.02
    assert abs((rows * strong).sum() / strong.sum() - y) < 0.02


def test_texture_survives_under_a_shadow() -> None:
    before = np.full((SMALL, SMALL, 3), 150, np.uint8)
    painted = np.rint(before * blob(SMALL, 0.5, 0.8)[..., None]).astype(np.uint8)
    light = light_between(painted, before, box())
    backdrop = texture(FULL)
    relit = relight(backdrop, light)
    assert not (relit == backdrop).all()
    full = enlarge(light, (FULL, FULL))
    assert np.abs(relit / full - backdrop).max() <= 0.51 / full.min()  # divided by the light it is the backdrop again


def test_the_autoencoders_own_error_is_no_light() -> None:
    true = texture(SMALL)
    decoded = cv2.GaussianBlur(true, (0, 0), 3)  # what an autoencoder loses is lost in both pictures
    assert np.abs(light_between(decoded, decoded, box()) - 1).max() == 0
    assert np.abs(light_between(decoded, true, box()) - 1).max() > 0.01


def test_far_from_the_product_nothing_changes() -> None:
    before = np.full((SMALL, SMALL, 3), 150, np.uint8)
    painted = np.rint(before * blob(SMALL, 0.5, 0.8)[..., None]).astype(np.uint8)
    painted[:3] = 146  # far away
    light = light_between(painted, before, box())
    assert (light[:4] == 1).all()
    assert light[51, 32].max() < 0.75


def test_a_model_that_repaints_the_whole_picture_a_little_changes_no_light() -> None:
    before = np.full((SMALL, SMALL, 3), 150, np.uint8)
    mottled = cv2.GaussianBlur(np.random.default_rng(0).normal(0, 1, before.shape), (0, 0), 4)
    painted = np.clip(before + 14 * mottled / mottled.std(), 0, 255).astype(np.uint8)
    assert np.abs(light_between(painted, before, box(), reach=9.0) - 1).mean() > 0.02
    assert np.abs(light_between(painted, before, box(), reach=0.1) - 1).mean() < 0.01


def test_a_glow_is_believed_less_than_a_shadow() -> None:
    before = np.full((SMALL, SMALL, 3), 120, np.uint8)
    shadow = np.rint(before * blob(SMALL, 0.5, 0.8)[..., None]).astype(np.uint8)
    glow = np.rint(before * (2 - blob(SMALL, 0.5, 0.8)[..., None])).astype(np.uint8)
    darker, brighter = (light_between(painted, before, box()) - 1 for painted in (shadow, glow))
    assert 0 < brighter.max() < 0.6 * -darker.min()


@settings(max_examples=50, deadline=None)
@given(before=COLOURS, after=st.tuples(*[st.integers(0, 255)] * 3))
def test_light_stays_within_its_bounds(before, after) -> None:
    shape = (SMALL, SMALL, 3)
    light = light_between(np.broadcast_to(np.uint8(after), shape), np.broadcast_to(np.uint8(before), shape), box())
    assert light.min() >= DARKEST - 1e-6
    assert light.max() <= BRIGHTEST + 1e-6
    assert enlarge(light, (FULL, FULL)).shape == (FULL, FULL, 3)


def test_light_is_stored_exactly_where_it_is_one_and_closely_elsewhere() -> None:
    light = np.random.default_rng(0).uniform(DARKEST, BRIGHTEST, (20, 30, 3)).astype(np.float32)
    light[:5] = 1
    back = read_light(light_png(light))
    assert (back[:5] == 1).all()
    assert np.abs(back - light).max() <= 0.5 / UNIT + 1e-6


def test_a_picture_without_a_product_has_light_everywhere() -> None:
    before, painted = np.full((SMALL, SMALL, 3), 150, np.uint8), np.full((SMALL, SMALL, 3), 75, np.uint8)
    assert light_between(painted, before, np.zeros((SMALL, SMALL), np.uint8)).max() == pytest.approx(83 / 158, 0.01)
