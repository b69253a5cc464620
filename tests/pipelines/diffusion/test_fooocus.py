"""Fooocus' head and patch against recordings of the published implementation, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel
from peft import LoraConfig
from safetensors.torch import load_file

from pipelines.diffusion.fooocus import InpaintHead, add_feature, apply_patch, kept_mask
from pipelines.errors import IntegrityError
from tests.pipelines.diffusion.tiny_models import make_unet

PARITY = Path(__file__).parents[3] / "../shared/parity"
HEAD = PARITY / "fooocus" / "fooocus_inpaint_head.pth"
PATCH = PARITY / "fooocus" / "inpaint.fooocus.patch"
TOLERANCE = 1e-4

recorded = pytest.mark.skipif(
    not PARITY.is_dir(), reason="../shared is absent: no recordings of the published implementation"
)


def sdxl_unet() -> UNet2DConditionModel:
    return UNet2DConditionModel.from_pretrained(PARITY / "sdxl" / "unet").eval().requires_grad_(False)


@recorded
def test_the_head_gives_the_published_feature():
    recording = load_file(PARITY / "fooocus" / "head.safetensors")
    feature = InpaintHead.from_file(HEAD)(recording["product_mask"], recording["masked_image_latents"])
    assert (feature - recording["feature"]).abs().max() <= TOLERANCE


@recorded
def test_the_patch_gives_the_published_weights_and_leaves_the_others():
    before = {name: value.clone() for name, value in sdxl_unet().named_parameters()}
    patched = dict(apply_patch(sdxl_unet(), PATCH).named_parameters())
    recording = load_file(PARITY / "fooocus" / "patched.safetensors")
    assert len(recording) < len(patched)
    for name, value in patched.items():
        assert (value - recording.get(name, before[name])).abs().max() <= (TOLERANCE if name in recording else 0), name
    assert sum(not torch.equal(patched[name], before[name]) for name in recording) > len(recording) / 2


@recorded
def test_the_patch_finds_its_weights_under_a_lora():
    unet = sdxl_unet()
    unet.add_adapter(LoraConfig(r=2, target_modules=["to_q"]))
    apply_patch(unet, PATCH)
    unet.unload_lora()
    expected = dict(apply_patch(sdxl_unet(), PATCH).named_parameters())
    for name, value in unet.named_parameters():
        assert torch.equal(value, expected[name]), name


@recorded
def test_the_patch_is_refused_by_a_unet_of_sd15_and_leaves_it_as_it_was():
    unet = make_unet()
    before = {name: value.clone() for name, value in unet.named_parameters()}
    with pytest.raises(IntegrityError, match=r"inpaint\.fooocus\.patch: expected a Fooocus patch for this UNet"):
        apply_patch(unet, PATCH)
    assert all(torch.equal(value, before[name]) for name, value in unet.named_parameters())


def test_the_feature_is_on_the_main_path_and_on_the_first_skip():
    unet = make_unet().requires_grad_(False)
    sample, embeds = torch.randn(2, 4, 16, 16), torch.randn(2, 7, 32)
    feature = torch.randn(1, 32, 16, 16)
    plain = unet(sample, 10, embeds).sample
    seen: dict[str, torch.Tensor] = {}
    last = unet.up_blocks[-1].register_forward_pre_hook(
        lambda module, args, kwargs: seen.update(skip=kwargs["res_hidden_states_tuple"][0]), with_kwargs=True
    )
    with add_feature(unet, feature):
        assert (unet(sample, 10, embeds).sample - plain).abs().max() > 1e-3
    last.remove()
    assert torch.equal(seen["skip"], unet.conv_in(sample) + feature)
    assert torch.equal(unet(sample, 10, embeds).sample, plain)


def test_a_latent_that_the_hole_touches_is_hole():
    mask = torch.ones(1, 1, 32, 32)
    mask[..., 9, 9] = 0.2
    kept = kept_mask(mask, (4, 4))
    assert kept.sum() == 15
    assert kept[0, 0, 1, 1] == 0


@pytest.mark.parametrize(
    ("name", "stored", "message"),
    [
        ("head.pth", {"tail": torch.zeros(16, 5, 3, 3)}, r"head\.pth: expected Fooocus' inpaint head .*KeyError"),
        (
            "head.pth",
            {"head": torch.zeros(16, 9, 3, 3)},
            r"head\.pth: expected Fooocus' inpaint head .*\(16, 9, 3, 3\)",
        ),
    ],
)
def test_a_file_that_is_no_head_is_named(tmp_path, name, stored, message):
    torch.save(stored, tmp_path / name)
    with pytest.raises(IntegrityError, match=message):
        InpaintHead.from_file(tmp_path / name)


KEY = "diffusion_model.input_blocks.0.0.weight"


@pytest.mark.parametrize(
    ("stored", "message"),
    [
        ({}, "found an empty one"),
        ({KEY: torch.zeros(2)}, "expected a Fooocus patch"),
        ({KEY: (torch.zeros(32, 4, 3, 3), torch.tensor(0.0), torch.tensor(1.0))}, "not of 8 bits"),
        ({f"{KEY}s": (torch.zeros(2).byte(), torch.tensor(0.0), torch.tensor(1.0))}, "has no input_blocks.0.0.weights"),
        ({KEY: (torch.zeros(2).byte(), torch.tensor(0.0), torch.tensor(1.0))}, r"is \(32, 4, 3, 3\), found \(2,\)"),
    ],
)
def test_a_file_that_is_no_patch_for_this_unet_is_named(tmp_path, stored, message):
    torch.save(stored, tmp_path / "x.patch")
    with pytest.raises(IntegrityError, match=rf"x\.patch: .*{message}") as refused:
        apply_patch(make_unet(), tmp_path / "x.patch")
    assert "\n" not in str(refused.value)


def test_code_in_a_file_is_never_run(tmp_path):
    class Evil:
        def __reduce__(self):
            return (exec, (f"open({str(tmp_path / 'ran')!r}, 'w')",))

    for name, read in (("x.pth", InpaintHead.from_file), ("x.patch", lambda path: apply_patch(make_unet(), path))):
        torch.save({"head": Evil()}, tmp_path / name)
        with pytest.raises(IntegrityError, match=name.replace(".", r"\.")):
            read(tmp_path / name)
    assert not (tmp_path / "ran").exists()
