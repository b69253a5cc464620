"""The claim over backdrops: one product in one scene with both arms, by the real stages and models."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from pipelines.errors import UsageError
from pipelines.evaluation.experiment import backdrops
from pipelines.evaluation.experiment.backdrops import ARMS, STORED, Measured, adjusted_scenes, rows_of, run
from pipelines.evaluation.experiment.cells import BASELINE, TREATED
from pipelines.models.profile import load_profile
from pipelines.scenes import load_scene
from pipelines.stages import generate


def measured(arm: str, product: str, generated: float, final: float) -> Measured:
    return Measured(f"{arm} {product} {generated}", arm, "studio-sage", product, generated, final)


def test_rates_are_by_arm_and_a_product_counts_once():
    found = [
        measured(TREATED, "cup", 0.0, 0.0),
        measured(TREATED, "pot", 0.2, 0.0),
        measured(BASELINE, "cup", 0.3, 0.2),
        measured(BASELINE, "cup", 0.4, 0.3),
        measured(BASELINE, "pot", 0.0, 0.0),
    ]
    treated, baseline = rows_of(found, tau=0.02)
    assert (treated.arm, treated.n, treated.products, treated.overcompleted) == (TREATED, 2, 2, 0)
    assert (treated.generated.value, treated.final.value) == (0.5, 0.0)
    assert (baseline.n, baseline.products, baseline.overcompleted) == (3, 2, 2)
    assert baseline.over_products == pytest.approx((0.0945, 0.9055), abs=1e-3)  # one of two products, by Wilson


def test_the_scenes_are_the_bundled_ones_whose_light_is_generated():
    assert {"oak-window", "studio-sage"} <= {scene.name for scene in adjusted_scenes()}
    assert not {"painted-sage", "pure-white"} & {scene.name for scene in adjusted_scenes()}


def test_a_profile_without_the_baselines_branch_is_refused(tmp_path):
    profile = load_profile("mini")
    without = replace(profile, parts=tuple(part for part in profile.parts if part.name != "brushnet_random"))
    with pytest.raises(UsageError, match="profile mini has no brushnet_random"):
        run(without, tmp_path / "none", tmp_path)


@pytest.mark.slow
def test_both_arms_are_made_once_by_their_own_branches(tmp_path, monkeypatch):
    profile, scene = load_profile("mini"), load_scene("studio-sage")
    used = {}

    def remember(works, models, recipe):
        branch = next(iter(models.pipeline.brushnet.state_dict().values()))
        used[recipe.mask_guidance] = branch.clone()
        return original(works, models, recipe)

    original = generate.compute
    monkeypatch.setattr(generate, "compute", remember)
    found = run(profile, tmp_path / "none", tmp_path, products=1, scenes=[scene])
    assert [one.arm for one in found] == [cell.name for cell in ARMS]
    assert all(0 <= one.final < 0.02 and one.generated >= 0 for one in found)
    assert not torch.equal(used[True], used[False])
    lines = (tmp_path / STORED).read_text(encoding="utf-8").splitlines()
    assert [Measured(**json.loads(line)) for line in lines] == found

    monkeypatch.setattr(backdrops, "_models", None)  # whatever asks for models now fails
    assert run(profile, tmp_path / "none", tmp_path, products=1, scenes=[scene]) == found
