"""Refreshes and campaigns as a merchandiser starts them: on Airflow's own pages, in a headless Chromium.

What is tested here is what the pages offer and send. `test_campaign` has the command line and the API.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
from sqlalchemy import create_engine, text

from operators.policy import TICK
from pipelines.ledger.postgres import connect
from pipelines.ledger.reports import is_planned, report
from pipelines.scenes import load_scene, scene_names
from pipelines.services import Installation
from pipelines.services.airflow_client import ENDED, Airflow
from pipelines.settings import Settings
from tests.dags.conftest import PRODUCTS

pytestmark = [pytest.mark.browser, pytest.mark.slow]

REFRESH, CAMPAIGN = "catalog_refresh", "campaign_backfill"
SCENE = "oak-window"
OTHER = load_scene(SCENE).title
TITLES = [load_scene(name).title for name in scene_names()]
PATIENCE = 900  # seconds for a run, on a machine that does other things beside


@dataclass
class Person:
    """Somebody who is logged in, and the page that they look at."""

    name: str
    page: Any
    url: str

    def open_form(self, dag_id: str) -> Any:
        """Press *Trigger* on a DAG's page; returns the dialog."""
        self.page.goto(f"{self.url}/dags/{dag_id}")
        self.page.get_by_role("button", name="Trigger Dag").click()
        dialog = self.page.locator("[data-scope=dialog][data-part=content]")
        dialog.locator("[name=element_reprocess], [name=element_source]").wait_for(state="attached")
        return dialog

    def get(self, path: str, **query: Any) -> Any:
        """What the page itself would get from the API."""
        return self.page.request.get(f"{self.url}/api/v2/{path}", params=query).json()

    def runs(self, dag_id: str) -> dict[str, dict[str, Any]]:
        """The DAG's newest runs by id."""
        return {run["dag_run_id"]: run for run in self.get(f"dags/{dag_id}/dagRuns", order_by="-id")["dag_runs"]}

    def until(self, ready: Callable[[], Any]) -> None:
        """Wait for what Airflow does by itself."""
        deadline = time.monotonic() + 120
        while not ready():
            assert time.monotonic() < deadline
            self.page.wait_for_timeout(500)

    def press(self, dialog: Any, button: str, dag_id: str, count: int = 1) -> list[str]:
        """Press the button that starts runs; returns the ids of the `count` new ones, by day where they have one."""
        before = self.runs(dag_id).keys()
        dialog.get_by_role("button", name=button, exact=True).click()
        self.until(lambda: len(self.runs(dag_id).keys() - before) == count)
        new = [run for name, run in self.runs(dag_id).items() if name not in before]
        assert {run["triggering_user_name"] for run in new} == {self.name}
        self.rest()
        return [run["dag_run_id"] for run in sorted(new, key=lambda run: run["partition_key"] or "")]

    def rest(self) -> None:
        """Leave Airflow's pages: an open one asks for news all the time, which costs what the tasks need."""
        self.page.goto("about:blank")

    def sees_published(self, dag_id: str, run: str) -> list[str]:
        """SKUs of the published pictures on the run's own page, each of which the browser has drawn."""
        self.page.goto(f"{self.url}/dags/{dag_id}/runs/{run}")
        self.page.get_by_role("link", name="Pictures", exact=True).click()
        frame = self.page.frame_locator("iframe")
        frame.locator("h1").wait_for()
        shots = frame.locator("article.shot[data-state=published]")
        for image in shots.locator(".walk img").all():  # loaded lazily: what is folded away never is
            image.scroll_into_view_if_needed()
            image.evaluate("img => img.decode()")
        return [shot.get_attribute("data-sku") for shot in shots.all()]


def choose(dialog: Any, field: str, title: str) -> None:
    """Choose from a drop-down field of the form."""
    dialog.locator(f"#element_{field}").click()
    dialog.page.get_by_role("option", name=title, exact=True).click()


def fill_days(dialog: Any) -> None:
    """Yesterday and today in the calendars of the Backfill dialog, the time of day left as it comes."""
    today = datetime.now(UTC)  # now: midnight may fall within these tests
    dialog.get_by_text("Run this Dag for a range of dates").click()
    for number, day in enumerate((today - timedelta(days=1), today)):
        field = dialog.get_by_test_id("datetime-input").nth(number)
        field.click()
        calendar = dialog.page.locator("[data-scope=popover][data-part=content][data-state=open]")
        calendar.get_by_placeholder("YYYY/MM/DD").fill(f"{day:%Y/%m/%d}")
        dialog.page.keyboard.press("Escape")
        calendar.wait_for(state="hidden")


@pytest.fixture(scope="module")
def people(browser, airflow_up: Settings) -> Iterator[Callable[[str], Person]]:
    """Log somebody in through Airflow's own form, once."""
    installation = Installation.read(airflow_up.state_dir)
    known: dict[str, Person] = {}

    def person(name: str) -> Person:
        if name not in known:
            page = browser.new_context(viewport={"width": 1280, "height": 1800}).new_page()
            page.set_default_timeout(60_000)
            page.goto(airflow_up.airflow_url)
            page.get_by_label("Username").fill(name)
            page.get_by_label("Password").fill(getattr(installation, f"{name}_password"))
            page.get_by_role("button", name="Sign in").click()
            page.get_by_role("heading", name="Welcome").wait_for()
            known[name] = Person(name, page, airflow_up.airflow_url)
        return known[name]

    yield person
    for somebody in known.values():
        somebody.page.context.close()


def wait_for(airflow: Airflow, dag_id: str, runs: list[str]) -> None:
    for run in runs:
        airflow.follow(dag_id, run, timeout_seconds=PATIENCE)


def keep(pictures: Path, name: str, shown: Any, **about: Any) -> None:
    """A screenshot for the docs, small enough for a repository."""
    path = pictures / f"{name}.jpg"
    shown.screenshot(path=path, type="jpeg", quality=65, **about)
    assert path.stat().st_size < 150_000


def test_every_light_of_the_home_page_is_green(people) -> None:
    viewer = people("viewer")
    viewer.page.get_by_text("Triggerer", exact=True).wait_for()
    health = viewer.get("monitor/health")
    assert {name: part["status"] for name, part in health.items()} == dict.fromkeys(health, "healthy")


@pytest.mark.parametrize(
    ("dag_id", "first"),
    [
        (REFRESH, ["Scene", "Channels", "Categories", "SKUs", "Reprocess"]),
        (CAMPAIGN, ["Scene", "Channels", "Categories", "SKUs", "Reprocess", "Dry run"]),
        ("brushnet_finetune", ["Pictures of stage 2", "Folder", "Folder of stage 1", "Scenes", "Categories"]),
    ],
)
def test_a_form_opens_without_an_error_and_no_star_where_a_field_may_be_empty(people, dag_id, first) -> None:
    person = people("merchandiser")
    dialog = person.open_form(dag_id)
    assert dialog.locator("[data-invalid], [data-part=error-text]").count() == 0
    assert dialog.locator("[data-part=item-trigger] p + svg").count() == 0, "a section is marked"
    assert dialog.get_by_role("button", name="Trigger", exact=True).is_enabled()

    params = person.get(f"dags/{dag_id}/details")["params"].values()
    empty = {param["schema"]["title"] for param in params if param["value"] is None}
    starred = {label.inner_text().strip(" *\n") for label in dialog.locator("label[data-required]").all()}
    assert "Categories" in empty
    assert not starred & empty

    labels = dialog.locator("[data-part=item][data-state=open] label[data-scope=field]").all_inner_texts()
    assert [label.strip(" *\n") for label in labels][: len(first)] == first
    assert dialog.get_by_role("button", name="Seldom needed").get_attribute("aria-expanded") == "false"


@pytest.mark.parametrize(("dag_id", "offered"), [(REFRESH, TITLES[0]), (CAMPAIGN, "Choose a scene")])
def test_scenes_are_chosen_by_their_titles_and_a_campaigns_is_never_chosen_already(people, dag_id, offered) -> None:
    dialog = people("merchandiser").open_form(dag_id)
    assert dialog.locator("#element_scene").get_by_text(offered, exact=True).is_visible()
    dialog.locator("#element_scene").click()
    titles = dialog.page.get_by_role("option").all_inner_texts()
    assert [title for title in titles if title != "Choose a scene"] == TITLES


def test_a_viewer_starts_nothing(people) -> None:
    viewer = people("viewer")
    for dag_id in (REFRESH, CAMPAIGN):
        before = viewer.runs(dag_id)
        dialog = viewer.open_form(dag_id)
        dialog.get_by_role("button", name="Trigger", exact=True).click()
        dialog.get_by_text("Forbidden").wait_for()
        assert viewer.runs(dag_id).keys() == before.keys()
    dialog = viewer.open_form(CAMPAIGN)
    fill_days(dialog)
    dialog.get_by_text("User does not have permission").wait_for()
    assert dialog.get_by_role("button", name="Run Backfill").is_disabled()
    viewer.rest()


@pytest.fixture(scope="module")
def started(people, airflow: Airflow, refreshed, pictures: Path) -> dict[str, list[str]]:
    """Runs by what started them, all of them over. Both who may start runs do so in each of the three ways."""
    admin, merchandiser = people("admin"), people("merchandiser")
    found: dict[str, list[str]] = {}

    for person in (admin, merchandiser):
        dialog = person.open_form(REFRESH)
        found[f"refresh by {person.name}"] = person.press(dialog, "Trigger", REFRESH)

    dialog = merchandiser.open_form(CAMPAIGN)
    fill_days(dialog)
    dialog.get_by_text("All Runs", exact=True).click()  # other tests' campaigns may have covered these days
    choose(dialog, "scene", OTHER)
    found["tick forgotten"] = merchandiser.press(dialog, "Run Backfill", CAMPAIGN, count=2)
    wait_for(airflow, CAMPAIGN, found["tick forgotten"])

    dialog = merchandiser.open_form(CAMPAIGN)
    choose(dialog, "scene", OTHER)
    dialog.locator("[name=element_skus]").fill("\n".join([*PRODUCTS, ""]))  # as people end their last line
    keep(pictures, "trigger-single-run", dialog)
    found["single run"] = merchandiser.press(dialog, "Trigger", CAMPAIGN)

    dialog = admin.open_form(CAMPAIGN)
    choose(dialog, "scene", OTHER)
    dialog.get_by_text("Dry run", exact=True).click()
    found["dry run"] = admin.press(dialog, "Trigger", CAMPAIGN)
    wait_for(airflow, CAMPAIGN, found["single run"] + found["dry run"])

    admin.until(lambda: all(b["completed_at"] for b in admin.get("backfills", dag_id=CAMPAIGN)["backfills"]))
    dialog = admin.open_form(CAMPAIGN)
    fill_days(dialog)
    dialog.get_by_text("All Runs", exact=True).click()
    dialog.get_by_text(TICK, exact=True).click()
    choose(dialog, "scene", OTHER)
    keep(pictures, "trigger-backfill", dialog)
    found["backfill"] = admin.press(dialog, "Run Backfill", CAMPAIGN, count=2)
    wait_for(airflow, CAMPAIGN, found["backfill"])
    wait_for(airflow, REFRESH, found["refresh by admin"] + found["refresh by merchandiser"])
    return found


@pytest.mark.parametrize("who", ["admin", "merchandiser"])
def test_an_untouched_form_refreshes_the_feed_that_was_named_last(people, started, refreshed, packshot, who) -> None:
    [run] = started[f"refresh by {who}"]
    report = packshot("report", run)
    assert (report["scene"], report["published"]) == (scene_names()[0], len(PRODUCTS))
    assert people(who).sees_published(REFRESH, run) == list(PRODUCTS)


def test_a_single_run_covers_the_named_products_whenever_they_changed(people, started, packshot, pictures) -> None:
    [run] = started["single run"]
    report = packshot("report", run)
    assert report["params"]["skus"] == [*PRODUCTS, ""]
    assert (report["scene"], report["published"], report["state"]) == (SCENE, len(PRODUCTS), "success")
    merchandiser = people("merchandiser")
    assert merchandiser.sees_published(CAMPAIGN, run) == list(PRODUCTS)
    keep(pictures, "run-pictures", merchandiser.page, clip={"x": 0, "y": 0, "width": 1280, "height": 1250})


def test_a_backfill_covers_what_changed_on_each_of_its_days(people, started, packshot) -> None:
    reports = [packshot("report", run) for run in started["backfill"]]
    assert [report["scene"] for report in reports] == [SCENE] * 2
    assert sorted(report["published"] for report in reports) == [0, len(PRODUCTS)], "they were new on one day"
    seen = [sku for run in started["backfill"] for sku in people("admin").sees_published(CAMPAIGN, run)]
    assert seen == list(PRODUCTS)


def test_a_dry_run_from_the_form_computes_nothing(started, packshot) -> None:
    report = packshot("report", started["dry run"][0])
    assert report["products"] == 0
    assert report["params"]["forecast"]["shots"] == len(PRODUCTS), "no day, no name: all that the ledger knows"


def test_a_backfill_whose_tick_was_forgotten_makes_nothing_and_says_why(people, airflow, started, packshot) -> None:
    for run in started["tick forgotten"]:
        report = packshot("report", run)
        assert report["state"] == "failed"
        assert report["products"] == 0
        assert not any(count["computed"] or count["reused"] for count in report["steps"].values())
        assert f"'{TICK}'" in report["problem"]["reason"]
        tasks = [task for task in airflow.tasks(CAMPAIGN, run) if task["try_number"] and task["state"] != "skipped"]
        assert {task["task_id"] for task in tasks} == {"plan", "summary"}
    page = people("merchandiser").page
    page.goto(f"{people('merchandiser').url}/dags/{CAMPAIGN}/runs/{run}/tasks/plan")
    page.get_by_text(report["problem"]["reason"]).first.wait_for()


def test_the_ledger_names_who_asked(started, airflow_up: Settings) -> None:
    with create_engine(airflow_up.database_url).connect() as connection:
        rows = connection.execute(text("SELECT id, triggered_by FROM runs")).tuples().all()
    asked = dict(rows)
    for way, who in (
        ("refresh by admin", "admin"),
        ("refresh by merchandiser", "merchandiser"),
        ("tick forgotten", "merchandiser"),
        ("single run", "merchandiser"),
        ("backfill", "admin"),
    ):
        assert {asked[run] for run in started[way]} == {who}, way


def test_a_campaign_is_cancelled_in_progress_and_trying_again_makes_what_it_did_not(
    people, airflow: Airflow, airflow_up: Settings, refreshed, packshot
) -> None:
    ledger, person = connect(airflow_up.database_url), people("merchandiser")
    run = airflow.trigger(CAMPAIGN, {"scene": "studio-sage", "skus": [PRODUCTS[0]]})
    person.until(lambda: is_planned(ledger, run))
    person.page.goto(f"{person.url}/dags/{CAMPAIGN}/runs/{run}")
    person.page.get_by_role("link", name="Pictures", exact=True).click()
    frame = person.page.frame_locator("iframe")
    frame.get_by_role("button", name="Cancel the run…").click()
    frame.get_by_label("Reason").fill("the wrong scene")
    frame.get_by_role("button", name="Cancel the run", exact=True).click()
    frame.get_by_role("heading", name="The run was cancelled").wait_for()
    person.rest()
    found = report(ledger, run)
    assert (found.state, found.pending, found.published) == ("cancelled", 0, 0)
    assert found.problem == {"reason": "merchandiser cancelled the run: the wrong scene"}
    person.until(lambda: all(task["state"] in ENDED for task in airflow.tasks(CAMPAIGN, run)))
    assert airflow.run(CAMPAIGN, run).state == "failed"
    assert airflow.marked_by(airflow.run(CAMPAIGN, run)) == "merchandiser"

    person.page.goto(f"{person.url}/packshot/runs/{run}")
    person.page.get_by_role("button", name="Try again…").click()
    person.page.get_by_text("Try 1 product again?").wait_for()
    person.page.get_by_role("button", name="Start").click()
    person.page.wait_for_url("**/campaign/started/**")
    person.page.wait_for_url("**/packshot/runs/**")
    again = unquote(person.page.url.rsplit("/", 1)[1])
    person.rest()
    wait_for(airflow, CAMPAIGN, [again])
    assert packshot("report", again)["published"] == 1
    assert report(ledger, run).state == "cancelled", "nothing closed it anew"
