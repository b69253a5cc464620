"""The operators' page in Airflow's own api-server: who gets in, what they see, what never reaches a browser."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from dataclasses import replace

import pytest
from PIL import Image
from starlette.testclient import TestClient

from pipelines.contracts import (
    Artifact,
    Job,
    Product,
    Shot,
    ShotStep,
    State,
    Step,
    Verdict,
)
from pipelines.ledger import PostgresLedger, Publication
from pipelines.settings import Settings
from pipelines.store import S3Store

RUN = "manual__2026-05-01T10:00:00+00:00"
HOSTILE = '<script>alert("x")</script> & "vase"'
REASON = "the product grew by 31 % at its right edge"


def picture(colour: str, mode: str = "RGB") -> bytes:
    out = io.BytesIO()
    Image.new(mode, (640, 480), colour).save(out, "PNG")
    return out.getvalue()


@pytest.fixture(scope="module")
def run(ledger: PostgresLedger, store: S3Store) -> dict[str, str]:
    """A run with a published, a held and a rejected shot; returns the digests of some of its pictures."""
    photo = store.put(picture("white"), "image/png")
    products = [
        Product("CUP-1", 2, HOSTILE, "Kitchen", photo),
        Product("LAMP-2", 3, "Lamp", "Lighting", photo),
        Product("GONE-3", 4, "Gone", "Kitchen", None, "gone.jpg: no such file"),
    ]
    shots = [Shot(product, "oak", "web") for product in products]
    ledger.upsert_products(products)
    ledger.start_run(RUN, "catalog_refresh", "oak", "web")
    ledger.select(RUN, shots, 8)

    def step(shot: Shot, stage: str, outputs: dict[str, bytes], **about: object) -> Step:
        artifacts = tuple(
            Artifact(store.put(data, "image/png"), role, "image/png", len(data)) for role, data in outputs.items()
        )
        job = Job(stage, 1, {"photo": photo}, {"sku": shot.sku})
        made = replace(Step(job.key, job, State.DONE, artifacts, seconds=1.5, device="cpu"), **about)
        ledger.use(RUN, shot, [ShotStep(ledger.record(made), reused=False)])
        return made

    digests = {"photo": photo}
    for shot, passed in zip(shots[:2], (True, False), strict=True):
        step(shot, "cutout", {"cutout": picture("#ff000080", "RGBA")})
        step(shot, "describe", {}, facts={"caption": "a red cup"})
        step(shot, "generate", {"raw": picture("#223344")}, facts={"prompt": "a red cup on an oak table"})
        step(shot, "upscale", {"final": picture("#446688")})
        verdict = Verdict("overcompletion", 0.31, 0.05, passed, "" if passed else REASON, "where")
        inspected = step(shot, "inspect", {"where": picture("#ff8800")}, verdicts=(verdict,))
        digests[f"where {shot.sku}"] = inspected.output("where")
    published = step(shots[0], "publish", {"published": picture("#446689")})
    ledger.publish(RUN, [Publication("CUP-1", "oak", "web", published.output("published"))])
    step(shots[2], "cutout", {}, state=State.REJECTED, reason="gone.jpg: no such file")
    ledger.finish_run(RUN, "success")
    return digests | {"published": published.output("published")}


@pytest.fixture(scope="module")
def server(airflow_db: Settings, settings: Settings, tmp_path_factory) -> Iterator[TestClient]:
    """Airflow's api-server in this process, with the plugin; nobody is logged in."""
    from airflow.api_fastapi.app import create_app, purge_cached_app

    with pytest.MonkeyPatch.context() as patch:
        passwords = tmp_path_factory.mktemp("airflow") / "passwords.json"
        patch.setenv("AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE", str(passwords))
        with TestClient(create_app(apps="all"), base_url="http://testserver") as client:
            yield client
        purge_cached_app()


@pytest.fixture(scope="module")
def viewer(server: TestClient) -> dict[str, str]:
    """Headers of a logged-in viewer, the weakest role there is."""
    from airflow.api_fastapi.app import get_auth_manager
    from airflow.api_fastapi.auth.managers.simple.user import SimpleAuthManagerUser

    token = get_auth_manager().generate_jwt(SimpleAuthManagerUser(username="vic", role="viewer"))
    return {"Authorization": f"Bearer {token}"}


def test_every_route_is_closed_to_anonymous_requests(server: TestClient, run) -> None:
    paths = ["/", "/runs", f"/runs/{RUN}", "/console.css", "/openapi.json", "/docs", "/redoc"]
    paths += [f"/pictures/{digest}" for digest in run.values()] + [f"/artifacts/{run['published']}"]
    for path in paths:
        answer = server.get(f"/packshot{path}", follow_redirects=False)
        assert answer.status_code in (401, 404), path
        assert "CUP-1" not in answer.text
        assert not answer.headers["content-type"].startswith("image/")
        assert len(answer.content) < 200


def test_somebody_who_opens_a_page_without_a_session_is_sent_to_the_login(server: TestClient, run) -> None:
    answer = server.get(f"/packshot/runs/{RUN}", headers={"Sec-Fetch-Mode": "navigate"}, follow_redirects=False)
    assert answer.status_code == 303
    assert "/auth/login" in answer.headers["location"]
    assert answer.content == b""


def test_a_viewer_sees_the_runs_and_every_shot_with_its_pictures_and_reasons(server, viewer, run) -> None:
    listing = server.get("/packshot/runs", headers=viewer)
    assert listing.status_code == 200
    assert re.search(r'href="/packshot/runs/manual__2026-05-01T10:00:00(\+|%2B)00:00"', listing.text)

    page = server.get(f"/packshot/runs/{RUN}", headers=viewer).text
    cards = dict(re.findall(r'<article class="shot" id="[^"]*" data-sku="([^"]*)" data-state="([^"]*)"', page))
    assert cards == {"CUP-1": "published", "LAMP-2": "held", "GONE-3": "rejected"}
    assert page.count("<img") == 4 + 4 + 1 + 0, "four pictures a shot, where a held one failed, none of a missing photo"
    assert REASON in page
    assert "gone.jpg: no such file" in page
    assert "overcompletion <b>0.31</b>" in page
    for source in re.findall(r'src="([^"]+)"', page):
        shown = server.get(source.replace("&amp;", "&"), headers=viewer)
        assert shown.status_code == 200
        assert Image.open(io.BytesIO(shown.content)).format == "WEBP"


def test_a_state_can_be_picked(server, viewer, run) -> None:
    page = server.get(f"/packshot/runs/{RUN}?state=held", headers=viewer).text
    assert re.findall(r'data-sku="([^"]*)"', page) == ["LAMP-2"]
    assert server.get(f"/packshot/runs/{RUN}?state=<b>", headers=viewer).status_code == 422


def test_what_a_catalogue_says_is_text_and_scripts_are_forbidden(server, viewer, run) -> None:
    answer = server.get(f"/packshot/runs/{RUN}", headers=viewer)
    assert "<script" not in answer.text
    assert "&lt;script&gt;" in answer.text
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "script-src" not in policy
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["cache-control"] == "no-store"


def test_only_what_the_ledger_names_is_served(server, viewer, run, store: S3Store) -> None:
    stranger = store.put(picture("green"), "image/png")
    assert server.get(f"/packshot/pictures/{stranger}", headers=viewer).status_code == 404
    assert server.get(f"/packshot/artifacts/{stranger}", headers=viewer).status_code == 404
    assert server.get(f"/packshot/artifacts/{run['photo']}", headers=viewer).status_code == 404, "a stranger's bytes"
    for digest in ("x" * 64, "..%2F..%2Fetc%2Fpasswd", "A" * 64, "0" * 63):
        assert server.get(f"/packshot/pictures/{digest}", headers=viewer).status_code in (404, 422)
    assert server.get("/packshot/runs/no-such-run", headers=viewer).status_code == 404


def test_a_published_image_is_served_byte_for_byte(server, viewer, run, store: S3Store) -> None:
    answer = server.get(f"/packshot/artifacts/{run['published']}", headers=viewer)
    assert answer.content == store.get(run["published"])
    assert answer.headers["content-type"] == "image/png"
    assert answer.headers["x-content-type-options"] == "nosniff"


def test_previews_have_the_size_that_was_asked_for(server, viewer, run) -> None:
    small = server.get(f"/packshot/pictures/{run['published']}?size=64", headers=viewer)
    assert Image.open(io.BytesIO(small.content)).size == (64, 48)
    assert server.get(f"/packshot/pictures/{run['published']}?size=99999", headers=viewer).status_code == 422


def test_nothing_can_be_written(server, viewer, run) -> None:
    for method in ("POST", "PUT", "PATCH", "DELETE"):
        assert server.request(method, f"/packshot/runs/{RUN}", headers=viewer).status_code == 405
