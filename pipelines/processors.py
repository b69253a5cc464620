"""How a process of packshot shares the machine's cores, and holds its memory.

`import pipelines` applies `share_the_machine`, before torch or NumPy is loaded. The libraries below read these
variables once, when they are loaded. A variable that is already set wins.

By default OpenMP's threads (libgomp in torch) spin while they wait for each other. With more runnable processes than
cores, a thread that spins takes the core of the thread that it waits for: a sampler step of 0.6 s took 13.5 s. A
passive wait costs nothing on a quiet machine.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache

PATIENT = {
    "OMP_WAIT_POLICY": "PASSIVE",  # libgomp: torch, MKL on top of it
    "KMP_BLOCKTIME": "0",  # libiomp: builds of torch or MKL that use Intel's OpenMP
    "OPENBLAS_THREAD_TIMEOUT": "4",  # NumPy, SciPy: sleep after 2**4 cycles, not 2**26
}
"""How threads wait: asleep."""

COUNTS = ("OMP_NUM_THREADS", "OPENCV_FOR_THREADS_NUM")
"""Threads of a process: of torch, MKL, NumPy and SciPy; of OpenCV."""


def cores() -> int:
    """Cores that this process may use, at least 1."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def share_the_machine(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The variables that `environment` lacks.

    Threads: PACKSHOT_THREADS, which overrides what is there, or the cores divided by PACKSHOT_GPU_SLOTS: that many
    tasks compute at once. The settings report a wrong value of either; here it counts as not set.
    """
    missing = {name: value for name, value in PATIENT.items() if name not in environment}
    if wanted := _positive(environment.get("PACKSHOT_THREADS")):
        return missing | dict.fromkeys(COUNTS, str(wanted))
    share = max(1, cores() // (_positive(environment.get("PACKSHOT_GPU_SLOTS")) or 1))
    threads = environment.get("OMP_NUM_THREADS", str(share))
    return missing | {name: threads for name in COUNTS if name not in environment}


def _positive(text: str | None) -> int:
    return int(text) if text and text.isdecimal() else 0


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
    import ctypes

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
