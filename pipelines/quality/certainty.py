"""Is a cutout certain? Hold it if HQ-SAM is unsure of the outline, or if what is around the product is varied. Hold a
cutout by colour if HQ-SAM draws another outline.

In front of plain paper, a wrong cutout is rare. In a shop, a kitchen or on a person it is frequent: a hand covers a
part, a neighbour touches the product, a leg has the floor's colour. Both statistics come from what the cutout has
computed, so the check costs a few milliseconds. A logistic regression weighs them. It was fitted to photos whose
cutouts a person judged, and to composites with a known truth, all of the half of the products that
`packshot measure checks` leaves out.

On plain paper the cutout is made by colour. A hard shadow, a joint of the floor or a crease passes for product there,
and a light part for paper. HQ-SAM segments the same product once more. It costs a second, so it is asked only where
colour can err: a part of the cutout has the paper's colour, or the salient-object net sees another outline. A second
prompt has points only on what no shadow can be. Where its answer leaves out more, only a person can tell shadow from
product. A thin line that continues beside the cutout needs no model: it is a joint of the floor, or a cord's end.
"""

from __future__ import annotations

import cv2
import numpy as np

from pipelines.quality.fidelity import Measure
from pipelines.vision.segmenters import stability
from pipelines.vision.studio import Studio, like_paper, lines_beyond, paper_share, plain_paper, shaded_paper, wide_parts

LIMIT = 0.15
"""Probability of a wrong cutout above which it is held."""

SIDE = 320
"""Longer side of the picture that is measured, px."""

PAPER_SIDE = 480
"""Longer side of the picture in which the paper's colour is looked for, px."""

MARGIN = 6
"""Distance from the product at which its surroundings begin, px at `SIDE`."""

BIAS, UNSTABLE, VARIED = 1.148, 2.158, 2.473
"""Weights of the logarithms of `1 - stability` and of the spread of colours around the product."""

WORN = 0.3
"""Least probability for a garment that was cut off a person: of ten in the fitted half, three were wrong, and neither
statistic tells which. Hair lies on a collar, an arm covers a hem, and shoes stay below trousers."""

UNSURE = (0.27, 0.73)
"""Values of a soft mask between which HQ-SAM is unsure, as in `stability`."""

PAPER, ALIKE = 0.02, 0.96
"""Share of a cutout by colour with the paper's colour above which HQ-SAM is asked, and IoU with the salient-object net
below which it is. Of 95 planted pictures of the fitted half, these ask for all 29 wrong ones and 45 % of the others."""

MIDDLE, STEEP = 0.02, 0.0046
"""Share of a cutout by colour on which both outlines differ at which it is wrong as often as right, and how fast that
changes. Of 33 planted pictures without the paper that HQ-SAM leaves out, 27 right ones have up to 0.002, and four wrong
ones 0.033 to 0.127. Two with an IoU of 0.941 have 0. The limit is at 0.012."""


SEEN = 0.016
"""Width of a difference between both outlines, as a share of the longer side, from which it is seen in the image. Of a
piece that one of HQ-SAM's answers leaves out it counts where it is paper in a shadow, since openings have checks of
their own; of one that both answers add, where it has another colour than paper."""

CONTINUED = 0.5
"""Probability for a cutout that a line of the floor touches."""


def measure_certainty(image: np.ndarray, mask: np.ndarray, off_person: bool = False) -> Measure:
    """Return the probability that a cutout is wrong; `where` marks where HQ-SAM is unsure of the outline.

    Args:
        image: `(H, W, 3)` uint8 RGB.
        mask: `(H, W)` float, 0..1, HQ-SAM's soft mask; not empty.
        off_person: Whether it is a garment that was cut off the person who wears it.
    """
    stable, spread = stability(mask), surrounding_spread(image, mask)
    weighed = BIAS + UNSTABLE * np.log(np.clip(1 - stable, 1e-3, 1)) + VARIED * np.log(spread + 0.01)
    score = float(1 / (1 + np.exp(-weighed)))
    unsure = ((mask > UNSURE[0]) & (mask < UNSURE[1])).astype(np.uint8)
    size = max(3, round(0.01 * max(mask.shape)) | 1)
    where = cv2.dilate(unsure, np.ones((size, size), np.uint8)).astype(np.float32)
    reason = (
        "the cutout may have lost a part or taken in its surroundings: "
        f"these are varied (spread {spread:.0f} levels), and the outline's stability is {stable:.3f}"
    )
    if off_person:
        score = max(score, WORN)
        reason = "worn by a person: hair, an arm or another garment may cover a part, or be in the cutout"
    return Measure(score, where, reason if score > LIMIT else "")


def colour_may_err(image: np.ndarray, studio: Studio, product: np.ndarray, agreement: float) -> bool:
    """Return whether HQ-SAM is to be asked about a cutout by colour.

    Args:
        image: `(H, W, 3)` uint8 RGB.
        studio: Its paper.
        product: `(H, W)` bool, the cutout.
        agreement: Its IoU with the salient-object net's mask.
    """
    scale = min(1.0, PAPER_SIDE / max(image.shape[:2]))
    size = (round(image.shape[1] * scale), round(image.shape[0] * scale))
    paper = Studio(cv2.resize(studio.colour, size, interpolation=cv2.INTER_AREA), studio.spread)
    small = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    inside = cv2.resize(product.astype(np.float32), size, interpolation=cv2.INTER_AREA) > 0.5
    return agreement < ALIKE or paper_share(small, paper, inside) > PAPER


def measure_second_opinion(
    image: np.ndarray, studio: Studio, product: np.ndarray, opinion: np.ndarray, strict: np.ndarray | None = None
) -> Measure:
    """Return the probability that a cutout by colour is wrong; `where` marks where HQ-SAM's outline differs.

    HQ-SAM fills openings, so what it adds counts only where it is no plain paper. No two outlines are equal, so thin
    differences do not count. A small difference counts if it is wide enough to be seen.

    Args:
        image: `(H, W, 3)` uint8 RGB.
        studio: Its paper.
        product: `(H, W)` bool, the cutout.
        opinion: `(H, W)` bool, HQ-SAM's mask of the same product.
        strict: `(H, W)` bool, its mask with points on unmistakable product alone; None if there is too little of it.
    """
    opinion = opinion & (product | ~plain_paper(image, studio))
    both = opinion if strict is None else opinion & strict
    union, like = max(1, (product | opinion).sum()), like_paper(image, studio)
    taken, lost = wide_parts(product & ~opinion), wide_parts(both & ~product)
    left = product & ~both & shaded_paper(image, studio)
    seen = max(_width(left), _width(both & ~product & ~like)) / max(image.shape[:2])
    score = float(1 / (1 + np.exp(np.clip((MIDDLE - (taken | lost).sum() / union) / STEEP, -30, 30))))
    if seen > SEEN:
        score, taken = max(score, 0.5), taken | wide_parts(left)
    where = taken | lost
    reason = (
        f"HQ-SAM draws another outline than the cutout by colour: {taken.sum() / union:.0%} may be a shadow or the "
        f"floor, and {lost.sum() / union:.0%} may be lost"
    )
    return Measure(score, where.astype(np.float32), reason if score > LIMIT else "")


def measure_lines(image: np.ndarray, studio: Studio, product: np.ndarray) -> Measure:
    """Return the probability that a cutout by colour contains a joint of the floor, or lacks a cord's end.

    Args:
        image: `(H, W, 3)` uint8 RGB.
        studio: Its paper.
        product: `(H, W)` bool, the cutout.
    """
    lines = lines_beyond(image, studio, product)
    reason = "a line continues beside the cutout: a joint of the floor is in it, or the end of a cord is not"
    found = bool(lines.any())
    return Measure(CONTINUED if found else 0.0, lines.astype(np.float32), reason if found else "")


def _width(part: np.ndarray) -> float:
    """Return the largest width of a mask `(H, W)` bool, px."""
    return 2 * float(cv2.distanceTransform(np.pad(part, 1).astype(np.uint8), cv2.DIST_L2, 5).max())


def surrounding_spread(image: np.ndarray, mask: np.ndarray) -> float:
    """Return the standard deviation of the colours around a product, in 8-bit Lab; 0 if the product fills the picture.

    Args:
        image: `(H, W, 3)` uint8 RGB.
        mask: `(H, W)` float, 0..1.
    """
    scale = SIDE / max(image.shape[:2])
    method = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    small = cv2.resize(image, None, fx=scale, fy=scale, interpolation=method)
    product = cv2.resize(mask.astype(np.float32), small.shape[1::-1], interpolation=cv2.INTER_AREA) > 0.5
    lab = cv2.cvtColor(cv2.GaussianBlur(small, (0, 0), 1.0), cv2.COLOR_RGB2LAB).astype(np.float32)
    around = cv2.distanceTransform((~product).astype(np.uint8), cv2.DIST_L2, 5) > MARGIN
    return float(lab[around].std(axis=0).mean()) if around.any() else 0.0
