"""Two sample products walk every stage on the bundled models, with the real ledger and store; then an audit.

The placement of each published image is re-derived here from what the ledger recorded, with nothing of
`pipelines.vision.placement`: the product's pixels must be the photo's own.
"""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps
from scipy import ndimage

from pipelines.catalogue.feed import ingest
from pipelines.catalogue.manifest import load_manifest
from pipelines.contracts import STAGES, Publication, Shot, State, sha256_hex
from pipelines.ledger.reports import lineage, report
from pipelines.models.profile import load_profile
from pipelines.scenes import load_scene
from pipelines.stages import stage
from pipelines.workflow import Recipe, run_stage

pytestmark = pytest.mark.slow

SAMPLE = Path(__file__).resolve().parents[1] / "pipelines/sample/catalog.csv"
RUN = "manual__walk"


@pytest.fixture(scope="module")
def walk(ledger, store, settings):
    """Shots and the recipe of a finished walk."""
    products = load_manifest(store, ingest(SAMPLE, store, settings, limit=2))
    recipe = Recipe(load_profile("mini"), load_scene("studio-sage"))
    shots = [Shot(product, recipe.scene.name, recipe.scene.channel.name) for product in products]
    ledger.upsert_products(products)
    ledger.start_run(RUN, "catalog_refresh", recipe.scene.name, recipe.scene.channel.name, triggered_by="packshot run")
    ledger.select(RUN, shots, 8)
    for name in STAGES:
        run_stage(stage(name), RUN, shots, recipe, ledger, store)
    return shots, recipe


def picture(store, digest: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(store.get(digest))))


def test_every_stage_made_something_for_every_shot(walk, ledger):
    shots, _ = walk
    steps = ledger.chosen(RUN, shots)
    assert {sku: [steps[sku][name].state for name in STAGES] for sku in steps} == {
        shot.sku: [State.DONE] * len(STAGES) for shot in shots
    }


def test_the_products_pixels_are_the_photos_own(walk, ledger, store, shared_alphas):
    shots, _ = walk
    for shot in shots:
        steps = ledger.chosen(RUN, [shot])[shot.sku]
        where = steps["upscale"].job.parameters["placement"]
        assert where == steps["generate"].facts["placement"]
        photo = ImageOps.exif_transpose(Image.open(io.BytesIO(store.get(shot.product.photo)))).convert("RGB")
        box = photo.crop(where["source"])
        if where["resample"] != "none":
            box = box.resize((where["width"], where["height"]), Image.Resampling.LANCZOS)
        else:
            assert box.size == (where["width"], where["height"])
        final = picture(store, steps["upscale"].output("final"))
        matte = picture(store, steps["upscale"].output("final_matte"))
        window = np.s_[where["top"] : where["top"] + where["height"], where["left"] : where["left"] + where["width"]]
        opaque = matte[window] / 255 >= 0.99
        assert (final[window][opaque] == np.asarray(box)[opaque]).all()

        alpha = shared_alphas[shot.sku].crop(where["source"]).resize((where["width"], where["height"]))
        true = ndimage.binary_erosion(np.asarray(alpha) > 204, iterations=2)
        assert opaque[true].mean() >= 0.95

        original = np.zeros_like(final)
        original[window] = np.asarray(box)
        outside = matte == 0
        assert (final[outside] != original[outside]).any(-1).mean() >= 0.90


@pytest.fixture(scope="module")
def shared_alphas() -> dict[str, Image.Image]:
    """The exact masks that the sample catalogue brings."""
    import csv

    with SAMPLE.open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return {row["id"]: Image.open(SAMPLE.parent / row["ground_truth_alpha"]).convert("L") for row in rows}


def test_the_published_file_says_what_it_is(walk, ledger, store):
    shots, recipe = walk
    step = ledger.chosen(RUN, shots[:1])[shots[0].sku]["publish"]
    data = store.get(step.output("published"))
    image = Image.open(io.BytesIO(data))
    assert image.format == "JPEG"
    assert image.size == (recipe.scene.channel.width, recipe.scene.channel.height)
    assert b"compositeWithTrainedAlgorithmicMedia" in data


def test_walking_again_computes_nothing(walk, ledger, store):
    shots, recipe = walk
    summaries = [run_stage(stage(name), RUN, shots, recipe, ledger, store) for name in STAGES]
    assert [summary.computed for summary in summaries] == [0] * len(STAGES)


def test_a_published_image_is_traced_to_its_photo_and_models(walk, ledger, store):
    shots, recipe = walk
    shot = shots[0]
    digest = ledger.chosen(RUN, [shot])[shot.sku]["publish"].output("published")
    ledger.publish(RUN, [Publication(shot.sku, shot.scene, shot.channel, digest)])
    for what in (shot.sku, digest):
        found = lineage(ledger.engine, what).to_json()
        assert found["sku"] == shot.sku
        assert found["artifact"]["sha256"] == digest
        assert found["photo"]["sha256"] == shot.product.photo == sha256_hex(store.get(shot.product.photo))
        assert {step["stage"] for step in found["steps"]} == set(STAGES)
        generate = next(step for step in found["steps"] if step["stage"] == "generate")
        assert generate["parameters"]["prompt"].startswith("a photo of")
        models = {model["name"]: model["sha256"] for model in generate["models"]}
        for part in ("unet", "autoencoder", "clip", "brushnet", "controlnet_canny"):
            assert models[part] == recipe.profile.ref(part).sha256


def test_every_object_is_what_its_name_says(walk, store):
    checked = list(store.verify_all())
    assert len(checked) > 10
    assert all(item.ok for item in checked)


def test_the_report_sums_to_the_catalogue(walk, ledger):
    shots, _ = walk
    ledger.settle(RUN)
    found = report(ledger.engine, RUN)
    assert found.products == len(shots)
    assert found.published + found.held + found.rejected + found.failed + found.pending == found.products
