"""The web app: runs, and a run's shots as pictures, behind Airflow's login. It reads and never writes.

    GET /runs                      the last runs
    GET /runs/{run}                every shot: photo → cutout → raw → final, verdicts, seconds, why it was held back
    GET /pictures/{digest}         a picture of the ledger as WebP, at most `size` px on its longer side
    GET /metrics                   metrics for Prometheus, behind a token of their own
    GET /artifacts/{digest}        an artifact byte for byte as it is stored, images and JSON only

Every other route needs the right to read the DAGs, the style sheet included. Pages carry no script at all, and a policy
that forbids any: what a catalogue says about its products is text here and nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from http import HTTPStatus
from pathlib import Path as FilePath
from typing import Annotated, Any

import anyio
import jinja2
from airflow.api_fastapi.app import get_auth_manager
from airflow.api_fastapi.core_api.security import requires_access_dag
from fastapi import Depends, FastAPI, HTTPException, Path, Query, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.exception_handlers import http_exception_handler
from fastapi.responses import HTMLResponse, RedirectResponse
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from packshot_console import metrics, pictures, views

DAGS = ("catalog_refresh", "campaign_backfill")
HERE = FilePath(__file__).resolve().parent
PAGE_SIZE = 40
FOREVER = "private, max-age=31536000, immutable"

SECURITY_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; img-src 'self'; style-src 'self'; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'self'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
}

Digest = Annotated[str, Path(pattern=r"^[0-9a-f]{64}$")]


def create_app() -> FastAPI:
    """The app. Its own documentation pages are off: they would answer without a login."""
    app = FastAPI(
        dependencies=[Depends(requires_access_dag("GET", None, dag_id)) for dag_id in DAGS],
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
    )
    app.add_middleware(_SecurityHeaders)
    app.exception_handler(StarletteHTTPException)(_to_login)
    one_preview = anyio.CapacityLimiter(1)

    app.add_route("/metrics", metrics.endpoint)  # for Prometheus: no login, a token of its own

    @app.get("/")
    def index(request: Request) -> Response:
        return RedirectResponse(request.url_for("run_list"), HTTPStatus.SEE_OTHER)

    @app.get("/runs")
    def run_list(request: Request) -> Response:
        return _page(request, "runs.html", runs=views.runs())

    @app.get("/runs/{run}")
    def run_page(
        request: Request,
        run: str,
        state: Annotated[str, Query(pattern=r"^[a-z]*$")] = "",
        page: Annotated[int, Query(ge=1, le=100_000)] = 1,
    ) -> Response:
        found = views.run_page(run, state, page, PAGE_SIZE)
        if found is None:
            raise HTTPException(HTTPStatus.NOT_FOUND, "the ledger knows no such run")
        return _page(request, "run.html", view=found)

    @app.get("/pictures/{digest}")
    async def picture(digest: Digest, size: Annotated[int, Query(ge=16, le=1600)] = 360) -> Response:
        if not await run_in_threadpool(views.is_known, digest):
            raise HTTPException(HTTPStatus.NOT_FOUND, "the ledger knows no such artifact")
        # whoever waits for the limiter holds none of the server's threads
        data = await anyio.to_thread.run_sync(pictures.preview, digest, size, limiter=one_preview)
        if data is None:
            raise HTTPException(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "this artifact is no picture that can be shown")
        return Response(data, media_type="image/webp", headers={"Cache-Control": FOREVER})

    @app.get("/artifacts/{digest}")
    def artifact(digest: Digest) -> Response:
        media_type = views.media_type(digest)
        if media_type not in pictures.SERVED_AS_STORED:
            raise HTTPException(HTTPStatus.NOT_FOUND, "the ledger knows no such artifact")
        return Response(pictures.stored(digest), media_type=media_type, headers={"Cache-Control": FOREVER})

    @app.get("/console.css")
    def style() -> Response:
        return Response((HERE / "templates" / "console.css").read_bytes(), media_type="text/css")

    return app


class _SecurityHeaders:
    """Adds the headers to every answer. Not Starlette's `BaseHTTPMiddleware`: it makes an error of every request that
    a browser gives up, as it does with a page's pictures at each reload."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers.update(SECURITY_HEADERS)
                headers.setdefault("Cache-Control", "no-store")
            await send(message)

        await self.app(scope, receive, send_with_headers)


async def _to_login(request: Request, error: Exception) -> Response:
    """A page that is opened without a session leads to the login; a picture or a script gets the plain refusal."""
    assert isinstance(error, StarletteHTTPException)
    navigates = request.method == "GET" and request.headers.get("Sec-Fetch-Mode") == "navigate"
    if error.status_code == HTTPStatus.UNAUTHORIZED and navigates:
        return RedirectResponse(get_auth_manager().get_url_login(next_url=str(request.url)), HTTPStatus.SEE_OTHER)
    return await http_exception_handler(request, error)


@lru_cache
def _templates() -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _page(request: Request, template: str, **values: Any) -> Response:
    """Render; `url(name, **path)` in a template is a path on this server, below whatever prefix it is served."""

    def url(name: str, query: Mapping[str, Any] | None = None, **path: str) -> str:
        target = request.url_for(name, **path)
        if query:
            target = target.include_query_params(**query)
        return f"{target.path}?{target.query}" if target.query else target.path

    return HTMLResponse(_templates().get_template(template).render(url=url, **values))
