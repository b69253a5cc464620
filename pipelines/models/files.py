"""Weight files as bytes: their digests, and whether they are complete. It imports neither torch nor profiles."""

from __future__ import annotations

import hashlib
import zipfile
from functools import lru_cache
from pathlib import Path

from safetensors import SafetensorError, safe_open

from pipelines.errors import IntegrityError

LEGACY_SUFFIXES = frozenset({".bin", ".ckpt", ".patch", ".pt", ".pth"})
"""Files that torch wrote with pickle. They are read with weights_only, and only if pinned or trusted."""

WEIGHT_SUFFIXES = LEGACY_SUFFIXES | {".safetensors"}


def sha256_of(*files: Path) -> str:
    """Return the sha256 of files, one after the other. It is cached until a file is replaced or written to."""
    return _digest(tuple(_identity(file) for file in files))


def _identity(file: Path) -> tuple[str, int, int, int, int]:
    """Return what changes with a file's content: size and modification time can be set back, the change time cannot."""
    stat = file.stat()
    return str(file), stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns


@lru_cache(maxsize=1024)
def _digest(files: tuple[tuple[str, int, int, int, int], ...]) -> str:
    """All but the path are cache keys only."""
    digest = hashlib.sha256()
    for path, *_ in files:
        with Path(path).open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def check_file_complete(file: Path) -> None:
    """Raise IntegrityError if a weight file is cut short, or of another kind than its name says."""
    if file.suffix == ".safetensors":
        _check_safetensors(file)
    elif file.suffix in LEGACY_SUFFIXES:
        _check_torch(file)


def _check_torch(file: Path) -> None:
    """Check a torch file: a zip archive, whose directory is at its end, or an old bare pickle, whose end cannot be
    checked."""
    with file.open("rb") as stream:
        start = stream.read(2)
    if not zipfile.is_zipfile(file) and start[:1] != b"\x80":
        found = "one that is cut short" if start == b"PK" else "a file of another kind"
        raise IntegrityError(f"{file}: expected a torch file, found {found}")


def _check_safetensors(file: Path) -> None:
    """Raise IntegrityError if the header of `file` is not valid, or if the file is shorter or longer than it says."""
    try:
        with safe_open(file, framework="np"):
            pass
    except SafetensorError as error:
        with file.open("rb") as stream:
            pickled = stream.read(2).startswith((b"PK", b"\x80"))
        found = "a torch or pickle file" if pickled else "a file that is cut short or of another kind"
        raise IntegrityError(f"{file}: expected safetensors, found {found} ({error})") from error
