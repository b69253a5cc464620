"""The cutout editor in a real, headless Chromium on Airflow's own api-server, with HQ-SAM in its own process."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable
from contextlib import nullcontext

import numpy as np
import pytest
from sqlalchemy import text

from pipelines.contracts import Verdict
from pipelines.ledger.decisions import claim_retries
from pipelines.ledger.postgres import PostgresLedger
from pipelines.settings import ROOT
from tests.plugins.conftest import Served, hold, token
from tests.plugins.stage import STAGED, staged

pytestmark = [pytest.mark.browser, pytest.mark.slow]

SKU = "SMP-004"
SCENES = ("oak-window", "studio-sage")
PICTURES = ROOT / "build" / "pictures"
PICTURES.mkdir(parents=True, exist_ok=True)


@pytest.fixture(autouse=True)
def held(ledger: PostgresLedger, store, damage: Callable[..., None]) -> dict[str, str]:
    """One product that two scenes hold, by one cutout; scene → final."""
    damage("TRUNCATE runs, shots, products, product_versions, steps, embeddings CASCADE")
    titles = {SKU: STAGED[SKU][0]}
    lacks = Verdict("whole", 0.06, 0.006, False, "the cutout seems to lack a part: 6.0% of its area beside it")
    return {
        scene: hold(ledger, store, f"r {scene}", titles, lacks, scene=scene, pictures=staged)[SKU] for scene in SCENES
    }


@pytest.fixture
def open_editor(browser, served: Served):
    """Opens the editor of an image from its review page, by the key E."""
    contexts, complaints = [], []

    def open_page(final: str, looks: bool = False, edits: bool = True, **about):
        context = browser.new_context(**{"viewport": {"width": 1440, "height": 900}, **about})
        context.add_cookies([{"name": "_token", "value": token(served, "merchandiser"), "url": served.url}])
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("console", lambda m: complaints.append(m.text) if m.type == "error" else None)
        with page.expect_response("**/open", timeout=60_000) if looks else nullcontext():
            page.goto(f"{served.url}/packshot/review")
            page.locator(f"#review[data-shown='{final}']").wait_for()
        if edits:
            page.keyboard.press("e")
            page.locator("#editor[data-state='ready']").wait_for(timeout=60_000)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert complaints == []


@pytest.fixture(scope="module", autouse=True)
def no_child_is_left(served: Served):
    yield
    from packshot_console import services

    services.editor().close()
    services.editor.cache_clear()


def product(page) -> int:
    """Pixels of the overlay that are product: neither darkened nor outline."""
    return page.evaluate(
        "() => { const c = document.getElementById('overlay'), d = c.getContext('2d').getImageData(0, 0, c.width, "
        "c.height).data; let n = 0; for (let i = 3; i < d.length; i += 4) n += d[i] === 0; return n; }"
    )


def click(page, x: float, y: float) -> None:
    """Clicks at this share of the picture, and waits for the answer."""
    box = page.locator("#picture").bounding_box()
    before = page.locator("#editor").get_attribute("data-answers")
    page.mouse.click(box["x"] + x * box["width"], box["y"] + y * box["height"])
    page.locator(f"#editor:not([data-answers='{before}'])[data-state='ready']").wait_for(timeout=60_000)


def test_a_cutout_is_corrected_by_clicks_saved_and_what_stands_on_it_is_made_again(
    open_editor, ledger, held, pytestconfig
) -> None:
    page = open_editor(held[SCENES[0]])
    before = product(page)
    assert before > 50_000
    page.keyboard.press("r")
    box = page.locator("#picture").bounding_box()
    page.mouse.move(box["x"] + box["width"] * 0.4, box["y"] + box["height"] * 0.5)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.6, box["y"] + box["height"] * 0.55)
    page.mouse.up()
    erased = product(page)
    assert erased < before - 500
    page.keyboard.press("z")
    assert product(page) == before
    page.keyboard.press("i")
    click(page, 0.29, 0.56)  # the cutout lacks the shaded side of the bowl
    opened, answers = (page.locator("#editor").get_attribute(f"data-{name}") for name in ("opened", "answers"))
    print(f"\na new process: opened in {opened} ms, first click {answers} ms")
    whole = product(page)
    assert whole > before + 4_000
    page.keyboard.press("x")
    click(page, 0.63, 0.45)
    assert product(page) != whole
    page.keyboard.press("z")
    assert product(page) == whole
    if pytestconfig.getoption("--docs-pictures"):
        page.screenshot(path=ROOT / "docs" / "pictures" / "cutout-editor.jpg", type="jpeg", quality=72)
    page.keyboard.press("s")
    assert page.get_by_text("This affects 2 images in 2 scenes").is_visible()
    page.get_by_role("button", name="Save S").locator("visible=true").last.click()
    page.get_by_text("2 held images are being made again").wait_for(timeout=60_000)

    with ledger.engine.connect() as connection:
        (step,) = connection.execute(text("SELECT * FROM steps WHERE attempt LIKE 'by hand %'")).all()
        decided = connection.execute(text('SELECT final, choice, "by" FROM decisions')).all()
    assert (step.stage, step.facts["by"], step.facts["path"]) == ("cutout", "merchandiser", "by hand")
    assert {tuple(row) for row in decided} == {(final, "edit", "merchandiser") for final in held.values()}
    again = claim_retries(ledger.engine)
    assert {(one.scene, one.skus, one.choice) for one in again} == {(scene, (SKU,), "edit") for scene in SCENES}
    with ledger.engine.connect() as connection:
        kept = connection.execute(text("SELECT count(*) FROM embeddings")).scalar_one()
    assert kept == 1


def test_the_first_click_and_later_ones_are_answered_soon(open_editor, held) -> None:
    from packshot_console import services

    services.editor().close()
    page = open_editor(held[SCENES[0]], looks=True)  # meanwhile the process starts
    rng = np.random.default_rng(1)
    for n in range(21):
        page.keyboard.press("ix"[n % 2])
        click(page, *(0.3 + 0.4 * rng.random(2)))
    first, *later = map(int, page.locator("#editor").get_attribute("data-answers").split())
    print(f"\nfirst click {first} ms; median of later ones {statistics.median(later)} ms")
    assert statistics.median(later) < 5000


def test_the_process_starts_with_the_review_page_so_that_the_first_click_waits_for_the_photo_alone(
    open_editor, held
) -> None:
    from packshot_console import services

    services.editor().close()
    page = open_editor(held[SCENES[0]], edits=False)
    while not services.editor().is_running:  # before a person looked for a while
        page.wait_for_timeout(50)
    page.wait_for_timeout(1500)  # she looks at the image
    page.keyboard.press("e")
    page.locator("#editor[data-state='ready']").wait_for(timeout=60_000)
    click(page, 0.5, 0.5)
    opened, first = (page.locator("#editor").get_attribute(f"data-{name}") for name in ("opened", "answers"))
    print(f"\nE after 1.5 s: opened in {opened} ms, first click {first} ms")


def test_the_server_itself_holds_no_torch_for_it() -> None:
    import subprocess

    program = "import sys; import pipelines.runs.editing; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT).returncode == 0


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [1440, 390])
def test_pictures_of_the_editor(open_editor, held, theme, width) -> None:
    page = open_editor(held[SCENES[0]], viewport={"width": width, "height": 900}, color_scheme=theme)
    page.wait_for_load_state("networkidle")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "it is wider than the screen"
    page.screenshot(path=PICTURES / f"console-editor-{width}-{theme}.png", full_page=width == 390)
