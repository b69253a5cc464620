"""Blind sheets do not tell which run an image comes from, and answers join what they belong to."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import pytest
from PIL import Image

from pipelines.contracts import Product, Shot
from pipelines.errors import UsageError
from pipelines.evaluation.pictures import blind, join, rates, sheet, shuffled
from pipelines.runs.local import write_record
from pipelines.store import FolderStore
from pipelines.vision.photos import png_bytes


def run_of(folder: Path, skus: Sequence[str]) -> Path:
    """An output folder in which these products are published."""
    (folder / ".packshot").mkdir(parents=True)
    photo = FolderStore(folder / ".packshot").put(png_bytes(Image.new("RGB", (60, 40), "red")), "image/png")
    shots = [Shot(Product(sku, 2, f"Title of {sku}", "", photo), "white-plain", "square") for sku in skus]
    write_record(folder, [(shot, {}) for shot in shots])
    for sku in skus:
        Image.new("RGB", (30, 30), "green").save(folder / f"{sku}-white-plain.jpg")
    return folder


@pytest.fixture
def pair(tmp_path: Path) -> list[Path]:
    names = [f"P{n}" for n in range(20)]
    return [run_of(tmp_path / "new", names), run_of(tmp_path / "old", names[5:])]


def test_sheets_show_what_both_published_in_an_order_of_the_seed(pair: list[Path]) -> None:
    order = [(final.sku, final.side) for final in shuffled([(pair[0], pair[1])], 7)]
    assert sorted(order) == sorted((f"P{n}", side) for n in range(5, 20) for side in ("new", "old"))
    assert order == [(final.sku, final.side) for final in shuffled([(pair[0], pair[1])], 7)]
    assert order != [(final.sku, final.side) for final in shuffled([(pair[0], pair[1])], 8)]
    sides = [side for _, side in order]
    assert sides != sorted(sides)
    assert sides != ["new", "old"] * 15


def test_answers_join_the_sides_and_give_both_rates(pair: list[Path], tmp_path: Path) -> None:
    blind(tmp_path / "blind", pair)
    assert len(list((tmp_path / "blind").glob("sheet_*.jpg"))) == 4
    answers = tmp_path / "blind" / "answers.csv"
    assert answers.read_text().splitlines()[:2] == ["number,publish", "0,"]
    with pytest.raises(UsageError, match="number 0"):
        join(tmp_path / "blind", tmp_path / "labels.csv", pair)
    finals = shuffled([(pair[0], pair[1])])
    rows = [f"{n},{'yes' if one.side == 'new' or one.sku == 'P5' else 'no'}" for n, one in enumerate(finals)]
    answers.write_text("\n".join(["number,publish", *rows]))
    join(tmp_path / "blind", tmp_path / "labels.csv", pair)
    with (tmp_path / "labels.csv").open() as file:
        assert {(row["side"], row["publish"]) for row in csv.DictReader(file) if row["sku"] == "P9"} == {
            ("new", "yes"),
            ("old", "no"),
        }
    found = rates(tmp_path / "labels.csv")
    assert found["new"] == (1.0, (1.0, 1.0), 15)
    assert found["old"][0] == pytest.approx(1 / 15)


def test_a_sheet_needs_published_images(pair: list[Path], tmp_path: Path) -> None:
    sheet(pair[0], tmp_path / "sheet.jpg")
    with Image.open(tmp_path / "sheet.jpg") as drawn:
        assert drawn.height > 4 * 220  # twenty pairs, five in a row
    with pytest.raises(UsageError, match="no record"):
        sheet(tmp_path, tmp_path / "sheet.jpg")


def test_the_page_has_the_rates_of_the_committed_labels() -> None:
    research = Path(__file__).parents[3] / "docs" / "research"
    page = (research / "pictures.md").read_text("utf-8")
    found = rates(research / "pictures" / "labels.csv")
    for name, side in (("this code", "new"), ("f30f27f", "old")):
        value, (low, high), n = found[side]
        assert f"| {name} | {value:.2f} | {low:.2f} to {high:.2f} | {n} |" in page
