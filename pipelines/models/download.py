"""Download a profile's published files: with the hub's own client, or from a plain URL.

Both resume an interrupted transfer: the hub's client from its `.incomplete` files, a plain URL from a `.part` file next
to the target, with HTTP's Range.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import httpx

from pipelines.errors import IntegrityError, UsageError
from pipelines.models.files import sha256_of
from pipelines.models.profile import ModelPart

TIMEOUT = httpx.Timeout(30)
"""Seconds for connecting and between two blocks. The whole transfer has no limit."""

Progress = Callable[[int, int | None], None]
"""Called with the bytes received, and the total if the server gives it."""


def fetch(part: ModelPart, progress: Progress = lambda done, total: None) -> str:
    """Download a part's missing files to where the profile expects them. Return the sha256 of its weights.

    Raises UsageError if a part has no address, or the server does not answer (repeat the command to resume). Raises
    IntegrityError if the bytes differ from the profile's digest.
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
    """Download `url` to `target`; resume from `<target>.part`.

    The target appears only when it is complete and, if `sha256` is given, has that digest. Raises UsageError if the
    server does not answer or stops, IntegrityError if it sends other bytes.
    """
    partial = target.with_name(f"{target.name}.part")
    target.parent.mkdir(parents=True, exist_ok=True)
    there = partial.stat().st_size if partial.exists() else 0
    asked = {"Accept-Encoding": "identity", **({"Range": f"bytes={there}-"} if there else {})}
    try:
        with httpx.stream("GET", url, headers=asked, follow_redirects=True, timeout=TIMEOUT) as response:
            if response.status_code != httpx.codes.REQUESTED_RANGE_NOT_SATISFIABLE:  # else it is complete
                response.raise_for_status()
                if response.status_code != httpx.codes.PARTIAL_CONTENT:
                    there = 0  # the server sends it from the beginning
                length = response.headers.get("Content-Length")
                total = there + int(length) if length else None
                with partial.open("ab" if there else "wb") as file:
                    for block in response.iter_raw():  # unbuffered, to keep what was received
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
    """Download one file of a hub repository into the models directory. The hub's client shows a progress bar and
    resumes."""
    from huggingface_hub import hf_hub_download

    folder = part.path.parent if part.single_file else part.path
    try:
        fetched = Path(hf_hub_download(part.hub, file, revision=part.ref.revision, local_dir=folder))
    except OSError as error:  # includes the client's own errors
        first = str(error).strip().splitlines()[0] if str(error).strip() else ""
        raise UsageError(f"{part.hub}/{file}: the hub did not give it ({type(error).__name__}: {first})") from error
    if fetched != part.local(file):
        fetched.replace(part.local(file))
