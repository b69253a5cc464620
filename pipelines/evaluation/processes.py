"""Settings of this process: its end and its memory."""

from __future__ import annotations

import ctypes
import os
import threading
from multiprocessing import parent_process
from multiprocessing.process import BaseProcess


def end_with_parent() -> None:
    """End this process when its parent ends, so that a killed experiment leaves no workers behind."""
    parent = parent_process()
    if parent is not None:
        threading.Thread(target=_follow, args=(parent,), daemon=True).start()


def _follow(parent: BaseProcess) -> None:
    parent.join()
    os._exit(1)


M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""glibc's `mallopt`, malloc.h."""


def keep_freed_memory() -> None:
    """Let glibc keep up to 1 GiB of freed memory, for long work that runs alone.

    By default glibc returns each large tensor to the system. The page faults of the next allocation take a fifth of the
    time of scoring. Without glibc this does nothing.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    # older glibc accepts at most 32 MiB and returns 0 otherwise; a trim threshold alone would make it slower
    if mallopt is not None and (mallopt(M_MMAP_THRESHOLD, 2**30) or mallopt(M_MMAP_THRESHOLD, 2**25)):
        mallopt(M_TRIM_THRESHOLD, 2**30)
