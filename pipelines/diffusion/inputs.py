"""Convert the sampler's arguments to tensors with one entry per shot, and arrange the batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

Mask = Image.Image | np.ndarray | Tensor
"""PIL "L", or (..., H, W) 0..1."""

Images = Image.Image | Sequence[Image.Image]
Masks = Mask | Sequence[Mask]


@dataclass(frozen=True, slots=True)
class Layout:
    """Order of a batch: guidance halves outermost, then shots, then each shot's images."""

    shots: int
    pictures: int
    halves: int

    def per_image(self, values: Tensor) -> Tensor:
        """Expand (1 or shots, ...) to one entry per image."""
        return values.expand(self.shots, *values.shape[1:]).repeat_interleave(self.pictures, 0)

    def for_both_halves(self, values: Tensor) -> Tensor:
        """Expand (1 or shots, ...) to one entry per image and guidance half, as the UNet expects."""
        return torch.cat([self.per_image(values)] * self.halves)

    def by_half(self, without: Tensor | None, with_it: Tensor) -> Tensor:
        """Expand two of (1 or shots, ...) to one entry per image and half. Without guidance `without` is ignored."""
        halves = [with_it] if without is None or self.halves == 1 else [without, with_it]
        return torch.cat([self.per_image(half) for half in halves])

    def prompted_half(self, values: Any) -> Any:
        """Return the prompted half of tensors with one entry per image and half, or of lists and dicts of them.

        Tensors with one entry per image are returned unchanged.
        """
        if isinstance(values, Tensor):
            return values[-self.shots * self.pictures :]
        if isinstance(values, dict):
            return {name: self.prompted_half(value) for name, value in values.items()}
        return values if values is None else [self.prompted_half(value) for value in values]


def image_list(images: Images) -> list[Image.Image]:
    """Return one or several images as a list."""
    return [images] if isinstance(images, Image.Image) else list(images)


def as_pixels(images: Sequence[Image.Image], size: tuple[int, int]) -> Tensor:
    """Convert images to (B, 3, H, W), -1..1, resized if necessary."""
    height, width = size
    arrays = []
    for image in images:
        rgb = image.convert("RGB")
        if rgb.size != (width, height):
            rgb = rgb.resize((width, height), Image.Resampling.LANCZOS)
        arrays.append(np.asarray(rgb))
    return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).float() / 127.5 - 1


def common_size(images: Sequence[Image.Image], height: int | None, width: int | None) -> tuple[int, int]:
    """Return (height, width) to sample at: as given, else the images' own. Raises ValueError if these differ."""
    sizes = {(image.height if height is None else height, image.width if width is None else width) for image in images}
    if len(sizes) > 1:
        listed = ", ".join(f"{h} x {w}" for h, w in sorted(sizes))
        raise ValueError(f"Shots of one call have one size, got {listed} (height x width): give height and width.")
    return sizes.pop()


def as_masks(masks: Masks, shots: int, size: tuple[int, int]) -> Tensor:
    """Convert masks to (shots, 1, H, W), 0..1, resized by area if necessary. A single mask is repeated.

    Raises ValueError if their number or their values are wrong.
    """
    given = [masks] if isinstance(masks, Image.Image | np.ndarray | Tensor) else list(masks)
    if not given:
        raise ValueError(f"{shots} shots need one mask or {shots}, got none.")
    tensors = []
    for mask in given:
        if isinstance(mask, Image.Image):
            mask = np.asarray(mask.convert("L"), np.float32) / 255
        tensor = torch.as_tensor(mask, dtype=torch.float32)
        tensors.append(tensor.reshape(-1, 1, *tensor.shape[-2:]))
    if not all(one.min() >= 0 and one.max() <= 1 for one in tensors):
        raise ValueError("Masks are 0..1, 1 = product.")
    stacked = torch.cat([one if one.shape[-2:] == size else F.interpolate(one, size, mode="area") for one in tensors])
    if len(stacked) not in (1, shots):
        raise ValueError(f"{shots} shots need one mask or {shots}, got {len(stacked)}.")
    return stacked.expand(shots, -1, -1, -1)


def prompt_per_shot(texts: str | Sequence[str], shots: int, name: str) -> list[str]:
    """Return one text per shot. A single text is repeated. Raises ValueError if their number is wrong."""
    listed = [texts] * shots if isinstance(texts, str) else list(texts)
    if len(listed) != shots:
        raise ValueError(f"{shots} shots need one {name} or {shots}, got {len(listed)}.")
    return listed


def generator_per_image(
    generators: torch.Generator | Sequence[torch.Generator] | None, shots: int, pictures: int
) -> list[torch.Generator] | None:
    """Return each shot's generator, once per image. Raises ValueError if their number is wrong, or one is not on the
    CPU."""
    if generators is None:
        return None
    listed = [generators] if isinstance(generators, torch.Generator) else list(generators)
    if len(listed) != shots:
        raise ValueError(f"{shots} shots need {shots} generators, got {len(listed)}.")
    if any(one.device.type != "cpu" for one in listed):
        raise ValueError("Generators must be on the CPU: then the noise is the same on every device.")
    return [one for one in listed for _ in range(pictures)]
