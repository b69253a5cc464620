"""What the sampler costs at SD 1.5's real size."""

from __future__ import annotations

import pytest

from benchmarks.sampler import count, time_steps


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
