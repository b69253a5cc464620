"""Is a cutout certain? Hold it if HQ-SAM is unsure of the outline, or if what is around the product is varied.

In front of plain paper, a wrong cutout is rare. In a shop, a kitchen or on a person it is frequent: a hand covers a
part, a neighbour touches the product, a leg has the floor's colour. Both statistics come from what the cutout has
computed, so the check costs a few milliseconds. A logistic regression weighs them. It was fitted to photos whose
cutouts a person judged, and to composites with a known truth, all of the half of the products that
`packshot measure checks` leaves out.
"""

from __future__ import annotations

import cv2
import numpy as np

from pipelines.quality.fidelity import Measure
from pipelines.vision.segmenters import stability

LIMIT = 0.15
"""Probability of a wrong cutout above which it is held."""

SIDE = 320
"""Longer side of the picture that is measured, px."""

MARGIN = 6
"""Distance from the product at which its surroundings begin, px at `SIDE`."""

BIAS, UNSTABLE, VARIED = 1.148, 2.158, 2.473
"""Weights of the logarithms of `1 - stability` and of the spread of colours around the product."""

WORN = 0.3
"""Least probability for a garment that was cut off a person: of ten in the fitted half, three were wrong, and neither
statistic tells which. Hair lies on a collar, an arm covers a hem, and shoes stay below trousers."""

UNSURE = (0.27, 0.73)
"""Values of a soft mask between which HQ-SAM is unsure, as in `stability`."""


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
