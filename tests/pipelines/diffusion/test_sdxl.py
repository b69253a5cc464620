"""SDXL in the sampler: what diffusers' own pipelines give, the sampler gives."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from diffusers import (
    StableDiffusionXLControlNetPipeline,
    StableDiffusionXLInpaintPipeline,
    StableDiffusionXLPipeline,
)
from PIL import ImageOps

from pipelines.diffusion.conditioning import Sizes
from pipelines.diffusion.control import canny_edges
from pipelines.diffusion.fooocus import add_feature, kept_mask
from pipelines.diffusion.inpainting import InpaintingPipeline, masked_image
from tests.pipelines.diffusion.tiny_models import SIDE, Parts, difference, product

CALL = {"num_inference_steps": 3, "guidance_scale": 3.0}


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def stock(pipeline_class, parts: Parts, **other):
    names = ("vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "unet", "scheduler")
    pipeline = pipeline_class(**{name: getattr(parts, name) for name in names} | other, add_watermarker=False)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def ours(pipeline: InpaintingPipeline, prompt="a lamp", **other) -> torch.Tensor:
    return pipeline(*product(), prompt, generator=seeded(), **CALL | other).latents


def pixels_and_mask() -> tuple[torch.Tensor, torch.Tensor]:
    image, mask = product()
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None] / 127.5 - 1
    return pixels, torch.from_numpy(np.array(mask))[None, None] / 255


@pytest.mark.parametrize("negative", ["", "blue light"])
@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_without_a_branch_it_is_plain_text_to_image(sdxl_parts, negative, guidance):
    expected = stock(StableDiffusionXLPipeline, sdxl_parts)(
        "a lamp",
        negative_prompt=negative or None,
        height=SIDE,
        width=SIDE,
        generator=seeded(),
        output_type="latent",
        **CALL | {"guidance_scale": guidance},
    ).images
    pipeline = sdxl_parts.pipeline("brushnet")
    found = ours(pipeline, negative_prompt=negative, guidance_scale=guidance, brushnet_scale=0)
    assert torch.allclose(found, expected, atol=1e-4)


def test_it_is_told_the_sizes(sdxl_parts):
    sizes = {"original_size": (48, 64), "crops_coords_top_left": (8, 0), "target_size": (96, 128)}
    expected = stock(StableDiffusionXLPipeline, sdxl_parts)(
        "a lamp", height=SIDE, width=SIDE, generator=seeded(), output_type="latent", **CALL | sizes
    ).images
    pipeline = sdxl_parts.pipeline("brushnet")
    told = ours(pipeline, brushnet_scale=0, sizes=Sizes(original=(48, 64), crop=(8, 0), target=(96, 128)))
    assert torch.allclose(told, expected, atol=1e-4)
    assert not torch.allclose(told, ours(pipeline, brushnet_scale=0), atol=1e-3)


def test_a_controlnet_is_told_them_too(sdxl_parts):
    image, mask = product()
    edges = canny_edges(image, mask)
    pipeline = sdxl_parts.pipeline("brushnet", controls=1)
    expected = stock(StableDiffusionXLControlNetPipeline, sdxl_parts, controlnet=pipeline.controlnets[0])(
        "a lamp", image=edges, height=SIDE, width=SIDE, generator=seeded(), output_type="latent", **CALL
    ).images
    found = ours(pipeline, brushnet_scale=0, control_images=[edges], mask_guidance=False)
    assert torch.allclose(found, expected, atol=1e-4)
    assert not torch.allclose(found, ours(pipeline, brushnet_scale=0), atol=1e-3)


def test_inpaint9_is_the_stock_inpainting_pipeline(sdxl_parts):
    pipeline = sdxl_parts.pipeline("inpaint9")
    image, mask = product()
    seen = pipeline._encode_image(masked_image(*pixels_and_mask(), fill=0.0))
    expected = stock(StableDiffusionXLInpaintPipeline, sdxl_parts, unet=pipeline.unet)(
        "a lamp",
        image=image,
        mask_image=ImageOps.invert(mask),
        # the stock pipeline draws these from the autoencoder's distribution, ours takes its mode
        masked_image_latents=seen,
        latents=torch.randn(1, 4, SIDE // 8, SIDE // 8, generator=seeded()),
        height=SIDE,
        width=SIDE,
        strength=1.0,
        output_type="latent",
        **CALL,
    ).images
    assert torch.allclose(ours(pipeline), expected, atol=1e-4)


def test_fooocus_is_text_to_image_with_the_heads_feature(sdxl_parts):
    pipeline = sdxl_parts.pipeline("fooocus")
    pixels, mask = pixels_and_mask()
    with torch.no_grad():
        seen = pipeline._encode_image(masked_image(pixels, mask, fill=0.0))
        feature = pipeline.inpaint_head(kept_mask(mask, (SIDE // 8, SIDE // 8)), seen)
    with add_feature(sdxl_parts.unet, feature):
        expected = stock(StableDiffusionXLPipeline, sdxl_parts)(
            "a lamp", height=SIDE, width=SIDE, generator=seeded(), output_type="latent", **CALL
        ).images
    assert torch.allclose(ours(pipeline), expected, atol=1e-4)
    assert not torch.allclose(ours(pipeline), ours(sdxl_parts.pipeline("brushnet"), brushnet_scale=0), atol=1e-2)


def test_brushnet_sees_the_pooled_text_and_the_sizes_of_both_halves(sdxl_parts):
    pipeline = sdxl_parts.pipeline("brushnet")
    seen = []
    hook = pipeline.brushnet.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append((args[0].shape[0], kwargs["added_cond_kwargs"])), with_kwargs=True
    )
    ours(pipeline, num_inference_steps=1, negative_prompt="blue")
    hook.remove()
    [(batch, added)] = seen
    assert batch == 2
    assert added["time_ids"].tolist() == [[SIDE, SIDE, 0, 0, SIDE, SIDE]] * 2
    assert not torch.equal(*added["text_embeds"])


def test_the_shape_of_a_negative_prompt_that_is_left_out_does_not_depend_on_the_batch(sdxl_parts):
    pipeline = sdxl_parts.pipeline("blended")
    image, mask = product()
    generators = [seeded(0), seeded(1)]
    both = pipeline([image, image], mask, "a lamp", ["", "blue light"], generator=generators, **CALL).images
    assert difference(both[0], pipeline(image, mask, "a lamp", generator=seeded(0), **CALL).images[0]) <= 2
    alone = pipeline(image, mask, "a lamp", "blue light", generator=seeded(1), **CALL).images[0]
    assert difference(both[1], alone) <= 2


@pytest.mark.parametrize("method", ["fooocus", "brushnet", "inpaint9"])
def test_offloading_changes_no_byte_and_half_precision_little(sdxl_parts, method):
    pipeline = copy.deepcopy(sdxl_parts).pipeline(method)
    call = {"prompt": "a lamp", "generator": seeded(), **CALL}
    plain = pipeline(*product(), **call).images[0]
    pipeline.save_memory(offload=True).to("cpu")
    call["generator"] = seeded()
    assert pipeline(*product(), **call).images[0].tobytes() == plain.tobytes()
    pipeline.save_memory(offload=True).to("meta")
    assert {pipeline.text_encoder_2.device.type, pipeline.unet.device.type} == {"cpu", "meta"}
    half = copy.deepcopy(sdxl_parts).pipeline(method).to("cpu", torch.bfloat16)
    call["generator"] = seeded()
    assert difference(half(*product(), **call).images[0], plain) < 64


def test_what_sdxl_needs_is_asked_for(sdxl_parts, parts):
    with pytest.raises(ValueError, match="needs the second text encoder"):
        InpaintingPipeline(**sdxl_parts.as_kwargs() | {"text_encoder_2": None})
    with pytest.raises(ValueError, match=r"Fooocus' inpainting was made for SDXL: .* UNet of SD 1\.5"):
        parts.pipeline("fooocus")
