from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from pipelines.training.composer import COLOURS, PROPS, ComposedProduct, ComposedScene, caption_of, compose, draw_scene

SIZE = (128, 128)


@pytest.fixture(scope="module")
def product() -> ComposedProduct:
    y, x = np.mgrid[-1:1:96j, -1:1:64j]
    alpha = np.clip((1 - np.hypot(x, y)) * 20, 0, 1).astype(np.float32)
    rgb = np.stack([0.5 + 0.4 * x, 0.5 + 0.4 * y, 0.3 + 0 * x], axis=-1).astype(np.float32)
    return ComposedProduct("ceramic vase", rgb, alpha)


def shot_of(scene: ComposedScene, product: ComposedProduct | None, seed: int = 0):
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
    """Where the mask is 1 the picture is the product, whatever the scene; where it is 0 the product leaves no trace but
    its shadow, and its image in the floor."""
    scene = dataclasses.replace(draw_scene(np.random.default_rng(seed)), floor="linen", prop="none")
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
    plain = ComposedScene("white", "white", "front", "none", "red", 0.6, 0.002, 0.85, 0.5, 0.5, 0.15, 0.0)
    shot = shot_of(dataclasses.replace(plain, **{place: colour}), None)
    rows = slice(30, 50) if place == "wall" else slice(95, 115)
    patch = np.median(shot.image[rows, 54:74].reshape(-1, 3), axis=0) * 255
    nearest = min(COLOURS, key=lambda name: np.abs(np.array(COLOURS[name]) - patch).sum())
    assert nearest == colour
    assert f"a {colour} {place}" in shot.caption


@pytest.mark.parametrize(("light", "brighter"), [("left", "left"), ("right", "right")])
def test_the_light_comes_from_the_named_side(light, brighter):
    scene = ComposedScene("grey", "grey", light, "none", "red", 0.6, 0.002, 0.85, 0.5, 0.5, 0.25, 0.0)
    wall = shot_of(scene, None).image[10:60].mean(axis=(0, 2))
    sides = {"left": wall[:24].mean(), "right": wall[-24:].mean()}
    assert max(sides, key=sides.get) == brighter  # type: ignore[arg-type]
    assert f"soft light from the {light}" in caption_of(scene, None)


@pytest.mark.parametrize("prop", [prop for prop in PROPS if prop != "none"])
def test_a_named_prop_is_there(product, prop):
    bare = ComposedScene("beige", "white", "left", "none", "navy blue", 0.6, 0.002, 0.82, 0.4, 0.5, 0.2, 0.0)
    with_prop = dataclasses.replace(bare, prop=prop)
    difference = np.abs(shot_of(with_prop, None).image - shot_of(bare, None).image).max(axis=-1)
    assert (difference > 0.05).mean() > 0.01
    assert {"window": "window light", "plant": "plant shadow", "blinds": "striped light"}.get(prop, prop) in caption_of(
        with_prop, product.name
    )


@pytest.mark.parametrize("size", [(96, 96), (128, 192), (256, 160)])
def test_any_size_keeps_the_product_on_its_ground_line(product, size):
    scene = dataclasses.replace(draw_scene(np.random.default_rng(2)), prop="none", ground=0.9, product_height=0.5)
    mask = compose(scene, size, product, np.random.default_rng(0)).mask
    lowest = np.nonzero(mask.max(axis=1) > 0.5)[0][-1] / size[0]
    assert lowest == pytest.approx(0.9, abs=0.03)


STUDIO = ComposedScene("white", "grey", "left", "none", "red", 0.5, 0.002, 0.8, 0.4, 0.5, 0.2, 0.0)


def darkened_by(product, **changes) -> np.ndarray:
    """How much darker floor and wall are for the product, (H, W), 0 where it stands."""
    scene = dataclasses.replace(STUDIO, **changes)
    shot, bare = shot_of(scene, product), shot_of(scene, None)
    return (bare.image - shot.image).mean(axis=-1) * (shot.mask == 0)


@pytest.mark.parametrize("bearing", [50.0, 80.0, 115.0])
@pytest.mark.parametrize("light", ["left", "right"])
def test_the_shadow_falls_away_from_the_light(product, light, bearing):
    dark = darkened_by(product, light=light, bearing=bearing, size=0.03)
    sides = {"left": dark[:, :36].sum(), "right": dark[:, -36:].sum()}
    assert sides[light] < 0.3 * sides["right" if light == "left" else "left"]


def test_a_shadow_is_sharp_at_the_foot_and_softens_with_distance(product):
    small, large = (darkened_by(product, size=size, bearing=75.0, elevation=45.0)[60:] for size in (0.02, 0.3))

    def steepest(dark: np.ndarray, columns: slice) -> float:
        return float(np.abs(np.diff(dark[:, columns], axis=0)).max())

    assert steepest(large, slice(90, 120)) < 0.5 * steepest(small, slice(90, 120))
    assert steepest(large, slice(90, 120)) < 0.5 * steepest(large, slice(70, 80))


def test_it_is_dark_where_the_product_meets_the_floor(product):
    dark = darkened_by(product, light="front", size=0.3)
    foot = round(STUDIO.ground * SIZE[0])
    assert dark[foot : foot + 2, 60:68].max() > 0.15
    assert dark[foot + 12 :].max() < 0.05


def test_marble_mirrors_the_product_and_linen_does_not(product):
    red = dataclasses.replace(product, rgb=np.broadcast_to(np.float32([1, 0, 0]), product.rgb.shape).copy())
    below = np.s_[round(STUDIO.ground * SIZE[0]) + 3 : round(STUDIO.ground * SIZE[0]) + 15, 58:70]
    redness = {}
    for floor in ("white marble", "linen"):
        image = shot_of(dataclasses.replace(STUDIO, floor=floor, warmth=0.0), red).image[below]
        redness[floor] = float((image[..., 0] - image[..., 1]).mean())
    assert redness["white marble"] > redness["linen"] + 0.05


def test_a_wide_aperture_blurs_the_wall_and_not_the_product_nor_its_ground(product):
    scene = dataclasses.replace(STUDIO, wall="concrete", floor="oak wood", eye=0.13)
    sharp, soft = (shot_of(dataclasses.replace(scene, aperture=aperture), product).image for aperture in (0.0, 0.05))

    def detail(image: np.ndarray, rows: slice) -> float:
        return float(np.abs(np.diff(image[rows], axis=1)).mean() + np.abs(np.diff(image[rows], axis=0)).mean())

    assert detail(soft, slice(70, 78)) < 0.6 * detail(sharp, slice(70, 78))
    ground = round(STUDIO.ground * SIZE[0])
    assert detail(soft, slice(ground - 2, ground + 2)) > 0.9 * detail(sharp, slice(ground - 2, ground + 2))


def test_a_higher_camera_sees_a_rounder_podium(product):
    scene = dataclasses.replace(STUDIO, prop="podium", floor="white")
    tops = []
    for eye in (0.13, 0.55):
        image = shot_of(dataclasses.replace(scene, eye=eye), None).image
        red = image[..., 0] - image[..., 1] > 0.3
        tops.append(round(STUDIO.ground * SIZE[0]) - int(np.nonzero(red.any(axis=1))[0][0]))
    assert tops[1] > 1.5 * tops[0]


@pytest.mark.parametrize("prop", ["ball", "vase", "books"])
def test_what_is_beside_a_wide_product_is_not_hidden_by_it(product, prop):
    wide = dataclasses.replace(product, rgb=product.rgb[:30], alpha=np.ones((30, 64), np.float32))
    scene = dataclasses.replace(STUDIO, prop=prop, product_height=0.66)
    for seed in range(4):
        shot = shot_of(scene, wide, seed)
        red = (shot.image[..., 0] - shot.image[..., 1] > 0.25) & (shot.mask == 0)
        assert red.mean() > 0.004
