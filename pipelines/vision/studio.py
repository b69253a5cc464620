"""Photos on plain paper: detect the background from the picture's border, and cut the product out by colour.

With a known background, every pixel has a distance to it. Colour alone cannot separate a shadow (a darker background)
from a grey product, or a white product from white paper. There the salient-object net decides.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from pipelines.vision.segmenters import main_pieces

BORDER = 0.02
"""Width of the border, as a share of the picture's shorter side."""

MARGIN = 0.02
"""Margin around the product in which pixels do not count as clutter, as a share of the longer side: soft edges."""

MIN_INLIERS = 0.7
MAX_SPREAD = 5.0
MIN_BRIGHTNESS = 120.0

UNMISTAKABLE_TINT = 48.0
UNMISTAKABLE_SHADE = 0.25
"""Levels of tint, and share of the background's light, from which a pixel is not paper in any shadow."""

THIN = 0.003
"""Half the largest width of the difference of two outlines of one thing, as a share of the picture's longer side."""

LINE, LINE_WIDTH = 12.0, 0.006
"""Levels from the paper that a line has at least, and half its largest width as a share of the longer side."""

LINE_INSIDE, LINE_OUTSIDE = 0.01, 0.03
"""Shares of the longer side by which a line leaves the product's body inside the cutout, and the cutout beside it."""

HOLE_PAPER = 0.1
"""Share of plain paper below which a hole in a cutout shows the product itself. Of 42 photos on paper, three had such
holes, all of them the product's own; every other hole had 0.38 and more."""

DARKEST_SHADOW = 0.5
"""Shade below which a part is rather product than paper in a shadow."""

DARKEST, LIGHTEST = 0.15, 1.02
"""Shares of the paper's light between which a colour may be the paper's, in a shadow."""


@dataclass(frozen=True, slots=True)
class Studio:
    """A plain background.

    Attributes:
        colour: `(H, W, 3)` float32: the background behind every pixel, 0..255.
        spread: Standard deviation of the border from it, in levels.
    """

    colour: np.ndarray
    spread: float


def find_studio(image: np.ndarray) -> Studio | None:
    """Detect plain paper, evenly lit or with a smooth gradient, in an image `(H, W, 3)` uint8 RGB.

    It fits a quadratic surface to the border's colours without outliers, as a product may touch the border. The
    background is plain if most of the border is close to the surface. Dark backgrounds are refused, because products
    fade into them.
    """
    height, width = image.shape[:2]
    frame = max(2, round(BORDER * min(height, width)))
    border = np.ones((height, width), bool)
    border[frame:-frame, frame:-frame] = False
    ys, xs = np.nonzero(border)
    every = max(1, len(ys) // 4000)
    ys, xs = ys[::every], xs[::every]
    colours = image[ys, xs].astype(np.float64)
    basis = _quadratic(ys / height, xs / width)

    kept = np.abs(colours - np.median(colours, axis=0)).max(axis=1) < 40
    for _ in range(4):
        if kept.sum() < 50:
            return None
        fit, *_ = np.linalg.lstsq(basis[kept], colours[kept], rcond=None)
        residual = np.abs(colours - basis @ fit).max(axis=1)
        kept = residual < max(4.0, 2.5 * residual[kept].std())
    spread = float((colours - basis @ fit)[kept].std())
    if kept.mean() < MIN_INLIERS or spread > MAX_SPREAD or colours[kept].mean() < MIN_BRIGHTNESS:
        return None
    yy, xx = np.mgrid[0:height, 0:width]
    surface = _quadratic((yy / height).ravel(), (xx / width).ravel()) @ fit
    return Studio(np.clip(surface, 1, 255).reshape(height, width, 3).astype(np.float32), spread)


def cut_studio(image: np.ndarray, studio: Studio, saliency: np.ndarray) -> np.ndarray:
    """Cut the product out of plain paper.

    Args:
        image: `(H, W, 3)` uint8 RGB.
        studio: Its background.
        saliency: `(H, W)` float, 0..1, of the salient-object net.

    Returns:
        `(H, W)` bool, true = product.
    """
    side = max(image.shape[:2])
    pixels, tint, shade = beside_paper(image, studio)
    plain = _is_plain(pixels, studio)
    distinct = _is_distinct(tint, shade, studio)

    product = main_pieces(saliency > 0.5)
    if not product.any():
        return product
    # add thin parts that the net misses at 320 px (cords, straps), and pixels that cannot be shadow
    unmistakable = (tint > UNMISTAKABLE_TINT) | (shade < UNMISTAKABLE_SHADE)
    product |= _touching((distinct & (saliency > 0.02)) | unmistakable, product)
    # remove paper: a rim around the product, and gaps inside
    paper = _grow((saliency < 0.1) & ~distinct, plain, round(0.025 * side))
    product &= ~paper
    product &= ~_gaps(plain & product, saliency, side)
    product = main_pieces(product, share=0.02)
    return product | _holes_without_paper(product, plain)


def paper_share(image: np.ndarray, studio: Studio, product: np.ndarray) -> float:
    """Return the share of a product whose colour is the paper's, in light or in any shadow, 0..1.

    It is large for a shadow or a piece of floor in a cutout, and for a white, grey or black product.

    Args:
        image: `(H, W, 3)` uint8 RGB.
        studio: Its background.
        product: `(H, W)` bool.
    """
    return float(like_paper(image, studio)[product].mean()) if product.any() else 0.0


def without_paper(image: np.ndarray, studio: Studio, product: np.ndarray, opinion: np.ndarray) -> np.ndarray:
    """Remove what has the paper's colour, in light or in shadow, and is no product in another segmenter's opinion.

    A shadow lies beside the product. Inside it, only plain paper is removed: grey there is the product's own.

    Args:
        image: `(H, W, 3)` uint8 RGB.
        studio: Its background.
        product: `(H, W)` bool, the cutout by colour.
        opinion: `(H, W)` bool, the other segmenter's mask.

    Returns:
        `(H, W)` bool. Pieces thinner than the difference of two outlines stay.
    """
    disc = _thin_disc(product)
    doubted = product & ~opinion
    paper = doubted & like_paper(image, studio)
    beside = cv2.dilate(_outside(product).astype(np.uint8), disc) > 0
    removed = _touching(paper, wide_parts(paper)) & (_touching(paper, beside) | plain_paper(image, studio))
    kept = product & ~(doubted & (cv2.dilate(removed.astype(np.uint8), disc) > 0))
    # a label stays whose thread has the paper's colour
    return main_pieces(kept, share=0.02) | _touching(kept, wide_parts(kept & ~like_paper(image, studio)))


def unmistakable(image: np.ndarray, studio: Studio, product: np.ndarray) -> np.ndarray:
    """Return the wide parts of a product `(H, W)` bool that no paper can be, in light or in any shadow."""
    return wide_parts(product & ~like_paper(image, studio))


def lines_beyond(image: np.ndarray, studio: Studio, product: np.ndarray) -> np.ndarray:
    """Return thin lines that a cutout contains in part, and that continue beside it, `(H, W)` bool.

    They are joints of a floor, or cords of which the cutout lacks the end.

    Args:
        image: `(H, W, 3)` uint8 RGB.
        studio: Its background.
        product: `(H, W)` bool, the cutout.
    """
    side = max(image.shape[:2])
    pixels, _, _ = beside_paper(image, studio)
    marked = np.abs(pixels - studio.colour).max(axis=2) > max(LINE, 5 * studio.spread)
    disc = _disc(max(3, round(LINE_WIDTH * side)))
    inner, outer = (
        part & (cv2.morphologyEx(whole.astype(np.uint8), cv2.MORPH_OPEN, disc) == 0)
        for part, whole in ((product, product), (marked & ~product, marked))
    )
    count, labels = cv2.connectedComponents((inner | outer).astype(np.uint8), connectivity=8)
    body = cv2.distanceTransform((~product | inner).astype(np.uint8), cv2.DIST_L2, 5)
    beside = cv2.distanceTransform((~product).astype(np.uint8), cv2.DIST_L2, 5)
    inside, outside = np.zeros(count), np.zeros(count)
    np.maximum.at(inside, labels[inner], body[inner])
    np.maximum.at(outside, labels[outer], beside[outer])
    found = (inside > LINE_INSIDE * side) & (outside > LINE_OUTSIDE * side)
    found[0] = False
    return found[labels]


def _outside(product: np.ndarray) -> np.ndarray:
    """Return what a product `(H, W)` bool does not enclose."""
    _, regions = cv2.connectedComponents(np.pad(~product, 1, constant_values=True).astype(np.uint8), connectivity=4)
    outside: np.ndarray = regions == regions[0, 0]
    return outside[1:-1, 1:-1]


def wide_parts(mask: np.ndarray) -> np.ndarray:
    """Return the parts of a mask `(H, W)` bool that are wider than the difference of two outlines of one thing."""
    return cv2.morphologyEx(mask.astype(np.uint8), cv2.MORPH_OPEN, _thin_disc(mask)) > 0


def plain_paper(image: np.ndarray, studio: Studio) -> np.ndarray:
    """Return where a picture `(H, W, 3)` uint8 RGB has the paper's colour without any shadow, `(H, W)` bool."""
    return _is_plain(beside_paper(image, studio)[0], studio)


def clutter(image: np.ndarray, studio: Studio, product: np.ndarray) -> float:
    """Return the share of the picture around a product `(H, W)` bool that is neither paper nor shadow, 0..1.

    Photos on paper have almost none. A scene with a plain border has other objects.
    """
    _, tint, shade = beside_paper(image, studio)
    reach = round(MARGIN * max(image.shape[:2])) | 1
    around = cv2.dilate(product.astype(np.uint8), np.ones((reach, reach), np.uint8)) == 0
    return float(_is_distinct(tint, shade, studio)[around].mean()) if around.any() else 0.0


def beside_paper(image: np.ndarray, studio: Studio) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return slightly smoothed pixels as float32, and each one's tint, in levels, and shade relative to the paper.

    A shadow is the paper times a shade below 1; the rest of the difference is tint.
    """
    pixels = cv2.GaussianBlur(image, (0, 0), 0.8).astype(np.float32)
    shade = (pixels * studio.colour).sum(axis=2) / (studio.colour**2).sum(axis=2)
    tint = np.abs(pixels - shade[..., None] * studio.colour).max(axis=2)
    return pixels, tint, shade


def _thin_disc(mask: np.ndarray) -> np.ndarray:
    return _disc(max(1, round(THIN * max(mask.shape))))


def _disc(radius: int) -> np.ndarray:
    return cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1))


def like_paper(image: np.ndarray, studio: Studio) -> np.ndarray:
    """Return where a picture has the paper's colour, in light or in any shadow, `(H, W)` bool."""
    _, tint, shade = beside_paper(image, studio)
    tinted = max(6.0, 4 * studio.spread) + 10 * np.clip(1 - shade, 0, 1)
    like: np.ndarray = (tint < tinted) & (shade > DARKEST) & (shade < LIGHTEST)
    return like


def shaded_paper(image: np.ndarray, studio: Studio) -> np.ndarray:
    """Return where a picture has the paper's colour in a shadow that leaves more than half of the light, `(H, W)` bool.

    Darker parts are mostly product: a black base, a grey cup.
    """
    _, _, shade = beside_paper(image, studio)
    shaded: np.ndarray = like_paper(image, studio) & (shade > DARKEST_SHADOW) & ~plain_paper(image, studio)
    return shaded


def _is_plain(pixels: np.ndarray, studio: Studio) -> np.ndarray:
    near: np.ndarray = np.abs(pixels - studio.colour).max(axis=2) < max(3.0, 2.5 * studio.spread)
    return near


def _is_distinct(tint: np.ndarray, shade: np.ndarray, studio: Studio) -> np.ndarray:
    return (tint > max(12.0, 5 * studio.spread)) | (shade < DARKEST_SHADOW)


def _holes_without_paper(product: np.ndarray, plain: np.ndarray) -> np.ndarray:
    """Return the holes of a product, both `(H, W)` bool, that show next to no plain paper: its own, whatever their
    colour. The salient net leaves such holes in a lid or a grid that has nearly the paper's colour."""
    holes = ~product & ~_outside(product)
    count, labels = cv2.connectedComponents(holes.astype(np.uint8), connectivity=4)
    paper = np.bincount(labels[plain & holes], minlength=count) / np.maximum(1, np.bincount(labels.ravel()))
    own = paper < HOLE_PAPER
    own[0] = False
    found: np.ndarray = own[labels]
    return found


def _quadratic(y: np.ndarray, x: np.ndarray) -> np.ndarray:
    return np.stack([np.ones_like(x), x, y, x * x, x * y, y * y], axis=1)


def _touching(candidates: np.ndarray, product: np.ndarray) -> np.ndarray:
    """Return the connected pieces of `candidates` that overlap `product`."""
    count, labels = cv2.connectedComponents(candidates.astype(np.uint8), connectivity=8)
    touched = np.zeros(count, bool)
    touched[np.unique(labels[product])] = True
    touched[0] = False
    return touched[labels]


def _grow(seed: np.ndarray, into: np.ndarray, steps: int) -> np.ndarray:
    """Dilate `seed` by `steps` pixels inside `into`."""
    region, allowed = seed.astype(np.uint8), (seed | into).astype(np.uint8)
    kernel = np.ones((3, 3), np.uint8)
    for _ in range(steps):
        region = cv2.dilate(region, kernel) & allowed
    return region > 0


def _gaps(plain: np.ndarray, saliency: np.ndarray, side: int) -> np.ndarray:
    """Return large pieces of plain paper inside the product, such as a handle's eye, with a low saliency."""
    count, labels, stats, _ = cv2.connectedComponentsWithStats(plain.astype(np.uint8), connectivity=4)
    areas = stats[:, cv2.CC_STAT_AREA]
    doubt = np.bincount(labels.ravel(), weights=saliency.ravel(), minlength=count) / np.maximum(1, areas)
    gaps = (areas > (0.006 * side) ** 2) & (doubt < 0.8)
    gaps[0] = False
    return gaps[labels]
