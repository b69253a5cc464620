"""Fit the check `product_photo` (`pipelines/quality/product_photo.py`).

    python -m pipelines.evaluation.fit_graphics ../shared/training      prints the module's weights

Clean pictures are photos of the training folder, and its products on paper and on white. Graphics are drawn. Only the
half of the products that `packshot measure checks` leaves out is used, and neither of the catalogues. Every source and
every kind of graphic has the same weight. The figures beside the weights are cross-validated by product.
"""

from __future__ import annotations

import csv
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from scipy.optimize import minimize

from pipelines.evaluation import planted
from pipelines.evaluation.checks import in_measured_half
from pipelines.quality.product_photo import LIMIT, graphic_statistics, terms
from pipelines.vision.photos import read_photo

PHOTOS, GRAPHICS = 300, 200
"""Photos a source at most, and drawn graphics a kind."""

ON_PAPER, ON_WHITE = 2, 2
"""Pictures of each cutout product."""

PRODUCTS = ("saleor", "solidus")
"""Sources of cutouts that shops sold; the others are icons."""

WEIGHT, RIDGE = 1000.0, 2.0
"""Total weight of the clean pictures and of the graphics, and of the squared coefficients of standardised terms."""

FOLDS = 5


@dataclass(frozen=True, slots=True)
class _Example:
    """`kind` is a photo's source, or the kind of a graphic."""

    values: np.ndarray
    graphic: bool
    kind: str
    product: str


@dataclass(frozen=True, slots=True)
class Logistic:
    """A bias, and one weight for each term of `product_photo.terms`."""

    bias: float
    weights: np.ndarray

    def __call__(self, values: np.ndarray) -> np.ndarray:
        """Map statistics (N, S) to probabilities of a graphic, (N,)."""
        probabilities: np.ndarray = 1 / (1 + np.exp(-np.clip(self.bias + terms(values) @ self.weights, -50, 50)))
        return probabilities


def fit(values: np.ndarray, graphic: np.ndarray, importance: np.ndarray) -> Logistic:
    """Fit by maximum likelihood with a ridge penalty on standardised terms.

    Args:
        values: (N, S) statistics.
        graphic: (N,) bool.
        importance: (N,) weight of each picture.
    """
    raw = terms(values)
    centre, spread = raw.mean(axis=0), raw.std(axis=0) + 1e-9
    standard = (raw - centre) / spread

    def loss(weights: np.ndarray) -> tuple[float, np.ndarray]:
        odds = standard @ weights[1:] + weights[0]
        error = importance * (1 / (1 + np.exp(-np.clip(odds, -50, 50))) - graphic)
        penalty = RIDGE * float((weights[1:] ** 2).sum()) / 2
        value = float((importance * (np.logaddexp(0, odds) - graphic * odds)).sum()) + penalty
        return value, np.concatenate([[error.sum()], standard.T @ error + RIDGE * weights[1:]])

    found = minimize(loss, np.zeros(raw.shape[1] + 1), jac=True, method="L-BFGS-B", options={"maxiter": 5000}).x
    weights = found[1:] / spread
    return Logistic(float(found[0] - weights @ centre), weights)


def examples(training: Path, seed: int = 5) -> list[_Example]:
    """Return the statistics of clean pictures of the training folder, and of drawn graphics."""
    rng = np.random.default_rng(seed)
    with (training / "index.csv").open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if not in_measured_half(row["name"])]
    found = []

    def add(picture: np.ndarray, graphic: bool, kind: str, product: str) -> None:
        found.append(_Example(graphic_statistics(picture)[0], graphic, kind, product))

    photos: dict[str, list[dict[str, str]]] = {}
    for row in rows:
        if row["file"].startswith("photos/"):
            photos.setdefault(row["source"], []).append(row)
    for source, some in photos.items():
        for n in rng.permutation(len(some))[:PHOTOS]:
            add(read_photo((training / some[n]["file"]).read_bytes()).rgb, False, source, some[n]["name"])
    for row in rows:
        if row["file"].startswith("cutouts/") and row["source"] in PRODUCTS:
            cutout = planted.read_cutout(training / row["file"])
            for n in range(ON_PAPER + ON_WHITE):
                picture = planted.alone(cutout, rng) if n < ON_PAPER else planted.on_white(cutout, rng)
                add(picture, False, f"{row['source']} on {'paper' if n < ON_PAPER else 'white'}", row["name"])
    for kind in planted.GRAPHICS:
        for n in range(GRAPHICS):
            add(planted.graphic(kind, rng), True, kind, f"{kind} {n}")
    return found


def main(
    training: Annotated[Path, typer.Argument(help="The folder with `index.csv` and its files.")],
) -> None:
    """Fit, cross-validate, print."""
    found = examples(training)
    values, graphic = np.array([one.values for one in found]), np.array([one.graphic for one in found])
    kinds = np.array([one.kind for one in found])
    fold = np.array([hashlib.sha256(f"fold {one.product}".encode()).digest()[0] % FOLDS for one in found])
    held = np.zeros(len(found), bool)
    for n in range(FOLDS):
        inside = fold != n
        model = fit(values[inside], graphic[inside], _importance(kinds[inside], graphic[inside]))
        held[~inside] = model(values[~inside]) > LIMIT
    print(f"cross-validated at {LIMIT}: recall {held[graphic].mean():.3f} of {graphic.sum()} graphics, ", end="")
    print(f"held {held[~graphic].mean():.4f} of {(~graphic).sum()} clean pictures")
    for kind in sorted(set(kinds)):
        print(f"  {kind:20} held {held[kinds == kind].mean():.3f} of {(kinds == kind).sum()}")
    model = fit(values, graphic, _importance(kinds, graphic))
    size = values.shape[1]
    print(f"BIAS = {model.bias:.3f}")
    print("LINEAR = (" + ", ".join(f"{v:.4g}" for v in model.weights[:size]) + ")")
    print("SQUARED = (" + ", ".join(f"{v:.4g}" for v in model.weights[size : 2 * size]) + ")")
    print(f"FLAT_AND_THIN = {model.weights[-1]:.4g}")


def _importance(kinds: np.ndarray, graphic: np.ndarray) -> np.ndarray:
    """Return weights (N,) with which every kind counts the same, and clean pictures as much as graphics."""
    weights = np.zeros(len(kinds))
    for value in (True, False):
        names = set(kinds[graphic == value])
        for kind in names:
            weights[kinds == kind] = WEIGHT / len(names) / (kinds == kind).sum()
    return weights


if __name__ == "__main__":
    typer.run(main)
