"""The operators' page in Airflow's own api-server: who gets in, what they see, what never reaches a browser."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import re
import resource
import time
from concurrent.futures import ThreadPoolExecutor
from html.parser import HTMLParser
from urllib.parse import quote

import httpx
import pytest
from fastapi.routing import APIRoute
from PIL import Image
from sqlalchemy import text

from pipelines.contracts import Product, Publication, Verdict, run_of_channel
from pipelines.ledger.decisions import Choice, decide, undo
from pipelines.ledger.postgres import PostgresLedger
from pipelines.runs.sheet_links import Sheet, sign
from pipelines.settings import ROOT
from pipelines.store import S3Store
from tests.plugins.conftest import hold, picture, token

RUN = "manual__2026-05-01T10:00:00+00:00"
STOPPED = "backfill__2026-05-02T00:00:00+00:00__2026-05-02__abc"
REASON = "the product grew by 31 % at its right edge"


@pytest.fixture(scope="module")
def accounts(served) -> dict[str, str]:
    return {name: token(served, name) for name in ("viewer", "merchandiser")}


def test_a_products_page_shows_every_image_with_its_steps_and_decisions(viewer, run, ledger: PostgresLedger) -> None:
    decision = decide(ledger.engine, run["final"], Choice.REJECT, "ada", "the handle")
    try:
        page = viewer.get("/products/LAMP-2").text
        assert re.findall(r'data-run="([^"]*)" data-state="([^"]*)"', page) == [(RUN, "held")]
        for words in ("<b>ada</b> decided: reject, “the handle”", "a red cup on an oak table", "inspect"):
            assert words in page
        assert page.count("<li><figure>") == 4
        assert "made once" in page
    finally:
        undo(ledger.engine, decision.id, "ada")
    assert "live" in viewer.get("/products/CUP-1").text
    assert viewer.get("/products/no-such").status_code == 404


def test_decisions_are_a_file_for_a_spreadsheet(viewer, run, ledger: PostgresLedger) -> None:
    decision = decide(ledger.engine, run["final"], Choice.REJECT, "ada", '@SUM(1), "x"')
    undo(ledger.engine, decision.id, "ada")
    answer = viewer.get("/review/decisions.csv", params={"scene": "oak", "sku": "LAMP-2", "check": "overcompletion"})
    assert answer.headers["content-type"] == "text/csv; charset=utf-8"
    assert answer.headers["content-disposition"] == 'attachment; filename="decisions.csv"'
    rows = list(csv.DictReader(io.StringIO(answer.text)))
    assert {row["sku"] for row in rows} == {"LAMP-2"}
    assert (rows[0]["reason"], rows[0]["held_for"]) == ('\'@SUM(1), "x"', REASON)
    assert len(viewer.get("/review/decisions.csv?scene=pine").text.splitlines()) == 1
    for path in ("/review", "/live"):
        assert 'formaction="/packshot/review/decisions.csv"' in viewer.get(path).text


def test_the_reference_names_every_route_and_no_other() -> None:
    from packshot_console.app import create_app

    page = (ROOT / "docs/reference/console.md").read_text("utf-8")
    said = set(re.findall(r"^\| `(/[^`]*)` \| (GET|POST) \|", page, re.M))
    routes = [route for route in create_app().routes if isinstance(route, APIRoute)]
    assert said == {(route.path.replace(":path", ""), method) for route in routes for method in route.methods}


def test_no_address_follows_the_host_that_a_request_claims(served, accounts, run) -> None:
    with httpx.Client(base_url=f"{served.url}/packshot", trust_env=False) as client:
        claimed = {"Host": "evil.example"}
        answer = client.get("/", headers={"Cookie": f"_token={accounts['viewer']}", **claimed})
        assert answer.headers["location"].startswith("/packshot/")
        answer = client.get("/runs", headers={"Sec-Fetch-Mode": "navigate", **claimed})
        assert "evil" not in answer.headers["location"]


def test_a_name_that_no_run_can_have_is_not_found(viewer, run) -> None:
    for path in (
        "/runs/%00",
        "/runs/a%00b",
        "/review?run=%00",
        "/review/queue?scene=%00",
        "/runs/no-such-run",
        "/compare?a=x&b=no-such-run",
    ):
        assert viewer.get(path).status_code == 404, path
    assert "these two are the same" in viewer.get("/compare", params={"a": RUN, "b": RUN}).text


def test_a_page_that_is_not_there_is_a_page_with_the_way_back(viewer, run) -> None:
    for path, words in (
        ("/products/no-such", "The ledger knows no such product."),
        ("/runs/no-such", "The ledger knows no such run."),
        ("/no-such", "The address may be old, or misspelled."),
    ):
        answer = viewer.get(path, headers={"Sec-Fetch-Mode": "navigate"})
        assert answer.status_code == 404
        assert words in answer.text, path
        assert 'href="/packshot/overview"' in answer.text
    assert viewer.get("/products/no-such").json() == {"detail": "the ledger knows no such product"}


def test_somebody_who_opens_a_page_without_a_session_is_sent_to_the_login(anonymous, run) -> None:
    answer = anonymous.get(f"/runs/{RUN}", headers={"Sec-Fetch-Mode": "navigate"})
    assert answer.status_code == 303
    assert "/auth/login" in answer.headers["location"]
    assert answer.content == b""


def test_a_viewer_sees_the_runs_and_every_shot_with_its_pictures_and_reasons(viewer, run) -> None:
    listing = viewer.get("/runs")
    assert listing.status_code == 200
    assert re.search(r'href="/packshot/runs/manual__2026-05-01T10:00:00(\+|%2B)00:00"', listing.text)

    page = viewer.get(f"/runs/{RUN}").text
    cards = dict(re.findall(r'<article class="shot" id="[^"]*" data-sku="([^"]*)" data-state="([^"]*)"', page))
    assert cards == {"CUP-1": "published", "LAMP-2": "held", "GONE-3": "rejected"}
    assert len(re.findall(r'<img loading="lazy"\s+alt', page)) == 4 + 4 + 1 + 0, "no missing photo"
    assert page.count('class="pair"') == 2, "photo and final of those that came so far"
    assert REASON in page
    assert "gone.jpg: no such file" in page
    assert "overcompletion <b>0.31</b>" in page
    assert page.count("Prompt: a red cup on an oak table") == 2, "as the step of the real stage holds it"
    assert page.count("Caption: a red cup.") == 1
    assert "polo shirt" not in page, "BLIP is not sure of it"
    for source in re.findall(r'<img[^>]* src="([^"]+)"', page.replace("\n", " ")):
        shown = viewer.get(source.removeprefix("/packshot").replace("&amp;", "&"))
        assert shown.status_code == 200
        assert Image.open(io.BytesIO(shown.content)).format == "WEBP"


def test_a_run_for_several_channels_leads_to_the_runs_of_the_others(viewer, run, ledger) -> None:
    shopify = run_of_channel("for three", "shopify")
    ledger.start_run("for three", "catalog_refresh", "oak", "google-merchant", params={"channels": ["", "shopify"]})
    ledger.start_run(shopify, "catalog_refresh", "oak", "shopify", params={"group": "for three"})
    for one in ("for three", shopify):
        page = viewer.get(f"/runs/{one}").text
        chips = page[page.index('aria-label="Channels"') :]
        assert re.findall(r'class="chip (on)?"[^>]*>(\S+)', chips[: chips.index("</nav>")]) == [
            ("on" if one == "for three" else "", "google-merchant"),
            ("on" if one == shopify else "", "shopify"),
        ]
    assert 'aria-label="Channels"' not in viewer.get(f"/runs/{RUN}").text


def test_a_run_that_found_nothing_changed_shows_the_shots_of_the_run_before_it(viewer, run, ledger) -> None:
    ledger.start_run("the night after", "catalog_refresh", "oak", "web")
    in_line = text("UPDATE runs SET line = :line WHERE id IN (:first, 'the night after')")
    try:
        with ledger.engine.begin() as connection:
            connection.execute(in_line, {"line": "nightly", "first": RUN})
        ledger.finish_run("the night after", "success")
        first, after = (viewer.get(f"/runs/{name}?state=held").text for name in (RUN, "the night after"))
        assert re.findall(r'data-sku="([^"]*)"', after) == ["LAMP-2"]
        assert re.findall(r'<img[^>]* src="([^"]+)"', after) == re.findall(r'<img[^>]* src="([^"]+)"', first) != []
        assert f"unchanged since {RUN}" in after
        assert "all 3</a>" in after
        assert viewer.get("/review/queue?run=the+night+after").json()["items"] == []
    finally:
        with ledger.engine.begin() as connection:
            connection.execute(in_line, {"line": "", "first": RUN})


def test_a_run_whose_publication_was_stopped_says_why_and_for_which_rows(viewer, run) -> None:
    page = viewer.get(f"/runs/{STOPPED}").text
    for words in ("What went wrong", "a shot has one image", "to_be_unique", "CUP-1/oak/web", "No shot"):
        assert words in page
    link = f'/packshot/artifacts/{run["validation"]}"'
    assert link in page
    assert viewer.get(f"/artifacts/{run['validation']}").json() == {"success": False}


def test_a_run_says_how_many_shots_it_left_to_the_next_wave(viewer, run, ledger: PostgresLedger) -> None:
    assert "next wave" not in viewer.get(f"/runs/{RUN}").text
    with ledger.engine.begin() as connection:
        connection.execute(text("UPDATE runs SET put_off = 1200 WHERE id = :run"), {"run": RUN})
    assert re.search(r"Left to the next wave:\s+1,200", viewer.get(f"/runs/{RUN}").text)
    with ledger.engine.begin() as connection:
        connection.execute(text("UPDATE runs SET put_off = 0 WHERE id = :run"), {"run": RUN})


def test_a_state_can_be_picked(viewer, run) -> None:
    page = viewer.get(f"/runs/{RUN}?state=held").text
    assert re.findall(r'data-sku="([^"]*)"', page) == ["LAMP-2"]
    assert viewer.get(f"/runs/{RUN}?state=<b>").status_code == 422


def test_a_runs_page_leads_to_its_images_that_wait_for_review(viewer, ledger: PostgresLedger, store: S3Store) -> None:
    finals = hold(ledger, store, "r waits", {"WAIT-1": "Cup", "WAIT-2": "Mug"})

    def link() -> tuple[str, str] | None:
        found = re.search(r'href="(/packshot/review[^"]*)">review ([^<]*)<', viewer.get("/runs/r%20waits").text)
        return found and found.groups()

    assert link() == ("/packshot/review?run=r+waits", "2 images")
    assert {one["final"] for one in viewer.get("/review/queue?run=r+waits").json()["items"]} == set(finals.values())
    decide(ledger.engine, finals["WAIT-1"], Choice.REJECT, "ada")
    assert link() == ("/packshot/review?run=r+waits", "1 image")
    decide(ledger.engine, finals["WAIT-2"], Choice.REJECT, "ada")
    assert link() is None


def test_what_a_catalogue_says_is_text_and_scripts_are_forbidden(viewer, run) -> None:
    answer = viewer.get(f"/runs/{RUN}")
    own = [f'<script type="module" src="/packshot/static/{name}.js">' for name in ("console", "run")]
    assert re.findall(r"<script[^>]*>", answer.text) == own, "the page's own, none of a title's"
    assert "&lt;script&gt;" in answer.text
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "script-src 'self';" in policy
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["cache-control"] == "no-store"


EVIL = "\"><script>alert(1)</script><img src=x onerror=alert(1)> <b>' {{ 7 * 7 }}"
EVIL_RUN = EVIL.replace("/", "")


class Elements(HTMLParser):
    """What a browser makes of a page: its elements, the text between them, and the code in scripts."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = self.code = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attributes)))

    def handle_data(self, data: str) -> None:
        if self.cdata_elem:
            self.code += data
        else:
            self.text += data

    @property
    def values(self) -> str:
        """All attributes' values."""
        return "\n".join(str(value) for _, attributes in self.elements for value in attributes.values())


def test_a_script_in_any_name_or_reason_is_text_on_every_page(viewer, ledger: PostgresLedger, store: S3Store) -> None:
    grown = Verdict("overcompletion", 0.31, 0.05, False, EVIL, "where")
    final = hold(ledger, store, EVIL_RUN, {EVIL: EVIL, "LAMP-9": EVIL}, grown, scene=EVIL)["LAMP-9"]
    editable = hold(ledger, store, "r evil", {"CUP-9": EVIL}, grown, scene="oak-window")["CUP-9"]
    shown = hold(ledger, store, EVIL_RUN + "4", {EVIL: EVIL}, grown, scene=EVIL_RUN)[EVIL]
    ledger.publish(EVIL_RUN + "4", [Publication(EVIL, EVIL_RUN, "web", shown)])
    sheet = sign(Sheet(time.time(), int(time.time()) + 60, 1, run=EVIL_RUN + "4"), "a key for tests")
    undo(ledger.engine, decide(ledger.engine, final, Choice.REJECT, EVIL, EVIL).id, EVIL)
    ledger.upsert_products([Product("BIN-9", 5, EVIL, EVIL, "a" * 64)])
    ledger.start_run(EVIL_RUN + "2", EVIL, EVIL, EVIL)
    failure = {"expectation": EVIL, "column": EVIL, "rows": [EVIL]}
    ledger.finish_run(EVIL_RUN + "2", "failed", {"reason": EVIL, "failures": [failure]})
    ledger.start_run(EVIL_RUN + "3", "catalog_refresh", EVIL, EVIL)

    pages = [
        "/overview",
        "/runs",
        f"/runs/{quote(EVIL_RUN)}",
        f"/runs/{quote(EVIL_RUN)}2",
        "/campaign",
        f"/products/{quote(EVIL)}",
        f"/review?run={quote(EVIL)}&check={quote(EVIL)}&scene={quote(EVIL)}",
        f"/editor/{editable}",
        f"/compare?a={quote(EVIL_RUN)}&b={quote(EVIL_RUN)}4",
        f"/compare?a={quote(EVIL)}&b={quote(EVIL)}",
        "/live",
        f"/live?run={quote(EVIL)}&sku={quote(EVIL)}&scene={quote(EVIL)}&channel={quote(EVIL)}",
        f"/public/sheets/{sheet}",
    ]
    for path in pages:
        answer = viewer.get(path)
        assert answer.status_code == (404 if path.startswith(f"/compare?a={quote(EVIL)}") else 200), path
        page = Elements(answer.text)
        assert any(words in page.text + page.values for words in (EVIL, EVIL_RUN)), f"{path} does not show it"
        assert page.code == "", path
        for tag, attributes in page.elements:
            assert not [name for name in attributes if name.startswith("on")], (path, tag, attributes)
            inside = f"{sheet}/" if sheet in path else "/packshot/"
            assert attributes.get("src", inside).startswith(inside), (path, tag, attributes)
    for path in ("/review/queue", "/review/selection", f"/review/images/{final}"):
        answer = viewer.get(path)
        assert json.dumps(EVIL, ensure_ascii=False) in json.dumps(answer.json(), ensure_ascii=False)
        assert answer.headers["content-type"] == "application/json"
        assert answer.headers["x-content-type-options"] == "nosniff"


def test_only_what_the_ledger_names_is_served(viewer, run, store: S3Store) -> None:
    stranger = store.put(store.get(run["photo"]) + b"another", "image/png")
    assert viewer.get(f"/pictures/{stranger}").status_code == 404
    assert viewer.get(f"/artifacts/{stranger}").status_code == 404
    assert viewer.get(f"/artifacts/{run['photo']}").status_code == 404, "a stranger's bytes"
    for digest in ("x" * 64, "..%2F..%2Fetc%2Fpasswd", "A" * 64, "0" * 63):
        assert viewer.get(f"/pictures/{digest}").status_code in (404, 422)
    assert viewer.get("/runs/no-such-run").status_code == 404


def test_a_published_image_is_served_byte_for_byte(viewer, run, store: S3Store) -> None:
    answer = viewer.get(f"/artifacts/{run['published']}")
    assert answer.content == store.get(run["published"])
    assert answer.headers["content-type"] == "image/png"
    assert answer.headers["x-content-type-options"] == "nosniff"


def test_a_picture_that_the_store_has_later_is_shown(viewer, ledger: PostgresLedger, store: S3Store) -> None:
    data = picture("#123456")
    digest = hashlib.sha256(data).hexdigest()
    ledger.upsert_products([Product("LATE-1", 7, "Late", "Kitchen", digest)])
    assert viewer.get(f"/pictures/{digest}").status_code == 415
    store.put(data, "image/png")
    assert viewer.get(f"/pictures/{digest}").status_code == 200


def test_pages_say_which_photo_of_its_product_an_image_is_of(viewer, ledger: PostgresLedger, store) -> None:
    finals = hold(ledger, store, "r photos", {"PHO-1": "Cup", "PHO-1~2": "Cup", "PHO-1~3": "Cup", "PHO-2": "Pot"})
    assert re.findall(r"photo \d of \d", viewer.get("/runs/r photos").text) == [f"photo {n} of 3" for n in (1, 2, 3)]
    product = viewer.get("/products/PHO-1").text
    assert re.findall(r"photo \d of \d", product) == [f"photo {n} of 3" for n in (1, 2, 3)]
    assert "made 3 times" in product
    second = viewer.get("/products/PHO-1~2").text
    assert "additional photo of" in second
    assert re.findall(r'href="[^"]*/products/(PHO-1)"', second) == ["PHO-1"]
    assert "made once" in second
    items = viewer.get("/review/queue", params={"run": "r photos"}).json()["items"]
    assert {item["sku"]: item["photo"] for item in items} == {
        "PHO-1": "photo 1 of 3", "PHO-1~2": "photo 2 of 3", "PHO-1~3": "photo 3 of 3", "PHO-2": "",
    }  # fmt: skip
    for final in finals.values():
        decide(ledger.engine, final, Choice.REJECT, "ada")


def test_a_products_page_links_the_variants_of_its_group(viewer, ledger: PostgresLedger) -> None:
    kinds = {"VAR-1": "G", "VAR-2": "G", "VAR-3": "H", "VAR-4": ""}
    ledger.upsert_products(
        [
            Product(sku, row, sku, "Kitchen", "a" * 64, item_group_id=of)
            for row, (sku, of) in enumerate(kinds.items(), 2)
        ]
    )
    linked = {sku: re.findall(r'href="[^"]*/products/(VAR-\d)"', viewer.get(f"/products/{sku}").text) for sku in kinds}
    assert linked == {"VAR-1": ["VAR-2"], "VAR-2": ["VAR-1"], "VAR-3": [], "VAR-4": []}


def test_an_approval_of_a_product_that_left_its_feed_is_not_under_way(viewer, ledger: PostgresLedger, store) -> None:
    def under_way() -> list[str]:
        return re.findall(r"(\d+) to publish, (\d+) to try again", viewer.get("/overview").text)

    assert under_way() == [("0", "0")]
    finals = hold(ledger, store, "r left", {"LEFT-1": "Cup", "LEFT-2": "Mug"})
    decide(ledger.engine, finals["LEFT-1"], Choice.APPROVE, "ada")
    decide(ledger.engine, finals["LEFT-2"], Choice.RETRY, "ada")
    assert under_way() == [("1", "1")]
    with ledger.engine.begin() as connection:
        connection.execute(text("UPDATE products SET left_at = now() WHERE sku LIKE 'LEFT-%'"))
    assert under_way() == [("0", "0")]


def test_previews_have_the_size_that_was_asked_for(viewer, run) -> None:
    small = viewer.get(f"/pictures/{run['published']}?size=64")
    assert Image.open(io.BytesIO(small.content)).size == (64, 48)
    assert viewer.get(f"/pictures/{run['published']}?size=99999").status_code == 422


def test_large_photos_shown_at_once_take_no_memory_of_the_server(
    viewer, run, ledger: PostgresLedger, store: S3Store
) -> None:
    digests = []
    for shade in (20, 60, 100, 140):
        photo = io.BytesIO()
        Image.new("RGB", (3_000, 3_000), (shade, shade, shade)).save(photo, "WEBP", lossless=True, method=0)
        digests.append(store.put(photo.getvalue(), "image/webp"))
    ledger.upsert_products([Product(f"BIG-{i}", 9 + i, "Big", "Kitchen", d) for i, d in enumerate(digests)])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with ThreadPoolExecutor(len(digests)) as pool:
        answers = list(pool.map(lambda digest: viewer.get(f"/pictures/{digest}", timeout=60), digests))
    assert [Image.open(io.BytesIO(answer.content)).getpixel((9, 9))[0] // 20 for answer in answers] == [1, 3, 5, 7]
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < 50e6


def test_nothing_can_be_written(viewer, run) -> None:
    for method in ("POST", "PUT", "PATCH", "DELETE"):
        assert viewer.request(method, f"/runs/{RUN}").status_code == 405
