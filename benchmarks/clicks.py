"""What a second click in the cutout editor adds, and what the answers cost.

    python -m benchmarks.clicks path/to/catalog

Each product of the catalogue with a known alpha mask is cut out by clicks alone. The first click is where the product
is widest, and every further one where the answer's largest error is. The hard products are the ten whose first answer
has the lowest IoU with the known mask.
"""

from __future__ import annotations

import csv
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from pipelines.evaluation.cutout import PRODUCT_ALPHA
from pipelines.models.profile import active_profile
from pipelines.stages.cutout import _iou
from pipelines.vision.clicks import Click, answer_clicks
from pipelines.vision.photos import read_photo
from pipelines.vision.segmenters import Encoding, HQSamSegmenter, SalientSegmenter, working_picture

CLICKS = 4
HARD = 10


@dataclass(frozen=True, slots=True)
class Clicked:
    """IoU after each click, and seconds: of the encoder, and of each answer."""

    product: str
    ious: tuple[float, ...]
    encoding: float
    answers: tuple[float, ...]


def click_through(product: str, image: np.ndarray, truth: np.ndarray, hqsam: HQSamSegmenter) -> Clicked:
    """Cut a product out by clicks; `truth` is `(H, W)` bool."""
    began = time.perf_counter()
    kept = hqsam.encode(image).to_bytes()
    encoding = time.perf_counter() - began
    hqsam.restore(image, Encoding.from_bytes(kept))  # as the editor does
    mask, clicks, ious, answers = np.zeros(truth.shape, bool), [], [], []
    for _ in range(CLICKS):
        clicks.append(next_click(mask, truth))
        began = time.perf_counter()
        mask = answer_clicks(image, mask, clicks, hqsam)
        answers.append(time.perf_counter() - began)
        ious.append(_iou(mask, truth))
    return Clicked(product, tuple(ious), encoding, tuple(answers))


def next_click(mask: np.ndarray, truth: np.ndarray) -> Click:
    """Return a click where the error is widest."""
    found = []
    for error, product in ((truth & ~mask, True), (mask & ~truth, False)):
        depth = cv2.distanceTransform(np.pad(error, 1).astype(np.uint8), cv2.DIST_L2, 5)
        y, x = np.unravel_index(int(depth.argmax()), depth.shape)
        found.append((float(depth.max()), Click(float(x) - 1, float(y) - 1, product)))
    return max(found, key=lambda one: one[0])[1]


def main(catalog: Path) -> None:
    """Print one line a product, and the sums."""
    profile = active_profile()
    hqsam = HQSamSegmenter.from_profile(profile, SalientSegmenter.from_profile(profile))
    with (catalog / "catalog.csv").open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["ground_truth_alpha"]]
    found = []
    for row in rows:
        image = working_picture(read_photo((catalog / row["image_link"]).read_bytes()).rgb)
        alpha = Image.open(catalog / row["ground_truth_alpha"]).convert("L").resize((image.shape[1], image.shape[0]))
        found.append(click_through(row["id"], image, np.asarray(alpha) > 255 * PRODUCT_ALPHA, hqsam))
        print(row["id"], *(f"{iou:.3f}" for iou in found[-1].ious), flush=True)
    hard = sorted(found, key=lambda one: one.ious[0])[:HARD]
    print(f"of the {HARD} hardest, a second click raises IoU on {sum(one.ious[1] > one.ious[0] for one in hard)}")
    print(
        "their mean IoU after each click:",
        *(f"{statistics.mean(ious):.3f}" for ious in zip(*(one.ious for one in hard), strict=True)),
    )
    print(
        f"median seconds: encoder {statistics.median(one.encoding for one in found):.2f}, "
        f"answer {statistics.median(seconds for one in found for seconds in one.answers):.2f}"
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
