"""Surfaces of composed scenes: tileable textures, made once a process, sampled in perspective at the right coarseness.

    grid = Grid(256, 256)
    surface((206, 166, 116), "planks", grid, u, v, density, rng)           # (H, W, 3), colours 0..1

A texture is a square tile of factors around 1 that a base colour is multiplied by. Lengths on a surface are in units of
the picture's height at the product's distance.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

Image = NDArray[Any]
"""float32; said here because numpy's stubs widen every product of arrays."""

TILE = 512
LEVELS = 7
TILE_SIZE = {"planks": 0.9, "marble": 1.4, "stone": 1.3, "linen": 0.42, "paper": 1.5, "plaster": 1.2}
"""How long a tile's side is."""

RICHNESS = np.array([0.9, 1.0, 1.18], np.float32)
"""Exponents of a factor for red, green and blue: what is darker is also warmer."""


class Grid:
    """Pixel centres in fractions of the height: x (H, W) in 0..aspect, y (H, W) in 0..1."""

    def __init__(self, height: int, width: int) -> None:
        self.height, self.width, self.aspect = height, width, width / height
        ys = (np.arange(height, dtype=np.float32) + 0.5) / height
        xs = (np.arange(width, dtype=np.float32) + 0.5) / height
        self.x = np.broadcast_to(xs[None, :], (height, width))
        self.y = np.broadcast_to(ys[:, None], (height, width))


def surface(
    rgb: tuple[int, int, int], texture: str, grid: Grid, u: Image, v: Image, density: Image, rng: np.random.Generator
) -> Image:
    """A material over coordinates u (across) and v (along), both (H, W), as (H, W, 3).

    `density` (H, 1) is how many units of the surface lie in one picture height at each row; it chooses how coarse the
    texture is sampled, so that far boards blur instead of flickering. `rng` draws the part of the tile and its turn.
    """
    base = np.array(rgb, np.float32) / 255 + rng.normal(0, 0.01, 3).astype(np.float32)
    size = TILE_SIZE[texture] * float(rng.uniform(0.8, 1.3))
    offset = rng.random(2)
    if rng.random() < 0.5:
        u, v = v, -u
    factor = _sampled(texture, u / size + offset[0], v / size + offset[1], density / size, grid.height)
    if texture == "linen":
        factor = factor * (1 + 0.05 * np.sin((u * 1.3 + v) * 5 + noise(grid, (4, 4), rng)))
    rich = factor[..., None] ** RICHNESS if texture == "planks" else factor[..., None]
    # veins of a dark stone are lighter than it: they add light instead of taking a share of it
    return base * rich if sum(rgb) > 240 or texture != "marble" else base + (1 - rich) * 0.9


def noise(grid: Grid, cells: tuple[int, int], rng: np.random.Generator) -> Image:
    """Smooth noise with about unit deviation from (rows, columns) random cells, enlarged to the grid."""
    coarse = rng.standard_normal(cells, dtype=np.float32)
    return cv2.resize(coarse, (grid.width, grid.height), interpolation=cv2.INTER_CUBIC)


def _sampled(texture: str, u: Image, v: Image, density: Image, height: int) -> Image:
    """The tile at u, v (in tiles), between the two levels of its pyramid whose texels are as large as a row's px."""
    level = np.clip(np.log2(np.maximum(density * TILE / height, 1e-6)) + 0.2, 0, LEVELS - 1.001)
    low, high = int(np.floor(level.min())), int(np.floor(level.max())) + 1
    found = np.zeros(u.shape, np.float32)
    for n in range(low, high + 1):
        weight = np.clip(1 - np.abs(level - n), 0, 1).astype(np.float32)
        side = TILE >> n
        at_u = np.mod(u, 1).astype(np.float32) * side
        at_v = np.mod(v, 1).astype(np.float32) * side
        padded = _pyramid(texture)[n]  # one texel more at the end, so that the seam is bilinear as well
        found += weight * cv2.remap(padded, at_u, at_v, cv2.INTER_LINEAR)
    return found


@cache
def _pyramid(texture: str) -> tuple[Image, ...]:
    tile = TILES[texture](np.random.default_rng([5, len(texture), ord(texture[0])])).astype(np.float32)
    levels = []
    for n in range(LEVELS):
        level = cv2.resize(tile, (TILE >> n, TILE >> n), interpolation=cv2.INTER_AREA)
        levels.append(np.ascontiguousarray(np.pad(level, ((0, 1), (0, 1)), mode="wrap")))
    return tuple(levels)


def _periodic(rng: np.random.Generator, fall: float, stretch: tuple[float, float] = (1, 1), lowest: float = 1) -> Image:
    """Noise (TILE, TILE) of unit deviation that continues over its edges: its amplitude falls with frequency ** `fall`.

    `stretch` (down, across) draws it out; frequencies below `lowest` a tile are left out.
    """
    down = np.fft.fftfreq(TILE)[:, None] * TILE * stretch[0]
    across = np.fft.rfftfreq(TILE)[None, :] * TILE * stretch[1]
    frequency = np.hypot(down, across)
    with np.errstate(divide="ignore"):
        amplitude = np.where(frequency >= lowest, frequency**-fall, 0.0)
    spectrum = np.fft.rfft2(rng.standard_normal((TILE, TILE))) * amplitude
    found = np.fft.irfft2(spectrum, s=(TILE, TILE))
    return (found / found.std()).astype(np.float32)


def _planks(rng: np.random.Generator) -> Image:
    """Six boards that run down the tile: each a tone of its own, rings, pores, a joint somewhere, dark gaps."""
    boards, wide = 6, TILE / 6
    rings, pores = _periodic(rng, 1.6, (5, 1)), _periodic(rng, 0.5, (24, 1), 8)
    column, row = np.meshgrid(np.arange(TILE), np.arange(TILE))
    board = (column / wide).astype(int) % boards
    tile = np.ones((TILE, TILE), np.float32)
    for n in range(boards):
        inside = board == n
        turn = tuple(int(k) for k in rng.integers(0, TILE, 2))
        ring = np.roll(rings, turn, (0, 1))
        lines = np.sin((column / wide * 2.2 + ring * 1.1) * 2 * np.pi)
        tone = 1 + rng.normal(0, 0.07) + 0.05 * ring + 0.035 * lines + 0.03 * np.roll(pores, turn, (1, 0))
        joint = np.abs((row - rng.integers(0, TILE) + TILE / 2) % TILE - TILE / 2)
        tone = tone * (1 - 0.4 * np.exp(-((joint / 1.3) ** 2)))
        tile[inside] = tone[inside]
    edge = np.abs((column + wide / 2) % wide - wide / 2)
    return tile * (1 - 0.45 * np.exp(-((edge / 1.4) ** 2)) - 0.06 * np.exp(-edge / 6))


def _marble(rng: np.random.Generator) -> Image:
    """Few strong and many faint veins along the zero line of noise, over clouds."""
    warp = _periodic(rng, 2.0)
    tile = 1 + 0.02 * _periodic(rng, 1.8) - 0.02 * np.abs(warp)
    for fall, sharp, deep in ((1.9, 26, 0.26), (1.7, 34, 0.14), (1.5, 22, 0.08)):
        ridge = np.abs(_periodic(rng, fall) + 0.35 * warp)
        strong = np.clip(0.35 + 0.6 * _periodic(rng, 2.2), 0, 1.2)
        tile = tile - deep * strong * (0.65 * np.exp(-ridge * sharp) + 0.35 * np.exp(-ridge * sharp / 6))
    return np.clip(tile, 0.5, 1.06)


def _stone(rng: np.random.Generator) -> Image:
    pores = np.clip(_periodic(rng, 0.7, lowest=20) - 2.3, 0, 1)
    return 1 + 0.045 * _periodic(rng, 1.7) + 0.02 * _periodic(rng, 0.6, lowest=12) - 0.2 * pores


def _linen(rng: np.random.Generator) -> Image:
    column, row = np.meshgrid(np.arange(TILE), np.arange(TILE))
    threads = 96 * 2 * np.pi / TILE
    weave = 0.03 * np.sin(column * threads) * np.sin(row * threads)
    warp, weft = _periodic(rng, 0.25, (40, 1), 20), _periodic(rng, 0.25, (1, 40), 20)
    return 1 + weave + 0.035 * warp + 0.035 * weft + 0.012 * _periodic(rng, 1.5)


def _plaster(rng: np.random.Generator) -> Image:
    return 1 + 0.016 * _periodic(rng, 1.5) + 0.006 * _periodic(rng, 0.5, lowest=16)


def _paper(rng: np.random.Generator) -> Image:
    return 1 + 0.005 * _periodic(rng, 1.8)


TILES: dict[str, Callable[[np.random.Generator], Image]] = {
    "planks": _planks,
    "marble": _marble,
    "stone": _stone,
    "linen": _linen,
    "plaster": _plaster,
    "paper": _paper,
}
