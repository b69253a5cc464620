"""`packshot shoot` on the files around it: what it refuses, and the names of what it writes."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from pipelines.contracts import Artifact, Job, Product, Shot, ShotState, State, Step, sha256_hex
from pipelines.errors import UsageError
from pipelines.models.profile import load_profile
from pipelines.runs.local import Outcome, file_name, read_record, shoot, write_record
from pipelines.scenes import SceneLora, load_scene
from pipelines.settings import ROOT, Settings
from pipelines.workflow import Recipe

SKUS = ("a/b", "a_b", "a b", "../a_b", ".", "", "contact_sheet", "Ü" * 130, "Ü" * 131, "x" * 200, "x" * 199 + "y")


def test_every_sku_has_a_file_name_of_its_own_that_any_file_system_takes(tmp_path: Path) -> None:
    names = [file_name(sku) for sku in SKUS]
    assert len(set(names)) == len(SKUS)
    assert file_name("a_b") == "a_b"
    for name in names:
        target = tmp_path / f"{name}-{'s' * 63}.jpg"
        target.write_bytes(b"")
        assert target.resolve().parent == tmp_path.resolve()
        assert not name.startswith(".")


@pytest.mark.parametrize("out", ["taken", "taken/below", "/proc/none"])
def test_a_folder_that_cannot_be_is_one_line_before_anything_is_computed(tmp_path: Path, out: str) -> None:
    (tmp_path / "taken").touch()
    recipe = Recipe(load_profile("mini"), load_scene("oak-window"))
    with pytest.raises(UsageError, match="name a folder"):
        shoot(tmp_path / "taken", recipe, tmp_path / out, Settings())


def test_a_source_that_is_not_there_leaves_no_folder_behind(tmp_path: Path) -> None:
    recipe = Recipe(load_profile("mini"), load_scene("oak-window"))
    with pytest.raises(UsageError, match="no such file"):
        shoot(tmp_path / "none.jpg", recipe, tmp_path / "out", Settings())
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("folder", "folder is a folder: give an image, or a catalogue"),
        ("https://shop.example/photos/mug.jpg", "mug.jpg is at an address: download it"),
        ("feed.xlsx", "export the sheet as CSV UTF-8"),
        ("feed.json", "JSON: export the catalogue as CSV"),
    ],
)
def test_a_source_of_another_kind_is_named(tmp_path: Path, source: str, said: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "feed.xlsx").write_bytes(b"PK\x03\x04\x14\x00")
    (tmp_path / "feed.json").write_text('{"id": 1}')
    recipe = Recipe(load_profile("mini"), load_scene("oak-window"))
    path = Path(source) if "://" in source else tmp_path / source
    with pytest.raises(UsageError, match=said):
        shoot(path, recipe, tmp_path / "out", Settings())


def test_a_catalogue_without_an_ending_is_read_as_one(tmp_path: Path) -> None:
    (tmp_path / "feed").write_text("id;title;image_link\n1;Mug;none.jpg\n")
    recipe = Recipe(load_profile("mini"), load_scene("oak-window"))
    (outcome,) = shoot(tmp_path / "feed", recipe, tmp_path / "out", Settings())
    assert (outcome.sku, outcome.state) == ("1", ShotState.REJECTED)
    assert "none.jpg is not there" in outcome.reason


def test_a_model_that_the_profile_lacks_is_named_before_anything_is_computed(tmp_path: Path) -> None:
    (tmp_path / "mug.jpg").touch()
    scene = load_scene("oak-window").model_copy(update={"lora": SceneLora(name="lora_dunes")})
    stages: list[str] = []
    with pytest.raises(UsageError, match="profile mini has no model 'lora_dunes'"):
        shoot(
            tmp_path / "mug.jpg",
            Recipe(load_profile("mini"), scene),
            tmp_path / "out",
            Settings(),
            started=lambda stage, shots: stages.append(stage),
        )
    assert stages == []


@pytest.mark.parametrize("edited", [False, True])
def test_an_image_that_is_no_longer_published_does_not_stay(tmp_path: Path, edited: bool) -> None:
    image = tmp_path / "out" / "mug-oak-window.jpg"
    (tmp_path / "out" / ".packshot").mkdir(parents=True)
    image.write_bytes(b"published")
    job = Job("publish", 1, {}, {})
    published = Artifact(sha256_hex(b"published"), "published", "image/jpeg", 9)
    shot = Shot(Product("mug", 1, "mug", "", sha256_hex(b"photo")), "oak-window", "web")
    write_record(tmp_path / "out", [(shot, {"publish": Step(job.key, job, State.DONE, (published,))})])
    if edited:
        image.write_bytes(b"retouched by hand")
    (tmp_path / "mug.jpg").write_bytes(b"no photo")
    recipe = Recipe(load_profile("mini"), load_scene("oak-window"))
    (outcome,) = shoot(tmp_path / "mug.jpg", recipe, tmp_path / "out", Settings())
    assert outcome.state is ShotState.REJECTED
    assert image.exists() == edited


@pytest.mark.slow
def test_the_first_image_is_there_before_the_next_photo_is_cut_out(tmp_path: Path) -> None:
    catalogue = ROOT / "pipelines/sample/catalog.csv"
    recipe = Recipe(load_profile("mini"), load_scene("white-plain"))
    order: list[tuple[str, str]] = []
    outcomes = shoot(
        catalogue,
        recipe,
        tmp_path,
        Settings(),
        limit=2,
        progress=lambda stage, shot, step: order.append((stage, shot.sku)),
        finished=lambda one: order.append((f"written {one.picture and one.picture.is_file()}", one.sku)),
    )
    first, second = (outcome.sku for outcome in outcomes)
    stages = ["cutout", "describe", "generate", "upscale", "inspect", "publish", "written True"]
    order = [at for number, at in enumerate(order) if at not in order[:number]]  # a stage may try several seeds
    assert order == [(stage, sku) for sku in (first, second) for stage in stages]
    assert [shot.sku for shot, _ in read_record(tmp_path)] == [first, second]


def test_an_interrupted_run_goes_on_where_it_was_and_another_run_does_not(tmp_path: Path) -> None:
    (tmp_path / "feed.csv").write_text("id,title,image_link\n" + "".join(f"{n},Mug,{n}.jpg\n" for n in range(3)))
    for n in range(3):
        (tmp_path / f"{n}.jpg").write_bytes(f"no photo {n}".encode())
    recipe = Recipe(load_profile("mini"), load_scene("oak-window"))
    seen, resumed = [], []

    def interrupt(stage: str, shot: Shot, step: Step) -> None:
        seen.append(shot.sku)
        if len(seen) == 2:
            raise KeyboardInterrupt

    def run(out: str, **more: Any) -> list[Outcome]:
        taken_up = lambda steps, shots: resumed.append((steps, shots))  # noqa: E731
        return shoot(tmp_path / "feed.csv", recipe, tmp_path / out, Settings(), resumed=taken_up, **more)

    with pytest.raises(KeyboardInterrupt):
        run("out", progress=interrupt)
    (kept,) = (tmp_path / "out" / ".packshot").glob("unfinished-*")
    with kept.open("a") as file:
        file.write('{"key": "the machine stopped he')
    assert [one.state for one in run("another")] == [ShotState.REJECTED] * 3
    assert resumed == []
    outcomes = run("out")
    assert [(one.sku, one.state) for one in outcomes] == [(str(n), ShotState.REJECTED) for n in range(3)]
    assert resumed == [(2, 2)]
    run("out")
    assert resumed == [(2, 2)], "a run that ended leaves nothing to go on with"


@pytest.mark.slow
def test_the_command_says_how_it_goes_on_and_goes_on(tmp_path: Path) -> None:
    out = tmp_path / "out"
    catalogue = ROOT / "pipelines" / "sample" / "catalog.csv"
    command = ["shoot", str(catalogue), "--limit", "2", "--scene", "white-plain", "--out", str(out)]
    about = {
        "args": [sys.executable, "-m", "pipelines.cli.main", *command],
        "cwd": ROOT,
        "env": os.environ | {"PACKSHOT_STATE_DIR": str(tmp_path / "state")},
        "stdout": subprocess.PIPE,
        "stderr": subprocess.STDOUT,
        "text": True,
    }
    first = subprocess.Popen(**about)
    while not (kept := list(out.glob(".packshot/unfinished-*"))) or kept[0].read_text().count("\n") < 3:
        assert first.poll() is None, first.communicate()
        time.sleep(0.02)
    first.send_signal(signal.SIGINT)
    said, _ = first.communicate()
    assert first.returncode not in (0, None)
    assert f"what is finished is kept in {out}: give the same command again" in said
    finished = {json.loads(line)["key"] for line in kept[0].read_text().splitlines()}

    second = subprocess.run(**about)
    assert second.returncode == 0, second.stdout
    assert re.search(rf"reused {len(finished)} finished steps of (1 product|2 products),", second.stdout)
    assert finished < {step.key for _, steps in read_record(out) for step in steps.values()}
    assert len(list(out.glob("*.jpg"))) == 2
    assert not list(out.glob(".packshot/unfinished-*"))
