from __future__ import annotations

from pathlib import Path

import pytest

from pipelines.errors import UsageError
from pipelines.models.profile import load_profile
from pipelines.vision.vocabulary import Vocabulary, load_vocabulary


@pytest.fixture(scope="module")
def vocabulary() -> Vocabulary:
    return load_vocabulary(load_profile("mini").vocabulary)


@pytest.mark.parametrize(
    ("title", "category"),
    [
        ("Circe Hooded Ice Fleece purple", "fleece"),
        ("Harmony Lumaflex&trade; Strength Band Kit ", ""),
        ("Deion Long-Sleeve EverCool&trade; Tee green", "t-shirt"),
        ("Thorpe Track Pant  blue", "trousers"),
        ("Push It Messenger Bag blue", "bag"),
        ("Polo Shirt", "polo shirt"),
        ("Nikkormat SLR Camera", "camera"),
        ("Wireless Optical Mouse", "computer mouse"),
        ("Light Speed Yellow Paint", "paint can"),
        ("Zoe Tank orange", "tank top"),
        ("Orange Fruit", "orange"),
        ("Balloon Chair", "chair"),
        ("Backpacking stories", ""),
        ("", ""),
    ],
)
def test_a_title_names_its_category(vocabulary: Vocabulary, title: str, category: str) -> None:
    assert vocabulary.find(title) == category


def test_a_title_names_its_material(vocabulary: Vocabulary) -> None:
    assert vocabulary.find("Leather Sofa", "material") == "leather"
    assert vocabulary.find("Wooden Side Desk", "material") == "wood"


def test_the_reviewed_vocabulary_is_of_a_size_that_can_be_reviewed(vocabulary: Vocabulary) -> None:
    assert 100 <= len(vocabulary.words) <= 160
    assert {word.kind for word in vocabulary.words} == {"category", "material", "colour"}
    assert len({(word.kind, word.tag) for word in vocabulary.words}) == len(vocabulary.words)


def test_a_changed_word_changes_the_digest(tmp_path: Path, vocabulary: Vocabulary) -> None:
    copy = tmp_path / "vocabulary.txt"
    copy.write_text(load_profile("mini").vocabulary.read_text() + "gold: golden\n")
    assert load_vocabulary(copy).digest != vocabulary.digest


@pytest.mark.parametrize("line", ["mug", "[size] a {} thing", "[category] no place\nmug", "[colour] a {}\nRed!"])
def test_a_malformed_line_is_named(tmp_path: Path, line: str) -> None:
    file = tmp_path / "words.txt"
    file.write_text(f"# words\n{line}\n")
    with pytest.raises(UsageError, match=r"words\.txt, line [23]"):
        load_vocabulary(file)
