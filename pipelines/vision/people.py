"""Products on people: find skin in a studio photo, and segment the garment alone.

Skin is found by its colour, a box in Cr and Cb (Chai and Ngan, "Face segmentation using skin-color map", 1999). This
works on evenly lit paper only: wood, cardboard and shop light have that colour too.
"""

from __future__ import annotations

import cv2
import numpy as np

from pipelines.vision.segmenters import Prompt, deepest_points

GARMENT_ROWS = {"upper": (0.3, 0.6), "lower": (0.4, 0.85), "": (0.3, 0.7)}
"""Rows in which a garment is searched, as shares of the figure's height; for a lower one, of the garment's own
height."""

DIFFERENT = 25.0
"""Distance in 8-bit Lab from which two garments differ."""

LARGE = 0.3
"""A large piece of cloth has this share of the largest one's area. A shoe has less of trousers or shorts."""

PANEL = 0.2
"""If more than this share of the cloth above has the garment's colour, the rest is a panel of it and not a shirt."""

HAND_SIDE = 256
"""Longer side of the masks in which hands before a garment are found, px."""

BITE = 0.15
"""Widest bite that a hand takes out of an upper garment, as a share of its longer side."""

HANDS = {"upper": (0.3, 1.0), "lower": (0.05, 0.7), "": (0.0, 1.0)}
"""Rows of a garment in which skin is a hand, as shares of its height. Above is a neck or a waist, and below the bare
legs between shorts."""

WORN_SHARE = (0.03, 0.6)
"""A person is in the picture if the share of skin in the cutout is between these."""


def find_skin(image: np.ndarray) -> np.ndarray:
    """Return skin-coloured regions of an `(H, W, 3)` uint8 RGB image, `(H, W)` bool, without specks."""
    luma, cr, cb = np.moveaxis(cv2.cvtColor(image, cv2.COLOR_RGB2YCrCb), 2, 0)
    hue, saturation, _ = np.moveaxis(cv2.cvtColor(image, cv2.COLOR_RGB2HSV), 2, 0)
    skin = (luma > 50) & (cr > 138) & (cr < 175) & (cb > 80) & (cb < 126)
    skin &= (saturation > 45) & (saturation < 175) & ((hue < 17) | (hue > 172))
    size = max(3, round(0.008 * max(image.shape[:2])) | 1)
    return cv2.morphologyEx(skin.astype(np.uint8), cv2.MORPH_OPEN, np.ones((size, size), np.uint8)) > 0


def is_worn(figure: np.ndarray, skin: np.ndarray, part: str) -> bool:
    """Return whether the figure `(H, W)` bool is a person who wears the product, by its share of `skin`.

    Beer and leather have that colour too. So if the title names no garment (`part` is ""), the picture must also cut
    the figure off, as shops' photos of people do.
    """
    share = float((figure & skin).sum() / max(1, figure.sum()))
    cropped = bool(figure[[0, -1]].any() or figure[:, [0, -1]].any())
    return WORN_SHARE[0] <= share <= WORN_SHARE[1] and (bool(part) or cropped)


def covered_by_hands(garment: np.ndarray, skin: np.ndarray, part: str) -> float:
    """Return the largest piece of skin in front of a worn garment or of a thing in a hand, as a share of its area.

    A hand before a product takes a bite out of its mask. Skin inside the convex hull of trousers is a hand. Beside an
    upper garment bare arms are inside the hull too, so only narrow bites below its collar count.

    Args:
        garment: `(H, W)` bool, the garment alone.
        skin: `(H, W)` bool.
        part: `upper`, `lower`, or "" for a thing.
    """
    scale = HAND_SIDE / max(garment.shape)
    product, bare = (
        cv2.resize(mask.astype(np.uint8) * 255, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA) > 127
        for mask in (garment, skin)
    )
    if not product.any():
        return 0.0
    rows, columns = np.flatnonzero(product.any(axis=1)), np.flatnonzero(product.any(axis=0))
    if part != "upper":
        around: np.ndarray = np.zeros(product.shape, np.uint8)
        cv2.fillConvexPoly(around, cv2.convexHull(np.argwhere(product)[:, ::-1].astype(np.int32)), 1)
    else:
        width = round(BITE * max(np.ptp(rows), np.ptp(columns))) | 1
        disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (width, width))
        frame = np.pad(product.astype(np.uint8), width)
        around = cv2.morphologyEx(frame, cv2.MORPH_CLOSE, disc)[width:-width, width:-width]
    bitten = (around > 0) & ~product & bare
    first, last = (rows[0] + round(share * np.ptp(rows)) for share in HANDS[part])
    bitten[:first] = bitten[last:] = False
    _, _, stats, _ = cv2.connectedComponentsWithStats(bitten.astype(np.uint8))
    return float(stats[1:, cv2.CC_STAT_AREA].max(initial=0) / product.sum())


def garment_prompt(image: np.ndarray, figure: np.ndarray, skin: np.ndarray, part: str) -> Prompt | None:
    """Return HQ-SAM's prompt for one garment of a person.

    Positive points lie where a garment of this part is; negative points lie on skin and on the other garment. An upper
    garment is searched around the middle of the figure. A lower one, which may be shorts, is searched in the lowest
    large piece of cloth that skin separates from the rest. Shoes are smaller, unless trousers touch them.

    Args:
        image: `(H, W, 3)` uint8 RGB.
        figure: `(H, W)` bool, the whole person.
        skin: `(H, W)` bool.
        part: `upper`, `lower` or "".

    Returns:
        None if there is no cloth.
    """
    cloth = figure & ~skin
    whole = _lowest(cloth) if part == "lower" else cloth
    if not whole.any():
        return None
    rows, columns = np.flatnonzero(whole.any(axis=1)), np.flatnonzero(whole.any(axis=0))
    middle = _rows(whole, whole if part == "lower" else figure, GARMENT_ROWS[part])
    garment = deepest_points(middle, 3)
    if len(garment) == 0:
        return None
    lab = cv2.cvtColor(image, cv2.COLOR_RGB2LAB).astype(np.float32)
    colour = np.median(lab[middle], axis=0)
    beside = [deepest_points(figure & skin, 3)]
    if part == "upper":
        beside.append(_unlike(lab, _rows(cloth, figure, (0.9, 1.0)), colour, 1))
    elif part == "lower":
        shirt = _rows(whole, whole, (0.12, 0.3))  # below a possible waistband
        own = np.linalg.norm(lab[shirt] - colour, axis=1) <= DIFFERENT
        if own.sum() < PANEL * len(own):
            beside.append(_unlike(lab, shirt, colour, 1))
        if not figure[-1].any():  # feet, if the cloth reaches them
            beside.append(_unlike(lab, whole & _rows(figure, figure, (0.95, 1.0)), colour, 2))
    points = np.concatenate([garment, *beside]).astype(np.float32)
    labels = np.array([1] * len(garment) + [0] * (len(points) - len(garment)), np.int64)
    box = np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], np.float32)
    return Prompt(box, points, labels)


def _lowest(cloth: np.ndarray) -> np.ndarray:
    """Return the lowest of the large pieces of cloth `(H, W)` bool, without slivers along the skin."""
    size = max(3, round(0.015 * max(cloth.shape)) | 1)
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (size, size))
    opened = cv2.morphologyEx(cloth.astype(np.uint8), cv2.MORPH_OPEN, disc)
    _, labels, stats, centres = cv2.connectedComponentsWithStats(opened)
    areas = stats[1:, cv2.CC_STAT_AREA]
    if areas.size == 0:
        return np.zeros_like(cloth)
    found: np.ndarray = labels == 1 + np.where(areas >= LARGE * areas.max(), centres[1:, 1], -1).argmax()
    return found


def _unlike(lab: np.ndarray, band: np.ndarray, colour: np.ndarray, count: int) -> np.ndarray:
    """Return those of up to `count` points on a band `(H, W)` bool that have another colour: another garment, or
    shoes."""
    points = deepest_points(band, count)
    return points[[bool(np.linalg.norm(_at(lab, point) - colour) > DIFFERENT) for point in points]]


def _rows(mask: np.ndarray, figure: np.ndarray, span: tuple[float, float]) -> np.ndarray:
    """Return a mask's rows between two shares of a figure's height; both `(H, W)` bool."""
    rows = np.flatnonzero(figure.any(axis=1))
    top, height = int(rows[0]), int(rows[-1]) + 1 - int(rows[0])
    band = np.zeros_like(mask)
    start, end = round(top + span[0] * height), round(top + span[1] * height)
    band[start:end] = mask[start:end]
    return band


def _at(lab: np.ndarray, point: np.ndarray) -> np.ndarray:
    """Return the mean colour around a point."""
    x, y = (int(v) for v in point)
    colour: np.ndarray = lab[max(0, y - 3) : y + 4, max(0, x - 3) : x + 4].mean(axis=(0, 1))
    return colour
