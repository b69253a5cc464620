"""A product that stands on a backdrop has a shadow where it touches the ground."""

from __future__ import annotations

import numpy as np
import pytest

from pipelines.contracts import Job
from pipelines.evaluation.planted_finals import FAULTS, stood
from pipelines.quality.contact import measure_contact
from pipelines.scenes import Checks, load_scene
from pipelines.stages.inspect import _contact
from pipelines.vision.backdrops import BackdropSettings, lay_backdrop
from pipelines.workflow import Work

LIMIT = Checks().contact


def product() -> np.ndarray:
    """A green box, (h, w, 4) uint8."""
    return np.dstack([np.full((140, 80), value, np.uint8) for value in (10, 200, 10, 255)])


@pytest.mark.parametrize("seed", range(6))
def test_a_product_on_its_shadow_passes_and_one_without_is_held(seed: int) -> None:
    found = {}
    for fault in ("", *FAULTS["contact"]):
        final = stood(product(), np.random.default_rng(seed), fault)
        found[fault] = measure_contact(final.image, final.backdrop, final.product.matte)
    assert found[""].score > 3 * LIMIT
    for fault in FAULTS["contact"]:
        assert found[fault].score < LIMIT, fault
        assert "no shadow where it stands" in found[fault].reason
    assert 0 < found[""].where.mean() < 0.05


def test_a_shadow_that_begins_further_down_is_no_contact() -> None:
    bare = np.full((320, 320, 3), 160, np.uint8)
    matte = np.zeros((320, 320), np.uint8)
    matte[120:260, 120:200] = 255
    low = bare.copy()
    low[275:300, 120:200] //= 2
    assert measure_contact(low, bare, matte).score < LIMIT


@pytest.mark.parametrize("rows", [slice(0, 0), slice(100, 320)], ids=["no product", "down to the border"])
def test_without_ground_below_it_nothing_is_measured(rows: slice) -> None:
    bare = np.full((320, 320, 3), 160, np.uint8)
    matte = np.zeros((320, 320), np.uint8)
    matte[rows, 120:200] = 255
    assert measure_contact(bare, bare, matte) is None


def test_the_stage_compares_with_the_backdrop_of_the_shot() -> None:
    scene = load_scene("oak-window")
    picture = scene.backdrop.pictures[0]
    settings = {"mode": "adjust", "foot": list(picture.foot), **picture.model_dump(exclude={"file", "licence"})}
    data = (scene.folder / picture.file).read_bytes()
    bare = lay_backdrop(data, (512, 512), BackdropSettings.from_parameters(settings)).pixels
    matte = np.zeros((512, 512), np.uint8)
    matte[200:430, 200:300] = 255
    work = Work(Job("inspect", 5, {}, {"backdrop": settings}), {"backdrop": data})
    assert _contact(work, bare, matte).score == pytest.approx(0)
    assert _contact(work, bare // 2, matte).score == pytest.approx(0.5, abs=0.02)
    assert _contact(Work(Job("inspect", 5, {}, {}), {}), bare, matte) is None
