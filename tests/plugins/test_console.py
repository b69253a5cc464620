"""The operators' page in Airflow's own api-server: who gets in, what they see, what never reaches a browser."""

from __future__ import annotations

import io
import re
import resource
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from fastapi.routing import APIRoute
from PIL import Image
from sqlalchemy import text

from pipelines.contracts import Product, run_of_channel
from pipelines.ledger.decisions import Choice, decide, undo
from pipelines.ledger.postgres import PostgresLedger
from pipelines.settings import ROOT
from pipelines.store import S3Store
from tests.plugins.conftest import token

RUN = "manual__2026-05-01T10:00:00+00:00"
STOPPED = "backfill__2026-05-02T00:00:00+00:00__2026-05-02__abc"
REASON = "the product grew by 31 % at its right edge"


NONE = "0" * 64
MASK = '{"width": 16, "height": 16, "mask": "' + "A" * 43 + '="'

LOOKING = [
    "/",
    "/overview",
    "/runs",
    f"/runs/{RUN}",
    "/campaign",
    "/campaign/scenes/oak-window",
    "/live",
    "/products/LAMP-2",
    "/review",
    "/review/queue",
    "/review/selection",
    "/review/images/{final}",
]
LOOKING += ["/static/console.css", "/static/review.js", "/pictures/{published}", "/artifacts/{published}"]
DECIDING = [
    ("/review/decisions", '{"final": "{final}", "choice": "maybe"}', 422),
    ("/review/decisions", "{", 422),
    ("/review/decisions", '{"final": "{final}", "choice": "approve", "by": "somebody else"}', 422),
    ("/review/decisions", '{"final": "%s", "choice": "approve"}' % ("0" * 64), 409),
    ("/review/decisions", '{"final": "{final}", "choice": "approve", "reason": "\\u0000"}', 422),
    ("/review/decisions/1/undo", "{}", 409),
    ("/review/batches", '{"fingerprint": "of another queue", "choice": "approve"}', 409),
    (f"/review/batches/{'a' * 16}/undo", "{}", 409),
    ("/campaign/forecasts", '{"scene": "no-such"}', 409),
    ("/campaign/starts", '{"scene": "no-such"}', 409),
    ("/campaign/starts", '{"scene": "oak-window", "days": 3}', 422),
    ("/live/rollbacks", '{"publications": [99999], "run": ""}', 409),
    ("/live/rollbacks", '{"publications": ["1"]}', 422),
    (f"/editor/{NONE}/open", "", 409),
    (f"/editor/{NONE}/answers", f'{MASK}, "clicks": [[0.5, 0.5, 1]], "box": []}}', 409),
    (f"/editor/{NONE}/answers", f'{MASK}, "clicks": [[0.5, 1.5, 1]], "box": []}}', 422),
    (f"/editor/{NONE}/answers", f'{MASK}, "clicks": [], "box": [0.1, 0.2]}}', 422),
    (f"/editor/{NONE}/cutouts", f"{MASK}}}", 409),
    (f"/editor/{NONE}/cutouts", MASK.replace("16", "17") + "}", 422),
]
"""Routes that decide, with bodies that change nothing, and what they answer to whoever may decide."""

OWN = {"Sec-Fetch-Site": "same-origin"}
FORGED = [
    {"Sec-Fetch-Site": "cross-site"},
    {"Sec-Fetch-Site": "same-site"},
    {"Sec-Fetch-Site": "same-site", "Origin": "http://127.0.0.1:1"},
    {"Origin": "https://elsewhere.example"},
    {"Origin": "null"},
    {},
]


@pytest.fixture(scope="module")
def accounts(served) -> dict[str, str]:
    return {name: token(served, name) for name in ("viewer", "merchandiser", "op", "admin")}


def test_every_page_is_shown_to_every_role_and_to_nobody_else(served, accounts, run) -> None:
    with httpx.Client(base_url=f"{served.url}/packshot", trust_env=False) as client:
        for path in [path.format(**run) for path in LOOKING] + ["/openapi.json", "/docs", "/redoc"]:
            answer = client.get(path)
            assert answer.status_code in (401, 404), path
            assert "CUP-1" not in answer.text
            assert len(answer.content) < 200
        for name, bearer in accounts.items():
            for path in [path.format(**run) for path in LOOKING]:
                answer = client.get(path, headers={"Cookie": f"_token={bearer}"})
                assert answer.status_code == (303 if path == "/" else 200), (name, path)


def test_whoever_may_decide_does_so_from_this_servers_pages_alone(served, accounts, run) -> None:
    """Every route that changes something × every role × own and forged requests × bodies that are none."""
    with httpx.Client(base_url=f"{served.url}/packshot", trust_env=False) as client:
        for path, body, allowed in DECIDING:
            sent = body.replace("{final}", run["final"])

            def post(path=path, sent=sent, **headers: str) -> int:
                return client.post(path, content=sent, headers=headers).status_code

            assert post(**OWN) == 401, path
            assert post() == 401, path
            for name, bearer in accounts.items():
                cookie = {"Cookie": f"_token={bearer}"}
                expected = 403 if name == "viewer" else allowed
                assert post(**cookie, **OWN) == expected, (name, path)
                assert post(**cookie, Origin=served.url) == expected, (name, path)
                assert post(Authorization=f"Bearer {bearer}") == expected, (name, path)
                for forged in FORGED:
                    assert post(**cookie, **forged) == 403, (name, path, forged)
                    both = {"Authorization": f"Bearer {bearer}", **cookie, **forged}
                    assert post(**both) == 403, "a token exempts only where no cookie is sent"


def test_a_products_page_shows_every_image_with_its_steps_and_decisions(viewer, run, ledger: PostgresLedger) -> None:
    decision = decide(ledger.engine, run["final"], Choice.REJECT, "ada", "the handle")
    try:
        page = viewer.get("/products/LAMP-2").text
        assert re.findall(r'data-run="([^"]*)" data-state="([^"]*)"', page) == [(RUN, "held")]
        for words in ("<b>ada</b> decided: reject, “the handle”", "a red cup on an oak table", "inspect"):
            assert words in page
        assert page.count("<li><figure>") == 4
    finally:
        undo(ledger.engine, decision.id, "ada")
    assert "live" in viewer.get("/products/CUP-1").text
    assert viewer.get("/products/no-such").status_code == 404


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
    for path in ("/runs/%00", "/runs/a%00b", "/review?run=%00", "/review/queue?scene=%00", "/runs/no-such-run"):
        assert viewer.get(path).status_code == 404, path


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
    for words in ("The run was stopped", "a shot has one image", "to_be_unique", "CUP-1/oak/web", "No shot"):
        assert words in page
    link = f'/packshot/artifacts/{run["validation"]}"'
    assert link in page
    assert viewer.get(f"/artifacts/{run['validation']}").json() == {"success": False}


def test_a_state_can_be_picked(viewer, run) -> None:
    page = viewer.get(f"/runs/{RUN}?state=held").text
    assert re.findall(r'data-sku="([^"]*)"', page) == ["LAMP-2"]
    assert viewer.get(f"/runs/{RUN}?state=<b>").status_code == 422


def test_what_a_catalogue_says_is_text_and_scripts_are_forbidden(viewer, run) -> None:
    answer = viewer.get(f"/runs/{RUN}")
    assert re.findall(r"<script[^>]*>", answer.text) == ['<script type="module" src="/packshot/static/console.js">'], (
        "the page's own, none of a title's"
    )
    assert "&lt;script&gt;" in answer.text
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "script-src 'self';" in policy
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["cache-control"] == "no-store"


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
