"""A run in the ledger with every outcome, and Airflow's own api-server with the plugin."""

from __future__ import annotations

import io
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache

import httpx
import pytest
from PIL import Image, ImageDraw

from pipelines.contracts import Artifact, Job, Product, Publication, Shot, ShotStep, State, Step, Verdict
from pipelines.ledger.postgres import PostgresLedger
from pipelines.settings import Settings, get_settings
from pipelines.store import S3Store

RUN = "manual__2026-05-01T10:00:00+00:00"
STOPPED = "backfill__2026-05-02T00:00:00+00:00__2026-05-02__abc"
HOSTILE = '<script>alert("x")</script> & "vase"'
REASON = "the product grew by 31 % at its right edge"


def picture(colour: str, *, cut_out: bool = False, size: tuple[int, int] = (640, 480)) -> bytes:
    """A disc on a ground, or on nothing, as PNG."""
    image = Image.new("RGBA", size, (0, 0, 0, 0) if cut_out else colour)
    ImageDraw.Draw(image).ellipse((200, 120, 440, 360), fill="#b5483a")
    out = io.BytesIO()
    (image if cut_out else image.convert("RGB")).save(out, "PNG")
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

    def step(shot: Shot, stage: str, outputs: dict[str, bytes], final: str = "", **about) -> Step:
        asked = {"generate": {"prompt": "a red cup on an oak table"}, "describe": {"caption_confidence": 0.99}}
        artifacts = tuple(
            Artifact(store.put(data, "image/png"), role, "image/png", len(data)) for role, data in outputs.items()
        )
        inputs = {"photo": photo, "final": final} if final else {"photo": photo}
        job = Job(stage, 1, inputs, {"sku": shot.sku} | asked.get(stage, {}))
        made = replace(Step(job.key, job, State.DONE, artifacts, seconds=1.5, device="cpu"), **about)
        ledger.use(RUN, [(shot, [ShotStep(ledger.record(made, RUN), reused=False)])])
        return made

    digests = {"photo": photo}
    for shot, passed in zip(shots[:2], (True, False), strict=True):
        step(shot, "cutout", {"cutout": picture("white", cut_out=True)})
        said, sure = ("a red cup", 0.995) if passed else ("a polo shirt", 0.4)
        step(shot, "describe", {}, facts={"caption": said, "confidence": sure})
        step(shot, "generate", {"raw": picture("#223344")})
        final = step(shot, "upscale", {"final": picture("#446688" if passed else "#446680")}).output("final")
        verdict = Verdict("overcompletion", 0.31, 0.05, passed, "" if passed else REASON, "where")
        inspected = step(shot, "inspect", {"where": picture("#ff8800")}, final=final, verdicts=(verdict,))
        digests |= {f"where {shot.sku}": inspected.output("where"), "final": final}
    published = step(shots[0], "publish", {"published": picture("#446689")})
    ledger.publish(RUN, [Publication("CUP-1", "oak", "web", published.output("published"))])
    step(shots[2], "cutout", {}, state=State.REJECTED, reason="gone.jpg: no such file")
    ledger.finish_run(RUN, "success")

    document = b'{"success": false}'
    kept = Artifact(store.put(document, "application/json"), "validation", "application/json", len(document))
    failure = {"expectation": "expect_column_values_to_be_unique", "column": "key", "rows": ["CUP-1/oak/web"]}
    ledger.start_run(STOPPED, "campaign_backfill", "oak", "web")
    ledger.attach(STOPPED, kept)
    ledger.finish_run(STOPPED, "failed", {"reason": "a shot has one image", "failures": [failure]})
    return digests | {"published": published.output("published"), "validation": kept.sha256}


GROWN = Verdict("overcompletion", 0.31, 0.05, False, REASON, "where")
PRESERVED = Verdict("fidelity", 1.0, 0.99, True)
ROLES = {"viewer": "viewer", "merchandiser": "user", "op": "op", "admin": "admin", "second": "user"}
"""Accounts of the served Airflow and their roles. All have one password."""


def hold(
    ledger: PostgresLedger,
    store: S3Store,
    run: str,
    titles: dict[str, str],
    verdict: Verdict = GROWN,
    scene: str = "oak",
    pictures: Callable[[str], dict[str, bytes]] | None = None,
) -> dict[str, str]:
    """A finished run that held an image of each product (SKU → title); returns their finals' digests by SKU. `CUP~2` is
    the second photo of product `CUP`.

    `pictures` has the bytes of a product's photo, cutout, raw, final and where; a disc's by default.
    """

    def kept(role: str, data: bytes) -> Artifact:
        return Artifact(store.put(data, "image/png"), role, "image/png", len(data))

    finals, used, shots = {}, [], []
    for row, (sku, title) in enumerate(titles.items(), 2):
        shown = pictures(sku) if pictures else _disc(row)
        # bytes behind the picture's end: another artifact, the same pixels
        made = {role: kept(role, data) for role, data in shown.items() if role != "final"}
        final = kept("final", shown["final"] + f"{run} {sku}".encode())
        finals[sku] = final.sha256
        of_product, _, number = sku.partition("~")
        product = Product(sku, row, title, "Kitchen", made["photo"].sha256)
        if number:
            product = replace(product, photo_of=of_product, photo_number=int(number))
        shot = Shot(product, scene, "web")
        steps = []
        for stage, outputs, inputs, seed, facts, verdicts in (
            ("cutout", (made["cutout"],), {}, None, {}, ()),
            ("generate", (made["raw"],), {}, 7, {"e_plus": 0.36}, ()),
            ("generate", (made["raw"],), {}, 8, {"e_plus": 0.31}, ()),
            ("upscale", (final,), {}, None, {}, ()),
            ("inspect", (made["where"],), {"final": final.sha256}, None, {}, (PRESERVED, verdict)),
        ):
            of = sku if stage == "cutout" else f"{run} {sku}"  # scenes share a cutout
            job = Job(stage, 1, {"photo": made["photo"].sha256, **inputs}, {"of": of}, seed=seed)
            step = Step(job.key, job, State.DONE, outputs, facts, verdicts, seconds=1.5, device="cpu")
            steps.append(ShotStep(ledger.record(step, run), reused=False, chosen=seed != 7))
        shots.append(shot)
        used.append((shot, steps))
    ledger.upsert_products([shot.product for shot in shots])
    ledger.start_run(run, "catalog_refresh", scene, "web")
    ledger.select(run, shots, 100)
    ledger.use(run, used)
    ledger.finish_run(run, "success")
    return finals


@lru_cache
def _disc(number: int) -> dict[str, bytes]:
    """Pictures of a disc, its scene of another colour for every number."""
    colours = {"photo": "white", "raw": "#223344", "where": "#ff8800", "final": f"hsl({37 * number % 360}, 30%, 55%)"}
    shown = {role: picture(colour, size=(800, 800)) for role, colour in colours.items()}
    return shown | {"cutout": picture("white", cut_out=True, size=(800, 800))}


@dataclass(frozen=True)
class Served:
    """Where the api-server listens, and everybody's password."""

    url: str
    password: str


@pytest.fixture(scope="module")
def served(airflow_db: Settings, settings: Settings, tmp_path_factory) -> Iterator[Served]:
    """Airflow's api-server with the plugin, on a port of its own, in a thread of this process."""
    import uvicorn
    from airflow.api_fastapi.app import create_app, purge_cached_app

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    passwords = tmp_path_factory.mktemp("airflow") / "passwords.json"
    served = Served(f"http://127.0.0.1:{port}", "a password for tests")
    passwords.write_text(json.dumps(dict.fromkeys(ROLES, served.password)))
    with pytest.MonkeyPatch.context() as patch:
        users = ",".join(f"{name}:{role}" for name, role in ROLES.items())
        patch.setenv("AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_USERS", users)
        patch.setenv("AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE", str(passwords))
        patch.setenv("AIRFLOW__API__BASE_URL", served.url)
        patch.setenv("PACKSHOT_SHEET_KEY", "a key for tests")
        patch.setenv("PACKSHOT_GPU_HOUR_PRICE", "2.5")
        get_settings.cache_clear()
        config = uvicorn.Config(create_app(apps="all"), host="127.0.0.1", port=port, log_level="error")
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, daemon=True)
        thread.start()
        while not server.started:
            assert thread.is_alive(), "the api-server did not start"
            time.sleep(0.05)
        yield served
        server.should_exit = True
        thread.join(timeout=30)
        purge_cached_app()
    get_settings.cache_clear()
    from packshot_console import pictures, services

    pictures.forget()
    if services.editor.cache_info().currsize:  # the review page starts it too, with this module's ledger
        services.editor().close()
    for cached in (services.editor, services.ledger, services.store):
        cached.cache_clear()


@pytest.fixture
def anonymous(served: Served) -> Iterator[httpx.Client]:
    """Somebody who is not logged in."""
    with httpx.Client(base_url=f"{served.url}/packshot", trust_env=False) as client:
        yield client


def token(served: Served, name: str) -> str:
    """An access token of this account."""
    login = {"username": name, "password": served.password}
    answer = httpx.post(f"{served.url}/auth/token", json=login, trust_env=False)
    return answer.raise_for_status().json()["access_token"]


@pytest.fixture
def viewer(served: Served) -> Iterator[httpx.Client]:
    """A logged-in viewer, the weakest role there is."""
    with httpx.Client(base_url=f"{served.url}/packshot", trust_env=False) as client:
        client.headers["Authorization"] = f"Bearer {token(served, 'viewer')}"
        yield client
