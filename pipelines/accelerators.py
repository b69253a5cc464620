"""One accelerator for each task on this machine: a task leases a device before torch sees any.

Pool `gpu` limits how many tasks compute at once, and torch's default device is the first for all of them. The lease is
a lock on a file, which ends with the process, however it ends.
"""

from __future__ import annotations

import fcntl
import logging
import os
import tempfile
from collections.abc import MutableMapping, Sequence
from pathlib import Path
from typing import IO

log = logging.getLogger(__name__)

VISIBLE = "CUDA_VISIBLE_DEVICES"
LOCKS = Path(tempfile.gettempdir()) / "packshot-accelerators"
"""Locks of this machine, whoever runs packshot on it."""

_leases: list[IO[bytes]] = []


def devices(environment: MutableMapping[str, str] = os.environ) -> list[str]:
    """The accelerators that this process may use: those of CUDA_VISIBLE_DEVICES, or all that have a device file."""
    if VISIBLE in environment:
        return [name for name in environment[VISIBLE].split(",") if name]
    return sorted((file.name[6:] for file in Path("/dev").glob("nvidia[0-9]*")), key=int)


def lease(
    known: Sequence[str] | None = None, folder: Path = LOCKS, environment: MutableMapping[str, str] = os.environ
) -> str | None:
    """Takes a free accelerator for the life of this process, and hides the others from torch. Returns its name.

    Returns None, and hides nothing, where there are fewer than two, or where every one is taken.
    """
    known = devices(environment) if known is None else known
    if len(known) < 2:
        return None
    if not folder.exists():
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o1777)  # other users' tasks make locks here too, whatever the umask
    for name in known:
        if not (folder / name).exists():
            (folder / name).touch()
        file = (folder / name).open("rb")  # another user's file can be locked, but not written
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            continue
        _leases.append(file)
        environment[VISIBLE] = name
        return name
    log.warning("all %d accelerators are taken; this task shares the first", len(known))
    return None
