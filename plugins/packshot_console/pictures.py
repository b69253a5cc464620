"""Small pictures for the page, decoded and encoded again: no byte of an uploaded file reaches a browser.

Both happen in the child process of `pipelines.vision.photos`, one picture at a time. Its CPU time and memory are
limited, and Airflow's API server holds only the file and the preview.
"""

from __future__ import annotations

from functools import lru_cache

import anyio
from fastapi import Request

from packshot_console.services import store
from pipelines.errors import Rejected
from pipelines.settings import get_settings
from pipelines.vision.photos import photo_preview

CACHED_PREVIEWS = 512
"""At some 15 kB each."""

SERVED_AS_STORED = frozenset({"image/png", "image/jpeg", "image/webp", "image/avif", "application/json", "text/csv"})
"""Media types of what the stages made themselves. A catalogue's photo is only ever shown as a preview."""


def preview(digest: str, size: int) -> bytes | None:
    """The picture as WebP, at most `size` px on its longer side; None where it is none, too large to decode, or not in
    the store. Only what was made is remembered: the store may have the picture later, or another limit may hold."""
    try:
        return _made(digest, size)
    except (Rejected, KeyError):
        return None


@lru_cache(CACHED_PREVIEWS)
def _made(digest: str, size: int) -> bytes:
    return photo_preview(store().get(digest), size, get_settings().photo_max_megapixels)


def forget() -> None:
    """Remember no preview."""
    _made.cache_clear()


async def preview_in_turn(request: Request, digest: str, size: int) -> bytes | None:
    """`preview`, one at a time. Whoever waits holds none of the server's threads."""
    return await anyio.to_thread.run_sync(preview, digest, size, limiter=request.app.state.one_preview)


def stored(digest: str) -> bytes:
    """The artifact's bytes, checked against their name."""
    return store().get(digest)
