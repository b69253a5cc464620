"""Stage 5: measure the finished image; hold failed ones, with the reason and a picture of where.

It checks overcompletion (the paper's subject), the product's own pixels, its edge and the scene. Every verdict is
recorded, passed or not: thresholds are reviewed with these scores.
"""

from __future__ import annotations

import io
from collections.abc import Sequence

import cv2
import numpy as np
from PIL import Image

from pipelines.contracts import Made, Verdict
from pipelines.quality.contact import measure_contact
from pipelines.quality.fidelity import Measure, background_quality, halo, product_fidelity
from pipelines.quality.heat import heat_picture
from pipelines.quality.lettering import comparable, measure_lettering, measure_text, on_canvas
from pipelines.quality.likeness import likeness_code
from pipelines.quality.overcompletion import OvercompletionDetector, reduced
from pipelines.stages.keys import SEEN
from pipelines.vision.backdrops import BackdropSettings, lay_backdrop
from pipelines.vision.photos import read_photo
from pipelines.vision.placement import Placement, lay_product
from pipelines.vision.reader import TextLine, load_reader
from pipelines.workflow import Recipe, Work

SAME_PICTURE = 10.0
"""Levels of 0..255 by which the finished image may differ from the candidate, as a mean over 5 × 5 px of the reduced
pictures, to have the same saliency map. Another size alone makes 3.2 to 7.6, measured on the 16 sample products."""


def load(recipe: Recipe) -> OvercompletionDetector:
    """Load the detector with HQ-SAM, and the reader of text where there is one."""
    if recipe.reader:
        load_reader()
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
    if not (matte >= 128).any():  # no product to measure: the other checks would be meaningless
        return Made(
            outputs=(heat_picture("fidelity", image, fidelity.where),),
            verdicts=(_verdict("fidelity", fidelity, limits["fidelity"], at_most=False),),
        )
    grown = detector.measure(image, matte, saliency=_known_saliency(work, image))
    share = f"{grown.e_plus:.1%} of the product's area"
    overcompletion = Measure(grown.e_plus, grown.heat, f"the scene grew the product by {share}")
    rim, scene = halo(image, matte), background_quality(image, matte)
    contact = _contact(work, image, matte)
    texts = _texts(work, image, matte, placement)
    return Made(
        outputs=(
            heat_picture("overcompletion", image, overcompletion.where),
            heat_picture("fidelity", image, fidelity.where),
            heat_picture("halo", image, rim.where),
            heat_picture("background", image, scene.where),
            *((heat_picture("contact", image, contact.where),) if contact else ()),
            *(heat_picture(name, image, found.where) for name, found, _ in texts),
        ),
        facts={
            "d_plus": grown.d_plus,
            "uncertainty": grown.uncertainty,
            "by_finder": dict(grown.by_finder),
            "likeness": likeness_code(np.asarray(cutout.convert("RGBA"))),
        },
        verdicts=(
            _verdict("overcompletion", overcompletion, limits["overcompletion"], at_most=True),
            _verdict("fidelity", fidelity, limits["fidelity"], at_most=False),
            _verdict("halo", rim, limits["halo"], at_most=True),
            _verdict("background", scene, limits["background"], at_most=False),
            *((_verdict("contact", contact, limits["contact"], at_most=False),) if contact else ()),
            *(_verdict(name, found, limit, at_most=True) for name, found, limit in texts),
        ),
    )


def _known_saliency(work: Work, image: np.ndarray) -> np.ndarray | None:
    """Return the candidate's saliency map (h, w), 0..1, if only the size of `image` differs from the candidate's."""
    if "saliency" not in work.inputs:
        return None
    plate, placed, saliency = (Image.open(io.BytesIO(work.inputs[role])) for role in SEEN)
    seen = plate.convert("RGB")
    seen.paste(placed, mask=placed.getchannel("A"))
    size = min(seen.size, reduced(image).shape[1::-1])
    now, before = (cv2.resize(picture, size, interpolation=cv2.INTER_AREA) for picture in (image, np.asarray(seen)))
    if np.abs(cv2.blur(now.astype(np.float32) - before, (5, 5))).max() > SAME_PICTURE:
        return None
    return np.asarray(saliency, np.float32) / 255


def _contact(work: Work, image: np.ndarray, matte: np.ndarray) -> Measure | None:
    """The contact with the ground; None where nothing stands on a backdrop."""
    if "backdrop" not in work.inputs:
        return None
    settings = BackdropSettings.from_parameters(work.job.parameters["backdrop"])
    bare = lay_backdrop(work.inputs["backdrop"], (image.shape[1], image.shape[0]), settings).pixels
    return measure_contact(image, bare, matte)


def _texts(work: Work, image: np.ndarray, matte: np.ndarray, placement: Placement) -> list[tuple[str, Measure, float]]:
    """The checks of text with their limits: of the product's text if the photo has any that can be compared, and of the
    scene's if a scene was painted."""
    if "text" not in work.job.parameters:
        return []
    asked, reader = work.job.parameters["text"], load_reader()
    lines = [
        TextLine(line["text"], line["confidence"], tuple((x, y) for x, y in line["quad"])) for line in asked["lines"]
    ]
    found = []
    if compared := comparable(on_canvas(lines, placement), matte):
        found.append(("text", measure_text(image, compared, reader), asked["limit"]))
    if asked["painted"]:
        known = [line.text for line in lines]
        found.append(("lettering", measure_lettering(image, matte, known, reader), 0.0))
    return found


def _verdict(check: str, measure: Measure, threshold: float, at_most: bool) -> Verdict:
    passed = measure.score <= threshold if at_most else measure.score >= threshold
    return Verdict(check, measure.score, threshold, passed, "" if passed else measure.reason, picture=check)
