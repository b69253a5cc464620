"""Openings of a product on plain paper: the paper that is seen through a ring, a bangle, a chain or a frame.

The salient-object net fills them. Their content is the paper's, and a sharp edge surrounds them. A white print has the
same edge; its level or its grain differs from the paper's. On overexposed paper both are pure white. It is paper there
if the cutout has opened a part of it already, or if the net doubts a part of it; else only a person can decide.

Between leaves, cords or meshes the paper is in a light shade, and its pieces are small. A person decides on these too.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import cv2
import numpy as np

from pipelines.vision.studio import Studio, beside_paper

OPEN_THINGS = frozenset(
    ["bangle", "bangles", "bracelet", "chain", "hoop", "hoops", "necklace", "ring", "rings", "wreath", "wreaths"]
)
"""Words of titles whose product has an opening."""

SMALLEST = 0.012
"""Side of the smallest opening, as a share of the picture's longer side."""

EDGE = 24.0
"""Levels from the paper that the product around an opening has at least."""

SHARP, PARTLY_SHARP = 0.9, 0.6
"""Share of an opening's rim with such an edge: all around, or interrupted by the product's own shadow."""

SURROUNDED, PARTLY_SURROUNDED = 0.97, 0.9
"""Share of an opening's rim that is product: closed, or with a gap to the outside, which leaves it in doubt. At the
product's edge, plain white is a white product on white paper."""

SAME_LEVEL = 1.3
"""Largest mean difference between an opening and the paper, in levels. A white print on a shaded product has more."""

OVEREXPOSED = 253.0
"""Level from which paper and white print are the same."""

OPENED = 0.01
"""Share of a region of plain white that is not product, from which all of it is paper. Of 64 regions inside 19 products
of the training folder on pure white, prints have 0, and six openings 0.013 to 0.55."""

MOSTLY_OPENED = 0.15
"""The same share for a region below `LARGE`. A small print beside the outline loses less of itself to a soft edge."""

DOUBTED = 0.8
"""Saliency of a region's least salient twentieth below which it is paper: prints have 0.97 and more, nine openings
less than 0.8."""

LARGE = 0.01
"""Share of the product from which these two decide. A small print beside the outline is doubted too: two of a bottle's
have 0.57."""


SMALLEST_SHADED, LARGEST_SHADED = 0.006, 0.08
"""Side of a piece of shaded paper, as a share of the longer side. A larger one is a part of a white product."""

SHADE, TINT, UNEVEN = (0.93, 1.005), 3.7, 0.017
"""A piece of shaded paper: its mean share of the paper's light, its largest mean tint in levels, and the largest
standard deviation of its share. White parts of a product have a tint, or are rounded."""

SHADED_EDGE = 0.5
"""Share of its rim inside the product that is at least `EDGE` from the paper."""

STEP = 18.0
"""Levels within 3 px from which an edge divides two pieces."""


@dataclass(frozen=True, slots=True)
class Openings:
    """Paper inside a product.

    Attributes:
        certain: `(H, W)` bool: paper, to be removed from the mask.
        doubtful: `(H, W)` bool: paper or a white print, or shaded paper.
        shaded: `(H, W)` bool: the small pieces of shaded paper among it.
    """

    certain: np.ndarray
    doubtful: np.ndarray
    shaded: np.ndarray


def names_opening(title: str) -> bool:
    """Return whether a title names a product with an opening."""
    return not OPEN_THINGS.isdisjoint(re.findall(r"[a-z]+", title.lower()))


def find_openings(
    image: np.ndarray, studio: Studio, product: np.ndarray, saliency: np.ndarray, title: str = ""
) -> Openings:
    """Find pieces of paper that the product surrounds.

    Args:
        image: `(H, W, 3)` uint8 RGB.
        studio: Its background.
        product: `(H, W)` bool.
        saliency: `(H, W)` float, 0..1, of the salient-object net.
        title: The product's; it decides on overexposed paper.
    """
    side = max(image.shape[:2])
    difference = image.astype(np.float32) - studio.colour
    away = np.abs(cv2.GaussianBlur(difference, (0, 0), 0.8)).max(axis=2)
    like_paper = away < max(3.0, 2.5 * studio.spread)
    plain = like_paper & product
    reach = max(2, round(0.004 * side))
    opened = _opened_regions(like_paper, product, reach)
    certain, doubtful = np.zeros_like(product), np.zeros_like(product)
    paper = studio.colour[~product].mean() if (~product).any() else 255.0
    count, labels, stats, _ = cv2.connectedComponentsWithStats(plain.astype(np.uint8), connectivity=4)
    for piece in range(1, count):
        if stats[piece, cv2.CC_STAT_AREA] < (SMALLEST * side) ** 2:
            continue
        inside = labels == piece
        near = cv2.dilate(inside.astype(np.uint8), _disc(reach))
        rim = (cv2.dilate(near, _disc(reach)) > 0) & (near == 0)
        surrounded = float(product[rim].mean()) if rim.any() else 0.0
        if opened[inside].any():
            certain |= near > 0
            continue
        if surrounded < PARTLY_SURROUNDED:
            continue
        sharp = float((away[rim] > EDGE).mean())
        content = cv2.erode(inside.astype(np.uint8), np.ones((3, 3), np.uint8)) > 0
        level = float(np.abs(difference[content].mean(axis=0)).max()) if content.any() else np.inf
        if level > SAME_LEVEL or sharp < (PARTLY_SHARP if surrounded >= SURROUNDED else SHARP):
            continue
        large = stats[piece, cv2.CC_STAT_AREA] >= LARGE * product.sum()
        doubted = large and float(np.quantile(saliency[inside], 0.05)) < DOUBTED
        known = surrounded >= SURROUNDED and (paper < OVEREXPOSED or doubted or names_opening(title))
        target = certain if sharp >= SHARP and known else doubtful
        target |= near > 0 if target is certain else inside
    # the product's own pixels at the rim stay: only what is not distinct from paper is removed
    certain &= away < EDGE
    shaded = shaded_pieces(image, studio, product & ~certain)
    return Openings(certain, doubtful | shaded, shaded)


def shaded_pieces(image: np.ndarray, studio: Studio, product: np.ndarray) -> np.ndarray:
    """Return small pieces of a product, divided by edges, that have the colour of lightly shaded paper, `(H, W)` bool.

    Args:
        image: `(H, W, 3)` uint8 RGB.
        studio: Its background.
        product: `(H, W)` bool.
    """
    side = max(image.shape[:2])
    pixels, tint, shade = beside_paper(image, studio)
    near = np.ones((3, 3), np.uint8)
    steps = (cv2.dilate(pixels, near) - cv2.erode(pixels, near)).max(axis=2)
    away = np.abs(pixels - studio.colour).max(axis=2)
    light = product & (shade > 0.85) & (shade < 1.02) & (tint < max(6.0, 4 * studio.spread)) & (steps < STEP)
    count, labels, stats, _ = cv2.connectedComponentsWithStats(light.astype(np.uint8), connectivity=4)
    found, reach = np.zeros_like(product), max(2, round(0.004 * side))
    for piece in range(1, count):
        left, top, width, height, area = stats[piece]
        if not (SMALLEST_SHADED * side) ** 2 <= area <= (LARGEST_SHADED * side) ** 2:
            continue
        margin = 3 * reach
        box = np.s_[max(0, top - margin) : top + height + margin, max(0, left - margin) : left + width + margin]
        inside = labels[box] == piece
        shades = shade[box][inside]
        if not SHADE[0] < shades.mean() < SHADE[1] or shades.std() > UNEVEN:
            continue
        if tint[box][inside].mean() > max(TINT, 2 * studio.spread):
            continue
        grown = cv2.dilate(inside.astype(np.uint8), _disc(reach))
        rim = (cv2.dilate(grown, _disc(reach)) > 0) & (grown == 0) & product[box]
        if rim.any() and float((away[box][rim] > EDGE).mean()) >= SHADED_EDGE:
            found[box] |= inside
    return found


def _opened_regions(like_paper: np.ndarray, product: np.ndarray, reach: int) -> np.ndarray:
    """Return the regions of plain white that a product surrounds and of which the cutout has opened a part.

    All masks are `(H, W)` bool.

    No edge divides such a region, so all of it is paper. A region that reaches the outside tells nothing: the product's
    own white may run into the paper beside it.
    """
    count, regions = cv2.connectedComponents(like_paper.astype(np.uint8), connectivity=4)
    sizes = np.maximum(1, np.bincount(regions.ravel(), minlength=count))
    shares = np.bincount(regions[~product], minlength=count) / sizes
    found, smallest = np.zeros_like(product), (SMALLEST * max(product.shape)) ** 2
    for region in range(1, count):
        large = sizes[region] >= LARGE * product.sum()
        if not (OPENED if large else MOSTLY_OPENED) <= shares[region] < 1 or sizes[region] < smallest:
            continue
        inside = (regions == region).astype(np.uint8)
        near = cv2.dilate(inside, _disc(reach))
        rim = (cv2.dilate(near, _disc(reach)) > 0) & (near == 0)
        if rim.any() and product[rim].mean() >= PARTLY_SURROUNDED:
            found |= inside > 0
    return found


def _disc(radius: int) -> np.ndarray:
    return cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1))
