"""Settings: where a value comes from, and that no secret shows by accident."""

from __future__ import annotations

import os
from pathlib import Path

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
