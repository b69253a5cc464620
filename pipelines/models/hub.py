"""The hub's cache on this machine, read with the hub's own client."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path


def from_hub(repo: str, revision: str, files: Sequence[str], download: bool) -> Path:
    """Return the path of the first of `files` in the hub's cache. With `download`, fetch missing files first.

    Raises huggingface_hub's errors, which are OSErrors: not cached, offline, gated, no such file.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    def fetched(file: str) -> Path:
        try:
            return Path(hf_hub_download(repo, file, revision=revision, local_files_only=True))
        except LocalEntryNotFoundError:
            if not download:
                raise
            return Path(hf_hub_download(repo, file, revision=revision))

    first, *_ = [fetched(file) for file in files]
    return first
