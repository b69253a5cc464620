"""Training in several processes is training on a larger batch, and survives a kill."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pipelines.services.installation import free_port
from pipelines.settings import ROOT
from pipelines.training.loop import TrainOptions, learning_rate
from tests.pipelines.training.launched import BATCH, loss_of, main, tiny

LR, STEPS = 1e-2, 12


def launch(work: Path, processes: int, killed_at: int = -1) -> list[int]:
    """Exit codes of the processes, begun as `torchrun` begins them (`accelerate launch` wants MPI on CPUs)."""
    argv = [sys.executable, str(Path(__file__).with_name("launched.py")), str(work), str(STEPS), str(killed_at)]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "WORLD_SIZE": str(processes)}
    env |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    ranks = [env | {"RANK": str(n), "LOCAL_RANK": str(n)} for n in range(processes)]
    begun = [subprocess.Popen(argv, cwd=ROOT, env=one, stderr=subprocess.DEVNULL) for one in ranks]
    return [process.wait(timeout=300) for process in begun]


def checkpoint(work: Path) -> dict:
    return torch.load(work / "tiny" / "checkpoint.pt", weights_only=True)


def one_process_with_the_batches_of(processes: int, work: Path) -> tuple[list[float], dict[str, torch.Tensor]]:
    """What `processes` together should do: the mean of their losses, one step."""
    options, model = TrainOptions("tiny", work=work), tiny()
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, betas=(0.9, 0.99), weight_decay=0.0, foreach=True)
    losses = []
    for step in range(STEPS):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(LR, step / STEPS, step)
        loss = sum(loss_of(model, options, step * processes + n) for n in range(processes)) / processes
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses, model.state_dict()


def assert_equal(found: dict, losses: list[float], weights: dict[str, torch.Tensor], rel: float) -> None:
    assert found["step"] == STEPS
    assert found["losses"] == pytest.approx(losses, rel=rel)
    for name, tensor in weights.items():
        torch.testing.assert_close(found["model"][name], tensor, rtol=rel, atol=rel)


def test_one_process_does_what_a_plain_loop_does(tmp_path):
    main(tmp_path, STEPS, -1)
    assert_equal(checkpoint(tmp_path), *one_process_with_the_batches_of(1, tmp_path), rel=1e-6)


@pytest.mark.slow
def test_two_processes_do_what_one_does_with_both_their_batches_also_after_a_kill(tmp_path):
    expected = one_process_with_the_batches_of(2, tmp_path)
    assert all(launch(tmp_path / "killed", 2, killed_at=13)), (
        "the second process dies in step 6, and takes the first along"
    )
    assert 0 < checkpoint(tmp_path / "killed")["step"] < STEPS
    assert launch(tmp_path / "killed", 2) == [0, 0]
    found = checkpoint(tmp_path / "killed")
    assert_equal(found, *expected, rel=1e-5)
    assert found["samples"] == STEPS * BATCH * 2
