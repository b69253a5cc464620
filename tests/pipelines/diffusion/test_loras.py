"""Several LoRAs at a time, by name and scale, on SD 1.5 and SDXL."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import difference, product

from pipelines.diffusion.inpainting import InpaintingPipeline
from pipelines.errors import IntegrityError


def write(path, unet, block: str, seed: int):
    """A LoRA of one cross-attention in PEFT's format."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for key in ("to_k", "to_v"):
        layer = unet.get_submodule(f"{block}.attn2.{key}")
        name = f"unet.{block}.attn2.{key}"
        tensors[f"{name}.lora_A.weight"] = torch.randn(4, layer.in_features, generator=generator)
        tensors[f"{name}.lora_B.weight"] = torch.randn(layer.out_features, 4, generator=generator)
    save_file(tensors, path)
    return path


@pytest.fixture
def pipeline(parts):
    made = parts.pipeline("brushnet")
    yield made
    made.unload_lora()


@pytest.fixture
def files(tmp_path, parts):
    first = "down_blocks.0.attentions.0.transformer_blocks.0"
    second = "up_blocks.1.attentions.0.transformer_blocks.0"
    return (
        write(tmp_path / "oak.v1.safetensors", parts.unet, first, 1),
        write(tmp_path / "light.safetensors", parts.unet, second, 2),
    )


def shoot(pipeline: InpaintingPipeline):
    call = {"num_inference_steps": 2, "guidance_scale": 3.0, "generator": torch.Generator().manual_seed(0)}
    return pipeline(*product(), "a lamp", **call).images[0]


def test_each_speaks_as_loud_as_it_is_told(pipeline, files):
    plain = shoot(pipeline)
    pipeline.load_lora(files[0], 0.8)
    oak = shoot(pipeline)
    pipeline.load_lora(files[1], 2.0, name="light")
    assert pipeline.lora_scales == {"oak_v1": 0.8, "light": 2.0}
    both = shoot(pipeline)
    assert difference(oak, plain) > 2
    assert difference(both, oak) > 2
    pipeline.set_lora_scales({"oak_v1": 0.8})
    assert difference(shoot(pipeline), oak) <= 1
    pipeline.set_lora_scales({"light": 2.0, "oak_v1": 0.8})
    assert shoot(pipeline).tobytes() == both.tobytes()
    pipeline.set_lora_scales({})
    assert difference(shoot(pipeline), plain) <= 1
    pipeline.unload_lora()
    assert shoot(pipeline).tobytes() == plain.tobytes()
    assert not pipeline.lora_scales


def test_the_order_in_which_they_came_does_not_matter(pipeline, files):
    pictures = []
    for order in (files, files[::-1]):
        for file in order:
            pipeline.load_lora(file, 0.7)
        pictures.append(shoot(pipeline))
        pipeline.unload_lora()
    assert difference(*pictures) <= 1


def test_names_are_taken_once_and_must_be_there(pipeline, files):
    pipeline.load_lora(files[0])
    with pytest.raises(ValueError, match=r"oak\.v1\.safetensors: there is a LoRA 'oak_v1' already"):
        pipeline.load_lora(files[0])
    with pytest.raises(ValueError, match="There is no LoRA 'pine'; there are oak_v1"):
        pipeline.set_lora_scales({"pine": 1.0})
    assert pipeline.lora_scales == {"oak_v1": 1.0}


def test_kohyas_names_of_sdxls_original_blocks_give_the_picture_of_pefts(sdxl_parts, parts, tmp_path):
    block = "down_blocks.1.attentions.0.transformer_blocks.0"
    peft = write(tmp_path / "peft.safetensors", sdxl_parts.unet, block, 3)
    names = {".lora_A.weight": ".lora_down.weight", ".lora_B.weight": ".lora_up.weight"}
    kohya = {}
    for name, value in load_file(peft).items():
        stem, ending = next((name.removesuffix(end), theirs) for end, theirs in names.items() if name.endswith(end))
        original = stem.replace(f"unet.{block}", "lora_unet_input_blocks_4_1_transformer_blocks_0")
        kohya[original.replace(".", "_") + ending] = value
        kohya[original.replace(".", "_") + ".alpha"] = torch.tensor(4.0)
    save_file(kohya, tmp_path / "kohya.safetensors")
    pipeline = sdxl_parts.pipeline("brushnet")
    pictures = [shoot(pipeline)]
    for name in ("peft", "kohya"):
        pipeline.load_lora(tmp_path / f"{name}.safetensors")
        pictures.append(shoot(pipeline))
        pipeline.unload_lora()
    assert pictures[1].tobytes() == pictures[2].tobytes()
    assert difference(pictures[0], pictures[1]) > 2
    with pytest.raises(IntegrityError, match=r"kohya\.safetensors: expected a LoRA for this base"):
        parts.pipeline("brushnet").load_lora(tmp_path / "kohya.safetensors")
