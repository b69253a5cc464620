from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pipelines.training.loop import TrainOptions, curve_picture, ema_decay, fit, learning_rate, step_rng


def options_in(folder: Path, steps: int, resume: bool = True) -> TrainOptions:
    return TrainOptions("tiny", steps=steps, resume=resume, work=folder)


class Killed(Exception):
    pass


def run(options: TrainOptions, killed_at: int | None = None, checkpoint_every: float = 0.0):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1))

    def loss_of_step(step: int) -> Tensor:
        if step == killed_at:
            raise Killed
        x = torch.from_numpy(step_rng(options, step).normal(size=(16, 3)).astype(np.float32))
        return (model(x) - x.sum(dim=1, keepdim=True)).square().mean()

    return fit(options, model, loss_of_step, batch=16, lr=1e-2, every_seconds=checkpoint_every)


def test_a_killed_run_resumes_on_the_loss_curve_of_one_that_was_not(tmp_path):
    whole = run(options_in(tmp_path / "whole", 60))
    with pytest.raises(Killed):
        run(options_in(tmp_path / "killed", 60), killed_at=37)
    resumed = run(options_in(tmp_path / "killed", 60))
    assert resumed.step == 60
    assert resumed.losses == pytest.approx(whole.losses, rel=1e-6)
    for one, other in zip(resumed.ema.parameters(), whole.ema.parameters(), strict=True):
        assert torch.equal(one, other)


def test_training_lowers_the_loss_and_the_average_follows(tmp_path):
    result = run(options_in(tmp_path, 400))
    assert np.mean(result.losses[-20:]) < 0.3 * np.mean(result.losses[:20])
    assert result.figures["samples"] == 400 * 16
    x = torch.randn(256, 3, generator=torch.Generator().manual_seed(1))
    error = (result.ema(x) - x.sum(dim=1, keepdim=True)).square().mean()
    assert error < 0.5 * np.mean(result.losses[:20])


def test_without_resume_a_run_starts_over(tmp_path):
    run(options_in(tmp_path, 20))
    assert run(options_in(tmp_path, 5, resume=False)).step == 5


def test_a_run_leaves_a_checkpoint_and_a_curve(tmp_path):
    run(options_in(tmp_path, 20))
    assert (tmp_path / "tiny" / "checkpoint.pt").exists()
    assert curve_picture([1.0, 0.5, 0.2, 0.1]).getcolors(100000) is not None
    assert (tmp_path / "tiny" / "loss.png").stat().st_size > 500


def test_rate_and_average_warm_up():
    assert learning_rate(1.0, 0.0, 0) == pytest.approx(0.01)
    assert learning_rate(1.0, 0.0, 500) == pytest.approx(1.0)
    assert learning_rate(1.0, 1.0, 500) == pytest.approx(0.03)
    assert ema_decay(0) == pytest.approx(0.1)
    assert ema_decay(1_000_000) == 0.999
