"""What a channel shows: its rules, its feed, and products that leave the shop's feed."""

from __future__ import annotations

import io
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from threading import Barrier

import c2pa
import pytest
from airflow.sdk.exceptions import AirflowFailException, AirflowSkipException, DagRunTriggerException
from sqlalchemy import text

from operators.base import Services
from operators.channels import NextChannelOperator
from operators.plan import PlanRefreshOperator
from operators.publish import PublishOperator
from operators.reviewed import PlanRetriesOperator, PublishApprovedOperator
from pipelines.contracts import ShotStep, run_of_channel
from pipelines.errors import UsageError
from pipelines.ledger.decisions import Choice, decide, held_image, roll_back, undo
from pipelines.ledger.endings import note_failure
from pipelines.ledger.reports import feed_for, report
from pipelines.ledger.shown import current_image, shown_images
from pipelines.ledger.waves import next_wave
from pipelines.runs.channel_feed import channel_feed
from pipelines.scenes.channels import load_channel
from pipelines.settings import get_settings
from pipelines.workflow import StageSummary, run_stage
from tests.certificates import Files, write_certificates
from tests.operators import test_differences
from tests.operators.test_differences import SCENE, STAGES, Shop
from tests.operators.test_publish import HELD, Catalogue, approve

NOW = datetime.now(UTC)
shop = test_differences.shop
MERCHANT = load_channel("google-merchant")


def feed_of(catalogue: Catalogue) -> bytes:
    """The feed of Google Merchant as it is now."""
    shown = shown_images(catalogue.ledger.engine, MERCHANT.name)
    return b"".join(channel_feed(shown, MERCHANT.name, MERCHANT.feed, "https://img.shop.example/packshot/public"))


def act() -> PublishApprovedOperator:
    return PublishApprovedOperator(task_id="publish", run="the DAG's own", grace_seconds=0)


@pytest.fixture
def merchant(ledger, store, damage) -> Catalogue:
    return Catalogue(ledger, store, damage, MERCHANT.name)


def test_an_image_that_breaks_a_rule_of_its_channel_is_rejected_with_the_rule_and_the_others_are_published(
    ledger, store, damage, context
) -> None:
    run = Catalogue(ledger, store, damage, "social-square").open("cup", "pot", "jug")
    cup, pot, jug = run.shots
    run.inspected(cup, side=1080, margin=100)
    run.inspected(pot, side=1080, margin=20)
    run.inspected(jug, HELD, side=1000, margin=100)
    assert run.publish(context)["images"] == 1
    run.summary(context)
    assert run.outcomes() == {"cup": "published", "pot": "rejected", "jug": "held"}
    reasons = {shot.sku: shot.reason for shot in report(ledger.engine, run.run).shots}
    assert reasons[pot.sku] == (
        "channel social-square: the product is 1.9% of the frame's shorter side away from the edge, "
        "and 5% or more are required"
    )

    approve(run, run.run, jug.sku)  # nobody's word changes a rule
    with pytest.raises(AirflowFailException, match="1000×1000 px, and 1080×1080 or more are required"):
        act().execute(context)
    assert run.outcomes()["jug"] == "rejected"
    assert act().execute(context) == {"images": 0}, "it is not tried for ever"


def test_what_is_sent_back_is_generated_again_for_its_channel(merchant, context) -> None:
    (cup,) = merchant.open("cup").shots
    merchant.inspected(cup, HELD)
    merchant.ledger.finish_run(merchant.run, "success")
    decide(merchant.ledger.engine, held_image(merchant.ledger.engine, merchant.run, cup.sku), Choice.RETRY, "ada")
    [again] = PlanRetriesOperator(task_id="plan_retries", run="the DAG's own", grace_seconds=0).execute(context)
    assert again["conf"]["channels"] == [MERCHANT.name]


def test_a_roll_back_and_an_undo_restore_the_feed_byte_for_byte(merchant, context, ledger, store, damage) -> None:
    cup, pot = merchant.open("cup", "pot").shots
    for shot in (cup, pot):
        merchant.inspected(shot)
    merchant.publish(context)
    merchant.summary(context)
    before = feed_of(merchant)
    link = f"https://img.shop.example/packshot/public/google-merchant/{SCENE.name}/{cup.sku}"
    assert f"{cup.sku}\t{link}?v=".encode() in before

    later = Catalogue(ledger, store, damage, MERCHANT.name)
    later.shots = merchant.shots
    later.ledger.start_run(later.run, "catalog_refresh", SCENE.name, MERCHANT.name)
    later.ledger.select(later.run, later.shots, 8)
    later.inspected(cup)
    later.inspected(pot, HELD)
    later.publish(context)
    later.summary(context)
    changed = feed_of(merchant)
    assert changed != before
    assert link.encode() in changed, "the address is the same"

    decision = approve(later, later.run, pot.sku)
    act().execute(context)
    assert feed_of(merchant) not in (before, changed)
    undo(ledger.engine, decision.id, "ada")
    assert feed_of(merchant) == changed

    assert cup.sku in run_feed(later)
    roll_back(ledger.engine, "ada", "too dark", "b-feed", run=later.run)
    assert feed_of(merchant) == before
    digest, media_type = current_image(ledger.engine, MERCHANT.name, SCENE.name, cup.sku)
    assert (media_type, store.has(digest)) == ("image/jpeg", True)
    act().execute(context)
    assert cup.sku not in run_feed(later), "the run's own feed does not name what was taken back"
    assert cup.sku in run_feed(merchant)


# ------------------------------------------------------------------------------------------------- signed files


@pytest.fixture
def signing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings) -> Iterator[Files]:
    """The files of a shop that signs what it publishes."""
    files = write_certificates(tmp_path)
    for name, value in files.variables().items():
        monkeypatch.setenv(name, value)
    get_settings.cache_clear()
    yield files
    monkeypatch.undo()
    get_settings.cache_clear()


def test_an_image_is_signed_once_and_again_under_another_certificate(
    merchant, context, ledger, store, damage, signing
) -> None:
    (cup,) = merchant.open("cup").shots
    merchant.inspected(cup)
    merchant.publish(context)
    first, media_type = current_image(ledger.engine, MERCHANT.name, SCENE.name, cup.sku)
    with c2pa.Context.from_dict({"trust": {"trust_anchors": signing.root.read_text()}}) as trusting:
        signed = c2pa.Reader(media_type, io.BytesIO(store.get(first)), context=trusting)
    assert signed.get_validation_state() == "Trusted"

    def next_night() -> None:
        later = Catalogue(ledger, store, damage, MERCHANT.name)
        ledger.start_run(later.run, "catalog_refresh", SCENE.name, MERCHANT.name)
        ledger.select(later.run, [cup], 8)
        found = [step for name, step in ledger.chosen(merchant.run, [cup])[cup.sku].items() if name != "publish"]
        ledger.use(later.run, [(cup, [ShotStep(step, reused=True) for step in found])])
        later.publish(context)

    next_night()
    assert current_image(ledger.engine, MERCHANT.name, SCENE.name, cup.sku) == (first, media_type)
    write_certificates(signing.key.parent)
    next_night()
    assert current_image(ledger.engine, MERCHANT.name, SCENE.name, cup.sku) != (first, media_type)


def test_a_key_that_cannot_be_read_stops_a_run_at_its_start_and_costs_no_shot(shop: Shop, signing) -> None:
    signing.key.unlink()
    with pytest.raises(UsageError, match=r"^PACKSHOT_C2PA_KEY: the file cannot be read"):
        shop.night()
    assert report(shop.ledger.engine, f"{shop.name}-night-1").problem["reason"].startswith("PACKSHOT_C2PA_KEY")
    assert shop.looked_at == 0


def run_feed(run: Catalogue) -> str:
    return run.store.get(report(run.ledger.engine, run.run).documents["feed"]).decode()


# ------------------------------------------------------------------------------------------- a run for several


def next_channel(run: str, context: dict, channels: list[str], **about: object) -> DagRunTriggerException:
    """What the task `next_channel` of a run asks Airflow for."""
    about = {"day": "", "triggered_by": "ada", "forecast_only": False} | about
    task = NextChannelOperator(task_id="next_channel", run=run, channels=channels, **about)
    with pytest.raises(DagRunTriggerException) as asked:
        task.execute(context)
    return asked.value


def plan(shop: Shop, run: str, channels: list[str], reprocess: str = "missing") -> None:
    """The task `plan` of a refresh of the shop's feed."""
    PlanRefreshOperator(
        task_id="plan", run=run, scene=SCENE.name, feed=shop.manifest(), channels=channels, categories=[], skus=[],
        limit=None, reprocess=reprocess, accept_loss=False, triggered_by="ada",
    ).execute(shop.context)  # fmt: skip


def test_each_run_starts_the_next_channels_over_what_the_first_one_read(shop: Shop, context) -> None:
    channels = [MERCHANT.name, "shopify", "social-square"]
    context["params"] = {"feed": "https://shop.example/feed.csv", "channels": channels, "limit": None}
    first = shop.night(channels=channels)
    asked = next_channel(first.run, context, channels)
    assert (asked.trigger_dag_id, asked.dag_run_id) == ("catalog_refresh", f"channel__shopify__{first.run}")
    assert (
        asked.conf
        == {
            "feed": shop.manifest(),  # not read a second time
            "channels": channels[1:],
            "limit": None,
            "group": first.run,
            "triggered_by": "ada",
        }
    )
    context["params"] = asked.conf
    plan(shop, asked.dag_run_id, channels[1:])
    third = next_channel(asked.dag_run_id, context, channels[1:])
    assert third.dag_run_id == f"channel__social-square__{first.run}"
    assert third.conf["group"] == first.run
    with pytest.raises(AirflowSkipException, match="no further channel"):
        next_channel(third.dag_run_id, context, channels[2:])
    with pytest.raises(AirflowSkipException):
        next_channel(first.run, context, channels, forecast_only=True)

    for run in (first.run, asked.dag_run_id):
        found = report(shop.ledger.engine, run)
        assert found.group == first.run
        assert [(one.channel, one.run) for one in found.channels] == [
            (MERCHANT.name, first.run),
            ("shopify", asked.dag_run_id),
        ]
    context["params"] = {}
    alone = report(shop.ledger.engine, shop.night().run)
    assert (alone.group, alone.channels) == ("", ())
    assert feed_for(shop.ledger.engine, "tomorrow") == "https://shop.example/feed.csv", "an address is read again"


def test_channels_that_were_not_started_fail_the_run_and_are_named(shop: Shop, context) -> None:
    shop.further = ["shopify", MERCHANT.name]
    why = "task next_channel failed (Unavailable: Airflow is away); mend it, then clear the task"
    run = f"{shop.name}-alone"
    context["ti"].states = {"next_channel": "success"}
    shop.night(run)
    plan(shop, run, [])  # and what is downstream of it
    note_failure(shop.ledger.engine, run, "catalog_refresh", why, {})
    context["ti"].states = {"next_channel": "failed"}
    with pytest.raises(AirflowFailException, match="the runs for shopify, google-merchant were not started"):
        shop.finish(run)
    found = report(shop.ledger.engine, run)
    assert (found.state, found.published) == ("failed", 2)
    assert found.problem["reason"].startswith("the runs for shopify, google-merchant were not started: task next_ch")
    assert "mend it, then clear the task" in found.problem["reason"]

    context["ti"].states = {"next_channel": "success"}
    shop.finish(run)
    assert report(shop.ledger.engine, run).state == "success"


def test_a_channel_in_waves_is_one_of_its_group(shop: Shop) -> None:
    first = shop.night().run
    further = run_of_channel(first, "shopify")
    for run in (further, next_wave(further)):
        shop.ledger.start_run(run, "catalog_refresh", SCENE.name, "shopify", params={"group": first})
        shop.ledger.finish_run(run, "success")
    found = report(shop.ledger.engine, further)
    assert [one.run for one in found.channels] == [first, further]
    assert [one.run for one in report(shop.ledger.engine, next_wave(further)).channels] == [first, further]


def test_a_campaigns_next_channel_has_its_day(shop: Shop, context) -> None:
    context["params"] = {"channels": ["shopify", MERCHANT.name]}
    asked = next_channel(shop.night().run, context, ["shopify", MERCHANT.name], day="2026-05-01")
    assert (asked.conf["day"], "feed" in asked.conf) == ("2026-05-01", False)


def test_a_wrong_channel_behind_the_first_stops_the_first_run(shop: Shop) -> None:
    with pytest.raises(UsageError, match="no channel 'tv'"):
        shop.night(channels=[MERCHANT.name, "tv"])


@pytest.mark.parametrize("reprocess", ["missing", "all"])
def test_runs_for_several_channels_at_the_same_time_compute_what_they_share_once(
    shop: Shop, context, reprocess: str
) -> None:
    shop.feed = {f"cup-{n}": f"cup {n}" for n in range(12)}
    channels = ["shopify", MERCHANT.name, "social-square"]
    first = f"{shop.name}-{reprocess}"
    runs = {channel: run_of_channel(first, channel) if channel != "shopify" else first for channel in channels}
    for channel, run in runs.items():
        context["params"] = {"group": first} if run != first else {}
        plan(shop, run, [channel], reprocess)
    together = Barrier(len(channels))

    def walk(channel: str) -> list[StageSummary]:
        run = runs[channel]
        recipe = Services(get_settings(), shop.ledger, shop.store).recipe(SCENE.name, reprocess, run, channel)
        shots = shop.ledger.shots(run)
        together.wait()
        return [run_stage(STAGES[name], run, shots, recipe, shop.ledger, shop.store) for name in list(STAGES)[:-1]]

    with ThreadPoolExecutor(len(channels)) as pool:
        walked = list(pool.map(walk, channels))
    for stage in zip(*walked, strict=True):
        assert sum(one.computed for one in stage) == len(shop.feed), stage
        assert sum(one.reused for one in stage) == 2 * len(shop.feed)


# ------------------------------------------------------------------------------------------------ a product leaves


def live(of: Shop) -> set[tuple[str, str]]:
    """Name and channel of every image of a shop that is shown."""
    query = text(
        "SELECT s.sku, s.channel FROM publications p JOIN shots s ON s.id = p.shot"
        " WHERE p.superseded_at IS NULL AND s.sku LIKE :like"
    )
    with of.ledger.engine.connect() as connection:
        found = connection.execute(query, {"like": f"{of.name}-%"}).tuples().all()
    return {(sku.removeprefix(f"{of.name}-"), channel) for sku, channel in found}


def feeds_of(of: Shop) -> list[str]:
    """The feeds of all runs of the shop."""
    query = text("SELECT digest FROM run_artifacts WHERE role = 'feed' AND run LIKE :like")
    with of.ledger.engine.connect() as connection:
        digests = connection.scalars(query, {"like": f"{of.name}-%"}).all()
    return [of.store.get(digest).decode() for digest in digests]


@pytest.fixture
def stocked(shop: Shop) -> Shop:
    """A shop with ten products that are published in two channels."""
    shop.feed = {f"cup-{n}": f"cup {n}" for n in range(10)}
    shop.night()
    shop.night(channels=[MERCHANT.name])
    assert len(live(shop)) == 20
    return shop


def test_a_product_that_left_the_feed_is_withdrawn_everywhere_and_shown_again_when_it_is_back(stocked: Shop) -> None:
    whole = dict(stocked.feed)
    before = live(stocked)
    del stocked.feed["cup-3"]
    stocked.night()
    assert before - live(stocked) == {("cup-3", SCENE.channel.name), ("cup-3", MERCHANT.name)}
    assert "cup-3" not in stocked.states(stocked.night())
    act().execute(stocked.context)
    for run in feeds_of(stocked):
        assert stocked.sku("cup-3") not in run, "no run's own feed names what was withdrawn"
    sku = stocked.sku("cup-3")
    assert stocked.ledger.products_changed_between(NOW, NOW, skus=[sku]) == []

    stocked.feed = whole
    stocked.night()
    stocked.night(channels=[MERCHANT.name])
    assert live(stocked) == before
    assert stocked.looked_at == 0, "nothing is computed again"


def test_a_feed_that_lost_too_much_is_refused_until_somebody_accepts_it(stocked: Shop) -> None:
    before = live(stocked)
    stocked.feed = {name: title for name, title in stocked.feed.items() if name > "cup-2"}
    with pytest.raises(UsageError, match=r"lost 3 of its 10 products \(30%\).*--accept-loss"):
        stocked.night()
    assert live(stocked) == before
    stocked.night(accept_loss=True)
    assert {name for name, _ in before - live(stocked)} == {"cup-0", "cup-1", "cup-2"}


def test_a_part_of_a_feed_and_another_catalogue_withdraw_nothing(stocked: Shop) -> None:
    before, feed = live(stocked), stocked.feed
    stocked.feed = {"cup-0": "cup 0"}
    stocked.night(limit=1)
    stocked.feed = {"mug": "mug"}
    stocked.night()
    stocked.feed = feed
    stocked.night()
    assert live(stocked) == before | {("mug", SCENE.channel.name)}


def test_a_late_publication_of_a_product_that_left_shows_nothing(stocked: Shop) -> None:
    del stocked.feed["cup-3"]
    stocked.night()
    query = text("SELECT run FROM publications p JOIN shots s ON s.id = p.shot WHERE s.sku = :sku ORDER BY p.id")
    with stocked.ledger.engine.connect() as connection:
        first, *_ = connection.scalars(query, {"sku": stocked.sku("cup-3")}).all()
    task = PublishOperator(task_id="publish", run=first, scene=SCENE.name, channel="", reprocess="missing")
    task.execute(stocked.context)  # an old task was cleared
    assert ("cup-3", SCENE.channel.name) not in live(stocked)
