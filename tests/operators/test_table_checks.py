"""The rows that are checked before anything is published."""

from __future__ import annotations

import pytest

from operators.tables import publication_rows
from pipelines.contracts import Artifact, Job, Product, Shot, State, Step
from pipelines.quality.tables import validate
from pipelines.scenes import Channel

SHOT = Shot(Product("CUP", 2, "Cup", "Kitchen", "a" * 64), "oak", "web")


def step(stage: str, final: str) -> Step:
    job = Job(stage, 1, {"final": final}, {})
    made = (Artifact("f" * 64, "published", "image/jpeg", 9),) if stage == "publish" else ()
    return Step(job.key, job, State.DONE, made, {"width": 1024, "height": 1024})


@pytest.mark.parametrize(("inspected", "sound"), [("b" * 64, True), ("c" * 64, False)])
@pytest.mark.parametrize("why", ["passed", "approved"])
def test_an_image_other_than_the_inspected_one_stops_publication(inspected: str, sound: bool, why: str) -> None:
    steps = {"CUP": {"inspect": step("inspect", inspected), "publish": step("publish", "b" * 64)}}
    found = validate("publication", publication_rows([SHOT], steps, {"CUP": why}, Channel()))
    assert found.success == sound
    assert {failure.rows for failure in found.failures} == (set() if sound else {("CUP/oak/web",)})
