"""Planted faults are held with their reason, their clean twins pass: the real stage, models and thresholds."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from pipelines.contracts import Job
from pipelines.models.profile import load_profile
from pipelines.quality.overcompletion import OvercompletionDetector
from pipelines.scenes import Checks, load_scene
from pipelines.stages import inspect
from pipelines.vision.photos import png_bytes
from pipelines.workflow import Recipe, Work
from tests.pipelines.evaluation.detector.planted import SIDE, clean, halo_around, left_out, with_background

PRODUCTS = (3, 5, 7)
RECIPE = Recipe(load_profile("mini"), load_scene("oak-window"))


@pytest.fixture(scope="module")
def detector() -> OvercompletionDetector:
    return OvercompletionDetector.from_profile(load_profile("mini"), thorough=True)


@pytest.fixture
def failing(detector):
    """Inspect a planted shot and return the reasons of the checks that failed, by check."""

    def run(shot) -> dict[str, str]:
        parameters = {"placement": shot.placement.facts(), "thresholds": Checks().model_dump(mode="json")}
        inputs = {"final": png_bytes(Image.fromarray(shot.image)), "photo": shot.photo, "cutout": shot.cutout}
        work = Work(Job("inspect", 1, {}, parameters), inputs)
        (made,) = inspect.compute([work], detector, RECIPE)
        pictures = {output.role: output for output in made.outputs}
        for verdict in made.verdicts:
            shown = Image.open(io.BytesIO(pictures[verdict.picture].data))
            assert max(shown.size) == SIDE
            assert bool(verdict.reason) != verdict.passed
        return {verdict.check: verdict.reason for verdict in made.verdicts if not verdict.passed}

    return run


@pytest.mark.slow
@pytest.mark.parametrize("number", PRODUCTS)
def test_the_clean_twin_passes(failing, number):
    assert failing(clean(number)) == {}


@pytest.mark.slow
@pytest.mark.parametrize("number", PRODUCTS)
def test_a_part_left_out_of_the_mask_is_overcompletion(failing, number):
    held = failing(left_out(clean(number), 0.12))
    assert "grew the product by" in held["overcompletion"]


@pytest.mark.slow
def test_the_candidates_saliency_map_is_used_only_if_the_picture_is_the_same(detector):
    """A map that sees nothing stands for the candidate's: it changes what the salient net's finder reports."""

    def salient(candidate: np.ndarray, shot) -> float:
        small = Image.fromarray(candidate).resize((SIDE // 2, SIDE // 2), Image.Resampling.BOX)
        known = {
            "plate": png_bytes(small),
            "placed": png_bytes(Image.new("RGBA", small.size)),
            "saliency": png_bytes(Image.new("L", small.size)),
        }
        parameters = {"placement": shot.placement.facts(), "thresholds": Checks().model_dump(mode="json")}
        inputs = {"final": png_bytes(Image.fromarray(shot.image)), "photo": shot.photo, "cutout": shot.cutout}
        (made,) = inspect.compute([Work(Job("inspect", 1, {}, parameters), inputs | known)], detector, RECIPE)
        return made.facts["by_finder"]["salient"]

    grown = left_out(clean(5), 0.12)
    assert salient(grown.image, grown) == 0  # the same picture at another size: the net did not run
    speck = grown.image.copy()
    rows, columns = np.nonzero(grown.matte == 255)
    speck[rows[0] : rows[0] + 14, columns[0] : columns[0] + 14] ^= 64
    assert salient(speck, grown) > 0.01


@pytest.mark.slow
@pytest.mark.parametrize(("number", "levels"), [(3, 50), (5, 35)])
def test_a_halo_is_held(failing, number, levels):
    shot = clean(number)
    bright = shot.image[shot.matte < 3].mean() > 128  # a light rim does not show on a white wall
    held = failing(halo_around(shot, -levels if bright else levels, width=4))
    assert held["halo"] == f"a {'dark' if bright else 'bright'} rim around the product"


RAMP = np.linspace(40, 220, SIDE)[None, :, None].repeat(SIDE, axis=0)
BROKEN = {
    "the scene is noise": np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3)),
    "the scene is one flat colour": np.full((SIDE, SIDE, 3), (180, 170, 160)),
    "the scene is banded": RAMP // 24 * 24,
    "much of the scene is black or burnt out": np.where(RAMP > 60, 0, RAMP),
}


@pytest.mark.slow
@pytest.mark.parametrize("reason", BROKEN)
def test_a_broken_background_is_held(failing, reason):
    assert failing(with_background(clean(5), BROKEN[reason]))["background"] == reason


@pytest.mark.slow
def test_a_touched_product_is_held(failing):
    shot = clean(5)
    rows, columns = np.nonzero(shot.matte == 255)
    image = shot.image.copy()
    image[rows[100], columns[100]] ^= 1
    assert failing(shot.with_image(image))["fidelity"].startswith("1 of ")
