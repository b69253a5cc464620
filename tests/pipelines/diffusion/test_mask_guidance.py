"""Mask guidance: the refinement, and a ControlNet that any stock diffusers pipeline takes."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from diffusers import MultiControlNetModel

from pipelines.diffusion.mask_guidance import MaskGuidedControlNet, refine_mask, resize_mask
from tests.pipelines.diffusion.tiny_models import SIDE


def drawing(*boxes: tuple[int, int, int, int]) -> torch.Tensor:
    mask = torch.zeros(1, 1, 32, 32)
    for top, left, bottom, right in boxes:
        mask[..., top:bottom, left:right] = 1
    return mask


class TestRefineMask:
    def test_off_is_off(self):
        mask = torch.rand(2, 1, 32, 32)
        assert torch.equal(refine_mask(mask), mask)

    def test_closing_fills_a_hole_and_leaves_the_outline(self):
        mask = drawing((8, 8, 24, 24))
        pierced = mask.clone()
        pierced[..., 15:17, 15:17] = 0
        assert torch.equal(refine_mask(pierced, closing=5), mask)

    def test_opening_drops_a_speck(self):
        mask = drawing((4, 4, 20, 20), (26, 26, 28, 28))
        opened = refine_mask(mask, opening=3)
        assert not opened[..., 25:, 25:].any()
        assert torch.equal(opened[..., :22, :22], mask[..., :22, :22])

    def test_dilation_grows_by_half_its_diameter(self):
        grown = refine_mask(drawing((12, 12, 20, 20)), dilation=6)
        assert grown[0, 0, 16].nonzero().flatten().tolist() == list(range(9, 23))
        assert grown[0, 0, 9, 9] == 0  # a disc, not a square

    def test_the_picture_border_is_no_edge(self):
        cut = drawing((0, 8, 32, 24))
        assert torch.equal(refine_mask(cut, closing=7, opening=7), cut)

    def test_order_is_closing_then_opening(self):
        # two hairs, 2 px apart: closed first they are a bar that the opening keeps
        hairs = drawing((4, 10, 28, 12), (4, 14, 28, 16))
        assert refine_mask(hairs, closing=5, opening=5)[0, 0, 16, 10:16].all()

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64])
    def test_shape_and_dtype_stay(self, dtype):
        mask = torch.rand(3, 1, 20, 31).to(dtype)
        refined = refine_mask(mask, closing=3, opening=4, dilation=5)
        assert (refined.shape, refined.dtype) == (mask.shape, dtype)
        assert refined.min() >= 0
        assert refined.max() <= 1

    @pytest.mark.parametrize("mask", [torch.zeros(8, 8), torch.zeros(1, 3, 8, 8), torch.zeros(1, 1, 8, 8, dtype=int)])
    def test_other_tensors_are_refused(self, mask):
        with pytest.raises(ValueError, match="B, 1, H, W"):
            refine_mask(mask)

    def test_a_negative_diameter_is_refused(self):
        with pytest.raises(ValueError, match="closing=-1"):
            refine_mask(torch.zeros(1, 1, 8, 8), closing=-1)


@pytest.mark.parametrize("resize", ["area", "max", "bilinear"])
@pytest.mark.parametrize("size", [(8, 8), (7, 5), (1, 1)])
def test_ones_and_zeros_stay_what_they_are(resize, size):
    assert (resize_mask(torch.ones(1, 1, 67, 61), size, resize) == 1).all()
    assert (resize_mask(torch.zeros(1, 1, 67, 61), size, resize) == 0).all()


def test_a_thin_product_survives_the_smallest_map():
    mask = torch.zeros(1, 1, 512, 512)
    mask[..., 64:448, 250:253] = 1  # a lamp's pole, 3 px
    assert resize_mask(mask, (8, 8), "max").max() == 1
    assert resize_mask(mask, (8, 8), "area").max() == pytest.approx(3 / 64)
    assert resize_mask(mask, (8, 8), "bilinear").max() == 0


class TestMaskGuidedControlNet:
    @pytest.fixture
    def call(self, parts):
        generator = torch.Generator().manual_seed(0)
        return {
            "sample": torch.randn(2, 4, 8, 8, generator=generator),
            "timestep": 500,
            "encoder_hidden_states": torch.randn(2, 7, 32, generator=generator),
            "controlnet_cond": torch.rand(2, 3, SIDE, SIDE, generator=generator),
        }

    def test_it_is_a_controlnet_that_shares_its_weights(self, parts):
        guided = MaskGuidedControlNet(parts.controlnet, torch.ones(1, 1, SIDE, SIDE))
        assert guided.config == parts.controlnet.config
        assert (guided.dtype, guided.device, guided.training) == (torch.float32, parts.controlnet.device, False)
        pairs = zip(guided.parameters(), parts.controlnet.parameters(), strict=True)
        assert all(a is b for a, b in pairs)
        assert guided.state_dict().keys() == parts.controlnet.state_dict().keys()

    @torch.no_grad()
    def test_every_output_is_multiplied_at_its_own_resolution(self, parts, call):
        mask = torch.zeros(1, 1, SIDE, SIDE)
        mask[..., : SIDE // 2] = 1
        plain = parts.controlnet(**call)
        guided = MaskGuidedControlNet(parts.controlnet, mask, kind="canny")(**call)
        outputs = [*guided.down_block_res_samples, guided.mid_block_res_sample]
        expected = [*plain.down_block_res_samples, plain.mid_block_res_sample]
        assert len(outputs) == 13
        for ours, theirs in zip(outputs, expected, strict=True):
            share = resize_mask(mask, ours.shape[-2:])
            assert torch.equal(ours, theirs * share)

    @torch.no_grad()
    def test_one_mask_a_picture_serves_both_guidance_halves(self, parts, call):
        masks = torch.rand(2, 1, SIDE, SIDE)
        doubled = {k: torch.cat([v, v]) if isinstance(v, torch.Tensor) else v for k, v in call.items()}
        down, _ = MaskGuidedControlNet(parts.controlnet, masks)(**doubled, return_dict=False)
        alone, _ = MaskGuidedControlNet(parts.controlnet, masks[1:])(
            **{k: v[1:] if isinstance(v, torch.Tensor) else v for k, v in call.items()}, return_dict=False
        )
        assert torch.allclose(down[3][1], alone[3][0], atol=1e-5)
        assert torch.allclose(down[3][3], alone[3][0], atol=1e-5)

    @torch.no_grad()
    def test_masks_apply_before_nets_are_summed(self, parts, call):
        mask = torch.rand(1, 1, SIDE, SIDE)
        nets = MultiControlNetModel([MaskGuidedControlNet(parts.controlnet, mask), parts.controlnet])
        conds = call.pop("controlnet_cond")
        down, mid = nets(**call, controlnet_cond=[conds, conds], conditioning_scale=[1.0, 0.5], return_dict=False)
        plain_down, plain_mid = parts.controlnet(**call, controlnet_cond=conds, return_dict=False)
        assert torch.allclose(down[0], plain_down[0] * (resize_mask(mask, (8, 8)) + 0.5), atol=1e-5)
        assert torch.allclose(mid, plain_mid * (resize_mask(mask, (1, 1)) + 0.5), atol=1e-5)

    @torch.no_grad()
    def test_layers_have_weights(self, parts, call):
        weights = [0.0] * 12 + [1.0]
        guided = MaskGuidedControlNet(parts.controlnet, torch.ones(1, 1, SIDE, SIDE), layer_weights=weights)
        down, mid = guided(**call, return_dict=False)
        assert not any(output.any() for output in down)
        assert torch.equal(mid, parts.controlnet(**call).mid_block_res_sample)

    @torch.no_grad()
    def test_layers_that_are_not_masked_are_the_nets_own(self, parts, call):
        plain_down, plain_mid = parts.controlnet(**call, return_dict=False)
        guided = MaskGuidedControlNet(
            parts.controlnet, torch.zeros(1, 1, SIDE, SIDE), masked_layers=[True] * 3 + [False] * 10
        )
        down, mid = guided(**call, return_dict=False)
        assert not any(output.any() for output in down[:3])
        assert all(torch.equal(ours, theirs) for ours, theirs in zip(down[3:], plain_down[3:], strict=True))
        assert torch.equal(mid, plain_mid)

    @pytest.mark.parametrize(
        ("timestep", "strength"), [(1000, [1.0, 1.0]), (500, [0.6, 0.6]), (torch.tensor([0, 750]), [0.2, 0.8])]
    )
    @torch.no_grad()
    def test_timesteps_have_weights(self, parts, call, timestep, strength):
        mask = torch.rand(1, 1, SIDE, SIDE)
        call |= {"timestep": timestep}
        always = MaskGuidedControlNet(parts.controlnet, mask)(**call)
        fading = MaskGuidedControlNet(parts.controlnet, mask, timestep_weights=(1.0, 0.2))(**call)
        expected = always.mid_block_res_sample * torch.tensor(strength).view(2, 1, 1, 1)
        assert torch.allclose(fading.mid_block_res_sample, expected, atol=1e-6)
        assert always.mid_block_res_sample.any()

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    @pytest.mark.parametrize("guess_mode", [False, True])
    @torch.no_grad()
    def test_half_precision_stays(self, parts, call, dtype, guess_mode):
        guided = MaskGuidedControlNet(
            copy.deepcopy(parts.controlnet), torch.full((1, 1, SIDE, SIDE), 0.3), timestep_weights=(1.0, 0.5)
        ).to(dtype)
        halved = {name: value.to(dtype) if isinstance(value, torch.Tensor) else value for name, value in call.items()}
        down, mid = guided(**halved, guess_mode=guess_mode, return_dict=False)
        assert {output.dtype for output in (*down, mid)} == {dtype}

    def test_a_net_with_a_mask_is_not_masked_again(self, parts):
        guided = MaskGuidedControlNet(parts.controlnet, torch.ones(1, 1, SIDE, SIDE))
        for net in (guided, MultiControlNetModel([parts.controlnet])):
            with pytest.raises(ValueError, match=f"got {type(net).__name__}"):
                MaskGuidedControlNet(net, torch.ones(1, 1, SIDE, SIDE))

    def test_a_mask_of_0_to_255_is_refused(self, parts):
        with pytest.raises(ValueError, match=r"0\.\.1"):
            MaskGuidedControlNet(parts.controlnet, torch.full((1, 1, SIDE, SIDE), 255.0))

    @pytest.mark.parametrize("kind", ["tile", "depth"])
    def test_controls_whose_black_means_something_are_refused(self, parts, kind):
        with pytest.raises(ValueError, match=f"{kind} ControlNet: .* black means"):
            MaskGuidedControlNet(parts.controlnet, torch.ones(1, 1, SIDE, SIDE), kind=kind)

    def test_other_numbers_of_masks_or_weights_are_refused(self, parts, call):
        with pytest.raises(ValueError, match="3 masks"):
            MaskGuidedControlNet(parts.controlnet, torch.ones(3, 1, SIDE, SIDE))(**call)
        with pytest.raises(ValueError, match="13 outputs, but got 1 layer weights"):
            MaskGuidedControlNet(parts.controlnet, torch.ones(1, 1, SIDE, SIDE), layer_weights=[1.0])
        with pytest.raises(ValueError, match="13 outputs, but got 2 masked layers"):
            MaskGuidedControlNet(parts.controlnet, torch.ones(1, 1, SIDE, SIDE), masked_layers=[True, False])


def test_masks_are_taken_as_they_are(parts):
    mask = torch.rand(1, 1, SIDE, SIDE)
    assert np.array_equal(MaskGuidedControlNet(parts.controlnet, mask).mask, mask)
