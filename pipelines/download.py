"""Bring a profile's published files onto this machine: by the hub's own client."""

from __future__ import annotations

from pathlib import Path

from pipelines.models import Part


def from_hub(part: Part, download: bool) -> Path:
    """Path of a part in the hub's cache on this machine; what is missing there is fetched where `download`.

    Raises huggingface_hub's errors, which are OSErrors: not cached, offline, gated, no such file.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    def fetched(file: str) -> Path:
        try:
            return Path(hf_hub_download(part.hub, file, revision=part.ref.revision, local_files_only=True))
        except LocalEntryNotFoundError:
            if not download:
                raise
            return Path(hf_hub_download(part.hub, file, revision=part.ref.revision))

    paths = [fetched(file) for file in part.files]
    return paths[0] if part.single_file else paths[0].parents[part.files[0].count("/")]
