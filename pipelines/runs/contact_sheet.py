"""The contact sheet: every product in one picture, as photo → cutout → raw → final, with verdict and tags."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont, ImageOps

from pipelines.contracts import ShotState

TILE = 240
"""Side of a picture, px."""

GAP, PAD, COLUMN_GAP, HEADER, TEXT = 30, 18, 28, 104, 84

MAX_LETTERS = 400
"""Longest text that is measured: no line holds more, and a title may have a million letters."""

MAX_ROWS = 400
"""Products drawn at most; the last line counts the others."""

PAPER, CARD, EDGE, INK, QUIET = "#f4f2ee", "#ffffff", "#dedad3", "#22211f", "#77736c"
STATE_COLOURS = {
    ShotState.PUBLISHED: "#2f8f5b",
    ShotState.HELD: "#c98a12",
    ShotState.REJECTED: "#c0453a",
    ShotState.FAILED: "#8c1d18",
    ShotState.PENDING: "#8b8b8b",
}
STAGES = ("photo", "cutout", "raw", "final")
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


@dataclass(frozen=True, slots=True)
class SheetRow:
    """One product on the sheet. Pictures of any size and mode, None for a stage that the shot did not reach.

    `subject` is what the prompt calls the product."""

    sku: str
    title: str
    state: ShotState
    reason: str = ""
    subject: str = ""
    tags: tuple[str, ...] = ()
    photo: Image.Image | None = None
    cutout: Image.Image | None = None
    raw: Image.Image | None = None
    final: Image.Image | None = None


def contact_sheet(rows: Iterable[SheetRow], states: Sequence[ShotState], path: Path) -> None:
    """Draw `rows` in the order given and write the sheet to `path` (PNG).

    `states` are those of all products, one a row. Rows are taken one at a time, MAX_ROWS at most, so that a generator
    of them holds the pictures of one product in memory.
    """
    drawn = min(len(states), MAX_ROWS)
    columns = 2 if drawn > 3 else 1
    width = 2 * PAD + 4 * TILE + 3 * GAP
    height = 2 * PAD + TILE + TEXT
    lines = -(-drawn // columns)
    sheet = Image.new(
        "RGB",
        (
            COLUMN_GAP + columns * (width + COLUMN_GAP),
            HEADER + lines * (height + COLUMN_GAP) + (48 if len(states) > drawn else 0),
        ),
        PAPER,
    )
    _draw_header(sheet, states)
    for number, row in enumerate(islice(rows, drawn)):
        line, column = divmod(number, columns)
        card = _card(row, width, height)
        sheet.paste(card, (COLUMN_GAP + column * (width + COLUMN_GAP), HEADER + line * (height + COLUMN_GAP)))
    if len(states) > drawn:
        note = f"and {len(states) - drawn} products more, not drawn here"
        ImageDraw.Draw(sheet).text((COLUMN_GAP, sheet.height - 44), note, QUIET, _font(18))
    sheet.save(path, "PNG", compress_level=6)


def _draw_header(sheet: Image.Image, states: Sequence[ShotState]) -> None:
    draw = ImageDraw.Draw(sheet)
    draw.text((COLUMN_GAP, 20), "packshot", INK, _font(34, bold=True))
    draw.text((COLUMN_GAP, 66), "photo  →  cutout  →  raw  →  final", QUIET, _font(17))
    counts = Counter(states)
    x = float(sheet.width - COLUMN_GAP)
    for state in reversed(STATE_COLOURS):
        if counts[state]:
            x -= _pill(draw, (x, 40), f"{counts[state]} {state}", STATE_COLOURS[state], _font(20, bold=True)) + 12
    products = f"{len(states)} product{'' if len(states) == 1 else 's'}"
    draw.text((x - 6, 40), products, INK, _font(20), anchor="rm")


def _card(row: SheetRow, width: int, height: int) -> Image.Image:
    card = Image.new("RGB", (width, height), CARD)
    draw = ImageDraw.Draw(card)
    draw.rectangle((0, 0, width - 1, height - 1), outline=EDGE)
    colour = STATE_COLOURS[row.state]
    draw.rectangle((0, 0, 5, height), fill=colour)
    for index, (stage, picture) in enumerate(zip(STAGES, (row.photo, row.cutout, row.raw, row.final), strict=True)):
        x = PAD + index * (TILE + GAP)
        card.paste(_tile(picture), (x, PAD))
        draw.rectangle((x, PAD, x + TILE - 1, PAD + TILE - 1), outline=EDGE)
        if picture is None:
            draw.text((x + TILE / 2, PAD + TILE / 2), f"no {stage}", "#b5b0a7", _font(17), anchor="mm")
        if index:
            draw.text((x - GAP / 2, PAD + TILE / 2), "→", QUIET, _font(20), anchor="mm")
    top, right = PAD + TILE + 14, float(width - PAD)
    taken = _pill(draw, (right, top + 11), str(row.state), colour, _font(16, bold=True))
    sku_font, title_font = _font(15), _font(19, bold=True)
    sku = _shorten(row.sku, sku_font, 260)
    title = _shorten(row.title, title_font, width - 2 * PAD - taken - sku_font.getlength(sku) - 30)
    draw.text((PAD, top), title, INK, title_font)
    draw.text((PAD + title_font.getlength(title) + 12, top + 4), sku, QUIET, sku_font)
    text_font = _font(15)
    details = " · ".join(part for part in (row.subject, ", ".join(row.tags)) if part)
    for line, ink in ((row.reason, colour), (details, QUIET)):
        if line:
            top += 25
            draw.text((PAD, top + 4), _shorten(line, text_font, width - 2 * PAD), ink, text_font)
    return card


def _tile(picture: Image.Image | None) -> Image.Image:
    """`picture` scaled to a tile, RGB; a checkerboard shows through transparent pixels."""
    if picture is None:
        return Image.new("RGB", (TILE, TILE), "#efece6")
    small = ImageOps.contain(picture.convert("RGBA"), (TILE, TILE), Image.Resampling.LANCZOS)
    ground = _checkerboard(small.size) if small.getchannel("A").getextrema()[0] != 255 else Image.new("RGB", small.size)
    ground.paste(small, mask=small.getchannel("A"))
    tile = Image.new("RGB", (TILE, TILE), "#ffffff")
    tile.paste(ground, ((TILE - small.width) // 2, (TILE - small.height) // 2))
    return tile


def _checkerboard(size: tuple[int, int], square: int = 12) -> Image.Image:
    cells = Image.new("L", (-(-size[0] // square), -(-size[1] // square)))
    cells.putdata([255 if (i % cells.width + i // cells.width) % 2 else 214 for i in range(cells.width * cells.height)])
    large = cells.resize((cells.width * square, cells.height * square), Image.Resampling.NEAREST)
    return large.crop((0, 0, *size)).convert("RGB")


def _pill(draw: ImageDraw.ImageDraw, right_middle: tuple[float, float], text: str, colour: str, font: Font) -> float:
    """White text on a rounded patch that ends at `right_middle`; returns its width."""
    x, y = right_middle
    width, half = font.getlength(text) + 24, 0.8 * getattr(font, "size", 14)
    draw.rounded_rectangle((x - width, y - half, x, y + half), radius=half, fill=colour)
    draw.text((x - width / 2, y), text, "#ffffff", font, anchor="mm")
    return width


def _shorten(text: str, font: Font, width: float) -> str:
    """One line of `text` that is at most `width` px long, an ellipsis where it was cut."""
    text = " ".join(text.split())[:MAX_LETTERS]
    if font.getlength(text) <= width:
        return text
    return next((cut for cut in _cuts(text) if font.getlength(cut) <= width), "…")


def _cuts(text: str) -> Iterator[str]:
    for end in range(len(text), 0, -1):
        yield text[:end].rstrip() + "…"


def _font(size: int, bold: bool = False) -> Font:
    """DejaVu Sans if installed, because it covers most scripts; otherwise Pillow's default font."""
    try:
        return ImageFont.truetype("DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf", size)
    except OSError:
        return ImageFont.load_default(size)
