"""Data sets for fine-tuning: a shop's own pictures from a folder or the ledger, stored in the object store.

    found = gather_folder(Path("pictures"), store, settings)         images/kettle_1.jpg with masks/kettle_1.png
    found = gather_ledger(engine, scenes=["oak-window"])             the cutouts of what was published or approved
    shots = picture_pack(work, found.side(held_out=False), store, side=256, shots=2000)

A data set is a document of digests, so every worker reads the same one, and its own digest identifies the training
data of a model. Products that `is_held_out` selects are never trained on; they evaluate the model.

A photo with its mask is used directly. A cutout is composed into scenes, as for the bundled models. A shop's photos are
mostly on white, and a branch trained on them would paint white around everything.
"""

from __future__ import annotations

import io
import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import cv2
import numpy as np
from numpy.lib.format import open_memmap
from numpy.typing import NDArray
from PIL import Image
from sqlalchemy import Engine, text

from pipelines.catalogue.feed import within
from pipelines.contracts import canonical_json, sha256_hex
from pipelines.errors import IntegrityError, Rejected, UsageError
from pipelines.training.composer import ComposedProduct, compose, draw_scene, mirrored
from pipelines.training.data import SHARD, ShotPack, clean_name, is_held_out, read_index
from pipelines.vision.photos import read_photo

if TYPE_CHECKING:
    from pipelines.contracts import Store
    from pipelines.settings import Settings

FORMAT = "packshot-pictures-1"
MEDIA_TYPE = "application/json"
SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".avif"})
PRODUCT_SHARE = (0.005, 0.95)
"""Limits of the share of the picture that a mask's product takes."""

SOFT_SHARE = 0.25
"""A mask with more grey pixels (25 to 230 of 255) than this is refused as a grey picture."""

MOST_VARIANTS = 16
"""Maximum number of scenes per cutout, so that one product does not dominate."""

ROOM = 1.15
"""A photo's crop is at least this times the product's longer side."""


@dataclass(frozen=True, slots=True)
class Picture:
    """One training picture. `product` decides whether it is held out; `title` stands in the caption.

    `image` and `mask` are digests in the store: of a photo and its mask (white = product), or of an RGBA cutout and "".
    """

    product: str
    title: str
    kind: Literal["photo", "cutout"]
    image: str
    mask: str = ""


@dataclass(frozen=True, slots=True)
class Dataset:
    """A frozen data set: pictures in a fixed order, and the refused names with their reasons."""

    source: str
    pictures: tuple[Picture, ...]
    refused: tuple[tuple[str, str], ...] = ()

    def side(self, held_out: bool) -> list[Picture]:
        """The pictures to evaluate with, or those to train on."""
        return [picture for picture in self.pictures if is_held_out(picture.product) == held_out]

    def reasons(self) -> dict[str, int]:
        """How many pictures were refused, by reason."""
        return dict(Counter(reason for _, reason in self.refused).most_common())

    def __str__(self) -> str:
        held = len(self.side(held_out=True))
        told = f"{self.source}: {len(self.pictures)} pictures, {held} of them held out, {len(self.refused)} refused"
        return told + "".join(f"; {count}: {reason}" for reason, count in self.reasons().items())

    def save(self, store: Store) -> str:
        """Put the document into the store; returns its digest, which names the data set."""
        document = {"format": FORMAT, "source": self.source, "pictures": [asdict(p) for p in self.pictures]}
        return store.put(canonical_json(document | {"refused": self.refused}).encode(), MEDIA_TYPE)

    @classmethod
    def load(cls, store: Store, digest: str) -> Dataset:
        """Read a stored data set. Raises KeyError if it is missing, IntegrityError if it is another document."""
        document = json.loads(store.get(digest))
        if document.get("format") != FORMAT:
            raise IntegrityError(f"object {digest} is no {FORMAT} document")
        refused = tuple((name, reason) for name, reason in document["refused"])
        return cls(document["source"], tuple(Picture(**one) for one in document["pictures"]), refused)


def gather_folder(folder: Path, store: Store, settings: Settings) -> Dataset:
    """Read the pairs `images/NAME.*` and `masks/NAME.*` of a folder; white is product.

    `NAME_2` (one or two digits) is another picture of product `NAME`. An unusable pair is refused with its reason.

    Raises:
        UsageError: the folder lacks these two, or has no usable pair.
    """
    images, masks = _by_stem(folder / "images"), _by_stem(folder / "masks")
    pictures, refused = [], []
    for stem in sorted(images.keys() | masks.keys()):
        try:
            image, mask = _one(images.get(stem, []), "image"), _one(masks.get(stem, []), "mask")
            image_bytes, mask_bytes = _bytes(image, settings), _bytes(mask, settings)
            read_pair(image_bytes, mask_bytes, settings.photo_max_megapixels)
        except Rejected as rejection:
            refused.append((stem, rejection.reason))
            continue
        product = re.sub(r"_\d{1,2}$", "", stem) or stem
        digests = (store.put(data, "application/octet-stream") for data in (image_bytes, mask_bytes))
        pictures.append(Picture(product, clean_name(product.replace("_", " ")), "photo", *digests))
    found = Dataset(f"folder {folder.name}", tuple(pictures), tuple(refused))
    if not pictures:
        raise UsageError(f"{folder}: no pair of images/NAME and masks/NAME that can be used: {found.reasons()}")
    return found


def gather_ledger(engine: Engine, scenes: Sequence[str] = (), categories: Sequence[str] = ()) -> Dataset:
    """The newest cutout of every product with an image that was published, or approved by a person.

    Args:
        engine: The ledger's database.
        scenes: Only shots of these scenes; empty for all.
        categories: Only products in or below one of these; empty for all.

    Raises:
        UsageError: there is no such product.
    """
    with engine.connect() as connection:
        rows = connection.execute(text(_ACCEPTED), {"scenes": list(scenes)}).all()
    pictures = tuple(
        Picture(row.item_group_id or row.sku, clean_name(row.title), "cutout", row.cutout)
        for row in rows
        if not categories or any(within(row.category, category) for category in categories)
    )
    if not pictures:
        raise UsageError("no product with a published or approved image: run packshot on the catalogue first")
    return Dataset("ledger", pictures)


_ACCEPTED = """
WITH accepted AS (
    SELECT run, shot, published_at AS at FROM publications
    UNION ALL
    SELECT run, shot, created_at FROM decisions WHERE choice = 'approve' AND undone_at IS NULL
)
SELECT DISTINCT ON (shots.sku COLLATE "C") shots.sku, v.title, v.category, v.item_group_id, o.digest AS cutout
FROM accepted
JOIN shots ON shots.id = accepted.shot
JOIN run_steps u ON u.run = accepted.run AND u.shot = accepted.shot AND u.stage = 'cutout' AND u.chosen
JOIN step_outputs o ON o.key = u.key AND o.role = 'cutout'
JOIN run_shots r ON r.run = accepted.run AND r.shot = accepted.shot
JOIN product_versions v ON v.id = r.version
WHERE cardinality(CAST(:scenes AS text[])) = 0 OR shots.scene = ANY(CAST(:scenes AS text[]))
ORDER BY shots.sku COLLATE "C", accepted.at DESC, o.digest
"""


def gather_training(data: Path, store: Store, split: str) -> Dataset:
    """The goods (not the toys) among the bundled models' own cutouts, as `pipelines.training.data` splits them.

    Raises UsageError if the training folder is missing.
    """
    if not (data / "index.csv").is_file():
        raise UsageError(f"{data}: the bundled models' training pictures are not there; name a folder or the ledger")
    items = [item for item in read_index(data, "cutouts", split) if item.source != "fluent-emoji-3d"]
    return Dataset(
        f"training, {split}",
        tuple(
            Picture(item.name, item.name, "cutout", store.put(item.path.read_bytes(), "image/png")) for item in items
        ),
    )


def read_pair(image: bytes, mask: bytes, max_megapixels: float) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Decode a photo and its mask: (H, W, 3) and (H, W) uint8, 255 = product. Raises Rejected if they do not match."""
    photo = read_photo(image, max_megapixels)
    try:
        shown = read_photo(mask, max_megapixels)
    except Rejected as rejection:
        raise Rejected(f"its mask: {rejection.reason}") from None
    if photo.size != shown.size:
        raise Rejected("image and mask differ in size")
    if np.ptp(shown.rgb.astype(np.int16), axis=2).max() > 12:
        raise Rejected("its mask is a colour picture; expected white where the product is, black elsewhere")
    grey: NDArray[np.uint8] = np.ascontiguousarray(shown.rgb[..., 0])
    if ((grey > 25) & (grey < 230)).mean() > SOFT_SHARE:
        raise Rejected("its mask is a grey picture; expected white where the product is, black elsewhere")
    if not PRODUCT_SHARE[0] <= (grey >= 128).mean() <= PRODUCT_SHARE[1]:
        raise Rejected("its mask is almost empty or almost full; expected white where the product is, black elsewhere")
    return photo.rgb, grey


def picture_pack(
    folder: Path, pictures: Sequence[Picture], store: Store, side: int, shots: int, max_megapixels: float
) -> ShotPack:
    """Write training shots of `side` px into `folder`, or read existing ones.

    Photos come first, one shot each. Then each cutout is composed into several scenes, about `shots` in all. Equal
    pictures give equal shots in the same order.
    """
    photos = [picture for picture in pictures if picture.kind == "photo"][:shots]
    cutouts = [picture for picture in pictures if picture.kind == "cutout"]
    variants = min(MOST_VARIANTS, max(1, (shots - len(photos)) // max(len(cutouts), 1)))
    count = len(photos) + variants * len(cutouts)
    words = folder / f"pictures_{side}.json"
    if not words.exists():
        folder.mkdir(parents=True, exist_ok=True)
        images = open_memmap(folder / f"pictures_{side}.npy", "w+", np.uint8, (count, side, side, 3))
        masks = open_memmap(folder / f"masks_{side}.npy", "w+", np.uint8, (count, side, side))
        captions = []
        for n, photo in enumerate(photos):
            pair = read_pair(store.get(photo.image), store.get(photo.mask), max_megapixels)
            images[n], masks[n] = squared(*pair, side)
            captions.append(f"a photo of {photo.title}")
        for k, cutout in enumerate(cutouts):
            product = cutout_product(store.get(cutout.image), cutout.title)
            for variant in range(variants):
                n = len(photos) + k * variants + variant
                rng = np.random.default_rng([side, k, variant])
                shown = mirrored(product) if rng.random() < 0.5 else product
                shot = compose(draw_scene(rng), (side, side), shown, rng)
                images[n], masks[n] = np.round(shot.image * 255), np.round(shot.mask * 255)
                captions.append(shot.caption)
        words.write_text(json.dumps(captions), encoding="utf-8")
    captions = json.loads(words.read_text(encoding="utf-8"))
    images, masks = (np.load(folder / f"{name}_{side}.npy", mmap_mode="r") for name in ("pictures", "masks"))
    return ShotPack(_shards(images), _shards(masks), captions)


def _shards(array: NDArray[np.uint8]) -> list[NDArray[np.uint8]]:
    return [array[start : start + SHARD] for start in range(0, len(array), SHARD)]


def frozen_pictures(pictures: Sequence[Picture], products: int) -> list[Picture]:
    """One picture of each of `products` products: always those whose name's sha256 is lowest."""
    first: dict[str, Picture] = {}
    for picture in pictures:
        first.setdefault(picture.product, picture)
    return [first[name] for name in sorted(first, key=lambda name: sha256_hex(name.encode()))[:products]]


def cutout_product(data: bytes, title: str) -> ComposedProduct:
    """Prepare an RGBA cutout for the composer: cropped to the product, without shadow in its matte."""
    rgba = np.asarray(Image.open(io.BytesIO(data)).convert("RGBA"), np.float32) / 255
    alpha = rgba[..., 3] * cv2.dilate((rgba[..., 3] > 0.8).astype(np.float32), np.ones((5, 5), np.uint8))
    rows, columns = np.flatnonzero(alpha.max(axis=1) > 0.5), np.flatnonzero(alpha.max(axis=0) > 0.5)
    if not len(rows):
        raise IntegrityError(f"the cutout of {title!r} has no opaque pixel")
    box = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
    return ComposedProduct(title, np.ascontiguousarray(rgba[..., :3][box]), np.ascontiguousarray(alpha[box]))


def squared(
    image: NDArray[np.uint8], mask: NDArray[np.uint8], side: int
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Crop a photo and its mask to squares of `side` px that contain the whole product.

    The square has the photo's shorter side, or more if the product is longer. The photo's edge is extended if needed.
    """
    height, width = mask.shape
    rows, columns = np.flatnonzero((mask > 25).any(axis=1)), np.flatnonzero((mask > 25).any(axis=0))
    extent = max(rows[-1] - rows[0], columns[-1] - columns[0]) + 1
    window = max(min(height, width), min(round(ROOM * extent), max(height, width)), extent)
    top, left = (
        _start(int(span[0] + span[-1] + 1) // 2, window, length) for span, length in ((rows, height), (columns, width))
    )
    before = max(0, -top), max(0, -left)
    after = max(0, top + window - height), max(0, left + window - width)

    def cut(array: NDArray[np.uint8], border: int) -> NDArray[np.uint8]:
        padded = cv2.copyMakeBorder(array, before[0], after[0], before[1], after[1], border)
        part = padded[top + before[0] :, left + before[1] :][:window, :window]
        return np.asarray(cv2.resize(part, (side, side), interpolation=cv2.INTER_AREA), np.uint8)

    return cut(image, cv2.BORDER_REPLICATE), cut(mask, cv2.BORDER_CONSTANT)


def _start(middle: int, window: int, length: int) -> int:
    """Start of a window around `middle`: inside the picture if it fits, else centred on the picture."""
    if window >= length:
        return (length - window) // 2
    return min(max(middle - window // 2, 0), length - window)


def _by_stem(folder: Path) -> dict[str, list[Path]]:
    if not folder.is_dir():
        raise UsageError(f"{folder}: not there; expected a folder with images/ and masks/, pairs by name")
    found: dict[str, list[Path]] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in SUFFIXES:
            found.setdefault(path.stem, []).append(path)
    return found


def _one(paths: Sequence[Path], what: str) -> Path:
    if len(paths) != 1:
        raise Rejected(f"no {what} of that name" if not paths else f"more than one {what} of that name")
    return paths[0]


def _bytes(path: Path, settings: Settings) -> bytes:
    if path.stat().st_size > settings.photo_max_bytes:
        raise Rejected(f"a file is larger than {settings.photo_max_bytes:,} bytes")
    return path.read_bytes()
