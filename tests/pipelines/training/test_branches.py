"""The trainers of the UNet and of what stands on it, end to end: two steps each on a handful of composed shots."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import ControlNetModel, UNet2DConditionModel
from safetensors.torch import load_file

from pipelines.diffusion import loras
from pipelines.diffusion.brushnet import BrushNetModel
from pipelines.errors import UsageError
from pipelines.training import brushnet, controlnet, data, inpainters, unet
from pipelines.training import loras as trained_loras
from pipelines.training.loop import PROFILE, TrainOptions

TRAINING = Path(__file__).resolve().parents[3] / ".." / "shared" / "training"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not TRAINING.exists(), reason="the training pictures are not beside this checkout"),
]


@pytest.fixture
def options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TrainOptions:
    """Two steps at 128 px on one small shard, beginning from the bundled models."""
    monkeypatch.setattr(data, "SHARD", 16)
    monkeypatch.setitem(unet.SHOTS, 128, 16)
    monkeypatch.setitem(trained_loras.SHOTS, 128, 16)
    monkeypatch.setattr(unet, "PHOTOGRAPHS", 4)
    for part in ("autoencoder", "clip", "unet", "scheduler"):
        shutil.copytree(PROFILE / part, tmp_path / "out" / part)
    return TrainOptions("unet", steps=2, batch=2, size=128, data=TRAINING, out=tmp_path / "out", work=tmp_path / "work")


def test_each_trainer_moves_its_weights_and_exports_what_the_sampler_loads(options):
    before = load_file(options.out / "unet" / "diffusion_pytorch_model.safetensors")
    unet.train(options)
    after = load_file(options.out / "unet" / "diffusion_pytorch_model.safetensors")
    assert any(not torch.equal(before[key].float(), after[key].float()) for key in before)

    with pytest.raises(UsageError, match="run packshot train brushnet_random"):
        brushnet.train(dataclasses.replace(options, part="brushnet_salient"))
    earlier = None
    for part in ("brushnet_random", "brushnet_salient", "brushnet", "brushnet_control"):
        brushnet.train(dataclasses.replace(options, part=part))
        branch = BrushNetModel.from_pretrained(options.out / part)
        assert any(layer.weight.abs().max() > 0 for layer in branch.brushnet_down_blocks)
        weights = branch.brushnet_mid_block.weight
        assert earlier is None or not torch.equal(weights, earlier)
        earlier = weights

    controlnet.train(options)
    net = controlnet.load(options.out / "controlnet_canny", None)
    assert any(layer.weight.abs().max() > 0 for layer in net.controlnet_down_blocks)

    inpainters.train_unet_inpaint9(options)
    wider = UNet2DConditionModel.from_pretrained(options.out / "unet_inpaint9")
    assert wider.conv_in.weight[:, 4:].abs().max() > 0
    inpainters.train_controlnet_inpaint(options)
    net = ControlNetModel.from_pretrained(options.out / "controlnet_inpaint")
    assert any(layer.weight.abs().max() > 0 for layer in net.controlnet_down_blocks)

    for style in trained_loras.STYLES:
        trained_loras.train(dataclasses.replace(options, part=style))
        lora = load_file(options.out / style / "pytorch_lora_weights.safetensors")
        assert all(key.startswith("unet.") for key in lora)
        assert any(tensor.abs().max() > 0 for key, tensor in lora.items() if "lora.up" in key or "lora_B" in key)
        loras.add_lora(UNet2DConditionModel.from_pretrained(options.out / "unet"), options.out / style)
    for part in (
        "unet",
        *brushnet.ARMS,
        "unet_inpaint9",
        "controlnet_inpaint",
        "controlnet_canny",
        *trained_loras.STYLES,
    ):
        assert "128_px" in (options.out / part / "CARD.md").read_text(encoding="utf-8")
        for written in (options.out / part).glob("*.json"):
            assert str(options.out) not in written.read_text(encoding="utf-8")
