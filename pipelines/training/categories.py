"""Categories of training pictures in the words of the reviewed vocabulary: the labels for BLIP and CLIP."""

from __future__ import annotations

from dataclasses import dataclass

from pipelines.training.data import Item, read_index
from pipelines.training.loop import PROFILE, TrainOptions
from pipelines.vision.vocabulary import Vocabulary, load_vocabulary

NO_PRODUCT = ("clock", "skateboard", "bell")
MASS_NOUNS = frozenset({"garlic", "ginger", "asparagus", "yoghurt", "sour cream", "juice"})


@dataclass(frozen=True, slots=True)
class Labelled:
    """A training picture and the category in its name, a tag of the vocabulary."""

    item: Item
    category: str


def vocabulary() -> Vocabulary:
    """The vocabulary of the bundled profile."""
    return load_vocabulary(PROFILE / "vocabulary.txt")


def labelled(options: TrainOptions, folder: str, split: str) -> list[Labelled]:
    """The pictures of "photos" or "cutouts" in one split whose name contains a category."""
    words = vocabulary()
    found = [Labelled(item, words.find(item.name)) for item in read_index(options.data, folder, split)]
    return [one for one in found if one.category]


def with_article(category: str) -> str:
    """'a hoodie', 'an apple', 'shorts', 'garlic'."""
    if category in MASS_NOUNS or (category.endswith("s") and not category.endswith("ss")):
        return category
    return f"{'an' if category[0] in 'aeiou' else 'a'} {category}"
