"""Options that trade pixels for time: guidance in part of the steps, and deep features recalled between whole steps."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from pipelines.diffusion.brushnet import inject
from pipelines.diffusion.control import canny_edges
from pipelines.diffusion.feature_cache import BranchResiduals, FeatureCache
from pipelines.diffusion.inpainting import METHODS
from tests.pipelines.diffusion.tiny_models import SIDE, Parts, difference, make_brushnet, make_controlnet, product

STEPS = 4
ROWS = [("sd15", method) for method in METHODS if method != "fooocus"] + [("sdxl", "brushnet"), ("sdxl", "fooocus")]


@pytest.fixture(params=ROWS, ids=["-".join(row) for row in ROWS])
def row(request, parts, sdxl_parts) -> tuple[Parts, str]:
    family, method = request.param
    return {"sd15": parts, "sdxl": sdxl_parts}[family], method


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def paint(pipeline, shots=None, seeds=(0,), **other):
    """Latents and pictures of shots with a ControlNet where there is one."""
    images, masks = zip(*(shots or [product()]), strict=True)
    call = {"num_inference_steps": STEPS, "guidance_scale": 3.0, "generator": [seeded(seed) for seed in seeds]}
    if pipeline.controlnets:
        call["control_images"] = [[canny_edges(*shot) for shot in zip(images, masks, strict=True)]]
    return pipeline(list(images), list(masks), "a lamp", **call | other)


def bytes_of(pipeline, **other) -> bytes:
    return paint(pipeline, **other).images[0].tobytes()


def flops_a_step(pipeline, **other) -> list[int]:
    """FLOPs of each step but the first, which the encoders' come with."""
    counter, totals = FlopCounterMode(display=False), []
    with counter:
        paint(pipeline, callback=lambda *_: totals.append(counter.get_total_flops()), **other)
    return [after - before for before, after in itertools.pairwise(totals)]


class TestGuidanceInPartOfTheSteps:
    def test_in_all_of_them_is_the_default_and_in_none_of_them_is_none(self, row):
        parts, method = row
        pipeline = parts.pipeline(method, controls=1)
        assert bytes_of(pipeline, guidance_start=0.0, guidance_end=1.0) == bytes_of(pipeline)
        unguided = bytes_of(pipeline, guidance_scale=1.0)
        assert unguided != bytes_of(pipeline)
        assert bytes_of(pipeline, guidance_end=0.0) == unguided
        # shorter than a step, so both halves are laid out and the prompted one alone is read
        assert bytes_of(pipeline, guidance_start=0.9) == unguided

    def test_a_shot_is_the_same_alone_or_in_a_batch(self, row):
        parts, method = row
        pipeline = parts.pipeline(method, controls=1)
        options = {"guidance_start": 0.25, "guidance_end": 0.75, "cache_interval": 2}
        shots = [product("red"), product("green", shift=8), product("blue", shift=-8)]
        batch = paint(pipeline, shots, (1, 2, 3), **options).images
        assert [one.tobytes() for one in batch] == [
            one.tobytes() for one in paint(pipeline, shots, (1, 2, 3), **options).images
        ]
        for n, shot in enumerate(shots):
            alone = paint(pipeline, [shot], [n + 1], **options).images[0]
            assert difference(batch[n], alone) <= 2
            assert difference(batch[n - 1], alone) > 2

    def test_only_the_steps_within_are_guided_and_the_others_cost_what_unguided_ones_do(self, parts):
        pipeline = parts.pipeline("brushnet", controls=1)
        guided, unguided = flops_a_step(pipeline)[0], flops_a_step(pipeline, guidance_scale=1.0)[0]
        assert unguided < 0.65 * guided
        assert flops_a_step(pipeline, guidance_start=0.25, guidance_end=0.75) == [guided, guided, unguided]
        assert flops_a_step(pipeline, guidance_end=0.5) == [guided, unguided, unguided]

    def test_each_part_of_the_schedule_gives_another_picture(self, parts):
        pipeline = parts.pipeline("brushnet")
        parts_of_it = [(0.0, 1.0), (0.0, 0.5), (0.25, 0.75), (0.5, 1.0)]
        pictures = [paint(pipeline, guidance_start=a, guidance_end=b).images[0] for a, b in parts_of_it]
        assert all(difference(a, b) > 0 for a, b in itertools.combinations(pictures, 2))

    @pytest.mark.parametrize(("start", "end"), [(0.6, 0.4), (-0.1, 1.0), (0.0, 1.1)])
    def test_what_is_no_part_is_refused(self, parts, start, end):
        with pytest.raises(ValueError, match="guidance_start and guidance_end are shares of the steps"):
            paint(parts.pipeline("brushnet"), guidance_start=start, guidance_end=end)


class TestFeatureCache:
    @pytest.mark.parametrize("family", ["sd15", "sdxl"])
    @pytest.mark.parametrize("size", [(8, 8), (11, 7)])
    def test_a_shallow_step_on_what_the_whole_one_saw_gives_the_very_same(self, parts, sdxl_parts, family, size):
        unet = {"sd15": parts, "sdxl": sdxl_parts}[family].unet
        sample, t = torch.randn(2, 4, *size, generator=seeded()), torch.tensor(601)
        embeds = torch.randn(2, 16, unet.config.cross_attention_dim, generator=seeded(1))
        added_cond = {"text_embeds": torch.ones(2, 32), "time_ids": torch.ones(2, 6)} if family == "sdxl" else None
        condition = torch.randn(2, 5, *size, generator=seeded(2))
        injections = make_brushnet(unet)(sample, t, None, condition, added_cond_kwargs=added_cond)
        down, mid = make_controlnet(unet)(
            sample, t, embeds, torch.ones(2, 3, size[0] * 8, size[1] * 8), added_cond_kwargs=added_cond,
            return_dict=False,
        )  # fmt: skip
        controls = {"down_block_additional_residuals": down, "mid_block_additional_residual": mid}
        cache = FeatureCache(unet, 2)

        @torch.no_grad()
        def run(unet, added, sample):
            with inject(unet, *added.injections):
                return unet(sample, t, embeds, added_cond_kwargs=added_cond, **added.controls).sample

        added = BranchResiduals(injections, controls)
        with cache.remember((True,), added):
            whole = run(unet, added, sample)
        assert cache.recalls((True,))
        shallow, recalled = cache.recall()
        assert torch.equal(run(shallow, recalled, sample), whole)
        assert not torch.allclose(run(shallow, recalled, sample + 1), whole, atol=1e-3)
        assert not cache.recalls((True,))
        assert torch.equal(run(unet, added, sample), whole)  # the UNet is as it was

    def test_every_step_whole_is_the_default_and_so_is_a_schedule_of_one_step(self, row):
        parts, method = row
        pipeline = parts.pipeline(method, controls=1)
        plain = bytes_of(pipeline)
        assert bytes_of(pipeline, cache_interval=2) != plain
        assert bytes_of(pipeline, cache_interval=1) == plain  # and nothing is left behind
        one = {"num_inference_steps": 1}
        assert bytes_of(pipeline, cache_interval=2, **one) == bytes_of(pipeline, **one)

    def test_a_step_between_costs_the_first_and_the_last_block_and_no_branch(self, parts):
        pipeline = parts.pipeline("brushnet", controls=1)
        whole = flops_a_step(pipeline)[0]
        shallow, second, third = flops_a_step(pipeline, cache_interval=2)
        assert (second, third) == (whole, shallow)
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            parts.unet(torch.zeros(2, 4, SIDE // 8, SIDE // 8), torch.tensor(1), torch.zeros(2, 16, 32))
        of = {name.partition(".")[2]: sum(kinds.values()) for name, kinds in counter.get_flop_counts().items()}
        kept = ("conv_in", "time_embedding", "down_blocks.0", "up_blocks.3", "conv_out")
        assert shallow == sum(of[name] for name in kept) - of["down_blocks.0.downsamplers.0"]
        assert shallow < 0.4 * whole
        assert flops_a_step(pipeline, cache_interval=3) == [shallow, shallow, whole]

    def test_a_step_is_whole_where_guidance_or_a_controlnet_comes_or_goes(self, parts):
        pipeline = parts.pipeline("brushnet", controls=1)

        def whole_steps(**other) -> list[int]:
            ran, done = [], [0]
            hook = parts.unet.mid_block.register_forward_hook(lambda *_: ran.append(done[0]))
            paint(
                pipeline, num_inference_steps=6, cache_interval=6,
                callback=lambda step, _: done.__setitem__(0, step), **other,
            )  # fmt: skip
            hook.remove()
            return ran

        assert whole_steps() == [0]
        assert whole_steps(guidance_start=0.3, guidance_end=0.7) == [0, 2, 4]
        assert whole_steps(control_ends=[0.5]) == [0, 3]
        assert whole_steps(control_starts=[0.2], guidance_end=0.5) == [0, 2, 3]

    def test_an_interval_is_a_number_of_steps(self, parts):
        with pytest.raises(ValueError, match="cache_interval is a number of steps, 1 or more, got 0"):
            paint(parts.pipeline("brushnet"), cache_interval=0)
