"""Evidence about each piece beyond the mask: is it product, or a shadow, a stand, the scene?

Salient regions, regions in M's colours and regions of high local contrast form pieces beyond M. `FEATURES` describes
each piece: its finder, its colours relative to product and scene, its edges, its size and shape, its contact with M,
skin, shadow, reflection and position. Boosted trees (`trees.py`) map the features to a probability of product. Their
weights are `evidence.safetensors`. They are fitted to composites of known truth, to unchanged photos and to painted
pictures: a small model grows soft, off-colour parts, unlike a photographed product.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from pipelines.quality.detail import local_contrast
from pipelines.quality.detector import WEIGHTS
from pipelines.quality.trees import Trees
from pipelines.vision.people import find_skin

TOLERANCE = 0.025
"""Dilation of M, as a share of sqrt(|M|): the usual error of a segmenter at an edge."""

MIN_REACH = 1.6
"""A piece extends at least this many tolerances from M. Thinner ones are the segmenter's uncertain edge."""

MIN_SHARE = 0.002
"""Pieces smaller than this share of |M| are specks."""

SAME = 0.85
"""IoU from which two pieces count as the same."""

LEVELS = ((0.7, 1.0, 1.6), (1.0, 1.5, 2.2))
"""Thresholds of `detail.local_contrast` for thin and for wide parts. A piece that is merged with the scene at one level
can be separate at the next."""

FEATURES = (
    "source", "saliency", "salient share", "colour share", "thin detail", "wide detail", "log area", "contrast",
    "chroma contrast", "lighter", "weak edge", "edge", "edge at M", "unlike M beside it", "unlike M",
    "unlike the scene", "nearer to M", "thickness", "reach", "slender", "texture", "texture around", "at the border",
    "below the foot", "above the top", "aside", "touches", "contact", "skin", "dimmed", "dimmed evenly", "mirrored",
    "under the mirror", "thin detail around", "wide detail around", "sharper than M", "uneven width", "solidity",
    "straight", "skin beyond M", "salient beyond M", "busy scene", "M stands out", "M's saliency", "log M",
)  # fmt: skip
"""Names of a piece's features, in the column order of the committed weights. The last six describe the picture."""


@dataclass(frozen=True, slots=True)
class Piece:
    """A connected piece beyond M.

    Attributes:
        mask: (H, W) bool.
        share: Its area over |M|.
        features: Value of each of `FEATURES`, by name.
    """

    mask: np.ndarray
    share: float
    features: Mapping[str, float]


def tolerance_of(placed: np.ndarray) -> float:
    """Return the tolerance of a mask's edge, px."""
    return max(2.0, TOLERANCE * float(np.sqrt(placed.sum())))


def depth(mask: np.ndarray) -> np.ndarray:
    """Return each pixel's distance, px, to the outside of a boolean mask; 0 outside."""
    return cv2.distanceTransform(mask.astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)


def connected_to(placed: np.ndarray, found: np.ndarray) -> np.ndarray:
    """Return M and the parts of `found` that are connected to it: (H, W) bool."""
    _, labels = cv2.connectedComponents((found | placed).astype(np.uint8), connectivity=4)
    return np.isin(labels, np.unique(labels[placed])) & (found | placed)


def pieces(image: np.ndarray, placed: np.ndarray, seen: Mapping[str, np.ndarray]) -> list[Piece]:
    """Return the pieces beyond M, from "salient" and "colour", together and separately, and from local contrast.

    Args:
        image: (H, W, 3) uint8 RGB.
        placed: M, (H, W) bool.
        seen: Each finder's probability of product, (H, W), 0..1 or bool.
    """
    look = _Look(image, placed, seen["salient"].astype(np.float32), seen["colour"] > 0.5)
    found: list[tuple[np.ndarray, tuple[slice, slice], int]] = []
    for source, where in enumerate(look.sources()):
        count, labels, stats, _ = cv2.connectedComponentsWithStats(where.astype(np.uint8), connectivity=4)
        for number in range(1, count):
            left, top, width, height, size = stats[number]
            if size < max(10, MIN_SHARE * look.area):
                continue
            box = np.s_[top : top + height, left : left + width]
            mask = labels[box] == number
            if look.away[box][mask].max() < MIN_REACH * look.tolerance:
                continue
            if not any(_same(mask, box, other, its) for other, its, _ in found):
                found.append((mask, box, source))
    return [look.piece(mask, box, source) for mask, box, source in found]


def _same(a: np.ndarray, box: tuple[slice, slice], b: np.ndarray, other: tuple[slice, slice]) -> bool:
    """Return whether two masks in their boxes have an IoU above SAME."""
    few, many = sorted((int(a.sum()), int(b.sum())))
    if few < SAME * many:
        return False
    top, left = max(box[0].start, other[0].start), max(box[1].start, other[1].start)
    bottom, right = min(box[0].stop, other[0].stop), min(box[1].stop, other[1].stop)
    if bottom <= top or right <= left:
        return False
    own, its = (
        mask[top - at[0].start : bottom - at[0].start, left - at[1].start : right - at[1].start]
        for mask, at in ((a, box), (b, other))
    )
    both = int((own & its).sum())
    return both > SAME * (few + many - both)


class _Look:
    """Features of one picture and its M, shared by all pieces."""

    def __init__(self, image: np.ndarray, placed: np.ndarray, saliency: np.ndarray, colour: np.ndarray) -> None:
        self._image, self._placed, self._saliency, self._colour = image, placed, saliency, colour
        self.area, self.tolerance, self.away = float(placed.sum()), tolerance_of(placed), depth(~placed)
        self._size = float(np.sqrt(self.area))
        self._near = self.away <= self.tolerance
        self._detail = local_contrast(image, self._near)
        self._salient = saliency > 0.5
        self._anything = connected_to(placed, self._salient | colour)
        self._skin = find_skin(image)
        rows, columns = np.flatnonzero(placed.any(axis=1)), np.flatnonzero(placed.any(axis=0))
        self._top, self._foot = int(rows[0]), int(rows[-1])
        self._left, self._right = int(columns[0]), int(columns[-1])
        self._lab = cv2.GaussianBlur(cv2.cvtColor(image, cv2.COLOR_RGB2LAB).astype(np.float32), (0, 0), 0.7)
        across, down = (cv2.Sobel(self._lab, cv2.CV_32F, *axes, scale=0.125) for axes in ((1, 0), (0, 1)))
        self._edges = np.sqrt((across**2 + down**2).sum(axis=2))
        self._own = _few(self._lab[placed], 200)
        outline = (self.away > 0) & (self.away < 2)
        self._sharpness = float(np.median(self._edges[outline])) if outline.any() else 0.0
        beyond = ~self._near
        scene = beyond & ~self._anything
        nearest = _nearest(_few(self._own, 60), _few(self._lab[scene], 300)) if scene.any() else 0.0
        self._of_picture = {
            "skin beyond M": float((self._skin & beyond).sum() / self.area),
            "salient beyond M": float(np.log1p((self._salient & beyond).sum() / self.area)),
            "busy scene": float(np.log1p(self._edges[scene].mean())) if scene.any() else 0.0,
            "M stands out": float(np.log1p(nearest)),
            "M's saliency": float(saliency[placed].mean()),
            "log M": float(np.log(self.area / placed.size)),
        }

    def sources(self) -> Iterator[np.ndarray]:
        """Yield the regions that may hold pieces, (H, W) bool each."""
        beyond = self.away > self.tolerance
        yield self._anything & beyond
        yield self._anything & self._salient & beyond
        yield self._anything & self._colour & beyond
        for out, levels in zip(self._detail, LEVELS, strict=True):
            for level in levels:
                yield connected_to(self._placed, (out > level) | self._near) & beyond

    def piece(self, inside: np.ndarray, box: tuple[slice, slice], source: int) -> Piece:
        """Return the piece of a box, `inside` (h, w) bool, with its features; `source` is the index in `sources`."""
        mask = np.zeros(self._placed.shape, bool)
        mask[box] = inside
        features = {"source": float(source), **self._features(mask, box), **self._of_picture}
        return Piece(mask, float(inside.sum() / self.area), features)

    def _features(self, whole: np.ndarray, box: tuple[slice, slice]) -> dict[str, float]:
        """Return a piece's features without `source` and those of the picture; `whole` is its mask (H, W)."""
        (rows, columns), (height, width) = box, whole.shape
        margin = int(max(10, 3 * self.tolerance + 6))
        at = np.s_[
            max(0, rows.start - margin) : rows.stop + margin, max(0, columns.start - margin) : columns.stop + margin
        ]
        mask, lab, placed, edges, away = whole[at], self._lab[at], self._placed[at], self._edges[at], self.away[at]
        outside = depth(~mask)
        around = self._around(outside, placed, self._anything[at])
        colours, scene = lab[mask], lab[around]
        middle, behind = np.median(colours, axis=0), np.median(scene, axis=0)
        beside = placed & (outside < 3 * self.tolerance + 3)
        rim = (outside > 0) & (outside < 2) & (away > self.tolerance)
        seam = (away > 0) & (away <= 2) & (outside <= self.tolerance + 2)
        contact = mask & (away <= self.tolerance + 1.5)
        contacts = cv2.connectedComponents(cv2.dilate(contact.astype(np.uint8), np.ones((3, 3))))[0] - 1
        weak, usual = np.percentile(edges[rim], [30, 50]) if rim.any() else (0.0, 0.0)
        few, near_m = _few(colours, 60), np.median(lab[beside] if beside.any() else self._own, axis=0)
        unlike_m, unlike_scene = _nearest(few, self._own), _nearest(few, _few(scene, 200))
        thickness, reach = depth(np.pad(mask, 1)).max(), away[mask].max()
        border = rows.start == 0 or columns.start == 0 or rows.stop == height or columns.stop == width
        row, column = np.arange(rows.start, rows.stop), np.arange(columns.start, columns.stop)
        by_row, by_column = whole[box].sum(axis=1) / mask.sum(), whole[box].sum(axis=0) / mask.sum()
        # log ratio to the scene, by channel: a shadow is the scene times one factor
        dimmed = np.log(
            (np.median(self._image[at][mask], axis=0) + 8) / (np.median(self._image[at][around], axis=0) + 8)
        )
        thin, wide = self._detail
        return {
            "saliency": float(self._saliency[at][mask].mean()),
            "salient share": float(self._salient[at][mask].mean()),
            "colour share": float(self._colour[at][mask].mean()),
            "thin detail": float(np.log1p(thin[at][mask].mean())),
            "wide detail": float(np.log1p(wide[at][mask].mean())),
            "log area": float(np.log(mask.sum() / self.area)),
            "contrast": float(np.log1p(np.linalg.norm(colours - behind, axis=1).mean())),
            "chroma contrast": float(np.log1p(np.linalg.norm(middle[1:] - behind[1:]))),
            "lighter": float((middle[0] - behind[0]) / 50),
            "weak edge": float(np.log1p(weak)),
            "edge": float(np.log1p(usual)),
            "edge at M": float(np.log1p(np.median(edges[seam]))) if seam.any() else 0.0,
            "unlike M beside it": float(np.log1p(np.linalg.norm(middle - near_m))),
            "unlike M": float(np.log1p(unlike_m)),
            "unlike the scene": float(np.log1p(unlike_scene)),
            "nearer to M": float(np.log((unlike_scene + 3) / (unlike_m + 3))),
            "thickness": thickness / self._size,
            "reach": reach / self._size,
            "slender": float(np.log((reach / self._size + 0.02) / (thickness / self._size + 0.01))),
            "texture": float(colours.std(axis=0).mean() / 20),
            "texture around": float(scene.std(axis=0).mean() / 20),
            "at the border": float(border),
            "below the foot": float(by_row[row > self._foot].sum()),
            "above the top": float(by_row[row < self._top].sum()),
            "aside": float(by_column[(column < self._left) | (column > self._right)].sum()),
            "touches": float(contacts),
            "contact": float(np.log((contact.sum() / self._size + 0.01) / np.sqrt(mask.sum() / self.area))),
            "skin": float(self._skin[at][mask].mean()),
            "dimmed": float(dimmed.mean()),
            "dimmed evenly": float(dimmed.std()),
            **self._mirrored(whole),
            "thin detail around": float(np.log1p(thin[at][around].mean())),
            "wide detail around": float(np.log1p(wide[at][around].mean())),
            "sharper than M": float(np.log((usual + 1) / (self._sharpness + 1))),
            **_shape(np.pad(mask, 1)),
        }

    def _mirrored(self, mask: np.ndarray) -> dict[str, float]:
        """Compare a piece with M mirrored at its foot.

        "mirrored" is the correlation of lightness, -1..1. "under the mirror" is the share of the piece under the image.
        """
        rows, columns = np.nonzero(mask)
        source = 2 * self._foot + 1 - rows
        under = (rows > self._foot) & (source >= 0)
        under[under] = self._placed[source[under], columns[under]]
        if under.sum() < 12:
            return {"mirrored": 0.0, "under the mirror": 0.0}
        own = self._lab[rows[under], columns[under], 0]
        its = self._lab[source[under], columns[under], 0]
        spread = own.std() * its.std()
        like = ((own - own.mean()) * (its - its.mean())).mean() / spread if spread > 1 else 0.0
        return {"mirrored": float(like), "under the mirror": float(under.mean())}

    def _around(self, outside: np.ndarray, placed: np.ndarray, anything: np.ndarray) -> np.ndarray:
        """Return the scene around a piece, without M and without other findings if possible."""
        for where in (
            (outside > 2.5) & (outside < 6) & ~anything,
            (outside > 2.5) & (outside < 9) & ~placed,
            (outside > 0) & ~placed,
        ):
            if where.sum() >= 5:
                return where
        return outside > 0


def _shape(mask: np.ndarray) -> dict[str, float]:
    """Measure a piece's shape: variation of its width, its share of its convex hull, and its elongation."""
    inside = depth(mask)
    middle = (inside > 0) & (inside >= cv2.dilate(inside, np.ones((3, 3), np.uint8)))
    widths = inside[middle]
    points = np.argwhere(mask).astype(np.int32)
    hull = cv2.contourArea(cv2.convexHull(points)) + np.sqrt(len(points))
    spread = np.linalg.eigvalsh(np.cov(points.T.astype(np.float64)) + 0.1 * np.eye(2))
    return {
        "uneven width": float(widths.std() / widths.mean()),
        "solidity": float(len(points) / hull),
        "straight": float(np.log(spread[1] / spread[0])),
    }


def _few(colours: np.ndarray, count: int) -> np.ndarray:
    """Return about `count` of colours (N, 3), evenly spaced."""
    return colours[:: max(1, len(colours) // count)]


def _nearest(colours: np.ndarray, others: np.ndarray) -> float:
    """Return the mean distance of colours (N, 3) to the nearest of others (M, 3)."""
    return float(np.linalg.norm(colours[:, None] - others[None], axis=2).min(axis=1).mean())


@dataclass(frozen=True, slots=True)
class Evidence:
    """Judges pieces by their features."""

    trees: Trees

    @classmethod
    def read(cls, file: Path = WEIGHTS) -> Evidence:
        """Read `evidence.safetensors`. Raises IntegrityError if its features are not `FEATURES`."""
        return cls(Trees.read(file, FEATURES))

    @classmethod
    def fit(cls, features: Sequence[Mapping[str, float]], product: np.ndarray) -> Evidence:
        """Fit to the features of N pieces; `product` (N,) bool says which of them are product."""
        return cls(Trees.fit(_table(features), product))

    def write(self, comment: str, file: Path = WEIGHTS) -> None:
        """Write `evidence.safetensors` with a comment on its origin."""
        self.trees.write(file, FEATURES, comment)

    def sure(self, found: Sequence[Piece]) -> np.ndarray:
        """Return the probability, 0..1, that each piece is product, (N,)."""
        return self.trees(_table([piece.features for piece in found])) if found else np.zeros(0)

    def __call__(self, image: np.ndarray, placed: np.ndarray, seen: Mapping[str, np.ndarray]) -> np.ndarray:
        """Judge a picture; see `overcompletion.Judge`. Where pieces overlap, the larger probability counts."""
        sure = np.zeros(placed.shape)
        found = pieces(image, placed, seen)
        for piece, probability in zip(found, self.sure(found), strict=True):
            np.maximum(sure, probability * piece.mask, out=sure)
        return sure


def _table(features: Sequence[Mapping[str, float]]) -> np.ndarray:
    """Return features as columns in the order of `FEATURES`, (N, 45) float64."""
    return np.array([[one[name] for name in FEATURES] for one in features], np.float64)
