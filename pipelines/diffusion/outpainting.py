"""Outpainting: enlarge the canvas of a photo that cuts its product off, so that the sampler can paint the rest. Library
surface: no scene or command uses it yet.

    grown = grow(photo, top=64, right=128)
    painted = pipeline(grown.image, grown.kept, prompt, ...).images[0]
    finished = grown.lay_back(painted)                   # the photo's pixels, to the byte

The whole photo is kept: to every method it is what a product mask is, 1 = kept.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image


@dataclass(frozen=True, slots=True)
class Grown:
    """A photo on its larger canvas.

    Attributes:
        image: RGB. The photo's outermost pixels are repeated around it; `strength` < 1 starts from them.
        kept: L, 255 = the photo.
        photo: The photo itself, RGB.
        corner: Its upper left corner on the canvas, (x, y).
    """

    image: Image.Image
    kept: Image.Image
    photo: Image.Image
    corner: tuple[int, int]

    def lay_back(self, painted: Image.Image) -> Image.Image:
        """Return the painted canvas with the photo pasted unchanged. Raises ValueError for a canvas of another size."""
        if painted.size != self.image.size:
            raise ValueError(
                f"The canvas is {self.image.size}, but what was painted is {painted.size} (width, height)."
            )
        finished = painted.convert("RGB")
        finished.paste(self.photo, self.corner)
        return finished


def grow(photo: Image.Image, left: int = 0, top: int = 0, right: int = 0, bottom: int = 0, multiple: int = 8) -> Grown:
    """Enlarge the canvas of a photo, which is not resampled, by at least the given number of px on each side.

    `right` and `bottom` are rounded up so that the sides are multiples of `multiple`, the factor of the sampler's VAE.
    Raises ValueError for a negative number of px, or if all are 0.
    """
    if min(left, top, right, bottom) < 0 or not any((left, top, right, bottom)):
        raise ValueError(f"A canvas grows by px >= 0, by some somewhere, got {left=}, {top=}, {right=}, {bottom=}.")
    rgb = photo.convert("RGB")
    right += -(left + rgb.width + right) % multiple
    bottom += -(top + rgb.height + bottom) % multiple
    margins = (top, bottom), (left, right)
    canvas = np.pad(np.asarray(rgb), (*margins, (0, 0)), mode="edge")
    kept = np.pad(np.full((rgb.height, rgb.width), 255, np.uint8), margins)
    return Grown(Image.fromarray(canvas), Image.fromarray(kept), rgb, (left, top))
