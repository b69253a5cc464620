"""Finished images of products with text, with and without a fault of the text, to measure `text` and `lettering`.

The products are cutouts with text on them, and photos of packages, each laid down whole as a card. A fault changes one
legible line of the product, as a model that paints over it would; or words are painted into the scene.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from pipelines.evaluation.planted import Draw, read_cutout
from pipelines.evaluation.planted_finals import SIDE, Stood, stood
from pipelines.quality.lettering import LEGIBLE, comparable, letters_of, on_canvas
from pipelines.vision.photos import read_photo
from pipelines.vision.reader import Quad, TextLine, TextReader

FAULTS = {"text": ("smeared", "shuffled", "warped"), "lettering": ("painted words",)}
"""Kinds of faults by the check that is to hold them."""

CHANGED = 4
"""Letters that a line has at least, for a fault to change it."""

WORDS = ("SALE", "Fresh", "ORGANIC", "Premium", "30% OFF", "Natural", "BEST PRICE", "Kitchen", "Limited", "Original")


@dataclass(frozen=True, slots=True)
class Labelled:
    """A product's name, its cutout (h, w, 4) uint8 RGBA, and the lines of text that are read on it."""

    name: str
    cutout: np.ndarray
    lines: list[TextLine]


def read_products(
    cutouts: Sequence[tuple[str, Path]], photos: Sequence[tuple[str, Path]], reader: TextReader, most: int
) -> Iterator[Labelled]:
    """Yield products on which something is legible, at most so many: of cutouts one a name, of photos all."""
    seen: set[str] = set()
    found = 0
    for number, (name, path) in enumerate([*cutouts, *photos]):
        if number < len(cutouts):
            if name in seen:
                continue
            product = read_cutout(path)
        else:
            rgb = read_photo(path.read_bytes()).rgb
            product = np.dstack([rgb, np.full(rgb.shape[:2], 255, np.uint8)])
        seen.add(name)
        over = _over_grey(product)
        lines = [line for line in reader.read(over, reader.find(over)) if line.confidence >= 0.5]
        if any(line.confidence >= LEGIBLE and len(letters_of(line.text)) >= CHANGED for line in lines):
            yield Labelled(name, product, lines)
            found += 1
            if found == most:
                return


def stood_with_text(product: Labelled, rng: Draw, fault: str = "") -> tuple[Stood, list[TextLine]] | None:
    """Stand a product on a bundled backdrop; return the image and the lines that can be compared in it.

    Returns None if no line of `CHANGED` letters can be compared. `fault` is one of `FAULTS`, or "" for none.
    """
    final = stood(product.cutout, rng)
    compared = comparable(on_canvas(product.lines, final.placement), final.product.matte)
    long = [line for line in compared if len(letters_of(line.text)) >= CHANGED]
    if not long:
        return None
    image = final.image.copy()
    if fault == "painted words":
        image = _with_words(image, final.product.matte, rng)
    elif fault:
        line = long[int(rng.integers(len(long)))]
        _change(image, line.quad, fault, rng)
    return replace(final, image=image), compared


def _change(image: np.ndarray, quad: Quad, fault: str, rng: Draw) -> None:
    """Change a line of text in place: smear it, shuffle pieces of its letters, or warp it."""
    corners = np.asarray(quad, np.float32)
    width = max(2, round(float(np.linalg.norm(corners[1] - corners[0]))))
    height = max(2, round(float(np.linalg.norm(corners[3] - corners[0]))))
    target = np.array([[0, 0], [width, 0], [width, height], [0, height]], np.float32)
    there, back = cv2.getPerspectiveTransform(corners, target), cv2.getPerspectiveTransform(target, corners)
    line = cv2.warpPerspective(image, there, (width, height), flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)
    thick, along = min(width, height), int(width < height)
    if fault == "smeared":
        reach = max(3, round(thick * float(rng.uniform(0.7, 1.3)))) | 1
        size = (reach, max(3, reach // 3) | 1)
        changed = cv2.blur(line, size if not along else size[::-1])
    elif fault == "shuffled":
        pieces = max(4, round(max(width, height) / (0.45 * thick)))
        parts = np.array_split(line, pieces, axis=0 if along else 1)
        circle = rng.permutation(len(parts))
        order = np.empty_like(circle)
        order[circle] = np.roll(circle, 1)  # no piece stays where it is
        changed = np.concatenate([parts[n] for n in order], axis=0 if along else 1)
    else:
        y, x = np.mgrid[0:height, 0:width].astype(np.float32)
        wave, strength = thick * float(rng.uniform(0.5, 0.9)), thick * float(rng.uniform(0.3, 0.45))
        bend = strength * np.sin(2 * np.pi * (y if along else x) / wave)
        aside = strength * np.cos(2 * np.pi * (x if along else y) / wave)
        dx, dy = (bend, aside) if along else (aside, bend)
        changed = cv2.remap(line, x + dx.astype(np.float32), y + dy.astype(np.float32), cv2.INTER_LINEAR, None,
                            cv2.BORDER_REFLECT)  # fmt: skip
    size = image.shape[1::-1]
    laid = cv2.warpPerspective(np.ascontiguousarray(changed), back, size, flags=cv2.INTER_LINEAR)
    mask = cv2.warpPerspective(np.full((height, width), 255, np.uint8), back, size, flags=cv2.INTER_NEAREST) > 0
    image[mask] = laid[mask]


def _with_words(image: np.ndarray, matte: np.ndarray, rng: Draw) -> np.ndarray:
    """Return an image with a word painted into its scene, beside or above the product, in a colour that shows."""
    word = str(rng.choice(WORDS))
    font = ImageFont.load_default(int(rng.uniform(0.035, 0.09) * SIDE))
    for _ in range(50):
        layer = Image.new("L", (SIDE, SIDE))
        draw = ImageDraw.Draw(layer)
        box = draw.textbbox((0, 0), word, font=font)
        x, y = (int(rng.integers(4, max(5, SIDE - int(extent) - 4))) for extent in box[2:])
        draw.text((x, y), word, fill=255, font=font)
        ink = np.asarray(layer.rotate(float(rng.uniform(-8, 8)), Image.Resampling.BICUBIC), np.float32) / 255
        if not (ink[matte > 2] > 0).any():
            break
    ground = float(image[ink > 0.5].mean())
    level = ground - 90 if ground > 128 else ground + 90
    share = np.asarray(cv2.GaussianBlur(ink, (0, 0), 0.8))[..., None]
    painted = image * (1 - share) + np.clip(level + rng.uniform(-20, 20, 3), 0, 255) * share
    return np.where((matte > 2)[..., None], image, np.clip(np.rint(painted), 0, 255)).astype(np.uint8)


def _over_grey(product: np.ndarray) -> np.ndarray:
    alpha = product[..., 3:].astype(np.float32) / 255
    mixed: np.ndarray = (product[..., :3] * alpha + 128 * (1 - alpha) + 0.5).astype(np.uint8)
    return mixed
