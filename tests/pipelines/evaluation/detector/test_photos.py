"""Real photos: those without a usable cutout are counted, and no photo is both fitted to and measured."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from pipelines.evaluation.detector.photos import (
    MISSING,
    PhotoFile,
    cut_out_photos,
    measured_photos,
    training_photos,
)
from pipelines.models.profile import load_profile

SAMPLE = Path(__file__).parents[4] / "pipelines" / "sample"
SHARED = Path(__file__).parents[4].parent / "shared"
needs_shared = pytest.mark.skipif(
    not (SHARED / "catalog").is_dir(), reason="the shared data are not beside the project"
)


def test_the_parts_that_cutouts_are_known_to_lack_lie_in_pictures() -> None:
    with MISSING.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert all(0 <= float(row[axis]) < 1 for row in rows for axis in "xy")
    assert all(row["what"] for row in rows)


@pytest.mark.slow
def test_photos_without_a_mask_to_place_are_passed_over_and_counted(tmp_path):
    (tmp_path / "broken.jpg").write_text("no picture")
    cup = SAMPLE / "images" / "smp-011-porcelain-espresso-cup-and-saucer.jpg"
    files = [PhotoFile("broken", tmp_path / "broken.jpg", ""), PhotoFile("cup", cup, "")]
    [found] = cut_out_photos(files, load_profile("mini"), 2)
    assert (found.product, found.passed_over) == ("cup", 1)


@needs_shared
def test_photos_to_learn_from_are_of_no_product_that_is_measured():
    training, measured = training_photos(SHARED), measured_photos(SHARED)
    assert len(training) > 100
    assert not {one.product for one in training} & {one.product for one in measured}
    assert not {one.path for one in training} & {one.path for one in measured}


@needs_shared
def test_the_parts_that_cutouts_are_known_to_lack_are_of_photos_that_are_asked_about() -> None:
    with MISSING.open(newline="", encoding="utf-8") as file:
        named = {row["photo"] for row in csv.DictReader(file)}
    assert named <= {photo.path.name for photo in (*measured_photos(SHARED), *training_photos(SHARED))}
