from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import pickle
import struct
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import save_file

from pipelines.errors import IntegrityError, UsageError
from pipelines.models import profile as models
from pipelines.models.files import sha256_of
from pipelines.models.profile import load_profile, lock, verify

CHAIN = {
    "hqsam", "salient", "blip", "clip", "autoencoder", "unet", "scheduler", "brushnet", "controlnet_canny", "upscaler",
}  # fmt: skip


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of profiles with one bundled profile of one model."""
    (tmp_path / "shop" / "net").mkdir(parents=True)
    save_file({"weight": torch.arange(6.0)}, tmp_path / "shop" / "net" / "model.safetensors")
    part = {"kind": "unet", "path": "net", "source": "here", "licence": "CC0", "revision": "", "sha256": ""}
    text = yaml.safe_dump(
        {
            "bundled": True,
            "title": "Shop",
            "native_size": 64,
            "caption_confidence": 0.5,
            "tag_confidence": {"category": 0.5},
            "vocabulary": "shop/vocabulary.txt",
            "parts": {"net": part},
        },
        sort_keys=False,
    )
    (tmp_path / "shop.yaml").write_text("# reviewed by hand\n" + text)
    monkeypatch.setattr(models, "PROFILES", tmp_path)
    load_profile.cache_clear()
    yield tmp_path
    load_profile.cache_clear()


def test_mini_names_every_model_of_the_chain() -> None:
    profile = load_profile("mini")
    assert {part.name for part in profile.parts} >= CHAIN
    assert any(part.kind == "lora" for part in profile.parts)
    assert profile.native_size == 256
    assert all(part.source and part.licence for part in profile.parts)


def test_bundled_weights_are_the_ones_that_the_profile_names() -> None:
    present = [check for check in verify(load_profile("mini")) if check.sha256]
    assert [check.problem for check in present if check.problem] == []


def test_an_unknown_profile_or_model_names_those_there_are(shop: Path) -> None:
    with pytest.raises(UsageError, match="no profile 'large'; there are shop"):
        load_profile("large")
    with pytest.raises(UsageError, match="has no model 'vae'; it has net"):
        load_profile("shop").part("vae")


def test_lock_writes_digests_and_leaves_the_rest_of_the_file(shop: Path) -> None:
    assert lock(load_profile("shop")) == ["net"]
    ref = load_profile("shop").ref("net")
    assert ref.revision == ref.sha256[:12]
    assert (shop / "shop.yaml").read_text().startswith("# reviewed by hand\nbundled: true\n")
    assert [check.problem for check in verify(load_profile("shop"))] == [""]
    assert lock(load_profile("shop")) == []


def test_lock_knows_a_part_whose_heading_has_a_comment(shop: Path) -> None:
    file = shop / "shop.yaml"
    file.write_text(file.read_text().replace("  net:\n", "  net:  # the one there is\n"))
    load_profile.cache_clear()
    assert lock(load_profile("shop")) == ["net"]
    assert "  net:  # the one there is\n" in file.read_text()
    assert [check.problem for check in verify(load_profile("shop"))] == [""]


def test_replaced_weights_are_refused_until_they_are_locked(shop: Path) -> None:
    lock(load_profile("shop"))
    part = load_profile("shop").part("net")
    assert part.check() is part
    save_file({"weight": torch.ones(6)}, part.path / "model.safetensors")
    with pytest.raises(IntegrityError, match=rf"model.safetensors: expected sha256 {part.ref.sha256[:12]}"):
        part.check()
    [check] = verify(load_profile("shop"))
    assert "model.safetensors" in check.problem
    lock(load_profile("shop"))
    load_profile("shop").part("net").check()


def test_weights_without_a_pin_are_refused(shop: Path) -> None:
    with pytest.raises(IntegrityError, match="expected a pinned sha256"):
        load_profile("shop").part("net").check()


def test_lock_has_a_digest_of_each_configuration_and_keys_do_not(shop: Path) -> None:
    net = shop / "shop" / "net"
    lock(load_profile("shop"))
    ref = load_profile("shop").ref("net")
    (net / "config.json").write_text("{}")
    (net / "CARD.md").write_text("for people")
    assert lock(load_profile("shop")) == ["net"]
    assert load_profile("shop").ref("net") == ref
    load_profile("shop").part("net").check()
    (net / "config.json").write_text('{"scaling_factor": 2}')
    with pytest.raises(IntegrityError, match=r"config\.json: expected sha256 44136fa355b3… .*, found"):
        load_profile("shop").part("net").check()
    assert "config.json" in verify(load_profile("shop"))[0].problem
    assert lock(load_profile("shop")) == ["net"]
    load_profile("shop").part("net").check()
    (net / "config.json").unlink()
    with pytest.raises(IntegrityError, match=r"config\.json: expected it, as the profile locks it, found none"):
        load_profile("shop").part("net").check()
    assert lock(load_profile("shop")) == ["net"]
    assert (shop / "shop.yaml").read_text().count("config.json") == 0


@pytest.mark.parametrize(
    "name",
    ["config.json", "tokenizer.json", "model.safetensors.index.json", "adapter_config.json", "merges.txt",
     "additional_chat_templates/other.jinja"],
)  # fmt: skip
def test_a_file_that_is_not_locked_is_refused_beside_bundled_weights(shop: Path, name: str) -> None:
    lock(load_profile("shop"))
    part = load_profile("shop").part("net")
    (part.path / name).parent.mkdir(exist_ok=True)
    (part.path / name).write_text(json.dumps({"weight_map": {"weight": "model.safetensors"}}))
    with pytest.raises(IntegrityError, match=f"{name}: expected only files that the profile l") as refused:
        part.check()
    assert "\n" not in str(refused.value)


def test_a_bundled_part_without_a_lock_has_no_configuration(shop: Path) -> None:
    lock(load_profile("shop"))
    file = shop / "shop.yaml"
    file.write_text(file.read_text().replace("    locked: {}\n", ""))
    load_profile.cache_clear()
    (shop / "shop" / "net" / "config.json").write_text("{}")
    with pytest.raises(IntegrityError, match=r"config\.json: expected only files that the profile locks"):
        load_profile("shop").part("net").check()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("clip/adapter_config.json", b"{}"),
        ("clip/preprocessor_config.json", None),
        ("blip/tokenizer.json", None),
        ("brushnet/diffusion_pytorch_model.safetensors.index.json", b"{}"),
        ("unet/config.json", None),
        ("scheduler/scheduler_config.json", None),
    ],
)
def test_mini_is_loaded_with_its_own_configurations_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, content: bytes | None
) -> None:
    (tmp_path / "mini.yaml").write_bytes((models.PROFILES / "mini.yaml").read_bytes())
    part = Path(name).parent
    (tmp_path / "mini" / part).mkdir(parents=True)
    for file in (models.PROFILES / "mini" / part).iterdir():
        (tmp_path / "mini" / part / file.name).symlink_to(file)
    monkeypatch.setattr(models, "PROFILES", tmp_path)
    load_profile.cache_clear()
    try:
        load_profile("mini").part(part.name).check()
        changed = tmp_path / "mini" / name
        kept = content or changed.read_bytes().replace(b":", b": ", 1)
        changed.unlink(missing_ok=True)
        changed.write_bytes(kept)
        with pytest.raises(IntegrityError, match=changed.name):
            load_profile("mini").part(part.name).check()
    finally:
        load_profile.cache_clear()


def test_a_digest_is_not_taken_for_that_of_other_bytes_of_equal_size_and_time(tmp_path: Path) -> None:
    file, other = tmp_path / "model.bin", tmp_path / "other.bin"
    file.write_bytes(b"one")
    before = file.stat()
    digests = [sha256_of(file)]
    file.write_bytes(b"two")  # in place
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    digests.append(sha256_of(file))
    other.write_bytes(b"six")
    os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))
    other.replace(file)
    digests.append(sha256_of(file))
    assert digests == [hashlib.sha256(content).hexdigest() for content in (b"one", b"two", b"six")]


def with_header(offsets: dict[str, list]) -> bytes:
    header = {name: {"dtype": "F32", "shape": [4], "data_offsets": pair} for name, pair in offsets.items()}
    encoded = json.dumps(header).encode()
    return struct.pack("<Q", len(encoded)) + encoded + bytes(16)


@pytest.mark.parametrize(
    ("content", "found"),
    [
        pytest.param(lambda data: data[:-4], "cut short", id="truncated"),
        pytest.param(lambda data: data[:5], "cut short", id="five bytes"),
        pytest.param(lambda data: b"", "cut short", id="empty"),
        pytest.param(lambda data: pickle.dumps({"weight": 1}), "a torch or pickle file", id="pickle"),
        pytest.param(lambda data: b"PK\x03\x04" + bytes(200), "a torch or pickle file", id="torch zip"),
        pytest.param(lambda data: with_header({"weight": [4]}), "another kind", id="offset missing"),
        pytest.param(lambda data: with_header({"weight": ["0", "16"]}), "another kind", id="offsets are text"),
    ],
)
def test_a_broken_file_is_named_and_never_locked(shop: Path, content: object, found: str) -> None:
    file = load_profile("shop").part("net").path / "model.safetensors"
    file.write_bytes(content(file.read_bytes()))  # type: ignore[operator]
    with pytest.raises(IntegrityError, match=rf"model\.safetensors: expected.*({found})|{found}"):
        load_profile("shop").part("net").check()
    with pytest.raises(IntegrityError):
        lock(load_profile("shop"))


def test_a_missing_file_is_a_problem_of_that_part_alone(shop: Path) -> None:
    (load_profile("shop").part("net").path / "model.safetensors").unlink()
    [check] = verify(load_profile("shop"))
    assert "no *.safetensors" in check.problem


def test_a_part_may_not_leave_the_folder(shop: Path) -> None:
    file = shop / "shop.yaml"
    file.write_text(file.read_text().replace("path: net", "path: ../net"))
    with pytest.raises(UsageError, match=r"shop\.yaml.*leaves the profile's folder"):
        load_profile("shop")


def test_a_profile_that_is_not_bundled_needs_a_models_directory(shop: Path) -> None:
    file = shop / "shop.yaml"
    file.write_text(file.read_text().replace("bundled: true", "bundled: false"))
    with pytest.raises(UsageError, match="PACKSHOT_MODELS_DIR"):
        load_profile("shop")
    assert load_profile("shop", shop / "elsewhere").part("net").path == shop / "elsewhere" / "net"


def test_several_files_are_digested_in_name_order(shop: Path) -> None:
    part = load_profile("shop").part("net")
    first = part.digest()
    save_file({"bias": torch.zeros(2)}, part.path / "another.safetensors")
    assert part.digest() != first
    assert [file.name for file in part.weights] == ["another.safetensors", "model.safetensors"]
    single = dataclasses.replace(part, path=part.path / "model.safetensors")
    assert single.digest() == first
