"""Options for a GPU, on the CPU at tiny size: what each switches, and what it does to the pixels."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Iterator

import pytest
import torch
from PIL import Image

from pipelines.diffusion.acceleration import accelerate, shots_that_fit
from pipelines.diffusion.inpainting import InpaintingPipeline
from pipelines.settings import CPU, Compute
from tests.pipelines.diffusion.test_memory import shoot
from tests.pipelines.diffusion.tiny_models import difference, product


@pytest.fixture
def pipeline(parts) -> Iterator[InpaintingPipeline]:
    own = copy.deepcopy(parts)
    yield InpaintingPipeline(**own.as_kwargs(), controlnets=[own.controlnet])
    torch.backends.cudnn.benchmark = torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False


def test_by_default_nothing_is_on_and_no_byte_changes(pipeline):
    plain = shoot(pipeline)
    accelerate(pipeline, CPU)
    assert not torch.backends.cudnn.benchmark
    assert not torch.backends.cuda.matmul.allow_tf32
    assert not torch.backends.cudnn.allow_tf32  # torch's own default is on
    assert not pipeline.vae.use_slicing
    assert shoot(pipeline).tobytes() == plain.tobytes()


def test_switches_of_the_gpu_are_set_for_the_process_and_back(pipeline):
    accelerate(pipeline, Compute(tf32=True, cudnn_autotune=True))
    assert torch.backends.cudnn.benchmark
    assert torch.backends.cuda.matmul.allow_tf32
    assert torch.backends.cudnn.allow_tf32
    accelerate(pipeline, CPU)
    assert not torch.backends.cudnn.benchmark
    assert not torch.backends.cuda.matmul.allow_tf32


def test_slices_are_the_same_picture(pipeline):
    shots = [product("red"), product("green", shift=8)]

    def both() -> list:
        images, masks = zip(*shots, strict=True)
        seeds = [torch.Generator().manual_seed(n) for n in range(2)]
        call = {"num_inference_steps": 2, "generator": seeds}
        return InpaintingPipeline.__call__(pipeline, list(images), list(masks), "a lamp", **call).images

    plain = both()
    accelerate(pipeline, Compute(vae_slicing=True))
    assert pipeline.vae.use_slicing
    assert max(difference(*pair) for pair in zip(both(), plain, strict=True)) <= 1


def test_an_autoencoder_that_works_channels_last_gives_the_same_latents_and_pixels(pipeline):
    pixels, latents = torch.rand(2, 3, 64, 64) * 2 - 1, torch.randn(2, 4, 8, 8)
    vae = pipeline.vae

    def both() -> list[torch.Tensor]:
        with torch.no_grad():
            return [vae.encode(pixels).latent_dist.mode(), vae.decode(latents).sample]

    plain = both()
    vae.to(memory_format=torch.channels_last)
    for now, before in zip(both(), plain, strict=True):
        torch.testing.assert_close(now, before, atol=1e-4, rtol=0)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_compiled_blocks_paint_the_same_picture(parts):
    own = copy.deepcopy(parts)
    pipeline = InpaintingPipeline(**own.as_kwargs())
    image, mask = product()

    def paint() -> Image.Image:
        seed = torch.Generator().manual_seed(0)
        return pipeline(image, mask, "a lamp", num_inference_steps=1, guidance_scale=1.0, generator=seed).images[0]

    plain = paint()
    accelerate(pipeline, Compute(compile=True))
    before = torch._dynamo.utils.counters["frames"]["ok"]
    assert difference(paint(), plain) <= 1
    assert torch._dynamo.utils.counters["frames"]["ok"] > before


def test_a_batch_is_as_large_as_the_free_memory_allows():
    assert shots_that_fit(24 * 10**9, 512, "float32") == 9
    assert shots_that_fit(24 * 10**9, 512, "float16") == 18
    assert shots_that_fit(24 * 10**9, 1024, "float16") == 4
    assert shots_that_fit(10**9, 1024, "float32") == 1
    assert shots_that_fit(10**12, 512, "float16") == 64
