"""IP-Adapter: files in the published formats, what its mask bounds, and that it goes with every method."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from diffusers.models.attention_processor import IPAdapterAttnProcessor2_0
from PIL import Image
from safetensors.torch import save_file
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from pipelines.diffusion.inpainting import METHODS
from pipelines.errors import IntegrityError
from tests.pipelines.diffusion.tiny_models import SIDE, Parts, difference, product

CALL = {"num_inference_steps": 3, "guidance_scale": 3.0}
LOOK = Image.linear_gradient("L").convert("RGB")
OTHER_LOOK = Image.radial_gradient("L").convert("RGB")


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    """A folder with a tiny vision tower."""
    torch.manual_seed(0)
    config = CLIPVisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4, image_size=32, patch_size=8,
        projection_dim=24,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("encoder")
    CLIPVisionModelWithProjection(config).save_pretrained(folder)
    return folder


def adapter(unet, kind: str = "plain", text: int | None = None, reads: int | None = None) -> dict[str, torch.Tensor]:
    """An adapter's tensors under their published names, in the published half precision."""
    generator = torch.Generator().manual_seed(7)
    text = text or unet.config.cross_attention_dim

    def noise(*shape, scale=0.5):
        return (torch.randn(*shape, generator=generator) * scale).half()

    tensors = {}
    if kind == "plain":
        tensors |= {"image_proj.proj.weight": noise(4 * text, reads or 24), "image_proj.proj.bias": noise(4 * text)}
        tensors |= {"image_proj.norm.weight": torch.ones(text), "image_proj.norm.bias": torch.zeros(text)}
    else:  # "plus", a resampler of four layers that reads the encoder's last but one
        shapes = {
            "latents": (1, 4, 64), "proj_in.weight": (64, reads or 32), "proj_in.bias": (64,),
            "proj_out.weight": (text, 64), "proj_out.bias": (text,),
        }  # fmt: skip
        norms = {"norm_out": text}
        for n in range(4):
            layer = f"layers.{n}"
            shapes |= {f"{layer}.0.to_q.weight": (64, 64), f"{layer}.0.to_kv.weight": (128, 64)}
            shapes |= {f"{layer}.0.to_out.weight": (64, 64)}
            shapes |= {f"{layer}.1.1.weight": (256, 64), f"{layer}.1.3.weight": (64, 256)}
            norms |= {f"{layer}.0.norm1": 64, f"{layer}.0.norm2": 64, f"{layer}.1.0": 64}
        tensors |= {f"image_proj.{name}": noise(*shape) for name, shape in shapes.items()}
        for name, width in norms.items():
            tensors |= {f"image_proj.{name}.weight": torch.ones(width), f"image_proj.{name}.bias": torch.zeros(width)}
    places = [name for name in unet.attn_processors if name.endswith("attn2.processor")]
    for n, name in enumerate(places):
        width = unet.get_submodule(name.removesuffix(".processor")).to_q.in_features
        for key in ("to_k_ip", "to_v_ip"):
            tensors[f"ip_adapter.{2 * n + 1}.{key}.weight"] = noise(width, text)
    return tensors


@pytest.fixture
def dressed(parts, sdxl_parts, encoder, tmp_path):
    """The sampler of a method with an adapter in it; the UNets are as they were afterwards."""
    made = []

    def make(method: str = "brushnet", of: Parts = parts, kind: str = "plain"):
        pipeline = of.pipeline(method)
        save_file(adapter(pipeline.unet, kind), tmp_path / "ip-adapter.safetensors")
        pipeline.load_ip_adapter(tmp_path / "ip-adapter.safetensors", encoder)
        made.append(pipeline)
        return pipeline

    yield make
    for pipeline in made:
        pipeline.unload_ip_adapter()


def shoot(pipeline, seed=0, **other) -> Image.Image:
    return pipeline(*product(), "a lamp", generator=seeded(seed), **CALL | other).images[0]


def test_it_is_heard_in_steps_without_guidance_and_in_those_that_recall_features(dressed):
    pipeline = dressed()
    region = torch.zeros(1, 1, SIDE, SIDE)
    region[..., :40] = 1
    look = {"ip_adapter_image": LOOK, "ip_adapter_mask": region}
    # a part of the schedule that is shorter than a step: both halves are laid out, the prompted one alone is read
    unguided = shoot(pipeline, guidance_start=0.9, **look)
    assert unguided.tobytes() == shoot(pipeline, guidance_scale=1.0, **look).tobytes()
    assert difference(unguided, shoot(pipeline, guidance_start=0.9)) > 2
    recalled = shoot(pipeline, cache_interval=3, **look)
    assert difference(recalled, shoot(pipeline, cache_interval=3)) > 2


@pytest.mark.parametrize("kind", ["plain", "plus"])
def test_it_changes_the_picture_as_strongly_as_it_is_said(dressed, parts, kind):
    plain = shoot(parts.pipeline("brushnet"))
    pipeline = dressed(kind=kind)
    assert shoot(pipeline).tobytes() == plain.tobytes()
    look = shoot(pipeline, ip_adapter_image=LOOK)
    assert difference(look, plain) > 2
    assert difference(look, shoot(pipeline, ip_adapter_image=OTHER_LOOK)) > 2
    assert difference(look, shoot(pipeline, ip_adapter_image=LOOK, ip_adapter_scale=0.3)) > 2
    assert shoot(pipeline, ip_adapter_image=LOOK, ip_adapter_scale=0).tobytes() == plain.tobytes()
    assert shoot(pipeline, ip_adapter_image=LOOK).tobytes() == look.tobytes()
    pipeline.unload_ip_adapter()
    assert shoot(pipeline).tobytes() == plain.tobytes()
    with pytest.raises(ValueError, match="no IP-Adapter"):
        shoot(pipeline, ip_adapter_image=LOOK)


@pytest.mark.parametrize("kind", ["plain", "plus"])
def test_it_is_what_the_stock_pipeline_gives(dressed, parts, kind):
    pipeline = dressed(kind=kind)
    stock = StableDiffusionPipeline(
        parts.vae, parts.text_encoder, parts.tokenizer, pipeline.unet, parts.scheduler, safety_checker=None,
        feature_extractor=pipeline.ip_adapter._pixels, image_encoder=pipeline.ip_adapter.image_encoder,
        requires_safety_checker=False,
    )  # fmt: skip
    stock.set_progress_bar_config(disable=True)
    mask = torch.zeros(1, 1, SIDE, SIDE)
    mask[..., : SIDE // 2] = 1
    call = {"ip_adapter_image": LOOK, "generator": seeded(), **CALL}
    ours = pipeline(*product(), "a lamp", brushnet_scale=0, ip_adapter_mask=mask, ip_adapter_scale=0.8, **call).latents
    stock.set_ip_adapter_scale(0.8)
    call["generator"] = seeded()
    masks = {"cross_attention_kwargs": {"ip_adapter_masks": [mask]}}
    expected = stock("a lamp", height=SIDE, width=SIDE, output_type="latent", **masks, **call).images
    assert torch.allclose(ours, expected, atol=1e-4)


def test_attention_outside_the_mask_is_untouched(dressed):
    pipeline = dressed()
    mask = np.zeros((SIDE, SIDE), np.float32)
    mask[:, : SIDE // 2] = 1
    name = "down_blocks.0.attentions.0.transformer_blocks.0.attn2"
    outputs = []
    hook = pipeline.unet.get_submodule(name).register_forward_hook(lambda module, args, output: outputs.append(output))
    for scale in (1.0, 0.0):
        shoot(pipeline, ip_adapter_image=LOOK, ip_adapter_mask=mask, ip_adapter_scale=scale, num_inference_steps=1)
    hook.remove()
    # (guidance halves, cells, channels): the same input to the first attention of the first step, with and without
    change = (outputs[0] - outputs[1]).reshape(2, SIDE // 8, SIDE // 8, -1).abs().amax(-1)
    assert (change[1, :, :3] > 1e-3).all()
    assert not change[1, :, 5:].any()


def test_a_mask_of_ones_is_no_mask_and_one_of_zeros_silence(dressed):
    pipeline = dressed()
    everywhere = shoot(pipeline, ip_adapter_image=LOOK)
    ones = np.ones((SIDE, SIDE), np.float32)
    assert difference(shoot(pipeline, ip_adapter_image=LOOK, ip_adapter_mask=ones), everywhere) <= 1
    assert shoot(pipeline, ip_adapter_image=LOOK, ip_adapter_mask=ones * 0).tobytes() == shoot(pipeline).tobytes()


@pytest.mark.parametrize("family", ["sd15", "sdxl"])
@pytest.mark.parametrize("method", METHODS)
def test_with_every_method_each_shot_has_its_own_image_and_mask(dressed, parts, sdxl_parts, family, method):
    if (family, method) == ("sd15", "fooocus"):
        pytest.skip("Fooocus' inpainting was made for SDXL")
    pipeline = dressed(method, {"sd15": parts, "sdxl": sdxl_parts}[family])
    image, mask = product()
    left, looks = torch.zeros(1, 1, SIDE, SIDE), [LOOK, OTHER_LOOK]
    left[..., :24] = 1
    regions = [left, 1 - left]
    both = pipeline(
        [image, image], mask, "a lamp", generator=[seeded(0), seeded(1)], num_images=2, ip_adapter_image=looks,
        ip_adapter_mask=torch.cat(regions), **CALL,
    ).images  # fmt: skip
    alone = shoot(pipeline, seed=1, ip_adapter_image=looks[1], ip_adapter_mask=regions[1])
    assert difference(both[2], alone) <= 2
    assert difference(alone, shoot(pipeline, seed=1)) > 2
    assert difference(alone, shoot(pipeline, seed=1, ip_adapter_image=looks[1], ip_adapter_mask=regions[0])) > 2


def test_a_legacy_file_is_read_as_tensors_only(parts, encoder, tmp_path):
    tensors = adapter(parts.unet)
    nested: dict[str, dict[str, torch.Tensor]] = {"image_proj": {}, "ip_adapter": {}}
    for name, value in tensors.items():
        part, _, rest = name.partition(".")
        nested[part][rest] = value
    torch.save(nested, tmp_path / "ip-adapter.bin")
    save_file(tensors, tmp_path / "ip-adapter.safetensors")
    pictures = []
    for file in ("ip-adapter.bin", "ip-adapter.safetensors"):
        pipeline = parts.pipeline("brushnet")
        pipeline.load_ip_adapter(tmp_path / file, encoder)
        pictures.append(shoot(pipeline, ip_adapter_image=LOOK).tobytes())
        pipeline.unload_ip_adapter()
    assert pictures[0] == pictures[1]
    torch.save(nested | {"image_proj": print}, tmp_path / "evil.bin")
    with pytest.raises(IntegrityError, match=r"evil\.bin: expected an IP-Adapter"):
        parts.pipeline("brushnet").load_ip_adapter(tmp_path / "evil.bin", encoder)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (
            {"text": 64},
            r"x\.safetensors: expected an IP-Adapter for this base .* width 64, and this base has .* 32",
        ),
        ({"reads": 40}, r"x\.safetensors: .* images of 40 numbers, and the image encoder gives 24"),
        ({"kind": "plus", "reads": 40}, r"x\.safetensors: .* images of 40 numbers, and the image encoder gives 32"),
    ],
)
def test_an_adapter_for_another_base_or_encoder_is_named_and_changes_nothing(parts, encoder, tmp_path, wrong, message):
    save_file(adapter(parts.unet, **wrong), tmp_path / "x.safetensors")
    with pytest.raises(IntegrityError, match=message) as refused:
        parts.pipeline("brushnet").load_ip_adapter(tmp_path / "x.safetensors", encoder)
    assert "\n" not in str(refused.value)
    assert not any(isinstance(one, IPAdapterAttnProcessor2_0) for one in parts.unet.attn_processors.values())
    shoot(parts.pipeline("brushnet"), num_inference_steps=1)


def test_a_folder_without_a_vision_tower_is_named(parts, tmp_path):
    save_file(adapter(parts.unet), tmp_path / "x.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(IntegrityError, match=r"expected CLIP's vision tower .*'bert'"):
        parts.pipeline("brushnet").load_ip_adapter(tmp_path / "x.safetensors", tmp_path)


@pytest.mark.parametrize(("size", "fits"), [((64, 128), True), ((128, 64), True), ((72, 104), False)])
def test_a_mask_is_refused_where_diffusers_would_misplace_it(dressed, size, fits):
    pipeline = dressed()
    call = {"height": size[0], "width": size[1], "ip_adapter_image": LOOK, "num_inference_steps": 1}
    mask = np.ones(size, np.float32)
    if fits:
        assert shoot(pipeline, ip_adapter_mask=mask, **call).size == size[::-1]
        return
    with pytest.raises(ValueError, match=r"does not fit latents of 9 x 13.* multiples of 8"):
        shoot(pipeline, ip_adapter_mask=mask, **call)
    shoot(pipeline, **call)
