"""Titles say which half of a person is for sale; a figure with skin is a person, a red shirt is not."""

from __future__ import annotations

import numpy as np
import pytest

from pipelines.vision.people import find_skin, garment_part, garment_prompt, is_worn

SKIN, SHIRT, TROUSERS = (205, 150, 125), (40, 70, 160), (60, 60, 60)


@pytest.fixture
def person() -> tuple[np.ndarray, np.ndarray]:
    """Head, shirt, trousers that run out of the picture: `(image, figure)`."""
    image = np.full((400, 300, 3), 255, np.uint8)
    image[20:90, 120:180] = SKIN
    image[90:260, 80:220] = SHIRT
    image[260:400, 90:210] = TROUSERS
    return image, (image != 255).any(axis=2)


@pytest.mark.parametrize(
    ("title", "part"),
    [
        ("Circe Hooded Ice Fleece purple", "upper"),
        ("Hawkeye Yoga Short black", "lower"),
        ("Atomic Endurance Running Tee (Crew-Neck) red", "upper"),
        ("Push It Messenger Bag blue", ""),
        ("", ""),
    ],
)
def test_the_garment_is_read_from_the_title(title: str, part: str) -> None:
    assert garment_part(title) == part


def test_a_person_is_recognised_by_skin(person: tuple[np.ndarray, np.ndarray]) -> None:
    image, figure = person
    skin = find_skin(image)
    assert skin[50, 150]
    assert not skin[150, 150]
    assert is_worn(figure, skin, "upper")
    assert is_worn(figure, skin, "")


def test_a_red_shirt_is_no_person() -> None:
    image = np.full((400, 300, 3), 255, np.uint8)
    image[80:320, 60:240] = (200, 30, 40)
    assert not is_worn((image != 255).any(axis=2), find_skin(image), "upper")


def test_a_skin_coloured_product_inside_the_picture_is_no_person() -> None:
    image = np.full((400, 300, 3), 255, np.uint8)
    image[80:320, 60:240] = (180, 120, 60)
    image[80:120, 60:240] = SKIN
    assert not is_worn((image != 255).any(axis=2), find_skin(image), "")


@pytest.mark.parametrize(("part", "colour"), [("upper", SHIRT), ("lower", TROUSERS)])
def test_points_lie_on_the_garment_and_beside_it(
    person: tuple[np.ndarray, np.ndarray], part: str, colour: tuple[int, int, int]
) -> None:
    image, figure = person
    prompt = garment_prompt(image, figure, find_skin(image), part)
    assert prompt is not None
    on = [tuple(image[int(y), int(x)]) for (x, y), label in zip(prompt.points, prompt.labels, strict=True) if label]
    off = [
        tuple(image[int(y), int(x)]) for (x, y), label in zip(prompt.points, prompt.labels, strict=True) if not label
    ]
    assert colour in on
    assert SKIN in off
    assert colour not in off
