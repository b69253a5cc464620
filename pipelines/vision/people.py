"""Products on people: find the skin in a studio photo, and ask for the garment alone.

Skin is found by its colour (Chai and Ngan, "Face segmentation using skin-color map", 1999: a box in Cr and Cb), which
holds on evenly lit paper and nowhere else: wood, cardboard and shop light have that colour too.
"""

from __future__ import annotations

import cv2
import numpy as np

from pipelines.vision.segmenters import Prompt, deepest_points

UPPER = frozenset(
    [
        *("blouse", "bra", "camisole", "cardigan", "coat", "dress", "fleece", "hoodie", "jacket", "jersey"),
        *("longsleeve", "outwear", "polo", "pullover", "shell", "shirt", "sweater", "sweatshirt", "t-shirt", "tank"),
        *("tee", "top", "tshirt", "undershirt", "vest"),
    ]
)
LOWER = frozenset(
    ["capri", "capris", "jeans", "leggings", "pant", "pants", "short", "shorts", "skirt", "tights", "trousers"]
)

WORN_SHARE = (0.03, 0.6)
"""A person is in the picture when skin is at least this share of what was cut out, and no more than that."""


def garment_part(title: str) -> str:
    """`upper`, `lower` or "": which half of a person a garment covers, by the last word of its title that says so."""
    words = [word.strip("()&;,.").lower() for word in title.replace("/", " ").split()]
    for word in reversed(words):
        if word in UPPER or word in LOWER:
            return "upper" if word in UPPER else "lower"
    return ""


def find_skin(image: np.ndarray) -> np.ndarray:
    """Skin-coloured regions of an `(H, W, 3)` uint8 RGB image, `(H, W)` bool, speckle removed."""
    luma, cr, cb = np.moveaxis(cv2.cvtColor(image, cv2.COLOR_RGB2YCrCb), 2, 0)
    hue, saturation, _ = np.moveaxis(cv2.cvtColor(image, cv2.COLOR_RGB2HSV), 2, 0)
    skin = (luma > 50) & (cr > 138) & (cr < 175) & (cb > 80) & (cb < 126)
    skin &= (saturation > 45) & (saturation < 175) & ((hue < 17) | (hue > 172))
    size = max(3, round(0.008 * max(image.shape[:2])) | 1)
    return cv2.morphologyEx(skin.astype(np.uint8), cv2.MORPH_OPEN, np.ones((size, size), np.uint8)) > 0


def is_worn(figure: np.ndarray, skin: np.ndarray, part: str) -> bool:
    """Whether the cut-out figure `(H, W)` bool is a person wearing the product, by how much of it is `skin`.

    Beer and leather have the colour too: where the title names no garment (`part` is ""), the figure must also run out
    of the picture, as people in shops' photos do and beer glasses do not.
    """
    share = float((figure & skin).sum() / max(1, figure.sum()))
    cropped = bool(figure[[0, -1]].any() or figure[:, [0, -1]].any())
    return WORN_SHARE[0] <= share <= WORN_SHARE[1] and (bool(part) or cropped)


def garment_prompt(image: np.ndarray, figure: np.ndarray, skin: np.ndarray, part: str) -> Prompt | None:
    """Ask for one garment of a person.

    Points on the garment lie where a garment of this part is (the middle of the figure, or its lower half), those on
    skin and on the other garment say what it is not.

    Args:
        image: `(H, W, 3)` uint8 RGB.
        figure: `(H, W)` bool, the whole person.
        skin: `(H, W)` bool.
        part: `upper`, `lower` or "".

    Returns:
        None where no cloth is left.
    """
    cloth = figure & ~skin
    rows, columns = np.flatnonzero(cloth.any(axis=1)), np.flatnonzero(cloth.any(axis=0))
    if rows.size == 0:
        return None
    top, height = int(np.flatnonzero(figure.any(axis=1))[0]), int(figure.any(axis=1).sum())
    wanted, other = {"upper": ((0.3, 0.6), (0.9, 1.0)), "lower": ((0.4, 0.85), (0.0, 0.12))}.get(
        part, ((0.3, 0.7), None)
    )
    garment = deepest_points(_rows(cloth, top, height, wanted), 3)
    if len(garment) == 0:
        return None
    colour = np.median([_lab(image, point) for point in garment], axis=0)
    beside = list(deepest_points(figure & skin, 3))
    if other is not None:
        beside += [
            point
            for point in deepest_points(_rows(cloth, top, height, other), 1)
            if np.linalg.norm(_lab(image, point) - colour) > 25
        ]
    points = np.array([*garment, *beside], np.float32)
    labels = np.array([1] * len(garment) + [0] * len(beside), np.int64)
    box = np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], np.float32)
    return Prompt(box, points, labels)


def _rows(mask: np.ndarray, top: int, height: int, span: tuple[float, float]) -> np.ndarray:
    band = np.zeros_like(mask)
    start, end = round(top + span[0] * height), round(top + span[1] * height)
    band[start:end] = mask[start:end]
    return band


def _lab(image: np.ndarray, point: np.ndarray) -> np.ndarray:
    x, y = (int(v) for v in point)
    patch = image[max(0, y - 3) : y + 4, max(0, x - 3) : x + 4]
    return cv2.cvtColor(patch, cv2.COLOR_RGB2LAB).reshape(-1, 3).astype(np.float32).mean(axis=0)
