"""Is the text on the product what it was in the photo, and is there no other text in the scene?

Two measures of the finished image, with the help of a reader of text (`pipelines.vision.reader`):

    text       the character error rate of the worst line of the product's text, against what the photo says there
    lettering  the letters of lines outside the product that the photo does not have

Only lines that were legible in the photo are compared, and only if the image shows them large enough to be read.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Sequence

import cv2
import numpy as np

from pipelines.quality.fidelity import Measure
from pipelines.vision.placement import OPAQUE, Placement
from pipelines.vision.reader import Quad, TextLine, TextReader, height_of

LEGIBLE = 0.95
"""Confidence of the reader from which a line of the photo is legible."""

READ = 0.8
"""Confidence from which a line in the scene is text: textures are read with less."""

SHORTEST = 3
"""Letters and digits of a line that says anything."""

SMALLEST = 12.0
"""Height of a line in the image, px, from which it is compared. Smaller print is not legible at the published size."""

MOST = 24
"""Lines that are compared at most, the tallest of them."""

ON_PRODUCT = 0.95
"""Share of a line's area that is opaque product, for it to be text on the product."""

OUTSIDE = 0.8
"""Share of a line's area without product, for it to be text in the scene."""

SAME = 0.5
"""Character error rate up to which a line in the scene is one of the photo's: a reflection, or a shadow of it."""


def on_canvas(lines: Iterable[TextLine], placement: Placement) -> list[TextLine]:
    """Lines of the photo with the places where the image shows them."""
    left, top, right, bottom = placement.source
    scale = np.array([placement.width / (right - left), placement.height / (bottom - top)])
    corner, target = np.array([left, top]), np.array([placement.left, placement.top])
    return [
        TextLine(line.text, line.confidence, _quad((np.asarray(line.quad) - corner) * scale + target)) for line in lines
    ]


def comparable(lines: Iterable[TextLine], matte: np.ndarray) -> list[TextLine]:
    """The lines that can be compared, the tallest first.

    Args:
        lines: The photo's, at their places in the image (`on_canvas`).
        matte: (H, W) uint8, 255 = product.
    """
    opaque = matte >= OPAQUE
    kept = [
        line
        for line in lines
        if line.confidence >= LEGIBLE
        and len(letters_of(line.text)) >= SHORTEST
        and height_of(line.quad) >= SMALLEST
        and _share(opaque, line.quad) >= ON_PRODUCT
    ]
    return sorted(kept, key=lambda line: -height_of(line.quad))[:MOST]


def measure_text(image: np.ndarray, lines: Sequence[TextLine], reader: TextReader) -> Measure:
    """Return the character error rate of the worst line, 0..1; 0 if there is none.

    Args:
        image: (H, W, 3) uint8, the finished picture.
        lines: What is to be there (`comparable`).
        reader: What reads it.
    """
    where = np.zeros(image.shape[:2], np.float32)
    worst, reason = 0.0, ""
    for line, now in zip(lines, reader.read(image, [line.quad for line in lines]), strict=True):
        rate = error_rate(line.text, now.text)
        _fill(where, line.quad, rate)
        if rate > worst:
            found = f"reads {now.text!r}" if now.text.strip() else "cannot be read"
            worst, reason = rate, f"the text {line.text!r} on the product {found}"
    return Measure(worst, where, reason)


def measure_lettering(image: np.ndarray, matte: np.ndarray, known: Sequence[str], reader: TextReader) -> Measure:
    """Return the number of letters in lines of text outside the product that the photo does not have.

    Args:
        image: (H, W, 3) uint8, the finished picture.
        matte: (H, W) uint8, 255 = product.
        known: The lines of the photo.
        reader: What finds and reads text.
    """
    free = matte < 3
    outside = [quad for quad in reader.find(image) if _share(free, quad) >= OUTSIDE]
    where = np.zeros(image.shape[:2], np.float32)
    texts = []
    for line in reader.read(image, outside):
        said = len(letters_of(line.text)) >= SHORTEST and line.confidence >= READ
        if said and not any(error_rate(line.text, text) <= SAME for text in known):
            texts.append(line.text)
            _fill(where, line.quad, 1.0)
    letters = sum(len(letters_of(text)) for text in texts)
    return Measure(float(letters), where, f"the scene has text that the photo has not: {texts[0]!r}" if texts else "")


def error_rate(wanted: str, read: str) -> float:
    """Return the character error rate, 0..1: insertions, deletions and replacements a letter. Case, accents, spaces and
    signs do not count."""
    expected, found = letters_of(wanted), letters_of(read)
    if not expected:
        return 0.0
    row = list(range(len(found) + 1))
    for n, letter in enumerate(expected, start=1):
        above, row = row, [n]
        for m, other in enumerate(found, start=1):
            row.append(min(above[m] + 1, row[-1] + 1, above[m - 1] + (letter != other)))
    return min(1.0, row[-1] / len(expected))


def letters_of(text: str) -> str:
    """Return letters and digits of a text, without case and accents."""
    plain = unicodedata.normalize("NFKD", text).casefold()
    return "".join(letter for letter in plain if letter.isalnum())


def _share(region: np.ndarray, quad: Quad) -> float:
    """Return the share of a line's area that is in a region (H, W) bool; what is outside the picture is not."""
    corners = np.rint(np.asarray(quad)).astype(np.int32)
    low, high = corners.min(axis=0), corners.max(axis=0) + 1
    area = np.zeros((max(1, high[1] - low[1]), max(1, high[0] - low[0])), np.uint8)
    cv2.fillPoly(area, [corners - low], 1)
    inside = np.zeros(area.shape, bool)
    x0, y0, x1, y1 = max(0, low[0]), max(0, low[1]), min(region.shape[1], high[0]), min(region.shape[0], high[1])
    if x1 > x0 and y1 > y0:
        inside[y0 - low[1] : y1 - low[1], x0 - low[0] : x1 - low[0]] = region[y0:y1, x0:x1]
    return float((inside & (area > 0)).sum() / max(1, area.sum()))


def _fill(where: np.ndarray, quad: Quad, value: float) -> None:
    """Mark a line in a map, in place, where nothing stronger is."""
    mark = cv2.fillPoly(np.zeros(where.shape, np.float32), [np.rint(np.asarray(quad)).astype(np.int32)], value)
    np.maximum(where, mark, out=where)


def _quad(corners: np.ndarray) -> Quad:
    return tuple((float(x), float(y)) for x, y in corners)
