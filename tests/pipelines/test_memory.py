"""A process that computes keeps its pages, and the garbage collector leaves modules alone."""

from __future__ import annotations

import gc
import subprocess
import sys

import pytest

from pipelines.memory import importing, keep_pages
from pipelines.settings import ROOT

PAGE_FAULTS = """
import resource, sys
import numpy as np
from pipelines.memory import keep_pages
if sys.argv[1] == "kept" and not keep_pages():
    sys.exit("not glibc")
np.ones(8_000_000)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    np.ones(8_000_000)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def page_faults(how: str) -> int:
    """Page faults of ten arrays of 64 MB, one after the other."""
    argv = [sys.executable, "-c", PAGE_FAULTS, how]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True)
    if "not glibc" in done.stderr:
        pytest.skip("another allocator than glibc's")
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


def test_freed_arrays_leave_their_pages_to_the_next() -> None:
    assert page_faults("kept") < page_faults("as usual") / 2


def test_an_allocator_without_mallopt_is_left_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ctypes.CDLL", lambda name: object())
    keep_pages.cache_clear()
    assert keep_pages() is False
    keep_pages.cache_clear()


@pytest.mark.parametrize("enabled", [True, False])
def test_the_collector_is_off_during_imports_and_then_as_before(enabled: bool) -> None:
    was = gc.isenabled()
    try:
        gc.enable() if enabled else gc.disable()
        with importing():
            assert not gc.isenabled()
        assert gc.isenabled() is enabled
    finally:
        gc.enable() if was else gc.disable()
        gc.unfreeze()
