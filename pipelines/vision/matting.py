"""Refine a rough mask to a soft matte at the photo's resolution, and restore the product's colours in its soft edge."""

from __future__ import annotations

from collections.abc import Iterator

import cv2
import numpy as np

STRIP_PIXELS = 2_000_000
"""Larger photos are processed in strips of rows of about this many pixels, which bounds memory."""


def refine_matte(image: np.ndarray, mask: np.ndarray, radius: int, epsilon: float = 1e-4) -> np.ndarray:
    """Align a soft mask with the edges of its image by a colour guided filter.

    He, Sun and Tang, "Guided Image Filtering", ECCV 2010, section 3.3: in each window the matte is a linear function of
    the three colour channels. Only a band of `2 * radius` around the mask's edge changes.

    Args:
        image: `(H, W, 3)` uint8 RGB.
        mask: `(H, W)` float, 0..1.
        radius: Radius of the window, px: about the largest error of the mask's edge.
        epsilon: Regularisation; colour variances (0..1) below it count as flat.

    Returns:
        `(H, W)` float32, 0..1.
    """
    mask = mask.astype(np.float32)
    soft = np.empty(mask.shape, np.uint8)
    for rows, seen in _strips(mask.shape[0], mask.shape[1], halo=1):
        change = cv2.absdiff(cv2.blur(mask[seen], (3, 3)), np.round(mask[seen])) > 0.02
        soft[rows] = change[_core(rows, seen)]
    unsure = cv2.dilate(soft, _disc(radius))
    if not unsure.any():
        return mask
    y0, y1, x0, x1 = _bounds(unsure, 2 * radius)
    image, rough, unsure = image[y0:y1, x0:x1], mask[y0:y1, x0:x1], unsure[y0:y1, x0:x1]
    matte = np.round(mask)
    refined = matte[y0:y1, x0:x1]
    second = max(2, radius // 2)
    for rows, seen in _strips(y1 - y0, x1 - x0, halo=2 * radius + 2 * second):
        band = unsure[seen] > 0
        if not band.any():
            continue
        guide = image[seen].astype(np.float32) / 255
        # twice: the first pass locates the edge, the second makes a soft matte around it
        edge = (_guided_filter(guide, rough[seen], band, radius, epsilon) > 0.5).astype(np.float32)
        guided = _guided_filter(guide, np.where(band, edge, np.round(rough[seen])), band, second, epsilon)
        core = _core(rows, seen)
        refined[rows][band[core]] = np.clip(guided[core][band[core]], 0, 1)
    return matte


def decontaminate(image: np.ndarray, matte: np.ndarray, radius: int = 8) -> np.ndarray:
    """Remove the old background's colour from pixels of the soft edge.

    An edge pixel shows `matte * product + (1 - matte) * background`. The background is estimated from nearby pixels
    that are certainly background, and the equation is solved for the product. The division amplifies noise, so the
    result is kept near the colours of the product's inside.

    Args:
        image: `(H, W, 3)` uint8 RGB.
        matte: `(H, W)` float, 0..1.
        radius: Distance in which pure colours are searched, px.

    Returns:
        `(H, W, 3)` uint8; equal to `image` where the matte is 0 or at least 0.99.
    """
    if not ((matte > 0) & (matte < 0.99)).any():
        return image
    result = image.copy()
    for rows, seen in _strips(matte.shape[0], matte.shape[1], halo=3 * radius):  # the Gaussians below end at 2 * radius
        core = _core(rows, seen)
        rim = (matte[rows] > 0) & (matte[rows] < 0.99)
        if rim.any():
            clean = _without_background(image[seen].astype(np.float32), matte[seen], radius)[core]
            result[rows][rim] = np.clip(clean[rim] + 0.5, 0, 255).astype(np.uint8)
    return result


def _without_background(colours: np.ndarray, matte: np.ndarray, radius: int) -> np.ndarray:
    """Return the result of `decontaminate` for every pixel, in float."""
    inside, inside_weight = _spread(colours, (matte >= 0.99).astype(np.float32), radius)
    outside, outside_weight = _spread(colours, (matte <= 0.01).astype(np.float32), radius)
    alpha = np.maximum(matte, 0.1)[..., None]
    solved = np.clip((colours - (1 - alpha) * outside) / alpha, 0, 255)
    solved = np.where(outside_weight[..., None] > 0, solved, colours)
    # the lower the matte, the less the pixel shows of the product
    trust = np.clip(matte, 0, 1)[..., None]
    clean: np.ndarray = np.where(inside_weight[..., None] > 0, trust * solved + (1 - trust) * inside, solved)
    return clean


def _strips(height: int, width: int, halo: int) -> Iterator[tuple[slice, slice]]:
    """Yield the rows of each strip, and these rows with a margin of `halo` on both sides.

    A picture of up to `STRIP_PIXELS` is one strip.
    """
    step = height if height * width <= STRIP_PIXELS else max(1, STRIP_PIXELS // width)
    for top in range(0, height, step):
        bottom = min(height, top + step)
        yield slice(top, bottom), slice(max(0, top - halo), min(height, bottom + halo))


def _core(rows: slice, seen: slice) -> slice:
    """Return the position of `rows` inside the slice `seen`."""
    return slice(rows.start - seen.start, rows.stop - seen.start)


def _guided_filter(guide: np.ndarray, target: np.ndarray, band: np.ndarray, radius: int, epsilon: float) -> np.ndarray:
    """Apply the filter; the result is valid where `band` is set. Only the 3 x 3 systems that those pixels need are
    solved."""

    def mean(x: np.ndarray) -> np.ndarray:
        return cv2.blur(x, (2 * radius + 1, 2 * radius + 1))

    needed = cv2.dilate(band.astype(np.uint8), np.ones((2 * radius + 1, 2 * radius + 1), np.uint8)) > 0
    mean_guide, mean_target = mean(guide), mean(target)
    covariance = (mean(guide * target[..., None]) - mean_guide * mean_target[..., None])[needed]
    sigma = np.empty((len(covariance), 3, 3), np.float32)
    for i in range(3):
        for j in range(i, 3):
            value = mean(guide[..., i] * guide[..., j]) - mean_guide[..., i] * mean_guide[..., j]
            sigma[:, i, j] = sigma[:, j, i] = value[needed]
    sigma[:, range(3), range(3)] += epsilon
    slope = np.zeros_like(guide)
    slope[needed] = np.linalg.solve(sigma, covariance[..., None])[..., 0]
    offset = mean_target - (slope * mean_guide).sum(axis=-1)
    return (mean(slope) * guide).sum(axis=-1) + mean(offset)


def _spread(colours: np.ndarray, weight: np.ndarray, radius: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean colour of weighted pixels around each pixel, and their share of the window."""
    total = cv2.GaussianBlur(weight, (0, 0), radius / 2)
    total[total < 1e-4] = 0
    spread = cv2.GaussianBlur(colours * weight[..., None], (0, 0), radius / 2)
    return spread / np.maximum(total, 1e-4)[..., None], total


def _disc(radius: int) -> np.ndarray:
    return cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1))


def _bounds(mask: np.ndarray, margin: int) -> tuple[int, int, int, int]:
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    height, width = mask.shape
    return (
        max(0, int(rows[0]) - margin),
        min(height, int(rows[-1]) + margin + 1),
        max(0, int(columns[0]) - margin),
        min(width, int(columns[-1]) + margin + 1),
    )
