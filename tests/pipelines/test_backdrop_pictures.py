"""The backdrops that are bundled: what their list says of them is true of the pictures."""

import cv2
import numpy as np
import pytest
import yaml
from PIL import Image

from pipelines.scenes import FOLDER, scene_names

BACKDROPS = FOLDER / "backdrops"
ENTRIES = yaml.safe_load((BACKDROPS / "backdrops.yaml").read_text("utf-8"))


def test_every_scene_has_two_pictures_and_all_are_small_enough_to_ship() -> None:
    assert {path.name for path in BACKDROPS.glob("*.webp")} == set(ENTRIES)
    scenes = [entry["scene"] for entry in ENTRIES.values()]
    assert set(scenes) <= set(scene_names())
    assert all(scenes.count(scene) >= 2 for scene in scenes)
    assert sum((BACKDROPS / name).stat().st_size for name in ENTRIES) < 12e6


@pytest.mark.parametrize("name", ENTRIES)
def test_a_product_stands_on_visible_ground_that_can_take_a_shadow(name: str) -> None:
    entry = ENTRIES[name]
    with Image.open(BACKDROPS / name) as picture:
        assert list(picture.size) == entry["size"]
        assert min(picture.size) >= 2048
        pixels = np.asarray(picture.convert("RGB"), np.float32) / 255
    assert entry["licence"].startswith("CC0-1.0")
    height, width = pixels.shape[:2]
    ground = np.zeros((height, width), np.uint8)
    cv2.fillPoly(ground, [np.round(np.array(entry["ground"]) * (width, height)).astype(np.int32)], 1)
    line = round(entry["ground_line"] * height)
    foot = (slice(line - height // 40, line + height // 40), slice(round(0.3 * width), round(0.7 * width)))
    assert ground[foot].all()
    assert 0.35 < pixels[foot].mean() < 0.95
    middle = pixels[height // 5 : line, width // 5 : -width // 5]
    assert np.percentile(middle, 99.9) < 0.99  # nothing clips where the product stands


@pytest.mark.parametrize("name", ENTRIES)
def test_light_comes_from_the_side_that_the_list_names(name: str) -> None:
    azimuth = ENTRIES[name]["light_azimuth"]
    assert ENTRIES[name]["light_from"] == ("left" if azimuth < 0 else "right")
