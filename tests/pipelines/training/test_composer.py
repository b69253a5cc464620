from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from pipelines.training.composer import COLOURS, Product, Scene, caption_of, compose, draw_scene

SIZE = (128, 128)


@pytest.fixture(scope="module")
def product() -> Product:
    y, x = np.mgrid[-1:1:96j, -1:1:64j]
    alpha = np.clip((1 - np.hypot(x, y)) * 20, 0, 1).astype(np.float32)
    rgb = np.stack([0.5 + 0.4 * x, 0.5 + 0.4 * y, 0.3 + 0 * x], axis=-1).astype(np.float32)
    return Product("ceramic vase", rgb, alpha)


def shot_of(scene: Scene, product: Product | None, seed: int = 0):
    return compose(scene, SIZE, product, np.random.default_rng(seed))


def test_the_same_seed_gives_the_same_picture(product):
    first, second = (
        compose(draw_scene(rng), SIZE, product, rng) for rng in (np.random.default_rng(5), np.random.default_rng(5))
    )
    assert first.caption == second.caption
    assert np.array_equal(first.image, second.image)
    assert np.array_equal(first.mask, second.mask)


def test_another_seed_gives_another_picture(product):
    captions = {caption_of(draw_scene(np.random.default_rng(seed)), product.name) for seed in range(40)}
    assert len(captions) > 35


@pytest.mark.parametrize("seed", range(6))
def test_the_mask_is_exact(product, seed):
    """Where the mask is 1 the picture is the product, whatever the scene; where it is 0 the product leaves no trace."""
    scene = draw_scene(np.random.default_rng(seed))
    red = dataclasses.replace(product, rgb=np.broadcast_to(np.float32([1, 0, 0]), product.rgb.shape).copy())
    shot, other = shot_of(scene, product), shot_of(scene, red)
    inside = shot.mask == 1
    assert inside.sum() > 0.02 * inside.size
    assert np.allclose(other.image[inside], [1, 0, 0], atol=1e-6)
    assert np.array_equal(shot.image[shot.mask == 0], other.image[other.mask == 0])


def test_an_empty_scene_has_an_empty_mask():
    shot = shot_of(draw_scene(np.random.default_rng(3)), None)
    assert not shot.mask.any()
    assert "an empty scene" in shot.caption


@pytest.mark.parametrize("place", ["wall", "floor"])
@pytest.mark.parametrize("colour", COLOURS)
def test_the_named_colour_is_the_colour_of_the_place(place, colour):
    """Under the front light, a patch of the named wall or floor is nearer to its own colour than to any other."""
    plain = Scene("white", "white", "front", "none", "red", 0.6, 0.002, 0.85, 0.5, 0.5, 0.15, 0.0)
    shot = shot_of(dataclasses.replace(plain, **{place: colour}), None)
    rows = slice(30, 50) if place == "wall" else slice(95, 115)
    patch = np.median(shot.image[rows, 54:74].reshape(-1, 3), axis=0) * 255
    nearest = min(COLOURS, key=lambda name: np.abs(np.array(COLOURS[name]) - patch).sum())
    assert nearest == colour
    assert f"a {colour} {place}" in shot.caption


@pytest.mark.parametrize(("light", "brighter"), [("left", "left"), ("right", "right")])
def test_the_light_comes_from_the_named_side(light, brighter):
    scene = Scene("grey", "grey", light, "none", "red", 0.6, 0.002, 0.85, 0.5, 0.5, 0.25, 0.0)
    wall = shot_of(scene, None).image[10:60].mean(axis=(0, 2))
    sides = {"left": wall[:24].mean(), "right": wall[-24:].mean()}
    assert max(sides, key=sides.get) == brighter  # type: ignore[arg-type]
    assert f"soft light from the {light}" in caption_of(scene, None)


@pytest.mark.parametrize("prop", ["podium", "ball", "window", "plant", "arch"])
def test_a_named_prop_is_there(product, prop):
    bare = Scene("beige", "white", "left", "none", "navy blue", 0.6, 0.002, 0.82, 0.4, 0.5, 0.2, 0.0)
    with_prop = dataclasses.replace(bare, prop=prop)
    difference = np.abs(shot_of(with_prop, None).image - shot_of(bare, None).image).max(axis=-1)
    assert (difference > 0.05).mean() > 0.01
    assert {"window": "window light", "plant": "plant shadow"}.get(prop, prop) in caption_of(with_prop, product.name)


@pytest.mark.parametrize("size", [(96, 96), (128, 192), (256, 160)])
def test_any_size_keeps_the_product_on_its_ground_line(product, size):
    scene = dataclasses.replace(draw_scene(np.random.default_rng(2)), prop="none", ground=0.9, product_height=0.5)
    mask = compose(scene, size, product, np.random.default_rng(0)).mask
    lowest = np.nonzero(mask.max(axis=1) > 0.5)[0][-1] / size[0]
    assert lowest == pytest.approx(0.9, abs=0.03)
