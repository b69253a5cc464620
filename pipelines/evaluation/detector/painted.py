"""Painted pictures in which growth is known to the pixel, to fit the detector to.

Twins: the same pair is painted twice from the same noise. A BrushNet trained on random masks grows the product; one
trained on whole products paints the same scene without growth. Where the two differ near the product, the first one
grew it. This growth has off-colours and soft edges, which composites of photographs lack.

Decoded: a composed picture, whose product ends where its mask does, is encoded and decoded. What lies around its
product is the autoencoder's rim or a shadow, never growth. So no picture counts as free of growth only because of the
branch that painted it.

All products are of the training side. Growth that both twins share is not seen. A difference too thin or too far away
to be growth is left unlabelled.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from diffusers import AutoencoderKL

from pipelines.contracts import sha256_hex
from pipelines.errors import UsageError
from pipelines.evaluation.experiment.cells import BASELINE, CELLS, TREATED
from pipelines.evaluation.experiment.painting import BATCH, Painter
from pipelines.evaluation.experiment.pairs import SMALLEST, Subject, load_pairs, photograph
from pipelines.models.checkpoints import load_net
from pipelines.models.profile import Profile
from pipelines.training.autoencoder import tensor_bytes, to_tensor
from pipelines.training.data import NOT_PHOTOGRAPHS, Composer, load_product, product_of, read_index
from pipelines.vision.placement import LaidProduct
from pipelines.vision.plate import RIM, clean_plate

FIRST = 10_000
"""Numbers of the twins' pairs begin here, so that scenes and noise differ from the experiment's."""

DIFFERENT = 25.0
"""Lab distance from which twins differ; 18, 25 and 32 were tried on pictures of other products."""

HORIZON = 7
"""A thinner difference, px, may be the line between wall and floor, which lies a little higher in one twin."""

NEAR = 0.6
"""Growth lies within this share of sqrt(|M|) of the product; a difference further away may be another prop."""


@dataclass(frozen=True, slots=True)
class PaintedPicture:
    """A painted picture (H, W, 3) uint8 with its product laid back, and the product's matte (H, W) uint8.

    `unlike`, (H, W) bool, is where the scene beyond the rim differs from its twin without growth. `grown`, (H, W) bool,
    is the part of it that is certainly growth.
    """

    product: str
    image: np.ndarray
    matte: np.ndarray
    unlike: np.ndarray
    grown: np.ndarray

    @property
    def beyond(self) -> np.ndarray:
        """Where growth can be distinguished from the autoencoder's rim, (H, W) bool."""
        return _away(self.matte) > RIM


def painted_pictures(shared: Path, profile: Profile, count: int) -> Iterator[PaintedPicture]:
    """Paint `count` pairs of training-side products and scenes, then decode as many composites.

    Each comes twice: as painted, and on its clean plate. Raises UsageError if the training folder is missing.
    """
    if not (shared / "training" / "index.csv").is_file():
        raise UsageError(f"{shared}: no training folder to take products to paint from")
    yield from _twins(shared, profile, count)
    yield from _decoded(shared, profile, count)


def _twins(shared: Path, profile: Profile, count: int) -> Iterator[PaintedPicture]:
    cells = {cell.name: cell for cell in CELLS}
    painter = Painter(profile)
    pairs = load_pairs(_subjects(shared, count), count, profile.native_size, FIRST)
    for start in range(0, count, BATCH):
        batch = pairs[start : start + BATCH]
        grown, whole = (painter.paint(cells[name], batch)[0] for name in (BASELINE, TREATED))
        for pair, more, less in zip(batch, grown, whole, strict=True):
            matte = pair.product.matte
            plate = clean_plate(np.asarray(less.convert("RGB")), matte, RIM)
            for rim in (0, RIM):
                painted = clean_plate(np.asarray(more.convert("RGB")), matte, rim)
                picture = pair.product.over(painted)
                yield PaintedPicture(pair.subject.name, picture, matte, *difference(painted, plate, matte))


def _decoded(shared: Path, profile: Profile, count: int) -> Iterator[PaintedPicture]:
    autoencoder = load_net(AutoencoderKL, profile.part("autoencoder").check(), "an autoencoder").eval()
    composer = Composer(shared / "training", "train", seed=FIRST, empty=0.0)
    side = profile.native_size
    for number in range(count):
        shot = composer.shot(number, (side, side))
        product = LaidProduct(*(np.rint(part * 255).astype(np.uint8) for part in (shot.image, shot.mask)))
        decoded, nowhere = _through(autoencoder, product.colour), np.zeros((side, side), bool)
        for rim in (0, RIM):
            picture = product.over(clean_plate(decoded, product.matte, rim))
            yield PaintedPicture(f"composed {number}", picture, product.matte, nowhere, nowhere)


def difference(painted: np.ndarray, plate: np.ndarray, matte: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where a painted scene differs from its twin's plate beyond the rim, and where that is growth: (H, W) bool."""
    placed, away = (matte >= 128).astype(np.uint8), _away(matte)
    unlike = (np.linalg.norm(_lab(painted) - _lab(plate), axis=2) > DIFFERENT) & (away > RIM)
    # opened together with product and rim, so that growth that touches them is not thinned there
    solid = cv2.morphologyEx((unlike | (away <= RIM)).astype(np.uint8), cv2.MORPH_OPEN, np.ones((HORIZON, HORIZON)))
    return unlike, unlike & (solid > 0) & (away < NEAR * np.sqrt(placed.sum()))


def _away(matte: np.ndarray) -> np.ndarray:
    """Distance of each pixel from the product, px."""
    return cv2.distanceTransform((matte < 128).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)


@torch.inference_mode()
def _through(autoencoder: AutoencoderKL, picture: np.ndarray) -> np.ndarray:
    """Encode and decode a picture (H, W, 3) uint8."""
    latents = autoencoder.encode(to_tensor(picture[None])).latent_dist.mode()
    return tensor_bytes(autoencoder.decode(latents).sample)[0]


def _lab(picture: np.ndarray) -> np.ndarray:
    return cv2.GaussianBlur(cv2.cvtColor(picture.astype(np.float32) / 255, cv2.COLOR_RGB2LAB), (0, 0), 1.5)


def _subjects(shared: Path, count: int) -> Sequence[Subject]:
    """Up to `count` products of the training side in front of training scenes, in the order of their names' sha256."""
    items = {product_of(item): item for item in read_index(shared / "training", "cutouts", "train")}
    scenes = [
        item.path
        for item in read_index(shared / "training", "scenes")
        if not NOT_PHOTOGRAPHS.search(item.path.name + item.name)
    ]
    subjects: list[Subject] = []
    for n, name in enumerate(sorted(items, key=lambda name: sha256_hex(name.encode()))):
        product = load_product(items[name])
        if max(product.alpha.shape) >= SMALLEST:
            rgba = np.dstack([product.rgb, product.alpha])
            subjects.append(photograph(name, rgba, scenes[n % len(scenes)] if n % 2 else None, n))
        if len(subjects) == count:
            break
    return subjects
