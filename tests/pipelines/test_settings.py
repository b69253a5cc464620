"""Settings: where a value comes from, and that no secret shows by accident."""

from __future__ import annotations

import os
import re
from pathlib import Path
from types import SimpleNamespace

import pytest

from pipelines.errors import UsageError
from pipelines.settings import Settings, environment_file, read_settings


@pytest.fixture
def state_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in [name for name in os.environ if name.startswith("PACKSHOT_")]:
        monkeypatch.delenv(name)
    environment_file(tmp_path).write_text("PACKSHOT_S3_ENDPOINT=127.0.0.1:9\nPACKSHOT_S3_SECRET_KEY=from-the-file\n")
    return tmp_path


def test_the_process_environment_wins_over_the_file_of_up(state_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert read_settings(state_dir).s3_endpoint == "127.0.0.1:9"
    monkeypatch.setenv("PACKSHOT_S3_ENDPOINT", "minio.example:9000")
    settings = read_settings(state_dir)
    assert settings.s3_endpoint == "minio.example:9000"
    assert settings.s3_secret_key.get_secret_value() == "from-the-file"


def test_secrets_do_not_show_when_settings_are_printed(state_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PACKSHOT_DATABASE_URL", "postgresql+psycopg2://me:hidden@db/packshot")
    monkeypatch.setenv("PACKSHOT_AIRFLOW_PASSWORD", "hidden")
    text = repr(read_settings(state_dir))
    assert "hidden" not in text
    assert "from-the-file" not in text


def test_a_child_process_gets_the_same_settings(state_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PACKSHOT_TRUST_PICKLE", "true")
    monkeypatch.setenv("PACKSHOT_SHARD_SIZE", "64")
    monkeypatch.setenv("PACKSHOT_MODELS_DIR", str(state_dir / "models"))
    settings = read_settings(state_dir)
    for name, value in settings.environment().items():
        monkeypatch.setenv(name, value)
    assert Settings() == settings


def test_a_wrong_value_names_the_setting(state_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PACKSHOT_SHARD_SIZE", "0")
    with pytest.raises(UsageError, match="PACKSHOT_SHARD_SIZE: Input should be greater than or equal to 1"):
        read_settings(state_dir)


def test_every_setting_says_what_it_is() -> None:
    assert [name for name, field in Settings.model_fields.items() if not field.description] == []


def test_a_wrong_precision_is_told_before_any_model_is_loaded(state_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PACKSHOT_DTYPE", "float12")
    with pytest.raises(UsageError, match="PACKSHOT_DTYPE: Input should be 'auto', 'float32'"):
        read_settings(state_dir)


@pytest.mark.parametrize(
    ("device", "said"),
    [
        ("gpu", "PACKSHOT_DEVICE: 'gpu' is not `auto`, `cpu`, `cuda` or `cuda:<n>`"),
        ("cuda:", "PACKSHOT_DEVICE: 'cuda:' is not"),
        ("cuda:99", "PACKSHOT_DEVICE: cuda:99: PyTorch finds "),
    ],
)
def test_a_device_that_is_none_or_not_there_is_one_line(
    state_dir: Path, monkeypatch: pytest.MonkeyPatch, device: str, said: str
) -> None:
    monkeypatch.setenv("PACKSHOT_DEVICE", device)
    with pytest.raises(UsageError, match=re.escape(said)):
        read_settings(state_dir).compute()


def test_a_misspelled_variable_is_not_ignored(state_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PACKSHOT_SCENE_DIR", "/sets")
    with pytest.raises(UsageError, match="PACKSHOT_SCENE_DIR is no setting of packshot: PACKSHOT_SCENES_DIR is"):
        read_settings(state_dir)


def test_a_variable_of_somebody_elses_is_left_alone(state_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PACKSHOT_DATABASE_PASSWORD", "for docker/compose.yaml")
    monkeypatch.setenv("MY_PACKSHOT_SCENE_DIR", "/sets")
    assert read_settings(state_dir).scenes_dir is None


def test_precision_and_memory_come_with_the_reason() -> None:
    assert str(Settings(device="cpu").compute()).startswith("cpu, float32: PACKSHOT_DEVICE; CPUs are slow in half")
    asked = Settings(device="cpu", dtype="bfloat16", offload="on", vae_tiling=True).compute()
    assert str(asked) == ("cpu, bfloat16, offloading, VAE tiling: PACKSHOT_DEVICE; PACKSHOT_DTYPE; PACKSHOT_OFFLOAD")


@pytest.mark.parametrize(
    ("gigabytes", "profile", "dtype", "offload"),
    [
        pytest.param(8, "sd15", "float16", True, id="small"),
        pytest.param(80, "sdxl", "float16", False, id="large"),
        pytest.param(8, "mini", "float32", True, id="mini"),
    ],
)
def test_a_small_gpu_is_made_room_on(
    monkeypatch: pytest.MonkeyPatch, gigabytes: int, profile: str, dtype: str, offload: bool
) -> None:
    import torch

    memory = SimpleNamespace(total_memory=gigabytes * 2**30)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: memory)
    compute = Settings(profile=profile).compute()
    assert (compute.device, compute.dtype, compute.offload) == ("cuda", dtype, offload)
    assert f"{gigabytes} GiB of GPU memory" in compute.reason
    assert Settings(profile=profile, offload="off").compute().offload is False
