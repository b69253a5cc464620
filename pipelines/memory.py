"""How a process that computes holds its memory. It changes no result, only what the allocator and Python's garbage
collector cost."""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4
"""Parameters of glibc's `mallopt`, from `malloc.h`."""

TRIM_ABOVE = 1 << 30
"""Free bytes at the heap's end above which they go back to the system."""

GROW_BY = 64 << 20
"""Bytes that the heap grows by beyond what is wanted."""


@cache
def keep_pages() -> bool:
    """Let glibc reuse the pages of freed tensors. Returns whether this is glibc.

    By default each block above 32 MB is mapped afresh, and the kernel clears all of its pages: 0.4 to 0.8 CPU seconds a
    cutout. The variables MALLOC_TRIM_THRESHOLD_ and the like would only reach child processes.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:
        return False
    options = ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, TRIM_ABOVE), (M_TOP_PAD, GROW_BY))
    return all(mallopt(option, value) == 1 for option, value in options)


@contextmanager
def importing() -> Iterator[None]:
    """Suspend the garbage collector, and exempt what is there at the end from it: modules stay until the end.

    Importing torch and transformers makes millions of objects, and the collector goes through all of them again and
    again: a fifth of the imports' time.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if enabled:
            gc.enable()
