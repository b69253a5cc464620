"""What the pages promise is there, and what is there is on the pages."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from typer.main import get_command

from pipelines.cli import app
from pipelines.scenes import Channel, Checks, Control, Scene, ScenePlacement
from pipelines.settings import Settings

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize("name", sorted(Settings.model_fields))
def test_every_setting_is_documented_with_its_words(name: str):
    page = (ROOT / "docs/settings.md").read_text("utf-8")
    assert f"| `PACKSHOT_{name.upper()}` |" in page
    assert str(Settings.model_fields[name].description) in page


def test_no_setting_is_documented_that_is_not_there():
    page = (ROOT / "docs/settings.md").read_text("utf-8")
    assert {name.lower() for name in re.findall(r"^\| `PACKSHOT_(\w+)`", page, re.M)} == set(Settings.model_fields)


@pytest.mark.parametrize(
    ("heading", "part"),
    [
        ("scene", Scene),
        ("of each of `controls`", Control),
        ("of `placement`", ScenePlacement),
        ("of `channel`", Channel),
        ("of `checks`", Checks),
    ],
)
def test_every_option_of_a_scene_is_on_its_page_with_its_default(heading: str, part):
    page = (ROOT / "docs/scenes.md").read_text("utf-8")
    table = page.split(f"| {heading} | default |")[1].split("\n\n")[0]
    said: dict[str, str] = {}
    for names, defaults in re.findall(r"^\| (`[^|]*) \| ([^|]*) \|", table, re.M):
        keys = re.findall(r"`(\w+)`", names)
        said |= dict(zip(keys, defaults.split(", ") if len(keys) > 1 else [defaults], strict=True))
    assert set(said) == set(part.model_fields)
    for name, field in part.model_fields.items():
        if isinstance(field.default, int | float | str) and field.default != "":
            assert said[name].strip("`") == (
                f"{field.default:g}" if not isinstance(field.default, str) else field.default
            )


def commands(command, prefix: str = "packshot") -> list[str]:
    """Every leaf of the command tree, as it is typed."""
    if not hasattr(command, "commands"):
        return [prefix]
    return [leaf for name, sub in command.commands.items() for leaf in commands(sub, f"{prefix} {name}")]


@pytest.mark.parametrize("leaf", commands(get_command(app)))
def test_every_command_is_in_the_readme(leaf: str):
    table = (ROOT / "README.md").read_text("utf-8").split("## The command")[1].split("### What")[0]
    assert leaf in table or f"`{leaf.removeprefix('packshot ')}" in table


def test_every_link_of_the_pages_leads_somewhere():
    for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text("utf-8")):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_nothing_names_a_path_of_one_machine_or_a_package_registry():
    """A clone must work anywhere: no home folder, no scratch folder, no mirror's address in what is committed."""
    from subprocess import run

    listed = run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout.decode().split("\0")
    words = re.compile(
        "|".join(["/ro" + "ot/", "/wo" + "rk/", r"py" + r"pi\.org", "files.pytho" + "nhosted", "npm" + "js"])
    )
    texts = [
        name
        for name in listed
        if name and Path(name).suffix in {".py", ".md", ".yaml", ".yml", ".toml", ".txt", ".sql", ".html"}
    ]
    assert [n for n in texts if (ROOT / n).is_file() and words.search((ROOT / n).read_text("utf-8"))] == []
