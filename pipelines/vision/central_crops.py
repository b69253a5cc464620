"""Which object in a picture is the product: saliency of the whole picture and of its middle.

A photographed product is whole and near the middle, but a poster behind it may be more salient. So in doubt the
salient-object net runs on the whole picture and on two central crops. Each saliency map gives HQ-SAM a prompt, and all
maps together rate its masks.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from pipelines.vision.segmenters import Prompt, Segmenter, prompt_from

CROPS = (0.8, 0.62)
"""Sides of the central crops, as shares of the picture's sides."""

SAME_BOX = 0.95
"""IoU of two prompts' boxes above which the second prompt is skipped."""

CENTRE_SPREAD = 0.3
"""Standard deviation of the weight of the picture's centre, in sides of the picture."""


@dataclass(frozen=True, slots=True)
class SaliencyMaps:
    """Saliency maps of a picture, each `(H, W)` float32, 0..1.

    Attributes:
        whole: Of the whole picture.
        crops: Of its central crops, 0 outside them.
        mean: Of all maps; outside a crop, of the maps that cover the pixel.
    """

    whole: np.ndarray
    crops: tuple[np.ndarray, ...]
    mean: np.ndarray

    def prompts(self) -> Iterator[Prompt]:
        """Yield each map's prompt, the whole picture's first, without near duplicates."""
        boxes: list[np.ndarray] = []
        for saliency in (self.whole, self.mean, *self.crops):
            prompt = prompt_from(saliency)
            if prompt is not None and all(_box_iou(prompt.box, box) <= SAME_BOX for box in boxes):
                boxes.append(prompt.box)
                yield prompt

    def overlap(self, mask: np.ndarray) -> float:
        """Rate a mask `(H, W)` bool against all maps: soft IoU, with the highest weight at the picture's centre."""
        height, width = mask.shape
        down, across = (_bell(np.arange(side) / side - 0.5) for side in (height, width))
        weight = down[:, None] * across[None, :]
        both = float((weight * np.where(mask, self.mean, 0)).sum())
        either = float((weight * np.where(mask, 1, self.mean)).sum())
        return both / max(either, 1e-9)


def saliency_maps(image: np.ndarray, salient: Segmenter, whole: np.ndarray) -> SaliencyMaps:
    """Add the central crops of an image `(H, W, 3)` uint8 RGB to the net's saliency map of the whole, `(H, W)`."""
    height, width = whole.shape
    total, seen, crops = whole.copy(), np.ones_like(whole), []
    for share in CROPS:
        top, left = round(height * (1 - share) / 2), round(width * (1 - share) / 2)
        inside = np.s_[top : height - top, left : width - left]
        crop = np.zeros_like(whole)
        crop[inside] = salient.segment(np.ascontiguousarray(image[inside]))
        total += crop
        seen[inside] += 1
        crops.append(crop)
    return SaliencyMaps(whole, tuple(crops), total / seen)


def _bell(offset: np.ndarray) -> np.ndarray:
    return np.exp(-0.5 * (offset / CENTRE_SPREAD) ** 2).astype(np.float32)


def _box_iou(a: np.ndarray, b: np.ndarray) -> float:
    shared = np.clip(np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2]), 0, None).prod()
    return float(shared / ((a[2:] - a[:2]).prod() + (b[2:] - b[:2]).prod() - shared))
