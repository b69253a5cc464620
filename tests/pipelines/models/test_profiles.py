from __future__ import annotations

import dataclasses
import json
import pickle
import struct
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import save_file

from pipelines.errors import IntegrityError, UsageError
from pipelines.models import profile as models
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
