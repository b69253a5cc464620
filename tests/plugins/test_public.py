"""What shopping platforms see without a login: the images that are shown now, and the channels' feeds."""

from __future__ import annotations

import io
import json
import re
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from PIL import Image
from sqlalchemy import text
from starlette.testclient import TestClient
from typer.testing import CliRunner

from pipelines.cli.main import app as cli
from pipelines.contracts import Artifact, Job, Product, Publication, Shot, ShotStep, State, Step
from pipelines.ledger.decisions import roll_back
from pipelines.ledger.postgres import PostgresLedger
from pipelines.runs.sheet_links import Sheet, sign
from pipelines.scenes.channels import load_channel
from pipelines.settings import get_settings
from pipelines.store import S3Store

BASE = "https://img.shop.example/packshot/public"
SKUS = ("CUP-1", 'P/OT "2",\t<&>', "#3?x=1 %")
CHANNEL = "google-merchant"
KEY = "the key of this installation"


@pytest.fixture(scope="module")
def public(settings) -> Iterator[TestClient]:
    """A client of the plugin's app, with a public address in the settings and no login."""
    from airflow.settings import prepare_syspath_for_config_and_plugins

    prepare_syspath_for_config_and_plugins()
    from packshot_console import services
    from packshot_console.app import create_app

    services.ledger.cache_clear()
    services.store.cache_clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PACKSHOT_PUBLIC_URL", BASE)
        patch.setenv("PACKSHOT_SHEET_KEY", KEY)
        get_settings.cache_clear()
        yield TestClient(create_app())
    get_settings.cache_clear()
    services.ledger.cache_clear()
    services.store.cache_clear()


@contextmanager
def setting(**values: str) -> Iterator[None]:
    """Other settings for a while."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in values.items():
            patch.setenv(f"PACKSHOT_{name}", value)
        get_settings.cache_clear()
        yield
    get_settings.cache_clear()


def publish(ledger: PostgresLedger, store: S3Store, run: str, skus: tuple[str, ...], colour: str) -> dict[str, str]:
    """A run that shows a picture of this colour of each product in the channel; SKU → digest."""
    digests = {}
    shots = [Shot(Product(sku, row, sku, "Kitchen", "a" * 64), "oak", CHANNEL) for row, sku in enumerate(skus, 2)]
    ledger.upsert_products([shot.product for shot in shots])
    ledger.start_run(run, "catalog_refresh", "oak", CHANNEL)
    ledger.select(run, shots, 8)
    for shot in shots:
        out = io.BytesIO()
        Image.new("RGB", (32, 32), colour).save(out, "JPEG", comment=f"{run} {shot.sku}".encode())
        digests[shot.sku] = store.put(out.getvalue(), "image/jpeg")
        file = Artifact(digests[shot.sku], "published", "image/jpeg", len(out.getvalue()))
        job = Job("publish", 1, {"final": file.sha256[::-1]}, {})
        step = Step(job.key, job, State.DONE, (file,))
        ledger.use(run, [(shot, [ShotStep(ledger.record(step), reused=False)])])
    ledger.publish(run, [Publication(sku, "oak", CHANNEL, digest) for sku, digest in digests.items()])
    ledger.finish_run(run, "success")
    return digests


@pytest.fixture(scope="module")
def first(ledger: PostgresLedger, store: S3Store) -> dict[str, str]:
    return publish(ledger, store, "r-first", SKUS, "red")


def links(feed: str) -> dict[str, str]:
    """SKU → link of a TSV."""
    head, *lines = feed.removesuffix("\n").split("\n")
    assert head == "id\tlifestyle_image_link"
    found = [line.rsplit("\t", 1) for line in lines]
    return {json.loads(id.replace('""', '\\"').replace("\t", "\\t")) if id[0] == '"' else id: x for id, x in found}


def test_a_link_of_the_feed_leads_to_the_bytes_that_are_shown_and_stays_when_they_change(
    public: TestClient, first, ledger, store
) -> None:
    before = public.get(f"/public/{CHANNEL}/feed.tsv")
    assert before.headers["Content-Type"].startswith("text/tab-separated-values")
    assert links(before.text).keys() == set(SKUS)
    for sku, link in links(before.text).items():
        assert link.startswith(BASE)
        answer = public.get("/public" + link.removeprefix(BASE))
        assert answer.content == store.get(first[sku])
        assert (answer.headers["Content-Type"], answer.headers["X-Content-Type-Options"]) == ("image/jpeg", "nosniff")
        again = public.get("/public" + link.removeprefix(BASE), headers={"If-None-Match": answer.headers["ETag"]})
        assert (again.status_code, again.content) == (304, b"")

    second = publish(ledger, store, "r-second", SKUS[:1], "blue")
    address = f"/public/{CHANNEL}/oak/CUP-1"
    assert public.get(address).content == store.get(second["CUP-1"])
    assert public.get(f"/public/{CHANNEL}/feed.tsv").content != before.content
    roll_back(ledger.engine, "ada", "too blue", "b-public", run="r-second")
    assert public.get(address).content == store.get(first["CUP-1"])
    assert public.get(f"/public/{CHANNEL}/feed.tsv").content == before.content, "byte for byte"


def test_nothing_but_what_is_shown_is_reachable(public: TestClient, first) -> None:
    for path in (
        f"{CHANNEL}/oak/CUP-9", "web/oak/CUP-1", f"{CHANNEL}/pine/CUP-1", f"{CHANNEL}/oak/%00", f"{CHANNEL}/feed.xml",
        "shopify/feed.tsv", "no-such/feed.tsv", "..%2f..%2fetc/feed.tsv", f"{CHANNEL}/oak/{first['CUP-1']}",
    ):  # fmt: skip
        assert public.get(f"/public/{path}").status_code == 404, path
    assert public.post(f"/public/{CHANNEL}/oak/CUP-1").status_code == 405
    with setting(PUBLIC_URL=""):
        for path in (f"{CHANNEL}/oak/CUP-1", f"{CHANNEL}/feed.tsv"):
            assert public.get(f"/public/{path}").status_code == 404


def test_the_command_writes_the_feed_that_the_address_answers(public: TestClient, first, tmp_path: Path) -> None:
    file = tmp_path / "feed.tsv"
    done = CliRunner().invoke(cli, ["channels", "feed", CHANNEL, "--out", str(file), "--json"])
    assert json.loads(done.stdout) == {"channel": CHANNEL, "images": len(SKUS), "file": str(file)}
    assert file.read_bytes() == public.get(f"/public/{CHANNEL}/feed.tsv").content
    refused = CliRunner().invoke(cli, ["channels", "feed", "shopify", "--out", str(file)])
    assert refused.exit_code != 0
    assert "channel shopify has no feed" in str(refused.exception)


def link(key: str = KEY, days: float = 7, made: float | None = None, **choice: str) -> str:
    """The address of a sheet; `made` is now."""
    made = time.time() if made is None else made
    return f"/public/sheets/{sign(Sheet(made, int(made + days * 86_400), 2, **choice), key)}"


def pictures_of(sheet: str) -> list[str]:
    """Addresses of the pictures of a sheet's page."""
    return [f"/public/sheets/{source}" for source in re.findall(r'<img[^>]* src="([^"]+)"', sheet)]


def test_a_signed_link_shows_the_pictures_of_its_sheet_and_nothing_else(public: TestClient, first, ledger, store):
    other = publish(ledger, store, "r-other", ("CUP-7",), "green")
    address = link(run="r-first", sku="CUP-1")
    sheet = public.get(address)
    for answer in (sheet, *(public.get(address + size) for size in ("", "?page=2", "?page=x", f"?page={'9' * 5000}"))):
        assert (answer.status_code, answer.headers["referrer-policy"]) == (200, "no-referrer")
        assert answer.headers["cache-control"] == "private, no-store"
    assert "2 images as of" in sheet.text, "as the link says"
    assert not {*first.values(), *other.values()} & set(re.findall("[0-9a-f]{64}", sheet.text)), "no digest"
    (picture,) = pictures_of(sheet.text)
    for size in ("", "?size=large"):
        shown = public.get(picture + size)
        assert Image.open(io.BytesIO(shown.content)).format == "WEBP"
        assert shown.headers["cache-control"].startswith("private")
        assert shown.headers["referrer-policy"] == "no-referrer"
    token, name = picture.rsplit("/", 2)[1:]
    number, signature = name.split(".")
    for walked in (f"{int(number) + 1}.{signature}", number, f"{number}.{signature}x", first["CUP-1"]):
        answer = public.get(f"/public/sheets/{token}/{walked}")
        assert (answer.status_code, answer.text) == (403, "This sheet has no such picture.")
    (foreign,) = pictures_of(public.get(link(run="r-other")).text)
    assert public.get(f"/public/sheets/{token}/{foreign.rsplit('/', 1)[1]}").status_code == 403
    style = public.get("/public/sheets/console.css")
    assert style.headers["content-type"].startswith("text/css")


def test_a_link_that_ended_or_was_forged_says_so_in_a_sentence(public: TestClient, first):
    ended = public.get(link(made=1_790_000_000, days=1))
    assert (ended.status_code, ended.headers["referrer-policy"]) == (410, "no-referrer")
    assert re.fullmatch(r"This link ended on \d\d September 2026: ask whoever sent it for a new one\.", ended.text)
    good = link(run="r-first")
    (picture, *_) = pictures_of(public.get(good).text)
    token = good.rsplit("/", 1)[1]
    payload, signature = token.split(".")[0], token.split(".")[1]
    longer = link(run="r-first", days=30).rsplit("/", 1)[1].split(".")[0]
    for forged in ("x", payload, f"{payload}.", f"{longer}.{signature}", f"{payload}x.{signature}", "%00.x"):
        answer = public.get(f"/public/sheets/{forged}")
        assert (answer.status_code, answer.text) == (403, "This link is not valid: ask whoever sent it for a new one.")
    with setting(SHEET_KEY="another key"):
        assert [public.get(path).status_code for path in (good, picture)] == [403, 403]
    with setting(SHEET_KEY=""):
        assert public.get(good).status_code == 404
    assert public.get(good).status_code == 200
    assert public.post(good).status_code == 405


def test_a_sheet_keeps_what_was_shown_and_loses_what_is_taken_back(public: TestClient, ledger, store):
    before = publish(ledger, store, "r-sheet", ("MUG-1", "MUG-2"), "red")
    address = link(run="r-sheet")
    publish(ledger, store, "r-later", ("MUG-1", "MUG-3"), "blue")
    assert len(pictures_of(public.get(address).text)) == 2, (
        "one was superseded since, and stands on the sheet all the same"
    )
    assert len(pictures_of(public.get(link(run="r-sheet")).text)) == 1
    assert "MUG-3" not in public.get(link(made=time.time() - 60)).text, "published after the link was made"
    (_, second) = pictures_of(public.get(address).text)
    assert before["MUG-2"] != before["MUG-1"]
    with ledger.engine.begin() as connection:
        connection.execute(text("UPDATE products SET left_at = now() WHERE sku = 'MUG-2'"))
    assert ledger.withdraw_gone() == 1
    assert len(pictures_of(public.get(address).text)) == 1
    assert public.get(second).status_code == 404


def test_an_address_that_asks_too_often_waits_and_others_do_not(public: TestClient, first):
    with setting(PUBLIC_PER_MINUTE="5"):
        hasty, other = (TestClient(public.app, client=(host, 1)) for host in ("192.0.2.1", "192.0.2.2"))
        path = f"/public/{CHANNEL}/oak/CUP-1"
        answers = [hasty.get(path) for _ in range(7)]
        assert [answer.status_code for answer in answers] == [200] * 5 + [429] * 2
        assert 10 <= int(answers[-1].headers["retry-after"]) <= 12
        assert hasty.get("/public/sheets/x").status_code == 429
        assert other.get(path).status_code == 200
        of_one_network = [TestClient(public.app, client=(f"2001:db8::{n}", 1)).get(path) for n in range(6)]
        assert [answer.status_code for answer in of_one_network] == [200] * 5 + [429]
    with setting(PUBLIC_PER_MINUTE="0"):
        assert hasty.get(path).status_code == 200


def test_the_limit_refills_and_its_memory_does_not_grow(public: TestClient):
    from packshot_console.public.rate_limit import REMEMBERED, RateLimit

    with setting(PUBLIC_PER_MINUTE="60"):
        limit = RateLimit(public.app)
        assert [limit.wait("a", 0.0) for _ in range(61)] == [0.0] * 60 + [pytest.approx(1.0)]
        assert limit.wait("a", 0.9) > 0
        assert [limit.wait("a", 1.1) > 0, limit.wait("a", 1.1) > 0] == [False, True]
        for n in range(REMEMBERED + 500):
            limit.wait(f"b{n}", 1.1)
        assert len(limit._paid_until) == REMEMBERED


def test_a_shops_channel_may_have_an_xml_feed(public: TestClient, first, tmp_path: Path) -> None:
    merchant = load_channel(CHANNEL).model_dump(mode="json")
    (tmp_path / f"{CHANNEL}.yaml").write_text(json.dumps(merchant | {"feed": {"format": "xml"}}))
    with setting(CHANNELS_DIR=str(tmp_path)):
        answer = public.get(f"/public/{CHANNEL}/feed.xml")
    space = "{http://base.google.com/ns/1.0}"
    items = ElementTree.fromstring(answer.content).iter("item")
    found = {item.findtext(f"{space}id"): item.findtext(f"{space}lifestyle_image_link") for item in items}
    assert found == links(public.get(f"/public/{CHANNEL}/feed.tsv").text)


def test_a_product_that_left_its_feed_has_no_address_any_more(public: TestClient, first, ledger) -> None:
    with ledger.engine.begin() as connection:
        connection.execute(text("UPDATE products SET left_at = now() WHERE sku = 'CUP-1'"))
    assert ledger.withdraw_gone() == 1
    assert public.get(f"/public/{CHANNEL}/oak/CUP-1").status_code == 404
    assert "CUP-1" not in links(public.get(f"/public/{CHANNEL}/feed.tsv").text)
