"""What `packshot measure scenes` says of finals whose truth is planted."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from pipelines.errors import UsageError
from pipelines.evaluation.scenes import FinalMeasure, measure_scenes, shadow_side, sharpness_ratio, summarise
from pipelines.settings import Settings
from pipelines.vision.light import relight
from pipelines.vision.shadow import standing_shadow

SIDE = 320


def matte() -> np.ndarray:
    product = np.zeros((SIDE, SIDE), np.uint8)
    product[120:260, 120:200] = 255
    return product


def bare() -> np.ndarray:
    return np.random.default_rng(0).integers(120, 200, (SIDE, SIDE, 3)).astype(np.uint8)


def laid(scene: np.ndarray) -> np.ndarray:
    """A product over a scene; its own pixels are no part of any measure."""
    return np.where(matte()[..., None] > 0, np.uint8([10, 200, 10]), scene)


def shaded(light_from: str = "left") -> np.ndarray:
    return laid(relight(bare(), standing_shadow(matte(), light_from, 40)[..., None]))


def test_a_scene_that_is_left_alone_is_as_sharp_as_its_backdrop() -> None:
    assert sharpness_ratio(laid(bare()), bare(), matte()) == pytest.approx(1)
    assert sharpness_ratio(shaded(), bare(), matte()) == pytest.approx(1, abs=0.03)


def test_a_scene_that_is_enlarged_from_a_quarter_is_not() -> None:
    small = cv2.resize(bare(), (SIDE // 4, SIDE // 4), interpolation=cv2.INTER_AREA)
    soft = cv2.resize(small, (SIDE, SIDE), interpolation=cv2.INTER_CUBIC)
    assert sharpness_ratio(laid(soft), bare(), matte()) < 0.3


def test_a_backdrop_without_detail_has_no_sharpness_to_keep() -> None:
    flat = np.full((SIDE, SIDE, 3), 200, np.uint8)
    assert sharpness_ratio(laid(flat), flat, matte()) is None


@pytest.mark.parametrize(("drawn", "right"), [("left", True), ("right", False)])
def test_the_side_of_the_shadow_is_told(drawn: str, right: bool) -> None:
    found = shadow_side(shaded(drawn), bare(), matte(), "left")
    assert (found > 0) is right


def final(sku: str, **changes: object) -> FinalMeasure:
    known = {
        "sharpness_ratio": 1.0,
        "darkening": 0.3,
        "side": 0.1,
        "e_plus": 0.001,
        "overcompleted": False,
        "halo": 0.0,
    }
    return FinalMeasure(sku=sku, scene="oak", **{**known, **changes})


def test_each_figure_counts_the_finals_that_it_applies_to() -> None:
    finals = [
        final("a", darkening=0.05, side=-0.1),
        final("b", side=None),
        final("c", sharpness_ratio=None, darkening=None, side=None, overcompleted=True),
    ]
    found = summarise(finals)
    assert (found.n, found.sharpness_ratio.n, found.contact_shadow.n, found.shadow_side.n) == (3, 2, 2, 1)
    assert found.contact_shadow.value == 0.5
    assert found.shadow_side.value == 0
    assert found.overcompleted.value == pytest.approx(1 / 3)
    assert found.overcompleted.interval[0] == 0


def test_finals_without_any_backdrop_leave_the_figure_empty() -> None:
    found = summarise([final("a", sharpness_ratio=None, darkening=None, side=None)])
    assert (found.sharpness_ratio.value, found.sharpness_ratio.interval, found.sharpness_ratio.n) == (None, None, 0)


def test_a_folder_that_no_shoot_wrote_is_one_line(tmp_path) -> None:
    with pytest.raises(UsageError, match="no record of `packshot shoot`"):
        measure_scenes(str(tmp_path), Settings())
