"""What a process asks of its system."""

from __future__ import annotations

import ctypes
import os
import threading
from multiprocessing import parent_process
from multiprocessing.process import BaseProcess


def end_with_parent() -> None:
    """Have this process end when the one that began it does: a killed experiment must not leave its workers waiting."""
    parent = parent_process()
    if parent is not None:
        threading.Thread(target=_follow, args=(parent,), daemon=True).start()


def _follow(parent: BaseProcess) -> None:
    parent.join()
    os._exit(1)


M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""glibc's `mallopt`, malloc.h."""


def keep_freed_memory() -> None:
    """Have glibc keep up to a gigabyte of freed memory, for long work that runs alone.

    It gives every large tensor back, and the page faults of taking it again are a fifth of the time that scoring takes.
    Without glibc nothing changes.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    # older glibc takes no more than 32 MiB; it tells by nought, and a trim threshold alone would make things worse
    if mallopt is not None and (mallopt(M_MMAP_THRESHOLD, 2**30) or mallopt(M_MMAP_THRESHOLD, 2**25)):
        mallopt(M_TRIM_THRESHOLD, 2**30)
