"""Contact sheets for the pages, and blind sheets: would you publish it?

    python -m pipelines.evaluation.pictures sheet RUN OUT.jpg             each published product beside its image
    python -m pipelines.evaluation.pictures blind OUT NEW OLD [NEW OLD]   sheets in random order, without sides
    python -m pipelines.evaluation.pictures join OUT LABELS NEW OLD ...   adds products and sides to the answers
    python -m pipelines.evaluation.pictures rates LABELS                  the share that a person would publish

A run is an output folder of `packshot shoot`. Blind sheets show images that both runs published, one of each run, in an
order that a seed shuffles. `blind` writes numbers alone into `answers.csv`; fill its column `publish` with yes or no
first, and `join` them after that.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from PIL import Image, ImageDraw, ImageFont, ImageOps

from pipelines.errors import UsageError
from pipelines.quality.intervals import Interval, interval
from pipelines.runs.local import read_record
from pipelines.store import FolderStore
from pipelines.vision.photos import Photo, read_photo

app = typer.Typer(help=__doc__, no_args_is_help=True, pretty_exceptions_enable=False)

SEED = 7
TILE, BLIND_TILE = 280, 400
"""Side of a picture on a contact sheet and on a blind sheet, px."""

COLUMNS, BLIND_COLUMNS, BLIND_ROWS = 5, 2, 4
"""Pairs of product and image in a row, and pairs on a blind sheet."""

CAPTION = 18
"""Height of the line above a pair, px."""

SIDES = ("new", "old")


@dataclass(frozen=True, slots=True)
class Final:
    """A published image of a product. `side` is the run that it comes from, `new` or `old`."""

    sku: str
    title: str
    scene: str
    side: str
    photo: Image.Image
    image: Path


def published(run: Path) -> list[Final]:
    """Return the published images of a new run, an output folder of `packshot shoot`, in the catalogue's order."""
    store, found = FolderStore(run / ".packshot"), []
    for shot, _ in read_record(run):
        files = sorted(run.glob(f"{shot.sku}-{shot.scene}.*"))
        if files and shot.product.photo:
            photo = _small(read_photo(store.get(shot.product.photo)))
            found.append(Final(shot.sku, shot.product.title, shot.scene, "new", photo, files[0]))
    return found


def shuffled(pairs: Sequence[tuple[Path, Path]], seed: int = SEED) -> list[Final]:
    """Return the images that both folders of a pair published, in an order that depends on the seed alone.

    Args:
        pairs: Folders of a new and an old run of the same catalogue.
        seed: Another seed is another order.

    Raises:
        UsageError: the folders have no published product in common.
    """
    found = []
    for new, old in pairs:
        for final in published(new):
            for path in old.glob(f"{final.sku}-{final.scene}.*"):
                found += [final, replace(final, side="old", image=path)]
    if not found:
        raise UsageError("the folders have no published product in common")
    return [found[n] for n in np.random.default_rng(seed).permutation(len(found))]


def rates(labels: Path) -> dict[str, tuple[float, Interval, int]]:
    """Return, for each side, the share that a person would publish, its 95 % interval over products, and n."""
    with labels.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    found = {}
    for side in SIDES:
        own = [row for row in rows if row["side"] == side]
        values = [{"yes": 1.0, "no": 0.0}[row["publish"]] for row in own]
        if own:
            ends = interval([row["sku"] for row in own], values)
            found[side] = (float(np.mean(values)), ends, len(own))
    return found


@app.command()
def sheet(run: Path, out: Path, quality: int = 80) -> None:
    """Draw each published product beside its image."""
    finals = published(run)
    if not finals:
        raise UsageError(f"{run}: no record of `packshot shoot` with a published image is in this folder")
    out.parent.mkdir(parents=True, exist_ok=True)
    _drawn(finals, [final.sku for final in finals], COLUMNS, TILE).save(out, quality=quality, optimize=True)


@app.command()
def blind(out: Path, runs: list[Path], seed: Annotated[int, typer.Option()] = SEED) -> None:
    """Draw the blind sheets, and `answers.csv` to fill in."""
    finals = shuffled(_pairs(runs), seed)
    out.mkdir(parents=True, exist_ok=True)
    size = BLIND_COLUMNS * BLIND_ROWS
    for start in range(0, len(finals), size):
        some = finals[start : start + size]
        captions = [f"{start + n}  {final.title}" for n, final in enumerate(some)]
        _drawn(some, captions, BLIND_COLUMNS, BLIND_TILE).save(out / f"sheet_{start:03d}.jpg", quality=92)
    with (out / "answers.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("number", "publish"), *((n, "") for n in range(len(finals)))])


@app.command()
def join(out: Path, labels: Path, runs: list[Path], seed: Annotated[int, typer.Option()] = SEED) -> None:
    """Add product, scene and side to the answers."""
    finals = shuffled(_pairs(runs), seed)
    with (out / "answers.csv").open(encoding="utf-8", newline="") as file:
        answers = {int(row["number"]): row["publish"] for row in csv.DictReader(file)}
    if missing := [n for n in range(len(finals)) if answers.get(n) not in ("yes", "no")]:
        raise UsageError(f"{out / 'answers.csv'}: no yes or no for number {missing[0]}")
    with labels.open("w", encoding="utf-8", newline="") as file:
        rows = [(n, final.sku, final.scene, final.side, answers[n]) for n, final in enumerate(finals)]
        csv.writer(file, lineterminator="\n").writerows([("number", "sku", "scene", "side", "publish"), *rows])


@app.command(name="rates")
def show_rates(labels: Path) -> None:
    """Print both rates."""
    for side, (value, (low, high), n) in rates(labels).items():
        print(f"{side}: {value:.2f} ({low:.2f} to {high:.2f}), n = {n}")


def _pairs(runs: Sequence[Path]) -> list[tuple[Path, Path]]:
    if len(runs) % 2:
        raise UsageError("name a new and an old folder, one pair after the other")
    return list(zip(runs[::2], runs[1::2], strict=True))


def _small(photo: Photo) -> Image.Image:
    """Return the photo reduced to a tile's side; behind a shop's alpha is white."""
    image = photo.image()
    if photo.alpha is not None:
        mask = Image.fromarray(np.rint(photo.alpha * 255).astype(np.uint8))
        image = Image.composite(image, Image.new("RGB", image.size, "white"), mask)
    return ImageOps.contain(image, (BLIND_TILE, BLIND_TILE), Image.Resampling.LANCZOS)


def _drawn(finals: Sequence[Final], captions: Sequence[str], columns: int, side: int) -> Image.Image:
    """Draw pairs of photo and image, `side` px each, with a caption above each pair."""
    lines = -(-len(finals) // columns)
    drawn = Image.new("RGB", (columns * (2 * side + 8), lines * (side + CAPTION + 6)), "white")
    for n, (final, caption) in enumerate(zip(finals, captions, strict=True)):
        x, y = n % columns * (2 * side + 8), n // columns * (side + CAPTION + 6)
        ImageDraw.Draw(drawn).text((x + 2, y + 2), caption[: side // 4], "black", ImageFont.load_default(12))
        with Image.open(final.image) as image:
            for place, picture in enumerate((final.photo, image.convert("RGB"))):
                tile = ImageOps.contain(picture, (side, side), Image.Resampling.LANCZOS)
                shift = (side - tile.width) // 2, (side - tile.height) // 2
                drawn.paste(tile, (x + place * side + shift[0], y + CAPTION + shift[1]))
    return drawn


if __name__ == "__main__":
    app()
