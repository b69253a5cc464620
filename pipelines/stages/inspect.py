"""Stage 5: measure the finished image; what fails is held, with the reason and a picture of where.

Overcompletion (the paper's subject), the product's own pixels, its edge, the scene around it. Every verdict is given,
whether it passes or not: the figures are what thresholds are reviewed with.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence

import cv2
import numpy as np
from PIL import Image

from pipelines.contracts import Job, Made, Output, Shot, Step, Verdict
from pipelines.placement import Placement, lay_product
from pipelines.quality.evidence import weights_ref
from pipelines.quality.fidelity import Measure, background_quality, halo, product_fidelity
from pipelines.quality.overcompletion import OvercompletionDetector
from pipelines.vision.photos import read_photo
from pipelines.workflow import Recipe, Stage, Work

HEAT_SIDE = 512
"""Longer side of the pictures that show where, px."""


def job(shot: Shot, upstream: Mapping[str, Step], recipe: Recipe, candidate: int) -> Job:
    """What the verdicts depend on: the final image, what was to be laid there, the thresholds, the segmenters."""
    return Job(
        stage=STAGE.name,
        version=STAGE.version,
        inputs={
            "final": upstream["upscale"].output("final"),
            "photo": shot.product.photo or "",
            "cutout": upstream["cutout"].output("cutout"),
        },
        parameters={
            "placement": dict(upstream["generate"].facts["placement"]),
            "thresholds": recipe.scene.checks.model_dump(mode="json"),
        },
        models=(*(recipe.profile.ref(name) for name in ("salient", "hqsam")), weights_ref()),
        attempt=recipe.attempt,
    )


def load(recipe: Recipe) -> OvercompletionDetector:
    """Load the segmenters, HQ-SAM among them."""
    return OvercompletionDetector.from_profile(recipe.profile, thorough=True, device=recipe.device)


def compute(works: Sequence[Work], models: OvercompletionDetector, recipe: Recipe) -> list[Made]:
    """Give every check's verdict on every image."""
    return [_inspect(work, models, recipe) for work in works]


def _inspect(work: Work, detector: OvercompletionDetector, recipe: Recipe) -> Made:
    image = np.asarray(Image.open(io.BytesIO(work.inputs["final"])).convert("RGB"))
    placement = Placement.from_facts(dict(work.job.parameters["placement"]))
    cutout = Image.open(io.BytesIO(work.inputs["cutout"]))
    photo = read_photo(work.inputs["photo"], recipe.max_megapixels).image()
    product = lay_product(photo, cutout, placement)
    limits = work.job.parameters["thresholds"]

    fidelity = product_fidelity(image, product)
    matte = product.matte if product.matte.shape == image.shape[:2] else np.zeros(image.shape[:2], np.uint8)
    if not (matte >= 128).any():  # nothing to measure around: the other checks would speak of nothing
        return Made(
            outputs=(_picture("fidelity", image, fidelity.where),),
            verdicts=(_verdict("fidelity", fidelity, limits["fidelity"], at_most=False),),
        )
    grown = detector.measure(image, matte)
    share = f"{grown.e_plus:.1%} of the product's area"
    overcompletion = Measure(grown.e_plus, grown.heat, f"the scene grew the product by {share}")
    rim, scene = halo(image, matte), background_quality(image, matte)
    return Made(
        outputs=(
            _picture("overcompletion", image, overcompletion.where),
            _picture("fidelity", image, fidelity.where),
            _picture("halo", image, rim.where),
            _picture("background", image, scene.where),
        ),
        facts={"d_plus": grown.d_plus, "uncertainty": grown.uncertainty, "by_finder": dict(grown.by_finder)},
        verdicts=(
            _verdict("overcompletion", overcompletion, limits["overcompletion"], at_most=True),
            _verdict("fidelity", fidelity, limits["fidelity"], at_most=False),
            _verdict("halo", rim, limits["halo"], at_most=True),
            _verdict("background", scene, limits["background"], at_most=False),
        ),
    )


def _verdict(check: str, measure: Measure, threshold: float, at_most: bool) -> Verdict:
    passed = measure.score <= threshold if at_most else measure.score >= threshold
    return Verdict(check, measure.score, threshold, passed, "" if passed else measure.reason, picture=check)


def _picture(check: str, image: np.ndarray, where: np.ndarray) -> Output:
    """The image in grey with the place in red, as WebP."""
    scale = min(1.0, HEAT_SIDE / max(image.shape[:2]))
    size = (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale)))
    grey = cv2.cvtColor(cv2.resize(image, size, interpolation=cv2.INTER_AREA), cv2.COLOR_RGB2GRAY)
    heat = cv2.resize(where.astype(np.float32), size, interpolation=cv2.INTER_AREA)[..., None].clip(0, 1)
    red = np.array([230, 30, 20], np.float32)
    drawn = (grey[..., None] * 0.6 + 90) * (1 - 0.75 * heat) + red * 0.75 * heat
    data = io.BytesIO()
    Image.fromarray(np.clip(drawn, 0, 255).astype(np.uint8)).save(data, "WEBP", quality=80)
    return Output(check, data.getvalue(), "image/webp")


STAGE = Stage(name="inspect", version=3, needs=("generate", "upscale"), job=job, load=load, compute=compute)
