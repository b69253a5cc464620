"""Contact sheets for somebody without a login: a signed link that ends.

POST /live/sheets                            make a link to the images of a choice, for 1, 7 or 30 days
GET  /public/sheets/{token}                  the sheet
GET  /public/sheets/{token}/{picture}        a picture of it

The link shows what was shown when it was made, without what was taken back since, and leads to nothing else. The key
is PACKSHOT_SHEET_KEY; without it there are no links.
"""

from __future__ import annotations

import logging
import time
from datetime import UTC, datetime, timedelta
from http import HTTPStatus
from typing import Any, Literal

from airflow.api_fastapi.core_api.security import GetUserDep
from airflow.configuration import conf
from fastapi import APIRouter, Request, Response
from fastapi.concurrency import run_in_threadpool
from starlette.responses import PlainTextResponse

from packshot_console import pages, pictures
from packshot_console.guards import DECIDE
from packshot_console.requests import Body, Words, as_json, read_body, refused
from packshot_console.services import ledger
from pipelines.errors import UsageError
from pipelines.ledger.shown import count_shown, sheet_images, sheet_picture
from pipelines.runs import sheet_links
from pipelines.runs.sheet_links import Expired, Sheet
from pipelines.settings import get_settings

PAGE_SIZE = 60
SMALL, LARGE = 480, 1600
"""Sizes of pictures in px."""

PRIVATE = {"Referrer-Policy": "no-referrer", "X-Robots-Tag": "noindex, nofollow", "Cache-Control": "private, no-store"}

log = logging.getLogger(__name__)
router = APIRouter()


class WantedSheet(Body):
    """Body of a link: what the live page is narrowed to, and for how long."""

    scene: Words = ""
    channel: Words = ""
    run: Words = ""
    sku: Words = ""
    days: Literal[1, 7, 30]


@router.post("/live/sheets", dependencies=DECIDE)
async def make_sheet(request: Request, user: GetUserDep) -> Response:
    """Make a link; the answer has it, its number of images, and when it ends."""
    body = await read_body(request, WantedSheet)
    try:
        return as_json(await run_in_threadpool(_make, body, user.get_name()))
    except UsageError as refusal:
        return refused(refusal)


def _make(body: WantedSheet, by: str) -> dict[str, Any]:
    key = _key()
    if not key:
        raise UsageError("links need a key: set PACKSHOT_SHEET_KEY, or run `packshot up`")
    choice = body.model_dump(exclude={"days"})
    images, now = count_shown(ledger().engine, choice)
    if not images:
        raise UsageError("nothing is shown of this choice")
    ends = now + timedelta(days=body.days)
    sheet = Sheet(made=now.timestamp(), ends=int(ends.timestamp()), images=images, **choice)
    base = get_settings().public_url or f"{conf.get('api', 'base_url', fallback='').rstrip('/')}/packshot/public"
    log.info("%s made a link to a contact sheet of %d images (%s) until %s", by, images, choice, sheet.until)
    link = f"{base.rstrip('/')}/sheets/{sheet_links.sign(sheet, key)}"
    return {"link": link, "images": images, "ends": f"{sheet.until:%Y-%m-%d %H:%M} UTC"}


async def sheet_page(request: Request) -> Response:
    """The sheet; a sentence with 403 for a forged link and 410 for one that ended."""
    token, key = request.path_params["token"], _key()
    sheet = _read(token, key)
    if isinstance(sheet, Response):
        return sheet
    number = request.query_params.get("page", "")[:6]
    page = max(1, int(number)) if number.isdecimal() else 1
    found = await run_in_threadpool(_view, sheet, token, key, page)
    answer = pages.page(request, "sheet.html", **found)
    answer.headers.update(PRIVATE)
    return answer


async def picture(request: Request) -> Response:
    """A picture of the sheet as WebP, small or large."""
    token, key = request.path_params["token"], _key()
    sheet = _read(token, key)
    if isinstance(sheet, Response):
        return sheet
    try:
        publication = sheet_links.read_picture(request.path_params["picture"], token, key)
    except sheet_links.Forged as error:
        return _said(error, HTTPStatus.FORBIDDEN)
    digest = await run_in_threadpool(sheet_picture, ledger().engine, publication)
    size = LARGE if request.query_params.get("size") == "large" else SMALL
    data = await pictures.preview_in_turn(request, digest, size) if digest else None
    if data is None:
        return PlainTextResponse("This picture is no longer shown.", HTTPStatus.NOT_FOUND, PRIVATE)
    return Response(data, media_type="image/webp", headers={**PRIVATE, "Cache-Control": "private, max-age=300"})


def style(request: Request) -> Response:
    """The style sheet of the page. The console's own route for it needs a login."""
    return pages.static("console.css")


def _key() -> str:
    return get_settings().sheet_key.get_secret_value()


def _read(token: str, key: str) -> Sheet | Response:
    if not key:
        return PlainTextResponse("not found", HTTPStatus.NOT_FOUND)
    try:
        return sheet_links.read(token, key, time.time())
    except Expired as error:
        return _said(error, HTTPStatus.GONE)
    except sheet_links.Forged as error:
        return _said(error, HTTPStatus.FORBIDDEN)


def _said(error: UsageError, status: HTTPStatus) -> Response:
    return PlainTextResponse(str(error), status, PRIVATE)


def _view(sheet: Sheet, token: str, key: str, page: int) -> dict[str, Any]:
    choice = {"scene": sheet.scene, "channel": sheet.channel, "run": sheet.run, "sku": sheet.sku}
    made = datetime.fromtimestamp(sheet.made, UTC)
    images = sheet_images(ledger().engine, choice, made, PAGE_SIZE, (page - 1) * PAGE_SIZE)
    return {
        "sheet": sheet,
        "made": made,
        "token": token,
        "images": [(image, sheet_links.name_picture(image.id, token, key)) for image in images],
        "number": page,
        "pages": max(1, -(-sheet.images // PAGE_SIZE)),
    }
