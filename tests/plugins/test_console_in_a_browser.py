"""The operators' page as a person sees it: a real, headless Chromium, logged in through Airflow's own form."""

from __future__ import annotations

import pytest

from pipelines.settings import ROOT
from tests.plugins.conftest import token

pytestmark = [pytest.mark.browser, pytest.mark.slow]

RUN = "manual__2026-05-01T10:00:00+00:00"
REASON = "the product grew by 31 % at its right edge"


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_a_viewer_logs_in_and_sees_every_shot_with_pictures_and_the_reason_of_a_held_one(
    browser, served, run, theme
) -> None:
    page = browser.new_page(viewport={"width": 1280, "height": 1000}, color_scheme=theme)
    complaints: list[str] = []
    page.goto(f"{served.url}/packshot/runs/{RUN}")
    assert "/auth/login" in page.url, "without a session the page leads to the login"
    page.get_by_label("Username").fill("viewer")
    page.get_by_label("Password").fill(served.password)
    page.get_by_role("button", name="Sign in").click()
    page.wait_for_url(f"{served.url}/packshot/runs/**", wait_until="networkidle")
    page.on("console", lambda message: complaints.append(message.text))
    page.on("response", lambda answer: answer.ok or complaints.append(f"{answer.status} {answer.url}"))
    page.reload(wait_until="networkidle")

    cards = page.locator("article.shot")
    assert cards.count() == 3
    for sku, pictures in (("CUP-1", 4), ("LAMP-2", 4 + 1), ("GONE-3", 0)):
        images = page.locator(f"article[data-sku='{sku}'] :is(.walk, .verdict) img")
        assert images.count() == pictures
        for image in images.all():
            image.scroll_into_view_if_needed()
            page.wait_for_function("img => img.complete", arg=image.element_handle())
            assert image.evaluate("img => img.naturalWidth") > 0, complaints
    held = page.locator("article[data-state='held']")
    held.get_by_text("Compare photo and final").click()
    for mode in ("Side by side", "Flip", "Slider"):
        held.get_by_role("button", name=mode).click()
        pictures = held.locator(".pair img")
        assert [image.evaluate("img => img.decode() ?? img.naturalWidth") for image in pictures.all()]
        assert pictures.nth(1).is_visible()
    assert held.get_by_text(REASON).first.is_visible()
    assert held.get_by_text("overcompletion").first.is_visible()
    assert complaints == [], "nothing of the page is refused by its own policy"

    pictures = ROOT / "build" / "pictures"
    pictures.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=pictures / f"operators-page-{theme}.png", full_page=True)
    page.close()


def test_a_browser_without_a_session_gets_no_picture(browser, served, run) -> None:
    page = browser.new_page()
    answer = page.goto(f"{served.url}/packshot/pictures/{run['photo']}")
    assert "/auth/login" in page.url
    assert answer.headers["content-type"].startswith("text/html")
    page.close()


@pytest.mark.parametrize("width", [1440, 390])
def test_a_run_leads_to_the_review_of_its_own_images(browser, served, run, width) -> None:
    context = browser.new_context(viewport={"width": width, "height": 900})
    context.add_cookies([{"name": "_token", "value": token(served, "viewer"), "url": served.url}])
    page = context.new_page()
    page.goto(f"{served.url}/packshot/runs/{RUN}", wait_until="networkidle")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "it is wider than the screen"
    page.screenshot(path=ROOT / "build" / "pictures" / f"console-run-{width}.png")
    page.get_by_role("link", name="review 1 image").click()
    page.locator(f"#review[data-shown='{run['final']}']").wait_for()
    assert page.locator("select[name='run']").input_value() == RUN
    page.screenshot(path=ROOT / "build" / "pictures" / f"console-run-review-{width}.png")
    context.close()
