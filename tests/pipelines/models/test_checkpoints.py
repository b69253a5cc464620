"""Tiny checkpoints in the formats of the large ones, through the code that loads the large ones."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from diffusers import AutoencoderKL, ControlNetModel, UNet2DConditionModel
from PIL import Image
from safetensors.torch import load_file, save_file

from pipelines.contracts import ModelRef
from pipelines.diffusion.brushnet import BrushNetModel
from pipelines.diffusion.inpainting import InpaintingPipeline
from pipelines.errors import IntegrityError, UsageError
from pipelines.models import profile as models
from pipelines.models.checkpoints import check_fits, check_lora, load_base, load_net
from pipelines.models.profile import PROFILES, ModelPart, load_profile
from pipelines.settings import get_settings
from pipelines.vision.captioner import Captioner
from pipelines.vision.segmenters import Encoding, HQSamSegmenter, Prompt, SalientSegmenter, build_sam
from pipelines.vision.upscalers import RRDBNet, Upscaler
from pipelines.vision.vocabulary import load_vocabulary
from tests.published import (
    TinyBase,
    ldm_controlnet,
    ldm_vae,
    single_file,
    tiny_base,
    tiny_unet,
    write_clip,
    write_folder,
    write_single_file,
)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module", params=["sd15", "sdxl"])
def base(request: pytest.FixtureRequest) -> TinyBase:
    return tiny_base(request.param)


@pytest.fixture
def trust(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    def trust(what: str) -> None:
        monkeypatch.setenv(f"PACKSHOT_TRUST_{what}", "1")
        get_settings.cache_clear()

    yield trust
    get_settings.cache_clear()


def part(path: Path, config: Path | None = None, kind: str = "base") -> ModelPart:
    return ModelPart("base", kind, path, "a shop", "CC0", ModelRef("base", "1", ""), config=config)


def configs(base: TinyBase, folder: Path) -> Path:
    """The configurations alone, as a profile has them."""
    return write_folder(base, folder / "configs" / base.family, weights=False)


def assert_same(base: TinyBase, loaded) -> None:
    for name in ("unet", "vae", "text_encoder", "text_encoder_2"):
        ours, theirs = getattr(base, name), getattr(loaded, name)
        assert (ours is None) == (theirs is None), name
        for key, value in ours.state_dict().items() if ours is not None else ():
            torch.testing.assert_close(theirs.state_dict()[key], value, rtol=0, atol=0, msg=f"{name} {key}")
    assert loaded.unet.dtype == torch.float32
    assert not loaded.unet.training


# -------------------------------------------------------------------------------------------------------------- bases


def test_a_community_single_file_is_read_with_the_profiles_configurations(base: TinyBase, clip: Path, tmp_path: Path):
    file = write_single_file(base, tmp_path / "dreams.safetensors")
    loaded = load_base(part(file, configs(base, tmp_path)), clip)
    assert_same(base, loaded)
    assert loaded.tokenizer("a cup").input_ids
    if base.family == "sdxl":
        assert loaded.tokenizer_2.pad_token == "!"


def test_a_legacy_checkpoint_is_read_as_tensors_only(clip: Path, tmp_path: Path):
    base = tiny_base()
    torch.save({"state_dict": single_file(base), "global_step": 7}, tmp_path / "dreams.ckpt")
    assert_same(base, load_base(part(tmp_path / "dreams.ckpt", configs(base, tmp_path)), clip))


def test_a_diffusers_folder_is_read_whole(base: TinyBase, clip: Path, tmp_path: Path):
    folder = write_folder(base, tmp_path / "folder")
    assert_same(base, load_base(part(folder, configs(base, tmp_path)), clip))


def test_a_folder_of_half_precision_variants_is_widened(clip: Path, tmp_path: Path):
    folder = write_folder(tiny_base(), tmp_path / "folder")
    tiny_base().unet.half().save_pretrained(folder / "unet", variant="fp16")
    (folder / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    assert load_base(part(folder), clip).unet.dtype == torch.float32


@pytest.mark.parametrize("swapped", ["text_encoder", "unet", "vae"])
def test_a_folders_digest_is_over_every_file_that_is_loaded(swapped: str, tmp_path: Path):
    folder = write_folder(tiny_base(), tmp_path / "folder")
    files = sorted(str(file.relative_to(folder)) for file in folder.rglob("*.safetensors"))
    found, listed = part(folder), replace(part(folder), files=("model_index.json", *files))
    assert found.digest() == listed.digest()
    assert [file.parent.name for file in found.weights] == ["text_encoder", "unet", "vae"]
    before = found.digest()
    file = next((folder / swapped).glob("*.safetensors"))
    save_file({name: value + 1 for name, value in load_file(file).items()}, file, {"format": "pt"})
    assert found.digest() == listed.digest() != before
    file.unlink()
    with pytest.raises(UsageError, match=f"{swapped}.*safetensors"):
        listed.digest()


def test_a_torch_file_in_one_folder_of_a_base_needs_trust_as_any_other(
    clip: Path, tmp_path: Path, trust: Callable[[str], None]
):
    base = tiny_base()
    folder = write_folder(base, tmp_path / "folder")
    for name, net in (("unet", base.unet), ("text_encoder", base.text_encoder)):
        next((folder / name).glob("*.safetensors")).unlink()
        net.save_pretrained(folder / name, safe_serialization=False)
    mixed = part(folder)
    trust("UNPINNED")
    with pytest.raises(IntegrityError, match=r"unet.*which is a pickle"):
        mixed.check()
    trust("PICKLE")
    assert_same(base, load_base(mixed.check(), clip))


def test_a_folder_of_which_no_file_is_listed_is_refused(clip: Path, tmp_path: Path):
    folder = write_folder(tiny_base(), tmp_path / "folder")
    some = ("unet/diffusion_pytorch_model.safetensors", "vae/diffusion_pytorch_model.safetensors")
    with pytest.raises(IntegrityError, match=r"text_encoder: expected its weights among the files"):
        load_base(replace(part(folder), files=some), clip)
    with pytest.raises(UsageError, match="lists no weight file"):
        replace(part(folder), files=("model_index.json",)).digest()


def test_what_a_profile_does_not_list_is_not_read(clip: Path, tmp_path: Path):
    listed = tiny_base()
    folder = write_folder(tiny_base(), tmp_path / "folder")
    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    save_file({name: value + 1 for name, value in load_file(file).items()}, file, {"format": "pt"})
    listed.unet.half().save_pretrained(folder / "unet", variant="fp16")
    files = ("text_encoder/model.safetensors", "unet/diffusion_pytorch_model.fp16.safetensors",
             "vae/diffusion_pytorch_model.safetensors")  # fmt: skip
    loaded = load_base(replace(part(folder), files=files), clip).unet.state_dict()
    for name, value in listed.unet.state_dict().items():
        torch.testing.assert_close(loaded[name], value.float(), rtol=0, atol=0)


def pinned(folder: Path, files: tuple[str, ...]) -> ModelPart:
    made = replace(part(folder), files=files)
    return replace(made, ref=replace(made.ref, sha256=made.digest()))


def shard(folder: Path, tensors: dict, index: str = "diffusion_pytorch_model.safetensors.index.json") -> str:
    """Write other weights and an index that names them, which diffusers prefers to the usual name."""
    save_file(tensors, folder / "other.safetensors", {"format": "pt"})
    weights = dict.fromkeys(tensors, "other.safetensors")
    (folder / index).write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": weights}))
    return index


NETS = (
    "text_encoder/model.safetensors", "unet/diffusion_pytorch_model.safetensors",
    "vae/diffusion_pytorch_model.safetensors",
)  # fmt: skip


def test_an_index_that_makes_other_weights_load_is_refused(clip: Path, tmp_path: Path):
    base = tiny_base()
    made = pinned(write_folder(base, tmp_path / "folder"), NETS)
    assert_same(base, load_base(made.check(), clip))
    index = shard(made.path / "unet", {name: value + 1 for name, value in base.unet.state_dict().items()})
    with pytest.raises(IntegrityError, match=rf"unet/{index}: expected only files that the profile lists"):
        made.check()
    listed = replace(made, files=(*NETS, f"unet/{index}"))
    with pytest.raises(IntegrityError, match=rf"{index}: expected only weight files .*, found 'other.safetensors'"):
        listed.check()


def test_listed_shards_load_and_their_index_may_name_no_others(clip: Path, tmp_path: Path):
    base = tiny_base()
    folder = write_folder(base, tmp_path / "folder")
    (folder / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    base.unet.save_pretrained(folder / "unet", max_shard_size="300KB")
    index = "unet/diffusion_pytorch_model.safetensors.index.json"
    shards = [f"unet/{file.name}" for file in sorted((folder / "unet").glob("*.safetensors"))]
    assert len(shards) > 1
    made = pinned(folder, (*shards, index, NETS[0], NETS[2]))
    assert_same(base, load_base(made.check(), clip))
    weights = json.loads((folder / index).read_text())
    weights["weight_map"]["conv_in.weight"] = "../../elsewhere.safetensors"
    (folder / index).write_text(json.dumps(weights))
    with pytest.raises(IntegrityError, match=r"index\.json: expected only weight files .*'\.\./\.\./elsewhere"):
        made.check()
    (folder / index).write_text("[]")
    with pytest.raises(IntegrityError, match=r"index\.json: expected an index of weight files"):
        made.check()


def test_an_adapter_beside_a_text_encoder_is_refused(tmp_path: Path):
    made = pinned(write_folder(tiny_base(), tmp_path / "folder"), NETS)
    (made.path / "text_encoder" / "adapter_config.json").write_text('{"base_model_name_or_path": "elsewhere"}')
    with pytest.raises(IntegrityError, match=r"adapter_config\.json: expected only files that the profile lists"):
        made.check()


def test_weights_of_the_usual_name_that_are_not_listed_are_not_read_in_place_of_the_listed(clip: Path, tmp_path: Path):
    base = tiny_base()
    folder = write_folder(base, tmp_path / "folder")
    usual = folder / "unet" / "diffusion_pytorch_model.safetensors"
    usual.with_name("reviewed.safetensors").write_bytes(usual.read_bytes())
    save_file({name: value + 1 for name, value in load_file(usual).items()}, usual, {"format": "pt"})
    made = pinned(folder, (NETS[0], "unet/reviewed.safetensors", NETS[2]))
    with pytest.raises(IntegrityError, match=r"unet/diffusion_pytorch_model\.safetensors: expected only weights that"):
        load_base(made.check(), clip)


@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt"])  # the released inpainting model is a .ckpt
def test_a_single_file_for_inpainting_has_nine_channels(suffix: str, clip: Path, tmp_path: Path):
    base, file = tiny_base(in_channels=9), tmp_path / f"inpaint{suffix}"
    if suffix == ".ckpt":
        torch.save({"state_dict": single_file(base)}, file)
    else:
        write_single_file(base, file)
    loaded = load_base(part(file, configs(tiny_base(), tmp_path)), clip)
    assert loaded.unet.config.in_channels == 9
    assert_same(base, loaded)


def test_a_single_file_of_another_architecture_is_named(clip: Path, tmp_path: Path):
    config = configs(tiny_base(), tmp_path)
    write_single_file(tiny_base("sdxl"), tmp_path / "xl.safetensors")
    torch.save({"state_dict": single_file(tiny_base("sdxl"))}, tmp_path / "xl.ckpt")
    for name in ("xl.safetensors", "xl.ckpt"):
        with pytest.raises(IntegrityError, match=rf"{name}: expected a single-file checkpoint of sd15, .* 96$"):
            load_base(part(tmp_path / name, config), clip)


def test_a_folder_of_another_architecture_is_named(clip: Path, tmp_path: Path):
    folder = write_folder(tiny_base("sdxl"), tmp_path / "xl")
    with pytest.raises(IntegrityError, match=r"xl: expected a diffusers folder of sd15, found a StableDiffusionXL"):
        load_base(part(folder, configs(tiny_base(), tmp_path)), clip)
    with pytest.raises(IntegrityError, match=r"sd: expected a diffusers folder of sdxl, found a StableDiffusionPipe"):
        load_base(part(write_folder(tiny_base(), tmp_path / "sd"), configs(tiny_base("sdxl"), tmp_path)), clip)


def test_a_file_that_is_no_base_or_lacks_a_piece_is_named(clip: Path, tmp_path: Path):
    config = configs(tiny_base(), tmp_path)
    save_file({"weight": torch.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(IntegrityError, match=r"other\.safetensors: expected a single-file .* of sd15, found no"):
        load_base(part(tmp_path / "other.safetensors", config), clip)
    textless = {name: value for name, value in single_file(tiny_base()).items() if "cond_stage" not in name}
    save_file(textless, tmp_path / "textless.safetensors")
    with pytest.raises(
        IntegrityError, match=r"textless\.safetensors: expected a single-file checkpoint of sd15"
    ) as one:
        load_base(part(tmp_path / "textless.safetensors", config), clip)
    assert "\n" not in str(one.value)


def test_a_folder_with_weights_missing_is_named_and_not_filled_with_noise(clip: Path, tmp_path: Path):
    folder = write_folder(tiny_base(), tmp_path / "folder")
    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    save_file(dict(list(load_file(file).items())[5:]), file)
    with pytest.raises(IntegrityError, match=r"unet: expected a UNet \(.*missing tensors"):
        load_base(part(folder), clip)


# ----------------------------------------------------------------------------------------------------------- branches


def test_a_brushnet_is_read_from_the_released_folder_and_from_one_half_precision_file(tmp_path: Path):
    brushnet = BrushNetModel.from_unet(tiny_unet())
    brushnet.save_pretrained(tmp_path / "folder")
    assert {file.name for file in (tmp_path / "folder").iterdir()} == {
        "config.json",
        "diffusion_pytorch_model.safetensors",
    }
    single = tmp_path / "brushnet_fp16.safetensors"
    save_file({name: value.half() for name, value in brushnet.state_dict().items()}, single)
    from_folder = load_net(BrushNetModel, part(tmp_path / "folder"), "a BrushNet")
    from_file = load_net(BrushNetModel, part(single, tmp_path / "folder"), "a BrushNet")
    for name, value in brushnet.state_dict().items():
        torch.testing.assert_close(from_folder.state_dict()[name], value, rtol=0, atol=0)
        torch.testing.assert_close(from_file.state_dict()[name], value, rtol=1e-3, atol=1e-3)
    assert from_file.dtype == torch.float32


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_an_autoencoder_and_a_controlnet_are_read_from_one_file_under_their_publishers_names(
    tmp_path: Path, suffix: str
):
    nets = {
        "vae": (tiny_base().vae, ldm_vae),
        "canny": (ControlNetModel.from_unet(tiny_unet(), conditioning_embedding_out_channels=(8,) * 4), ldm_controlnet),
    }
    for name, (net, published) in nets.items():
        net.save_pretrained(tmp_path / name)
        for tensors in (published(net), net.state_dict()):
            file = tmp_path / f"{name}{suffix}"
            tensors = {key: value.contiguous() for key, value in tensors.items()}
            torch.save(tensors, file) if suffix == ".pth" else save_file(tensors, file)
            loaded = load_net(type(net), part(file, tmp_path / name), "a net")
            for key, value in net.state_dict().items():
                torch.testing.assert_close(loaded.state_dict()[key], value, rtol=0, atol=0, msg=f"{name} {key}")
            assert not loaded.training


@pytest.mark.parametrize("family", ["sd15", "sdxl"])
def test_the_configurations_that_single_files_are_read_with_fit_the_familys_unet(family: str):
    unet, net = (json.loads((PROFILES / family / part / "config.json").read_text()) for part in ("unet", "controlnet"))
    with torch.device("meta"):
        wanted = ControlNetModel.from_unet(UNet2DConditionModel.from_config(unet)).state_dict()
        found = ControlNetModel.from_config(net).state_dict()
    assert {name: value.shape for name, value in found.items()} == {n: v.shape for n, v in wanted.items()}


def test_one_file_that_lacks_a_tensor_is_named_and_not_filled_with_noise(tmp_path: Path):
    vae = tiny_base().vae
    vae.save_pretrained(tmp_path / "vae")
    for tensors in (ldm_vae(vae), vae.state_dict()):
        tensors = {key: value.contiguous() for key, value in tensors.items() if key != "post_quant_conv.bias"}
        save_file(tensors, tmp_path / "vae.safetensors")
        with pytest.raises(IntegrityError, match=r"vae\.safetensors: expected an autoencoder"):
            load_net(AutoencoderKL, part(tmp_path / "vae.safetensors", tmp_path / "vae"), "an autoencoder")
    with pytest.raises(IntegrityError, match="expected its configuration beside its path in the profile"):
        load_net(AutoencoderKL, part(tmp_path / "vae.safetensors"), "an autoencoder")


def test_a_net_of_another_kind_is_named(tmp_path: Path):
    tiny_unet().save_pretrained(tmp_path / "unet")
    with pytest.raises(IntegrityError, match=r"unet: expected a ControlNet \(.*UNet2DConditionModel"):
        load_net(ControlNetModel, part(tmp_path / "unet"), "a ControlNet")
    save_file({"weight": torch.zeros(2)}, tmp_path / "x.safetensors")
    with pytest.raises(IntegrityError, match=r"x\.safetensors: expected a UNet"):
        load_net(type(tiny_unet()), part(tmp_path / "x.safetensors", tmp_path / "unet"), "a UNet")


def test_a_branch_for_another_base_is_named():
    wide = ControlNetModel.from_unet(tiny_unet(width=64), conditioning_embedding_out_channels=(8, 8, 8, 8))
    with pytest.raises(IntegrityError, match=r"net: expected a ControlNet .* of cross_attention_dim 32, found 64"):
        check_fits(Path("net"), wide, tiny_unet(), "a ControlNet")
    xl = BrushNetModel.from_unet(tiny_base("sdxl").unet)
    with pytest.raises(IntegrityError, match="expected a BrushNet for this base, of block_out_channels"):
        check_fits(Path("net"), xl, tiny_unet(), "a BrushNet")
    check_fits(Path("net"), BrushNetModel.from_unet(tiny_unet(width=64)), tiny_unet(), "a BrushNet")


# --------------------------------------------------------------------------------------------------------------- LoRA

TARGET = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k"


def lora(format: str, width: int = 32) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    down, up = torch.randn(4, width, generator=generator), torch.randn(16, 4, generator=generator)
    if format == "kohya":
        name = f"lora_unet_{TARGET.replace('.', '_')}"
        return {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up, f"{name}.alpha": torch.tensor(4.0)}
    return {f"unet.{TARGET}.lora_A.weight": down, f"unet.{TARGET}.lora_B.weight": up}


@pytest.fixture
def profile(tmp_path: Path, clip: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A profile `tiny` of a single-file base, a released BrushNet and a ControlNet; returns its models directory."""
    base, folder = tiny_base(), tmp_path / "models"
    write_single_file(base, folder / "base.safetensors")
    BrushNetModel.from_unet(base.unet).save_pretrained(folder / "brushnet")
    ControlNetModel.from_unet(base.unet, conditioning_embedding_out_channels=(8, 8, 8, 8)).save_pretrained(
        folder / "canny"
    )
    (folder / "clip").symlink_to(clip)
    write_folder(base, tmp_path / "profiles" / "tiny", weights=False)

    def entry(kind: str, path: str, weights: str = "", **more: str) -> dict[str, str]:
        digest = hashlib.sha256((folder / path / weights).read_bytes()).hexdigest()
        return {
            "kind": kind,
            "path": path,
            "revision": "1",
            "sha256": digest,
            "source": "a shop",
            "licence": "CC0",
            **more,
        }

    net = "diffusion_pytorch_model.safetensors"
    parts = {
        "base": entry("base", "base.safetensors", config="tiny"),
        "clip": entry("clip", "clip", "model.safetensors"),
        "brushnet": entry("brushnet", "brushnet", net),
        "controlnet_canny": entry("controlnet", "canny", net),
    }
    document = {
        "bundled": False, "title": "Tiny", "native_size": 64, "caption_confidence": 1, "tag_confidence": {},
        "vocabulary": "none", "parts": parts,
    }  # fmt: skip
    (tmp_path / "profiles" / "tiny.yaml").write_text(yaml.safe_dump(document))
    monkeypatch.setattr(models, "PROFILES", tmp_path / "profiles")
    load_profile.cache_clear()
    yield folder
    load_profile.cache_clear()


def paint(pipeline: InpaintingPipeline) -> list[int]:
    [image] = pipeline(
        image=Image.new("RGB", (64, 64), "red"),
        product_mask=Image.new("L", (64, 64), 255),
        prompt="a cup",
        num_inference_steps=2,
        control_images=[Image.new("RGB", (64, 64))] if pipeline.controlnets else (),
        generator=torch.Generator().manual_seed(0),
    ).images
    return list(image.tobytes())


def test_the_sampler_runs_from_a_profile_of_published_formats(profile: Path):
    pipeline = InpaintingPipeline.from_profile("tiny", models_dir=profile, controls=("canny",))
    assert len(paint(pipeline)) == 64 * 64 * 3


def test_the_models_directory_is_the_settings_where_none_is_named(profile: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PACKSHOT_MODELS_DIR", str(profile))
    get_settings.cache_clear()
    try:
        pipeline = InpaintingPipeline.from_profile("tiny")
    finally:
        get_settings.cache_clear()
    assert paint(pipeline) == paint(InpaintingPipeline.from_profile("tiny", models_dir=profile))


def test_kohyas_and_pefts_formats_of_one_lora_give_one_picture(profile: Path, tmp_path: Path):
    pipeline = InpaintingPipeline.from_profile("tiny", models_dir=profile)
    plain, pictures = paint(pipeline), []
    for format in ("kohya", "peft"):
        save_file(lora(format), tmp_path / f"{format}.safetensors")
        pipeline.load_lora(tmp_path / f"{format}.safetensors")
        pictures.append(paint(pipeline))
        pipeline.unload_lora()
    assert pictures[0] == pictures[1] != plain
    assert paint(pipeline) == plain


@pytest.mark.parametrize("format", ["kohya", "peft"])
def test_a_lora_for_another_base_is_named(tmp_path: Path, format: str):
    save_file(lora(format, width=96), tmp_path / "xl.safetensors")
    with pytest.raises(IntegrityError, match=r"xl\.safetensors: expected a LoRA for this base, of text width 32.* 96$"):
        check_lora(tmp_path / "xl.safetensors", tiny_unet())


def test_a_file_that_is_no_lora_is_named(tmp_path: Path):
    save_file({"weight": torch.zeros(2)}, tmp_path / "vae.safetensors")
    with pytest.raises(IntegrityError, match=r"vae\.safetensors: expected a LoRA in kohya's or PEFT's format"):
        check_lora(tmp_path / "vae.safetensors", tiny_unet())
    torch.save(lora("kohya"), tmp_path / "lora.safetensors")
    with pytest.raises(IntegrityError, match=r"lora\.safetensors: expected safetensors"):
        check_lora(tmp_path / "lora.safetensors", tiny_unet())


def test_a_branch_for_another_base_stops_the_profile(profile: Path):
    wide = ControlNetModel.from_unet(tiny_unet(width=64), conditioning_embedding_out_channels=(8, 8, 8, 8))
    wide.save_pretrained(profile / "canny")
    file = profile / "canny" / "diffusion_pytorch_model.safetensors"
    yaml_file = models.PROFILES / "tiny.yaml"
    document = yaml.safe_load(yaml_file.read_text())
    document["parts"]["controlnet_canny"]["sha256"] = hashlib.sha256(file.read_bytes()).hexdigest()
    yaml_file.write_text(yaml.safe_dump(document))
    with pytest.raises(IntegrityError, match="canny: expected a ControlNet for this base"):
        InpaintingPipeline.from_profile("tiny", models_dir=profile, controls=("canny",))


# ------------------------------------------------------------------------------------------------------------- vision


def shallow_sam(width: int = 768, heads: int = 12):
    """HQ-SAM's ViT with two blocks of the published width: one attends in windows, one everywhere."""
    from segment_anything_hq.build_sam import _build_sam

    torch.manual_seed(0)
    return _build_sam(width, 2, heads, [1])


@pytest.mark.parametrize(
    ("encoder", "width", "heads", "suffix"),
    [
        ("vit_b", 768, 12, ".pth"),
        ("vit_b", 768, 12, ".safetensors"),
        ("vit_l", 1024, 16, ".pth"),
        ("vit_h", 1280, 16, ".pth"),
    ],
)
def test_hq_sam_of_a_published_width_is_read(tmp_path: Path, encoder: str, width: int, heads: int, suffix: str):
    sam, file = shallow_sam(width, heads), tmp_path / f"sam_hq_{encoder}{suffix}"
    torch.save(sam.state_dict(), file) if suffix == ".pth" else save_file(sam.state_dict(), file)
    loaded = build_sam(file, encoder)
    for name, value in sam.state_dict().items():
        torch.testing.assert_close(loaded.state_dict()[name], value, rtol=0, atol=0)
    blocks = loaded.image_encoder.blocks
    assert [block.window_size for block in blocks] == [14, 0]
    assert blocks[0].attn.num_heads == heads


def test_hq_sams_tiny_encoder_is_read_from_a_torch_file(tmp_path: Path):
    bundled = load_profile("mini").part("hqsam").check().weights[0]
    torch.save(load_file(bundled), tmp_path / "sam_hq_vit_tiny.pth")
    loaded, reference = build_sam(tmp_path / "sam_hq_vit_tiny.pth", "vit_tiny"), build_sam(bundled)
    for name, value in reference.state_dict().items():
        torch.testing.assert_close(loaded.state_dict()[name], value)


def test_a_profile_names_a_larger_hq_sam_and_its_encoding_is_kept(tmp_path: Path):
    torch.save(shallow_sam().state_dict(), tmp_path / "sam_hq_vit_b.pth")
    part = {"kind": "sam_hq_vit_b", "path": "sam_hq_vit_b.pth", "revision": "1", "source": "here", "licence": "CC0"}
    part["sha256"] = hashlib.sha256((tmp_path / "sam_hq_vit_b.pth").read_bytes()).hexdigest()
    (tmp_path / "sd15.yaml").write_text(yaml.safe_dump({"parts": {"hqsam": part}}))
    profile = load_profile("sd15", tmp_path)
    hqsam = HQSamSegmenter.from_profile(profile, SalientSegmenter.from_profile(profile))
    image = np.random.default_rng(0).integers(0, 255, (48, 64, 3)).astype(np.uint8)
    prompt = Prompt(np.array([10, 10, 40, 30], np.float32), np.array([[20, 20]], np.float32), np.array([1]))
    first, kept = hqsam.segment_prompted(image, prompt), hqsam.encode(image).to_bytes()
    assert first.shape == (48, 64)
    again = image.copy()
    hqsam.restore(again, Encoding.from_bytes(kept))
    assert np.abs(hqsam.segment_prompted(again, prompt) - first).max() < 0.05


def test_hq_sam_of_another_size_is_named(tmp_path: Path):
    file = tmp_path / "sam.pth"
    torch.save(shallow_sam().state_dict(), file)
    with pytest.raises(IntegrityError, match=r"sam\.pth: expected HQ-SAM vit_h .*768 wide, not 1280"):
        build_sam(file, "vit_h")
    with pytest.raises(IntegrityError, match=r"sam\.pth: expected HQ-SAM vit_tiny .*image_encoder"):
        build_sam(file, "vit_tiny")
    with pytest.raises(ValueError, match="no HQ-SAM 'vit_g'"):
        build_sam(file, "vit_g")


def test_blip_is_read_from_the_torch_file_of_its_publishers(tmp_path: Path):
    mini = load_profile("mini")
    bundled, vocabulary = mini.part("blip").check().path, load_vocabulary(mini.vocabulary)
    for file in bundled.glob("*.json"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    torch.save(load_file(bundled / "model.safetensors"), tmp_path / "pytorch_model.bin")
    photo = torch.full((64, 64, 3), 128, dtype=torch.uint8).numpy()
    legacy = Captioner(tmp_path, vocabulary, weights=[tmp_path / "pytorch_model.bin"]).caption([photo])
    assert legacy == Captioner(bundled, vocabulary).caption([photo])


def test_clip_in_blips_place_is_named(clip: Path):
    vocabulary = load_vocabulary(load_profile("mini").vocabulary)
    with pytest.raises(IntegrityError, match=r"expected BLIP for captions \(.*'clip'"):
        Captioner(clip, vocabulary)


@pytest.mark.parametrize("scale", [4, 2])
def test_real_esrgans_large_net_is_read_from_its_torch_file(tmp_path: Path, scale: int):
    torch.manual_seed(0)
    net = RRDBNet(features=8, blocks=2, growth=4, scale=scale)
    torch.save({"params_ema": net.state_dict()}, tmp_path / "RealESRGAN.pth")
    loaded = RRDBNet.from_file(tmp_path / "RealESRGAN.pth").eval()
    x = torch.rand(1, 3, 13, 10)
    with torch.inference_mode():
        torch.testing.assert_close(loaded(x), net(x))
        assert loaded(x).shape == (1, 3, 13 * scale, 10 * scale)


def test_the_large_net_leaves_no_seam_where_tiles_meet(tmp_path: Path):
    torch.manual_seed(0)
    net = RRDBNet(features=8, blocks=2, growth=4, scale=2)
    image = torch.randint(0, 255, (90, 70, 3), dtype=torch.uint8).numpy()
    whole, tiled = Upscaler(net, tile=192).upscale(image), Upscaler(net, tile=40).upscale(image)
    assert abs(whole.astype(int) - tiled.astype(int)).max() <= 1


def test_an_upscaler_of_another_kind_is_named(tmp_path: Path):
    torch.save({"params_ema": {"body.0.weight": torch.zeros(2, 2)}}, tmp_path / "net.pth")
    with pytest.raises(IntegrityError, match=r"net\.pth: expected RRDBNet weights"):
        RRDBNet.from_file(tmp_path / "net.pth")


def test_the_published_configurations_build_what_they_say():
    with torch.device("meta"):
        for family, unet_size, vae_size in (("sd15", 859_520_964, 83_653_863), ("sdxl", 2_567_463_684, 83_653_863)):
            folder = PROFILES / family
            unet = type(tiny_unet()).from_config(type(tiny_unet()).load_config(folder / "unet"))
            vae = AutoencoderKL.from_config(AutoencoderKL.load_config(folder / "vae"))
            brushnet = BrushNetModel.from_config(BrushNetModel.load_config(folder / "brushnet"))
            assert sum(value.numel() for value in unet.parameters()) == unet_size
            assert sum(value.numel() for value in vae.parameters()) == vae_size
            check_fits(folder, brushnet, unet, "a BrushNet")
