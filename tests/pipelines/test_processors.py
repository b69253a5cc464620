"""Every process of packshot waits asleep, and takes its share of the cores, from before torch is loaded. One that
computes keeps its pages, and the garbage collector leaves modules alone."""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys

import pytest

from pipelines.processors import COUNTS, PATIENT, cores, importing, keep_pages, share_the_machine
from pipelines.settings import ROOT

AS_TORCH_IS_LOADED = """
import importlib.abc, json, os, sys

class Look(importlib.abc.MetaPathFinder):
    seen = None

    def find_spec(self, name, path, target=None):
        if name == "torch" and Look.seen is None:
            Look.seen = dict(os.environ)

sys.meta_path.insert(0, Look())
for name in sys.argv[1:]:
    __import__(name)
import torch
print(json.dumps({"environment": Look.seen, "threads": torch.get_num_threads()}))
"""


def loaded(*modules: str, **variables: str) -> dict:
    """The environment when torch is first imported, and torch's threads, in a process that imports `modules`."""
    clean = {name: value for name, value in os.environ.items() if name not in {*PATIENT, *COUNTS}}
    argv = [sys.executable, "-c", AS_TORCH_IS_LOADED, *modules]
    environment = clean | {"PYTHONPATH": str(ROOT)} | variables
    done = subprocess.run(argv, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.medium
@pytest.mark.parametrize(
    "modules",
    [
        ("pipelines.runs.local", "pipelines.stages.cutout"),
        pytest.param(("operators.stages", "pipelines.stages.inspect"), marks=pytest.mark.slow),
        pytest.param(("pipelines.evaluation.experiment.workers",), marks=pytest.mark.slow),
        pytest.param(("pipelines.training.loop",), marks=pytest.mark.slow),
        pytest.param(("benchmarks.sampler",), marks=pytest.mark.slow),
    ],
    ids=lambda modules: modules[0],
)
def test_whatever_loads_torch_waits_asleep_on_every_core(modules: tuple[str, ...]) -> None:
    found = loaded(*modules)
    assert {name: found["environment"].get(name) for name in PATIENT} == PATIENT
    assert {found["environment"].get(name) for name in COUNTS} == {str(cores())}
    assert found["threads"] == cores()


@pytest.mark.medium
def test_torch_takes_the_threads_of_the_setting() -> None:
    assert loaded("pipelines.models.weights", PACKSHOT_THREADS="1", OMP_NUM_THREADS="2")["threads"] == 1


def test_the_cores_are_divided_by_the_tasks_that_compute_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipelines.processors.cores", lambda: 16)
    for slots, threads in {"1": "16", "3": "5", "64": "1", "many": "16"}.items():
        assert share_the_machine({"PACKSHOT_GPU_SLOTS": slots})["OMP_NUM_THREADS"] == threads


def test_what_is_set_stays() -> None:
    own = {"OMP_WAIT_POLICY": "ACTIVE", "OMP_NUM_THREADS": "7"}
    added = share_the_machine(own)
    assert added.keys() & own.keys() == set()
    assert added["OPENCV_FOR_THREADS_NUM"] == "7"
    assert share_the_machine(own | {"PACKSHOT_THREADS": "2"})["OMP_NUM_THREADS"] == "2", "the setting has precedence"


PAGE_FAULTS = """
import resource, sys
import numpy as np
from pipelines.processors import keep_pages
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
    assert page_faults("kept") < page_faults("as usual") / 10


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
