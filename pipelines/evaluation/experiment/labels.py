"""Human labels of the experiment's pictures, and the detector's agreement with them.

    python -m pipelines.evaluation.experiment.labels build/experiment      draws the sheets to label

200 random pictures of the claim's cells are shown in random order next to their products, without their cells.
`labels.csv` has the answers: did the scene grow the product? A label belongs to one picture, not to a cell: pictures of
other weights have other keys, and no label.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
import typer
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from pipelines.evaluation.experiment.cells import CLAIM, PAIRS
from pipelines.evaluation.statistics import Figure, auroc, by_product

if TYPE_CHECKING:
    from pipelines.evaluation.experiment.making import Painted, Result

LABELS = Path(__file__).with_name("labels.csv")
LABELLED = 200
COLUMNS, ROWS = 4, 5
"""Pictures on a sheet."""


@dataclass(frozen=True, slots=True)
class Label:
    """Whether a person saw that the scene has `grown` the product. `key` is the digest of the picture's inputs."""

    cell: str
    pair: int
    key: str
    grown: bool

    @property
    def picture(self) -> str:
        """The name of the picture's file, without its ending."""
        return f"{self.pair:04d}-{self.key}"


@dataclass(frozen=True, slots=True)
class Agreement:
    """The detector compared with the labels of `n` pictures, `grown` of which are labelled as grown.

    A figure is None if there are no pictures to compute it from.
    """

    n: int
    products: int
    grown: int
    precision: Figure | None
    recall: Figure | None
    auroc: Figure | None


def read_labels(path: Path = LABELS) -> list[Label]:
    """Read `labels.csv`; returns an empty list if the file is missing."""
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return [
            Label(row["cell"], int(row["pair"]), row["key"], {"yes": True, "no": False}[row["grown"]])
            for row in csv.DictReader(file)
        ]


def agreement(labels: Sequence[Label], results: Mapping[str, Sequence[Result]], tau: float) -> Agreement | None:
    """Compare labels with E+ of the same pictures; returns None if no labelled picture is among the results."""
    pictures = {result.picture.stem: result for made in results.values() for result in made}
    pairs = [(label, pictures[label.picture]) for label in labels if label.picture in pictures]
    if not pairs:
        return None
    products = [result.pair.subject.name for _, result in pairs]
    grown = np.array([label.grown for label, _ in pairs])
    e_plus = np.array([result.scores.e_plus for _, result in pairs])
    above = e_plus > tau

    def share(of: NDArray[np.bool_], among: NDArray[np.bool_]) -> Figure | None:
        return (
            by_product(products, lambda counts: _ratio((counts * (of & among)).sum(), (counts * among).sum()))
            if among.any()
            else None
        )

    def area(counts: NDArray[np.int64]) -> float:
        rows = np.repeat(np.arange(len(counts)), counts)
        whole, more = e_plus[rows][~grown[rows]], e_plus[rows][grown[rows]]
        return auroc(whole, more) if len(whole) and len(more) else float("nan")

    return Agreement(
        n=len(pairs),
        products=len(set(products)),
        grown=int(grown.sum()),
        precision=share(grown, above),
        recall=share(above, grown),
        auroc=by_product(products, area) if 0 < grown.sum() < len(grown) else None,
    )


def _ratio(part: float, whole: float) -> float:
    return float(part / whole) if whole else float("nan")


def draw_sample(
    painted: Mapping[str, Sequence[Painted]], count: int = LABELLED, seed: int = 7
) -> list[tuple[str, Painted]]:
    """Draw (cell, picture) at random, in random order: equally many of each cell, and no pair twice if possible."""
    rng = np.random.default_rng(seed)
    cells = sorted(painted)
    order = rng.permutation(min(len(made) for made in painted.values()))
    chosen = [(cells[n % len(cells)], int(order[n % len(order)])) for n in range(count)]
    return [(cell, painted[cell][number]) for cell, number in (chosen[n] for n in rng.permutation(count))]


def draw_sheets(chosen: Sequence[tuple[str, Painted]], out: Path) -> list[Path]:
    """Draw the pictures on numbered sheets, each next to its product on grey; returns the sheets' paths."""
    out.mkdir(parents=True, exist_ok=True)
    sheets = []
    for start in range(0, len(chosen), COLUMNS * ROWS):
        some = chosen[start : start + COLUMNS * ROWS]
        side = some[0][1].pair.side
        sheet = Image.new("RGB", (COLUMNS * (2 * side + 8), ROWS * (side + 24)), "white")
        for n, (_, one) in enumerate(some):
            x, y = n % COLUMNS * (2 * side + 8), n // COLUMNS * (side + 24)
            alone = one.pair.product.over(np.full((side, side, 3), 128, np.uint8))
            sheet.paste(Image.fromarray(alone), (x, y + 20))
            sheet.paste(Image.fromarray(one.composite()), (x + side, y + 20))
            ImageDraw.Draw(sheet).text((x + 4, y + 4), f"{start + n}", fill="black")
        sheets.append(out / f"sheet_{start:03d}.png")
        sheet.save(sheets[-1])
    return sheets


def main(
    out: Annotated[Path, typer.Argument(help="Where `packshot experiment overcompletion` keeps its pictures.")],
    pairs: Annotated[int, typer.Option(help="Draw from so many pairs of each of the claim's cells.")] = PAIRS["claim"],
) -> None:
    """Draw the sheets to label, and `sheets/labels.csv` to fill in: yes or no under "grown"."""
    from pipelines.evaluation.experiment.making import painted
    from pipelines.evaluation.experiment.painting import Painter
    from pipelines.evaluation.experiment.pairs import load_pairs, load_subjects
    from pipelines.models.profile import load_profile

    profile = load_profile("mini")
    listed, painter = load_pairs(load_subjects(Path("../shared")), pairs, profile.native_size), Painter(profile)
    chosen = draw_sample({cell.name: list(painted(cell, listed, painter, out)) for cell in CLAIM})
    for sheet in draw_sheets(chosen, out / "sheets"):
        typer.echo(sheet)
    with (out / "sheets" / "labels.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["cell", "pair", "key", "grown"])
        writer.writerows([cell, one.pair.number, one.picture.stem.split("-")[1], ""] for cell, one in chosen)


if __name__ == "__main__":
    typer.run(main)
