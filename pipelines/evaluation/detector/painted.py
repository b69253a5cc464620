"""Painted pictures in which growth is known to the pixel, for the detector to learn from.

Painted twice from the same noise: a BrushNet that learnt from random masks grows the product; one that learnt from
whole products paints the same scene without that. Where the two differ, near the product, the first one grew it: in
off-colours and with soft edges, as no composite of photographs has it.

Painted perfectly: a composed picture, whose product ends where its mask does, encoded and decoded. What lies around
the product there is the autoencoder's rim, or a shadow, and no growth.

So no picture is said to be free of growth because of the branch that painted it, and all products are of the training
side. What both twins grow alike counts as none, though. What looks unlike its twin's but too thin, or too far away, to
be called growth teaches nothing.
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
from pipelines.evaluation.experiment.pairs import SMALLEST, Subject, load_pairs, photographed
from pipelines.models.checkpoints import load_net
from pipelines.models.profile import Profile
from pipelines.training.autoencoder import tensor_bytes, to_tensor
from pipelines.training.data import NOT_PHOTOGRAPHS, Composer, load_product, product_of, read_index
from pipelines.vision.placement import LaidProduct
from pipelines.vision.plate import RIM, clean_plate

FIRST = 10_000
"""Numbers of the twins' pairs begin here: other scenes and other noise than the experiment's."""

DIFFERENT = 25.0
"""Lab distance from which twins differ: tried were 18, 25 and 32, judged by lessons of other products."""

HORIZON = 7
"""What is thinner, px, may be the line between wall and floor, which lies a little higher in one twin."""

NEAR = 0.6
"""Growth lies within this share of sqrt(|M|); further away it may be another prop."""


@dataclass(frozen=True, slots=True)
class Lesson:
    """A painted picture (H, W, 3) uint8 with its product laid back, and the product's matte (H, W) uint8.

    `unlike`, (H, W) bool, is where its scene differs from what it would be without growth, beyond the rim, and `grown`
    what of that is growth beyond doubt.
    """

    product: str
    image: np.ndarray
    matte: np.ndarray
    unlike: np.ndarray
    grown: np.ndarray

    @property
    def beyond(self) -> np.ndarray:
        """Where growth can be told from the autoencoder's rim, (H, W) bool."""
        return _away(self.matte) > RIM


def lessons(shared: Path, profile: Profile, count: int) -> Iterator[Lesson]:
    """Paint `count` pairs of training-side products and scenes, and as many perfect pictures; each comes as painted and
    on its clean plate.

    Raises UsageError where the training folder is not there.
    """
    if not (shared / "training" / "index.csv").is_file():
        raise UsageError(f"{shared}: no training folder to take products to paint from")
    yield from _grown(shared, profile, count)
    yield from _perfect(shared, profile, count)


def _grown(shared: Path, profile: Profile, count: int) -> Iterator[Lesson]:
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
                yield Lesson(pair.subject.name, picture, matte, *difference(painted, plate, matte))


def _perfect(shared: Path, profile: Profile, count: int) -> Iterator[Lesson]:
    autoencoder = load_net(AutoencoderKL, profile.part("autoencoder").check(), "an autoencoder").eval()
    composer = Composer(shared / "training", "train", seed=FIRST, empty=0.0)
    side = profile.native_size
    for number in range(count):
        shot = composer.shot(number, (side, side))
        product = LaidProduct(*(np.rint(part * 255).astype(np.uint8) for part in (shot.image, shot.mask)))
        decoded, nowhere = _through(autoencoder, product.colour), np.zeros((side, side), bool)
        for rim in (0, RIM):
            picture = product.over(clean_plate(decoded, product.matte, rim))
            yield Lesson(f"composed {number}", picture, product.matte, nowhere, nowhere)


def difference(painted: np.ndarray, plate: np.ndarray, matte: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where a painted scene differs from its twin's plate beyond the rim, and what of that is growth: (H, W) bool."""
    placed, away = (matte >= 128).astype(np.uint8), _away(matte)
    unlike = (np.linalg.norm(_lab(painted) - _lab(plate), axis=2) > DIFFERENT) & (away > RIM)
    # opened with the product and its rim, so that only what is thin beside these goes
    solid = cv2.morphologyEx((unlike | (away <= RIM)).astype(np.uint8), cv2.MORPH_OPEN, np.ones((HORIZON, HORIZON)))
    return unlike, unlike & (solid > 0) & (away < NEAR * np.sqrt(placed.sum()))


def _away(matte: np.ndarray) -> np.ndarray:
    """How far each pixel is from the product, px."""
    return cv2.distanceTransform((matte < 128).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)


@torch.inference_mode()
def _through(autoencoder: AutoencoderKL, picture: np.ndarray) -> np.ndarray:
    """A picture (H, W, 3) uint8, encoded and decoded."""
    latents = autoencoder.encode(to_tensor(picture[None])).latent_dist.mode()
    return tensor_bytes(autoencoder.decode(latents).sample)[0]


def _lab(picture: np.ndarray) -> np.ndarray:
    return cv2.GaussianBlur(cv2.cvtColor(picture.astype(np.float32) / 255, cv2.COLOR_RGB2LAB), (0, 0), 1.5)


def _subjects(shared: Path, count: int) -> Sequence[Subject]:
    """Up to `count` products of the training side, by the sha256 of their names, in front of training scenes."""
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
            subjects.append(photographed(name, rgba, scenes[n % len(scenes)] if n % 2 else None, n))
        if len(subjects) == count:
            break
    return subjects
