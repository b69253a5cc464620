"""Measure captioner and tagger (`packshot measure describe`) on photos of held-out products.

A photo's true category comes from its name in the training folder. A title with that word is therefore right by
construction. So the title is measured twice: complete, and without the words that name a category.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pipelines.errors import UsageError
from pipelines.models.profile import Profile
from pipelines.quality.intervals import interval
from pipelines.training.blip import read_rgb
from pipelines.training.categories import Labelled, labelled
from pipelines.training.data import product_of
from pipelines.training.loop import TrainOptions
from pipelines.vision.captioner import Captioner
from pipelines.vision.tagger import Tagger
from pipelines.vision.vocabulary import Vocabulary, load_vocabulary, plain_words

RANKS = 5
BATCH = 16


@dataclass(frozen=True, slots=True)
class Share:
    """The share of photos that one method gets right, 0..1, with its 95 % bootstrap interval over products."""

    way: str
    value: float
    interval: tuple[float, float]


@dataclass(frozen=True, slots=True)
class DescribeMeasure:
    """Figures over `n` photos of `products` products.

    Attributes:
        category_top1: how often the category is right: of the caption, the first tag, the title, and the baselines.
        tag_recall5: how often the category is among the first five tags, or the first five guesses of a baseline.
    """

    n: int
    products: int
    category_top1: tuple[Share, ...]
    tag_recall5: tuple[Share, ...]


class TitleRest:
    """Guesses a category from a title without the words that name one: naive Bayes over words, add-one smoothed.

    If no word of the title occurs in training, the most frequent category comes first.
    """

    def __init__(self, train: Sequence[Labelled], vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._photos = Counter(one.category for one in train)
        self._words: dict[str, Counter[str]] = {category: Counter() for category in self._photos}
        for one in train:
            self._words[one.category].update(self.rest(one.item.name))
        self._known = {word for words in self._words.values() for word in words}

    def rest(self, title: str) -> list[str]:
        """The words of a title without those that name a category."""
        text = plain_words(title)
        while True:
            category, start, end = self._vocabulary.locate(text)
            if not category:
                return text.split()
            text = plain_words(f"{text[:start]} {text[end:]}")

    def guess(self, title: str) -> list[str]:
        """All categories of the training photos, the most likely first."""
        words = [word for word in self.rest(title) if word in self._known]
        return sorted(self._photos, key=lambda category: (-self._likelihood(category, words), category))

    def _likelihood(self, category: str, words: Sequence[str]) -> float:
        seen, total = self._words[category], sum(self._words[category].values()) + len(self._known)
        return math.log(self._photos[category]) + sum(math.log((seen[word] + 1) / total) for word in words)


def measure_describe(data: Path, profile: Profile, device: str = "cpu") -> DescribeMeasure:
    """Caption and tag the held-out photos of the training folder, and compare with the categories in their names.

    Args:
        data: the training folder, with `index.csv` and `photos/`.
        profile: whose captioner, tagger and vocabulary are measured.
        device: torch device of both models.

    Raises:
        UsageError: the folder does not exist, or no name of its held-out photos contains a category.
    """
    vocabulary = load_vocabulary(profile.vocabulary)
    options = TrainOptions("describe", data=data)
    try:
        held_out, train = (labelled(options, "photos", split) for split in ("test", "train"))
    except FileNotFoundError as error:
        raise UsageError(f"{data}: not a training folder, it has no index.csv") from error
    if not held_out or not train:
        raise UsageError(f"{data}: no photos on both sides of the hold-out whose name says a category")
    captioner = Captioner.from_profile(profile, vocabulary, device)
    tagger = Tagger.from_profile(profile, vocabulary, device)
    captions: list[str] = []
    tags: list[list[str]] = []
    for start in range(0, len(held_out), BATCH):
        pictures = [read_rgb(one.item.path) for one in held_out[start : start + BATCH]]
        captions += [caption.category for caption in captioner.caption(pictures)]
        tags += [[tag.tag for tag in ranked if tag.kind == "category"] for ranked in tagger.rank(pictures)]

    rest = TitleRest(train, vocabulary)
    guesses = [rest.guess(one.item.name) for one in held_out]
    frequent = [category for category, _ in Counter(one.category for one in train).most_common()]
    products = [product_of(one.item) for one in held_out]

    def share(way: str, answers: Sequence[Sequence[str]]) -> Share:
        right = [float(one.category in answer) for one, answer in zip(held_out, answers, strict=True)]
        return Share(way, sum(right) / len(right), interval(products, right))

    return DescribeMeasure(
        n=len(held_out),
        products=len(set(products)),
        category_top1=(
            share("caption", [[category] for category in captions]),
            share("tags", [ranked[:1] for ranked in tags]),
            share("title", [[vocabulary.find(one.item.name)] for one in held_out]),
            share("title_rest", [ranked[:1] for ranked in guesses]),
            share("majority", [frequent[:1]] * len(held_out)),
        ),
        tag_recall5=(
            share("tags", [ranked[:RANKS] for ranked in tags]),
            share("title_rest", [ranked[:RANKS] for ranked in guesses]),
            share("majority", [frequent[:RANKS]] * len(held_out)),
        ),
    )
