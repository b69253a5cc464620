"""Is the product the photo's, its edge clean, and the scene a plausible picture?

Three fast measures of the finished image, each with a map of where:

    fidelity     share of the product's opaque pixels that equal the placed photo's exactly
    halo         colour difference between the rim just outside the product and the scene further out
    background   is the scene a picture: not noise, not flat, not banded, not black or clipped
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from pipelines.vision.placement import OPAQUE, LaidProduct

SECTORS = 48
"""Number of directions in which the rim is measured: a halo is all around, a contact shadow only below."""

RIM_SHARES = (0.004, 0.008, 0.016)
"""Widths of the rims, as shares of the picture's longer side: 4, 8 and 16 px at 1,024."""


@dataclass(frozen=True, slots=True)
class Measure:
    """A score with its origin: `where` is (H, W) float32, 0..1; `reason` names the fault, or is ""."""

    score: float
    where: np.ndarray
    reason: str = ""


def product_fidelity(image: np.ndarray, product: LaidProduct) -> Measure:
    """Return the share of opaque pixels (matte >= 0.99) with exactly the placed photo's colour, 0..1; 1 = all.

    Args:
        image: (H, W, 3) uint8, the finished picture.
        product: The placed product, derived from the photo again.
    """
    if image.shape != product.colour.shape:
        size = f"{image.shape[1]} x {image.shape[0]}"
        return Measure(0.0, np.ones(image.shape[:2], np.float32), f"the image is {size}, not its placement's size")
    opaque = product.matte >= OPAQUE
    if not opaque.any():
        return Measure(0.0, np.zeros(opaque.shape, np.float32), "no pixel of the product is opaque")
    changed = opaque & (image != product.colour).any(axis=2)
    share = 1 - changed.sum() / opaque.sum()
    reason = f"{changed.sum():,} of {opaque.sum():,} product pixels are not the photo's" if changed.any() else ""
    return Measure(float(share), changed.astype(np.float32), reason)


def halo(image: np.ndarray, matte: np.ndarray) -> Measure:
    """Measure how much a rim around the product differs from the scene behind it, in colour levels of 0..1.

    In each direction the rim's colour is compared with the scene's a little further out. A halo differs the same way in
    most directions. A contact shadow, a horizon or a prop differs in a few only. The score is the difference that 70 %
    of the directions reach, with one sign. It is the largest over three rim widths and three channels.

    Args:
        image: (H, W, 3) uint8.
        matte: (H, W) uint8, 255 = product.
    """
    side = max(matte.shape)
    distance = _distance(matte)
    sector = _sectors(matte, (distance > 0) & (distance <= 5 * max(2.0, max(RIM_SHARES) * side)))
    worst, where = 0.0, np.zeros(matte.shape, np.float32)
    for share in RIM_SHARES:
        width = max(2.0, share * side)
        rim = (distance > 0) & (distance <= width)
        behind = (distance > 2.5 * width) & (distance <= 5 * width)
        inner, outer = _means(image, rim, sector), _means(image, behind, sector)
        both = np.isfinite(inner).all(axis=1) & np.isfinite(outer).all(axis=1)
        if both.sum() < SECTORS // 4:  # the product fills the frame
            continue
        low, high = np.quantile((inner - outer)[both], [0.3, 0.7], axis=0) / 255
        shift = np.where(low > 0, low, np.where(high < 0, high, 0))
        if np.abs(shift).max() > worst:
            worst = float(np.abs(shift).max())
            where = rim * np.float32(min(1.0, worst * 5))
            brighter = shift[np.abs(shift).argmax()] > 0
    reason = f"a {'bright' if brighter else 'dark'} rim around the product" if worst else ""
    return Measure(worst, where, reason)


def background_quality(image: np.ndarray, matte: np.ndarray) -> Measure:
    """Rate the scene as a picture, 0..1: the lowest of four scores of the background. Below 0.5 it is broken.

    noise: Immerkaer's noise estimate (1996) at full, half, quarter and eighth size; pictures have little of it. flat:
    almost no light and shade. banding: few of the grey levels between dark and light occur, or light and dark stripes
    alternate over the whole picture. dead: much of it is black or clipped.

    Args:
        image: (H, W, 3) uint8.
        matte: (H, W) uint8, 255 = product.
    """
    far = _distance(matte) > 0.01 * max(matte.shape)
    if far.mean() < 0.02:
        return Measure(1.0, np.zeros(matte.shape, np.float32))
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    contrast = cv2.meanStdDev(image, mask=far.astype(np.uint8))[1].max()
    looks = {
        "noise": _noise(image, far),
        "flat": min(1.0, float(contrast) / FLAT_LEVELS / 2),
        "banding": min(_levels_used(grey, far), _stripes(grey, far)),
        "dead": _alive(image, far),
    }
    name, score = min(looks.items(), key=lambda look: look[1])
    reason = {
        "noise": "the scene is noise",
        "flat": "the scene is one flat colour",
        "banding": "the scene is banded",
        "dead": "much of the scene is black or burnt out",
    }[name]
    return Measure(score, far * np.float32(1 - score), reason if score < 0.5 else "")


NOISE_LEVELS = (20.0, 32.0, 44.0, 56.0)
"""Noise estimates, in grey levels, from which a picture of full, half, quarter and eighth size is noise."""

FLAT_LEVELS = 1.5
"""Standard deviation, in levels, below which a scene is flat."""

STRIPES = 12
"""From this number of alternations of light and dark, rows or columns are stripes and not a horizon or a window."""


def _noise(image: np.ndarray, region: np.ndarray) -> float:
    """Return 1 without noise, 0.5 at the levels above, 0 at twice these."""
    kernel = np.array([[1, -2, 1], [-2, 4, -2], [1, -2, 1]], np.float32)
    scores = []
    picture: np.ndarray = image.astype(np.float32)
    inside: np.ndarray = region.astype(np.float32)
    for limit in NOISE_LEVELS:
        if min(picture.shape[:2]) < 16:
            break
        estimate = np.abs(cv2.filter2D(picture, cv2.CV_32F, kernel)).mean(axis=2)[inside > 0.99]
        if estimate.size:
            sigma = float(np.sqrt(np.pi / 2) / 6 * estimate.mean())
            scores.append(max(0.0, 1 - sigma / limit / 2))
        size = (picture.shape[1] // 2, picture.shape[0] // 2)
        picture = cv2.resize(picture, size, interpolation=cv2.INTER_AREA)
        inside = cv2.resize(inside, size, interpolation=cv2.INTER_AREA)
    return min(scores, default=1.0)


def _levels_used(grey: np.ndarray, region: np.ndarray) -> float:
    """Return a score of the share of grey levels that occur between the 2nd and 98th percentile; 0.4 or less scores
    under 0.5."""
    values = grey[region]
    low, high = np.percentile(values, [2, 98]).astype(int)
    if high - low < 12:
        return 1.0
    counts = np.bincount(values, minlength=256)[low : high + 1]
    used = float((counts > 0.0002 * values.size).mean())
    return min(1.0, used / 0.8)


def _stripes(grey: np.ndarray, region: np.ndarray) -> float:
    """Return 1 without stripes. Return less than 0.5 from `STRIPES` alternations that explain most of the variance of
    rows or columns."""
    height, width = grey.shape
    sigma = 0.03 * max(grey.shape)
    shrink = max(1.0, sigma / 8)  # nothing finer than sigma is left in `smooth`
    size = (round(width / shrink), round(height / shrink))
    small = cv2.resize(grey.astype(np.float32), size, interpolation=cv2.INTER_AREA)
    smooth = cv2.resize(cv2.GaussianBlur(small, (0, 0), sigma / shrink), (width, height))
    detail = np.where(region, grey - smooth, 0)
    score = 1.0
    for axis in (0, 1):
        inside = region.sum(axis=axis)
        profile = detail.sum(axis=axis)[inside > 0.2 * region.shape[axis]] / inside[inside > 0.2 * region.shape[axis]]
        strong = profile[np.abs(profile) > 3]
        alternations = int((np.diff(np.sign(strong)) != 0).sum()) if strong.size else 0
        explained = float(profile.var() / max(1e-6, detail[region].var())) if profile.size else 0.0
        if explained > 0.5:
            score = min(score, max(0.0, 1 - alternations / STRIPES / 2))
    return score


def _alive(image: np.ndarray, region: np.ndarray) -> float:
    """Return 1 if no pixel is black or clipped, 0.5 if half of them are."""
    red, green, blue = cv2.split(image)
    high, low = cv2.max(cv2.max(red, green), blue), cv2.min(cv2.min(red, green), blue)
    dead = (high <= 4) | ((high >= 253) & (low <= 2))
    return float(1 - dead[region].mean())


def _distance(matte: np.ndarray) -> np.ndarray:
    """Return each pixel's exact distance to the matte, px, float32."""
    return cv2.distanceTransform((matte < 3).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)


def _sectors(matte: np.ndarray, region: np.ndarray) -> np.ndarray:
    """Return the direction from the product's centre of each pixel of a region, 0..SECTORS-1; 0 outside it."""
    rows, columns = np.nonzero(matte >= 128)
    middle = (rows.mean(), columns.mean()) if rows.size else (matte.shape[0] / 2, matte.shape[1] / 2)
    y, x = np.nonzero(region)
    angle = np.arctan2(y - middle[0], x - middle[1])
    sectors = np.zeros(matte.shape, np.intp)
    sectors[region] = ((angle + np.pi) / (2 * np.pi) * SECTORS).astype(int) % SECTORS
    return sectors


def _means(image: np.ndarray, region: np.ndarray, sector: np.ndarray) -> np.ndarray:
    """Return a region's mean colour by direction: (SECTORS, 3), NaN for an empty one."""
    where = sector[region]
    counts = np.bincount(where, minlength=SECTORS).astype(float)
    counts[counts == 0] = np.nan
    return np.stack(
        [np.bincount(where, image[..., c][region], minlength=SECTORS) / counts for c in range(image.shape[2])], axis=1
    )
