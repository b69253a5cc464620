"""Every method from a profile of published formats, for SD 1.5 and SDXL, and what is said where a part is missing."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from diffusers import ControlNetModel
from PIL import Image
from safetensors.torch import save_file
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from pipelines.diffusion.brushnet import BrushNetModel
from pipelines.diffusion.inpainting import METHODS, InpaintingPipeline
from pipelines.errors import IntegrityError, UsageError
from pipelines.models import profile as models
from pipelines.models.profile import load_profile
from tests.published import TinyBase, ldm_unet, tiny_base, write_clip, write_folder, write_single_file

NET = "diffusion_pytorch_model.safetensors"


def controlnet(base: TinyBase, scale: float) -> ControlNetModel:
    net = ControlNetModel.from_unet(base.unet, conditioning_embedding_out_channels=(8, 8, 8, 8))
    for conv in (*net.controlnet_down_blocks, net.controlnet_mid_block):
        torch.nn.init.normal_(conv.weight, std=scale)
    return net


def fooocus_files(base: TinyBase, folder: Path) -> None:
    """A head and a patch of some weights, in their published formats."""
    torch.save({"head": torch.randn(16, 5, 3, 3)}, folder / "head.pth")
    names = [name for name in ldm_unet(base.unet) if name.endswith("to_q.weight")]
    weights = ldm_unet(base.unet)
    patch = {
        f"diffusion_model.{name}": (
            torch.randint(0, 256, weights[name].shape, dtype=torch.uint8), torch.tensor(-0.1).half(),
            torch.tensor(0.1).half(),
        )
        for name in names
    }  # fmt: skip
    torch.save(patch, folder / "inpaint.fooocus.patch")


def adapter_files(base: TinyBase, folder: Path) -> None:
    """An IP-Adapter and its image encoder, which lies as deep in its folder as on the hub."""
    config = CLIPVisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, image_size=32, patch_size=8,
        projection_dim=24,
    )  # fmt: skip
    CLIPVisionModelWithProjection(config).save_pretrained(folder / "encoder" / "models" / "image_encoder")
    text = base.unet.config.cross_attention_dim
    tensors = {"image_proj.proj.weight": torch.randn(4 * text, 24), "image_proj.proj.bias": torch.randn(4 * text)}
    tensors |= {"image_proj.norm.weight": torch.ones(text), "image_proj.norm.bias": torch.zeros(text)}
    places = [name for name in base.unet.attn_processors if name.endswith("attn2.processor")]
    for n, name in enumerate(places):
        width = base.unet.get_submodule(name.removesuffix(".processor")).to_q.in_features
        tensors |= {f"ip_adapter.{2 * n + 1}.{key}.weight": torch.randn(width, text) for key in ("to_k_ip", "to_v_ip")}
    save_file(tensors, folder / "ip-adapter.safetensors")


def write_profile(family: str, root: Path) -> Path:
    """A profile `tiny` of the family with whatever a method or an adapter takes; returns its models directory."""
    base, folder = tiny_base(family), root / "models"
    write_single_file(base, folder / "base.safetensors")
    write_folder(tiny_base(family, in_channels=9), folder / "inpaint9")
    BrushNetModel.from_unet(base.unet).save_pretrained(folder / "brushnet")
    controlnet(base, 0.1).save_pretrained(folder / "canny")
    inpaint = controlnet(base, 0.2)
    (inpaint.half() if family == "sdxl" else inpaint).save_pretrained(folder / "inpaint")  # as they are published
    write_clip(folder / "clip")
    adapter_files(base, folder)
    write_folder(base, root / "profiles" / "tiny", weights=False)

    def entry(kind: str, path: str, *weights: str, **more: Any) -> dict[str, Any]:
        files = sorted(folder / path / name for name in weights) if weights else [folder / path]
        digest = hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()
        own = {"kind": kind, "path": path, "revision": "1", "sha256": digest, "source": "a shop", "licence": "CC0"}
        return own | more

    inpaint9 = [f"unet/{NET}", f"vae/{NET}", "text_encoder/model.safetensors"]
    inpaint9 += ["text_encoder_2/model.safetensors"] if family == "sdxl" else []
    encoder = ["models/image_encoder/config.json", "models/image_encoder/model.safetensors"]
    parts = {
        "base": entry("base", "base.safetensors", config="tiny"),
        "base_inpaint9": entry("base", "inpaint9", *inpaint9, config="tiny"),
        "clip": entry("clip", "clip", "model.safetensors"),
        "brushnet": entry("brushnet", "brushnet", NET),
        "controlnet_canny": entry("controlnet", "canny", NET),
        "controlnet_inpaint": entry("controlnet", "inpaint", NET, arguments={"scale": 0.5}),
        "ip_adapter": entry("ip_adapter", "ip-adapter.safetensors"),
        "image_encoder": entry("image_encoder", "encoder", encoder[1], hub="org/adapters", files=encoder),
    }
    if family == "sdxl":
        fooocus_files(base, folder)
        parts["fooocus_head"] = entry("fooocus", "head.pth")
        parts["fooocus_patch"] = entry("fooocus", "inpaint.fooocus.patch")
    document = {
        "bundled": False, "title": "Tiny", "native_size": 64, "caption_confidence": 1, "tag_confidence": {},
        "vocabulary": "none", "parts": parts,
    }  # fmt: skip
    (root / "profiles" / "tiny.yaml").write_text(yaml.safe_dump(document))
    return folder


@pytest.fixture(scope="module")
def roots(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    made = {family: tmp_path_factory.mktemp(family) for family in ("sd15", "sdxl")}
    for family, root in made.items():
        write_profile(family, root)
    return made


@pytest.fixture
def directory(roots: dict[str, Path], monkeypatch: pytest.MonkeyPatch):
    def use(family: str) -> Path:
        monkeypatch.setattr(models, "PROFILES", roots[family] / "profiles")
        load_profile.cache_clear()
        return roots[family] / "models"

    yield use
    load_profile.cache_clear()


def paint(pipeline: InpaintingPipeline, **other: Any) -> bytes:
    mask = Image.new("L", (64, 64))
    mask.paste(255, (16, 16, 48, 48))
    call = {"num_inference_steps": 2, "guidance_scale": 3.0, "generator": torch.Generator().manual_seed(0)}
    [image] = pipeline(Image.new("RGB", (64, 64), "red"), mask, "a cup", **call | other).images
    return image.tobytes()


@pytest.mark.parametrize("family", ["sd15", "sdxl"])
@pytest.mark.parametrize("method", METHODS)
def test_every_method_runs_from_a_profile_of_published_formats(directory, family: str, method: str):
    models_dir = directory(family)
    if (family, method) == ("sd15", "fooocus"):
        sentence = r"method fooocus \(it was made for SDXL\) needs fooocus_head and fooocus_patch, which profile tiny"
        with pytest.raises(UsageError, match=sentence):
            InpaintingPipeline.from_profile("tiny", method, models_dir)
        return
    pipeline = InpaintingPipeline.from_profile("tiny", method, models_dir, controls=("canny",), ip_adapter="ip_adapter")
    control = {"control_images": [Image.linear_gradient("L").resize((64, 64))]}
    look = {"ip_adapter_image": Image.new("RGB", (40, 30), "green")}
    pictures = {
        paint(pipeline),
        paint(pipeline, **control),
        paint(pipeline, **look),
        paint(pipeline, **control, **look),
    }
    assert len(pictures) == 4


def test_the_fooocus_patch_is_in_the_unet_that_the_profile_gives(directory):
    models_dir = directory("sdxl")
    patched = InpaintingPipeline.from_profile("tiny", "fooocus", models_dir).unet.state_dict()
    plain = InpaintingPipeline.from_profile("tiny", "blended", models_dir).unet.state_dict()
    changed = {name for name, value in plain.items() if not torch.equal(value, patched[name])}
    assert changed == {name for name in plain if name.endswith("to_q.weight")}


@pytest.mark.parametrize(
    ("method", "part"),
    [("controlnet_inpaint", "controlnet_inpaint"), ("brushnet", "brushnet"), ("inpaint9", "base_inpaint9")],
)
def test_a_part_that_a_method_needs_and_the_profile_lacks_is_named(directory, tmp_path: Path, method: str, part: str):
    models_dir = directory("sd15")
    document = yaml.safe_load((models.PROFILES / "tiny.yaml").read_text())
    del document["parts"][part]
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(document))
    models.PROFILES = tmp_path  # `directory` puts it back
    with pytest.raises(UsageError, match=rf"method {method} needs {part}.*, which profile tiny does not have"):
        InpaintingPipeline.from_profile("tiny", method, models_dir)


@pytest.mark.parametrize("family", ["sd15", "sdxl"])
def test_the_inpainting_controlnet_has_the_scale_that_the_profile_gives(directory, family: str):
    pipeline = InpaintingPipeline.from_profile("tiny", "controlnet_inpaint", directory(family))
    assert pipeline.inpaint_controlnet.dtype == torch.float32
    assert paint(pipeline) == paint(pipeline, controlnet_inpaint_scale=0.5)
    assert paint(pipeline) != paint(pipeline, controlnet_inpaint_scale=1.0)


def test_files_that_were_exchanged_are_named(directory, roots, tmp_path: Path):
    models_dir = directory("sdxl")
    for name in ("head.pth", "inpaint.fooocus.patch", "ip-adapter.safetensors"):
        whole = (models_dir / name).read_bytes()
        (models_dir / name).write_bytes(whole + b" ")
        try:
            with pytest.raises(IntegrityError, match=f"{name}: expected"):
                InpaintingPipeline.from_profile("tiny", "fooocus", models_dir, ip_adapter="ip_adapter")
        finally:
            (models_dir / name).write_bytes(whole)


@pytest.mark.parametrize("name", ["sd15", "sdxl"])
def test_the_published_profiles_have_the_parts_of_every_method_but_those_never_published(name: str, tmp_path: Path):
    profile = load_profile(name, tmp_path)
    there = {part.name for part in profile.parts}
    assert {"base_inpaint9", "brushnet", "ip_adapter", "image_encoder"} <= there
    assert "controlnet_inpaint" in there
    assert ("fooocus_head" in there) == (name == "sdxl")
    assert profile.part("ip_adapter").ref.sha256
    assert profile.part("image_encoder").optional
