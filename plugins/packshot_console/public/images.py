"""What the channels show, without a login: a stable address for each image, and each channel's feed.

GET /public/{channel}/{scene}/{sku}     the image that the channel shows of the product in the scene now
GET /public/{channel}/feed.tsv|xml      which image the channel shows of each product

The routes exist where PACKSHOT_PUBLIC_URL is set: the address under which shopping platforms reach them. Nothing but
images that are published now is reachable here, and no address names a file. Both are read from the rows that a
publication, an undo, a roll-back and a withdrawal change in one transaction.
"""

from __future__ import annotations

from http import HTTPStatus

from fastapi.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse

from packshot_console.services import ledger, store
from pipelines.errors import UsageError
from pipelines.ledger.shown import current_image, shown_images
from pipelines.runs.channel_feed import MEDIA_TYPES, channel_feed
from pipelines.scenes.channels import load_channel
from pipelines.settings import get_settings

FRESH = "public, max-age=300, must-revalidate"
"""Caches ask again after five minutes, so a roll-back is seen everywhere by then."""


async def image(request: Request) -> Response:
    """The bytes of the image, 304 where the caller has them, or 404."""
    parts = request.path_params
    if not get_settings().public_url or any("\x00" in part for part in parts.values()):
        return _nothing()
    found = await run_in_threadpool(current_image, ledger().engine, parts["channel"], parts["scene"], parts["sku"])
    if found is None:
        return _nothing()
    digest, media_type = found
    headers = {"ETag": f'"{digest}"', "Cache-Control": FRESH}
    if f'"{digest}"' in request.headers.get("If-None-Match", ""):
        return Response(status_code=HTTPStatus.NOT_MODIFIED, headers=headers)
    try:
        data = await run_in_threadpool(store().get, digest)
    except KeyError:  # `packshot verify` names it
        return _nothing()
    return Response(data, media_type=media_type, headers=headers)


def feed(request: Request) -> Response:
    """The channel's feed, or 404 for a channel without a feed of this format."""
    base, name = get_settings().public_url, request.path_params["channel"]
    try:
        wanted = load_channel(name).feed if base else None
    except UsageError:
        wanted = None
    if wanted is None or wanted.format != request.path_params["format"]:
        return _nothing()
    parts = channel_feed(shown_images(ledger().engine, name), name, wanted, base)
    return StreamingResponse(parts, media_type=MEDIA_TYPES[wanted.format], headers={"Cache-Control": "no-cache"})


def _nothing() -> Response:
    return PlainTextResponse("not found", HTTPStatus.NOT_FOUND)
