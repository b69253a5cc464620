"""Several LoRAs at a time, by name and scale, on SD 1.5 and SDXL; those with halves for the text encoders, too."""

from __future__ import annotations

import copy

import pytest
import torch
from diffusers import StableDiffusionPipeline
from peft import LoraConfig, get_peft_model_state_dict
from safetensors.torch import load_file, save_file

from pipelines.diffusion.inpainting import InpaintingPipeline
from pipelines.errors import IntegrityError
from tests.pipelines.diffusion.tiny_models import difference, product


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


ALPHAS = {"self_attn.q_proj": 4.0, "self_attn.out_proj": 1.0, "mlp.fc1": 2.0}
"""Where the text halves of these tests are in each layer of an encoder, and their alphas."""


def of_encoder(encoder, seed: int) -> dict[str, tuple[torch.Tensor, torch.Tensor, float]]:
    """A LoRA of rank 4 by the modules' published names: (down, up, alpha)."""
    generator = torch.Generator().manual_seed(seed)
    made = {}
    for n, layer in enumerate(getattr(encoder, "text_model", encoder).encoder.layers):
        for place, alpha in ALPHAS.items():
            module = layer.get_submodule(place)
            down = torch.randn(4, module.in_features, generator=generator) * 0.3
            up = torch.randn(module.out_features, 4, generator=generator) * 0.3
            made[f"text_model.encoder.layers.{n}.{place}"] = (down, up, alpha)
    return made


def encoders_of(parts):
    return [encoder for encoder in (parts.text_encoder, parts.text_encoder_2) if encoder is not None]


def write_with_text(path, parts, form: str):
    """A LoRA of UNet and text encoders. PEFT's files have no alphas of their own: here they are in the weights."""
    tensors = load_file(write(path, parts.unet, "down_blocks.1.attentions.0.transformer_blocks.0", 1))
    encoders = encoders_of(parts)
    if form == "kohya":
        ends = {"lora_A.weight": "lora_down.weight", "lora_B.weight": "lora_up.weight"}
        stems = {name: name.split(".lora_")[0].replace("unet.", "lora_unet_").replace(".", "_") for name in tensors}
        tensors = {f"{stems[name]}.{ends[name[-13:]]}": value for name, value in tensors.items()}
    kohyas = ("lora_te1_", "lora_te2_") if len(encoders) == 2 else ("lora_te_",)
    for n, encoder in enumerate(encoders):
        for module, (down, up, alpha) in of_encoder(encoder, n).items():
            if form == "kohya":
                name = kohyas[n] + module.replace(".", "_")
                tensors |= {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up}
                tensors[f"{name}.alpha"] = torch.tensor(alpha)
            else:
                name = f"{('text_encoder', 'text_encoder_2')[n]}.{module}"
                tensors |= {f"{name}.lora_A.weight": down, f"{name}.lora_B.weight": up * alpha / 4}
    save_file(tensors, path)
    return path


def by_hand(parts, scale: float):
    """The parts' text encoders with the LoRA added to their weights."""
    merged = []
    for n, encoder in enumerate(encoders_of(parts)):
        model = copy.deepcopy(encoder)
        for name, (down, up, alpha) in of_encoder(encoder, n).items():
            module = getattr(model, "text_model", model).get_submodule(name.removeprefix("text_model."))
            module.weight.data += scale * alpha / 4 * up @ down
        merged.append(model)
    return merged


@torch.no_grad()
def heard(encoder, text: str = "a lamp") -> torch.Tensor:
    ids = torch.tensor([[ord(letter) % 26 for letter in text.ljust(16)]])
    return encoder(ids).last_hidden_state


def is_untouched(pipeline) -> bool:
    modules = (pipeline.unet, pipeline.text_encoder, pipeline.text_encoder_2)
    return not any(hasattr(module, "peft_config") for module in modules)


class TestTextEncoders:
    @pytest.mark.parametrize("form", ["kohya", "peft"])
    @pytest.mark.parametrize("family", ["sd15", "sdxl"])
    def test_their_halves_are_added_as_strongly_as_the_unets(self, parts, sdxl_parts, tmp_path, form, family):
        of = {"sd15": parts, "sdxl": sdxl_parts}[family]
        pipeline = of.pipeline("brushnet")
        plain = shoot(pipeline)
        merged = {scale: by_hand(of, scale) for scale in (0.8, 0.3)}
        before = [heard(encoder) for encoder in encoders_of(of)]
        pipeline.load_lora(write_with_text(tmp_path / "oak.safetensors", of, form), 0.8)
        try:
            for scale in (0.8, 0.3):
                pipeline.set_lora_scales({"oak": scale})
                for encoder, expected, silent in zip(encoders_of(of), merged[scale], before, strict=True):
                    assert torch.allclose(heard(encoder), heard(expected), atol=1e-4)
                    assert (heard(encoder) - silent).abs().max() > 0.01
            loud = shoot(pipeline)
            pipeline.set_lora_scales({})
            assert difference(shoot(pipeline), plain) <= 1
            pipeline.set_lora_scales({"oak": 0.3})
            assert shoot(pipeline).tobytes() == loud.tobytes()
        finally:
            pipeline.unload_lora()
        assert is_untouched(pipeline)
        assert shoot(pipeline).tobytes() == plain.tobytes()

    def test_the_halves_matter_to_the_picture_and_go_with_a_lora_that_has_none(self, pipeline, parts, files, tmp_path):
        both = write_with_text(tmp_path / "both.safetensors", parts, "kohya")
        alone = write(tmp_path / "unet.safetensors", parts.unet, "down_blocks.1.attentions.0.transformer_blocks.0", 1)
        pictures = []
        for file in (both, alone):
            pipeline.load_lora(file)
            pictures.append(shoot(pipeline))
            pipeline.unload_lora()
        assert difference(*pictures) > 2
        pipeline.load_lora(files[0], 0.7)
        pipeline.load_lora(both)
        pipeline.set_lora_scales({"both": 1.0})
        assert difference(shoot(pipeline), pictures[0]) <= 1
        pipeline.set_lora_scales({"both": 1.0, "oak_v1": 0.7})
        assert difference(shoot(pipeline), pictures[0]) > 2

    def test_what_diffusers_writes_of_a_trained_one_is_heard_with_its_alpha(self, parts, tmp_path):
        torch.manual_seed(3)
        unet, encoder = copy.deepcopy(parts.unet), copy.deepcopy(parts.text_encoder)
        config = {"r": 4, "lora_alpha": 12, "init_lora_weights": False}
        unet.add_adapter(LoraConfig(target_modules=["to_k", "to_v"], **config))
        encoder.add_adapter(LoraConfig(target_modules=["q_proj", "v_proj"], **config))
        StableDiffusionPipeline.save_lora_weights(
            tmp_path,
            unet_lora_layers=get_peft_model_state_dict(unet),
            text_encoder_lora_layers=get_peft_model_state_dict(encoder),
            unet_lora_adapter_metadata=unet.peft_config["default"].to_dict(),
            text_encoder_lora_adapter_metadata=encoder.peft_config["default"].to_dict(),
        )
        pipeline = parts.pipeline("brushnet")
        silent = heard(parts.text_encoder)
        pipeline.load_lora(tmp_path, name="oak")
        found = heard(parts.text_encoder)
        pipeline.unload_lora()
        assert torch.allclose(found, heard(encoder), atol=1e-4)
        assert (found - silent).abs().max() > 0.01

    @pytest.mark.parametrize(
        ("wrong", "message"),
        [
            ("wider", r"expected a LoRA for this text encoder, of \(\(4, 32\), .* found \(\(4, 48\)"),
            ("deeper", "expected a LoRA for this text encoder, which has no place for .*layers_11"),
            ("second", "expected a LoRA for 1 text encoders, found lora_te2_"),
            ("half", "expected two matrices of .*q_proj for this text encoder, found alpha, down"),
            ("dora", r"expected a LoRA, found a DoRA \(lora_te_.*dora_scale\), which is not supported"),
        ],
    )
    def test_a_half_that_does_not_fit_is_refused_in_one_line_and_nothing_is_loaded(
        self, pipeline, parts, tmp_path, wrong, message
    ):
        path = write_with_text(tmp_path / "oak.safetensors", parts, "kohya")
        tensors = load_file(path)
        stem = "lora_te_text_model_encoder_layers_{}_self_attn_q_proj"
        first = stem.format(0)
        if wrong == "wider":
            tensors[f"{first}.lora_down.weight"] = torch.zeros(4, 48)
        elif wrong == "deeper":
            tensors[f"{stem.format(11)}.lora_down.weight"] = torch.zeros(4, 32)
            tensors[f"{stem.format(11)}.lora_up.weight"] = torch.zeros(32, 4)
        elif wrong == "second":
            tensors = {name.replace("lora_te_", "lora_te2_"): value for name, value in tensors.items()}
        elif wrong == "half":
            tensors[f"{first}.lora_down.weight"] = tensors.pop(f"{first}.lora_up.weight").T.contiguous()
        else:
            tensors[f"{first}.dora_scale"] = torch.ones(32, 1)
        save_file(tensors, path)
        with pytest.raises(IntegrityError, match=message) as refused:
            pipeline.load_lora(path)
        assert "oak.safetensors" in str(refused.value)
        assert "\n" not in str(refused.value)
        assert is_untouched(pipeline)
