"""Finished images of products on the bundled backdrops, with and without a fault: what `contact` is measured on.

Nothing is generated. Mode `adjust` multiplies a backdrop by a light that a model painted; here a smooth random light
stands for it.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

import cv2
import numpy as np
from PIL import Image

from pipelines.evaluation.planted import Draw
from pipelines.scenes import FOLDER, BackdropPicture, list_scenes
from pipelines.vision.backdrops import BackdropSettings, LaidBackdrop, lay_backdrop
from pipelines.vision.light import relight
from pipelines.vision.placement import lay_product, place

SIDE = 640
"""Width and height of the images, px."""

FAULTS = ("no shadow", "shadow elsewhere")


def stood(cutout: np.ndarray, rng: Draw, fault: str = "") -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Stand a product on a bundled backdrop.

    Args:
        cutout: (h, w, 4) uint8 RGBA, cropped to the product.
        rng: Chooses backdrop, size and light.
        fault: One of `FAULTS`, or "" for none.

    Returns:
        The image and the bare backdrop, (SIDE, SIDE, 3) uint8, and the matte (SIDE, SIDE) uint8.
    """
    pictures = _pictures()
    backdrop = _laid(pictures[int(rng.integers(len(pictures)))])
    matte = np.ascontiguousarray(cutout[..., 3])
    foot = (backdrop.foot[0] / SIDE, backdrop.foot[1] / SIDE)
    line = backdrop.line / SIDE
    placed = place(matte, (SIDE, SIDE), float(rng.uniform(0.45, 0.65)), "ground", line, foot, backdrop.wall / SIDE)
    image = Image.fromarray(cutout, "RGBA")
    product = lay_product(image.convert("RGB"), image, placed)
    casting = product
    if fault == "shadow elsewhere":
        aside = round(float(rng.uniform(1.1, 1.4)) * placed.width) * int(rng.choice([-1, 1]))
        casting = replace(product, matte=_moved(product.matte, aside))
    scene = backdrop.pixels if fault == "no shadow" else backdrop.shaded(casting, "ground").pixels
    final = product.over(relight(scene, _light(rng)))
    return final, backdrop.pixels, product.matte


def _moved(matte: np.ndarray, aside: int) -> np.ndarray:
    """A matte, moved to the right by `aside` px."""
    shift = np.array([[1, 0, aside], [0, 1, 0]], np.float32)
    return cv2.warpAffine(matte, shift, matte.shape[::-1])


def _light(rng: Draw) -> np.ndarray:
    """A light that varies slowly, by 4 % each way at most, (SIDE, SIDE, 1) float32."""
    coarse = rng.uniform(-0.04, 0.04, (4, 4)).astype(np.float32)
    return 1 + cv2.resize(coarse, (SIDE, SIDE), interpolation=cv2.INTER_CUBIC)[..., None]


@lru_cache(maxsize=1)
def _pictures() -> tuple[BackdropPicture, ...]:
    """The pictures of all bundled scenes on which a product casts a shadow, by name of the scene."""
    pictures = (picture for scene in list_scenes(FOLDER) if scene.backdrop for picture in scene.backdrop.pictures)
    return tuple(picture for picture in pictures if picture.shadow > 0)


@lru_cache(maxsize=16)
def _laid(picture: BackdropPicture) -> LaidBackdrop:
    parameters = picture.model_dump(mode="json", exclude={"file", "licence"})
    settings = BackdropSettings.from_parameters({**parameters, "foot": list(picture.foot or (0.0, 1.0))})
    return lay_backdrop((FOLDER / picture.file).read_bytes(), (SIDE, SIDE), settings)
