"""How a process of packshot shares the machine's cores. `import pipelines` applies it, before torch or NumPy is loaded.

The libraries below read these variables once, when they are loaded. A variable that is already set wins.

By default OpenMP's threads (libgomp in torch) spin while they wait for each other. With more runnable processes than
cores, a thread that spins takes the core of the thread that it waits for: a sampler step of 0.6 s took 13.5 s. A
passive wait costs nothing on a quiet machine.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

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
