"""The pages agree with the code, read simply, and lead where they say."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import pkgutil
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.main import get_command
from typer.testing import CliRunner

from pipelines.cli.main import app
from pipelines.diffusion.methods import METHODS
from pipelines.evaluation.checks import CheckMeasure, ChecksMeasure
from pipelines.evaluation.cutout import BaselineMeasure, CutoutMeasure, ProductCutout
from pipelines.evaluation.describe import DescribeMeasure, Share
from pipelines.evaluation.detector.measure import DetectorMeasure, Group
from pipelines.evaluation.scenes import Figure as SceneFigure
from pipelines.evaluation.scenes import FinalMeasure, SceneMeasure
from pipelines.ledger.decisions import Decision
from pipelines.ledger.reports import Lineage, LineageStep, Report, ReportedShot, StageCount
from pipelines.models.arguments import ARGUMENTS
from pipelines.models.painters import PAINTERS
from pipelines.models.profile import PROFILES, UNPINNED, ModelPart, load_profile
from pipelines.revisions.comparison import Evaluation, Score
from pipelines.revisions.registry import Revision
from pipelines.runs.backup import Backup, Restored
from pipelines.runs.comparison import ComparedRate, ComparedRun, Comparison, Moved
from pipelines.runs.export import Export, ExportedImage
from pipelines.runs.local import Outcome
from pipelines.runs.prune import Pruned, PrunedKind
from pipelines.runs.verify import LostObject, Verified
from pipelines.scenes import Backdrop, BackdropPicture, Checks, Control, Scene, ScenePlacement
from pipelines.scenes.channels import Channel, ChannelFeed, Provenance
from pipelines.services.airflow_history import History
from pipelines.services.lifecycle import Service, Status
from pipelines.settings import Settings

ROOT = Path(__file__).resolve().parents[1]
REFERENCE = ROOT / "docs/reference"
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md", "docker/README.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
]
WORDS = 35
"""Words in a sentence at most, outside of docs/research."""


def table_below(text: str, heading: str) -> list[list[str]]:
    """Cells of the rows of the first table after `heading`, without the table's own two head lines."""
    after = text.split(heading, 1)[1]
    rows = re.search(r"(?:^\|.*\n?)+", after, re.M)
    assert rows, heading
    return [[cell.strip() for cell in row.strip().strip("|").split(" | ")] for row in rows[0].splitlines()[2:]]


def code_in(cell: str) -> list[str]:
    """What stands in backticks."""
    return re.findall(r"`([^`]+)`", cell)


def leaves(command: Any, prefix: str = "packshot") -> dict[str, Any]:
    """Every command of the tree by the words that are typed."""
    if not hasattr(command, "commands"):
        return {prefix: command}
    found: dict[str, Any] = {}
    for name, sub in command.commands.items():
        found |= leaves(sub, f"{prefix} {name}")
    return found


COMMANDS = leaves(get_command(app))

# ------------------------------------------------------------------------------------------------ how the pages read


def passages(markdown: str) -> Iterator[str]:
    """Paragraphs, list items, headings and table cells; no code, no comments."""
    markdown = re.sub(r"^( *)```.*?^\1```", "\n", markdown, flags=re.S | re.M)
    markdown = re.sub(r"<!--.*?-->", "", markdown, flags=re.S)
    block: list[str] = []
    for line in [*markdown.splitlines(), ""]:
        text = line.strip()
        starts = text.startswith(("|", "#", "- ", "* ")) or re.match(r"\d+\. ", text)
        if (not text or starts) and block:
            yield " ".join(block)
            block = []
        if text.startswith("|"):
            yield from text.strip("|").split("|")
        elif starts:
            block = [re.sub(r"^(?:[-*]|\d+\.|#+) ", "", text)]
        elif text and not (line.startswith("    ") and not block):
            block.append(text)


def sentences(markdown: str) -> Iterator[tuple[int, str]]:
    """Every sentence with the number of its words; a link counts by its text, code as one word."""
    for passage in passages(markdown):
        plain = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", passage)
        plain = re.sub(r"`[^`]*`", "code", plain)
        for sentence in re.split(r"(?<=[.!?])[*_)]*\s+", plain):
            if words := [word for word in sentence.split() if re.search(r"\w", word)]:
                yield len(words), sentence


def test_a_sentence_is_counted_as_it_is_read():
    text = "# A head\n\nOne two, `three four` [five six](a.md). Seven!\n\n    code is none\n\n- an item\n  goes on\n"
    text += "\n| a | b c |\n"
    assert [count for count, _ in sentences(text)] == [2, 5, 1, 4, 1, 2]


@pytest.mark.parametrize(
    "page", [p for p in PAGES if "research" not in p.parts], ids=lambda p: str(p.relative_to(ROOT))
)
def test_no_sentence_is_longer_than_a_reader_can_hold(page: Path):
    assert [s for count, s in sentences(page.read_text("utf-8")) if count > WORDS] == []


IDIOM = re.compile(r"\b(?:is|are|was|were) (?:told|asked)\b|\bwhat is there\b|\bfigures\b|\bcrew\b|\byardstick\b", re.I)
"""What the project once said in words of its own: the field has terms for it."""


@pytest.mark.parametrize(
    "page", [p for p in PAGES if "research" not in p.parts], ids=lambda p: str(p.relative_to(ROOT))
)
def test_the_pages_use_the_fields_terms(page: Path):
    text = re.sub(r"`[^`]*`", "", page.read_text("utf-8"))
    assert [found[0] for found in IDIOM.finditer(text)] == []


@pytest.mark.parametrize("words", COMMANDS)
def test_no_help_text_has_a_longer_sentence_either(words: str):
    texts = [COMMANDS[words].help or "", *(getattr(option, "help", "") or "" for option in COMMANDS[words].params)]
    assert [s for text in texts for count, s in sentences(text) if count > WORDS] == []


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text("utf-8").splitlines()) < 90


def test_every_link_of_the_pages_leads_somewhere():
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text("utf-8")):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_every_file_and_module_that_a_page_names_is_there():
    made = {"dags/weekly_white.py", "pipelines/quality/contrast.py", "tests/pipelines/quality/test_contrast.py"}
    made |= {"pipelines/scenes/navy-studio.yaml"}  # by the examples
    folders = "|".join(("benchmarks", "dags", "operators", "pipelines", "plugins", "sql", "tests"))
    for page in PAGES:
        text = page.read_text("utf-8")
        files = set(re.findall(rf"\b((?:{folders})/[\w/.-]+\.(?:py|ya?ml|csv|json|md|txt))\b", text)) - made
        assert {file for file in files if not (ROOT / file).is_file()} == set(), page.name
        for module in re.findall(rf"python -m ((?:{folders})[\w.]+)", text):
            assert importlib.util.find_spec(module), f"{page.name} names {module}"


def test_the_index_leads_to_every_page():
    index = (ROOT / "docs/index.md").read_text("utf-8")
    pages = {page.relative_to(ROOT / "docs").as_posix() for page in (ROOT / "docs").rglob("*.md")} - {"index.md"}
    assert pages == {target for target in re.findall(r"\]\(([^)]+\.md)\)", index) if not target.startswith("..")}


def test_nothing_names_a_path_of_one_machine_or_a_package_registry():
    """A clone must work anywhere: no home folder, no scratch folder, no mirror's address in what is committed."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout.decode()
    words = re.compile(
        "|".join(["/ro" + "ot/", "/wo" + "rk/", r"py" + r"pi\.org", "files.pytho" + "nhosted", "npm" + "js"])
    )
    texts = [
        name
        for name in listed.split("\0")
        if name and Path(name).suffix in {".py", ".md", ".yaml", ".yml", ".toml", ".txt", ".sql", ".html", ".svg"}
    ]
    assert [n for n in texts if (ROOT / n).is_file() and words.search((ROOT / n).read_text("utf-8"))] == []


# ------------------------------------------------------------------------------------------------ settings and scenes


@pytest.mark.parametrize("name", sorted(Settings.model_fields))
def test_every_setting_is_documented_with_its_words_and_its_default(name: str):
    page = (REFERENCE / "settings.md").read_text("utf-8")
    (row,) = [row for row in table_below(page, "# Settings") if row[0] == f"`PACKSHOT_{name.upper()}`"]
    field = Settings.model_fields[name]
    assert row[2] == field.description
    if isinstance(field.default, str | int | float):
        assert row[1] == (f"`{field.default}`" if field.default != "" else "–")


def test_no_setting_is_documented_that_is_not_there():
    page = (REFERENCE / "settings.md").read_text("utf-8")
    assert {name.lower() for name in re.findall(r"^\| `PACKSHOT_(\w+)`", page, re.M)} == set(Settings.model_fields)


@pytest.mark.parametrize(
    ("heading", "part"),
    [
        ("scene", Scene),
        ("of each of `controls`", Control),
        ("of `backdrop`", Backdrop),
        ("of each of `pictures`", BackdropPicture),
        ("of `placement`", ScenePlacement),
        ("channel", Channel),
        ("of `provenance`", Provenance),
        ("of `feed`", ChannelFeed),
        ("of `checks`", Checks),
    ],
)
def test_every_option_of_a_scene_is_on_its_page_with_its_default(heading: str, part):
    page = "".join((REFERENCE / name).read_text("utf-8") for name in ("scenes.md", "channels.md"))
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


# ------------------------------------------------------------------------------------------------ the command line


COMMON = {"--json", "--help"}
"""Options of every command, which the page names once."""


def options_on_the_page(words: str) -> set[str]:
    """Long options in the section of a command."""
    page = (REFERENCE / "cli.md").read_text("utf-8")
    section = re.split(rf"^### `{re.escape(words)}(?: [^`a-z]*)?`$", page, flags=re.M)
    assert len(section) == 2, f"one section for {words}"
    rows = re.findall(r"^\| (`-[^|]*) \|", re.split(r"^##", section[1], flags=re.M)[0], re.M)
    return {option for row in rows for option in re.findall(r"--[a-z-]+", row)}


@pytest.mark.parametrize("words", COMMANDS)
def test_every_command_is_on_its_page_with_its_options_and_no_others(words: str):
    if words == "packshot train":
        pytest.skip("its options are its trainers'")
    there = {opt for p in COMMANDS[words].params for opt in (*p.opts, *p.secondary_opts) if opt.startswith("--")}
    assert options_on_the_page(words) == there - COMMON


@pytest.mark.parametrize(("words", "part"), [("packshot train", "unet"), ("packshot train brushnet", "brushnet")])
def test_the_trainers_options_are_on_the_page(words: str, part: str):
    told = CliRunner().invoke(app, ["train", part, "--help"], env={"COLUMNS": "400", "NO_COLOR": "1", "TERM": "dumb"})
    there = set(re.findall(r"^[│| ]*(--[a-z-]+)", told.output, re.M)) | set(re.findall(r" (--no-[a-z-]+)", told.output))
    assert options_on_the_page(words) == there - COMMON


def test_no_command_is_on_the_page_that_is_not_there():
    page = (REFERENCE / "cli.md").read_text("utf-8")
    said = {re.sub(r"( [^a-z].*)$", "", words) for words in re.findall(r"^### `([^`]+)`$", page, re.M)}
    assert said == set(COMMANDS) | {"packshot train brushnet"}


# ------------------------------------------------------------------------------------------------ JSON


def committed_experiment() -> dict:
    return json.loads((ROOT / "docs/research/experiment/results.json").read_text("utf-8"))


def names_of(*parts: type) -> set[str]:
    return {field.name for part in parts for field in dataclasses.fields(part)}


def fields_on_the_page(command: str) -> set[str]:
    """Everything in backticks below a command's heading."""
    page = (REFERENCE / "json.md").read_text("utf-8")
    section = re.split(r"^## ", page.split(f"\n## {command}\n")[1], flags=re.M)[0]
    return {name for row in re.findall(r"^\|.*\|$|^[A-Z`].*$", section, re.M) for name in code_in(row)}


MODEL = {field.name for field in dataclasses.fields(ModelPart)} | {"profile", "revision", "sha256", "problem"}
ANY = {"value", "interval"}
JSON = {
    "`report`": names_of(Report, ReportedShot, StageCount) | {"alike"},
    "`shoot`": names_of(Outcome) | {"shots", "contact_sheet", "alike"},
    "`lineage`": names_of(Lineage, LineageStep) | {"name", "revision", "sha256"},
    "`compare`": names_of(Comparison, ComparedRun, ComparedRate, Moved),
    "`approve`": names_of(Decision),
    "`export`": names_of(Export, ExportedImage),
    "`up` and `status`": names_of(Status, Service) | {"healthy"},
    "`models list` and `models verify`": MODEL,
    "`measure cutout`": names_of(CutoutMeasure, ProductCutout, BaselineMeasure),
    "`measure checks`": names_of(ChecksMeasure, CheckMeasure),
    "`measure describe`": names_of(DescribeMeasure, Share),
    "`measure detector`": names_of(DetectorMeasure, Group),
    "`measure scenes`": names_of(SceneMeasure, FinalMeasure, SceneFigure),
    "`verify`": names_of(Verified, LostObject),
    "`prune`": names_of(Pruned, PrunedKind),
    "`prune-airflow`": names_of(History),
    "`backup`": names_of(Backup),
    "`restore`": names_of(Restored),
}
NOT_FIELDS = {
    "`report`": {"run --wait"},
    "`lineage`": set(),
    "`models list` and `models verify`": {"verify"},
    "`measure cutout`": {"--baselines", "u2netp", "mobile_sam"},
    "`measure checks`": {"photos", "on paper", "finals"},
    "`measure describe`": {"caption", "tags", "title", "title_rest", "majority"},
    "`measure detector`": {"right", "wrong"},
}
WHOLE = (
    *(
        "`compare`",
        "`approve`",
        "`export`",
        "`up` and `status`",
        "`measure scenes`",
        "`verify`",
        "`prune`",
        "`prune-airflow`",
        "`backup`",
        "`restore`",
    ),
    *("`measure cutout`", "`measure checks`", "`measure describe`", "`measure detector`"),
)
"""Commands of which every field is stable."""


@pytest.mark.parametrize("command", JSON)
def test_the_stable_fields_of_a_document_are_there(command: str):
    said = fields_on_the_page(command) - NOT_FIELDS.get(command, set())
    assert said - JSON[command] == set()
    if command in WHOLE:
        assert JSON[command] - said == set()


def test_every_field_of_the_experiment_is_on_the_page():
    found = committed_experiment()
    said = fields_on_the_page("`experiment overcompletion`")
    of_experiment = {*found, *found["rows"][0], *found["comparisons"][0], *found["references"]["a flat colour"], *ANY}
    assert said - {"results.json"} == of_experiment


def test_every_field_of_a_revision_is_on_the_page():
    evaluation = Evaluation(0.006, (Score("CUP", 0, 0.01),))
    document = Revision(
        "mini", "brushnet", "a" * 64, "b" * 64, {}, "", {}, evaluation, evaluation, "", datetime.now(UTC)
    )
    said = fields_on_the_page("`models revisions`") - {"models promote"}
    told = document.to_json()
    assert said == {*told, *told["figures"]}


@pytest.mark.parametrize(
    "words", [w for w, command in COMMANDS.items() if any("--json" in p.opts for p in command.params)]
)
def test_every_document_has_a_section(words: str):
    page = (REFERENCE / "json.md").read_text("utf-8")
    short = words.removeprefix("packshot ")
    headings = " ".join(re.findall(r"^## .*$", page, re.M))
    assert f"`{short}`" in headings or (short == "models promote" and "`models promote` prints one item" in page)


# ------------------------------------------------------------------------------------------------ methods and profiles


def test_every_method_is_on_its_page_with_its_parts():
    page = (REFERENCE / "methods.md").read_text("utf-8")
    rows = {code_in(row[0])[0]: row for row in table_below(page, "# Methods")}
    assert list(rows) == list(METHODS)
    for name, method in METHODS.items():
        assert rows[name][1].startswith(f"{method.unet_channels} channels")
        assert (rows[name][2] != "–") == (method.branch is not None or method.unet_channels == 9)
        assert (rows[name][3] != "–") == (method.blend is not None)
        if method.unet_channels != 9:
            assert tuple(code_in(rows[name][4])) == method.parts


@pytest.mark.parametrize("name", sorted(path.stem for path in PROFILES.glob("*.yaml")))
def test_every_part_of_a_profile_is_on_its_page(name: str, tmp_path: Path):
    page = (REFERENCE / "profiles.md").read_text("utf-8")
    rows = {part: row for row in table_below(page, f"## Profile `{name}`") for part in code_in(row[0])}
    profile = load_profile(name, tmp_path, promoted=False)
    assert set(rows) == {part.name for part in profile.parts}
    for part in profile.parts:
        if not rows[part.name][1].startswith("the part") and name != "mini":
            assert part.path.name in rows[part.name][1].split(", ")
            assert (rows[part.name][2].rstrip(" |") == "yes") == part.optional, part.name


def test_the_profiles_page_knows_every_field_of_a_part():
    page = (REFERENCE / "profiles.md").read_text("utf-8")
    said = {field for row in table_below(page, "## Fields of a part") for field in code_in(row[0])}
    used = {
        key
        for path in PROFILES.glob("*.yaml")
        for part in yaml.safe_load(path.read_text())["parts"].values()
        for key in part
    }
    assert said == used
    assert UNPINNED in page


def test_every_painter_and_every_argument_is_on_the_profiles_page():
    page = (REFERENCE / "profiles.md").read_text("utf-8")
    rows = table_below(page, "## Painters")
    said = {code_in(row[0])[0]: (row[1].startswith("noise"), tuple(code_in(row[2]))) for row in rows}
    assert said == {name: (painter.edits, tuple(painter.weights)) for name, painter in PAINTERS.items()}
    arguments = {(code_in(row[0])[0], code_in(row[1])[0]) for row in table_below(page, "## Arguments")}
    assert arguments == {(part, name) for part, model in ARGUMENTS.items() for name in model.model_fields}


# ------------------------------------------------------------------------------------------------ glossary


def glossary() -> dict[str, list[str]]:
    """Term → where the code has it."""
    page = (REFERENCE / "glossary.md").read_text("utf-8")
    return {row[0]: code_in(row[2]) for row in table_below(page, "# Glossary")}


def exists(name: str) -> bool:
    """Whether a dotted name is a module, or an attribute, a field or an annotation of what comes before it."""
    head, _, last = name.rpartition(".")
    try:
        found = pkgutil.resolve_name(name)
    except (ImportError, AttributeError):
        owner = pkgutil.resolve_name(head)
        return last in getattr(owner, "__annotations__", {}) or last in getattr(owner, "model_fields", {})
    return found is not None


@pytest.mark.parametrize("term", glossary())
def test_what_the_glossary_defines_is_in_the_code(term: str):
    assert glossary()[term], "every term names its place"
    for name in glossary()[term]:
        assert exists(name), name


def test_the_glossary_defines_the_projects_terms_once():
    page = (REFERENCE / "glossary.md").read_text("utf-8")
    terms = [row[0] for row in table_below(page, "# Glossary")]
    assert len(terms) == len(set(terms))
    kept = {"step", "shot", "recipe", "ledger", "lineage", "candidate", "placement", "claim", "clean plate", "E⁺", "τ"}
    assert kept | {"arm", "cell", "key", "backdrop"} <= set(terms)


# ------------------------------------------------------------------------------------------------ worked examples


@pytest.mark.slow
def test_the_examples_of_contributing_apply_and_work(tmp_path: Path):
    """Files and patches are made as the page says, in a copy; what they add is there, and the check's test passes."""
    for name in ("dags", "docs", "operators", "pipelines", "tests"):
        ignored = shutil.ignore_patterns("__pycache__", "*.safetensors", "*.jpg", "*.png", "results.*")
        shutil.copytree(ROOT / name, tmp_path / name, ignore=ignored)
    blocks = re.findall(r"^```sh\n(.*?)^```", (ROOT / "CONTRIBUTING.md").read_text("utf-8"), re.M | re.S)
    edits = [found for block in blocks for found in re.findall(r"^(?:cat|git apply) .*?^END$", block, re.M | re.S)]
    assert len(edits) == 7
    for edit in edits:
        subprocess.run(["bash", "-ec", edit], cwd=tmp_path, check=True)
    code = (
        "from pathlib import Path; from pipelines.scenes import check_scene, Checks; import pipelines;"
        "from pipelines.diffusion.methods import METHODS; import pipelines.stages.inspect as inspect;"
        "check_scene(Path('pipelines/scenes/navy-studio.yaml'));"
        "assert METHODS['brushnet_blended'].blend == 'hard'; assert Checks().contrast; inspect.contrast;"
        "assert Path(pipelines.__file__).is_relative_to(Path.cwd());"
        "compile(Path('dags/weekly_white.py').read_text(), 'dags/weekly_white.py', 'exec')"
    )
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    test = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/pipelines/quality/test_contrast.py"]
    for arguments in (["-c", code], [*test, "--import-mode=importlib", "--noconftest"]):
        done = subprocess.run(
            [sys.executable, *arguments], cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]


# ------------------------------------------------------------------------------------------------ the experiment


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
    page = (ROOT / "docs/research/experiment.md").read_text("utf-8").split("## What was found")[1]
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
    page = (ROOT / "docs/research/experiment.md").read_text("utf-8")
    rate, mean = method["rate_ratio"], method["mean_ratio"]
    assert f"the rate is {rate['value']:.1f} times lower" in page
    assert "({:.1f} to {:.1f}), mean E⁺ {:.0f} times".format(*rate["interval"], mean["value"]) in page.replace(
        "\n  ", " "
    )
