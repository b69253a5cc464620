"""Memory modes: what they keep where, and what they change."""

from __future__ import annotations

import copy

import pytest
import torch

from pipelines.diffusion.control import canny_edges
from pipelines.diffusion.inpainting import InpaintingPipeline
from tests.pipelines.diffusion.tiny_models import difference, product


@pytest.fixture
def pipeline(parts) -> InpaintingPipeline:
    own = copy.deepcopy(parts)  # these tests move and cast it
    return InpaintingPipeline(**own.as_kwargs(), controlnets=[own.controlnet])


def shoot(pipeline: InpaintingPipeline):
    image, mask = product()
    return pipeline(
        image,
        mask,
        "a lamp",
        num_inference_steps=2,
        guidance_scale=3.0,
        control_images=[canny_edges(image, mask)],
        generator=torch.Generator().manual_seed(0),
    ).images[0]


def test_offloading_leaves_only_unet_and_branches_on_the_device(pipeline):
    pipeline.save_memory(offload=True).to("meta")
    assert {pipeline.vae.device.type, pipeline.text_encoder.device.type} == {"cpu"}
    assert {module.device.type for module in (pipeline.unet, pipeline.brushnet, *pipeline.controlnets)} == {"meta"}
    assert pipeline.device.type == "meta"


def test_an_offloaded_module_is_on_the_device_for_as_long_as_it_works(pipeline, monkeypatch):
    asked: list[str] = []
    moved = pipeline.vae.to
    monkeypatch.setattr(pipeline.vae, "to", lambda device: asked.append(str(device)) or moved(device))
    pipeline.save_memory(offload=True)
    shoot(pipeline)
    # to encode what BrushNet sees, and to decode; away again after each
    assert asked == ["cpu", "cpu"] * 2


def test_offloading_changes_no_byte(pipeline):
    plain = shoot(pipeline)
    assert shoot(pipeline.save_memory(offload=True)).tobytes() == plain.tobytes()


def test_tiles_are_for_pictures_larger_than_the_vae_was_trained_on(pipeline):
    plain = shoot(pipeline)
    pipeline.vae.tile_sample_min_size, pipeline.vae.tile_latent_min_size = 512, 64
    assert shoot(pipeline.save_memory(vae_tiling=True)).tobytes() == plain.tobytes()
    pipeline.vae.tile_sample_min_size, pipeline.vae.tile_latent_min_size = 32, 4
    assert difference(shoot(pipeline), plain) > 0
    assert shoot(pipeline.save_memory(vae_tiling=False)).tobytes() == plain.tobytes()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_paints_nearly_the_same_picture(pipeline, dtype):
    plain = shoot(pipeline)
    assert difference(shoot(pipeline.to("cpu", dtype)), plain) < 64
