"""Photos on paper or on a plain floor that a cutout by colour gets wrong: shadows, tiles, edges, leaves and cords.

Each function returns a picture and the product in it, so that a cutout can be compared with the truth.
"""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np

from pipelines.evaluation.planted import Draw, fitted, lay, paper, saved

SIDE = 640
"""Width and height of the pictures, px."""

Planted = tuple[np.ndarray, np.ndarray]
"""A picture `(H, W, 3)` uint8 and its product `(H, W)` bool."""


def hard_shadow(cutout: np.ndarray, rng: Draw) -> Planted:
    """A product on paper in the light of one lamp or the sun: a dark shadow with a sharp edge lies beside its foot."""
    ground, alpha, box = _standing(cutout, rng, paper(rng))
    dark = cv2.GaussianBlur(_cast(alpha, box, rng), (0, 0), rng.uniform(0.6, 3.5))
    return _laid(_shaded(ground, dark, rng.uniform(0.35, 0.8), rng), cutout, box, alpha, rng)


def tiled_floor(cutout: np.ndarray, rng: Draw) -> Planted:
    """A product on a light floor with joints."""
    ground, alpha, box = _standing(cutout, rng, _floor(rng))
    pitch, width = rng.uniform(120, 420), int(rng.integers(1, 5))
    joints = np.zeros((SIDE, SIDE), np.float32)
    for turn in (0.0, np.pi / 2):
        angle = turn + rng.uniform(-0.12, 0.12)
        along = np.array([np.cos(angle), np.sin(angle)]) * 2 * SIDE
        across = np.array([-np.sin(angle), np.cos(angle)])
        for place in np.arange(rng.uniform(-pitch, 0), 1.2 * SIDE, pitch):
            middle = across * place if turn == 0.0 else -across * place
            ends = [tuple(int(v) for v in middle + sign * along) for sign in (-1, 1)]
            cv2.line(joints, ends[0], ends[1], 1.0, width, cv2.LINE_AA)
    soft = cv2.GaussianBlur(joints, (0, 0), rng.uniform(0.4, 1.2))
    ground -= soft[..., None] * rng.uniform(15, 70)
    return _laid(_soft_shadow(ground, alpha, rng), cutout, box, alpha, rng)


def wall_and_floor(cutout: np.ndarray, rng: Draw) -> Planted:
    """A product before a wall whose edge to a floor of nearly its colour is behind it."""
    ground, alpha, box = _standing(cutout, rng, _floor(rng))
    line = np.clip(box[1] + box[3] * rng.uniform(0.3, 0.9), 60, SIDE - 40)
    rows, columns = np.mgrid[:SIDE, :SIDE]
    below = np.clip(rows - line - np.tan(rng.uniform(-0.08, 0.08)) * (columns - SIDE / 2), 0, 1)
    ground -= below[..., None] * rng.uniform(4, 26) * np.array([1, rng.uniform(0.9, 1.1), rng.uniform(0.8, 1.2)])
    if rng.random() < 0.6:  # a skirting board or a crease
        edge = np.exp(-(((rows - line) / rng.uniform(1, 5)) ** 2))
        ground -= edge[..., None] * rng.uniform(10, 60)
    return _laid(_soft_shadow(ground.astype(np.float32), alpha, rng), cutout, box, alpha, rng)


def shadow_on_white(cutout: np.ndarray, rng: Draw) -> Planted:
    """A product on pure white, as shops clear their photos, with its old shadow: dark at the foot, and fading out."""
    ground, alpha, box = _standing(cutout, rng, np.full((SIDE, SIDE, 3), 255, np.float32))
    flat = _cast(alpha, box, rng)
    dark = np.maximum(*(cv2.GaussianBlur(flat, (0, 0), rng.uniform(*blur)) for blur in ((1.5, 4), (5, 14))))
    return _laid(_shaded(ground, dark, rng.uniform(0.2, 0.6), rng), cutout, box, alpha, rng)


def foliage(cutout: np.ndarray, rng: Draw) -> Planted:
    """A product of leaves or of lace: the ground, a little darker, is seen through many small gaps."""
    height, width = cutout.shape[:2]
    leaves = np.zeros((height, width), np.uint8)
    side = max(height, width)
    for _ in range(int(rng.integers(120, 400))):
        middle = (int(rng.integers(width)), int(rng.integers(height)))
        axes = (max(2, round(side * rng.uniform(0.025, 0.07))), max(1, round(side * rng.uniform(0.008, 0.022))))
        cv2.ellipse(leaves, middle, axes, rng.uniform(0, 180), 0, 360, 255, -1, cv2.LINE_AA)
    cut = cutout.copy()
    cut[..., 3] = np.minimum(cutout[..., 3], leaves)
    ground, alpha, box = _standing(cut, rng, paper(rng))
    inside = cv2.GaussianBlur(alpha, (0, 0), 8)
    return _laid(_shaded(ground, inside, rng.uniform(0, 0.15), rng), cut, box, alpha, rng)


def corded(cutout: np.ndarray, rng: Draw) -> Planted:
    """A product with two to four loops of a thin cord, on paper or on pure white."""
    ground = paper(rng) if rng.random() < 0.5 else np.full((SIDE, SIDE, 3), 255, np.float32)
    ground, alpha, box = _standing(cutout, rng, ground)
    cord, grey = np.zeros((SIDE, SIDE), np.float32), rng.uniform(20, 130) + rng.uniform(-10, 10, 3)
    wide = int(rng.integers(3, 9))
    for _ in range(int(rng.integers(2, 5))):
        rows, columns = np.nonzero(alpha > 0.5)
        at = int(rng.integers(len(rows)))
        axes = (int(rng.integers(25, 110)), int(rng.integers(8, 45)))
        cv2.ellipse(cord, (int(columns[at]), int(rows[at])), axes, rng.uniform(0, 180), 0, 360, 1.0, wide, cv2.LINE_AA)
    lay(ground, cutout, box)
    picture = ground * (1 - cord[..., None]) + grey * cord[..., None]
    return saved(picture, rng), np.maximum(alpha, cord) > 0.5


def plain(cutout: np.ndarray, rng: Draw) -> Planted:
    """A product on even paper: no fault."""
    ground, alpha, box = _standing(cutout, rng, paper(rng))
    return _laid(_soft_shadow(ground, alpha, rng), cutout, box, alpha, rng)


def without_an_end(product: np.ndarray, rng: Draw) -> np.ndarray:
    """A mask `(H, W)` bool that lacks 8 to 30 % of a product: what lies beyond a straight line."""
    rows, columns = np.nonzero(product)
    angle = rng.uniform(0, 2 * np.pi)
    along = rows * np.sin(angle) + columns * np.cos(angle)
    kept = product.copy()
    beyond = along > np.quantile(along, 1 - rng.uniform(0.08, 0.3))
    kept[rows[beyond], columns[beyond]] = False
    return kept


Kinds = dict[str, Callable[[np.ndarray, Draw], Planted]]
"""Functions that plant, by the name of what they plant."""

PAPERS: Kinds = {
    "hard shadow": hard_shadow,
    "tiles": tiled_floor,
    "wall and floor": wall_and_floor,
    "shadow on white": shadow_on_white,
}
"""What colour takes for product."""

GAPS: Kinds = {"foliage": foliage, "cords": corded}
"""Paper that is seen through a product."""


def _standing(
    cutout: np.ndarray, rng: Draw, ground: np.ndarray
) -> tuple[np.ndarray, np.ndarray, tuple[int, int, int, int]]:
    """Return the ground, the product's alpha `(SIDE, SIDE)` in it, 0..1, and its box."""
    width, height = fitted(cutout, rng.uniform(280, 480))
    box = (int(rng.integers(40, SIDE - 39 - width)), int(rng.integers(40, SIDE - 39 - height)), width, height)
    alpha = np.zeros((SIDE, SIDE, 3), np.float32)
    white = cutout.copy()
    white[..., :3] = 255
    lay(alpha, white, box)
    return ground, alpha[..., 0] / 255, box


def _floor(rng: Draw) -> np.ndarray:
    """A light, nearly even floor `(SIDE, SIDE, 3)` float32 with soft stains."""
    coarse = rng.normal(0, rng.uniform(0.5, 3), (5, 5)).astype(np.float32)
    stains = cv2.resize(coarse, (SIDE, SIDE), interpolation=cv2.INTER_CUBIC)
    tint = rng.uniform(150, 240) + rng.uniform(-14, 14, 3)
    grain = rng.normal(0, rng.uniform(0.4, 2.5), (SIDE, SIDE, 1))
    return (tint + stains[..., None] + grain).astype(np.float32)


def _cast(alpha: np.ndarray, box: tuple[int, int, int, int], rng: Draw) -> np.ndarray:
    """Return the shadow's shape: the product laid down to a side of its foot, or moved a little for one that lies."""
    foot = float(box[1] + box[3])
    if rng.random() < 0.6:
        lean, flat = rng.uniform(-1.2, 1.2), rng.uniform(0.15, 0.5)
        matrix = np.array([[1, -lean * flat, lean * flat * foot], [0, flat, foot * (1 - flat)]], np.float32)
    else:
        away = rng.uniform(0.03, 0.15) * max(box[2:])
        turn = rng.uniform(0, 2 * np.pi)
        matrix = np.array([[1, 0, away * np.cos(turn)], [0, 1, away * np.sin(turn)]], np.float32)
    return cv2.warpAffine(alpha, matrix, alpha.shape[::-1])


def _shaded(ground: np.ndarray, dark: np.ndarray, strength: float, rng: Draw) -> np.ndarray:
    """Return the ground under a shadow, which is a little bluer or warmer than the light."""
    tint = 1 + rng.uniform(-0.05, 0.05, 3)
    return (ground * (1 - strength * dark[..., None] * tint)).astype(np.float32)


def _soft_shadow(ground: np.ndarray, alpha: np.ndarray, rng: Draw) -> np.ndarray:
    """Return the ground with a soft contact shadow, in six of ten pictures."""
    if rng.random() >= 0.6:
        return ground
    shadow = cv2.GaussianBlur(np.roll(alpha, (8, 6), (0, 1)), (0, 0), rng.uniform(4, 12))
    return _shaded(ground, shadow, rng.uniform(0.15, 0.45), rng)


def _laid(
    ground: np.ndarray, cutout: np.ndarray, box: tuple[int, int, int, int], alpha: np.ndarray, rng: Draw
) -> Planted:
    lay(ground, cutout, box)
    return saved(ground, rng), alpha > 0.5
