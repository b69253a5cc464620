from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from pipelines.diffusion.blends import hard_blend, soft_blend

RECORDING = Path(__file__).parents[3] / "../shared/parity/soft_blend.safetensors"


@pytest.mark.skipif(not RECORDING.exists(), reason="../shared is absent: no recording of the published implementation")
@pytest.mark.parametrize("case", range(4))
def test_soft_blend_is_the_published_one(case):
    recorded = load_file(RECORDING)
    power, scale, detail, sigma = recorded[f"case.{case}.settings"].tolist()
    blended = soft_blend(
        recorded["original"], recorded["generated"], recorded["product_mask"], power, scale, detail, sigma
    )
    assert (blended - recorded[f"case.{case}.blended"]).abs().max() <= 1e-4


def test_soft_blend_keeps_product_and_scene_where_the_mask_is_sure():
    original, generated = torch.randn(1, 4, 8, 8), torch.randn(1, 4, 8, 8)
    mask = torch.zeros(1, 1, 8, 8)
    mask[..., :4] = 1
    blended = soft_blend(original, generated, mask, power=1.0, scale=0.5, detail=4.0, sigma=2.0)
    assert torch.allclose(blended[..., :4], original[..., :4], atol=1e-3)
    assert torch.allclose(blended[..., 4:], generated[..., 4:], atol=1e-3)


def test_hard_blend_keeps_the_product():
    original, generated = torch.randn(2, 4, 8, 8), torch.randn(2, 4, 8, 8)
    mask = torch.zeros(2, 1, 8, 8)
    mask[..., 2:5] = 1
    blended = hard_blend(original, generated, mask)
    assert torch.equal(blended[..., 2:5], original[..., 2:5])
    assert torch.equal(blended[..., 5:], generated[..., 5:])
