"""Stage 2: describe the product (paper, section 1: step 2).

BLIP writes a caption, CLIP ranks the reviewed vocabulary, and the colour is measured. The shop's own words come first:
a picture never overrules a category in the title. If the models are uncertain, the prompt uses the title.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from pipelines.contracts import Made
from pipelines.vision.captioner import Caption, Captioner
from pipelines.vision.colours import dominant_colour
from pipelines.vision.photos import read_photo
from pipelines.vision.reader import TextReader, height_of, load_reader
from pipelines.vision.tagger import Tag, Tagger
from pipelines.vision.vocabulary import Vocabulary, load_vocabulary, plain_words
from pipelines.workflow import Recipe, Work

MARGIN = 0.1
"""Margin of the models' crop around the product, as a share of the product's longer side."""
MOST_TAGS = 5
MOST_LINES = 40
"""Lines of text that are read in a photo at most, the tallest of them."""
NOTED = 0.5
"""Confidence from which a line is noted."""
COLOUR_SHARE = 0.4
"""A product has a colour if at least this share of its pixels has one colour name."""


@dataclass(frozen=True, slots=True)
class DescribeModels:
    """Captioner, tagger and their common vocabulary, and the reader where text is read."""

    captioner: Captioner
    tagger: Tagger
    vocabulary: Vocabulary
    reader: TextReader | None = None


def load(recipe: Recipe) -> DescribeModels:
    """Load BLIP and CLIP; the vocabulary's sentences are embedded once."""
    vocabulary = load_vocabulary(recipe.profile.vocabulary)
    return DescribeModels(
        Captioner.from_profile(recipe.profile, vocabulary, recipe.device),
        Tagger.from_profile(recipe.profile, vocabulary, recipe.device),
        vocabulary,
        load_reader() if recipe.reader else None,
    )


def compute(works: Sequence[Work], models: DescribeModels, recipe: Recipe) -> list[Made]:
    """Describe each product. Caption, tags, colour, subject and text are the step's facts; there are no outputs."""
    cutouts = [np.asarray(Image.open(io.BytesIO(work.inputs["cutout"])).convert("RGBA")) for work in works]
    photos = [read_photo(work.inputs["photo"], recipe.max_megapixels).rgb for work in works]
    views = [product_view(photo, cutout[..., 3]) for photo, cutout in zip(photos, cutouts, strict=True)]
    texts = [
        read_text(photo, cutout[..., 3], models.reader) if "read" in work.job.parameters and models.reader else None
        for work, photo, cutout in zip(works, photos, cutouts, strict=True)
    ]
    captions, ranked = models.captioner.caption(views), models.tagger.rank(views)
    described = []
    for work, cutout, caption, tags, text in zip(works, cutouts, captions, ranked, texts, strict=True):
        parameters = work.job.parameters
        colour, share = dominant_colour(cutout[..., :3], (cutout[..., 3] / 255).astype(np.float32))
        colour = colour if share >= COLOUR_SHARE else ""
        category = choose_category(
            parameters["title"], parameters["category"], caption, parameters["caption_confidence"], models.vocabulary
        )
        shop = f"{parameters['category']} {parameters['title']}"
        kept = choose_tags(tags, shop, parameters["tag_confidence"], models.vocabulary)
        described.append(
            Made(
                facts={
                    "caption": caption.text,
                    "tags": [{"tag": tag.tag, "score": round(tag.score, 4)} for tag in kept],
                    "colour": colour,
                    "category": category,
                    "confidence": round(caption.confidence, 4),
                    "subject": subject(parameters["title"], parameters["category"], category, colour),
                    **({"text": text} if text is not None else {}),
                }
            )
        )
    return described


def product_view(photo: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Crop the photo (H, W, 3) to the product by its matte (H, W) uint8; return the whole photo for an empty matte."""
    return photo[_view(alpha)]


def _view(alpha: np.ndarray) -> tuple[slice, slice]:
    """Return rows and columns of the product with a margin around it."""
    rows, columns = np.flatnonzero((alpha > 127).any(axis=1)), np.flatnonzero((alpha > 127).any(axis=0))
    if len(rows) == 0:
        return np.s_[:, :]
    extra = int(MARGIN * max(rows[-1] - rows[0], columns[-1] - columns[0]))
    top, left = max(int(rows[0]) - extra, 0), max(int(columns[0]) - extra, 0)
    return np.s_[top : int(rows[-1]) + extra + 1, left : int(columns[-1]) + extra + 1]


def read_text(photo: np.ndarray, alpha: np.ndarray, reader: TextReader) -> list[dict[str, Any]]:
    """Read the text in the photo (H, W, 3) near its product, by its matte (H, W) uint8.

    Returns:
        The lines as JSON: `text`, `confidence` 0..1, and `quad`, four corners (x, y) in px of the photo.
    """
    rows, columns = _view(alpha)
    view = np.ascontiguousarray(photo[rows, columns])
    quads = sorted(reader.find(view), key=lambda quad: -height_of(quad))[:MOST_LINES]
    left, top = columns.start or 0, rows.start or 0
    lines = [line for line in reader.read(view, quads) if line.confidence >= NOTED]
    return [
        {
            "text": line.text,
            "confidence": round(line.confidence, 4),
            "quad": [[round(x + left, 1), round(y + top, 1)] for x, y in line.quad],
        }
        for line in lines
    ]


def choose_category(title: str, product_type: str, caption: Caption, least: float, vocabulary: Vocabulary) -> str:
    """Return the vocabulary's category that the title names, else the shop's category, else a certain caption."""
    named = vocabulary.find(title) or vocabulary.find(product_type)
    if named:
        return named
    return caption.category if caption.confidence >= least else ""


def choose_tags(tags: Sequence[Tag], shop: str, least: Mapping[str, float], vocabulary: Vocabulary) -> list[Tag]:
    """Return the tags for a prompt: those in the shop's words, then CLIP's with a sufficient probability."""
    named = [Tag(vocabulary.find(shop, kind), kind, 1.0) for kind in ("category", "material")]
    kept = [tag for tag in named if tag.tag]
    known = {tag.tag for tag in kept}
    kept += [tag for tag in tags if tag.score >= least.get(tag.kind, 2.0) and tag.tag not in known]
    return kept[:MOST_TAGS]


def subject(title: str, product_type: str, category: str, colour: str) -> str:
    """Return the words for {product} in a scene's prompt: colour and category, or the title without a known
    category."""
    if category:
        return category if colour == category else f"{colour} {category}".strip()
    leaf = product_type.rsplit(">", 1)[-1]
    return plain_words(title) or plain_words(leaf) or "product"
