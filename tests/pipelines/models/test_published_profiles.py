"""The profiles of published checkpoints: what they name, where files are looked for, and what is refused."""

from __future__ import annotations

import hashlib
import pickle
import re
from pathlib import Path

import huggingface_hub.constants
import pytest
import torch
import yaml
from safetensors.torch import save_file

from pipelines.errors import IntegrityError, UsageError
from pipelines.models.profile import PROFILES, load_profile, lock, verify
from pipelines.settings import get_settings


@pytest.fixture(autouse=True)
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """No network, an empty cache of the hub, and nothing trusted; profiles are read anew."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    load_profile.cache_clear()
    get_settings.cache_clear()
    yield
    load_profile.cache_clear()
    get_settings.cache_clear()


@pytest.fixture
def trust(monkeypatch: pytest.MonkeyPatch):
    def trust(*names: str) -> None:
        for name in names:
            monkeypatch.setenv(f"PACKSHOT_TRUST_{name.upper()}", "1")
        get_settings.cache_clear()

    return trust


def put(folder: Path, *, profile: str = "sd15", **parts: dict) -> None:
    """Write a models directory's own `<profile>.yaml`."""
    folder.mkdir(exist_ok=True)
    (folder / f"{profile}.yaml").write_text(yaml.safe_dump({"parts": parts}))


def own(path: str, sha256: str = "unpinned", kind: str = "controlnet") -> dict[str, str]:
    return {"kind": kind, "path": path, "revision": "1", "sha256": sha256, "source": "a shop", "licence": "CC0"}


@pytest.mark.parametrize("name", ["sd15", "sdxl"])
def test_every_part_names_source_revision_licence_and_a_digest_or_that_none_is_published(name: str, tmp_path: Path):
    profile = load_profile(name, tmp_path)
    assert {part.name for part in profile.parts} >= {
        "base", "autoencoder", "clip", "brushnet", "controlnet_canny", "hqsam", "salient", "blip", "upscaler",
    }  # fmt: skip
    for part in profile.parts:
        assert part.source, part.name
        assert part.licence, part.name
        assert part.ref.revision, part.name
        assert re.fullmatch(r"[0-9a-f]{64}|", part.ref.sha256), part.name
        assert part.config is None or (part.config / "config.json").exists() or (part.config / "unet").exists()


@pytest.mark.parametrize("name", ["sd15", "sdxl"])
def test_a_stronger_net_finds_products_and_the_check_of_overcompletion_keeps_the_bundled_one(name: str, tmp_path: Path):
    profile = load_profile(name, tmp_path)
    foreground = profile.part("foreground")
    assert (foreground.kind, foreground.licence, foreground.pinned) == ("birefnet", "MIT", True)
    assert not foreground.optional
    assert profile.part("salient").ref == load_profile("mini").ref("salient")
    assert not load_profile("mini").has("foreground")


@pytest.mark.parametrize("name", ["foreground_lite", "foreground_isnet", "foreground_u2net"])
def test_another_published_net_takes_the_place_of_the_stronger_one(name: str, tmp_path: Path):
    put(tmp_path, foreground={"like": f"sd15/{name}"}, profile="sdxl")
    part, named = load_profile("sdxl", tmp_path).part("foreground"), load_profile("sd15", tmp_path).part(name)
    assert (part.name, part.kind, part.ref.sha256) == ("foreground", named.kind, named.ref.sha256)


@pytest.mark.parametrize(
    ("parts", "why"),
    [
        ({"salient": {"like": "foreground_isnet"}}, "salient: its kind must be salient, not 'isnet', .* foreground"),
        ({"foreground": {"like": "hqsam"}}, "foreground: its kind must be one of salient, .*, not 'sam_hq_vit_h'"),
    ],
)
def test_a_net_that_cannot_take_a_place_is_refused(parts: dict, why: str, tmp_path: Path):
    put(tmp_path, **parts)
    with pytest.raises(UsageError, match=rf"sd15\.yaml: .*{why}"):
        load_profile("sd15", tmp_path)


@pytest.mark.parametrize("name", ["hqsam", "hqsam_vit_l", "hqsam_vit_b", "hqsam_vit_tiny"])
def test_every_published_hq_sam_has_a_digest(name: str, tmp_path: Path):
    part = load_profile("sd15", tmp_path).part(name)
    assert part.pinned
    assert part.path.stem == part.kind


def test_the_profiles_of_published_checkpoints_need_no_file_to_be_read(tmp_path: Path):
    assert load_profile("sd15", tmp_path / "nowhere").native_size == 512
    assert load_profile("sdxl", tmp_path / "nowhere").native_size == 1024


def test_a_part_may_be_another_profiles(tmp_path: Path):
    profile = load_profile("sdxl", tmp_path)
    assert profile.part("salient").ref == load_profile("mini").ref("salient")
    profile.part("salient").check()
    assert profile.part("clip").path == load_profile("sd15", tmp_path).part("clip").path


def test_a_missing_file_is_named_with_the_command_that_fetches_it(tmp_path: Path):
    profile = load_profile("sd15", tmp_path)
    with pytest.raises(UsageError) as hub:
        profile.part("base").check()
    assert str(hub.value).startswith(str(tmp_path / "v1-5-pruned-emaonly.safetensors"))
    assert str(hub.value).endswith("packshot models fetch sd15 base")
    with pytest.raises(UsageError, match=r"RealESRGAN_x4plus\.pth: not there; .* models fetch sd15 upscaler$"):
        profile.part("upscaler").check()
    assert "\n" not in str(hub.value)


def test_the_models_directory_is_asked_first_and_the_hub_second(tmp_path: Path):
    cached = tmp_path / "hub/models--org--net/snapshots" / ("a" * 40) / "model.safetensors"
    cached.parent.mkdir(parents=True)
    save_file({"weight": torch.zeros(2)}, cached)
    digest = hashlib.sha256(cached.read_bytes()).hexdigest()
    entry = own("net/model.safetensors", digest) | {"hub": "org/net", "revision": "a" * 40}
    models = tmp_path / "models"
    put(models, net=entry | {"files": ["model.safetensors"]})
    part = load_profile("sd15", models).part("net")
    assert part.check().path == cached
    (models / "net").mkdir()
    save_file({"weight": torch.zeros(2)}, models / "net/model.safetensors")
    assert part.check().path == models / "net/model.safetensors"


def test_the_models_directory_replaces_and_adds_parts(tmp_path: Path):
    put(tmp_path, base=own("dreams.safetensors", kind="base") | {"config": "sd15"}, hqsam={"like": "hqsam_vit_tiny"})
    profile = load_profile("sd15", tmp_path)
    assert profile.part("base").path == tmp_path / "dreams.safetensors"
    assert profile.part("hqsam").kind == "sam_hq_vit_tiny"
    assert profile.part("hqsam").name == "hqsam"
    assert profile.has("clip")


def test_a_part_may_be_like_one_of_a_profile_that_borrows_from_this_one(tmp_path: Path):
    put(tmp_path, upscaler={"like": "sdxl/painter_klein"}, clip={"like": "sdxl/clip"})
    with pytest.raises(UsageError, match=r"sd15\.yaml: .*clip: like 'sd15/clip' leads back to itself"):
        load_profile("sd15", tmp_path)
    put(tmp_path, upscaler={"like": "sdxl/painter_klein"})
    assert load_profile("sd15", tmp_path).part("upscaler").kind == "painter"


@pytest.mark.parametrize(
    ("entry", "why"),
    [
        pytest.param({"like": "net"}, "leads back to itself", id="like itself"),
        pytest.param({"like": "sd15/net"}, "leads back to itself", id="like itself by its profile"),
        pytest.param({"like": "sdxl/absent"}, "KeyError: 'absent'", id="like nothing of another profile"),
        pytest.param({"like": "other"}, "KeyError: 'other'", id="like nothing"),
        pytest.param(own("../net"), "leaves the profile's folder", id="outside"),
        pytest.param({"kind": "unet"}, "KeyError: 'path'", id="no path"),
        pytest.param(own("net") | {"arguments": {"scale": 1}}, "net: a controlnet takes no arguments", id="arguments"),
    ],
)
def test_a_wrong_part_of_the_models_directory_is_named(tmp_path: Path, entry: dict, why: str):
    put(tmp_path, net=entry)
    with pytest.raises(UsageError, match=rf"sd15\.yaml: .*{why}"):
        load_profile("sd15", tmp_path)


def test_safetensors_that_no_digest_names_load_only_when_trusted(tmp_path: Path, trust):
    put(tmp_path, net=own("net.safetensors"))
    save_file({"weight": torch.zeros(2)}, tmp_path / "net.safetensors")
    profile = load_profile("sd15", tmp_path)
    with pytest.raises(IntegrityError, match=r"net\.safetensors: expected a pinned sha256.*--trust"):
        profile.part("net").check()
    assert profile.ref("net").sha256 == ""
    trust("unpinned")
    profile.part("net").check()
    # what was computed is known by the bytes that computed it, also where nobody pinned them
    assert profile.ref("net").sha256 == hashlib.sha256((tmp_path / "net.safetensors").read_bytes()).hexdigest()


def test_a_torch_file_that_no_digest_names_loads_only_when_trusted(tmp_path: Path, trust):
    torch.save({"weight": torch.zeros(2)}, tmp_path / "net.pth")
    put(tmp_path, net=own("net.pth"))
    part = load_profile("sd15", tmp_path).part("net")
    for trusted in ([], ["unpinned"]):
        trust(*trusted)
        with pytest.raises(IntegrityError, match=r"net\.pth: expected safetensors or a pinned sha256.*pickle.*--trust"):
            part.check()
    trust("unpinned", "pickle")
    part.check()


def test_a_torch_file_whose_digest_is_named_needs_no_trust(tmp_path: Path):
    torch.save({"weight": torch.zeros(2)}, tmp_path / "net.pth")
    put(tmp_path, net=own("net.pth", hashlib.sha256((tmp_path / "net.pth").read_bytes()).hexdigest()))
    load_profile("sd15", tmp_path).part("net").check()


def test_other_bytes_than_the_profile_names_are_refused(tmp_path: Path, trust):
    trust("unpinned", "pickle")
    save_file({"weight": torch.zeros(2)}, tmp_path / "v1-5-pruned-emaonly.safetensors")
    with pytest.raises(IntegrityError, match=r"v1-5-pruned-emaonly\.safetensors: expected sha256 6ce0161689b3…"):
        load_profile("sd15", tmp_path).part("base").check()


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        pytest.param("net.pth", lambda data: data[:-9], "expected a torch file, found one that is cut short", id="cut"),
        pytest.param("net.pth", lambda data: b"<html>", "expected a torch file, found a file of another", id="page"),
        pytest.param("net.safetensors", lambda data: data, "expected safetensors, found a torch", id="renamed"),
        pytest.param("net.safetensors", lambda _: pickle.dumps({}), "expected safetensors, found a torch", id="pickle"),
    ],
)
def test_a_broken_torch_file_is_named(tmp_path: Path, trust, name: str, content, why: str):
    trust("unpinned", "pickle")
    torch.save({"weight": torch.zeros(2)}, tmp_path / name)
    (tmp_path / name).write_bytes(content((tmp_path / name).read_bytes()))
    put(tmp_path, net=own(name))
    with pytest.raises(IntegrityError, match=rf"{re.escape(name)}: {why}"):
        load_profile("sd15", tmp_path).part("net").check()


def test_verify_asks_no_hub_and_tells_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    problems = {check.name: check.problem for check in verify(load_profile("sdxl", tmp_path))}
    assert problems["salient"] == ""
    assert problems["fooocus_patch"] == ""  # optional
    assert "not there; fetch it with: packshot models fetch sdxl base" in problems["base"]


def test_only_a_bundled_profile_is_locked(tmp_path: Path):
    before = (PROFILES / "sd15.yaml").read_text()
    with pytest.raises(UsageError, match="only a bundled profile is locked"):
        lock(load_profile("sd15", tmp_path))
    assert (PROFILES / "sd15.yaml").read_text() == before
