"""Additional photos through the operators: planned, published, fed, rolled back and withdrawn, each one by itself."""

from __future__ import annotations

import csv
import io
import itertools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from sqlalchemy import text

from operators.plan import PlanCampaignOperator, PlanRefreshOperator
from operators.publish import PublishOperator, SummaryOperator
from pipelines.contracts import Job, Product, Shot, sha256_hex
from pipelines.errors import Rejected
from pipelines.ledger.decisions import roll_back
from pipelines.ledger.postgres import PostgresLedger
from pipelines.ledger.reports import Report, lineage, report
from pipelines.ledger.shown import current_image, shown_images
from pipelines.quality.likeness import find_twins
from pipelines.runs.channel_feed import channel_feed
from pipelines.scenes import load_scene
from pipelines.scenes.channels import ChannelFeed
from pipelines.settings import get_settings
from pipelines.stages import keys
from pipelines.workflow import Recipe, Stage, run_stage
from tests.operators.test_differences import STAGES

GALLERY = "name: gallery\ntitle: Gallery\nprompt: a photo\nadditional_photos: all\nchannel: google-merchant\n"
SINGLE = "name: single\ntitle: Single\nprompt: a photo\nchannel: google-merchant\n"
CHANNEL = "google-merchant"
BASE = "https://img.shop.example/public"
_shops = itertools.count(1)


def cutout_job(shot: Shot, upstream: Any, recipe: Recipe, candidate: int) -> Job:
    photo = shot.product.photo
    problem = {} if photo else {"problem": shot.product.photo_problem}
    return Job("cutout", 1, {"photo": photo} if photo else {}, {"title": shot.product.title, **problem})


def cut_out(works: Any, models: Any, recipe: Recipe) -> Any:
    """As the real stage: a photo that is not there is a rejection with the reason."""
    return [
        Rejected(work.job.parameters["problem"])
        if "problem" in work.job.parameters
        else STAGES["cutout"].compute([work], models, recipe)[0]
        for work in works
    ]


class Shop:
    """A shop with a feed in a file, and the photos beside it."""

    def __init__(self, folder: Path, ledger: PostgresLedger, store: Any, context: dict[str, Any]):
        self.folder, self.ledger, self.store, self.context = folder, ledger, store, context
        self.name = f"gallery-{next(_shops)}"
        self.nights = itertools.count(1)
        self.rows: dict[str, list[str]] = {"CUP": [], "POT": ["pot-2"], "JUG": ["jug-2", "none", "jug-4"]}
        for number, name in enumerate(("cup", "pot", "pot-2", "jug", "jug-2", "jug-4")):
            Image.new("RGB", (8, 8), (number, 7 * next(_colours) % 256, 90)).save(folder / f"{name}.png")

    def sku(self, name: str) -> str:
        return f"{self.name}-{name}"

    def feed(self) -> str:
        lines = ["id\ttitle\timage_link\tadditional_image_link"]
        for name, more in self.rows.items():
            links = ",".join(f"{one}.png" for one in more)
            lines.append(f"{self.sku(name)}\t{name}\t{name.lower()}.png\t{links}")
        path = self.folder / f"{self.name}.tsv"
        path.write_text("\n".join(lines) + "\n")
        return str(path)

    def plan(self, scene: str, **about: Any) -> tuple[str, list[Shot]]:
        """Id and shots of a planned run."""
        run = f"{self.name}-night-{next(self.nights)}"
        about = {
            "feed": self.feed(), "categories": [], "skus": [], "limit": None, "reprocess": "missing", "channels": [],
            "accept_loss": False,
        } | about  # fmt: skip
        plan = PlanRefreshOperator(task_id="plan", run=run, scene=scene, triggered_by="test", **about)
        shards = plan.execute(self.context)
        return run, [shot for shard in shards for shot in self.ledger.shots(run, shard)]

    def night(self, scene: str = "gallery", **about: Any) -> Report:
        """One whole run; its report."""
        run, shots = self.plan(scene, **about)
        recipe = Recipe(None, load_scene(scene))  # type: ignore[arg-type]  # these stages read nothing of it
        for name in list(keys.STAGES)[:-1]:
            run_stage(keys.STAGES[name], run, shots, recipe, self.ledger, self.store)
        PublishOperator(task_id="publish", run=run, scene=scene, channel="", reprocess="missing").execute(self.context)
        SummaryOperator(task_id="summary", run=run, checks=[]).execute(self.context)
        return report(self.ledger.engine, run)

    def links(self, kind: str = "tsv") -> dict[str, list[str]]:
        """Product → names of what its links show, by the channel's feed as it is now."""
        document = self.document(kind)
        found = {}
        for line in document.splitlines():
            if self.name not in line:
                continue
            sku = line.split("\t")[0] if kind == "tsv" else line.split("<g:id>")[1].split("<")[0]
            parts = (
                line.split("\t")[1].split(",")
                if kind == "tsv"
                else re.findall(r"<g:additional_image_link>([^<]+)<", line)
            )
            found[sku.removeprefix(f"{self.name}-")] = [self._shown(part) for part in parts]
        return found

    def document(self, kind: str = "tsv") -> str:
        feed = ChannelFeed(format=kind, attribute="additional_image_link" if kind == "xml" else "lifestyle_image_link")
        images = shown_images(self.ledger.engine, CHANNEL)
        return b"".join(channel_feed(images, CHANNEL, feed, BASE)).decode()

    def _shown(self, link: str) -> str:
        address, _, version = link.partition("?v=")
        scene, sku = address.removeprefix(f"{BASE}/{CHANNEL}/").split("/")
        digest, _ = current_image(self.ledger.engine, CHANNEL, scene, sku)
        assert digest.startswith(version)
        return sku.removeprefix(f"{self.name}-")


_colours = itertools.count(1)


@pytest.fixture
def shop(tmp_path, ledger, store, settings, context, monkeypatch) -> Iterator[Shop]:
    (tmp_path / "scenes").mkdir()
    (tmp_path / "scenes/gallery.yaml").write_text(GALLERY)
    (tmp_path / "scenes/single.yaml").write_text(SINGLE)
    monkeypatch.setenv("PACKSHOT_SCENES_DIR", str(tmp_path / "scenes"))
    get_settings.cache_clear()
    cutout = Stage("cutout", 1, (), cutout_job, lambda recipe: None, cut_out)
    monkeypatch.setattr(keys, "STAGES", {**STAGES, "cutout": cutout})
    monkeypatch.setattr(keys, "fingerprint", lambda recipe: sha256_hex(recipe.scene.name.encode()))
    yield Shop(tmp_path, ledger, store, context)
    monkeypatch.undo()
    get_settings.cache_clear()


ALL = {"CUP": ["CUP"], "POT": ["POT", "POT~2"], "JUG": ["JUG", "JUG~2", "JUG~4"]}


def test_each_photo_is_published_by_itself_and_a_broken_one_costs_its_own_shot(shop: Shop) -> None:
    found = shop.night()
    states = {shot.sku.removeprefix(f"{shop.name}-"): shot.state.value for shot in found.shots}
    assert states == {
        "CUP": "published", "POT": "published", "POT~2": "published", "JUG": "published", "JUG~2": "published",
        "JUG~3": "rejected", "JUG~4": "published",
    }  # fmt: skip
    assert list(states)[-4:] == ["JUG", "JUG~2", "JUG~3", "JUG~4"], "in the order of the feed"
    [bad] = [shot for shot in found.shots if shot.state.value == "rejected"]
    assert (bad.product, bad.photo_number, bad.row) == (shop.sku("JUG"), 3, 4)
    assert "none.png is not there" in bad.reason

    assert shop.links("tsv") == ALL
    assert shop.links("xml") == ALL
    assert f"{BASE}/{CHANNEL}/gallery/{shop.sku('JUG')}~2?v=" in shop.document()

    rows = list(csv.DictReader(io.StringIO(shop.store.get(found.documents["feed"]).decode())))
    assert [row["id"] for row in rows] == [shop.sku(name) for name in shop.rows]
    assert [len(row["additional_image_link"].split(",")) for row in rows[1:]] == [1, 2]
    traced = lineage(shop.ledger.engine, shop.sku("JUG~2"))
    assert traced.photo == sha256_hex((shop.folder / "jug-2.png").read_bytes())
    assert lineage(shop.ledger.engine, shop.sku("JUG")).photo == sha256_hex((shop.folder / "jug.png").read_bytes())


def test_the_next_night_computes_nothing_and_a_photo_that_left_is_withdrawn_alone(shop: Shop) -> None:
    shop.night()
    before = shop.document()
    again = shop.night()
    assert {count.computed for count in again.steps.values()} == {0}
    assert shop.document() == before

    shop.rows["JUG"] = ["jug-2", "none"]
    found = shop.night()
    assert {count.computed for count in found.steps.values()} == {0}, "the other photos are what they were"
    assert shop.links() == ALL | {"JUG": ["JUG", "JUG~2"]}
    shop.rows["JUG"] = ["jug-2", "none", "jug-4"]
    found = shop.night()
    assert {count.computed for count in found.steps.values()} == {0}
    assert shop.document() == before, "it is back, and nothing was computed for it"


def test_one_photo_is_rolled_back_and_the_others_stay(shop: Shop) -> None:
    shop.night()
    with shop.ledger.engine.connect() as connection:
        query = "SELECT p.id FROM publications p JOIN shots s ON s.id = p.shot WHERE s.sku = :sku"
        number = connection.scalar(text(query), {"sku": shop.sku("POT~2")})
    assert roll_back(shop.ledger.engine, "ada", "too dark", f"b-{shop.name}", [number]) == 1
    assert shop.links() == ALL | {"POT": ["POT"]}


def test_a_scene_that_does_not_ask_shows_the_main_photos_and_leaves_the_others_alone(shop: Shop) -> None:
    shop.night()
    found = shop.night("single")
    assert [shot.sku for shot in found.shots] == [shop.sku(name) for name in shop.rows]
    assert "additional_image_link" not in shop.store.get(found.documents["feed"]).decode()
    assert shop.links()["JUG"] == ["JUG", "JUG", "JUG~2", "JUG~4"], "main photo in both scenes, then the others"

    del shop.rows["JUG"]  # a reading that looks for no additional photos: they leave with their product
    with pytest.raises(Exception, match="lost 1 of its 3 products"):
        shop.night("single")
    shop.night("single", accept_loss=True)
    assert shop.links() == {"CUP": ["CUP", "CUP"], "POT": ["POT", "POT", "POT~2"]}


def test_limit_skus_and_campaigns_take_a_product_with_its_photos(shop: Shop) -> None:
    def names(run: str) -> list[str]:
        shots = [shot for _, some in shop.ledger.to_look_at(run) for shot in some]
        return [shot.sku.removeprefix(f"{shop.name}-") for shot in shots]

    assert names(shop.plan("gallery", limit=2)[0]) == ["CUP", "POT", "POT~2"]
    assert names(shop.plan("gallery", skus=[shop.sku("JUG")])[0]) == ["JUG", "JUG~2", "JUG~3", "JUG~4"]
    assert names(shop.plan("gallery", skus=[shop.sku("JUG~4")])[0]) == ["JUG~4"]
    for scene, wanted in (("gallery", ["POT", "POT~2"]), ("single", ["POT"])):
        run = f"{shop.name}-campaign-{scene}"
        PlanCampaignOperator(
            task_id="plan", run=run, scene=scene, day="", skus=[shop.sku("POT")], categories=[], limit=None,
            reprocess="missing", channels=[], triggered_by="test",
        ).execute(shop.context)  # fmt: skip
        assert names(run) == wanted


def test_photos_of_one_product_are_no_twins() -> None:
    code = "A" * 256
    main, other = Product("JUG", 2, "Jug", "", "a"), Product("POT", 3, "Pot", "", "b")
    second = Product("JUG~2", 2, "Jug of blue glass", "", "c", photo_of="JUG", photo_number=2)
    assert find_twins([(main, code), (second, code)]) == []
    assert find_twins([(main, code), (other, code)]) == [("JUG", "POT")]
