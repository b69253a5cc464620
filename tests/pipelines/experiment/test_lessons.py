"""Pictures to learn from: what a branch that grows products adds to its twin's scene is known to the pixel."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from pipelines.experiment.lessons import NEAR, RIM, difference, lessons
from pipelines.models import load_profile
from pipelines.training.data import is_held_out

SHARED = Path(__file__).resolve().parents[4] / "shared"
SIDE = 256


def scene(horizon: int = 150) -> np.ndarray:
    """A green wall over a red floor."""
    picture = np.empty((SIDE, SIDE, 3), np.uint8)
    picture[:horizon], picture[horizon:] = (150, 200, 160), (180, 40, 50)
    return picture


def disc() -> np.ndarray:
    return cv2.circle(np.zeros((SIDE, SIDE), np.uint8), (128, 130), 45, 255, -1)


def test_a_blob_at_the_product_is_growth_and_the_same_scene_is_none() -> None:
    grown = scene()
    grown[100:125, 168:200] = (30, 30, 90)
    found = difference(grown, scene(), disc())
    blob = np.zeros((SIDE, SIDE), bool)
    blob[100:125, 168:200] = True
    blob &= cv2.distanceTransform((disc() == 0).astype(np.uint8), cv2.DIST_L2, 5) > RIM  # a rim is no growth
    assert (found & blob).sum() > 0.8 * blob.sum()
    assert (found & ~blob).sum() < 0.2 * blob.sum()
    assert not difference(scene(), scene(), disc()).any()


def test_a_horizon_a_few_px_higher_is_no_growth_and_nothing_far_away_is() -> None:
    other = scene(horizon=154)
    away = round(NEAR * np.sqrt((disc() > 0).sum())) + 45
    other[10:40, 128 + away + 10 : 250] = (30, 30, 90)
    assert difference(other, scene(), disc()).sum() < 30


@pytest.mark.slow
@pytest.mark.skipif(not (SHARED / "training" / "index.csv").exists(), reason="the shared folder is not here")
def test_of_each_pair_two_pictures_may_be_grown_and_two_are_perfect_but_for_the_autoencoder() -> None:
    painted = list(lessons(SHARED, load_profile("mini"), 2))
    assert len(painted) == 8
    assert not any(is_held_out(lesson.product) for lesson in painted)
    assert not any(lesson.grown.any() for lesson in painted[1::2])
    for grown, perfect in zip(painted[::2], painted[1::2], strict=True):
        assert not (grown.grown & ~grown.beyond).any()
        alike = (grown.matte < 128) & ~grown.grown & grown.beyond
        assert np.abs(grown.image[alike].astype(int) - perfect.image[alike]).mean() < 25  # one scene
        assert (grown.image[grown.matte == 255] == perfect.image[perfect.matte == 255]).all()
