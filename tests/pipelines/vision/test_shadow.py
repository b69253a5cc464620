"""Shadows that are drawn from a silhouette: below the foot, away from the light, nowhere else."""

from __future__ import annotations

import numpy as np
import pytest

from pipelines.vision.shadow import find_feet, hanging_shadow, reflection, standing_shadow

SIDE = 256


def box() -> np.ndarray:
    matte = np.zeros((SIDE, SIDE), np.uint8)
    matte[90:210, 90:166] = 255
    return matte


def chair() -> np.ndarray:
    """A seat on four legs; the two in the middle stand further back."""
    matte = np.zeros((SIDE, SIDE), np.uint8)
    matte[60:140, 70:186] = 255
    for left, foot in ((72, 212), (100, 196), (150, 196), (178, 212)):
        matte[140:foot, left : left + 6] = 255
    return matte


def ball() -> np.ndarray:
    rows, columns = np.mgrid[:SIDE, :SIDE]
    return np.where((rows - 150) ** 2 + (columns - 128) ** 2 < 60**2, 255, 0).astype(np.uint8)


def shade(matte: np.ndarray, light_from: str = "left", ground: np.ndarray | None = None) -> np.ndarray:
    return 1 - standing_shadow(matte, light_from, 40.0, ground)


def test_the_ground_just_below_the_foot_is_dark_and_far_away_it_is_not() -> None:
    dark = shade(box())
    assert dark[211:214, 95:160].mean() > 0.4
    assert dark[225:228, 95:160].mean() < dark[211:214, 95:160].mean() / 2
    assert dark[:60].max() < 0.01


@pytest.mark.parametrize(("light_from", "sign"), [("left", 1), ("right", -1)])
def test_the_shadow_falls_away_from_the_light(light_from: str, sign: int) -> None:
    dark = shade(box(), light_from)
    left, right = dark[180:225, 40:88].mean(), dark[180:225, 168:216].mean()
    assert sign * (right - left) > 0.02


def test_light_from_the_front_favours_no_side() -> None:
    dark = shade(box(), "front")
    assert dark[180:225, 40:88].mean() == pytest.approx(dark[180:225, 168:216].mean(), abs=0.01)


def test_every_leg_of_a_chair_touches_the_ground_and_the_seat_does_not() -> None:
    feet = find_feet(chair())
    assert feet is not None
    touch = dict(zip(feet.columns.tolist(), feet.touch.tolist(), strict=True))
    assert all(touch[column] > 0.8 for column in (75, 103, 153, 181))
    assert all(touch[column] < 0.2 for column in (88, 125, 165))


def test_a_ball_touches_in_its_middle_alone() -> None:
    feet = find_feet(ball())
    assert feet is not None
    touch = dict(zip(feet.columns.tolist(), feet.touch.tolist(), strict=True))
    assert touch[128] > 0.9
    assert touch[75] < 0.1
    assert touch[181] < 0.1


def test_no_shadow_falls_where_there_is_no_ground() -> None:
    ground = np.zeros((SIDE, SIDE), np.float32)
    ground[:, :170] = 1
    assert shade(box(), "left", ground)[:, 180:].max() < 0.02
    assert shade(box(), "left")[:, 180:].max() > 0.05


def test_what_hangs_has_a_soft_shadow_behind_it_and_none_on_the_floor() -> None:
    dark = 1 - hanging_shadow(box(), "left")
    assert dark[100:200, 168:172].mean() > dark[100:200, 84:88].mean()
    assert 0.03 < dark[212:216, 100:160].mean() < 0.6
    assert dark[240:].max() < 0.01


def test_a_reflection_mirrors_what_is_above_the_foot_and_fades() -> None:
    colour = np.zeros((SIDE, SIDE, 3), np.uint8)
    colour[90:200], colour[200:210] = (0, 0, 250), (250, 0, 0)
    colours, opacity = reflection(colour, box(), np.ones((SIDE, SIDE), np.float32))
    assert colours[214, 128, 0] > 200  # red is at the foot
    assert colours[232, 128, 2] > 200
    assert opacity[212, 128] > opacity[232, 128] > opacity[252, 128]
    assert opacity[:200].max() < 0.05
    assert opacity[230, :80].max() < 0.01


@pytest.mark.parametrize("matte", [np.zeros((64, 64), np.uint8), np.full((64, 64), 255, np.uint8)])
def test_an_empty_and_a_full_frame_are_no_error(matte: np.ndarray) -> None:
    made = standing_shadow(matte, "left", 40.0)
    assert made.shape == (64, 64)
    assert np.isfinite(made).all()
    assert ((made >= 0) & (made <= 1)).all()


def test_a_sliver_of_a_product_is_no_error() -> None:
    matte = np.zeros((64, 64), np.uint8)
    matte[20:50, 30] = 255
    made = standing_shadow(matte, "right", 20.0)
    assert np.isfinite(made).all()
