"""Finished images of products on the bundled backdrops, with and without a fault, to measure the checks of images.

Nothing is generated. Mode `adjust` multiplies a backdrop by a light that a model painted; here a smooth random light
stands for it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

import cv2
import numpy as np
from PIL import Image

from pipelines.evaluation.planted import Draw
from pipelines.scenes import FOLDER, BackdropPicture, list_scenes
from pipelines.vision.backdrops import BackdropSettings, LaidBackdrop, lay_backdrop
from pipelines.vision.light import relight
from pipelines.vision.placement import OPAQUE, LaidProduct, Placement, lay_product, place

SIDE = 640
"""Width and height of the images, px."""

FAULTS = {
    "contact": ("no shadow", "shadow elsewhere"),
    "fidelity": ("changed patch", "changed colours", "moved by a pixel"),
    "halo": ("bright rim", "dark rim"),
    "background": ("noise", "flat colour", "stripes", "black"),
}
"""Kinds of faults by the check that is to hold them."""


@dataclass(frozen=True, slots=True)
class Stood:
    """A finished image and the bare backdrop, both `(SIDE, SIDE, 3)` uint8, and the product as it was placed."""

    image: np.ndarray
    backdrop: np.ndarray
    product: LaidProduct
    placement: Placement


def stood(cutout: np.ndarray, rng: Draw, fault: str = "") -> Stood:
    """Stand a product on a bundled backdrop.

    Args:
        cutout: (h, w, 4) uint8 RGBA, cropped to the product.
        rng: Chooses backdrop, size and light.
        fault: One of `FAULTS`, or "" for none.
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
    lit = relight(scene, _light(rng))
    if fault in FAULTS["background"]:
        lit = _broken(lit, fault, rng)
    final = product.over(lit)
    if fault in FAULTS["fidelity"]:
        final = _altered(final, product.matte, fault, rng)
    if fault in FAULTS["halo"]:
        final = _rimmed(final, product.matte, fault, rng)
    return Stood(final, backdrop.pixels, product, placed)


def _broken(scene: np.ndarray, fault: str, rng: Draw) -> np.ndarray:
    """Return a scene that is no picture: noise of 45 levels and more, one colour, stripes, or mostly black."""
    colour = rng.uniform(40, 220, 3)
    if fault == "noise":
        broken = scene + rng.normal(0, rng.uniform(45, 90), scene.shape)
    elif fault == "flat colour":
        broken = np.broadcast_to(colour, scene.shape)
    elif fault == "stripes":
        wave = np.sin(np.arange(SIDE) * 2 * np.pi / rng.uniform(24, 60)) * rng.uniform(20, 60)
        lines = wave[:, None] if rng.random() < 0.5 else wave[None, :]
        broken = colour + np.broadcast_to(lines, scene.shape[:2])[..., None]
    else:
        broken = scene * (rng.random((1, SIDE, 1)) * 0.02 if rng.random() < 0.5 else 0.0)
    return np.clip(np.rint(broken), 0, 255).astype(np.uint8)


def _altered(image: np.ndarray, matte: np.ndarray, fault: str, rng: Draw) -> np.ndarray:
    """Return an image whose product was painted over: a patch of it, its colours by two levels, or all of it moved."""
    altered = image.copy()
    opaque = matte >= OPAQUE
    if fault == "changed patch":
        rows, columns = np.nonzero(opaque)
        at = int(rng.integers(len(rows)))
        disc = cv2.circle(np.zeros(matte.shape, np.uint8), (int(columns[at]), int(rows[at])), 6, 1, -1) > 0
        altered[disc & opaque] = 255 - image[disc & opaque]
    elif fault == "changed colours":
        altered[opaque] = np.where(image[opaque] > 127, image[opaque] - 2, image[opaque] + 2)
    else:
        altered[opaque] = np.roll(image, int(rng.choice([-1, 1])), axis=int(rng.integers(2)))[opaque]
    return altered


def _rimmed(image: np.ndarray, matte: np.ndarray, fault: str, rng: Draw) -> np.ndarray:
    """Return an image with a rim of 3 to 6 px around the product, 35 to 70 levels brighter or darker than the scene."""
    away = cv2.distanceTransform((matte < 3).astype(np.uint8), cv2.DIST_L2, 5)
    rim = (away > 0) & (away <= rng.uniform(3, 6))
    levels = rng.uniform(35, 70) * (1 if fault == "bright rim" else -1)
    rimmed = image.astype(np.float32)
    rimmed[rim] += levels
    return np.clip(np.rint(rimmed), 0, 255).astype(np.uint8)


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
