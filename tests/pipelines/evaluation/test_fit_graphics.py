"""The check `product_photo` is fitted to one half of the training folder; its weights mean what the check computes."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
from PIL import Image

from pipelines.evaluation import planted
from pipelines.evaluation.checks import in_measured_half
from pipelines.evaluation.fit_graphics import Logistic, examples, fit
from pipelines.quality import product_photo
from pipelines.quality.product_photo import BIAS, FLAT_AND_THIN, LINEAR, SQUARED, graphic_statistics, measure_graphic


def test_a_fit_separates_two_groups_and_heeds_their_importance() -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(0, 1, (200, 10))
    graphic = np.arange(200) % 2 == 1
    values[graphic, 2] += 3
    even = fit(values, graphic, np.ones(200))
    assert even(values[graphic]).mean() > 0.85 > 0.15 > even(values[~graphic]).mean()
    careful = fit(values, graphic, np.where(graphic, 1.0, 20.0))
    assert careful(values).mean() < even(values).mean()


def test_the_committed_weights_give_the_checks_score() -> None:
    model = Logistic(BIAS, np.array([*LINEAR, *SQUARED, FLAT_AND_THIN]))
    picture = planted.graphic("size chart", np.random.default_rng(1))
    assert model(graphic_statistics(picture)[0][None])[0] == np.float64(measure_graphic(picture).score)


def test_only_products_of_the_other_half_are_fitted(tmp_path: Path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "photos").mkdir()
    names = [f"mug {n}" for n in range(12)]
    for name in names:
        Image.new("RGB", (64, 64), "grey").save(tmp_path / "photos" / f"{name}.png")
    with (tmp_path / "index.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("file", "name", "source"), *((f"photos/{n}.png", n, "shop") for n in names)])
    monkeypatch.setattr("pipelines.evaluation.fit_graphics.GRAPHICS", 1)
    found = examples(tmp_path)
    assert {one.product for one in found if not one.graphic} == {n for n in names if not in_measured_half(n)}
    assert {one.kind for one in found if one.graphic} == set(planted.GRAPHICS)


def test_a_plant_without_flat_colour_is_not_called_flat() -> None:
    leaves = np.random.default_rng(2).integers(0, 200, (200, 200, 3)).astype(np.uint8)
    picture = np.full((320, 320, 3), 255, np.uint8)
    picture[60:260, 60:260] = leaves
    values, _ = graphic_statistics(picture)
    assert values[0] == 0.5
    assert values[1] > 1 - product_photo.MEASURABLE
