"""The experiment end to end on the sample catalogue: real models, two cells, resumed without painting again."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import cv2
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from pipelines.cli.experiment import app as experiment_app
from pipelines.errors import UsageError
from pipelines.evaluation.experiment import overcompletion
from pipelines.evaluation.experiment.cells import ARMS, BASELINE, CELLS, CLAIM, COMPARED, CONTROL_ARM, TREATED, Cell
from pipelines.evaluation.experiment.making import picture_key
from pipelines.evaluation.experiment.painting import Painter, edges_of
from pipelines.evaluation.experiment.pairs import catalogue_subjects, load_pairs, load_subjects
from pipelines.evaluation.experiment.plot import draw_rates
from pipelines.evaluation.experiment.report import as_json, write_report
from pipelines.evaluation.experiment.scoring import PromptAgreement, Scorer
from pipelines.evaluation.products import CALIBRATION, read_products
from pipelines.models.profile import Profile, load_profile
from pipelines.settings import ROOT
from pipelines.training.brushnet import ARMS as TRAINED
from pipelines.training.composer import COLOURS, MATERIALS
from pipelines.training.data import LAST_COLOUR, clean_name, is_held_out, product_of, read_index

SAMPLE = Path(overcompletion.__file__).resolve().parents[2] / "sample" / "catalog.csv"
SHARED = Path(__file__).resolve().parents[5] / "shared"


@pytest.fixture(scope="module")
def subjects():
    return catalogue_subjects(SAMPLE)


def test_the_claim_is_every_arm_with_every_guidance_and_names_are_unique():
    names = [cell.name for cell in CELLS]
    assert len(set(names)) == len(names)
    assert len(CLAIM) == 12
    assert {BASELINE, CONTROL_ARM, TREATED} <= {cell.name for cell in CLAIM}
    assert {name for pair in COMPARED for name in pair} <= set(names)
    assert set(ARMS.values()) == set(TRAINED)


def test_a_longer_run_begins_with_the_pairs_of_a_shorter_one(subjects):
    few, many = load_pairs(subjects, 5, 64), load_pairs(subjects, 20, 64)
    assert [pair.digest for pair in few] == [pair.digest for pair in many[:5]]
    again = load_pairs(subjects, 20, 64)[17]
    assert again.subject.name == many[1].subject.name
    assert again.prompt != many[1].prompt
    assert len({pair.digest for pair in many}) == 20


def test_a_pair_lays_photo_and_product_one_over_the_other(subjects):
    pair = load_pairs(subjects, 1, 128)[0]
    inside = pair.product.matte == 255
    assert 0.02 < inside.mean() < 0.5
    assert np.abs(np.asarray(pair.photo).astype(int) - pair.product.colour)[inside].mean() < 12


def test_a_drawn_picture_shows_the_prompts_scene_around_the_very_product(subjects):
    for pair in load_pairs(subjects, 4, 128):
        drawn = pair.drawn()
        inside, away = pair.product.matte == 255, pair.product.matte == 0
        np.testing.assert_array_equal(drawn[inside], pair.product.colour[inside])
        wall = drawn[:8][away[:8]].mean(axis=0)
        named = np.array(COLOURS[pair.scene.wall] if pair.scene.wall in COLOURS else MATERIALS[pair.scene.wall][0])
        assert np.abs(wall / wall.mean() - named / named.mean()).max() < 0.25  # its hue, whatever the light
    assert np.array_equal(drawn, pair.drawn())


def test_edges_of_the_whole_photo_alone_reach_beyond_the_product(subjects):
    pairs = load_pairs(subjects, 16, 128)
    cells = [Cell("a", "ablations", edges=edges) for edges in ("photo", "product", "cutout")]
    beyond = [0, 0, 0]
    for pair in pairs:
        near = cv2.dilate(pair.product.matte, np.ones((9, 9), np.uint8)) > 0
        for n, cell in enumerate(cells):
            beyond[n] += int(((np.asarray(edges_of(pair, cell))[..., 0] > 0) & ~near).sum())
    assert beyond[0] > 200
    assert beyond[1] == 0
    assert beyond[2] == 0


@pytest.mark.skipif(not (SHARED / "training" / "index.csv").exists(), reason="the shared folder is not here")
def test_no_subject_was_trained_on():
    trained = {product_of(item) for item in read_index(SHARED / "training", "cutouts", "train")}
    held_out = {product_of(item) for item in read_index(SHARED / "training", "cutouts", "test")}
    names = {subject.name for subject in load_subjects(SHARED)}
    assert len(names & held_out) > 60
    assert all(is_held_out(name) for name in names & held_out)
    assert not names & trained


@pytest.mark.skipif(not (SHARED / "training" / "index.csv").exists(), reason="the shared folder is not here")
def test_the_products_that_the_detector_was_fitted_to_are_known_and_are_not_most():
    fitted = {name for name, _, _ in read_products(SHARED, CALIBRATION)}
    items = read_index(SHARED / "training", "cutouts", "test")
    named = {product_of(item): LAST_COLOUR.sub("", item.name) for item in items}
    subjects = load_subjects(SHARED)
    familiar = {subject.name for subject in subjects if subject.familiar}
    assert 10 < len(familiar) < len(subjects) / 2
    assert familiar & set(named.values()) <= {named[product] for product in fitted if product in named}
    with (SHARED / "catalog" / "catalog.csv").open(newline="", encoding="utf-8") as file:
        titles = {row["id"]: clean_name(row["title"]) for row in csv.DictReader(file)}
    assert {titles[product] for product in fitted if product in titles} <= familiar


def test_a_shorter_run_keeps_the_proportions_of_a_full_one():
    full = overcompletion.pair_counts(None, ["claim", "methods", "ablations"])
    assert full == {"claim": 300, "methods": 100, "ablations": 100}
    assert overcompletion.pair_counts(60, ["claim", "methods"]) == {"claim": 60, "methods": 20}
    assert overcompletion.pair_counts(1, ["claim", "ablations"]) == {"claim": 1, "ablations": 1}
    assert overcompletion.pair_counts(1000, ["claim"]) == {"claim": 300}
    assert overcompletion.pair_counts(50, ["methods"]) == {"methods": 50}


def test_the_plot_in_the_docs_is_of_the_results_beside_it():
    folder = ROOT / "docs" / "research" / "experiment"
    document = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    drawn = draw_rates(document["rows"])
    assert drawn == (folder / "rates.svg").read_text(encoding="utf-8")
    marks = ElementTree.fromstring(drawn).findall("{http://www.w3.org/2000/svg}circle")
    assert len(marks) == 2 * len(document["rows"]) + 2  # the rate and that on the plate; and the legend


def test_an_unknown_part_of_the_table_is_refused(tmp_path):
    with pytest.raises(UsageError, match="there are claim, methods, ablations"):
        overcompletion.run(load_profile("mini"), tmp_path, tmp_path, groups=["claims"])


def with_clip(folder: Path, tower: str) -> Profile:
    """`mini` with a CLIP one of whose towers has been trained."""
    profile = load_profile("mini")
    part = profile.part("clip")
    tensors = load_file(part.path / "model.safetensors")
    folder.mkdir()
    save_file(
        {name: t + 1 if name.startswith(tower) else t for name, t in tensors.items()}, folder / part.weights[0].name
    )
    moved = replace(part, path=folder)
    moved = replace(moved, ref=replace(part.ref, sha256=moved.digest()))
    return replace(profile, parts=tuple(moved if one.name == "clip" else one for one in profile.parts))


def test_a_picture_depends_on_the_clip_tower_that_the_sampler_reads_and_on_no_other(subjects, tmp_path):
    pair = load_pairs(subjects, 1, 64)[0]
    today = picture_key(CLAIM[0], pair, load_profile("mini"))
    assert picture_key(CLAIM[0], pair, with_clip(tmp_path / "eyes", "vision_model.")) == today
    assert picture_key(CLAIM[0], pair, with_clip(tmp_path / "words", "text_model.")) != today


@pytest.mark.slow
def test_a_run_without_the_shared_folder_is_a_smoke_test_that_resumes(tmp_path, monkeypatch):
    cells = Cell(BASELINE, "claim", guidance="unmasked"), Cell(TREATED, "claim", guidance="guided")
    lacking = Cell("lacking", "claim", brushnet="brushnet_of_nobody")
    monkeypatch.setattr(overcompletion, "CELLS", (*cells, lacking))
    told = []
    arguments = (load_profile("mini"), tmp_path / "nothing", tmp_path / "out", 2, ["claim"])

    def refuse(*_):
        raise AssertionError("made here, and not by a worker, or a second time")

    with monkeypatch.context() as here:
        here.setattr(Painter, "paint", refuse)
        here.setattr(Scorer, "score", refuse)
        table, results = overcompletion.run(*arguments, progress=lambda *step: told.append(step), jobs=2)
    assert told == [(BASELINE, 2, 4), (TREATED, 4, 4)]
    assert table.smoke_test
    assert table.missing == {"lacking": "the profile mini has no brushnet_of_nobody"}
    assert [row.n for row in table.rows] == [2, 2]
    assert table.rows[0].kid is None

    agree = PromptAgreement(load_profile("mini"))
    pairs = [one.pair for one in results[BASELINE]]
    drawn = table.references["drawn as the prompt says"], [pair.drawn() for pair in pairs]
    for found, images in (drawn, *((row, [one.composite() for one in results[row.cell]]) for row in table.rows)):
        # of two pictures: how far the own prompt is above the other's
        agreed = agree(images, [pair.prompt for pair in pairs])
        assert found.clip.value == pytest.approx((agreed[0, 0] + agreed[1, 1]) / 2, abs=1e-5)
        assert found.clip_margin.value == pytest.approx(found.clip.value - (agreed[0, 1] + agreed[1, 0]) / 2, abs=1e-5)

    page = write_report(table, results, tmp_path / "out")
    assert "smoke test" in page.read_text(encoding="utf-8")
    assert "drawn as the prompt says" in page.read_text(encoding="utf-8")
    document = json.loads((tmp_path / "out" / "results.json").read_text(encoding="utf-8"))
    assert document == json.loads(json.dumps(as_json(table)))
    compared = document["comparisons"][0]
    counts = [sum(one.scores.e_plus > table.tau for one in results[name]) for name in (BASELINE, TREATED)]
    assert compared["rate_ratio"]["value"] == pytest.approx((counts[0] + 0.5) / (counts[1] + 0.5))
    assert compared["unfamiliar"] == 2  # the detector was fitted to no product of the sample
    assert compared["unfamiliar_rate_ratio"] == compared["rate_ratio"]
    assert compared["kid_difference"] is None
    with (tmp_path / "out" / "results.csv").open(newline="", encoding="utf-8") as file:
        assert [row["cell"] for row in csv.DictReader(file)] == [BASELINE, TREATED]

    monkeypatch.setattr(Painter, "paint", refuse)
    again, _ = overcompletion.run(*arguments, progress=lambda *step: told.append(step))
    assert told[-4:] == [(BASELINE, 1, 4), (BASELINE, 2, 4), (TREATED, 3, 4), (TREATED, 4, 4)]
    assert as_json(again) == as_json(table)

    asked = []
    monkeypatch.setattr(overcompletion, "make_in_processes", lambda batches, *_: asked.extend(batches) or ())
    overcompletion.run(*arguments, progress=lambda *step: told.append(step), jobs=2)
    assert asked == []  # nothing is left to any worker
    assert told[-1] == (BASELINE, 4, 4)


def test_the_command_paints_on_a_device_that_there_is(tmp_path, monkeypatch):
    asked = []

    def stop(*arguments, **_):
        asked.extend(arguments)
        raise UsageError("far enough")

    monkeypatch.setattr(overcompletion, "run", stop)
    CliRunner().invoke(experiment_app, ["overcompletion", "--out", str(tmp_path)])
    assert torch.device(asked[5]).type in ("cpu", "cuda")


@pytest.mark.slow
def test_fewer_steps_guidance_in_part_of_them_and_recalled_features_each_paint_another_picture(subjects):
    painter, pairs = Painter(load_profile("mini")), load_pairs(subjects, 1, 64)
    names = ("4 steps", "guidance in the middle half of the steps", "features cached every 2nd step")
    cells = [Cell("best", "ablations"), *(cell for cell in CELLS if cell.name in names)]
    pictures = [painter.paint(cell, pairs)[0][0].tobytes() for cell in cells]
    assert len(set(pictures)) == 4


@pytest.mark.slow
def test_masking_every_layer_or_some_of_them_paints_another_picture(subjects):
    painter, pairs = Painter(load_profile("mini")), load_pairs(subjects, 1, 64)
    cells = [Cell(masked, "ablations", masked=masked) for masked in ("all", "larger", "smaller")]
    pictures = [np.asarray(painter.paint(cell, pairs)[0][0]) for cell in cells]
    assert not np.array_equal(pictures[0], pictures[1])
    assert not np.array_equal(pictures[1], pictures[2])
    assert np.array_equal(np.asarray(painter.paint(cells[0], pairs)[0][0]), pictures[0])
