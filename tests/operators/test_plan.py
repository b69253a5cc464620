"""What a run works on."""

from __future__ import annotations

import io
from datetime import UTC, datetime
from pathlib import Path
from shutil import copytree
from typing import Any

import pytest
from PIL import Image

from benchmarks.photos import counted, photo_server, write_feed
from operators.base import PROBLEM
from operators.plan import PlanCampaignOperator, PlanRefreshOperator, choose
from operators.policy import TICK
from pipelines.catalogue.feed import ingest
from pipelines.catalogue.manifest import Line
from pipelines.contracts import Job, Product, ShotStep, State, Step
from pipelines.errors import UsageError
from pipelines.ledger.postgres import PostgresLedger
from pipelines.ledger.reports import report
from pipelines.scenes import scene_names

SCENE = scene_names()[0]
ROWS = [
    ("CUP-1", "Cup", "Home > Kitchen > Cups"),
    ("POT-2", "Pot", "Home > Kitchen"),
    ("LAMP-3", "Lamp", "Home > Lighting"),
    ("SHOE-4", "Shoe", "Apparel > Shoes"),
    ("BOOK-5", "Book", "Media"),
]
MAY_1, MAY_2 = datetime(2026, 5, 1, 9, tzinfo=UTC), datetime(2026, 5, 2, 9, tzinfo=UTC)


@pytest.fixture(scope="module")
def feed(tmp_path_factory) -> Path:
    """A catalogue file with five products and their photos."""
    folder = tmp_path_factory.mktemp("feed")
    lines = ["id,title,product_type,image_link"]
    for number, (sku, title, category) in enumerate(ROWS):
        out = io.BytesIO()
        Image.new("RGB", (64, 64), (number * 40, 90, 120)).save(out, "PNG")
        (folder / f"{sku}.png").write_bytes(out.getvalue())
        lines.append(f"{sku},{title},{category},{sku}.png")
    path = folder / "catalog.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture(autouse=True)
def small_shards(settings, store, monkeypatch) -> None:
    from pipelines.settings import get_settings

    monkeypatch.setenv("PACKSHOT_SHARD_SIZE", "2")
    get_settings.cache_clear()
    yield
    get_settings.cache_clear()


def refresh(run: str, context: dict[str, Any], **about: Any) -> list[int]:
    about = (
        {
            "accept_loss": False,
            "feed": "",
            "scene": SCENE,
            "categories": [],
            "skus": [],
            "limit": None,
            "reprocess": "missing",
        }
        | {"channels": []}
        | about
    )
    context["params"] |= {name: about[name] for name in ("feed", "limit")}
    return PlanRefreshOperator(task_id="plan", run=run, triggered_by="test", **about).execute(context)


def campaign(run: str, context: dict[str, Any], **about: Any) -> list[int]:
    context["dag"].dag_id = "campaign_backfill"
    about = (
        {"day": "", "scene": SCENE, "categories": [], "skus": [], "limit": None, "reprocess": "missing"}
        | {"channels": []}
        | about
    )
    return PlanCampaignOperator(task_id="plan", run=run, triggered_by="test", **about).execute(context)


def selected(ledger: PostgresLedger, run: str) -> list[str]:
    return [shot.sku for shot in ledger.shots(run)]


def test_without_any_feed_read_before_the_remedy_is_named(context, ledger) -> None:
    with pytest.raises(UsageError, match="packshot run CATALOG"):
        refresh("r-none", context)


@pytest.mark.parametrize(
    ("key", "said"), [("sku", "no parameter 'sku': is it 'skus'"), ("x", "no parameter 'x': it has categories, feed")]
)
def test_a_run_that_was_told_something_unknown_selects_nothing(context, ledger, feed, key, said) -> None:
    context["dag_run"].conf = {"feed": str(feed), "triggered_by": "a test", key: ["CUP-1"]}
    with pytest.raises(UsageError, match=said):
        refresh(f"r-unknown-{key}", context, feed=str(feed))
    assert selected(ledger, f"r-unknown-{key}") == []
    found = report(ledger.engine, f"r-unknown-{key}")
    assert found.state == "failed"
    assert said in found.problem["reason"]


def test_a_file_becomes_shards_of_shots_in_feed_order(context, ledger, feed) -> None:
    assert refresh("r-file", context, feed=str(feed)) == [0, 1, 2]
    assert selected(ledger, "r-file") == [sku for sku, _, _ in ROWS]
    assert [shot.sku for shot in ledger.shots("r-file", 1)] == ["LAMP-3", "SHOE-4"]
    found = report(ledger.engine, "r-file")
    assert (found.scene, found.dag_id, found.products) == (SCENE, "catalog_refresh", 5)
    assert found.params["asked"] == "by a test"


def test_a_plan_that_is_tried_again_goes_on_and_the_next_run_asks_what_changed(context, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("PACKSHOT_ALLOW_PRIVATE_LINKS", "true")
    with photo_server(latency=0) as server:
        feed = write_feed(tmp_path, server, 20)
        context["dag_run"].start_date = datetime.now(UTC)
        refresh("r-links", context, feed=str(feed))
        assert counted(server).sent == 20
        refresh("r-links", context, feed=str(feed))
        assert counted(server).requests == 20
        context["dag_run"].start_date = datetime.now(UTC)
        refresh("r-links-night", context, feed=str(feed))
        assert (counted(server).conditional, counted(server).sent) == (20, 20)


def test_an_empty_feed_means_the_one_that_was_named_last_read_again(context, ledger, feed, tmp_path) -> None:
    shop = Path(copytree(feed.parent, tmp_path / "shop")) / feed.name
    refresh("r-before", context, feed=f"{shop} ")  # as pasted into the form
    assert refresh("r-again", context) == [0, 1, 2]
    shop.write_text(shop.read_text() + "NEW-6,Vase,Home,CUP-1.png\n")
    refresh("r-night", context)
    assert selected(ledger, "r-night")[-1] == "NEW-6"
    refresh("r-night-after", context)  # the run before it named no feed itself
    assert selected(ledger, "r-night-after")[-1] == "NEW-6"


def test_a_run_that_is_planned_again_keeps_the_feed_that_it_had(context, ledger, feed, tmp_path) -> None:
    refresh("r-shop", context, feed=str(feed))
    refresh("r-nightly", context)
    other = Path(copytree(feed.parent, tmp_path / "other")) / feed.name
    other.write_text("id,title,product_type,image_link\nCUP-1,Cup,Home,CUP-1.png\n")
    refresh("r-other", context, feed=str(other), accept_loss=True)
    refresh("r-nightly", context)
    assert len(selected(ledger, "r-nightly")) == len(ROWS)


def test_a_part_of_a_catalogue_is_not_taken_for_the_shops_feed(context, ledger, store, settings, feed) -> None:
    whole, part = ingest(feed, store, settings), ingest(feed, store, settings, limit=2)
    refresh("r-whole", context, feed=whole)
    refresh("r-part", context, feed=part, limit=2)
    refresh("r-after-part", context)
    assert len(selected(ledger, "r-after-part")) == len(ROWS)


def test_planning_the_same_run_again_replaces_its_selection(context, ledger, feed) -> None:
    refresh("r-twice", context, feed=str(feed))
    assert refresh("r-twice", context, feed=str(feed), limit=1) == [0]
    assert selected(ledger, "r-twice") == ["CUP-1"]


def test_selections_arrive_as_the_text_that_templates_render(context, ledger, feed) -> None:
    about = {"categories": '["home > kitchen"]', "skus": "[]", "limit": "1"}
    refresh("r-text", context, feed=str(feed), **about)
    assert selected(ledger, "r-text") == ["CUP-1"]


def test_what_a_form_sends_for_empty_fields_and_lines_means_all(context, ledger, feed) -> None:
    assert refresh("r-nulls", context, feed=str(feed), categories="null", skus='[""]') == [0, 1, 2]
    refresh("r-lines", context, feed=str(feed), categories="null", skus='["", " CUP-1 ", "BOOK-5", ""]')
    assert selected(ledger, "r-lines") == ["CUP-1", "BOOK-5"]


def test_nothing_selected_is_no_error(context, ledger, feed) -> None:
    assert refresh("r-nothing", context, feed=str(feed), skus=["NO-SUCH"]) == []


def test_an_unknown_scene_names_those_there_are(context, feed) -> None:
    with pytest.raises(UsageError, match=SCENE):
        refresh("r-scene", context, feed=str(feed), scene="no-such-scene")


@pytest.mark.parametrize(
    ("categories", "skus", "expected"),
    [
        ([], [], ["CUP-1", "POT-2", "LAMP-3", "SHOE-4", "BOOK-5"]),
        (["Home > Kitchen"], [], ["CUP-1", "POT-2"]),
        (["home>kitchen > cups", "Media"], [], ["CUP-1", "BOOK-5"]),
        (["Home > Kit"], [], []),
        ([], ["BOOK-5", "CUP-1"], ["CUP-1", "BOOK-5"]),
        (["Home"], ["BOOK-5", "CUP-1"], ["CUP-1"]),
    ],
)
def test_a_category_holds_those_below_it(categories, skus, expected) -> None:
    products = [Product(sku, row, title, category, None) for row, (sku, title, category) in enumerate(ROWS)]
    assert [line.sku for line in choose(map(Line.of, products), categories, skus)] == expected


def test_reprocess_failed_takes_only_what_did_not_end_as_an_image(context, ledger, feed) -> None:
    refresh("r-first", context, feed=str(feed), limit=2)
    bad, good = ledger.shots("r-first")
    for shot, state, reason in ((bad, State.REJECTED, "no product in the photo"), (good, State.DONE, "")):
        job = Job("cutout", 1, {"photo": shot.product.photo}, {"for": "this test"})
        ledger.use("r-first", [(shot, [ShotStep(ledger.record(Step(job.key, job, state, reason=reason)), False)])])
    ledger.settle("r-first")
    assert refresh("r-failed", context, feed=str(feed), reprocess="failed") == [0]
    assert selected(ledger, "r-failed") == ["CUP-1"]
    [again] = ledger.shots("r-failed")
    job = Job("cutout", 1, {"photo": again.product.photo}, {"for": "this test, again"})
    ledger.use("r-failed", [(again, [ShotStep(ledger.record(Step(job.key, job, State.DONE)), False)])])
    ledger.settle("r-failed")
    refresh("r-failed-later", context, feed=str(feed), reprocess="missing", limit=1)
    ledger.use("r-failed-later", [(again, [ShotStep(ledger.record(Step(job.key, job, State.DONE)), True)])])
    ledger.settle("r-failed-later")
    refresh("r-failed", context, feed=str(feed), reprocess="failed")  # its plan was cleared
    assert selected(ledger, "r-failed") == ["CUP-1"]


def test_a_campaigns_day_covers_what_was_new_or_changed_on_it(context, ledger) -> None:
    first = [Product(f"DAY-{n}", n, "A", "Days", None, "none") for n in (1, 2)]
    ledger.upsert_products(first, now=MAY_1)
    ledger.upsert_products([Product("DAY-2", 2, "Changed", "Days", None, "none")], now=MAY_2)
    campaign("c-1", context, day="2026-05-01", categories=["Days"])
    campaign("c-2", context, day="2026-05-02", categories=["Days"])
    campaign("c-3", context, day="2026-05-03", categories=["Days"])
    assert selected(ledger, "c-1") == ["DAY-1", "DAY-2"]
    assert selected(ledger, "c-2") == ["DAY-2"]
    assert selected(ledger, "c-3") == []
    assert [shot.product.title for shot in ledger.shots("c-1")] == ["A", "Changed"], "a product is as it is now"


def test_a_campaign_over_named_products_takes_them_whatever_the_day(context, ledger) -> None:
    ledger.upsert_products([Product("NAMED-1", 1, "A", "Named", None, "none")], now=MAY_1)
    campaign("c-named", context, day="2026-06-30", skus=["NAMED-1"])
    assert selected(ledger, "c-named") == ["NAMED-1"]


def test_a_campaign_in_no_scene_makes_nothing_and_its_report_names_the_tick(context, ledger) -> None:
    ledger.upsert_products([Product("TICK-1", 1, "A", "Tick", None, "none")], now=MAY_1)
    with pytest.raises(UsageError, match=f"'{TICK}'") as error:
        campaign("c-tick", context, scene="", skus=["TICK-1"])
    assert "\n" not in str(error.value)
    assert selected(ledger, "c-tick") == []
    found = report(ledger.engine, "c-tick")
    assert (found.state, found.dag_id, found.products) == ("failed", "campaign_backfill", 0)
    assert found.problem == {"reason": str(error.value)} == context["ti"].pushed[PROBLEM]


def test_a_plan_that_fails_when_it_is_cleared_keeps_what_its_run_made(context, ledger, feed, tmp_path) -> None:
    shop = Path(copytree(feed.parent, tmp_path / "shop")) / feed.name
    refresh("r-kept", context, feed=str(shop))
    shop.unlink()
    with pytest.raises(UsageError):
        refresh("r-kept", context, feed=str(shop))
    assert selected(ledger, "r-kept") == [sku for sku, _, _ in ROWS]
    found = report(ledger.engine, "r-kept")
    assert (found.state, found.scene) == ("failed", SCENE)
    assert shop.name in found.problem["reason"]


def test_a_feed_that_could_not_be_read_is_not_the_one_that_was_named_last(context, ledger, feed, tmp_path) -> None:
    refresh("r-good", context, feed=str(feed))
    with pytest.raises(UsageError):
        refresh("r-typing-error", context, feed=str(tmp_path / "no-such.csv"))
    refresh("r-later", context)
    assert len(selected(ledger, "r-later")) == len(ROWS)


def test_a_partition_that_is_no_day_is_refused(context) -> None:
    with pytest.raises(UsageError, match="YYYY-MM-DD"):
        campaign("c-odd", context, day="2026-05")
