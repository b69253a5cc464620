"""Set tau: measure E+ where nothing grew and where a known part did, on real products over real scenes.

    python -m pipelines.quality.calibrate ../shared/catalog        print n and the figures, a line a composite

The catalogue names exact alpha masks (`ground_truth_alpha`); its folder `scenes` has backgrounds. Each product is laid
over a scene and measured with its whole mask, and again with a part left out that stays in the picture. tau lies
between the two and is reviewed by a person: it is the default of `pipelines.scenes.Checks.overcompletion`, and
`thresholds.yaml` says which run it comes from.

How often such a tau is wrong is told by products that had no say in it: each is judged by the tau of the others.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from PIL import Image
from rich.progress import track

from pipelines.models import load_profile
from pipelines.placement import lay_product, place
from pipelines.quality.overcompletion import OvercompletionDetector

SIDE = 512
INSTANCE = 0.8
"""Alpha from which a pixel is product: these masks hold soft drop shadows below that."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One measurement. `share` is the part of the product that was left out of the mask, 0 = none."""

    product: str
    scene: str
    share: float
    e_plus: float
    uncertainty: float


@dataclass(frozen=True, slots=True)
class Rate:
    """`count` of `n`, with its 95 % Wilson score interval (Wilson 1927)."""

    count: int
    n: int

    def __str__(self) -> str:
        low, high = self.interval()
        return f"{self.count} of {self.n} ({low:.1%} to {high:.1%})"

    def interval(self, z: float = 1.96) -> tuple[float, float]:
        """Lower and upper end, 0..1."""
        share, weight = self.count / self.n, z**2 / self.n
        middle = (share + weight / 2) / (1 + weight)
        half = np.sqrt(weight * share * (1 - share) + weight**2 / 4) / (1 + weight)
        return max(0.0, float(middle - half)), min(1.0, float(middle + half))


@dataclass(frozen=True, slots=True)
class HeldOut:
    """How tau does on products that it was not tuned on. `taus`: the lowest and highest that was tuned.

    `false_alarms` are clean composites above it, `misses` those with a part left out that are not.
    """

    taus: tuple[float, float]
    false_alarms: Rate
    misses: Rate


def tune(clean: np.ndarray, grown: np.ndarray) -> float:
    """The tau, 0..1, that is wrong least often: the middle of the widest gap between two scores where that is so."""
    scores = np.unique(np.concatenate([[0.0, 1.0], clean, grown]))
    middles, widths = (scores[1:] + scores[:-1]) / 2, np.diff(scores)
    wrong = [(clean > tau).sum() + (grown <= tau).sum() for tau in middles]
    return float(middles[np.lexsort((-widths, wrong))[0]])


def leave_one_out(samples: Sequence[Sample]) -> HeldOut:
    """Judge every product by the tau that all others give."""
    taus, false_alarms, misses = [], [], []
    for product in sorted({sample.product for sample in samples}):
        others = [sample for sample in samples if sample.product != product]
        taus.append(tune(_scores(others, grown=False), _scores(others, grown=True)))
        own = [sample for sample in samples if sample.product == product]
        false_alarms += (_scores(own, grown=False) > taus[-1]).tolist()
        misses += (_scores(own, grown=True) <= taus[-1]).tolist()
    return HeldOut((min(taus), max(taus)), Rate(sum(false_alarms), len(false_alarms)), Rate(sum(misses), len(misses)))


def _scores(samples: Sequence[Sample], grown: bool) -> np.ndarray:
    return np.array([sample.e_plus for sample in samples if (sample.share > 0) == grown])


def measure(catalogue: Path, detector: OvercompletionDetector, share: float, limit: int | None = None) -> list[Sample]:
    """Measure every product that has an exact mask: with its whole mask, and with `share` of it left out."""
    with (catalogue / "catalog.csv").open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["ground_truth_alpha"]][:limit]
    scenes = sorted(path for path in (catalogue / "scenes").iterdir() if path.suffix in (".jpg", ".png", ".webp"))
    rng = np.random.default_rng(0)
    samples = []
    for row in track(rows, "measuring"):
        scene = scenes[int(rng.integers(len(scenes)))]
        photo = Image.open(catalogue / row["image_link"])
        alpha = Image.open(catalogue / row["ground_truth_alpha"])
        image, matte = composite(photo.convert("RGB"), alpha.convert("L"), Image.open(scene).convert("RGB"))
        for part in (0.0, share):
            found = detector.measure(image, leave_out(matte, part, float(rng.uniform(0, 2 * np.pi))))
            samples.append(Sample(row["id"], scene.name, part, found.e_plus, found.uncertainty))
    return samples


def composite(photo: Image.Image, alpha: Image.Image, scene: Image.Image) -> tuple[np.ndarray, np.ndarray]:
    """Lay a product over a scene: the picture (SIDE, SIDE, 3) and its matte (SIDE, SIDE), uint8."""
    solid = np.asarray(alpha.resize(photo.size), np.float32) / 255
    solid = np.clip((solid - INSTANCE) / (0.98 - INSTANCE), 0, 1) * 255
    cutout = photo.copy()
    cutout.putalpha(Image.fromarray(solid.astype(np.uint8)))
    where = place(np.asarray(cutout.getchannel("A")), (SIDE, SIDE), 0.6, "ground", 0.86)
    square = min(scene.size)
    left, top = (scene.width - square) // 2, (scene.height - square) // 2
    backdrop = scene.crop((left, top, left + square, top + square)).resize((SIDE, SIDE), Image.Resampling.LANCZOS)
    product = lay_product(photo, cutout, where)
    return product.over(np.asarray(backdrop)), product.matte


def leave_out(matte: np.ndarray, share: float, angle: float) -> np.ndarray:
    """Cut `share` (0..1) of the product's area off its matte, along a line at `angle`."""
    rows, columns = np.nonzero(matte > 127)
    y, x = np.mgrid[: matte.shape[0], : matte.shape[1]]
    across = x * np.cos(angle) + y * np.sin(angle)
    line = np.quantile(columns * np.cos(angle) + rows * np.sin(angle), 1 - share)
    return np.where(across > line, 0, matte) if share else matte


def main(
    catalogue: Annotated[Path, typer.Argument(help="folder with catalog.csv, its masks and scenes")],
    profile: str = "mini",
    share: Annotated[float, typer.Option(help="part of the product left out of the mask")] = 0.08,
    limit: Annotated[int | None, typer.Option(help="how many products")] = None,
    thorough: Annotated[bool, typer.Option(help="ask HQ-SAM too, as `inspect` does")] = True,
) -> None:
    """Print E+ of every composite, its distribution clean and with a part left out, and how a tau does held out."""
    detector = OvercompletionDetector.from_profile(load_profile(profile), thorough=thorough)
    samples = measure(catalogue, detector, share, limit)
    for sample in samples:
        print(f"{sample.product} {sample.scene} {sample.share:.2f} {sample.e_plus:.4f} {sample.uncertainty:.4f}")
    for part in (0.0, share):
        scores = np.array([sample.e_plus for sample in samples if sample.share == part])
        low, median, high = np.quantile(scores, [0.05, 0.5, 0.95])
        print(
            f"left out {part:.0%}: n {len(scores)}, min {scores.min():.4f}, 5 % {low:.4f}, median {median:.4f}, "
            f"95 % {high:.4f}, max {scores.max():.4f}"
        )
    if limit == 1:
        return  # there is no other product to be judged by
    held_out = leave_one_out(samples)
    print(f"tau of the other products, {held_out.taus[0]:.4f} to {held_out.taus[1]:.4f}:")
    print(f"false alarms {held_out.false_alarms}, misses {held_out.misses}")


if __name__ == "__main__":
    typer.run(main)
