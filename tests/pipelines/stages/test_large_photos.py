"""Large photos: how much memory the cutout of one takes, and that the limit on them is the operator's."""

from __future__ import annotations

import io
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from pipelines.contracts import Job, Product, Shot, State, Step
from pipelines.errors import Rejected
from pipelines.models.profile import PROFILES, load_profile
from pipelines.settings import MAX_MEGAPIXELS
from pipelines.stages.keys import STAGES
from pipelines.vision.matting import decontaminate, refine_matte
from pipelines.workflow import Recipe, Work

WEIGHTS = [PROFILES / "mini" / part / "model.safetensors" for part in ("salient", "hqsam")]

needs_weights = pytest.mark.skipif(not all(w.exists() for w in WEIGHTS), reason="the bundled weights are not here")

MEASURE = r"""
import re, sys
from pathlib import Path
import numpy as np
from pipelines.models.profile import load_profile
from pipelines.stages.cutout import CutoutModels, cutout
from pipelines.vision.photos import Photo

models = CutoutModels.from_profile(load_profile("mini"))

def peak(side):
    image = np.full((side, side, 3), 252, np.uint8)
    image[side * 3 // 10 : side * 7 // 10, side * 7 // 20 : side * 13 // 20] = (190, 40, 35)
    cutout(Photo(image, None), models)
    # not ru_maxrss: a child's begins at what its parent held when it was forked
    return int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1]) / 1024

print(-peak(400) + peak(7000))
"""


def recipe(max_megapixels: float = MAX_MEGAPIXELS) -> Recipe:
    return Recipe(load_profile("mini"), None, max_megapixels=max_megapixels)  # type: ignore[arg-type]


def job(max_megapixels: float) -> Job:
    shot = Shot(Product("a", 2, "Box", "Home", "0" * 64), "oak-window", "square")
    return STAGES["cutout"].job(shot, {}, recipe(max_megapixels), 0)


@needs_weights
@pytest.mark.slow
def test_a_photo_at_the_limit_takes_under_two_gigabytes_beside_the_models() -> None:
    command = [sys.executable, "-c", MEASURE]
    megabytes = float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert 20 < megabytes < 2000


@needs_weights
def test_the_limit_of_the_settings_holds_in_the_cutout_and_raising_it_tries_the_photo_again() -> None:
    photo = io.BytesIO()
    Image.new("RGB", (200, 200)).save(photo, "PNG")
    work = Work(job(0.03), {"photo": photo.getvalue()})
    (refused,) = STAGES["cutout"].compute([work], SimpleNamespace(), recipe(0.03))
    assert isinstance(refused, Rejected)
    assert "the limit is 0.03" in str(refused)
    assert job(0.03).key == job(0.05).key, "a limit decides whether a photo is taken, never what is made of it"
    kept = Step(work.job.key, work.job, State.REJECTED, facts=refused.facts, reason=refused.reason)
    assert STAGES["cutout"].holds(kept, recipe(0.02))
    assert not STAGES["cutout"].holds(kept, recipe(0.05))


def test_a_photo_worked_on_in_strips_comes_out_as_in_one_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    image = np.random.default_rng(0).integers(0, 255, (200, 160, 3), dtype=np.uint8)
    image[40:150, 50:110] //= 4
    mask = np.zeros((200, 160), np.float32)
    mask[42:152, 48:108] = 1
    matte = refine_matte(image, mask, radius=5)
    clean = decontaminate(image, matte)
    monkeypatch.setattr("pipelines.vision.matting.STRIP_PIXELS", 160 * 23)
    assert np.abs(refine_matte(image, mask, radius=5) - matte).max() < 1e-4
    assert np.abs(decontaminate(image, matte).astype(int) - clean).max() <= 1
