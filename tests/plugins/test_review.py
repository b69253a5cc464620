"""The review page in a real, headless Chromium on Airflow's own api-server: a queue decided with single keys."""

from __future__ import annotations

import csv
import io
import re
import time
from collections.abc import Callable
from dataclasses import replace

import pytest
from sqlalchemy import event, text

from pipelines.contracts import Artifact, Job, Product, Publication, Shot, ShotStep, State, Step
from pipelines.ledger.decisions import Choice, approved_images, decide
from pipelines.ledger.postgres import PostgresLedger
from pipelines.ledger.spot_checks import draw
from pipelines.settings import ROOT
from tests.plugins.conftest import GROWN, PRESERVED, hold, token
from tests.plugins.stage import STAGED, staged

pytestmark = [pytest.mark.browser, pytest.mark.slow]

PICTURES = ROOT / "build" / "pictures"
PICTURES.mkdir(parents=True, exist_ok=True)


@pytest.fixture(autouse=True)
def an_empty_queue(ledger: PostgresLedger, damage: Callable[..., None]) -> None:
    damage("TRUNCATE runs, shots, products, product_versions, steps CASCADE")


@pytest.fixture
def log_in(browser, served):
    """Opens a page as one of the accounts; every page is checked for complaints at the end."""
    contexts, complaints = [], []

    def open_page(name: str = "merchandiser", path: str = "/packshot/review", **about):
        context = browser.new_context(**{"viewport": {"width": 1440, "height": 900}, **about})
        context.add_cookies([{"name": "_token", "value": token(served, name), "url": served.url}])
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("console", lambda m: complaints.append(m.text) if m.type == "error" and "409" not in m.text else None)
        page.goto(served.url + path)
        if path == "/packshot/review":
            page.wait_for_selector("#stage:not([hidden]), #empty:not([hidden])")
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert complaints == []


def decided(ledger: PostgresLedger) -> list[tuple[str, str, str]]:
    """(final, choice, by) of every decision that stands."""
    with ledger.engine.connect() as connection:
        query = text('SELECT final, choice, "by" FROM decisions WHERE undone_at IS NULL ORDER BY id')
        return [tuple(row) for row in connection.execute(query)]


def soon(ledger: PostgresLedger, count: int) -> list[tuple[str, str, str]]:
    """The decisions once there are so many: a key moves on before the server has answered."""
    until = time.monotonic() + 20
    while len(made := decided(ledger)) != count and time.monotonic() < until:
        time.sleep(0.05)
    return made


def shown(page) -> str:
    return page.locator("#review").get_attribute("data-shown")


def wait_for(page, final: str) -> None:
    page.locator(f"#review[data-shown='{final}']").wait_for(timeout=20_000)


def test_a_title_that_is_a_script_stays_text(log_in, ledger, store) -> None:
    evil = "<img src=x onerror=alert(1)><script>alert(1)</script>"
    hold(ledger, store, "r1", {"CUP-1": evil, "CUP-2": evil}, replace(GROWN, reason=evil))
    page = log_in()
    dialogs: list[str] = []
    page.on("dialog", lambda dialog: (dialogs.append(dialog.message), dialog.dismiss()))
    page.get_by_text(evil).first.wait_for()
    page.get_by_role("button", name="Decide all").click()
    page.locator("#sample").get_by_text(evil).first.wait_for()
    assert page.locator("img[src='x']").count() == 0
    assert dialogs == []


def test_a_queue_is_decided_with_one_key_an_image_and_no_image_is_shown_twice(log_in, ledger, store, served) -> None:
    finals = hold(ledger, store, "r1", {f"SKU-{n}": f"Cup {n}" for n in range(30)})
    page = log_in()
    seen, presses = [], 0
    for n in range(30):
        page.locator(f"#review:not([data-shown='{seen[-1] if seen else ''}'])").wait_for()
        seen.append(shown(page))
        page.keyboard.press("art"[n % 3])
        presses += 1
    page.wait_for_selector("#empty:not([hidden])")
    assert page.get_by_text("Nothing waits for a decision").is_visible()
    assert seen == list(finals.values())
    assert presses <= 32
    made = soon(ledger, 30)
    assert sorted(final for final, _, _ in made) == sorted(seen)
    assert {by for _, _, by in made} == {"merchandiser"}
    by_final = {final: choice for final, choice, _ in made}
    assert [by_final[final] for final in seen] == [["approve", "reject", "retry"][n % 3] for n in range(30)]


def test_two_people_on_one_queue_lose_and_double_no_decision(log_in, ledger, store) -> None:
    finals = hold(ledger, store, "r1", {f"SKU-{n}": f"Cup {n}" for n in range(24)})
    pages = [log_in("merchandiser"), log_in("second")]
    assert shown(pages[0]) != shown(pages[1]), "what one looks at is not handed to the other"
    for page in pages * 24:
        if page.locator("#stage").is_visible():
            page.keyboard.press("a")
            page.wait_for_timeout(15)
    for page in pages:
        page.locator("#empty").wait_for()
    made = soon(ledger, 24)
    assert sorted(final for final, _, _ in made) == sorted(finals.values())
    assert {by for _, _, by in made} == {"merchandiser", "second"}


def test_a_decision_is_undone_and_made_again_and_the_other_keys_do_what_the_legend_says(log_in, ledger, store) -> None:
    finals = list(hold(ledger, store, "r1", {"CUP": "Cup", "POT": "Pot", "PAN": "Pan"}).values())
    page = log_in()
    page.keyboard.press("a")
    wait_for(page, finals[1])
    page.keyboard.press("z")
    wait_for(page, finals[0])
    assert decided(ledger) == []
    page.get_by_role("button", name="wrong light").click()
    page.keyboard.press("r")
    wait_for(page, finals[1])
    page.keyboard.press("ArrowRight")
    assert shown(page) == finals[2]
    page.keyboard.press("ArrowLeft")
    assert shown(page) == finals[1]
    before = page.locator("#before")
    assert before.evaluate("image => getComputedStyle(image).visibility") == "hidden"
    page.keyboard.down(" ")
    assert before.evaluate("image => getComputedStyle(image).visibility") == "visible"
    page.keyboard.up(" ")
    assert before.evaluate("image => getComputedStyle(image).visibility") == "hidden"
    page.keyboard.press("5")
    assert page.locator("#which").inner_text() == "overlay"
    page.keyboard.press("?")
    assert page.get_by_text("hold: the picture before").is_visible()
    with ledger.engine.connect() as connection:
        rows = connection.execute(text("SELECT choice, reason, undone_by FROM decisions ORDER BY id")).all()
    assert [tuple(row) for row in rows] == [("approve", "", "merchandiser"), ("reject", "wrong light", None)]


def test_an_image_that_was_superseded_or_decided_meanwhile_is_refused_and_the_new_one_is_shown(
    log_in, ledger, store
) -> None:
    old = hold(ledger, store, "r1", {"CUP": "Cup", "POT": "Pot"})
    page = log_in()
    new = hold(ledger, store, "run 2", {"CUP": "Cup"})
    page.keyboard.press("a")
    wait_for(page, new["CUP"])
    assert page.get_by_text("took the place of the one you decided").is_visible()
    assert decided(ledger) == []
    page.keyboard.press("a")
    wait_for(page, old["POT"])
    decide(ledger.engine, old["POT"], Choice.REJECT, "grace")
    page.keyboard.press("a")
    page.get_by_text("grace decided it before").wait_for()
    made = {final: by for final, _, by in soon(ledger, 2)}
    assert made == {new["CUP"]: "merchandiser", old["POT"]: "grace"}


def test_a_selection_is_counted_sampled_decided_as_one_and_undone_as_one(log_in, ledger, store) -> None:
    hold(ledger, store, "r1", {f"SKU-{n}": f"Cup {n}" for n in range(15)})
    hold(ledger, store, "r2", {"POT": "Pot"}, scene="sage")
    page = log_in()
    page.locator("select[name=scene]").select_option("oak")
    page.locator("#left", has_text="15").wait_for()
    page.get_by_role("button", name="Decide all").click()
    page.locator("#batch[open]").wait_for()
    assert page.locator("#batch-count").inner_text() == "15"
    assert page.locator("#sample img").count() == 12
    page.get_by_role("button", name="Approve all").click()
    page.get_by_text("15 images approved").wait_for()
    assert len(decided(ledger)) == 15
    page.get_by_role("button", name="Undo the last").or_(page.locator("#undo")).locator("visible=true").click()
    page.get_by_text("Undone. 15 images approved").wait_for()
    assert decided(ledger) == []


def test_titles_stay_text_and_a_viewer_looks_and_does_not_decide(log_in, ledger, store) -> None:
    hostile = '<img src=x onerror="document.title=1"><script>document.title=2</script>'
    hold(ledger, store, "r1", {"CUP": hostile})
    page = log_in("viewer")
    assert page.locator("#title").inner_text() == hostile
    assert page.title() == "Review · packshot"
    assert page.get_by_role("button", name="Approve A").is_disabled()
    page.keyboard.press("a")
    page.get_by_text("may look, and not decide").wait_for()
    assert decided(ledger) == []


def test_the_page_works_in_airflows_frame(log_in, ledger, store, served) -> None:
    hold(ledger, store, "r1", {"CUP": "Cup", "POT": "Pot"})
    page = log_in()
    page.goto(f"{served.url}/plugin/packshot-review")
    frame = page.frame_locator("iframe")
    frame.locator("#stage:not([hidden])").wait_for(timeout=30_000)
    for theme in ("dark", "light"):
        page.evaluate("theme => { document.documentElement.className = theme }", theme)
        scheme = frame.locator(f"html[style*='color-scheme: {theme}']")
        scheme.wait_for(state="attached")
    page.keyboard.press("a")
    frame.get_by_role("heading", name="Pot").wait_for()
    assert [choice for _, choice, _ in soon(ledger, 1)] == ["approve"]


def test_a_run_is_rolled_back_and_what_was_shown_before_is_shown_again(log_in, ledger, store) -> None:
    files = {}
    for run in ("r1", "run 2"):
        finals = hold(ledger, store, run, {"CUP": "Cup"})
        decide(ledger.engine, finals["CUP"], Choice.APPROVE, "ada")
        files[run] = publish(ledger, run, "CUP", finals["CUP"])
    page = log_in(path="/packshot/live?run=run%202")
    assert page.locator(".pair .after").get_attribute("src").split("/")[-1].startswith(files["run 2"])
    assert page.locator(".pair .before").get_attribute("src").split("/")[-1].startswith(files["r1"])
    page.get_by_role("button", name="Roll back this run").click()
    page.get_by_label("Reason").fill("too dark")
    page.get_by_role("button", name="Roll back", exact=True).click()
    page.get_by_text("Nothing is shown of this choice").wait_for()
    page.goto(page.url.split("?")[0])
    assert page.locator(".wall img").get_attribute("src").split("/")[-1].startswith(files["r1"])
    with ledger.engine.connect() as connection:
        rows = connection.execute(text("SELECT choice, reason, undone_by FROM decisions ORDER BY id")).all()
    assert [tuple(row) for row in rows][1:] == [("approve", "", "merchandiser"), ("reject", "too dark", None)]


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_a_contact_sheet_is_shared_with_somebody_without_a_login(log_in, browser, ledger, store, served, theme) -> None:
    titles = {sku: title for sku, (title, _) in STAGED.items()}
    for run in ("r1", "run 2"):
        finals = hold(ledger, store, run, titles, scene=run[-1] * 3, pictures=staged)
        for sku, final in finals.items():
            decide(ledger.engine, final, Choice.APPROVE, "ada")
            publish(ledger, run, sku, final)
    page = log_in(path="/packshot/runs/run 2", color_scheme=theme)
    page.get_by_role("link", name="what is live of it").click()
    page.wait_for_load_state()
    page.get_by_role("button", name="Share a contact sheet").click()
    page.get_by_label("Ends after").select_option("30")
    page.get_by_role("button", name="Make the link").click()
    page.get_by_text("3 images, until").wait_for()
    page.screenshot(path=PICTURES / f"share-{theme}.png")
    address = page.get_by_label("Link").input_value()
    assert address.startswith(f"{served.url}/packshot/public/sheets/")
    complaints: list[str] = []
    for width in (1440, 390):
        guest = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=theme)
        guest.on("console", lambda message: complaints.append(message.text))
        guest.on("response", lambda answer: answer.ok or complaints.append(f"{answer.status} {answer.url}"))
        guest.goto(address, wait_until="networkidle")
        images = guest.locator("article img")
        assert images.count() == 3
        assert [image.evaluate("img => img.decode() ?? img.naturalWidth") for image in images.all()]
        assert guest.evaluate("document.documentElement.scrollWidth <= innerWidth")
        guest.screenshot(path=PICTURES / f"sheet-{width}-{theme}.png", full_page=True)
        guest.close()
    assert complaints == []


def test_two_runs_are_compared_product_by_product(log_in, ledger, store) -> None:
    titles = {sku: title for sku, (title, _) in STAGED.items()}
    hold(ledger, store, "r1", titles, pictures=staged)
    hold(ledger, store, "r2", {**titles, "CUP": "Cup"}, scene="sage", verdict=PRESERVED)
    page = log_in("viewer", path="/packshot/runs/r1")
    page.get_by_role("link", name="compare with another run").click()
    page.locator("select[name=b]").select_option("r2")
    page.get_by_role("button", name="Compare").click()
    page.get_by_text("3 products are in both runs, 1 in B alone").wait_for()
    rows = {row.split()[0]: row.split() for row in page.locator(".compared tbody tr").all_inner_texts()}
    assert rows["held"][1:4] == ["3", "3", "100.0"]
    assert rows["overcompletion"][1:4] == ["3", "3", "100.0"]
    assert "-100.0" in rows["overcompletion"]
    pair = page.locator("article[data-sku=SMP-004] .pair")
    for mode in ("Slider", "Flip", "Side by side"):
        page.locator("article[data-sku=SMP-004]").get_by_role("button", name=mode).click()
        assert pair.get_attribute("data-mode") == {"Slider": "slider", "Flip": "flip"}.get(mode, "side")
        assert [image.evaluate("img => img.decode() ?? img.naturalWidth") for image in pair.locator("img").all()]
    page.get_by_role("link", name="overcompletion").click()
    assert page.locator("article").count() == 3
    page.goto(page.url.split("&check")[0] + "&a_state=published")
    page.get_by_text("No product is in this choice").wait_for()

    from packshot_console import comparison, services

    queries: list[str] = []
    event.listen(services.ledger().engine, "before_cursor_execute", lambda *about: queries.append(about[2]))
    comparison.comparison("r1", "r2", comparison.PairChoice(), 1)
    assert len(queries) == 7, "and one for the runs to choose from"


def test_decisions_are_downloaded_for_the_filters_that_are_chosen(log_in, ledger, store, served) -> None:
    made = hold(ledger, store, "r1", {"CUP": "Cup"}) | hold(ledger, store, "r2", {"POT": "Pot"}, scene="sage")
    for final in made.values():
        decide(ledger.engine, final, Choice.REJECT, "ada", "=1+1")
    hold(ledger, store, "r3", {"JUG": "Jug"}, scene="sage")
    page = log_in("viewer")
    page.goto(f"{served.url}/plugin/packshot-review")
    frame = page.frame_locator("iframe")
    frame.locator("select[name=scene]").select_option("sage")
    with page.expect_download() as download:
        frame.get_by_role("button", name="Decisions as CSV").click()
    assert download.value.suggested_filename == "decisions.csv"
    rows = list(csv.DictReader(io.StringIO(download.value.path().read_text())))
    assert [(row["sku"], row["reason"]) for row in rows] == [("POT", "'=1+1")]


def test_a_spot_check_is_answered_and_a_wrong_image_is_withdrawn_and_counted(log_in, ledger, store) -> None:
    finals = hold(ledger, store, "spot", {"CUP": "Cup", "POT": "Pot"}, verdict=PRESERVED)
    shown_files = {sku: publish(ledger, "spot", sku, final) for sku, final in finals.items()}
    ledger.finish_run("spot", "success")
    assert set(draw(ledger.engine, "spot", 2)) == set(finals.values())
    page = log_in()
    assert page.get_by_text("It passed every check").is_visible()
    assert page.locator("#retry").is_disabled()
    page.keyboard.press("a")
    wait_for(page, finals["POT"])
    page.get_by_role("button", name="wrong colour").click()
    page.keyboard.press("r")
    page.locator("#empty").wait_for()
    assert [(final, choice) for final, choice, _ in soon(ledger, 2)] == [
        (finals["CUP"], "confirm"),
        (finals["POT"], "reject"),
    ]
    with ledger.engine.connect() as connection:
        files = connection.scalars(text("SELECT digest FROM publications WHERE superseded_at IS NULL")).all()
    assert files == [shown_files["CUP"]]
    page.goto(page.url.replace("review", "overview"))
    tile = page.locator(".tile", has_text="of computing for a published image")
    assert tile.locator("b").inner_text() == "7.5 s"
    assert tile.locator("small").inner_text() == "about 0.0052 EUR, in 14 days"
    row = page.locator("h2", has_text="passed image was wrong").locator("+ table tbody tr")
    assert row.inner_text().split() == ["oak", "1", "of", "2", "50.0", "%"]


def publish(ledger: PostgresLedger, run: str, sku: str, final: str) -> str:
    """Publishes an approved or a passed image, its file being the image itself."""
    (shot,) = ledger.shots(run, skus=[sku])
    job = Job("publish", 1, {"final": final}, {"of": f"{run} {sku}"})
    step = ledger.record(Step(job.key, job, State.DONE, (Artifact(final, "published", "image/png", 1),)), run)
    ledger.use(run, [(shot, [ShotStep(step, reused=False)])])
    image = Publication(sku, shot.scene, shot.channel, final)
    if approved := approved_images(ledger.engine):
        ledger.publish_approved(run, [(approved[0].decision, image)])
    else:
        ledger.publish(run, [image])
    return final


def test_the_overview_counts_what_waits_and_a_run_moves_shot_by_shot(log_in, ledger, store) -> None:
    hold(ledger, store, "r1", {f"SKU-{n}": f"Cup {n}" for n in range(5)})
    running = [Shot(Product(f"NEW-{n}", n, f"Pot {n}", "Kitchen", "a" * 64), "sage", "web") for n in range(4)]
    ledger.upsert_products([shot.product for shot in running])
    ledger.start_run("r2", "catalog_refresh", "sage", "web")
    ledger.select("r2", running, 2)
    page = log_in(path="/packshot/overview")
    assert page.locator(".tile.held b").inner_text() == "5"
    bar = page.locator("article[data-run=r2] progress").first
    assert bar.get_attribute("value") == "0.0000"
    job = Job("cutout", 1, {"photo": "a" * 64}, {"of": "NEW-0"})
    step = ledger.record(Step(job.key, job, State.DONE, seconds=1.0), "r2")
    page.reload()
    assert bar.get_attribute("value") == "0.2500", "before the stage is through with the shard"
    ledger.use("r2", [(running[0], [ShotStep(step, reused=False)])])
    page.reload()
    assert bar.get_attribute("value") == "0.2500"
    row = page.locator(".rates tbody tr")
    assert row.inner_text().split()[:4] == ["oak", "5", "of", "5"]
    assert "100.0 %" in row.inner_text()


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [1440, 390])
def test_pictures_of_the_pages(log_in, ledger, store, served, pytestconfig, theme, width) -> None:
    titles = {sku: title for sku, (title, _) in STAGED.items()}
    for n, scene in enumerate(("white-plain", "studio-sage", "oak-window", "studio-sage")):
        finals = hold(ledger, store, f"run {n}", titles, scene=scene, pictures=staged)
        for sku, final in finals.items() if scene == "studio-sage" else ():
            decide(ledger.engine, final, Choice.APPROVE, "ada")
            publish(ledger, f"run {n}", sku, final)
    with ledger.engine.begin() as connection:  # days that differ
        fill = """UPDATE runs SET started_at = started_at - make_interval(days => CAST(right(id, 1) AS int) * 3),
                  totals = totals || '{"states": {"published": 61, "held": 3, "rejected": 2}, "inspected": 66,
                  "images": 61, "overcompleted": 3}' WHERE id <> 'run 0'"""
        connection.execute(text(fill.replace(":", r"\:")))
    waiting = [Shot(Product(f"NEW-{n}", n, f"Pot {n}", "Kitchen", "a" * 64), "oak-window", "web") for n in range(40)]
    ledger.upsert_products([shot.product for shot in waiting])
    ledger.start_run("scheduled__2026-11-30", "catalog_refresh", "oak-window", "web")
    ledger.select("scheduled__2026-11-30", waiting, 20)
    for shot in waiting[:25]:
        job = Job("cutout", 1, {"photo": "a" * 64}, {"of": shot.sku})
        ledger.record(Step(job.key, job, State.DONE, seconds=1.0), "scheduled__2026-11-30")

    page = log_in(viewport={"width": width, "height": 900}, color_scheme=theme)
    for image in page.locator("#strip img, #tries img, .pair img").all():
        image.evaluate("img => img.decode()")
    pages = ("review", "overview", "live", "runs", "runs/run 1", "products/SMP-004", "compare?a=run 1&b=run 2")
    for name in pages:
        if name != "review":
            page.goto(f"{served.url}/packshot/{name}")
        page.wait_for_load_state("networkidle")
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), f"{name} is wider than the screen"
        file = f"console-{re.split('[/?]', name)[0]}{'-one' if '/' in name else ''}-{width}-{theme}.png"
        page.screenshot(path=PICTURES / file, full_page=width == 390)
        kept = {"review": "review-page.jpg", "overview": "overview.jpg"}.get(name)
        if kept and (width, theme) == (1440, "light") and pytestconfig.getoption("--docs-pictures"):
            page.screenshot(path=ROOT / "docs" / "pictures" / kept, type="jpeg", quality=80)
