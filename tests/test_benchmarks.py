"""What the sampler costs at SD 1.5's real size: counted, and measured in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys

import psutil
import pytest

from benchmarks.sampler import count, time_steps
from pipelines.settings import ROOT

NEEDED_GB = 11


@pytest.mark.slow
def test_a_guided_step_costs_much_less_than_its_modules_called_naively():
    figures = {figure.name: figure for figure in count()}
    step, ended = figures["guided_step_flops"], figures["ended_control_flops"]
    assert step.ratio == step.value / step.baseline <= 0.87
    assert step.value > 2e12  # a UNet of this size, twice, is 1.6e12 alone
    assert ended.value == 0
    assert ended.baseline > 5e11


@pytest.mark.slow
def test_a_step_is_timed_beside_the_bare_calls():
    figure = time_steps(steps=3, warm_up=1, side=128)
    assert figure.ratio == figure.value / figure.baseline
    assert 0.5 < figure.ratio < 2  # the figure itself is `make bench`'s: three steps on a busy machine are noise


@pytest.mark.slow
def test_a_step_at_real_size_fits_in_12_gb_and_the_sampler_adds_under_2_percent():
    if psutil.virtual_memory().available < NEEDED_GB * 1e9:
        pytest.skip(f"needs {NEEDED_GB} GB of free memory")
    done = subprocess.run([sys.executable, "-m", "benchmarks.step_memory"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    figures = json.loads(done.stdout.splitlines()[-1])
    assert 8 < figures["modules_gb"] < figures["peak_gb"] < 12
    assert 0 < figures["sampler_share"] < 0.02
