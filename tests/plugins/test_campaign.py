"""The campaign page on Airflow's own api-server: counted, refused or started, with the rights of whoever asks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from sqlalchemy import select, update

from pipelines.contracts import Product, Shot, run_of_channel
from pipelines.ledger.decisions import Choice, decide
from pipelines.ledger.postgres import PostgresLedger
from pipelines.ledger.reports import report
from pipelines.ledger.waves import cancelled_before, next_wave
from pipelines.settings import ROOT
from tests.plugins.conftest import GROWN, hold, token

TODAY = datetime.now(UTC).date()
WANTED = {"scene": "oak-window", "skus": ["CUP-1", "CUP-2"]}
HALO = replace(GROWN, check="halo")
PICTURES = ROOT / "build" / "pictures"
PICTURES.mkdir(parents=True, exist_ok=True)


@pytest.fixture(scope="module", autouse=True)
def catalogue(ledger: PostgresLedger, store) -> None:
    kinds = ("Home > Kitchen", "Home > Kitchen", "Home", "Shoes")
    ledger.upsert_products([Product(f"CUP-{n}", n, f"Cup {n}", kind, "a" * 64) for n, kind in enumerate(kinds, 1)])


@pytest.fixture(scope="module")
def campaign_dag(served) -> None:
    """`campaign_backfill` as Airflow's DAG processor would have read it, and turned on."""
    from airflow.dag_processing.dagbag import DagBag, sync_bag_to_db
    from airflow.models.dag import DagModel
    from airflow.models.dagbundle import DagBundleModel
    from airflow.utils.session import create_session

    bag = DagBag(ROOT / "dags" / "campaign_backfill.py", bundle_path=ROOT / "dags", bundle_name="dags-folder")
    assert not bag.import_errors
    with create_session() as session:
        session.merge(DagBundleModel(name="dags-folder"))
    sync_bag_to_db(bag, "dags-folder", None)
    with create_session() as session:
        session.scalars(select(DagModel).where(DagModel.dag_id == "campaign_backfill")).one().is_paused = False


@pytest.fixture
def client(served) -> Iterator[httpx.Client]:
    """Whoever may start a campaign."""
    with httpx.Client(base_url=f"{served.url}/packshot/campaign", trust_env=False, timeout=60) as client:
        client.headers["Authorization"] = f"Bearer {token(served, 'merchandiser')}"
        yield client


def runs() -> list[tuple[str, str, str, dict]]:
    """(id, who started it, day, parameters) of every run of the campaign, the oldest first."""
    from airflow.models.dagrun import DagRun
    from airflow.utils.session import create_session

    with create_session() as session:
        found = session.scalars(select(DagRun).where(DagRun.dag_id == "campaign_backfill").order_by(DagRun.id))
        return [(run.run_id, run.triggering_user_name, run.partition_key, run.conf) for run in found]


@pytest.mark.medium
@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        ({"skus": ["CUP-1", "NO-1", "NO-2"]}, "the catalogue has no product with SKU NO-1, NO-2"),
        ({"first": f"{TODAY + timedelta(days=1)}"}, "is in the future"),
        ({"first": f"{TODAY}", "last": f"{TODAY - timedelta(days=1)}"}, "before it begins"),
        ({"first": "2020-01-01", "last": "2020-01-02"}, "no product of the catalogue is in this choice"),
        ({"skus": ["CUP-1"], "first": f"{TODAY}"}, "choose days or SKUs, not both"),
        ({"scene": "no-such"}, "no scene 'no-such'"),
        ({"channels": ["shopify", "tv"]}, "no channel 'tv'"),
    ],
)
def test_what_cannot_be_made_is_refused_in_a_sentence_and_starts_nothing(client, campaign_dag, wanted, words) -> None:
    before = runs()
    for path in ("/forecasts", "/starts"):
        answer = client.post(path, json={"scene": "oak-window", **wanted})
        assert answer.status_code == 409, path
        assert words in answer.json()["words"]
    assert runs() == before


@pytest.mark.medium
def test_a_category_is_counted_with_those_below_it_and_started_day_by_day_by_who_asked(client, campaign_dag) -> None:
    wanted = {
        "scene": "oak-window",
        "channels": ["shopify", "google-merchant"],
        "category": "home",
        "first": f"{TODAY - timedelta(days=1)}",
        "last": f"{TODAY}",
    }
    told = client.post("/forecasts", json=wanted).json()
    assert (told["products"], told["runs"], told["reused"]) == (3, 4, 6)
    assert told["computed"] > 0
    assert "cutout" in told["unmeasured"]
    assert told["cost"] == "0.00 EUR", "of the seconds that are measured"

    before = len(runs())
    assert client.post("/starts", json=wanted).status_code == 200
    made = runs()[before:]
    assert [day for _, _, day, _ in made] == [wanted["first"], wanted["last"]]
    assert {by for _, by, _, _ in made} == {"merchandiser"}
    assert made[0][3] == {
        "scene": "oak-window",
        "channels": ["shopify", "google-merchant"],
        "categories": ["home"],
        "skus": [],
    }
    again = client.post("/starts", json=wanted)
    assert again.status_code == 409
    assert "another campaign over days is in progress" in again.json()["words"]


@pytest.mark.medium
def test_a_campaign_is_cancelled_before_it_is_planned(client, viewer, campaign_dag) -> None:
    started = client.post("/starts", json={**WANTED, "skus": ["CUP-3"]}).json()["run"]
    page = f"/started/{quote(started)}"
    assert "Cancel the campaign" in client.get(page).text
    assert "Cancel the campaign" not in viewer.get(f"/campaign{page}").text
    path = f"/../runs/{quote(started)}/cancel"
    assert client.post(path, json={}).json() == {"run": started, "days": 0, "further": []}
    assert state_in_airflow(started) == "failed"
    assert "ended before it was planned" in client.get(page).text
    again = client.post(path, json={})
    assert (again.status_code, again.json()["words"]) == (409, "the run ended before")


@pytest.mark.medium
def test_a_cancel_ends_the_runs_for_further_channels_and_their_waves_too(client, ledger, campaign_dag, store) -> None:
    from airflow.api.common.trigger_dag import trigger_dag
    from airflow.models.dagrun import DagRun
    from airflow.utils.session import create_session
    from airflow.utils.types import DagRunTriggeredByType

    channels = ["web", "shopify", "google-merchant"]
    first = client.post("/starts", json={**WANTED, "channels": channels[1:]}).json()["run"]
    ledger.start_run(first, "campaign_backfill", "oak-window", "web", params={"channels": channels})
    waiting, planned = run_of_channel(first, "shopify"), run_of_channel(first, "google-merchant")
    wave, done, other = next_wave(planned), next_wave(first), run_of_channel("another", "shopify")
    for run in (waiting, planned, wave, done, other):
        trigger_dag(
            "campaign_backfill", triggered_by=DagRunTriggeredByType.UI, run_id=run, conf={"scene": "oak-window"}
        )
    with create_session() as session:
        for run, state in ((planned, "running"), (wave, "running"), (done, "success")):
            session.execute(update(DagRun).where(DagRun.run_id == run).values(state=state))
    ledger.start_run(planned, "campaign_backfill", "oak-window", "google-merchant", params={"group": first})

    told = client.post(f"/../runs/{quote(first)}/cancel", json={"reason": "the wrong scene"}).json()
    assert told == {"run": first, "days": 0, "further": [waiting, planned, wave]}
    assert [state_in_airflow(run) for run in (first, waiting, planned, wave)] == ["failed"] * 4
    assert [state_in_airflow(run) for run in (done, other)] == ["success", "queued"]
    assert [report(ledger.engine, run).state for run in (first, planned, wave)] == ["cancelled"] * 3
    assert report(ledger.engine, planned).problem["reason"] == (
        f"merchandiser cancelled run {first}, which started this one"
    )
    assert cancelled_before(ledger.engine, waiting, first, "shopify") == first, "what is not started is never planned"
    assert cancelled_before(ledger.engine, "alone", "", "shopify") == ""
    assert cancelled_before(ledger.engine, first, first, "web") == "", "the cancelled run itself may be cleared"
    assert client.post(f"/../runs/{quote(other)}/cancel", json={}).json()["further"] == []


@pytest.mark.medium
def test_a_viewer_sees_the_page_and_may_not_start(served, viewer, campaign_dag) -> None:
    page = viewer.get("/campaign").text
    assert "Your account may not start campaigns." in page
    assert viewer.get("/campaign/scenes/oak-window").headers["content-type"] == "image/jpeg"
    before = runs()
    for path in ("/campaign/forecasts", "/campaign/starts"):
        assert viewer.post(path, json=WANTED).status_code == 403
    assert runs() == before


@pytest.mark.browser
@pytest.mark.slow
@pytest.mark.parametrize("width", [1440, 390])
def test_a_merchandiser_counts_a_campaign_for_two_skus_and_starts_it(
    browser, served, ledger, campaign_dag, width
) -> None:
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme="light")
    context.add_cookies([{"name": "_token", "value": token(served, "merchandiser"), "url": served.url}])
    page = context.new_page()
    complaints: list[str] = []
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("console", lambda m: complaints.append(m.text) if m.type == "error" and "409" not in m.text else None)
    page.goto(f"{served.url}/packshot/campaign")
    page.get_by_text("These SKUs").click()
    page.get_by_label("SKUs, one a line").fill("CUP-1\nNO-SUCH\n")
    page.get_by_role("button", name="Forecast").click()
    page.get_by_text("Choose a scene.").wait_for()
    page.locator("label.scene", has=page.locator("[value=oak-window]")).click()
    page.get_by_role("button", name="Forecast").click()
    page.get_by_text("the catalogue has no product with SKU NO-SUCH").wait_for()
    page.get_by_label("SKUs, one a line").fill("CUP-1\nCUP-2\n")
    page.get_by_label("google-merchant").check()
    page.get_by_label("shopify").check()
    page.get_by_role("button", name="Forecast").click()
    page.locator("#outlook").wait_for()
    assert page.locator("#products").inner_text() == "2"
    assert page.locator("#runs").inner_text() == "in 2 runs, one for each channel"
    assert page.locator("#reused").inner_text() == "4", "cutouts and descriptions serve both channels"
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    folder = ROOT / "build" / "pictures"
    folder.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=folder / f"console-campaign-{width}-light.png", full_page=True)

    page.get_by_role("button", name="Start").click()
    page.wait_for_url("**/campaign/started/**")
    run, by, _, conf = runs()[-1]
    assert page.get_by_text(run).is_visible()
    assert (by, conf["skus"], conf["scene"]) == ("merchandiser", ["CUP-1", "CUP-2"], "oak-window")
    assert conf["channels"] == ["google-merchant", "shopify"]
    ledger.start_run(run, "campaign_backfill", "oak-window", "web")  # as its plan does
    page.wait_for_url("**/packshot/runs/**", timeout=15_000)
    assert complaints == []
    context.close()


@pytest.fixture
def look(browser, served) -> Iterator[Callable[..., Any]]:
    """Opens a page as whoever may start campaigns; complaints of the browser fail the test."""
    contexts, complaints = [], []

    def open_page(path: str, **about: Any) -> Any:
        context = browser.new_context(**{"viewport": {"width": 1440, "height": 900}, **about})
        contexts.append(context)
        context.add_cookies([{"name": "_token", "value": token(served, "merchandiser"), "url": served.url}])
        page = context.new_page()
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("console", lambda m: complaints.append(m.text) if m.type == "error" and "415" not in m.text else None)
        page.goto(f"{served.url}/packshot/{path}")
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert complaints == []


def state_in_airflow(run: str) -> str:
    from airflow.models.dagrun import DagRun
    from airflow.utils.session import create_session

    with create_session() as session:
        return str(session.scalars(select(DagRun.state).where(DagRun.run_id == run)).one())


@pytest.mark.browser
@pytest.mark.slow
def test_a_campaign_in_progress_is_cancelled_with_a_reason_and_its_days_with_it(
    look, client, ledger, campaign_dag, store
) -> None:
    from packshot_console.airflow_runs import start_days

    finish_backfills()
    first = start_days({"scene": "studio-sage"}, TODAY - timedelta(days=9), TODAY - timedelta(days=7), "merchandiser")
    days = [run for run, *_ in runs()[-3:]]
    assert days[0] == first
    ledger.start_run(first, "campaign_backfill", "studio-sage", "web")
    ledger.select(first, [Shot(Product("CUP-1", 1, "Cup 1", "Home > Kitchen", "a" * 64), "studio-sage", "web")], 8)
    page = look(f"runs/{quote(first)}")
    page.get_by_role("button", name="Cancel the run…").click()
    page.get_by_role("button", name="Back").click()
    assert report(ledger.engine, first).state == "running"
    page.get_by_role("button", name="Cancel the run…").click()
    page.get_by_label("Reason").fill("the wrong scene")
    page.get_by_role("button", name="Cancel the run", exact=True).click()
    page.get_by_role("heading", name="The run was cancelled").wait_for()
    assert page.get_by_text("merchandiser cancelled the run: the wrong scene").is_visible()
    found = report(ledger.engine, first)
    assert (found.state, found.pending, found.failed) == ("cancelled", 0, 1)
    assert {state_in_airflow(run) for run in days} == {"failed"}
    again = client.post(f"/../runs/{quote(first)}/cancel", json={})
    assert (again.status_code, again.json()["words"]) == (409, "the run ended before")

    page.get_by_role("button", name="Try again…").click()
    page.get_by_text("goes on where these stopped").wait_for()
    page.get_by_role("button", name="Start").click()
    page.wait_for_url("**/campaign/started/**")
    assert runs()[-1][3] == {"scene": "studio-sage", "skus": ["CUP-1"], "reprocess": "missing"}


@pytest.mark.browser
@pytest.mark.slow
def test_held_products_are_tried_again_with_the_next_seed_once_their_count_was_shown(
    look, ledger, campaign_dag, store, client
) -> None:
    hold(ledger, store, "r halo", {"HELD-1": "Cup", "HELD-2": "Mug", "HELD-3": "Pot"}, HALO, scene="oak-window")
    finals = hold(ledger, store, "r held", {"HELD-4": "Cup", "HELD-5": "Mug", "HELD-6": "Pot"}, scene="oak-window")
    decide(ledger.engine, finals["HELD-5"], Choice.APPROVE, "ada")
    for width in (1440, 390):
        for theme in ("light", "dark"):
            page = look("runs/r held", viewport={"width": width, "height": 900}, color_scheme=theme)
            page.get_by_role("row", name="overcompletion").get_by_role("button", name="Try again…").click()
            page.locator("#again[open]").get_by_text("Try 2 products again?").wait_for()
            assert page.get_by_text("with the next seed").is_visible()
            assert page.get_by_text("Left out: 1,").is_visible()
            assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
            page.screenshot(path=PICTURES / f"console-retry-{width}-{theme}.png")
    before = len(runs())
    page.get_by_role("button", name="Start").click()
    page.wait_for_url("**/campaign/started/**")
    ((_, by, _, conf),) = runs()[before:]
    assert by == "merchandiser"
    assert conf == {"scene": "oak-window", "skus": ["HELD-4", "HELD-6"], "reprocess": "failed"}
    stale = client.post("/../runs/r%20held/retries", json={"state": "held", "cause": "overcompletion", "shots": 3})
    assert stale.status_code == 409
    assert "it is 2 products now, not 3" in stale.json()["words"]


def finish_backfills() -> None:
    """No backfill of another test is in progress: Airflow runs one at a time."""
    from airflow.models.backfill import Backfill
    from airflow.utils.session import create_session

    with create_session() as session:
        session.execute(update(Backfill).values(completed_at=datetime.now(UTC)))
