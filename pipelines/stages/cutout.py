"""Stage 1: cut the product out of its photo (paper, section 3.1, step 1).

There are three paths, tried in this order. A photo with alpha is used unchanged, also where it is see-through. On plain
studio paper the product is cut out by colour, and HQ-SAM is asked where colour can err. All other photos go to HQ-SAM,
prompted by the profile's net for the foreground, with several prompts if the product is ambiguous. A part that the
cutout seems to lack is segmented with one more prompt (`quality/completeness.py`). Paper inside the product is opened
(`vision/openings.py`). The edge is refined to a soft matte at the photo's own resolution, and the old background's
colour is removed from it. Checks of the photo and of the cutout hold what a person should see.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np
from PIL import Image

from pipelines.contracts import Made, Output, Verdict
from pipelines.errors import Rejected, UsageError
from pipelines.models.profile import FOREGROUND, Profile
from pipelines.quality import certainty, checkerboard, cut_by_border, product_photo, single_product
from pipelines.quality.completeness import check_completeness
from pipelines.quality.evidence import Evidence
from pipelines.quality.fidelity import Measure
from pipelines.quality.heat import heat_picture
from pipelines.quality.overcompletion import ColourFinder, OvercompletionDetector, SalientFinder
from pipelines.stages.keys import WHOLE
from pipelines.vision.central_crops import SaliencyMaps, saliency_maps
from pipelines.vision.matting import decontaminate, refine_matte
from pipelines.vision.openings import find_openings, names_opening
from pipelines.vision.people import covered_by_hands, find_skin, garment_prompt, is_worn
from pipelines.vision.photos import Photo, png_bytes, read_photo
from pipelines.vision.segmenters import (
    STABLE,
    HQSamSegmenter,
    Prompt,
    SalientSegmenter,
    deepest_points,
    filled,
    main_pieces,
    prompt_from,
    stability,
    working_picture,
)
from pipelines.vision.studio import Studio, clutter, cut_studio, find_studio, unmistakable, without_paper
from pipelines.vision.surfaces import is_sheet, lying_on, printed_on
from pipelines.workflow import Recipe, Work

PATHS = ("auto", "hqsam")
MIN_AREA = 0.003
MAX_AREA = 0.93
"""Shares of the picture below which there is no product, and above which there is no background."""

MIN_AGREEMENT = 0.5
MAX_CLUTTER = 0.005
"""Largest share around the product that may not be paper. With more, the photo is a scene with a plain border.

Thirteen photos on paper have up to 0.0005. Six of seven composites over scenes with such borders have 0.009 to 0.34;
the seventh is cut out correctly by colour too.
"""

UNDISPUTED_STABILITY, UNDISPUTED_IOU = 0.95, 0.97
"""HQ-SAM's mask with this stability, and this IoU with the whole picture's saliency, needs no central crops.

Of 90 photos and composites over scenes, 54 reach both, and the crops change no mask of these. Of the 16 masks that the
crops change, the highest IoU is 0.954.
"""

SETTLED = 0.88
"""A mask of HQ-SAM with this stability times overlap with the saliency maps needs no alternative."""

WITHIN, AGREED = 0.95, 0.97
"""A mask with this share inside another is a part of it. Two segmenters with this IoU agree. In five photos with a
correct whole mask it is 0.971 to 0.987, in one composite with a wrong one 0.954."""

LEAST_UNMISTAKABLE = 0.2
"""Share of a cutout by colour that no paper can be, from which HQ-SAM is asked with points on it alone. With less it
finds a part of the product, such as a clock's hands."""

MAX_SKIN = 0.25
"""More skin colour than this is a wooden floor: 0.27 to 0.53 of the picture in four photos of clothes."""

MAX_COVERED = 0.007
"""Share of a worn garment that a hand may cover. Of 44 worn garments of the training folder, looked at one by one, ten
of the twelve with a bite have more, and two of the others do."""

MAX_HAND = 0.06
"""Share of a thing in a hand that the hand may cover. Wood and cardboard look like skin: of 300 whole products laid
over scenes of the training folder, 1.7 % have more."""

SHADOW_ALPHA = 0.8
"""The alpha channel often contains the product's soft shadow. Below this value, outside the product, it is none."""

SHADOW_LIGHT, SHADOW_TINT = 80.0, 20.0
"""A see-through region beside the product is its shadow if its mean level, or the span of its mean colour, is less.
Of 31 cutouts with a shadow, 11 have a light grey one."""

MIN_CLEAR = 0.001
"""Share of the picture that an alpha channel clears at least if it is a cutout."""

ROUNDED_CORNERS = 0.05
"""An alpha channel that clears less may only round a photo's corners."""

MAX_DOUBTFUL = 0.01
"""Share of the product that may be paper inside it. Of 179 cutouts of the training folder on white, white parts of a
product reach 0.006 a piece, and all 19 larger pieces were openings."""

MAX_SHADED = 0.003
"""Share of the product that may be shaded paper between leaves or cords. Of 112 planted pictures, 72 right cutouts have
up to 0.002, but a plate of rice, and 14 wrong ones of leaves have 0.005 and more."""

MAX_SEE_THROUGH = 0.02
"""Share of the product that may be see-through."""


@dataclass(frozen=True, slots=True)
class CutoutModels:
    """What cuts a product out.

    Attributes:
        salient: The net in the bundled format. Cutouts by colour, openings and the detector are set with its maps.
        hqsam: Segments what it is prompted for.
        detector: Checks for completeness; None: no check.
        foreground: A stronger net, which finds the product where there is no plain paper; None: `salient` does.
    """

    salient: SalientSegmenter
    hqsam: HQSamSegmenter
    detector: OvercompletionDetector | None = None
    foreground: SalientSegmenter | None = None

    @classmethod
    def from_profile(cls, profile: Profile, device: str = "cpu") -> CutoutModels:
        """Load all models."""
        salient = SalientSegmenter.from_profile(profile, device)
        other = profile.has(FOREGROUND) and profile.part(FOREGROUND).path != profile.part("salient").path
        foreground = SalientSegmenter.from_profile(profile, device, FOREGROUND) if other else None
        detector = OvercompletionDetector([SalientFinder(salient), ColourFinder()], Evidence.read())
        return cls(salient, HQSamSegmenter.from_profile(profile, salient, device), detector, foreground)


@dataclass(frozen=True, slots=True)
class CutoutResult:
    """A product, cut out.

    Attributes:
        matte: `(H, W)` float32 at the photo's size, 0..1, 1 = product; exactly 1 inside.
        colours: `(H, W, 3)` uint8: the photo's, without the background's colour in the soft edge.
        path: How it was found: `alpha`, `studio` or `hqsam`.
        box: Left, top, right, bottom of the product, px.
        score: IoU of the first mask and the independent salient-object net's; 1 if they are the same.
        held: Why a person should check it, or "".
        beyond: E+ of the photo with this cutout: area of the missing part over the cutout's; NaN if not checked.
        where: `(h, w)` float32, 0..1: the missing part; None if not checked.
        mended: Whether a missing part was added.
        doubtful: `(h, w)` bool: the part that may be paper seen through an opening; None if there is no paper.
        shaded: `(h, w)` bool: the part of it that is small pieces of shaded paper, as between leaves.
        unopened: Whether the title names a product with an opening and the cutout has none.
        see_through: `(H, W)` bool: the part whose alpha the shop made see-through; None if the photo has no alpha.
        certain: Probability that the mask is wrong, and where; None if HQ-SAM was not asked.
    """

    matte: np.ndarray
    colours: np.ndarray
    path: str
    box: tuple[int, int, int, int]
    score: float
    held: str = ""
    beyond: float = float("nan")
    where: np.ndarray | None = None
    mended: bool = False
    doubtful: np.ndarray | None = None
    shaded: np.ndarray | None = None
    unopened: bool = False
    see_through: np.ndarray | None = None
    certain: Measure | None = None


@dataclass(frozen=True, slots=True)
class _Found:
    """A soft mask `(h, w)` of the working picture, its path, the segmenters' agreement, and the reason to hold it.
    `saliency`: the map of `CutoutModels.salient`. `worn`: a person wears it and continues beyond it. `studio`: the
    paper, if any. `off_person`: it was cut off a whole person. `opinion`: what HQ-SAM says of a cutout by colour, if it
    was asked."""

    mask: np.ndarray
    path: str
    agreement: float
    saliency: np.ndarray
    held: str = ""
    worn: bool = False
    studio: Studio | None = None
    off_person: bool = False
    opinion: Measure | None = None


def cutout(
    photo: Photo, models: CutoutModels, path: str = "auto", garment: str = "", tau: float = WHOLE, title: str = ""
) -> CutoutResult:
    """Cut the product out of a photo.

    Args:
        photo: As `read_photo` returns it.
        models: The segmenters.
        path: `auto`, or `hqsam` to use HQ-SAM for every photo.
        garment: `upper`, `lower` or "": which half of a person a worn garment covers (`garments.garment_part`).
        tau: E+ of the photo with its cutout up to which the cutout is complete.
        title: The product's; it may name a thing with an opening.

    Raises:
        Rejected: the photo shows no product, or nothing but product.
    """
    if path not in PATHS:
        raise UsageError(f"cutout path {path!r}: there are {', '.join(PATHS)}")
    if photo.alpha is not None and (photo.alpha > 0.05).mean() <= MIN_AREA:
        raise Rejected("no product found: the photo is transparent everywhere: export it with its picture visible")
    if path == "auto" and photo.alpha is not None and _is_cut_out(photo.alpha):
        return _by_alpha(photo, photo.alpha)

    image = working_picture(photo.rgb)
    found = _find(image, models, path, garment)
    if models.detector is None or not MIN_AREA <= (found.mask > 0.5).mean() <= MAX_AREA:  # `_finish` refuses it
        return _opened(photo, image, found, found.mask, title)
    # a person checks held ones; on a person, a second mask would include other clothes
    hqsam = None if found.held or found.worn else models.hqsam
    checked = check_completeness(image, found.mask, models.detector, tau, hqsam, found.saliency)
    found = replace(found, path="hqsam" if checked.mended else found.path)
    # only now: to the detector, an opening is a missing part
    result = _opened(photo, image, found, checked.mask, title)
    return replace(result, beyond=checked.e_plus, where=checked.where, mended=checked.mended)


def _opened(photo: Photo, image: np.ndarray, found: _Found, mask: np.ndarray, title: str) -> CutoutResult:
    """Return the result of a mask `(h, w)` of the working picture, with its openings removed."""
    doubtful, shaded, segmented = None, None, mask
    if found.studio is not None and not found.worn:
        openings = find_openings(image, found.studio, mask > 0.5, found.saliency, title)
        mask = np.where(openings.certain, 0, mask).astype(np.float32)
        doubtful, shaded = openings.doubtful, openings.shaded
    unopened = found.studio is None and names_opening(title) and not _has_hole(mask > 0.5)
    result = _finish(photo, _soft_matte(photo, mask), found.path, found.agreement, found.held)
    certain = found.opinion
    if found.path == "hqsam":
        certain = certainty.measure_certainty(image, segmented, found.off_person)
    return replace(result, doubtful=doubtful, shaded=shaded, unopened=unopened, certain=certain)


def _by_alpha(photo: Photo, alpha: np.ndarray) -> CutoutResult:
    """Return the product as the shop cut it out; it is held if the alpha may only round a photo's corners."""
    matte = _without_shadow(photo.rgb, alpha)
    see_through = _see_through(matte)
    held = ""
    clear = float((alpha < 0.05).mean())
    if clear < ROUNDED_CORNERS and find_studio(photo.rgb) is not None:
        held = f"the photo's transparency clears only {clear:.1%} of it, and inside is a plain background"
    # its colours are the product's alone, so there is no background to remove from them
    level = 0.5 if see_through.mean() < MIN_AREA else 0.05
    result = _finish(photo, matte, "alpha", 1.0, held, level=level, by_shop=True)
    return replace(result, see_through=see_through)


def _find(image: np.ndarray, models: CutoutModels, path: str, garment: str) -> _Found:
    """Find the product in a photo without alpha; see `cutout`."""
    saliency = models.salient.segment(image)
    salient = main_pieces(saliency > 0.5)
    studio = find_studio(image)
    figure = cut_studio(image, studio, saliency) if studio is not None and salient.mean() >= MIN_AREA else None

    skin = find_skin(image)
    if figure is not None and is_worn(figure, skin, garment):
        mask, held = _garment_alone(image, figure, skin, models.hqsam, garment)
        return _Found(mask, "hqsam", _iou(mask > 0.5, salient), saliency, held, worn=True, off_person=True)
    on_paper = studio is not None and figure is not None and clutter(image, studio, figure) <= MAX_CLUTTER
    if path == "auto" and studio is not None and figure is not None and on_paper:
        agreement, opinion = _iou(figure, salient), None
        if certainty.colour_may_err(image, studio, figure, agreement):
            figure, opinion = _second_opinion(image, studio, figure, models.hqsam)
        lines = certainty.measure_lines(image, studio, figure)
        if lines.reason and (opinion is None or opinion.score < lines.score):
            opinion = lines
        return _Found(figure.astype(np.float32), "studio", agreement, saliency, studio=studio, opinion=opinion)

    foreground = saliency if models.foreground is None else models.foreground.segment(image)
    salient = main_pieces(foreground > 0.5)
    if salient.mean() < MIN_AREA:
        raise Rejected("no product found: nothing in the photo stands out from its background")
    mask, maps = _best_mask(image, foreground, models, on_paper)
    if studio is not None and figure is None:  # only the stronger net sees the product
        on_paper = clutter(image, studio, mask > 0.5) <= MAX_CLUTTER
    if is_sheet(mask > 0.5):
        mask = lying_on(image, mask, models.hqsam)
    agreement = max(_iou(mask > 0.5, salient), _iou(mask > 0.5, main_pieces(maps.mean > 0.5)))
    if garment and (around := printed_on(image, mask, models.hqsam)) is not mask:
        return _Found(around, "hqsam", agreement, saliency, "a garment was cut out around what may be its print")
    held = _unstable(mask)
    if agreement < MIN_AGREEMENT:
        held = f"unsure what the product is: the two segmenters agree on {agreement:.0%} of it"
    if not garment and not on_paper and skin.mean() <= MAX_SKIN:
        covered = covered_by_hands(mask > 0.5, skin, "")
        held = held or (f"a hand may cover {covered:.0%} of the product" if covered > MAX_HAND else "")
    worn = bool(garment) and _touches_skin(mask, skin)
    return _Found(mask, "hqsam", agreement, saliency, held, worn, studio if on_paper else None)


def _second_opinion(
    image: np.ndarray, studio: Studio, figure: np.ndarray, hqsam: HQSamSegmenter
) -> tuple[np.ndarray, Measure | None]:
    """Return a cutout by colour `(h, w)` bool, and what HQ-SAM says of it; None if it contains no product.

    Shadow and paper that HQ-SAM leaves out are removed, if both then agree. Otherwise the cutout stays as it is.
    """
    prompt = prompt_from(figure.astype(np.float32), points=4)
    if prompt is None:
        return figure, None
    opinion = hqsam.segment_prompted(image, prompt) > 0.5
    certainly = unmistakable(image, studio, figure)
    strict = None
    if certainly.sum() >= LEAST_UNMISTAKABLE * figure.sum():
        points = deepest_points(certainly, 4)
        on_product = Prompt(prompt.box, points, np.ones(len(points), np.int64))
        strict = hqsam.segment_prompted(image, on_product, passes=1) > 0.5
    cleared = without_paper(image, studio, figure, opinion)
    if not cleared.any() or certainty.measure_second_opinion(image, studio, cleared, opinion).reason:
        cleared = figure
    return cleared, certainty.measure_second_opinion(image, studio, cleared, opinion, strict)


def _best_mask(
    image: np.ndarray, foreground: np.ndarray, models: CutoutModels, on_paper: bool
) -> tuple[np.ndarray, SaliencyMaps]:
    """Return HQ-SAM's mask and the saliency maps that decided. The first certain mask for the maps' prompts wins, else
    the best of all. Parts of an earlier mask are skipped.

    The first prompt is the whole picture's. The net runs on central crops only if its mask is disputed. On paper the
    product is the only object, and a crop would only cut it.

    Measured on composites of held-out products over held-out scenes (n = 61): the mean IoU is 0.909 with the whole
    picture's prompt alone, and 0.941 with the best mask. Three photos need two more masks.
    """
    maps = SaliencyMaps(foreground, (), foreground)
    masks = [_stable_mask(image, prompt, models.hqsam) for prompt in maps.prompts()]  # one: there are no crops
    if on_paper or all(_is_undisputed(mask, foreground) for mask in masks):
        return filled(masks[0]), maps
    maps = saliency_maps(image, models.foreground or models.salient, foreground)
    best, likeliest = -1.0, np.zeros(image.shape[:2], np.float32)
    for number, prompt in enumerate(maps.prompts()):
        mask = masks[0] if number == 0 else _stable_mask(image, prompt, models.hqsam)
        whole = filled(mask)
        if _is_part(whole > 0.5, likeliest > 0.5, maps):
            continue
        score = stability(mask) * maps.overlap(whole > 0.5)
        if score > best:
            best, likeliest = score, whole
        if best >= SETTLED:
            break
    return likeliest, maps


def _is_undisputed(mask: np.ndarray, saliency: np.ndarray) -> bool:
    """Return whether HQ-SAM is certain of a mask, and the whole picture's saliency map shows the same object.

    A sheet always has another opinion: what lies on it is the product.
    """
    product = filled(mask) > 0.5
    if stability(mask) < UNDISPUTED_STABILITY or is_sheet(product):
        return False
    return _iou(product, main_pieces(saliency > 0.5)) >= UNDISPUTED_IOU


def _is_part(answer: np.ndarray, thing: np.ndarray, maps: SaliencyMaps) -> bool:
    """Return whether a mask is a part of an object that HQ-SAM and the whole picture's saliency agree on; both bool.

    A crop may cut a product's foot or sleeve off; the rest then overlaps more with the crops' saliency.
    """
    within = (answer & thing).sum() >= WITHIN * max(1, answer.sum())
    return bool(within and _iou(thing, main_pieces(maps.whole > 0.5)) >= AGREED)


def _stable_mask(image: np.ndarray, prompt: Prompt, hqsam: HQSamSegmenter) -> np.ndarray:
    """Return HQ-SAM's mask; if it is unstable, the mask of the box alone, if that is more stable.

    With points on two objects, a product and an object behind it, SAM's mask lies between the two.
    """
    mask = hqsam.segment_prompted(image, prompt)
    if stability(mask) >= STABLE:
        return mask
    box_alone = Prompt(prompt.box, prompt.points[:0], prompt.labels[:0])
    return max(mask, hqsam.segment_prompted(image, box_alone, passes=1), key=stability)


def _garment_alone(
    image: np.ndarray, figure: np.ndarray, skin: np.ndarray, hqsam: HQSamSegmenter, part: str
) -> tuple[np.ndarray, str]:
    """Return the garment of a person alone, and the reason to hold it if it cannot be separated from other clothes."""
    prompt = garment_prompt(image, figure, skin, part)
    if prompt is None:
        return figure.astype(np.float32), "worn by a person and not separable from them"
    mask = hqsam.segment_prompted(image, prompt) * (figure & ~skin)
    mask = filled(mask, share=0.1)
    share = float((mask > 0.5).sum() / figure.sum())
    if not part:
        return mask, "worn by a person, and the title does not say which garment is meant"
    if share < 0.15:
        return mask, f"worn by a person, and only {share:.0%} of the figure was recognised as the garment"
    covered = covered_by_hands(mask > 0.5, skin, part)
    if covered > MAX_COVERED:
        return mask, f"worn by a person whose hand covers {covered:.1%} of the garment"
    return mask, _unstable(mask)


def _touches_skin(mask: np.ndarray, skin: np.ndarray) -> bool:
    """Return whether skin `(H, W)` bool touches a mask on at least a hundredth of its area, and is not a floor."""
    if skin.mean() > MAX_SKIN:
        return False
    found = mask > 0.5
    near = cv2.dilate(found.astype(np.uint8), np.ones((25, 25), np.uint8)) > 0
    return float((skin & near & ~found).sum()) >= 0.01 * found.sum()


def _is_cut_out(alpha: np.ndarray) -> bool:
    """Return whether the alpha channel is a cutout: clear in a region that reaches the border, visible elsewhere.

    Scattered clear pixels, as in a damaged file, are none.
    """
    clear = cv2.morphologyEx((alpha < 0.05).astype(np.uint8), cv2.MORPH_OPEN, np.ones((3, 3), np.uint8))
    _, labels = cv2.connectedComponents(np.pad(clear, 1, constant_values=1), connectivity=4)
    outside = (labels == labels[0, 0])[1:-1, 1:-1]
    return float(outside.mean()) >= MIN_CLEAR and float((alpha > 0.05).mean()) > MIN_AREA


def _without_shadow(rgb: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Return the alpha channel on the product and 2 px around it, 0 elsewhere.

    What the opaque part encloses is product, also where it is see-through. A see-through region beside it is product if
    it is too light and too colourful for a shadow, or if nearly nothing is opaque.
    """
    opaque = (alpha > SHADOW_ALPHA).astype(np.uint8)
    if opaque.mean() < MIN_AREA:
        return alpha
    product = _filled_holes(opaque)
    _, labels, stats, _ = cv2.connectedComponentsWithStats(((alpha > 0.05) & (product == 0)).astype(np.uint8))
    colour = np.stack([np.bincount(labels.ravel(), weights=rgb[..., c].ravel()) for c in range(3)], axis=1)
    colour = colour / np.maximum(1, stats[:, cv2.CC_STAT_AREA])[:, None]
    kept = (colour.mean(axis=1) >= SHADOW_LIGHT) & (np.ptp(colour, axis=1) >= SHADOW_TINT)
    kept &= stats[:, cv2.CC_STAT_AREA] >= MIN_AREA * alpha.size
    kept[0] = False
    product |= kept[labels].astype(np.uint8)
    return alpha * cv2.dilate(product, np.ones((5, 5), np.uint8))


def _filled_holes(mask: np.ndarray) -> np.ndarray:
    """Return a mask `(H, W)` uint8, 0 or 1, with everything that it encloses."""
    _, labels = cv2.connectedComponents(np.pad(1 - mask, 1, constant_values=1), connectivity=4)
    return (labels != labels[0, 0])[1:-1, 1:-1].astype(np.uint8)


def _has_hole(mask: np.ndarray) -> bool:
    """Return whether a mask `(H, W)` bool encloses a region of a hundredth of its area."""
    return bool(_filled_holes(mask.astype(np.uint8)).sum() - mask.sum() >= 0.01 * mask.sum())


def _see_through(matte: np.ndarray) -> np.ndarray:
    """Return where a matte is see-through, `(H, W)` bool, without its soft edge."""
    partly = ((matte > 0.05) & (matte < 0.95)).astype(np.uint8)
    size = max(5, round(0.008 * max(matte.shape)) | 1)
    return cv2.morphologyEx(partly, cv2.MORPH_OPEN, np.ones((size, size), np.uint8)) > 0


def _unstable(mask: np.ndarray) -> str:
    """Return why a soft mask is uncertain, or ""."""
    score = stability(mask)
    return f"unsure where the product ends (stability {score:.2f})" if score < STABLE else ""


def _soft_matte(photo: Photo, mask: np.ndarray) -> np.ndarray:
    """Return a soft matte at the photo's size from a mask of the reduced photo; only its edge is soft."""
    width, height = photo.size
    full = cv2.resize(mask.astype(np.float32), (width, height), interpolation=cv2.INTER_LINEAR)
    np.multiply(full, 4, out=full)  # in place, to save memory
    np.clip(np.subtract(full, 1.5, out=full), 0, 1, out=full)
    return refine_matte(photo.rgb, full, radius=max(3, round(0.004 * max(width, height))))


def _finish(
    photo: Photo, matte: np.ndarray, path: str, score: float, held: str = "", level: float = 0.5, by_shop: bool = False
) -> CutoutResult:
    """Return the result of a matte; pixels above `level` are product. A matte `by_shop` may fill the photo."""
    product = matte > level
    area = float(product.mean())
    if area < MIN_AREA:
        raise Rejected("no product found: what stood out turned out to be a shadow or a speck")
    if area > MAX_AREA and not by_shop:
        raise Rejected("no product found: the photo is filled to its edges, there is no background to tell it from")
    rows, columns = np.flatnonzero(product.any(axis=1)), np.flatnonzero(product.any(axis=0))
    box = (int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1)
    return CutoutResult(matte, photo.rgb if by_shop else decontaminate(photo.rgb, matte), path, box, score, held)


def _iou(a: np.ndarray, b: np.ndarray) -> float:
    return float((a & b).sum() / max(1, (a | b).sum()))


def load(recipe: Recipe) -> CutoutModels:
    """Load the segmenters of the profile and the detector."""
    return CutoutModels.from_profile(recipe.profile, recipe.device)


def compute(works: Sequence[Work], models: CutoutModels, recipe: Recipe) -> list[Made | Rejected]:
    """Cut out each photo; a bad photo rejects only its shot."""
    return [_compute_one(work, models, recipe) for work in works]


def _compute_one(work: Work, models: CutoutModels, recipe: Recipe) -> Made | Rejected:
    parameters = work.job.parameters
    if "problem" in parameters:
        return Rejected(parameters["problem"])
    title = parameters["title"]
    try:
        photo = read_photo(work.inputs["photo"], recipe.max_megapixels)
        result = cutout(photo, models, parameters["path"], parameters["garment"], parameters["whole_tau"], title)
    except Rejected as rejection:
        return rejection
    scaled = result.matte * 255
    scaled += 0.5
    matte = np.clip(scaled, 0, 255, out=scaled).astype(np.uint8)
    del scaled
    rgba = Image.fromarray(np.dstack([result.colours, matte]), "RGBA")
    outputs, verdicts = [Output("cutout", png_bytes(rgba), "image/png")], [_agreed(result)]
    if result.where is not None:
        outputs.append(heat_picture("whole", photo.rgb, result.where))
        verdicts.append(_complete(result, parameters["whole_tau"]))
    for verdict, where in [*step_doubts(result), *photo_checks(photo, result, title)]:
        verdicts.append(verdict)
        outputs.append(heat_picture(verdict.check, photo.rgb, where))
    if recipe.keep_encoding is not None and not all(verdict.passed for verdict in verdicts):
        # a person may correct it: their first click is answered sooner
        encoding = models.hqsam.encode(working_picture(photo.rgb))
        recipe.keep_encoding(work.job.inputs["photo"], recipe.profile.ref("hqsam").sha256, encoding.to_bytes())
    return Made(
        outputs=tuple(outputs),
        facts={
            "path": result.path,
            "box": list(result.box),
            "agreement": round(result.score, 4),
            "mended": result.mended,
            "width": photo.size[0],
            "height": photo.size[1],
        },
        verdicts=tuple(verdicts),
    )


def _agreed(result: CutoutResult) -> Verdict:
    """Return the verdict on the segmenters' agreement and certainty."""
    score, passed = round(result.score, 4), not result.held
    return Verdict("cutout", score, MIN_AGREEMENT, passed, result.held, picture="cutout")


def photo_checks(photo: Photo, result: CutoutResult, title: str) -> list[tuple[Verdict, np.ndarray]]:
    """Return the verdicts on the photo itself, each with its map of where `(h, w)`, 0..1.

    A shop crops its own cutouts to the product, so contact with the border means nothing there.
    """
    image = working_picture(photo.rgb)
    matte = cv2.resize(result.matte, (image.shape[1], image.shape[0]), interpolation=cv2.INTER_AREA)
    by_shop = result.path == "alpha"
    measures = [
        (
            "product_photo",
            product_photo.measure_graphic(_over_white(image, matte) if by_shop else image),
            product_photo.LIMIT,
        ),
        ("single_product", single_product.measure_things(image, matte > 0.5, title), single_product.LIMIT),
    ]
    if not by_shop:
        measures.append(("checkerboard", checkerboard.measure_checkerboard(photo.rgb), checkerboard.LIMIT))
        measures.append(("border", cut_by_border.measure_border_contact(matte), cut_by_border.LIMIT))
    return [
        (Verdict(name, round(found.score, 4), limit, not found.reason, found.reason, picture=name), found.where)
        for name, found, limit in measures
    ]


def _over_white(image: np.ndarray, matte: np.ndarray) -> np.ndarray:
    """Return a product on white: what is below a shop's alpha is no part of its photo."""
    alpha = matte[..., None]
    mixed: np.ndarray = (image * alpha + 255 * (1 - alpha) + 0.5).astype(np.uint8)
    return mixed


def step_doubts(result: CutoutResult) -> list[tuple[Verdict, np.ndarray]]:
    """Return the verdicts on certainty, openings and see-through parts, each with its map of where."""
    found = []
    if result.certain is not None:
        score, where = round(result.certain.score, 4), result.certain.where
        found.append((_doubt("certain", score, certainty.LIMIT, result.certain.reason), where))
    if result.doubtful is not None or result.unopened:
        where = result.doubtful if result.doubtful is not None else (result.matte > 0.5)
        area = max(1e-9, (result.matte > 0.5).mean())
        score, limit = 1.0 if result.unopened else round(float(where.mean() / area), 4), MAX_DOUBTFUL
        reason = f"{score:.0%} of the product may be background seen through an opening, or a white print"
        if result.unopened:
            reason = "the title names a product with an opening, and the cutout has none"
        elif score <= limit and result.shaded is not None and result.shaded.mean() / area > MAX_SHADED:
            score, limit = round(float(result.shaded.mean() / area), 4), MAX_SHADED
            reason = f"{score:.1%} of the product may be background in a light shade, seen between leaves or cords"
        found.append((_doubt("openings", score, limit, "" if score <= limit else reason), where))
    if result.see_through is not None:
        where = result.see_through
        score = round(float(where.sum() / max(1, (result.matte > 0.05).sum())), 4)
        reason = f"{score:.0%} of the product is see-through: what was behind it may be in its colours"
        found.append((_doubt("see_through", score, MAX_SEE_THROUGH, "" if score <= MAX_SEE_THROUGH else reason), where))
    return found


def _doubt(check: str, score: float, limit: float, reason: str) -> Verdict:
    return Verdict(check, score, limit, not reason, reason, picture=check)


def _complete(result: CutoutResult, tau: float) -> Verdict:
    """Return the verdict on the cutout's completeness."""
    passed = result.beyond <= tau
    reason = "" if passed else f"the cutout seems to lack a part: {result.beyond:.1%} of its area beside it"
    return Verdict("whole", round(result.beyond, 4), tau, passed, reason, picture="whole")


def redraw(photo: Photo, before: np.ndarray, mask: np.ndarray) -> CutoutResult:
    """Return the cutout that a person drew: soft-edged where they changed it, and elsewhere exactly as it was.

    Args:
        photo: As `read_photo` returns it.
        before: `(H, W, 4)` uint8, the cutout that was there, at the photo's size.
        mask: `(h, w)` bool, what is product now, at any size.

    Raises:
        Rejected: nothing was changed, or nothing or everything is product now.
    """
    height, width = before.shape[:2]
    was = cv2.resize(before[..., 3], (mask.shape[1], mask.shape[0]), interpolation=cv2.INTER_AREA) > 127
    if (changed := was != mask).mean() < 1e-5:
        raise Rejected("the cutout was not changed")
    reach = 2 * max(3, round(0.006 * max(mask.shape))) + 1
    near = cv2.dilate(changed.astype(np.float32), np.ones((reach, reach), np.uint8))
    new = cv2.resize(near, (width, height), interpolation=cv2.INTER_LINEAR)
    matte = before[..., 3].astype(np.float32) / 255
    matte += new * (_soft_matte(photo, mask.astype(np.float32)) - matte)
    result = _finish(photo, matte, "by hand", 1.0)
    colours = np.where(new[..., None] > 0, result.colours, before[..., :3])
    return replace(result, colours=colours)


def by_hand(result: CutoutResult) -> Made:
    """Return the step's outputs, facts and verdict for a cutout that a person drew. They looked at photo and cutout, so
    no check of these two is repeated."""
    matte = np.clip(result.matte * 255 + 0.5, 0, 255).astype(np.uint8)
    rgba = Image.fromarray(np.dstack([result.colours, matte]), "RGBA")
    height, width = matte.shape
    facts = {"path": result.path, "box": list(result.box), "agreement": 1.0, "mended": False}
    return Made(
        outputs=(Output("cutout", png_bytes(rgba), "image/png"),),
        facts=facts | {"width": width, "height": height},
        verdicts=(_agreed(result),),
    )
