"""Backdrops as sets: a picture with a coloured ground, and what a shot in it says and shows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image, ImageDraw

from pipelines.training.composer import ComposedProduct
from pipelines.training.sets import load_sets

SIZE = (128, 128)
ENTRY = {
    "ground_line": 0.8,
    "ground": [[0.0, 0.6], [1.0, 0.6], [1.0, 1.0], [0.0, 1.0]],
    "light_from": "left",
    "light_azimuth": -60,
    "light_elevation": 42,
    "camera_pitch": 10.0,
    "gloss": 0.0,
}


def folder_with(folder: Path, **entries: dict[str, object]) -> Path:
    """Backdrops with a blue wall above a yellow floor, and a red stripe at the left edge."""
    for name in entries:
        picture = Image.new("RGB", (640, 640), (40, 60, 200))
        draw = ImageDraw.Draw(picture)
        draw.rectangle((0, 384, 640, 640), fill=(230, 200, 60))
        draw.rectangle((0, 0, 150, 640), fill=(200, 20, 20))
        picture.save(folder / f"{name}.webp", lossless=True)
    index = {f"{name}.webp": entry for name, entry in entries.items()}
    (folder / "backdrops.yaml").write_text(yaml.safe_dump(index), encoding="utf-8")
    return folder


@pytest.fixture
def product() -> ComposedProduct:
    return ComposedProduct("mug", np.full((60, 40, 3), 0.5, np.float32), np.ones((60, 40), np.float32))


def red_side(image: np.ndarray) -> str:
    red = (image[..., 0] - image[..., 2] > 0.3) & (image[..., 1] < 0.4)
    return "left" if red[:, :64].sum() >= red[:, 64:].sum() else "right"


def test_a_shot_in_a_set_says_what_is_seen_and_turns_the_light_with_the_picture(tmp_path, product):
    (found,) = load_sets(folder_with(tmp_path, window={**ENTRY, "scene": "oak-window"}))
    sides = set()
    for seed in range(12):
        shot = found.shot(SIZE, product, np.random.default_rng(seed))
        light = red_side(shot.image)  # the stripe is where the light comes from
        sides.add(light)
        assert shot.caption == (
            f"a photo of a mug on an oak wood floor against a linen wall, soft light from the {light}, "
            "window light on the wall"
        )
    assert sides == {"left", "right"}


@pytest.mark.parametrize("seed", range(8))
def test_the_product_stands_on_the_ground_and_its_mask_is_exact(tmp_path, product, seed):
    (found,) = load_sets(folder_with(tmp_path, sage={**ENTRY, "scene": "studio-sage"}))
    shot = found.shot(SIZE, product, np.random.default_rng(seed))
    assert np.allclose(shot.image[shot.mask == 1], 0.5, atol=1e-6)
    foot = np.nonzero(shot.mask.max(axis=1) > 0.5)[0][-1]
    below = shot.image[min(foot + 6, 127), 60:68].mean(axis=0)
    assert below[0] > below[2] + 0.2  # yellow: it stands on the floor, not before the wall
    bare = found.shot(SIZE, None, np.random.default_rng(seed))
    assert "an empty scene" in bare.caption


def test_what_stands_on_a_podium_is_said_to(tmp_path, product):
    small = [[0.3, 0.74], [0.7, 0.74], [0.7, 0.86], [0.3, 0.86]]
    podium = {**ENTRY, "scene": "marble-podium", "ground": small}
    (found,) = load_sets(folder_with(tmp_path, podium=podium))
    shot = found.shot(SIZE, product, np.random.default_rng(1))
    assert "standing on a white podium on a grey floor against a grey wall" in shot.caption


def test_no_backdrops_no_sets(tmp_path):
    assert load_sets(tmp_path) == ()
    assert load_sets(folder_with(tmp_path, new={**ENTRY, "scene": "nobody-has-looked-at-it"})) == ()
    (tmp_path / "backdrops.yaml").write_text(yaml.safe_dump({"gone.webp": {**ENTRY, "scene": "oak-window"}}))
    assert load_sets(tmp_path) == ()
