"""`measure checks` counts what the checks hold, on products that no threshold was set on."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipelines.errors import UsageError
from pipelines.evaluation.checks import in_measured_half, measure_checks
from pipelines.models.profile import PROFILES, load_profile
from pipelines.vision.reader import installed_reader

TRAINING = Path(__file__).parents[3] / ".." / "shared" / "training"


def test_a_product_belongs_to_one_half_always() -> None:
    names = [f"product {n}" for n in range(200)]
    assert 70 < sum(in_measured_half(name) for name in names) < 130
    assert in_measured_half("vase") == in_measured_half("vase")


def test_a_folder_without_an_index_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no index\.csv"):
        measure_checks(tmp_path, load_profile("mini"))


@pytest.mark.slow
@pytest.mark.skipif(not TRAINING.exists(), reason="../shared/training is not here")
@pytest.mark.skipif(not (PROFILES / "mini" / "salient" / "model.safetensors").exists(), reason="no bundled weights")
def test_planted_faults_are_held_and_clean_photos_are_not() -> None:
    found = measure_checks(TRAINING, load_profile("mini"), 6)
    names = [
        "product_photo",
        "checkerboard",
        "border",
        "single_product",
        "openings",
        "see_through",
        "certain",
        "certain, by colour",
        "cutout",
        "all, before scenes",
        "all, by colour",
        "all, small gaps",
        "whole",
        "likeness",
        "contact",
        "fidelity",
        "halo",
        "background",
        *(("text", "lettering") if installed_reader() else ()),
    ]
    assert [one.check for one in found.checks] == names
    for one in found.checks:
        assert one.clean_photos == 6
        # wrong cutouts are found, not made
        assert one.faults == 6 or (one.check.startswith(("certain", "cutout", "all")) and one.faults > 0)
        least = 0.1 if one.check == "cutout" else 0.2 if one.check.startswith(("certain", "all")) else 0.5
        assert one.recall >= least
        assert one.false_holds <= 0.5
        assert one.recall_interval[0] <= one.recall <= one.recall_interval[1]
