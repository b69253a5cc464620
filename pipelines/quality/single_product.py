"""Are there several separate things in the cutout where the title names one?"""

from __future__ import annotations

import re

import cv2
import numpy as np

from pipelines.quality.fidelity import Measure

LIMIT = 1.0
"""Number of separate large things above which a photo is held."""

LARGE = 0.2
"""Share of the largest piece's area from which a piece is a thing of its own."""

BRIDGED = 0.02
"""Gaps of this share of the picture's longer side divide no product: a strap or a wire that the mask lacks."""

ALIKE = 0.6
"""Two pieces are a pair if the smaller one's area has this share of the larger one's and their colours overlap so."""

SEVERAL = frozenset(
    [
        *("and", "with", "of", "each", "assorted", "assortment", "mix", "mixed", "collection", "system"),
        *("bundle", "combo", "kit", "lot", "multipack", "pack", "packs", "pcs", "piece", "pieces", "set", "sets"),
        *("duo", "trio", "pair", "pairs", "bikini", "suit", "tracksuit", "twinset"),
        *("two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "twelve", "dozen"),
    ]
)
"""Words of titles that announce several things."""


def names_several(title: str) -> bool:
    """Return whether a title announces several things: a word for it, a count such as `6x` or `2-pack`, `&` or `+`."""
    words = re.findall(r"[a-z]+", title.lower())
    return not SEVERAL.isdisjoint(words) or bool(
        re.search(r"[&+]|\b\d+\s*(x|pcs|pc|pk|er)\b|\bx\s*\d+\b", title.lower())
    )


def measure_things(image: np.ndarray, product: np.ndarray, title: str) -> Measure:
    """Count separate things in a mask; 1 if the title announces several, if two are alike (shoes, earrings), or if all
    have the same colours and the title is a plural (beans).

    Args:
        image: `(H, W, 3)` uint8 RGB.
        product: `(H, W)` bool.
        title: The product's.
    """
    gap = max(3, round(BRIDGED * max(product.shape)) | 1)
    bridged = cv2.morphologyEx(product.astype(np.uint8), cv2.MORPH_CLOSE, np.ones((gap, gap), np.uint8))
    _, labels = cv2.connectedComponents(bridged)
    areas = np.bincount(labels[product], minlength=2)
    large = np.flatnonzero(areas >= LARGE * max(1, areas.max()))
    pieces = [product & (labels == piece) for piece in large]
    where = np.isin(labels, large) & product
    count = len(pieces)
    pair = count == 2 and _alike(image, pieces[0], pieces[1])
    one_kind = _is_plural(title) and all(_same_colours(image, pieces[0], piece) for piece in pieces[1:])
    if names_several(title) or pair or one_kind:
        count = 1
    reason = f"{count} separate things are in the photo, and the title names one"
    return Measure(float(count), where.astype(np.float32), reason if count > LIMIT else "")


def _alike(image: np.ndarray, one: np.ndarray, other: np.ndarray) -> bool:
    small, large = sorted((one.sum(), other.sum()))
    return bool(small >= ALIKE * large) and _same_colours(image, one, other)


def _same_colours(image: np.ndarray, one: np.ndarray, other: np.ndarray) -> bool:
    return bool(np.minimum(_colours(image[one]), _colours(image[other])).sum() >= ALIKE)


def _is_plural(title: str) -> bool:
    """Return whether the last word of a title ends as a plural does."""
    words = re.findall(r"[a-z]+", title.lower())
    return bool(words) and re.search(r"[^su]s$", words[-1]) is not None


def _colours(pixels: np.ndarray) -> np.ndarray:
    """Return the shares of 4 x 4 x 4 colours in pixels `(N, 3)` uint8."""
    coarse = (pixels >> 6).astype(np.int64)
    shares: np.ndarray = np.bincount(coarse @ np.array([16, 4, 1]), minlength=64) / max(1, len(pixels))
    return shares
