"""The web app: review, runs, and a run's shots as pictures, behind Airflow's login.

    GET /overview                  what needs a person now, what runs, the last days
    GET /runs, ...                 runs and their shots, cancelling, trying again: `packshot_console.runs`
    GET /compare                   two runs over the same products, their rates and their pictures
    GET /campaign, ...             choosing scene and products, a forecast, the start: `packshot_console.campaign`
    GET /live, ...                 what each channel shows, and taking it back: `packshot_console.live`
    GET /products/{sku}            everything that was ever made of a product
    GET /review, ...               `packshot_console.review`
    GET /editor/{final}, ...       correcting the cutout of a held image: `packshot_console.editor`
    GET /pictures/{digest}         a picture of the ledger as WebP, at most `size` px on its longer side
    GET /public/...                what the channels show, without a login: `packshot_console.public.images`
    GET /public/sheets/...         contact sheets by signed links that end: `packshot_console.public.sheets`
    GET /metrics                   metrics for Prometheus, behind a token of their own
    GET /artifacts/{digest}        an artifact byte for byte as it is stored, images and JSON only

Every other route needs the right to read the DAGs, style sheets and scripts included. Scripts come from this server
alone, and the pages' policy forbids any other: what a catalogue says about its products is text here and nothing else.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import Annotated
from urllib.parse import urlsplit

import anyio
from airflow.api_fastapi.app import get_auth_manager
from airflow.configuration import conf
from fastapi import FastAPI, HTTPException, Path, Query, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.exception_handlers import http_exception_handler
from fastapi.responses import RedirectResponse
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.middleware import Middleware
from starlette.routing import Mount, Route, Router
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from packshot_console import (
    campaign,
    comparison,
    editor,
    live,
    metrics,
    overview,
    pages,
    pictures,
    products,
    review,
    runs,
    views,
)
from packshot_console.guards import LOOK
from packshot_console.public import images, sheets
from packshot_console.public.rate_limit import RateLimit

FOREVER = "private, max-age=31536000, immutable"

SECURITY_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; img-src 'self'; style-src 'self'; script-src 'self'; connect-src 'self'; base-uri 'none'; "
        "form-action 'self'; frame-ancestors 'self'"
    ),
    "X-Content-Type-Options": "nosniff",
}

PUBLIC = [
    Route("/sheets/console.css", sheets.style),
    Route("/sheets/{token}", sheets.sheet_page),
    Route("/sheets/{token}/{picture}", sheets.picture),
    Route("/{channel}/feed.{format}", images.feed),
    Route("/{channel}/{scene}/{sku:path}", images.image),
]
"""Routes without a login: what the channels show, and signed links. Each address may make so many requests a minute."""

Digest = Annotated[str, Path(pattern=r"^[0-9a-f]{64}$")]


def create_app() -> FastAPI:
    """The app. Its own documentation pages are off: they would answer without a login. So are redirects to an address
    with or without a slash: they would answer without one too, and name whatever host the request claims."""
    app = FastAPI(dependencies=LOOK, docs_url=None, redoc_url=None, openapi_url=None, redirect_slashes=False)
    app.add_middleware(_SecurityHeaders)
    app.exception_handler(StarletteHTTPException)(_to_login)
    app.include_router(pages.router)
    app.include_router(overview.router)
    app.include_router(runs.router)
    app.include_router(comparison.router)
    app.include_router(campaign.router)
    app.include_router(live.router)
    app.include_router(products.router)
    app.include_router(review.router)
    app.include_router(editor.router)
    app.include_router(sheets.router)
    app.state.one_preview = anyio.CapacityLimiter(1)

    app.add_route("/metrics", metrics.endpoint)  # for Prometheus: no login, a token of its own
    public_app = Router(PUBLIC, redirect_slashes=False)
    app.router.routes.append(Mount("/public", public_app, middleware=[Middleware(RateLimit)]))

    @app.get("/")
    def index(request: Request) -> Response:
        return RedirectResponse(pages.path_of(request, "overview_page"), HTTPStatus.SEE_OTHER)

    @app.get("/pictures/{digest}")
    async def picture(request: Request, digest: Digest, size: Annotated[int, Query(ge=16, le=1600)] = 360) -> Response:
        if not await run_in_threadpool(views.is_known, digest):
            raise HTTPException(HTTPStatus.NOT_FOUND, "the ledger knows no such artifact")
        data = await pictures.preview_in_turn(request, digest, size)
        if data is None:
            raise HTTPException(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "this artifact is no picture that can be shown")
        return Response(data, media_type="image/webp", headers={"Cache-Control": FOREVER})

    @app.get("/artifacts/{digest}")
    def artifact(digest: Digest) -> Response:
        media_type = views.media_type(digest)
        if media_type not in pictures.SERVED_AS_STORED:
            raise HTTPException(HTTPStatus.NOT_FOUND, "the ledger knows no such artifact")
        try:
            data = pictures.stored(digest)
        except KeyError:
            raise HTTPException(HTTPStatus.NOT_FOUND, "the store no longer has this artifact") from None
        return Response(data, media_type=media_type, headers={"Cache-Control": FOREVER})

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
                headers.setdefault("Referrer-Policy", "same-origin")
                headers.setdefault("Cache-Control", "no-store")
            await send(message)

        await self.app(scope, receive, send_with_headers)


async def _to_login(request: Request, error: Exception) -> Response:
    """A page that is opened without a session leads to the login, and one that is not there is a page all the same; a
    picture or a script gets the plain refusal."""
    assert isinstance(error, StarletteHTTPException)
    navigates = request.method == "GET" and request.headers.get("Sec-Fetch-Mode") == "navigate"
    if error.status_code == HTTPStatus.UNAUTHORIZED and navigates:
        base = urlsplit(conf.get("api", "base_url", fallback=""))  # not the request's Host, which anybody can write
        back = request.url.replace(scheme=base.scheme, netloc=base.netloc) if base.netloc else request.url.path
        return RedirectResponse(get_auth_manager().get_url_login(next_url=str(back)), HTTPStatus.SEE_OTHER)
    if error.status_code == HTTPStatus.NOT_FOUND and navigates:
        title, words = "There is no such page", "The address may be old, or misspelled."
        if error.detail != HTTPStatus.NOT_FOUND.phrase:
            words = f"{error.detail[:1].upper()}{error.detail[1:]}."
        return pages.page(request, "problem.html", error.status_code, title=title, words=words)
    return await http_exception_handler(request, error)
