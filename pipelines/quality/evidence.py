"""Is it the product that goes on there, or a shadow, a stand, the scene? Evidence about each piece beyond the mask.

What the finders see beyond M falls into pieces. Each is weighed by what is known of it: who sees it, how its colours
lie between the product's and the scene's, whether an edge of the picture bounds it, whether an edge or none parts it
from M, how large, thick and long it is, and whether it lies below M's foot, where shadows, reflections and stands are.
A logistic model of these figures says how sure it is that the piece is product. Its weights are in `evidence.yaml`,
fitted on composites of known truth by `calibrate.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import yaml

WEIGHTS = Path(__file__).with_name("evidence.yaml")

TOLERANCE = 0.025
"""The dilation of M, as a share of sqrt(|M|): what a segmenter may be off at an edge."""

MIN_REACH = 1.6
"""A piece reaches at least this many tolerances out of M; thinner rims are a segmenter's unsure edge."""

MIN_SHARE = 0.002
"""Pieces smaller than this share of |M| are specks."""

SAME = 0.9
"""Two finders see the same piece where theirs overlap by this IoU."""

FIGURES = (
    "saliency", "salient share", "colour share", "log area", "contrast", "chroma contrast", "lighter", "weak edge",
    "edge", "edge at M", "unlike M beside it", "unlike M", "unlike the scene", "thickness", "reach", "texture",
    "at the border", "below the foot", "slender", "slender and salient", "salient and sharp",
)  # fmt: skip
"""What is known of a piece, in the order of `Piece.figures`."""


@dataclass(frozen=True, slots=True)
class Piece:
    """A connected piece beyond M: `mask` (H, W) bool, its area as `share` of |M|, and FIGURES as (N,) float64."""

    mask: np.ndarray
    share: float
    figures: np.ndarray


def tolerance_of(placed: np.ndarray) -> float:
    """How far, in px, a mask may be off at its edge."""
    return max(2.0, TOLERANCE * float(np.sqrt(placed.sum())))


def depth(mask: np.ndarray) -> np.ndarray:
    """How far inside a boolean mask each pixel is, in px, 0 outside."""
    return cv2.distanceTransform(mask.astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)


def connected_to(placed: np.ndarray, found: np.ndarray) -> np.ndarray:
    """Of `found`, and of M itself, what hangs together with M: (H, W) bool."""
    _, labels = cv2.connectedComponents((found | placed).astype(np.uint8), connectivity=4)
    return np.isin(labels, np.unique(labels[placed])) & (found | placed)


def pieces(image: np.ndarray, placed: np.ndarray, seen: Mapping[str, np.ndarray]) -> list[Piece]:
    """What "salient" and "colour" see beyond M, together and each alone.

    Args:
        image: (H, W, 3) uint8 RGB.
        placed: M, (H, W) bool.
        seen: how sure each finder is of product, (H, W), 0..1 or bool.
    """
    saliency, colour = seen["salient"].astype(np.float32), seen["colour"] > 0.5
    area, tolerance, away = float(placed.sum()), tolerance_of(placed), depth(~placed)
    anything = connected_to(placed, (saliency > 0.5) | colour)
    beyond = anything & (away > tolerance)
    look = _Look(image, placed, anything, away, tolerance, saliency, colour)
    found: list[np.ndarray] = []
    for where in (beyond, beyond & (saliency > 0.5), beyond & colour):
        count, labels, stats, _ = cv2.connectedComponentsWithStats(where.astype(np.uint8), connectivity=4)
        for number in range(1, count):
            if stats[number, cv2.CC_STAT_AREA] < max(10, MIN_SHARE * area):
                continue
            mask = labels == number
            if away[mask].max() >= MIN_REACH * tolerance and not any(_iou(mask, other) > SAME for other in found):
                found.append(mask)
    return [Piece(mask, float(mask.sum() / area), look.figures(mask)) for mask in found]


def _iou(a: np.ndarray, b: np.ndarray) -> float:
    return float((a & b).sum() / (a | b).sum())


class _Look:
    """One picture with its M, looked at piece by piece."""

    def __init__(
        self, image: np.ndarray, placed: np.ndarray, anything: np.ndarray, away: np.ndarray, tolerance: float,
        saliency: np.ndarray, colour: np.ndarray,
    ) -> None:  # fmt: skip
        self._placed, self._anything, self._away, self._tolerance = placed, anything, away, tolerance
        self._saliency, self._colour = saliency, colour
        self._size = float(np.sqrt(placed.sum()))
        self._foot = int(np.flatnonzero(placed.any(axis=1))[-1])
        self._lab = cv2.GaussianBlur(cv2.cvtColor(image, cv2.COLOR_RGB2LAB).astype(np.float32), (0, 0), 0.7)
        across, down = (cv2.Sobel(self._lab, cv2.CV_32F, *axes, scale=0.125) for axes in ((1, 0), (0, 1)))
        self._edges = np.sqrt((across**2 + down**2).sum(axis=2))
        own = self._lab[placed]
        self._own = own[:: max(1, len(own) // 200)]

    def figures(self, mask: np.ndarray) -> np.ndarray:
        """FIGURES of a piece."""
        lab, placed, outside = self._lab, self._placed, depth(~mask)
        around = self._around(outside)
        colours, scene = lab[mask], lab[around]
        middle, behind = np.median(colours, axis=0), np.median(scene, axis=0)
        beside = placed & (outside < 3 * self._tolerance + 3)
        rim = (outside > 0) & (outside < 2) & (self._away > self._tolerance)
        seam = (self._away > 0) & (self._away <= 2) & (outside <= self._tolerance + 2)
        weak, usual = np.percentile(self._edges[rim], [30, 50]) if rim.any() else (0.0, 0.0)
        few = colours[:: max(1, len(colours) // 60)]
        rows, columns = np.nonzero(mask)
        height, width = mask.shape
        share, thickness, reach = (self._saliency[mask] > 0.5).mean(), depth(mask).max(), self._away[mask].max()
        slender = np.log((reach / self._size + 0.02) / (thickness / self._size + 0.01))
        border = rows.min() == 0 or columns.min() == 0 or rows.max() == height - 1 or columns.max() == width - 1
        return np.array(
            [
                self._saliency[mask].mean(),
                share,
                self._colour[mask].mean(),
                np.log(mask.sum() / self._size**2),
                np.log1p(np.linalg.norm(colours - behind, axis=1).mean()),
                np.log1p(np.linalg.norm(middle[1:] - behind[1:])),
                (middle[0] - behind[0]) / 50,
                np.log1p(weak),
                np.log1p(usual),
                np.log1p(np.median(self._edges[seam])) if seam.any() else 0.0,
                np.log1p(np.linalg.norm(middle - np.median(lab[beside if beside.any() else placed], axis=0))),
                np.log1p(_nearest(few, self._own)),
                np.log1p(_nearest(few, scene[:: max(1, len(scene) // 200)])),
                thickness / self._size,
                reach / self._size,
                colours.std(axis=0).mean() / 20,
                float(border),
                (rows > self._foot).mean(),
                slender,
                slender * share,
                share * np.log1p(weak),
            ],
            np.float64,
        )

    def _around(self, outside: np.ndarray) -> np.ndarray:
        """The scene around a piece: near it, but neither M nor what else was seen."""
        for where in (
            (outside > 2.5) & (outside < 6) & ~self._anything,
            (outside > 2.5) & (outside < 9) & ~self._placed,
            ~self._placed,
        ):
            if where.sum() >= 5:
                return where
        return outside > 0


def _nearest(colours: np.ndarray, others: np.ndarray) -> float:
    """Mean distance of colours (N, 3) to the nearest of others (M, 3)."""
    return float(np.linalg.norm(colours[:, None] - others[None], axis=2).min(axis=1).mean())


@dataclass(frozen=True, slots=True)
class Evidence:
    """A logistic model of FIGURES: their `mean` and `scale` (N,), their `weights` (N,) and a `bias`."""

    mean: np.ndarray
    scale: np.ndarray
    weights: np.ndarray
    bias: float

    @classmethod
    def read(cls, file: Path = WEIGHTS) -> Evidence:
        """Read `evidence.yaml`. Raises ValueError where it is of other figures than these."""
        document = yaml.safe_load(file.read_text(encoding="utf-8"))
        if tuple(document["figures"]) != FIGURES:
            raise ValueError(f"{file}: its figures are not those of this version; fit it again")
        mean, scale, weights = np.array([list(each) for each in document["figures"].values()], np.float64).T
        return cls(mean, scale, weights, float(document["bias"]))

    @classmethod
    def fit(cls, figures: np.ndarray, product: np.ndarray, ridge: float = 3.0) -> Evidence:
        """Fit to pieces (M, N) of which `product` (M,) bool says what they are: Newton's method, L2 penalty `ridge`."""
        mean, scale = figures.mean(axis=0), figures.std(axis=0) + 1e-6
        x = np.column_stack([(figures - mean) / scale, np.ones(len(figures))])
        penalty = np.diag([ridge] * (x.shape[1] - 1) + [1e-6])
        w = np.zeros(x.shape[1])
        for _ in range(25):
            p = 1 / (1 + np.exp(-np.clip(x @ w, -30, 30)))
            hessian = (x * (p * (1 - p))[:, None]).T @ x + penalty
            w = w - np.linalg.solve(hessian, x.T @ (p - product) + penalty @ w)
        return cls(mean, scale, w[:-1], float(w[-1]))

    def write(self, comment: str, file: Path = WEIGHTS) -> None:
        """Write `evidence.yaml`: a line a figure (mean, scale, weight), the bias, and where they come from."""
        lines = [
            f"  {name}: [{mean:.4f}, {scale:.4f}, {weight:.4f}]"
            for name, mean, scale, weight in zip(FIGURES, self.mean, self.scale, self.weights, strict=True)
        ]
        text = [f"# {comment}", "# figure: [mean, scale, weight]", "figures:", *lines, f"bias: {self.bias:.4f}", ""]
        file.write_text("\n".join(text), encoding="utf-8")

    def sure(self, found: Sequence[Piece]) -> np.ndarray:
        """How sure it is, 0..1, that each piece is product, (M,)."""
        if not found:
            return np.zeros(0)
        x = (np.stack([piece.figures for piece in found]) - self.mean) / self.scale
        known: np.ndarray = 1 / (1 + np.exp(-np.clip(x @ self.weights + self.bias, -30, 30)))
        return known

    def __call__(self, image: np.ndarray, placed: np.ndarray, seen: Mapping[str, np.ndarray]) -> np.ndarray:
        """See `overcompletion.Judge`: each piece's sureness, the larger where pieces overlap."""
        sure = np.zeros(placed.shape)
        found = pieces(image, placed, seen)
        for piece, known in zip(found, self.sure(found), strict=True):
            np.maximum(sure, known * piece.mask, out=sure)
        return sure
