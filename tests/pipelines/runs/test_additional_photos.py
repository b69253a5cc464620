"""`packshot shoot` with additional photos, on the bundled models."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

import pytest

from pipelines.contracts import ShotState
from pipelines.models.profile import load_profile
from pipelines.runs.local import read_record, shoot
from pipelines.scenes import load_scene
from pipelines.settings import Settings
from pipelines.workflow import Recipe

pytestmark = pytest.mark.slow

SAMPLE = Path(__file__).resolve().parents[3] / "pipelines/sample"


def test_every_photo_of_a_feed_is_a_shot_and_the_main_ones_are_what_they_were(tmp_path: Path) -> None:
    with (SAMPLE / "catalog.csv").open(encoding="utf-8") as file:
        photos = [row["image_link"] for row in csv.DictReader(file)][:4]
    for photo in photos:
        shutil.copy(SAMPLE / photo, tmp_path / Path(photo).name)
    one, two, three, four = (Path(photo).name for photo in photos)
    (tmp_path / "broken.jpg").write_bytes((tmp_path / four).read_bytes()[:2000])
    (tmp_path / "feed.tsv").write_text(
        "id\ttitle\timage_link\tadditional_image_link\n"
        f"A\tMug\t{one}\t\nB\tBear\t{two}\t{three}\nC\tCup\t{three}\t{four},broken.jpg,{one}\n"
    )
    scene = load_scene("studio-sage")
    scene = scene.model_copy(update={"candidates": 1, "steps": 2})
    profile = load_profile("mini")
    settings = Settings(batch_size=1)  # what is beside a shot in its batch moves the last bits of its image
    alone = shoot(tmp_path / "feed.tsv", Recipe(profile, scene), tmp_path / "alone", settings)
    gallery = scene.model_copy(update={"additional_photos": 10})
    found = shoot(tmp_path / "feed.tsv", Recipe(profile, gallery), tmp_path / "all", settings)

    assert [(o.sku, o.product, o.photo_number) for o in found] == [
        ("A", "A", 1), ("B", "B", 1), ("B~2", "B", 2), ("C", "C", 1), ("C~2", "C", 2), ("C~3", "C", 3), ("C~4", "C", 4),
    ]  # fmt: skip
    broken = next(outcome for outcome in found if outcome.sku == "C~3")
    assert broken.state is ShotState.REJECTED
    assert broken.reason
    assert not [o for o in found if o.sku != "C~3" and o.state in (ShotState.REJECTED, ShotState.FAILED)]

    keys = {shot.sku: {name: step.key for name, step in steps.items()} for shot, steps in read_record(tmp_path / "all")}
    before = {
        shot.sku: {name: step.key for name, step in steps.items()} for shot, steps in read_record(tmp_path / "alone")
    }
    assert {sku: keys[sku] for sku in before} == before, "the main photo's steps keep their keys"
    assert [o.state for o in alone] == [o.state for o in found if o.photo_number == 1]
    pictures = [outcome.picture for outcome in found if outcome.picture]
    assert len(set(pictures)) == len(pictures)
    backdrops = {
        shot.sku: steps["generate"].job.inputs["backdrop"]
        for shot, steps in read_record(tmp_path / "all")
        if "generate" in steps
    }
    assert backdrops["C"] == backdrops["C~2"] == backdrops["C~4"], "photos of one product look alike"
