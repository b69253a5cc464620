"""What the sampler costs at SD 1.5's real size: counted, and measured in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from xml.etree import ElementTree

import psutil
import pytest

from benchmarks.sampler import count, time_steps
from benchmarks.shoot import CAUSES, draw, shoot_here
from benchmarks.stock import against_stock
from pipelines.contracts import STAGES
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
def test_a_step_of_stock_diffusers_is_the_baseline_of_blended():
    figure = against_stock(1, pairs=1, steps=3)
    assert figure.ratio == figure.value / figure.baseline
    assert 0.3 < figure.ratio < 3  # likewise


@pytest.mark.slow
def test_the_cpu_time_of_shoot_is_told_by_stage_and_by_cause_and_drawn():
    figures = shoot_here(1, "white-plain")
    stages = {name: value for name, value in figures.items() if name.startswith("stage ")}
    causes = {name: value for name, value in figures.items() if name.startswith("cause ")}
    assert set(stages) == {f"stage {name}" for name in ("imports", *STAGES)}
    assert set(causes) <= {f"cause {name}" for name in ("imports", "other", *CAUSES)}
    assert causes["cause UNet"] > 0
    assert causes["cause salient net"] > 0
    assert sum(stages.values()) == pytest.approx(figures["cpu"])
    assert sum(causes.values()) == pytest.approx(figures["cpu"])
    assert figures["salient_runs"] == 2  # the photo, and the candidate: of this product nothing is doubtful
    drawn = ElementTree.fromstring(draw(figures))
    assert {text.text.split()[0] for text in drawn.iter("{http://www.w3.org/2000/svg}text")} >= {"UNet", "cutout", "by"}


@pytest.mark.exhaustive
def test_a_step_at_real_size_fits_in_12_gb_and_the_sampler_adds_under_2_percent():
    if psutil.virtual_memory().available < NEEDED_GB * 1e9:
        pytest.skip(f"needs {NEEDED_GB} GB of free memory")
    done = subprocess.run([sys.executable, "-m", "benchmarks.step_memory"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    figures = json.loads(done.stdout.splitlines()[-1])
    assert 8 < figures["modules_gb"] < figures["peak_gb"] < 12
    assert 0 < figures["sampler_share"] < 0.02
