from __future__ import annotations

import weakref
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image, ImageFont

from pipelines.contracts import ShotState
from pipelines.runs import contact_sheet as module
from pipelines.runs.contact_sheet import PAD, STATE_COLOURS, TILE, SheetRow, contact_sheet


def row(sku: str, state: ShotState = ShotState.PUBLISHED, **fields: object) -> SheetRow:
    pictures = {
        "photo": Image.new("RGB", (900, 600), (200, 40, 40)),
        "cutout": Image.new("RGBA", (900, 600), (40, 200, 40, 0)),
        "raw": Image.new("L", (256, 256), 90),
        "final": Image.new("CMYK", (1024, 1024), (0, 0, 0, 0)),
    }
    return SheetRow(sku=sku, title=f"Product {sku}", state=state, **{**pictures, **fields})  # type: ignore[arg-type]


def draw(rows: list[SheetRow], path: Path) -> None:
    contact_sheet(rows, [row.state for row in rows], path)


def colours(image: Image.Image) -> set[object]:
    return {colour for _, colour in image.convert("RGB").getcolors(1 << 24) or ()}


def test_shows_the_pictures_of_a_row_in_the_order_of_the_work(tmp_path: Path) -> None:
    draw([row("A-1")], tmp_path / "sheet.png")
    sheet = Image.open(tmp_path / "sheet.png")
    x, y = module.COLUMN_GAP + PAD + TILE // 2, module.HEADER + PAD + TILE // 2
    photo, cutout, raw, final = (sheet.getpixel((x + n * (TILE + module.GAP), y)) for n in range(4))
    assert photo == (200, 40, 40)
    assert cutout in {(255, 255, 255), (214, 214, 214)}, "a transparent cutout lies on a checkerboard"
    assert raw == (90, 90, 90)
    assert final == (255, 255, 255)


@pytest.mark.parametrize("state", list(ShotState))
def test_every_state_has_a_colour_of_its_own(state: ShotState, tmp_path: Path) -> None:
    draw([row("A-1", state)], tmp_path / "sheet.png")
    expected = tuple(bytes.fromhex(STATE_COLOURS[state][1:]))
    assert Image.open(tmp_path / "sheet.png").getpixel((module.COLUMN_GAP + 2, module.HEADER + 60)) == expected


def test_a_shot_that_never_came_to_a_picture_still_has_its_row(tmp_path: Path) -> None:
    bare = SheetRow("A-1", "Lost photo", ShotState.REJECTED, "row 3: photo images/none.jpg is not there")
    draw([bare], tmp_path / "sheet.png")
    reason = tuple(bytes.fromhex(STATE_COLOURS[ShotState.REJECTED][1:]))
    sheet = Image.open(tmp_path / "sheet.png").convert("RGB")
    below = sheet.crop((module.COLUMN_GAP + PAD, module.HEADER + PAD + TILE + 36, sheet.width // 2, sheet.height))
    assert reason in colours(below), "the reason is written below"


def test_no_rows_make_an_empty_sheet(tmp_path: Path) -> None:
    draw([], tmp_path / "sheet.png")
    assert Image.open(tmp_path / "sheet.png").height == module.HEADER


def test_counts_the_products_that_it_does_not_draw(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_ROWS", 4)
    draw([row(str(n)) for n in range(6)], tmp_path / "six.png")
    draw([row(str(n)) for n in range(4)], tmp_path / "four.png")
    assert Image.open(tmp_path / "six.png").height == Image.open(tmp_path / "four.png").height + 48


def test_text_too_long_for_its_line_is_cut_with_an_ellipsis() -> None:
    font = ImageFont.load_default(15)
    short = module._shorten("an endless reason " * 40, font, 300)
    assert short.endswith("…")
    assert font.getlength(short) <= 300


def test_a_title_without_end_is_cut_without_measuring_it_all() -> None:
    measured: list[int] = []

    class Font:
        def getlength(self, text: str) -> float:
            measured.append(len(text))
            return 8.0 * len(text)

    assert len(module._shorten("x" * 1_000_000, Font(), 300)) <= 38  # type: ignore[arg-type]
    assert max(measured) <= module.MAX_LETTERS + len("…")


def test_pictures_of_one_product_are_held_at_a_time_and_of_those_not_drawn_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_ROWS", 4)
    made: list[weakref.ref[Image.Image]] = []
    most = 0

    def rows() -> Iterator[SheetRow]:
        nonlocal most
        for n in range(6):
            photo = Image.new("RGB", (900, 600))
            made.append(weakref.ref(photo))
            most = max(most, sum(one() is not None for one in made))
            yield row(str(n), photo=photo)
            del photo

    contact_sheet(rows(), [ShotState.PUBLISHED] * 6, tmp_path / "sheet.png")
    assert len(made) == 4
    assert most <= 2
