"""Finished shots of sample products in composed scenes, clean and with faults planted, known to the pixel."""

from __future__ import annotations

import io
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image
from scipy import ndimage

from pipelines.training.composer import compose, draw_scene
from pipelines.vision.photos import png_bytes
from pipelines.vision.placement import Placement, lay_product, place

SAMPLE = Path(__file__).parents[4] / "pipelines/sample"
SIDE = 512


@dataclass(frozen=True)
class Planted:
    """What inspect gets: photo and cutout as bytes, where it was placed, the finished picture."""

    photo: bytes
    cutout: bytes
    placement: Placement
    image: np.ndarray

    @property
    def matte(self) -> np.ndarray:
        photo, cutout = Image.open(io.BytesIO(self.photo)), Image.open(io.BytesIO(self.cutout))
        return lay_product(photo, cutout, self.placement).matte

    def with_image(self, image: np.ndarray) -> Planted:
        return replace(self, image=np.clip(image, 0, 255).astype(np.uint8))


def clean(number: int, seed: int = 0) -> Planted:
    """Sample product `number` laid over a composed scene with its soft contact shadow."""
    photo = next(iter((SAMPLE / "images").glob(f"smp-{number:03}-*")))
    rgb = Image.open(photo).convert("RGB")
    alpha = Image.open(SAMPLE / f"masks/smp-{number:03}.png").convert("L")
    cutout = rgb.copy()
    cutout.putalpha(alpha)
    where = place(np.asarray(alpha), (SIDE, SIDE), 0.58, "ground", 0.86)
    laid = lay_product(rgb, cutout, where)
    rng = np.random.default_rng(seed)
    scene = replace(draw_scene(rng), prop="none")
    backdrop = compose(scene, (SIDE, SIDE), None, rng).image
    picture = np.clip(np.rint(np.asarray(backdrop) * 255), 0, 255)
    y, x = np.mgrid[:SIDE, :SIDE]
    foot, middle = where.top + where.height, where.left + where.width / 2
    shadow = 0.35 * np.exp(-(((x - middle) / (0.45 * where.width)) ** 2 + ((y - foot) / (0.03 * SIDE)) ** 2))
    picture = picture * (1 - shadow[..., None])
    return Planted(photo.read_bytes(), png_bytes(cutout), where, laid.over(picture.astype(np.uint8)))


def left_out(shot: Planted, share: float, angle: float = 0.6) -> Planted:
    """The same picture, but a part of the product was not in the mask: the scene grew it."""
    cutout = Image.open(io.BytesIO(shot.cutout)).convert("RGBA")
    alpha = np.asarray(cutout.getchannel("A")).copy()
    rows, columns = np.nonzero(alpha > 127)
    along = columns * np.cos(angle) - rows * np.sin(angle)
    y, x = np.mgrid[: alpha.shape[0], : alpha.shape[1]]
    alpha[x * np.cos(angle) - y * np.sin(angle) > np.quantile(along, 1 - share)] = 0
    cutout.putalpha(Image.fromarray(alpha))
    return replace(shot, cutout=png_bytes(cutout))  # the old placement: the pixels stay where they are


def halo_around(shot: Planted, levels: int, width: int) -> Planted:
    distance = ndimage.distance_transform_edt(shot.matte < 3)
    rim = (distance > 0) & (distance <= width)
    return shot.with_image(shot.image.astype(int) + levels * rim[..., None])


def with_background(shot: Planted, background: np.ndarray) -> Planted:
    alpha = shot.matte[..., None] / 255
    mixed = shot.image * alpha + np.broadcast_to(background, shot.image.shape) * (1 - alpha)
    return shot.with_image(np.where(alpha > 0, np.where(alpha >= 0.99, shot.image, mixed), background))
