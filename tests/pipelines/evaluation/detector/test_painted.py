"""Painted pictures to fit to: growth is known to the pixel, and no product is a held-out one."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from pipelines.evaluation.detector.painted import NEAR, RIM, difference, painted_pictures
from pipelines.models.profile import load_profile
from pipelines.training.data import is_held_out

SHARED = Path(__file__).resolve().parents[5] / "shared"
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
    unlike, found = difference(grown, scene(), disc())
    blob = np.zeros((SIDE, SIDE), bool)
    blob[100:125, 168:200] = True
    blob &= cv2.distanceTransform((disc() == 0).astype(np.uint8), cv2.DIST_L2, 5) > RIM  # a rim is no growth
    assert (found & blob).sum() > 0.8 * blob.sum()
    assert (found & ~blob).sum() < 0.2 * blob.sum()
    assert (unlike & found == found).all()


def test_a_horizon_a_few_px_higher_is_no_growth_and_nothing_far_away_is() -> None:
    other = scene(horizon=154)
    away = round(NEAR * np.sqrt((disc() > 0).sum())) + 45
    other[10:40, 128 + away + 10 : 250] = (30, 30, 90)
    unlike, found = difference(other, scene(), disc())
    assert found.sum() < 30
    assert unlike.sum() > 1000  # but it is not called whole either


@pytest.mark.slow
@pytest.mark.skipif(not (SHARED / "training" / "index.csv").exists(), reason="the shared folder is not here")
def test_painted_pictures_come_first_and_then_perfect_ones_and_none_of_a_held_out_product() -> None:
    painted = list(painted_pictures(SHARED, load_profile("mini"), 2))
    grown, perfect = painted[:4], painted[4:]
    assert len(perfect) == 4
    assert not any(is_held_out(picture.product) for picture in grown)
    for picture in grown:
        assert not (picture.grown & ~picture.beyond).any()
        assert not (picture.grown & ~picture.unlike).any()
    for picture in perfect:  # the scene that was composed, but for what the autoencoder did to it
        assert not picture.unlike.any()
        assert (picture.matte >= 128).mean() > 0.02
