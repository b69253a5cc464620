"""Do two products of a catalogue show nearly the same picture?

A shop that uploads one photo under two products publishes a wrong picture for one of them. No check of a single shot
can see it. Each cutout gets a code of 8 x 8 colours, which a new size, compression, crop or paper hardly changes, and
the codes of a run are compared.
"""

from __future__ import annotations

from base64 import b64decode, b64encode
from collections.abc import Sequence

import cv2
import numpy as np
from scipy.spatial import cKDTree

from pipelines.contracts import Product

CELLS = 8
LIMIT = 6.0
"""Root mean square of the cells' colour differences (CIELAB) up to which two pictures are alike."""

NEAREST = 16
"""Pictures with which each one is compared, itself among them."""


def likeness_code(cutout: np.ndarray) -> str:
    """Return the code of a cutout (H, W, 4) uint8 RGBA: 8 x 8 CIELAB colours on white, as text; "" without a product.

    The product's box, padded to a square, fills the 8 x 8 cells.
    """
    solid = cutout[..., 3] >= 128
    if not solid.any():
        return ""
    rows, columns = np.flatnonzero(solid.any(axis=1)), np.flatnonzero(solid.any(axis=0))
    box = cutout[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].astype(np.float32)
    alpha = box[..., 3:] / 255
    height, width = box.shape[:2]
    side = max(height, width)
    square = np.full((side, side, 3), 255, np.float32)
    top, left = (side - height) // 2, (side - width) // 2
    square[top : top + height, left : left + width] = box[..., :3] * alpha + 255 * (1 - alpha)
    small = cv2.resize(square, (CELLS, CELLS), interpolation=cv2.INTER_AREA) / 255
    lab = cv2.cvtColor(small, cv2.COLOR_RGB2LAB)
    return b64encode(np.clip(np.rint(lab), -128, 127).astype(np.int8).tobytes()).decode()


def find_twins(shown: Sequence[tuple[Product, str]]) -> list[tuple[str, str]]:
    """Return pairs of SKUs whose codes are alike, in the order of `shown`.

    Products of one item group, or of one title, are variants and make no pair, and neither do photos of one product. A
    product without a code makes none. Of
    many that are alike, each is paired with the nearest, so that a placeholder under 10,000 products is no list of
    50 million pairs.
    """
    known = [(product, code) for product, code in shown if code]
    if len(known) < 2:
        return []
    codes = np.stack([np.frombuffer(b64decode(code), np.int8) for _, code in known]).astype(np.float32)
    # means of a quarter of the cells are never further apart than the cells: a small tree finds the candidates
    quarters = codes.reshape(-1, 2, CELLS // 2, 2, CELLS // 2, 3).mean(axis=(2, 4)).reshape(len(known), -1)
    distances, nearest = cKDTree(quarters).query(quarters, k=min(NEAREST, len(known)), distance_upper_bound=LIMIT * 2)
    pairs = set()
    for one, (others, near) in enumerate(zip(nearest, np.isfinite(distances), strict=True)):
        candidates = others[near]
        apart = np.sqrt(((codes[candidates] - codes[one]) ** 2).sum(axis=1) / CELLS**2)
        pairs |= {(min(one, int(n)), max(one, int(n))) for n in candidates[apart <= LIMIT] if n != one}
    named = [(known[a][0], known[b][0]) for a, b in sorted(pairs)]
    return [(one.sku, other.sku) for one, other in named if not _variants(one, other)]


def _variants(one: Product, other: Product) -> bool:
    same_group = bool(one.item_group_id) and one.item_group_id == other.item_group_id
    if one.row_sku == other.row_sku:
        return True
    return same_group or one.title.casefold().split() == other.title.casefold().split()
