"""`packshot shoot` on the files around it: what it refuses, and the names of what it writes."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipelines.errors import UsageError
from pipelines.models.profile import load_profile
from pipelines.runs.local import file_name, shoot
from pipelines.scenes import load_scene
from pipelines.settings import Settings
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
