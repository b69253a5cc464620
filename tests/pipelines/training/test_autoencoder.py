from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL

from pipelines.errors import IntegrityError, UsageError
from pipelines.training import autoencoder
from pipelines.training.adversary import Critic, critic_loss, victim_loss
from pipelines.training.loop import ROOT, TrainOptions
from pipelines.training.perceptual import Lpips, sharpness

SHARED = ROOT / ".." / "shared"
needs_shared = pytest.mark.skipif(not (SHARED / "models").exists(), reason="needs ../shared")


def pictures(count: int = 2, side: int = 96) -> torch.Tensor:
    """Bars and discs with hard edges, (N, 3, side, side) in -1..1."""
    y, x = np.mgrid[0:side, 0:side]
    drawn = [
        np.stack([np.sin(x / (4 + n)) > 0, np.hypot(x - 40, y - 50) < 20 + n, np.sin(y / 9) > 0]) for n in range(count)
    ]
    return torch.from_numpy(np.stack(drawn).astype(np.float32)) * 1.6 - 0.8


@needs_shared
def test_lpips_grows_with_blur_and_knows_the_same_picture():
    lpips = Lpips(SHARED / "models" / "alexnet.ckpt")
    original = pictures()
    little, much = (F.avg_pool2d(original, k, 1, k // 2) for k in (3, 9))
    assert lpips(original, original).abs().max() < 1e-6
    assert (lpips(little, original) < 0.8 * lpips(much, original)).all()


@needs_shared
def test_lpips_teaches_the_first_picture_alone():
    lpips = Lpips(SHARED / "models" / "alexnet.ckpt")
    assert not list(lpips.parameters())
    one, other = pictures().requires_grad_(), pictures(2).flip(-1).requires_grad_()
    lpips(one, other).sum().backward()
    assert one.grad is not None
    assert one.grad.abs().sum() > 0
    assert other.grad is None


def test_a_pickle_that_is_not_alexnet_is_never_read(tmp_path):
    forged = tmp_path / "alexnet.ckpt"
    with pytest.raises(UsageError):
        Lpips(forged)
    forged.write_bytes(b"cos\nsystem\n(S'touch /tmp/owned'\ntR.")
    with pytest.raises(IntegrityError):
        Lpips(forged)


def test_sharpness_of_a_blurred_picture_is_less():
    original = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    assert (sharpness(F.avg_pool2d(original, 5, 1, 2)) < 0.7 * sharpness(original)).all()
    assert (sharpness(torch.full((1, 3, 64, 64), 0.3)) < 1e-3).all()


def test_critic_and_victim_learn_apart():
    torch.manual_seed(0)
    critic, decoded = Critic(), pictures().requires_grad_()
    victim_loss(critic, decoded).backward()
    assert all(parameter.grad is None for parameter in critic.parameters())
    assert decoded.grad is not None
    assert decoded.grad.abs().sum() > 0
    decoded.grad = None
    critic_loss(critic, decoded, pictures().flip(-1)).backward()
    assert decoded.grad is None
    assert all(parameter.grad is not None for parameter in critic.parameters())


@pytest.mark.medium
def test_a_critic_tells_blurred_from_sharp():
    torch.manual_seed(0)
    critic, sharp = Critic(), pictures(2, side=64)
    blurred = F.avg_pool2d(sharp, 5, 1, 2)
    optimizer = torch.optim.AdamW(critic.parameters(), lr=2e-3)
    for _ in range(40):
        loss = critic_loss(critic, blurred, sharp)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert critic(sharp).mean() > critic(blurred).mean() + 1


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.setattr(autoencoder, "CHANNELS", (4, 4, 8, 8))
    monkeypatch.setattr(autoencoder, "COMPOSED", 6)
    monkeypatch.setattr(autoencoder, "REAL", 4)
    monkeypatch.setattr(autoencoder, "HELD_OUT", 4)
    monkeypatch.setattr(autoencoder, "CRITIC_FROM", 2)
    monkeypatch.setattr(autoencoder, "CRITIC_RAMP", 1)


@needs_shared
@pytest.mark.slow
def test_exported_latents_have_zero_mean_and_unit_deviation_and_the_decoder_learns_on(tiny, tmp_path):
    options = TrainOptions(
        "autoencoder", steps=6, batch=1, data=SHARED / "training", out=tmp_path / "out", work=tmp_path
    )
    folder = autoencoder.train(options)
    model = AutoencoderKL.from_pretrained(folder).float()
    seen = autoencoder.to_tensor(np.load(next(Path(tmp_path).glob("autoencoder/pictures_*.npy")))[:6:8])
    with torch.no_grad():
        latents = model.encode(seen).latent_dist.mode()
    assert latents.mean(dim=(0, 2, 3)).abs().max() < 0.05
    assert (latents.std(dim=(0, 2, 3)) - 1).abs().max() < 0.05
    card = (folder / "CARD.md").read_text(encoding="utf-8")
    assert '"lpips"' in card
    assert '"sharpness"' in card

    autoencoder.train(options)  # an export is there: its latents stay, its decoder does not
    again = AutoencoderKL.from_pretrained(folder).float()
    with torch.no_grad():
        assert torch.equal(again.encode(seen).latent_dist.mode(), latents)
    assert not torch.equal(again.decoder.conv_out.weight, model.decoder.conv_out.weight)
