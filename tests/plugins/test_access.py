"""Who may do what: every route of the console × every role × own and forged requests, with both auth managers."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import time
from collections.abc import Iterator

import httpx
import pytest
from fastapi import FastAPI
from fastapi.routing import APIRoute
from sqlalchemy.engine import make_url
from starlette.routing import Mount

from pipelines.settings import ROOT, get_settings
from tests.conftest import create_database
from tests.plugins.conftest import Served, token
from tests.plugins.routes import DECIDE, LOGGED_IN, METRICS, OPEN, ROWS, START, WRITES, Row

FAB_PYTHON = ROOT / "build" / "fab" / "bin" / "python"
"""Python with the FAB provider beside packshot, as `make fab` makes it."""

METRICS_TOKEN = "a token for Prometheus"

FORGED = [
    {"Sec-Fetch-Site": "cross-site"},
    {"Sec-Fetch-Site": "same-site"},
    {"Sec-Fetch-Site": "none"},
    {"Sec-Fetch-Site": "same-site", "Origin": "http://127.0.0.1:1"},
    {"Sec-Fetch-Site": "same-origin", "Origin": "https://elsewhere.example"},
    {"Origin": "https://elsewhere.example"},
    {"Origin": "null"},
    {"Origin": ""},
    {"Origin": "http://["},
    {},
]
OWN = {"Sec-Fetch-Site": "same-origin"}

HUGE = "9" * 6000
SEGMENTS = ["%00", "a%00b", "%FF%FE", HUGE, "-1", "1e%2B9", "%3Cb%3E", "..%2F..%2Fapp.py", "%ED%A0%80", "%F0%9F%92%A9"]
VALUES = ["%00", "a%00", "%FF", HUGE, "-1", "1e9", "%5B%5D", "%ED%A0%80", ""]
TEXTS = [
    b"", b"{", b"[]", b"null", b'"x"', b"{}}", b"\xff\xfe", b"[" * 9_000, b'{"a":' * 3_000, b'{"unknown": 1}',
    b" " * 25_000, b"x" * 500_000,
]  # fmt: skip
WRONG = [
    None, True, -1, 10**30, 0.5, "x" * 9_000, "\0", "\ud800", [], {}, [[]], [None], ["\0"], ["\ud800"],
    {"a": 1}, [10**30], [-1, "x"],
]  # fmt: skip


@pytest.fixture(scope="module")
def open_settings(settings) -> Iterator[None]:
    """Metrics and public addresses are on."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PACKSHOT_PUBLIC_URL", "https://img.shop.example")
        patch.setenv("PACKSHOT_METRICS_TOKEN", METRICS_TOKEN)
        get_settings.cache_clear()
        yield
    get_settings.cache_clear()


@pytest.fixture(scope="module")
def fab(airflow_db, settings, open_settings) -> Iterator[Served]:
    """Airflow's api-server with the FAB auth manager, in a process of its own."""
    if not FAB_PYTHON.exists():
        pytest.skip("needs Airflow's FAB provider in build/fab: make fab")
    create_database("airflow_fab")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    served = Served(f"http://127.0.0.1:{port}", "a password for tests")
    metadata = make_url(os.environ["AIRFLOW__DATABASE__SQL_ALCHEMY_CONN"]).set(database="airflow_fab")
    environment = os.environ | {
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": metadata.render_as_string(hide_password=False),
        "AIRFLOW__CORE__AUTH_MANAGER": "airflow.providers.fab.auth_manager.fab_auth_manager.FabAuthManager",
        "AIRFLOW__API__BASE_URL": served.url,
    }
    argv = [FAB_PYTHON, "-m", "tests.plugins.fab_server", str(port), served.password]
    server = subprocess.Popen(argv, cwd=ROOT, env=environment)
    try:
        until = time.monotonic() + 180
        while True:
            assert server.poll() is None, "the api-server with FAB ended"
            assert time.monotonic() < until, "the api-server with FAB did not start"
            try:
                httpx.get(f"{served.url}/api/v2/version", trust_env=False)
                break
            except httpx.TransportError:
                time.sleep(0.2)
        yield served
    finally:
        server.terminate()
        server.wait(timeout=60)


@pytest.fixture(scope="module", params=["simple", "fab"])
def server(request: pytest.FixtureRequest, open_settings) -> Served:
    return request.getfixturevalue({"simple": "served", "fab": "fab"}[request.param])


@pytest.fixture(scope="module")
def bearers(server: Served) -> dict[str, str]:
    """Access token by account."""
    return {name: token(server, name) for name in ("viewer", "merchandiser", "op", "admin")}


@pytest.fixture(scope="module")
def client(server: Served) -> Iterator[httpx.Client]:
    """Somebody without a login: whoever has one names it in each request."""
    with httpx.Client(base_url=f"{server.url}/packshot", trust_env=False, timeout=60) as client:
        yield client


def allowed(row: Row, name: str) -> bool:
    return row.right not in (DECIDE, START) or name != "viewer"


def send(client: httpx.Client, row: Row, run: dict[str, str], **headers: str) -> int:
    content = None if row.body is None else json.dumps(row.body)
    return client.request(row.method, row.address(run), content=content, headers=headers).status_code


def test_the_table_has_every_route(open_settings) -> None:
    found = []
    for route in console().routes:
        mounted = isinstance(route, Mount)
        assert not mounted or route.path == "/public", "a mounted app escapes the guards"
        for one in route.routes if mounted else [route]:
            path = route.path + one.path if mounted else one.path
            found += [f"{method} {path}" for method in one.methods or {"GET"} if method != "HEAD"]
    assert sorted(row.name for row in ROWS) == sorted(found)


def console() -> FastAPI:
    """The console's app, as Airflow mounts it."""
    from airflow.settings import prepare_syspath_for_config_and_plugins

    prepare_syspath_for_config_and_plugins()
    from packshot_console.app import create_app

    return create_app()


def test_nobody_gets_in_without_a_login(client, run) -> None:
    wrong = []
    for row in LOGGED_IN:
        for headers in ({}, OWN, {"Authorization": "Bearer"}):
            if (status := send(client, row, run, **headers)) != 401:
                wrong.append((row.name, headers, status))
        for false in ({"Authorization": "Bearer x.y.z"}, {"Cookie": "_token=x.y.z"}):
            if (status := send(client, row, run, **OWN, **false)) not in (401, 403):
                wrong.append((row.name, false, status))
    assert wrong == []
    for path in ("/openapi.json", "/docs", "/redoc"):
        assert client.get(path).status_code == 404


def test_every_role_does_what_it_may_and_nothing_else(client, server, bearers, run) -> None:
    wrong = []
    for row in LOGGED_IN:
        for name, bearer in bearers.items():
            expected = row.answer if allowed(row, name) else 403
            cookie = {"Cookie": f"_token={bearer}"}
            for headers in (cookie | OWN, cookie | {"Origin": server.url}, {"Authorization": f"Bearer {bearer}"}):
                if (status := send(client, row, run, **headers)) != expected:
                    wrong.append((row.name, name, list(headers), status))
    assert wrong == []


def test_nothing_is_done_for_another_sites_page(client, bearers, run) -> None:
    wrong = []
    for row in WRITES:
        for name, bearer in bearers.items():
            cookie = {"Cookie": f"_token={bearer}"}
            for forged in FORGED:
                if (status := send(client, row, run, **cookie, **forged)) != 403:
                    wrong.append((row.name, name, forged, status))
        for forged in FORGED:  # a token exempts only where no cookie is sent
            for word in (f"Bearer {bearer}", "Bearer"):
                status = send(client, row, run, **cookie, **forged, Authorization=word)
                if status not in (401, 403):
                    wrong.append((row.name, word[:8], forged, status))
    assert wrong == []


def test_another_sites_page_takes_no_seat_in_the_queue(client, bearers, run) -> None:
    cookie = {"Cookie": f"_token={bearers['viewer']}"}
    for forged in FORGED:
        expected = 403 if forged else 200  # old browsers name no site in a GET
        assert client.get("/review/queue?seat=abc", headers=cookie | forged).status_code == expected, forged
        assert client.get("/review/queue", headers=cookie | forged).status_code == 200
    assert client.get("/review/queue?seat=abc", headers=cookie | OWN).status_code == 200


def test_what_is_open_is_open_and_what_has_a_token_of_its_own_wants_that(client, bearers, run) -> None:
    for row in ROWS:
        if row.right in (OPEN, METRICS):
            for headers in ({}, {"Cookie": f"_token={bearers['admin']}"}):
                assert send(client, row, run, **headers) == row.answer, row.name
    for bearer, status in ((METRICS_TOKEN, 200), (bearers["admin"], 401), ("é", 401)):
        given = {"Authorization": f"Bearer {bearer}".encode()}
        assert client.get("/metrics", headers=given).status_code == status
    login = {"Authorization": f"Bearer {METRICS_TOKEN}"}
    assert {send(client, row, run, **OWN, **login) for row in LOGGED_IN} <= {401, 403}


def test_a_page_without_a_login_leads_to_the_login_of_either_auth_manager(client) -> None:
    answer = client.get("/runs", headers={"Sec-Fetch-Mode": "navigate", "Host": "evil.example"})
    assert answer.status_code == 303
    assert "/auth/login" in answer.headers["location"]
    assert "evil" not in answer.headers["location"]


def test_a_malformed_path_or_query_is_refused_and_never_an_error_of_the_server(client, bearers, run) -> None:
    logged_in = {"Cookie": f"_token={bearers['op']}", **OWN}
    wrong = []
    for row in ROWS:
        for path in malformed_paths(row):
            for headers in ({}, logged_in):
                status = client.request(row.method, path, headers=headers).status_code
                if not 400 <= status < 500:
                    wrong.append((row.name, path[:80], len(headers), status))
    for row, name in queries():
        for value in VALUES:
            query = f"{name}={value}"
            for repeated in (query, f"{query}&{query}"):
                status = client.get(f"{row.address(run).split('?')[0]}?{repeated}", headers=logged_in).status_code
                if status >= 500 or (status < 400 and "%00" in value):
                    wrong.append((row.name, repeated[:80], status))
    assert wrong == []


def malformed_paths(row: Row) -> Iterator[str]:
    """Addresses of a route in which one part is malformed, the others as in the example."""
    path, example = row.path.split("/"), row.example.split("?")[0].split("/")
    for n, part in enumerate(path):
        if "{" in part:
            for segment in SEGMENTS:
                yield "/".join([*example[:n], segment, *example[n + 1 :]])


def queries() -> list[tuple[Row, str]]:
    """Every parameter in the query of every route."""
    by_path = {row.path: row for row in ROWS if row.method == "GET"}
    found = []
    for route in console().routes:
        if not isinstance(route, APIRoute) or "GET" not in route.methods:
            continue
        waiting = [route.dependant]
        while waiting:
            part = waiting.pop()
            waiting += part.dependencies
            found += [(by_path[route.path], field.alias) for field in part.query_params]
    assert len(found) > 15
    return found


def test_a_malformed_body_is_refused_and_never_an_error_of_the_server(client, bearers) -> None:
    bearer = {"Authorization": f"Bearer {bearers['op']}"}
    wrong = []
    for row in WRITES:
        fields = row.body or {}
        bodies = TEXTS + [json.dumps(fields | {key: value}).encode() for key in fields for value in WRONG]
        for body in bodies:
            status = posted(client, row.example, body, **bearer)
            if status >= 500 or (status < 400 and fields):
                wrong.append((row.name, body[:120], status))
        for body in TEXTS:
            if (status := posted(client, row.example, body, **OWN)) != 401:
                wrong.append((row.name, "no login", body[:80], status))
    assert wrong == []


def posted(client: httpx.Client, path: str, body: bytes, **headers: str) -> int:
    """Status of a post. The server closes the connection on a body that is too large, with or without an answer."""
    try:
        return client.post(path, content=body, headers=headers).status_code
    except (httpx.ReadError, httpx.WriteError):
        assert len(body) > 100_000, (path, body[:80])
        return 401 if "Authorization" not in headers else 413


def test_no_route_has_another_method(client, bearers, run) -> None:
    logged_in = {"Cookie": f"_token={bearers['admin']}", **OWN}
    methods: dict[str, set[str]] = {}
    for row in ROWS:
        methods.setdefault(row.address(run).split("?")[0], set()).add(row.method)
    for path, known in methods.items():
        for method in {"POST", "PUT", "PATCH", "DELETE"} - known:
            assert client.request(method, path, headers=logged_in).status_code == 405, (method, path)
