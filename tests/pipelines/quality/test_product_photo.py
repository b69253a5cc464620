"""Graphics are held, with what they are made of; photographed products are not."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipelines import sample
from pipelines.evaluation.planted import GRAPHICS, graphic
from pipelines.quality.product_photo import LIMIT, measure_graphic
from pipelines.vision.photos import read_photo

SAMPLE = Path(sample.__file__).parent
CASES = Path(__file__).parents[3] / ".." / "shared" / "cases" / "photos"


@pytest.mark.parametrize("kind", GRAPHICS)
def test_most_graphics_of_a_kind_are_held(kind: str) -> None:
    rng = np.random.default_rng(7)
    found = [measure_graphic(graphic(kind, rng)) for _ in range(8)]
    assert sum(one.score > LIMIT for one in found) >= 6
    assert all(("no product photo but a graphic" in one.reason) == (one.score > LIMIT) for one in found)


def test_a_banner_is_held_with_its_letters() -> None:
    if not CASES.exists():
        pytest.skip("../shared/cases is not here")
    found = measure_graphic(read_photo((CASES / "32-text-banner.png").read_bytes()).rgb)
    assert found.score > LIMIT
    assert "letters are in rows" in found.reason


def test_no_photo_of_the_sample_catalogue_is_held() -> None:
    with (SAMPLE / "catalog.csv").open(encoding="utf-8", newline="") as file:
        links = [row["image_link"] for row in csv.DictReader(file)]
    for link in links:
        with Image.open(SAMPLE / link) as image:
            rgba = image.convert("RGBA")
        on_white = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
        assert not measure_graphic(np.asarray(on_white.convert("RGB"))).reason, link
