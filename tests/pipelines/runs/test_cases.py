"""The wrong photos of ../shared/cases in one catalogue: nothing that their README calls wrong is published."""

from __future__ import annotations

import csv
import io
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from pipelines.contracts import ShotState
from pipelines.models.profile import load_profile
from pipelines.runs.local import Outcome, read_record, shoot
from pipelines.scenes import FOLDER, check_scene
from pipelines.settings import ROOT, read_settings
from pipelines.store import FolderStore
from pipelines.workflow import Recipe

CASES = ROOT / "../shared/cases/photos"
TITLES = {
    "00-ref-can": "Yellow can",
    "03-can-palette-adobergb": "Yellow can",
    "16-shoe-painted-checkerboard": "Slip-on shoe",
    "17-glass-semitransparent": "Drinking glass",
    "19-notebook-fills-frame-rgba": "Notebook",
    "31-six-products": "Yellow slip-on shoe",
    "32-text-banner": "Blue jug",
    "38-can-gimp-linear-srgb": "Yellow can",
    "39-ring": "Silver ring",
    "59-bad-crc-ancillary": "Product",
    "60-ztxt-3MB": "Product",
}
"""What a shop calls each photo."""

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not CASES.is_dir(), reason="needs ../shared/cases")]


class Shop:
    """What became of each photo, and its cutout."""

    def __init__(self, out: Path, outcomes: list[Outcome]):
        self.outcomes = {outcome.sku: outcome for outcome in outcomes}
        self.store = FolderStore(out / ".packshot")
        self.steps = {shot.sku: steps for shot, steps in read_record(out)}

    def cutout(self, sku: str) -> np.ndarray:
        """(H, W, 4) uint8."""
        cut = self.steps[sku]["cutout"]
        return np.asarray(Image.open(io.BytesIO(self.store.get(cut.output("cutout")))))

    def failing(self, sku: str) -> set[str]:
        """Names of the checks that hold it."""
        return {v.check for step in self.steps[sku].values() for v in step.verdicts if not v.passed}


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Shop:
    """The catalogue, shot in a scene that paints nothing: what may be published is decided without it."""
    folder = tmp_path_factory.mktemp("cases")
    assert {path.stem for path in CASES.iterdir()} == set(TITLES), "give the new photo its title and its test"
    for path in CASES.iterdir():
        shutil.copy(path, folder)
    with (folder / "catalog.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["id", "title", "image_link"])
        rows.writerows([path.stem, TITLES[path.stem], path.name] for path in sorted(CASES.iterdir()))
    scene = yaml.safe_load((FOLDER / "oak-window.yaml").read_text())
    scene |= {"name": "still", "candidates": 1, "controls": [], "lora": None, "picture": ""}
    scene["backdrop"] |= {"mode": "lock"}
    shutil.copytree(FOLDER / "backdrops", folder / "backdrops")
    (folder / "still.yaml").write_text(yaml.safe_dump(scene))
    recipe = Recipe(load_profile("mini"), check_scene(folder / "still.yaml"))
    out = folder / "out"
    return Shop(out, shoot(folder / "catalog.csv", recipe, out, read_settings()))


def test_every_photo_is_published_or_held_and_none_is_lost(shop: Shop) -> None:
    assert set(shop.outcomes) == set(TITLES)
    assert {outcome.state for outcome in shop.outcomes.values()} <= {ShotState.PUBLISHED, ShotState.HELD}
    assert all(bool(shop.failing(sku)) == (one.state is ShotState.HELD) for sku, one in shop.outcomes.items())


def test_what_stands_is_published_on_its_shadow(shop: Shop) -> None:
    """The check of the final image has the backdrop of the step before."""
    for sku, outcome in shop.outcomes.items():
        if outcome.state is ShotState.PUBLISHED:
            (contact,) = [v for v in shop.steps[sku]["inspect"].verdicts if v.check == "contact"]
            assert contact.passed
            assert contact.score > 0.2


@pytest.mark.parametrize(
    ("sku", "check"),
    [
        ("32-text-banner", "product_photo"),
        ("31-six-products", "single_product"),
        ("16-shoe-painted-checkerboard", "checkerboard"),
        ("17-glass-semitransparent", "see_through"),
    ],
)
def test_what_cannot_be_right_is_held_with_the_reason(shop: Shop, sku: str, check: str) -> None:
    assert check in shop.failing(sku)
    assert shop.outcomes[sku].picture is None
    assert shop.outcomes[sku].reason


def _published(shop: Shop, sku: str) -> bool:
    """Whether it is published: what is held cannot be wrong in a shop."""
    return shop.outcomes[sku].state is ShotState.PUBLISHED


@pytest.mark.parametrize("sku", ["03-can-palette-adobergb", "38-can-gimp-linear-srgb"])
def test_a_can_with_a_profile_is_published_in_its_own_yellow(shop: Shop, sku: str) -> None:
    reference, can = (shop.cutout(of).astype(float) for of in ("00-ref-can", sku))
    yellow = (reference[..., 3] > 250) & (reference[..., 0] > 200) & (reference[..., 1] > 150) & (can[..., 3] > 250)
    difference = can[yellow, :3].mean(axis=0) - reference[yellow, :3].mean(axis=0)
    assert not _published(shop, sku) or np.abs(difference).max() <= 2


def test_a_ring_is_published_with_its_hole(shop: Shop) -> None:
    area = (shop.cutout("39-ring")[..., 3] >= 128).mean()
    assert not _published(shop, "39-ring") or abs(area - 0.138) <= 0.01


def test_a_notebook_whose_alpha_fills_the_photo_is_published_whole(shop: Shop) -> None:
    sku = "19-notebook-fills-frame-rgba"
    side = shop.cutout(sku).shape[0]
    assert not _published(shop, sku) or shop.steps[sku]["cutout"].facts["box"] == [0, 0, side, side]


@pytest.mark.parametrize("sku", ["59-bad-crc-ancillary", "60-ztxt-3MB"])
def test_ancillary_chunks_decide_nothing(shop: Shop, sku: str) -> None:
    assert "cutout" in shop.steps[sku]
    assert shop.steps[sku]["cutout"].outputs
