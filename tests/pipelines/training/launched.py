"""A tiny run of `fit`, alone or launched by accelerate: `launched.py WORK STEPS KILLED_AT`, -1 for never."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from pipelines.training.loop import TrainOptions, fit, step_rng

BATCH = 8


def tiny() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1))


def loss_of(model: nn.Module, options: TrainOptions, step: int) -> Tensor:
    x = torch.from_numpy(step_rng(options, step).normal(size=(BATCH, 3)).astype(np.float32))
    return (model(x) - x.sum(dim=1, keepdim=True)).square().mean()


def main(work: Path, steps: int, killed_at: int) -> None:
    options, model = TrainOptions("tiny", steps=steps, work=work), tiny()

    def loss_of_step(step: int) -> Tensor:
        if step == killed_at:
            os._exit(9)
        return loss_of(model, options, step)

    fit(options, model, loss_of_step, batch=BATCH, lr=1e-2, every_seconds=0)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
