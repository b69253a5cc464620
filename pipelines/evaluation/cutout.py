"""Measure cutouts against alpha masks that a catalogue names (`packshot measure cutout`)."""

from __future__ import annotations

import csv
import html
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from pipelines.errors import Rejected, UsageError
from pipelines.evaluation.baselines import PublishedU2NetP
from pipelines.models.profile import Profile
from pipelines.quality.intervals import interval
from pipelines.stages.cutout import PATHS, CutoutModels, cutout
from pipelines.vision.garments import garment_part
from pipelines.vision.photos import Photo, read_photo
from pipelines.vision.segmenters import HQSamSegmenter, Segmenter, build_mobile_sam

PRODUCT_ALPHA = 0.8
"""Alpha above which a pixel is product: masks may hold soft drop shadows below that."""

BOUNDARY_TOLERANCE = 2

U2NETP = "u2netp.onnx"
MOBILE_SAM = "mobile_sam.pt"


@dataclass(frozen=True, slots=True)
class ProductCutout:
    """One product's figures. `path` is the cutout stage's path, or "rejected"."""

    sku: str
    path: str
    iou: float
    boundary_f: float


@dataclass(frozen=True, slots=True)
class BaselineMeasure:
    """Figures of one method on the same photos; intervals are 95 % bootstraps over products."""

    name: str
    mean_iou: float
    iou_interval: tuple[float, float]
    mean_boundary_f: float
    boundary_f_interval: tuple[float, float]
    products: tuple[ProductCutout, ...]


@dataclass(frozen=True, slots=True)
class CutoutMeasure:
    """Figures of a catalogue: means over `n` products, and the baselines' figures on the same photos."""

    mean_iou: float
    n: int
    products: tuple[ProductCutout, ...]
    iou_interval: tuple[float, float]
    mean_boundary_f: float
    boundary_f_interval: tuple[float, float]
    baselines: tuple[BaselineMeasure, ...] = ()


@dataclass(frozen=True, slots=True)
class TrueCutout:
    """A photo and its true mask, `(H, W)` bool."""

    sku: str
    photo: Photo
    truth: np.ndarray
    garment: str


Way = Callable[[TrueCutout], tuple[np.ndarray, str]]
"""Cuts a photo out; returns the mask `(H, W)` bool and the path taken."""


def measure_cutouts(
    catalogue: Path,
    path: str,
    scenes: Path | None,
    models: Profile | CutoutModels,
    device: str = "cpu",
    baselines: Path | None = None,
) -> CutoutMeasure:
    """Cut out every product whose row names a `ground_truth_alpha`, and compare with that mask.

    Args:
        catalogue: CSV with `id`, `image_link`, `ground_truth_alpha`; paths relative to it.
        path: `auto` or `hqsam`.
        scenes: a folder of backgrounds, or None. Product n is put in front of the n-th one by its alpha mask, with its
            shadow.
        models: a profile, or its loaded segmenters.
        device: torch device for a profile's segmenters.
        baselines: a folder with the published `u2netp.onnx` and `mobile_sam.pt` to measure too. The first works
            alone; the second replaces HQ-SAM on the path `hqsam`, with the same prompts.

    Raises:
        UsageError: a path, catalogue, scene or baseline does not exist, or no row names a mask.
    """
    if path not in PATHS:
        raise UsageError(f"--path {path}: there are {', '.join(PATHS)}")
    rows = _rows(catalogue)
    backgrounds = _backgrounds(scenes) if scenes is not None else []
    if baselines is not None:
        for name in (U2NETP, MOBILE_SAM):
            if not (baselines / name).is_file():
                raise UsageError(f"--baselines {baselines}: there is no {name} in it")
    if isinstance(models, Profile):
        models = CutoutModels.from_profile(models, device)
    ways: dict[str, Way] = {"packshot": _stage(models, path)}
    if baselines is not None:
        ways["u2netp"] = _alone(PublishedU2NetP(baselines / U2NETP))
        sam = HQSamSegmenter(build_mobile_sam(baselines / MOBILE_SAM), models.salient, device)
        ways["mobile_sam"] = _stage(replace(models, hqsam=sam), "hqsam")

    found: dict[str, list[ProductCutout]] = {name: [] for name in ways}
    for item in _items(catalogue, rows, backgrounds):
        for name, way in ways.items():
            mask, how = way(item)
            found[name].append(ProductCutout(item.sku, how, iou(mask, item.truth), boundary_f(mask, item.truth)))
    ours, *others = [_summary(name, products) for name, products in found.items()]
    return CutoutMeasure(
        ours.mean_iou,
        len(ours.products),
        ours.products,
        ours.iou_interval,
        ours.mean_boundary_f,
        ours.boundary_f_interval,
        tuple(others),
    )


def _stage(models: CutoutModels, path: str) -> Way:
    """The cutout stage on one path."""

    def way(item: TrueCutout) -> tuple[np.ndarray, str]:
        try:
            result = cutout(item.photo, models, path, item.garment)
        except Rejected:
            return np.zeros_like(item.truth), "rejected"
        return result.matte > 0.5, result.path

    return way


def _alone(segmenter: Segmenter) -> Way:
    """A segmenter's own mask, without the stage."""
    return lambda item: (segmenter.segment(item.photo.rgb) > 0.5, "salient")


def _summary(name: str, products: Sequence[ProductCutout]) -> BaselineMeasure:
    skus = [product.sku for product in products]
    overlaps, edges = [product.iou for product in products], [product.boundary_f for product in products]
    return BaselineMeasure(
        name,
        float(np.mean(overlaps)),
        interval(skus, overlaps),
        float(np.mean(edges)),
        interval(skus, edges),
        tuple(products),
    )


def _items(catalogue: Path, rows: Sequence[dict[str, str]], backgrounds: Sequence[Image.Image]) -> Iterator[TrueCutout]:
    for index, row in enumerate(rows):
        alpha = _read_alpha(catalogue.parent / row["ground_truth_alpha"])
        photo = _read_photo(catalogue.parent / row["image_link"])
        if alpha.shape[::-1] != photo.size:
            sizes = "{} × {} px, its photo {} × {}".format(*alpha.shape[::-1], *photo.size)
            raise UsageError(f"{catalogue.parent / row['ground_truth_alpha']}: the alpha mask is {sizes}")
        if backgrounds:
            photo = over_scene(photo, alpha, backgrounds[index % len(backgrounds)])
        garment = garment_part(f"{row.get('product_type', '')} {html.unescape(row.get('title', ''))}")
        yield TrueCutout(row["id"], photo, alpha > PRODUCT_ALPHA, garment)


def over_scene(photo: Photo, alpha: np.ndarray, scene: Image.Image) -> Photo:
    """Replace the white background of a photo by `scene`.

    `photo = alpha * product + (1 - alpha) * white`, so adding `(1 - alpha) * (scene - white)` replaces the
    background exactly, soft shadows included.
    """
    height, width = alpha.shape
    scale = max(width / scene.width, height / scene.height)
    size = (max(width, round(scene.width * scale)), max(height, round(scene.height * scale)))
    backdrop = np.asarray(scene.convert("RGB").resize(size, Image.Resampling.BICUBIC), np.float32)[:height, :width]
    mixed = photo.rgb + (1 - alpha[..., None]) * (backdrop - 255)
    return Photo(np.clip(mixed + 0.5, 0, 255).astype(np.uint8), None)


def iou(found: np.ndarray, truth: np.ndarray) -> float:
    """Intersection over union of two boolean masks; 1 if both are empty."""
    union = int((found | truth).sum())
    return float((found & truth).sum() / union) if union else 1.0


def boundary_f(found: np.ndarray, truth: np.ndarray, tolerance: int = BOUNDARY_TOLERANCE) -> float:
    """F-score of the outlines of two boolean masks, matched within `tolerance` px.

    Perazzi et al., "A Benchmark Dataset and Evaluation Methodology for Video Object Segmentation", CVPR 2016,
    section 4: contour accuracy.
    """
    edge_found, edge_truth = _outline(found), _outline(truth)
    if not edge_found.any() or not edge_truth.any():
        return float(edge_found.any() == edge_truth.any())
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * tolerance + 1, 2 * tolerance + 1))
    precision = float(edge_found[cv2.dilate(edge_truth.astype(np.uint8), disc) > 0].sum() / edge_found.sum())
    recall = float(edge_truth[cv2.dilate(edge_found.astype(np.uint8), disc) > 0].sum() / edge_truth.sum())
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def _outline(mask: np.ndarray) -> np.ndarray:
    """Product pixels that touch the background."""
    return mask & ~(cv2.erode(mask.astype(np.uint8), np.ones((3, 3), np.uint8)) > 0)


def _rows(catalogue: Path) -> list[dict[str, str]]:
    try:
        with catalogue.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            columns, every = reader.fieldnames or [], list(reader)
    except OSError as error:
        raise UsageError(f"{catalogue}: cannot be read ({error.strerror})") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise UsageError(f"{catalogue}: not readable as CSV in UTF-8 ({error})") from error
    if not every:
        raise UsageError(f"{catalogue}: the file has no rows{' below its header' if columns else ''}")
    missing = [name for name in ("id", "image_link") if name not in columns]
    if missing:
        raise UsageError(f"{catalogue}: no column {missing[0]!r} in its header")
    rows = [row for row in every if (row.get("ground_truth_alpha") or "").strip()]
    if not rows:
        raise UsageError(f"{catalogue}: no row names a ground_truth_alpha, there is nothing to measure against")
    return rows


def _read_photo(path: Path) -> Photo:
    try:
        return read_photo(path.read_bytes())
    except OSError as error:
        raise UsageError(f"{path}: the photo cannot be read ({error.strerror})") from error
    except Rejected as error:
        raise UsageError(f"{path}: {error.reason}") from error


def _read_alpha(path: Path) -> np.ndarray:
    """(H, W) float32, 0..1."""
    return np.asarray(_open(path, "the alpha mask").convert("L"), np.float32) / 255


def _backgrounds(folder: Path) -> list[Image.Image]:
    files = sorted(p for p in folder.glob("*") if p.suffix.lower() in (".jpg", ".jpeg", ".png", ".webp"))
    if not files:
        raise UsageError(f"{folder}: no pictures to put behind the products")
    return [_open(file, "the scene").convert("RGB") for file in files]


def _open(path: Path, what: str) -> Image.Image:
    try:
        with Image.open(path) as image:
            image.load()
            return image
    except (OSError, Image.DecompressionBombError) as error:
        raise UsageError(f"{path}: {what} cannot be read ({error})") from error
