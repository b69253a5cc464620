"""The figures of `packshot measure describe`, on a folder whose answers are known."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipelines.errors import UsageError
from pipelines.evaluation.describe import TitleRest, measure_describe
from pipelines.models.profile import PROFILES, load_profile
from pipelines.training.categories import Labelled, vocabulary
from pipelines.training.data import Item, is_held_out

BUNDLED = [PROFILES / "mini" / part / "model.safetensors" for part in ("blip", "clip")]


def titled(title: str) -> Labelled:
    return Labelled(Item(Path("a.jpg"), title, "vendure", "CC0"), vocabulary().find(title))


def test_a_titles_rest_has_no_word_that_names_a_category() -> None:
    rest = TitleRest([titled("running shoe"), titled("wool beanie")], vocabulary())
    assert rest.rest("Summit Running Shoe") == ["summit", "running"]
    assert rest.rest("Hooded Sweatshirt Jacket") == []


def test_a_titles_rest_is_guessed_by_the_words_it_was_seen_with() -> None:
    train = [titled(title) for title in ("alpine beanie", "alpine wool beanie", "road shoe", "trail shoe", "city shoe")]
    rest = TitleRest(train, vocabulary())
    assert rest.guess("Alpine Jacket")[0] == "beanie"
    assert rest.guess("Quux Jacket")[0] == "shoes"  # nothing of it is known: the most frequent


@pytest.mark.skipif(not all(file.exists() for file in BUNDLED), reason="the bundled weights are not here")
def test_shares_count_the_held_out_photos_alone(tmp_path: Path) -> None:
    names = [f"Model {n} {kind}" for n in range(60) for kind in ("Mug", "Mug", "Beanie")]
    (tmp_path / "photos").mkdir()
    with (tmp_path / "index.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("file", "name", "source", "licence"))
        for n, name in enumerate(names):
            Image.fromarray(np.full((64, 64, 3), n, np.uint8)).save(tmp_path / "photos" / f"{n}.png")
            writer.writerow((f"photos/{n}.png", name, "vendure", "CC0"))
    kept = [name for name in names if is_held_out(name)]
    mugs = sum(name.endswith("Mug") for name in kept) / len(kept)

    found = measure_describe(tmp_path, load_profile("mini"))
    top = {share.way: share for share in found.category_top1}
    assert found.n == len(kept) > found.products == len(set(kept))
    assert top["title"].value == 1  # the label is read off the title
    assert top["majority"].value == pytest.approx(mugs)
    assert top["majority"].interval[0] <= mugs <= top["majority"].interval[1]
    assert 0 <= top["caption"].value <= 1
    recall = {share.way: share.value for share in found.tag_recall5}
    assert recall["tags"] >= top["tags"].value
    assert recall["majority"] == 1  # there are two categories in all


def test_a_folder_without_photos_to_measure_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"it has no index\.csv"):
        measure_describe(tmp_path, load_profile("mini"))
    (tmp_path / "index.csv").write_text("file,name,source,licence\n")
    with pytest.raises(UsageError, match="no photos on both sides"):
        measure_describe(tmp_path, load_profile("mini"))
