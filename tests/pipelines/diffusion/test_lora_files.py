"""Every published format of a LoRA: each layer's weight after loading is W + alpha / rank · up · down, by hand."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from pipelines.diffusion import loras
from pipelines.diffusion.loras import add_lora, remove_loras, set_scales
from pipelines.errors import IntegrityError
from tests.published import TinyBase, ldm_unet, tiny_base


@dataclass(frozen=True)
class Layer:
    """What a file has for a layer: matrices in half precision, as published, and an alpha or none."""

    down: Tensor
    up: Tensor
    alpha: float | None
    mid: Tensor | None = None

    @property
    def delta(self) -> Tensor:
        """alpha / rank · up · down, summed over the ranks in double precision."""
        down, up = self.down.double(), self.up.double()
        if self.mid is not None:
            mid = self.mid.double()
            whole = torch.zeros(len(down), down.shape[1], *mid.shape[2:], dtype=torch.double)
            for r in range(len(down)):
                for s in range(len(down)):
                    whole[r] += mid[r, s][None] * down[s, :, 0, 0, None][:, None]
            down = whole
        total = sum(torch.tensordot(up[:, r].flatten(), down[r], 0) for r in range(len(down)))
        rank = len(down)
        return total * (rank if self.alpha is None else self.alpha) / rank


def layer_of(module: nn.Module, rank: int, alpha: float | None, seed: int, tucker: bool = False) -> Layer:
    generator = torch.Generator().manual_seed(seed)
    outputs, inputs, *kernel = module.weight.shape
    draw = lambda *shape: (torch.randn(*shape, generator=generator) * 0.2).half()  # noqa: E731
    ones = [1 for _ in kernel]
    if tucker and kernel and kernel[0] > 1:
        return Layer(draw(rank, inputs, 1, 1), draw(outputs, rank, 1, 1), alpha, draw(rank, rank, *kernel))
    return Layer(draw(rank, inputs, *kernel), draw(outputs, rank, *ones), alpha)


def models(base: TinyBase) -> list[nn.Module]:
    return [model for model in (base.unet, base.text_encoder, base.text_encoder_2) if model is not None]


def places(model: nn.Module, convolutions: bool) -> Iterator[tuple[str, nn.Module]]:
    """Plain LoRAs are of the transformers' layers; LoCon is of every linear layer and convolution."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            attention = "attentions." in name or "self_attn" in name or "mlp" in name
            if convolutions or attention:
                yield name, module


def drawn(base: TinyBase, form: str) -> list[dict[str, Layer]]:
    """The layers of a LoRA of this form, for each model of the base, by the modules' names."""
    made = []
    for n, model in enumerate(models(base)):
        layers = {}
        for at, (name, module) in enumerate(places(model, form.startswith("locon"))):
            rank, alpha = 4, 2.0
            if form.startswith("locon") and module.weight.dim() == 4:
                rank, alpha = 2, 0.5
            elif form == "per_block":
                block = sum(map(int, re.findall(r"\d+", name)[:2]))
                rank, alpha = 1 + block % 4, (1.0, 3.0, 4.0)[block % 3]
            elif form == "missing_alphas":
                rank, alpha = (4, None) if at % 3 else (2, 8.0)
            elif form == "no_alphas":
                rank, alpha = 2 + at % 3, None
            layers[name] = layer_of(module, rank, alpha, 1000 * n + at, form == "locon_tucker")
        made.append(layers)
    return made


def kohya(base: TinyBase, halves: list[dict[str, Layer]], original: bool) -> dict[str, Tensor]:
    """kohya's names: SD 1.5's are of diffusers' modules, SDXL's of the original ones."""
    originals = dict(zip(base.unet.state_dict(), ldm_unet(base.unet), strict=True))
    encoders = ["lora_te_"] if base.text_encoder_2 is None else ["lora_te1_", "lora_te2_"]
    tensors = {}
    for prefix, layers in zip(["lora_unet_", *encoders], halves, strict=True):
        for place, layer in layers.items():
            name = place
            if prefix == "lora_unet_" and original:
                name = originals[f"{place}.weight"].removesuffix(".weight")
            elif prefix != "lora_unet_" and not name.startswith("text_"):
                name = f"text_model.{name}"
            name = prefix + name.replace(".", "_")
            tensors |= {f"{name}.lora_down.weight": layer.down, f"{name}.lora_up.weight": layer.up}
            if layer.mid is not None:
                tensors[f"{name}.lora_mid.weight"] = layer.mid
            if layer.alpha is not None:
                tensors[f"{name}.alpha"] = torch.tensor(layer.alpha).half()
    return tensors


def peft(halves: list[dict[str, Layer]], ends: tuple[str, str] = ("lora_A", "lora_B")) -> dict[str, Tensor]:
    tensors = {}
    for prefix, layers in zip(("unet", "text_encoder", "text_encoder_2"), halves, strict=False):
        for place, layer in layers.items():
            tensors |= {
                f"{prefix}.{place}.{ends[0]}.weight": layer.down,
                f"{prefix}.{place}.{ends[1]}.weight": layer.up,
            }
    return tensors


@pytest.fixture(scope="module", params=["sd15", "sdxl"])
def family(request) -> TinyBase:
    return tiny_base(request.param)


@pytest.fixture
def base(family) -> Iterator[TinyBase]:
    yield family
    remove_loras(family.unet, models(family)[1:])


def load(base: TinyBase, tensors: dict[str, Tensor], path: Path, settings: dict | None = None) -> None:
    metadata = {} if settings is None else {"lora_adapter_metadata": json.dumps(settings)}
    save_file({name: value.contiguous() for name, value in tensors.items()}, path / "oak.safetensors", metadata)
    add_lora(base.unet, path / "oak.safetensors", "oak", models(base)[1:])


def assert_weights_are_by_hand(base: TinyBase, halves: list[dict[str, Layer]], scale: float = 1.0) -> None:
    """What every layer of every model does to an input is what the weight computed by hand does."""
    generator = torch.Generator().manual_seed(0)
    for model, layers in zip(models(base), halves, strict=True):
        changed = {name for name, module in model.named_modules() if hasattr(module, "base_layer")}
        assert changed == layers.keys()
        for place, layer in layers.items():
            module = model.get_submodule(place)
            plain = module.base_layer
            by_hand = plain.weight.double() + scale * layer.delta.reshape(plain.weight.shape)
            effective = plain.weight.double() + module.get_delta_weight("oak").double()
            assert (effective - by_hand).abs().max() < 1e-5, place
            side = plain.weight.shape[1]
            shape = (2, side) if plain.weight.dim() == 2 else (1, side, 5, 5)
            given = torch.randn(shape, generator=generator)
            weight = by_hand.float()
            with torch.no_grad():
                expected = (
                    nn.functional.linear(given, weight, plain.bias)
                    if weight.dim() == 2
                    else nn.functional.conv2d(given, weight, plain.bias, plain.stride, plain.padding)
                )
                assert (module(given) - expected).abs().max() < 1e-4, place


@pytest.mark.parametrize("form", ["plain", "locon", "locon_tucker", "per_block", "missing_alphas", "no_alphas"])
def test_kohyas_layers_are_as_strong_as_their_alpha_and_rank_say(base, tmp_path, form):
    halves = drawn(base, form)
    load(base, kohya(base, halves, original=base.family == "sdxl"), tmp_path)
    assert_weights_are_by_hand(base, halves)
    set_scales(base.unet, {"oak": 0.3}, models(base)[1:])
    assert_weights_are_by_hand(base, halves, 0.3)


def test_kohyas_names_of_diffusers_blocks_are_read_for_sdxl_too(base, tmp_path):
    halves = drawn(base, "locon")
    load(base, kohya(base, halves, original=base.family == "sd15"), tmp_path)
    assert_weights_are_by_hand(base, halves)


@pytest.mark.parametrize("ends", [("lora_A", "lora_B"), ("lora.down", "lora.up")], ids=["peft", "diffusers"])
def test_without_metadata_a_layers_alpha_is_its_own_rank(base, tmp_path, ends):
    halves = drawn(base, "no_alphas")
    load(base, peft(halves, ends), tmp_path)
    assert_weights_are_by_hand(base, halves)


def test_the_oldest_names_of_diffusers_are_read(base, tmp_path):
    halves = [
        {place: layer for place, layer in layers.items() if re.search(r"attn\d\.to_|self_attn\.", place)}
        for layers in drawn(base, "no_alphas")
    ]
    tensors = {}
    for name, value in peft(halves, ("_lora.down", "_lora.up")).items():
        name = re.sub(r"(attn\d)\.to_", r"\1.processor.to_", name).replace("to_out.0", "to_out")
        name = re.sub(r"self_attn\.(q|k|v|out)_proj", r"self_attn.to_\1", name)
        tensors[name.replace("._lora", "_lora")] = value
    load(base, tensors, tmp_path)
    assert_weights_are_by_hand(base, halves)


@pytest.mark.parametrize("rslora", [False, True], ids=["lora", "rslora"])
def test_pefts_metadata_say_how_strong_each_layer_is(base, tmp_path, rslora):
    halves = drawn(base, "per_block")
    names = ("unet", "text_encoder", "text_encoder_2")
    settings, expected = {}, []
    for prefix, layers in zip(names, halves, strict=False):
        own = {place: 6.0 for place in layers if place.endswith("1.attn1.to_q") or place.endswith("1.mlp.fc1")}
        patterns = {"attn2.to_k": 5.0, "self_attn.k_proj": 5.0, **{f"^{place}": alpha for place, alpha in own.items()}}
        settings |= {f"{prefix}.lora_alpha": 3, f"{prefix}.r": 4, f"{prefix}.alpha_pattern": patterns}
        settings |= {f"{prefix}.use_rslora": rslora}
        half = {}
        for place, layer in layers.items():
            alpha = own.get(place, 5.0 if place.endswith(("attn2.to_k", "self_attn.k_proj")) else 3.0)
            half[place] = replace(layer, alpha=alpha * len(layer.down) ** 0.5 if rslora else alpha)
        expected.append(half)
    load(base, peft(halves), tmp_path, settings)
    assert_weights_are_by_hand(base, expected)


def test_what_trained_the_unet_alone_has_no_prefix(base, tmp_path):
    [unet, *_] = drawn(base, "per_block")
    tensors = {name.removeprefix("unet."): value for name, value in peft([unet]).items()}
    load(base, tensors, tmp_path, {"r": 4, "lora_alpha": 6})
    expected = {place: replace(layer, alpha=6.0) for place, layer in unet.items()}
    assert_weights_are_by_hand(base, [expected, *({} for _ in models(base)[1:])])


def test_a_second_lora_keeps_the_alphas_of_both(base, tmp_path):
    first, second = drawn(base, "per_block"), drawn(base, "locon")
    load(base, kohya(base, first, original=base.family == "sdxl"), tmp_path)
    save_file(peft(second), tmp_path / "pine.safetensors")
    add_lora(base.unet, tmp_path / "pine.safetensors", "pine", models(base)[1:])
    set_scales(base.unet, {"oak": 1.0, "pine": 1.0}, models(base)[1:])
    for model, ours, theirs in zip(models(base), first, second, strict=True):
        for place, layer in theirs.items():
            module = model.get_submodule(place)
            assert (module.get_delta_weight("pine").double() - replace(layer, alpha=None).delta).abs().max() < 1e-5
            if place in ours:
                assert (module.get_delta_weight("oak").double() - ours[place].delta).abs().max() < 1e-5


WRONG = {
    "dora": r"expected a LoRA, found a DoRA \(lora_.*dora_scale\), which is not supported",
    "dora_of_text": r"expected a LoRA, found a DoRA \(lora_te.*dora_scale\), which is not supported",
    "nan": r"expected finite weights, found NaN or infinity in lora_unet_.*lora_up",
    "infinite": r"expected finite weights, found NaN or infinity in lora_te.*lora_down",
    "infinite_alpha": r"expected finite weights, found NaN or infinity in lora_unet_.*alpha",
    "alpha_zero": r"expected a finite alpha other than 0 of .*, found 0\.0",
    "textual_inversions": r"expected a LoRA alone, found textual inversions in it too \(bundle_emb: oakstyle\)",
    "loha": r"expected a LoRA for this base, which has no place for lora_unet_.*hada_w1_a",
    "other_block": r"expected a LoRA for this base, which has no place for lora_unet_down_blocks_7_",
    "lone": r"expected two matrices of .*, found alpha, down",
    "shape": r"expected a LoRA for this base, of \(.*found \(",
}


@pytest.mark.parametrize("wrong", WRONG)
def test_what_is_no_lora_for_this_base_is_refused_in_one_sentence(base, tmp_path, wrong):
    tensors = kohya(base, drawn(base, "plain"), original=base.family == "sdxl")
    unet = next(name.split(".")[0] for name in tensors if name.startswith("lora_unet_"))
    text = next(name.split(".")[0] for name in tensors if name.startswith("lora_te"))
    if wrong == "dora":
        tensors[f"{unet}.dora_scale"] = torch.ones(tensors[f"{unet}.lora_up.weight"].shape[0], 1)
    elif wrong == "dora_of_text":
        tensors[f"{text}.dora_scale"] = torch.ones(1, 32)
    elif wrong == "nan":
        tensors[f"{unet}.lora_up.weight"][3] = float("nan")
    elif wrong == "infinite":
        tensors[f"{text}.lora_down.weight"][0, 3] = float("inf")
    elif wrong == "infinite_alpha":
        tensors[f"{unet}.alpha"] = torch.tensor(float("inf"))
    elif wrong == "alpha_zero":
        tensors[f"{text}.alpha"] = torch.tensor(0.0)
    elif wrong == "textual_inversions":
        tensors["bundle_emb.oakstyle.string_to_param.*"] = torch.zeros(2, 32)
    elif wrong == "loha":
        tensors[f"{unet}.hada_w1_a"] = torch.zeros(32, 4)
    elif wrong == "other_block":
        tensors["lora_unet_down_blocks_7_resnets_0_conv1.lora_down.weight"] = torch.zeros(4, 32, 3, 3)
    elif wrong == "lone":
        del tensors[f"{unet}.lora_up.weight"]
    else:
        tensors[f"{unet}.lora_down.weight"] = torch.zeros(4, 7, 1, 1)
    with pytest.raises(IntegrityError, match=WRONG[wrong]) as refused:
        load(base, tensors, tmp_path)
    assert "oak.safetensors" in str(refused.value)
    assert "\n" not in str(refused.value)
    assert not any(hasattr(model, "peft_config") for model in models(base))


def test_pefts_dora_is_refused(base, tmp_path):
    halves = drawn(base, "plain")
    with pytest.raises(IntegrityError, match=r"found a DoRA \(unet\.use_dora\)"):
        load(base, peft(halves), tmp_path, {"unet.r": 4, "unet.lora_alpha": 4, "unet.use_dora": True})
    place = next(iter(halves[0]))
    magnitude = {f"unet.{place}.lora_magnitude_vector": torch.ones(32)}
    with pytest.raises(IntegrityError, match=r"found a DoRA \(unet\..*lora_magnitude_vector\)"):
        load(base, peft(halves) | magnitude, tmp_path)


@pytest.mark.parametrize("fault", ["scaling", "weight", "layer"])
@pytest.mark.parametrize("other", [False, True], ids=["alone", "beside another"])
def test_a_layer_that_is_not_loaded_as_the_file_says_is_named_and_the_lora_removed(
    base, tmp_path, monkeypatch, fault, other
):
    halves = drawn(base, "plain")
    tensors = kohya(base, halves, original=base.family == "sdxl")
    if other:
        save_file(peft(halves[:1]), tmp_path / "pine.safetensors")
        add_lora(base.unet, tmp_path / "pine.safetensors", "pine", models(base)[1:])
    place = list(halves[1])[-1]
    loaded = loras._load

    def as_a_faulty_library_would(half, name):
        loaded(half, name)
        if half.model is base.text_encoder:
            module = half.model.get_submodule(place)
            if fault == "scaling":
                module.scaling[name] *= 1.5
            elif fault == "weight":
                module.lora_B[name].weight.data[0, 0] += 1e-3
            else:
                del module.scaling[name]

    monkeypatch.setattr(loras, "_load", as_a_faulty_library_would)
    expected = {"scaling": "scaled by 0.5 ", "weight": "as stored, found others", "layer": "the same layers"}[fault]
    with pytest.raises(IntegrityError, match=f"{expected}.*") as refused:
        load(base, tensors, tmp_path)
    assert place in str(refused.value)
    assert list(getattr(base.unet, "peft_config", {})) == (["pine"] if other else [])
    assert not any(hasattr(model, "peft_config") for model in models(base)[1:])
