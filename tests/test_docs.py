"""What the pages promise is there, and what is there is on the pages."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import pytest
from typer.main import get_command

from pipelines.cli.main import app
from pipelines.evaluation.detector.calibrate import DetectorMeasure
from pipelines.models.profile import load_profile
from pipelines.scenes import Backdrop, BackdropPicture, Channel, Checks, Control, Scene, ScenePlacement
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
        ("of `backdrop`", Backdrop),
        ("of each of `pictures`", BackdropPicture),
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


def committed_experiment() -> dict:
    return json.loads((ROOT / "docs/experiment/results.json").read_text("utf-8"))


def as_written(row: dict) -> list[str]:
    """A row of the experiment's page, from the JSON."""
    low, high = row["rate"]["interval"]
    return [
        row["cell"],
        f"{row['rate']['value']:.0%}".replace("%", " %"),
        f"{low:.0%} to {high:.0%}".replace("%", "").strip(),
        f"{row['plated_rate']['value']:.0%}".replace("%", " %"),
        f"{row['e_plus']['value']:.3f}",
        "{:.3f} to {:.3f}".format(*row["e_plus"]["interval"]),
        f"{row['kid']['value']:.1f}",
        f"{row['clip']['value']:.3f}",
        f"{row['clip_margin']['value']:.3f}",
        f"{row['scene']['value']:.2f}",
    ]


def test_the_experiments_page_has_the_committed_figures_of_every_cell():
    page = (ROOT / "docs/experiment.md").read_text("utf-8").split("## What was found")[1]
    told = {}
    for line in page.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) >= 10 and " to " in cells[2]:
            told[cells[0]] = cells
    rows = {row["cell"]: row for row in committed_experiment()["rows"]}
    assert set(told) == set(rows)
    for name, row in rows.items():
        assert told[name][:10] == as_written(row), name
        if len(told[name]) > 10:
            assert told[name][10] == f"{row['grown_by_eye']} of {row['labelled']}", name


def test_the_committed_experiment_says_what_is_claimed_of_it():
    found = committed_experiment()
    assert not found["smoke_test"]
    assert found["clip"] == load_profile("mini").ref("clip").sha256[:12]
    compared = {(one["baseline"], one["treated"]): one for one in found["comparisons"]}
    method = compared["random/unmasked", "stage2/guided"]
    assert method["n"] == 300
    assert method["apart"]
    assert min(method["rate_ratio"]["value"], method["mean_ratio"]["value"]) >= 5
    assert method["kid_difference"]["interval"][0] <= 0  # treated less baseline: not worse beyond its interval
    assert method["clip_difference"]["interval"][1] >= 0
    control = compared["random/unmasked", "control/unmasked"]
    assert not control["apart"]
    page = (ROOT / "docs/experiment.md").read_text("utf-8")
    rate, mean = method["rate_ratio"], method["mean_ratio"]
    assert f"the rate is {rate['value']:.1f} times lower" in page
    assert "({:.1f} to {:.1f}), mean E⁺ {:.0f} times".format(*rate["interval"], mean["value"]) in page.replace(
        "\n  ", " "
    )


def test_the_readme_names_every_field_of_the_measures():
    table = (ROOT / "README.md").read_text("utf-8").split("### What `--json` prints")[1].split("\n## ")[0]
    said = {row.split("|")[1].strip(" `"): row for row in table.splitlines() if row.startswith("| `")}
    found = committed_experiment()
    of_experiment = {*found, *found["rows"][0], *found["comparisons"][0], *found["references"]["a flat colour"]}
    fields = {
        "measure detector": {field.name for field in dataclasses.fields(DetectorMeasure)},
        "experiment overcompletion": of_experiment,
    }
    for command, names in fields.items():
        assert not {name for name in names if f"`{name}`" not in said[command]}, command
