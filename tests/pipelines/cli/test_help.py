"""The help answers at once, and reads in short sentences."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.main import get_command

from pipelines.cli.main import app
from pipelines.cli.train import fine_tune
from pipelines.settings import ROOT, Settings

HEAVY = {
    "PIL",
    "accelerate",
    "airflow",
    "alembic",
    "cryptography",
    "cv2",
    "diffusers",
    "great_expectations",
    "httpx",
    "lightgbm",
    "minio",
    "numpy",
    "pandas",
    "peft",
    "psycopg2",
    "pydantic",
    "scipy",
    "segment_anything_hq",
    "sqlalchemy",
    "tenacity",
    "timm",
    "torch",
    "torchvision",
    "transformers",
    "yaml",
}
"""Packages that take long to load."""

MAY_LOAD: dict[tuple[str, ...], set[str]] = {
    ("--help",): set(),
    ("shoot", "--help"): {"pydantic"},
    ("train", "--help"): {"pydantic"},
    ("measure", "--help"): {"pydantic"},
    ("models", "list"): {"pydantic", "yaml"},
    ("scenes", "list"): {"PIL", "pydantic", "yaml"},
    ("status", "--json"): {"httpx", "psycopg2", "pydantic"},
    ("lineage", "SKU"): {"psycopg2", "pydantic", "sqlalchemy"},
}
"""Which of them a command may load, where no service runs."""

MOST_MODULES = {("--help",): 420, ("status", "--json"): 620}
"""Modules in all; other commands: 600."""

UNUSED = {
    "airflow",
    "alembic",
    "fastapi",
    "great_expectations",
    "lightgbm",
    "minio",
    "pandas",
    "psycopg2",
    "sqlalchemy",
}
"""What `shoot` installs with packshot and does not use: services, tables, calibration; and timm's models."""
LIST_MODULES = """
import sys
from pipelines.cli.main import main
try:
    main()
except SystemExit:
    print("\\n", *sys.modules, file=sys.stderr)
"""
LONGEST_SENTENCE = 35


@pytest.mark.medium
@pytest.mark.parametrize("arguments", MAY_LOAD, ids=" ".join)
def test_a_command_loads_no_package_that_it_does_not_use(arguments: tuple[str, ...], tmp_path: Path) -> None:
    loaded = modules_of(arguments, tmp_path)
    assert "pipelines.cli.console" in loaded
    assert HEAVY & {name.partition(".")[0] for name in loaded} - MAY_LOAD[arguments] == set()
    assert len(loaded) < MOST_MODULES.get(arguments, 600)


@pytest.mark.services
def test_status_asks_running_services_without_the_ledgers_packages(services: Settings) -> None:
    loaded = modules_of(("status", "--json"), services.state_dir)
    used = {"httpx", "minio", "psycopg2", "pydantic"}
    assert HEAVY & {name.partition(".")[0] for name in loaded} == used


def modules_of(arguments: tuple[str, ...], state_dir: Path) -> list[str]:
    """The modules that a command has loaded when it ends."""
    environment = os.environ | {"PACKSHOT_STATE_DIR": str(state_dir)}
    done = subprocess.run(
        [sys.executable, "-c", LIST_MODULES, *arguments], capture_output=True, text=True, env=environment, check=True
    )
    return done.stderr.rpartition("\n ")[2].split()


@pytest.mark.slow
def test_shoot_imports_no_service_no_table_and_no_model_that_it_does_not_run(tmp_path: Path) -> None:
    photo = ROOT / "pipelines/sample/images/smp-013-leather-basketball-size-7.jpg"
    arguments = ["shoot", str(photo), "--scene", "white-plain", "--out", str(tmp_path)]
    environment = os.environ | {"PACKSHOT_STATE_DIR": str(tmp_path / "state")}
    done = subprocess.run(
        [sys.executable, "-c", LIST_MODULES, *arguments], capture_output=True, text=True, env=environment, check=True
    )
    assert list(tmp_path.glob("*-white-plain.jpg")), done.stderr[-2000:]
    loaded = done.stderr.rpartition("\n ")[2].split()
    assert UNUSED & {name.partition(".")[0] for name in loaded} == set()
    assert not [name for name in loaded if name.startswith(("timm.models", "pipelines.training", "pipelines.services"))]


def help_texts() -> Iterator[tuple[str, str]]:
    """Every text that `--help` shows, with where it stands."""
    import typer

    tuning = typer.Typer()
    tuning.command()(fine_tune)
    todo = [("packshot", get_command(app)), ("packshot train brushnet", get_command(tuning))]
    while todo:
        name, command = todo.pop()
        yield name, command.help or ""
        for parameter in command.params:
            yield f"{name} {parameter.name}", getattr(parameter, "help", None) or ""
        todo += [(f"{name} {sub.name}", sub) for sub in getattr(command, "commands", {}).values()]


@pytest.mark.parametrize(("where", "text"), [pytest.param(*one, id=one[0]) for one in help_texts()])
def test_no_sentence_of_the_help_is_long(where: str, text: str) -> None:
    sentences = re.split(r"(?<=[.?!:;])\s", " ".join(text.split()))
    assert [s for s in sentences if len(s.split()) > LONGEST_SENTENCE] == []
