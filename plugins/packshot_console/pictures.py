"""Small pictures for the page, decoded and encoded again: no byte of an uploaded file reaches a browser."""

from __future__ import annotations

import io
from functools import lru_cache

import numpy as np
from PIL import Image

from packshot_console.services import store
from pipelines.errors import Rejected
from pipelines.settings import get_settings
from pipelines.vision.photos import read_photo

CACHED_PREVIEWS = 512
"""At some 15 kB each."""

QUALITY = 82

SERVED_AS_STORED = frozenset({"image/png", "image/jpeg", "image/webp", "application/json", "text/csv"})
"""Media types of what the stages made themselves. A catalogue's photo is only ever shown as a preview."""


@lru_cache(CACHED_PREVIEWS)
def preview(digest: str, size: int) -> bytes | None:
    """The picture as WebP, at most `size` px on its longer side; None where it is none, or too large to decode."""
    try:
        photo = read_photo(store().get(digest), get_settings().photo_max_megapixels)
    except (Rejected, KeyError):
        return None
    image = Image.fromarray(photo.rgb)
    if photo.alpha is not None:
        image.putalpha(Image.fromarray(np.round(photo.alpha * 255).astype(np.uint8)))
    image.thumbnail((size, size), Image.Resampling.LANCZOS)
    out = io.BytesIO()
    image.save(out, "WEBP", quality=QUALITY)
    return out.getvalue()


def stored(digest: str) -> bytes:
    """The artifact's bytes, checked against their name."""
    return store().get(digest)
