"""Bring a profile's published files onto this machine: by the hub's own client, or from a plain address.

Both go on where a transfer was cut off: the hub's client by its `.incomplete` files, a plain address by a `.part` file
beside the target and HTTP's Range.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import httpx

from pipelines.errors import IntegrityError, UsageError
from pipelines.models.files import sha256_of
from pipelines.models.profile import ModelPart

TIMEOUT = httpx.Timeout(30)
"""Seconds to connect, and between two blocks; a transfer as a whole may take its time."""

Progress = Callable[[int, int | None], None]
"""Told the bytes that are there, and those there will be where the server says."""


def fetch(part: ModelPart, progress: Progress = lambda done, total: None) -> str:
    """Put a part's files where the profile looks for them, those that are missing; return the sha256 of its weights.

    Raises UsageError where a part has no address, or its address does not answer (say it again to go on),
    IntegrityError where the bytes are not those that the profile names.
    """
    if part.url:
        if not part.path.exists():
            from_url(part.url, part.path, part.ref.sha256, progress)
    elif part.hub:
        for file in part.files:
            if not part.local(file).exists():
                _from_hub_to(part, file)
    elif not part.weights:
        raise UsageError(f"{part.path}: nobody says where to fetch it")
    digest = part.digest()
    if part.pinned and digest != part.ref.sha256:
        names = ", ".join(str(file) for file in part.weights)
        raise IntegrityError(
            f"{names}: expected sha256 {part.ref.sha256[:12]}… as the profile says, found {digest[:12]}…; "
            "delete it and fetch again"
        )
    return digest


def from_url(url: str, target: Path, sha256: str = "", progress: Progress = lambda done, total: None) -> None:
    """Download `url` to `target`, going on with what an earlier attempt left in `<target>.part`.

    The target comes to be whole or not at all, and, where `sha256` is given, of those bytes. Raises UsageError where
    the server does not answer or stops half-way, IntegrityError where it sent other bytes.
    """
    partial = target.with_name(f"{target.name}.part")
    target.parent.mkdir(parents=True, exist_ok=True)
    there = partial.stat().st_size if partial.exists() else 0
    asked = {"Accept-Encoding": "identity", **({"Range": f"bytes={there}-"} if there else {})}
    try:
        with httpx.stream("GET", url, headers=asked, follow_redirects=True, timeout=TIMEOUT) as response:
            if response.status_code != httpx.codes.REQUESTED_RANGE_NOT_SATISFIABLE:  # else all of it is there
                response.raise_for_status()
                if response.status_code != httpx.codes.PARTIAL_CONTENT:
                    there = 0  # the server begins anew, and so does the file
                length = response.headers.get("Content-Length")
                total = there + int(length) if length else None
                with partial.open("ab" if there else "wb") as file:
                    for block in response.iter_raw():  # as it comes: what was received is kept
                        file.write(block)
                        there += len(block)
                        progress(there, total)
    except httpx.HTTPStatusError as error:
        raise UsageError(f"{url}: {error.response.status_code} {error.response.reason_phrase}") from error
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        kept = f"; {there:,} bytes of it are kept, say it again to go on" if there else ""
        raise UsageError(f"{url}: {type(error).__name__}{kept}") from error
    if sha256 and (found := sha256_of(partial)) != sha256:
        partial.unlink()
        raise IntegrityError(f"{target}: expected sha256 {sha256[:12]}… as the profile says, {url} sent {found[:12]}…")
    partial.replace(target)


def _from_hub_to(part: ModelPart, file: str) -> None:
    """Put one file of a hub's repository into the models directory; the hub's client shows a bar and resumes."""
    from huggingface_hub import hf_hub_download

    folder = part.path.parent if part.single_file else part.path
    try:
        fetched = Path(hf_hub_download(part.hub, file, revision=part.ref.revision, local_dir=folder))
    except OSError as error:  # the client's own errors are OSErrors
        first = str(error).strip().splitlines()[0] if str(error).strip() else ""
        raise UsageError(f"{part.hub}/{file}: the hub did not give it ({type(error).__name__}: {first})") from error
    if fetched != part.local(file):
        fetched.replace(part.local(file))
