"""Composites to fit and measure the detector on: how far the product continues beyond its mask is known to the pixel.

A product is laid over a background by its true alpha. Its mask is either whole, or lacks a known part that stays in the
picture: the same as if the scene had grown the product by that part. Masks have two origins. One is the true alpha. The
other is another segmenter's cutout of a studio photo (the published U²-Net-P, which the detector does not use), so that
the noise of a mask is real.

Backgrounds are photographed scenes, and studio paper and sets that are composed here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from scipy import ndimage

SIDE = 512
BACKGROUNDS = ("scene", "studio", "set", "shadow", "reflection", "stand", "look-alike")
PHOTO = "photo"
"""The background of real photos, which are no composites: see `compose_photo`."""

PARTS = ("handle", "cord", "thin part", "end", "bite")
SMALLEST, SMALL, LARGEST = 0.01, 0.05, 0.30
"""Shares of the product that a part takes: the least, the limit of a small one, the most."""

SLIPPED = 0.01
"""A segmenter's cutout is not used if it lacks more than this share of the product, or adds five times as much."""


@dataclass(frozen=True, slots=True)
class CutoutProduct:
    """A product: `rgb` (H, W, 3) and `alpha` (H, W), float32 0..1.

    `cutouts` holds the masks (H, W) float32 that other segmenters found in a studio photo of it, by their names.
    """

    name: str
    rgb: np.ndarray
    alpha: np.ndarray
    cutouts: dict[str, np.ndarray]


@dataclass(frozen=True, slots=True)
class Mask:
    """A mask of the composite's product: `matte` (SIDE, SIDE) uint8, 255 = product. `make`: where it comes from.

    `part` is the kind of the part that was left out, `share` its area in products; 0 if the mask is whole.
    """

    matte: np.ndarray
    share: float
    part: str
    make: str


@dataclass(frozen=True, slots=True)
class Composite:
    """A picture (SIDE, SIDE, 3) uint8 RGB with its masks; usually half of them are whole.

    `lacking` are points (row, column) on parts of the product that none of the masks holds.
    """

    product: str
    background: str
    image: np.ndarray
    masks: tuple[Mask, ...]
    lacking: tuple[tuple[int, int], ...] = ()


Cutter = Callable[[np.ndarray], np.ndarray]
"""A segmenter: (H, W, 3) uint8 RGB to a mask (H, W) float32, 0..1."""


def cut_out(name: str, rgb: np.ndarray, alpha: np.ndarray, cutters: Mapping[str, Cutter]) -> CutoutProduct:
    """Let other segmenters cut the product out of a studio photo: the product on white paper, at most SIDE px."""
    scale = min(1.0, 0.75 * SIDE / max(alpha.shape))
    rgb, alpha = _resized(rgb, alpha, scale)
    pad = round(0.15 * max(alpha.shape))
    padded = np.pad(alpha, pad)
    paper = np.pad(rgb * alpha[..., None], ((pad, pad), (pad, pad), (0, 0))) + 0.96 * (1 - padded[..., None])
    photo = np.rint(np.clip(paper, 0, 1) * 255).astype(np.uint8)
    inner = np.s_[pad : pad + alpha.shape[0], pad : pad + alpha.shape[1]]
    found = {make: cutter(photo)[inner] for make, cutter in cutters.items()}
    return CutoutProduct(name, rgb, alpha, {make: cutout for make, cutout in found.items() if _is_whole(cutout, alpha)})


def _is_whole(cutout: np.ndarray, alpha: np.ndarray) -> bool:
    found, true = cutout > 0.5, alpha > 0.5
    near = max(1, round(0.02 * np.sqrt(true.sum())))
    lacks = true & (ndimage.distance_transform_edt(~found) > near)
    extra = found & (ndimage.distance_transform_edt(~true) > near)
    return bool(lacks.sum() < SLIPPED * true.sum() and extra.sum() < 5 * SLIPPED * true.sum())


def _resized(rgb: np.ndarray, alpha: np.ndarray, scale: float) -> tuple[np.ndarray, np.ndarray]:
    """Reduce with premultiplied colours, so that no background colour enters at the rim; never enlarges."""
    if scale >= 1:
        return rgb, alpha
    size = (max(8, round(alpha.shape[1] * scale)), max(8, round(alpha.shape[0] * scale)))
    soft = cv2.resize(alpha, size, interpolation=cv2.INTER_AREA)
    colours = cv2.resize(rgb * alpha[..., None], size, interpolation=cv2.INTER_AREA)
    return colours / np.maximum(soft, 1e-3)[..., None], soft


def draw_composites(
    items: Sequence[CutoutProduct], scenes: Sequence[np.ndarray], count: int, seed: int, crowded: bool = False
) -> Iterator[Composite]:
    """Draw `count` composites, products and kinds of background in turn; the same `seed` gives the same composites.

    `crowded`: another of the products stands behind.
    """
    for index in range(count):
        rng = np.random.default_rng([seed, index])
        number = index % len(items)
        behind = items[(number + 1 + int(rng.integers(len(items) - 1))) % len(items)] if crowded else None
        yield draw_composite(items[number], scenes, BACKGROUNDS[(index // 3 + index) % len(BACKGROUNDS)], rng, behind)


def draw_composite(
    item: CutoutProduct,
    scenes: Sequence[np.ndarray],
    background: str,
    rng: np.random.Generator,
    behind: CutoutProduct | None = None,
) -> Composite:
    """Compose one picture and usually four masks: whole and with a part left out, by true alpha and by a segmenter.

    A handle or a cord is first drawn onto the product in its own colours. `behind` is partly covered by the product.
    """
    wanted = _shares(rng)
    rgb, alpha, cutouts = _laid(item, rng)
    makes = list(cutouts)
    make = makes[int(rng.integers(len(makes)))] if makes else "true alpha"
    other = cutouts.get(make, alpha)
    drawn = ""
    if rng.random() < 0.5:
        drawn = ("handle", "cord")[int(rng.integers(2))]
        rgb, whole, part = _attach(rgb, alpha, drawn, wanted[0], rng)
        if part.any():
            alpha, other = whole, np.maximum(other, part)
        else:
            drawn = ""
    first = (drawn, part > 0.5) if drawn else _part_of(alpha, wanted[0], rng)
    second = _part_of(alpha, wanted[1], rng)
    scene = backdrop(background, rgb, alpha, scenes, rng)
    if behind is not None:
        scene = _stood_behind(scene, behind, alpha, rng)
    image = lay(rgb, alpha, scene, background, rng)
    masks = [Mask(_matte(alpha), 0.0, "", "true alpha"), Mask(_matte(other), 0.0, "", make)]
    for (kind, left), (matte, origin) in zip((first, second), ((alpha, "true alpha"), (other, make)), strict=True):
        masks += _without(alpha, left, kind, matte, origin)
    return Composite(item.name, background, image, tuple(masks))


def compose_photo(
    product: str, image: np.ndarray, matte: np.ndarray, lacking: tuple[tuple[int, int], ...], rng: np.random.Generator
) -> Composite:
    """A real photo (H, W, 3) uint8 with its cutout's matte (H, W) uint8: whole, and twice with a part left out.

    `lacking`: points (row, column) on parts that the matte is known to lack.
    """
    alpha = matte.astype(np.float32) / 255
    masks = [Mask(matte, 0.0, "", "cutout")]
    for share in _shares(rng):
        kind, left = _part_of(alpha, share, rng)
        masks += _without(alpha, left, kind, alpha, "cutout")
    return Composite(product, PHOTO, image, tuple(masks), lacking)


def _without(alpha: np.ndarray, left: np.ndarray, kind: str, matte: np.ndarray, make: str) -> list[Mask]:
    """The mask without the part `left`; no mask if the part does not touch the rest: it would be a second object."""
    solid = alpha > 0.5
    kept = solid & ~left
    if not (ndimage.binary_dilation(kept, iterations=2) & left).any():
        return []
    beside = (ndimage.distance_transform_edt(~left) < 6) & (ndimage.distance_transform_edt(~kept) >= 2)
    gone = left | (beside & ~kept)  # also where the cutout is a little too large
    return [Mask(_matte(np.where(gone, 0, matte)), float((left & solid).sum() / solid.sum()), kind, make)]


def _shares(rng: np.random.Generator) -> tuple[float, float]:
    """Two shares to leave out; a third of all shares are below SMALL."""
    draws = [
        float(rng.uniform(SMALLEST * 1.1, SMALL) if rng.random() < 1 / 3 else rng.uniform(SMALL, LARGEST * 0.95))
        for _ in range(2)
    ]
    return draws[0], draws[1]


def _matte(alpha: np.ndarray) -> np.ndarray:
    return np.rint(np.clip(alpha, 0, 1) * 255).astype(np.uint8)


def _laid(item: CutoutProduct, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
    """Lay the product on an empty canvas, never enlarged: colours, alpha, and the other segmenters' cutouts."""
    height, width = item.alpha.shape
    scale = min(1.0, float(rng.uniform(0.38, 0.7)) * SIDE / max(height, width))
    rgb, alpha = _resized(item.rgb, item.alpha, scale)
    height, width = alpha.shape
    top = int(np.clip(rng.uniform(0.76, 0.9) * SIDE - height, 4, SIDE - height - 4))
    left = int(np.clip((SIDE - width) / 2 + rng.normal(0, 0.08 * SIDE), 4, SIDE - width - 4))
    window = np.s_[top : top + height, left : left + width]
    canvas, mask = np.zeros((SIDE, SIDE, 3), np.float32), np.zeros((SIDE, SIDE), np.float32)
    canvas[window], mask[window] = np.clip(rgb, 0, 1), alpha
    others = {}
    for make, cutout in item.cutouts.items():
        others[make] = np.zeros((SIDE, SIDE), np.float32)
        others[make][window] = cv2.resize(cutout, (width, height), interpolation=cv2.INTER_AREA)
    return canvas, mask, others


# ------------------------------------------------------------------------------------------------- parts to leave out


def _part_of(alpha: np.ndarray, share: float, rng: np.random.Generator) -> tuple[str, np.ndarray]:
    """Choose about `share` of the product, (H, W) bool: one of its thin parts, an end, or a bite."""
    solid = alpha > 0.5
    if rng.random() < 0.4:
        thin = _thin_part(solid, share)
        if thin is not None:
            return "thin part", thin
    return ("end", _end(solid, share, rng)) if rng.random() < 0.5 else ("bite", _bite(solid, share, rng))


def _thin_part(solid: np.ndarray, share: float) -> np.ndarray | None:
    """The piece that an opening removes whose area is nearest to `share`, within half and twice of it; else None."""
    area, best, miss = solid.sum(), None, np.log(2)
    depth = ndimage.distance_transform_edt(solid)
    for radius in np.array([0.04, 0.07, 0.1]) * np.sqrt(area):
        opened = ndimage.distance_transform_edt(~(depth > radius)) <= radius + 1
        pieces, count = ndimage.label(solid & ~opened)
        sizes = np.bincount(pieces.ravel(), minlength=count + 1)[1:] / area
        for number in np.flatnonzero((sizes > SMALLEST) & (sizes < LARGEST)):
            off = abs(np.log(sizes[number] / share))
            if off < miss:
                best, miss = pieces == number + 1, off
    return best


def _end(solid: np.ndarray, share: float, rng: np.random.Generator) -> np.ndarray:
    """Cut off along a line, in the one of six directions where the part is longest.

    A strip thinner than a mask's own noise would not be a part.
    """
    rows, columns = np.nonzero(solid)
    best, longest = solid, -1.0
    y, x = np.mgrid[: solid.shape[0], : solid.shape[1]]
    for angle in rng.uniform(0, 2 * np.pi, 6):
        along = columns * np.cos(angle) + rows * np.sin(angle)
        line = np.quantile(along, 1 - share)
        if along.max() - line > longest:
            best, longest = solid & (x * np.cos(angle) + y * np.sin(angle) > line), float(along.max() - line)
    return best


def _bite(solid: np.ndarray, share: float, rng: np.random.Generator) -> np.ndarray:
    """A disc around a point of the outline."""
    edge = np.argwhere(solid & ~ndimage.binary_erosion(solid))
    row, column = edge[int(rng.integers(len(edge)))]
    y, x = np.mgrid[: solid.shape[0], : solid.shape[1]]
    distance = np.hypot(y - row, x - column)
    return solid & (distance < np.quantile(distance[solid], share))


def _attach(
    rgb: np.ndarray, alpha: np.ndarray, kind: str, share: float, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draw a handle (a bow between two points of the outline) or a cord (a curve that leaves it) behind the product.

    Returns the colours, the alpha of both, and the alpha of the part alone (zeros if ten tries found no room).
    """
    solid = alpha > 0.5
    area = float(solid.sum())
    size = np.sqrt(area)
    edge = np.argwhere(solid & ~ndimage.binary_erosion(solid))[:, ::-1].astype(np.float32)
    middle = edge.mean(axis=0)
    for _ in range(10):
        start = edge[int(rng.integers(len(edge)))]
        out = (start - middle) / max(1.0, float(np.linalg.norm(start - middle)))
        if kind == "handle":
            apart = np.linalg.norm(edge - start, axis=1)
            ends = edge[(apart > 0.25 * size) & (apart < 0.7 * size)]
            if not len(ends):
                continue
            end = ends[int(rng.integers(len(ends)))]
            bulge = out * size * rng.uniform(0.35, 0.8)
            control = np.stack([start - 3 * out, start + bulge, end + bulge, end - 3 * out])
        else:
            turn = np.array([-out[1], out[0]])
            far = [start + out * size * rng.uniform(0.2, 0.5) * k + turn * size * rng.normal(0, 0.35) for k in (1, 2)]
            control = np.stack([start - 3 * out, far[0], far[1], far[1] + turn * size * rng.normal(0, 0.4)])
        curve = _bezier(control)
        length = float(np.linalg.norm(np.diff(curve, axis=0), axis=1).sum())
        width = float(np.clip(share * area / length, 3.0, 0.16 * size if kind == "handle" else 9.0))
        line = np.zeros((2 * SIDE, 2 * SIDE), np.uint8)
        cv2.polylines(line, [np.rint(curve * 2).astype(np.int32)], False, 255, max(1, round(2 * width)), cv2.LINE_AA)
        stroke = cv2.resize(line, (SIDE, SIDE), interpolation=cv2.INTER_AREA).astype(np.float32) / 255
        part = stroke * (alpha < 0.5)
        grown = (part > 0.5).sum() / ((part > 0.5).sum() + area)
        inside = (curve > 4).all() and (curve < SIDE - 4).all()
        if inside and SMALLEST < grown < LARGEST:
            core = ndimage.distance_transform_edt(stroke > 0.5) / (width / 2)
            shade = 0.75 + 0.4 * np.clip(core, 0, 1)
            near = np.linalg.norm(np.argwhere(solid)[:, ::-1] - start, axis=1) < 0.15 * size
            colour = np.median(rgb[solid][near], axis=0) if rng.random() < 0.75 else np.full(3, rng.uniform(0.08, 0.3))
            own = np.clip(colour * shade[..., None], 0, 1)
            return np.where(alpha[..., None] >= 0.5, rgb, own), np.maximum(alpha, part), part
    return rgb, alpha, np.zeros_like(alpha)


def _bezier(control: np.ndarray) -> np.ndarray:
    t = np.linspace(0, 1, 60)[:, None]
    a, b, c, d = control
    curve: np.ndarray = (1 - t) ** 3 * a + 3 * (1 - t) ** 2 * t * b + 3 * (1 - t) * t**2 * c + t**3 * d
    return curve


# -------------------------------------------------------------------------------------------------------- backgrounds


def backdrop(
    kind: str, rgb: np.ndarray, alpha: np.ndarray, scenes: Sequence[np.ndarray], rng: np.random.Generator
) -> np.ndarray:
    """A background of a kind without product and shadow, (SIDE, SIDE, 3) float32 0..1."""
    if kind == "scene":
        return _scene(scenes, rng)
    if kind == "look-alike":
        return _look_alike(rgb, alpha, scenes, rng)
    if kind == "set" or (kind != "studio" and rng.random() < 0.5):
        return _set(scenes, rng)
    return _paper(rng)


def _scene(scenes: Sequence[np.ndarray], rng: np.random.Generator) -> np.ndarray:
    scene = scenes[int(rng.integers(len(scenes)))]
    height, width = scene.shape[:2]
    crop = int(min(height, width) * rng.uniform(0.6, 1.0))
    top, left = int(rng.integers(height - crop + 1)), int(rng.integers(width - crop + 1))
    patch = scene[top : top + crop, left : left + crop]
    return cv2.resize(patch, (SIDE, SIDE), interpolation=cv2.INTER_AREA).astype(np.float32) / 255


def _paper(rng: np.random.Generator) -> np.ndarray:
    """Paper of one colour, half of it white, lit from one side."""
    colour = np.full(3, rng.uniform(0.9, 1)) if rng.random() < 0.5 else rng.uniform(0.15, 0.95, 3)
    y, x = np.mgrid[:SIDE, :SIDE].astype(np.float32) / SIDE - 0.5
    angle = rng.uniform(0, 2 * np.pi)
    light = 1 - rng.uniform(0, 0.25) * (x * np.cos(angle) + y * np.sin(angle) + 0.5)
    return np.clip(colour * light[..., None] + rng.normal(0, 0.006, (SIDE, SIDE, 1)), 0, 1).astype(np.float32)


def _set(scenes: Sequence[np.ndarray], rng: np.random.Generator) -> np.ndarray:
    """A wall of paper and a floor or table of another colour, or of a scene's texture."""
    wall, floor = _paper(rng), _paper(rng)
    if rng.random() < 0.5:
        texture = cv2.GaussianBlur(_scene(scenes, rng), (0, 0), rng.uniform(0.8, 3))
        floor = 0.35 * texture + 0.65 * floor
    horizon = int(rng.uniform(0.5, 0.75) * SIDE)
    step = np.clip((np.arange(SIDE) - horizon) / rng.uniform(1, 14) + 0.5, 0, 1)[:, None, None]
    return (wall * (1 - step) + floor * step).astype(np.float32)


def _look_alike(
    rgb: np.ndarray, alpha: np.ndarray, scenes: Sequence[np.ndarray], rng: np.random.Generator
) -> np.ndarray:
    """A wall and floor in the product's own colours, with some of a scene's texture in the same colours."""
    own = rgb[alpha > 0.5]
    first, second = own[int(rng.integers(len(own)))], np.median(own, axis=0)
    grey = _scene(scenes, rng).mean(axis=2, keepdims=True)
    texture = (grey - grey.mean()) * rng.uniform(0.1, 0.5)
    y = np.mgrid[:SIDE, :SIDE][0][..., None] / SIDE
    wall = first * (1 + 0.2 * (0.5 - y)) if rng.random() < 0.5 else first * (y < 0.66) + second * (y >= 0.66)
    return np.clip(wall + texture, 0, 1).astype(np.float32)


def _stood_behind(scene: np.ndarray, other: CutoutProduct, alpha: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Put another product into the scene, behind the side or the top of this one and partly covered by it."""
    rows, columns = np.flatnonzero((alpha > 0.5).any(axis=1)), np.flatnonzero((alpha > 0.5).any(axis=0))
    scale = float(rng.uniform(0.5, 1.2)) * len(rows) / other.alpha.shape[0]
    rgb, own = _resized(other.rgb, other.alpha, min(1.0, scale, 0.9 * SIDE / max(other.alpha.shape)))
    height, width = own.shape
    middle = columns[0 if rng.random() < 0.5 else -1] + rng.normal(0, 0.25) * width
    left = int(np.clip(middle - width / 2, 0, SIDE - width))
    top = int(np.clip(rows[-1] - height - abs(rng.normal(0, 0.3)) * len(rows), 0, SIDE - height))
    there, cover = scene.copy(), own[..., None]
    window = np.s_[top : top + height, left : left + width]
    there[window] = np.clip(rgb, 0, 1) * cover + scene[window] * (1 - cover)
    return there


def lay(rgb: np.ndarray, alpha: np.ndarray, scene: np.ndarray, background: str, rng: np.random.Generator) -> np.ndarray:
    """Put what belongs to the background under the product, and the product on it: (SIDE, SIDE, 3) uint8."""
    rows, columns = np.flatnonzero((alpha > 0.5).any(axis=1)), np.flatnonzero((alpha > 0.5).any(axis=0))
    foot = int(rows[-1])
    if background == "stand":
        scene = _stand(scene, foot, columns, rng)
    if background == "reflection":
        scene = _reflection(scene, rgb, alpha, foot, rng)
    if background != "reflection" and (background in ("shadow", "stand") or rng.random() < 0.6):
        hard = background == "shadow"
        scene = scene * (1 - _shadow(alpha, foot, hard, rng)[..., None])
    mixed = rgb * alpha[..., None] + scene * (1 - alpha[..., None])
    return np.rint(np.clip(mixed, 0, 1) * 255).astype(np.uint8)


def _shadow(alpha: np.ndarray, foot: int, hard: bool, rng: np.random.Generator) -> np.ndarray:
    """The outline flattened onto the ground, slid aside and blurred: the share of light that is missing."""
    flat, slide = rng.uniform(0.15, 0.5), rng.uniform(-0.9, 0.9)
    matrix = np.array([[1, slide, -slide * foot], [0, flat, foot * (1 - flat)]], np.float32)
    cast = cv2.warpAffine(alpha, matrix, (SIDE, SIDE))
    blur = rng.uniform(1.0, 3.0) if hard else rng.uniform(5, 16)
    depth = rng.uniform(0.4, 0.75) if hard else rng.uniform(0.15, 0.45)
    return cv2.GaussianBlur(cast, (0, 0), blur) * depth


def _reflection(
    scene: np.ndarray, rgb: np.ndarray, alpha: np.ndarray, foot: int, rng: np.random.Generator
) -> np.ndarray:
    """The product upside down in a polished floor, fading downwards."""
    matrix = np.array([[1, 0, 0], [0, -1, 2 * foot + 1]], np.float32)
    seen = cv2.warpAffine(alpha, matrix, (SIDE, SIDE))
    down = np.clip(1 - (np.arange(SIDE) - foot) / (rng.uniform(0.15, 0.4) * SIDE), 0, 1)[:, None]
    fade = down * rng.uniform(0.25, 0.6)
    mirror = cv2.warpAffine(rgb * alpha[..., None], matrix, (SIDE, SIDE))
    mirror = cv2.GaussianBlur(mirror, (0, 0), 1.5) * fade[..., None]
    return (scene * (1 - seen * fade)[..., None] + mirror).astype(np.float32)


def _stand(scene: np.ndarray, foot: int, columns: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A round podium or a block under the product, in a colour of its own, lit from one side."""
    middle, half = (columns[0] + columns[-1]) / 2, (columns[-1] - columns[0]) / 2 * rng.uniform(0.8, 1.4)
    x0, x1, depth = int(middle - half), int(middle + half), int(rng.uniform(0.06, 0.16) * SIDE)
    bow = int(half * 0.16) if rng.random() < 0.6 else 0
    body = np.zeros((SIDE, SIDE), np.uint8)
    cv2.rectangle(body, (x0, foot - bow // 3), (x1, foot + depth), 255, -1)
    top = np.zeros_like(body)
    if bow:
        cv2.ellipse(body, (int(middle), foot + depth), (int(half), bow), 0, 0, 360, 255, -1, cv2.LINE_AA)
        cv2.ellipse(top, (int(middle), foot - bow // 3), (int(half), bow), 0, 0, 360, 255, -1, cv2.LINE_AA)
    else:
        cv2.rectangle(top, (x0, foot - 8), (x1, foot), 255, -1)
    colour = rng.uniform(0.15, 0.95, 3)
    ends = (1.08, 0.75) if rng.random() < 0.5 else (0.75, 1.08)
    light = np.linspace(*ends, SIDE)[None, :, None]
    for shape, shade in ((body, 0.8), (top, 1.0)):
        cover = (shape.astype(np.float32) / 255)[..., None]
        scene = scene * (1 - cover) + np.clip(colour * shade * light, 0, 1) * cover
    return scene.astype(np.float32)
