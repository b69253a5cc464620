"""base + (inpainting - original) over tiny checkpoints."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from pipelines.cli.main import app
from pipelines.errors import IntegrityError, UsageError
from pipelines.models.merging import how_to_use, merge_inpainting
from tests.published import single_file, tiny_base, tiny_unet

FIRST = "model.diffusion_model.input_blocks.0.0.weight"
OTHER = "model.diffusion_model.input_blocks.1.1.proj_in.weight"


def shifted(tensors: dict[str, torch.Tensor], by: float) -> dict[str, torch.Tensor]:
    return {name: value + by if value.is_floating_point() else value for name, value in tensors.items()}


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    """An original, a base 0.25 away from it, and an inpainting model 0.5 away from it with five channels more."""
    original = single_file(tiny_base())
    inpainting = shifted(original, 0.5)
    inpainting[FIRST] = torch.cat(
        [original[FIRST] + 0.5, torch.full_like(original[FIRST][:, :1], 7).repeat(1, 5, 1, 1)], 1
    )
    del inpainting["first_stage_model.quant_conv.weight"]
    paths = {name: tmp_path / f"{name}.safetensors" for name in ("base", "inpainting", "original", "out")}
    save_file({name: value.half() for name, value in shifted(original, 0.25).items()}, paths["base"])
    save_file(inpainting, paths["inpainting"])
    save_file(original, paths["original"])
    return paths


def test_what_inpainting_learnt_is_added_and_its_own_channels_are_taken(files: dict[str, Path]):
    merge_inpainting(**files)
    merged, original = load_file(files["out"]), load_file(files["original"])
    base = load_file(files["base"])
    assert list(merged) == list(base)
    assert all(value.dtype == torch.float16 for value in merged.values())
    torch.testing.assert_close(merged[OTHER].float(), original[OTHER] + 0.75, rtol=0, atol=2e-3)
    assert merged[FIRST].shape[1] == 9
    torch.testing.assert_close(merged[FIRST][:, :4].float(), original[FIRST] + 0.75, rtol=0, atol=2e-3)
    assert (merged[FIRST][:, 4:] == 7).all()
    lacking = "first_stage_model.quant_conv.weight"
    assert torch.equal(merged[lacking], base[lacking])


def test_the_merged_model_is_read_by_the_sampler_as_one_of_nine_channels(files: dict[str, Path], tmp_path: Path):
    from pipelines.contracts import ModelRef
    from pipelines.models.checkpoints import load_base
    from pipelines.models.profile import ModelPart
    from tests.published import write_clip, write_folder

    merge_inpainting(**files)
    config = write_folder(tiny_base(), tmp_path / "sd15", weights=False)
    part = ModelPart("base", "base", files["out"], "here", "CC0", ModelRef("base", "1", ""), config=config)
    assert load_base(part, write_clip(tmp_path / "clip")).unet.config.in_channels == 9


def test_unets_in_diffusers_files_are_merged_too(tmp_path: Path):
    paths = {name: tmp_path / f"{name}.safetensors" for name in ("base", "inpainting", "original", "out")}
    original = tiny_unet().state_dict()
    nine = tiny_unet(in_channels=9).state_dict()
    save_file(original, paths["base"])
    save_file(original, paths["original"])
    save_file(nine, paths["inpainting"])
    merge_inpainting(**paths)
    merged = load_file(paths["out"])
    for name, value in nine.items():
        torch.testing.assert_close(merged[name], value, rtol=1e-4, atol=1e-6)


def test_a_wrong_file_is_named(files: dict[str, Path], tmp_path: Path):
    with pytest.raises(IntegrityError, match=r"base\.safetensors: expected a UNet of 9 channels, found 4"):
        merge_inpainting(files["base"], files["base"], files["original"], files["out"])
    with pytest.raises(IntegrityError, match=r"inpainting\.safetensors: expected a UNet of 4 channels, found 9"):
        merge_inpainting(files["inpainting"], files["inpainting"], files["original"], files["out"])
    xl = tmp_path / "xl.safetensors"
    save_file(single_file(tiny_base("sdxl")), xl)
    with pytest.raises(IntegrityError, match=r"expected the architecture of "):
        merge_inpainting(xl, files["inpainting"], files["original"], files["out"])
    with pytest.raises(UsageError, match=r"nothing\.safetensors: not there"):
        merge_inpainting(tmp_path / "nothing.safetensors", files["inpainting"], files["original"], files["out"])
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(files["base"].read_bytes()[:-10])
    with pytest.raises(IntegrityError, match=r"cut\.safetensors: expected safetensors, found a file that is cut short"):
        merge_inpainting(cut, files["inpainting"], files["original"], files["out"])
    assert not files["out"].exists()
    assert not list(tmp_path.glob("out*"))


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("inpainting", lambda first: first[:8]),
        ("original", lambda first: first[:8]),
        ("inpainting", lambda first: first[..., :1]),
    ],
)
def test_a_first_convolution_of_another_architecture_is_named(files: dict[str, Path], name: str, change):
    tensors = load_file(files[name])
    tensors[FIRST] = change(tensors[FIRST]).contiguous()
    save_file(tensors, files[name])
    with pytest.raises(IntegrityError, match=rf"{name}\.safetensors: expected the architecture of base.*{FIRST}"):
        merge_inpainting(**files)
    assert not list(files["out"].parent.glob("out*"))


def test_a_base_of_eight_bits_is_merged_in_its_own_precision(files: dict[str, Path]):
    eight = {name: value.to(torch.float8_e4m3fn) for name, value in load_file(files["base"]).items()}
    save_file(eight, files["base"])
    merge_inpainting(**files)
    merged, learnt = load_file(files["out"]), 0.5
    assert merged[OTHER].dtype == torch.float8_e4m3fn
    assert torch.equal(merged[OTHER].float(), (eight[OTHER].float() + learnt).to(torch.float8_e4m3fn).float())


def test_a_torch_file_is_merged_only_when_trusted(files: dict[str, Path], tmp_path: Path):
    legacy = tmp_path / "inpainting.ckpt"
    torch.save({"state_dict": load_file(files["inpainting"]), "epoch": 3}, legacy)
    with pytest.raises(IntegrityError, match=r"inpainting\.ckpt: expected safetensors.*--trust"):
        merge_inpainting(files["base"], legacy, files["original"], files["out"])
    merge_inpainting(files["base"], legacy, files["original"], files["out"], trust=True)
    reference = tmp_path / "reference.safetensors"
    merge_inpainting(files["base"], files["inpainting"], files["original"], reference)
    assert files["out"].read_bytes() == reference.read_bytes()


def test_nothing_is_written_over(files: dict[str, Path]):
    files["out"].write_text("mine")
    with pytest.raises(UsageError, match="there already"):
        merge_inpainting(**files)
    with pytest.raises(UsageError, match="there is no folder"):
        merge_inpainting(**files | {"out": files["out"].parent / "nowhere" / "out.safetensors"})
    assert files["out"].read_text() == "mine"


def test_the_command_merges_and_says_how_to_use_the_result(files: dict[str, Path]):
    options = [f"--{name}={files[name]}" for name in ("base", "inpainting", "original", "out")]
    result = CliRunner().invoke(app, ["models", "merge", *options])
    assert result.exit_code == 0, result.output
    parts = yaml.safe_load(result.output.split("sd15.yaml:\n")[1])["parts"]  # the printed entry, as one would paste it
    assert parts["base_inpaint9"]["sha256"] == hashlib.sha256(files["out"].read_bytes()).hexdigest()
    assert parts["base_inpaint9"]["path"] == "out.safetensors"


def test_what_to_do_with_the_result_depends_on_what_it_is(tmp_path: Path):
    save_file(tiny_unet(in_channels=9).state_dict(), tmp_path / "unet.safetensors")
    assert "in the place of its unet/" in how_to_use(tmp_path / "unet.safetensors", "0" * 64)
    wide = {f"{FIRST[:22]}x.attn2.to_k.weight": torch.zeros(1, 2048), FIRST: torch.zeros(1)}
    save_file(wide, tmp_path / "xl.safetensors")
    assert "into sdxl.yaml" in how_to_use(tmp_path / "xl.safetensors", "0" * 64)


@pytest.mark.parametrize("command", ["fetch", "merge"])
def test_help_teaches_by_an_example(command: str):
    result = CliRunner().invoke(app, ["models", command, "--help"])
    assert f"packshot models {command}" in result.output
    assert "PACKSHOT_MODELS_DIR" in result.output
