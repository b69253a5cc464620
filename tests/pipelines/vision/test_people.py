"""Titles say which half of a person is for sale; a figure with skin is a person, a red shirt is not."""

from __future__ import annotations

import numpy as np
import pytest

from pipelines.vision.garments import garment_part
from pipelines.vision.people import covered_by_hands, find_skin, garment_prompt, is_worn

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


def prompted(
    image: np.ndarray, figure: np.ndarray, part: str
) -> tuple[list[tuple[int, ...]], list[tuple[int, ...]], tuple[int, ...]]:
    """The colours of the points on the garment, those of the points beside it, and the box."""
    prompt = garment_prompt(image, figure, find_skin(image), part)
    assert prompt is not None
    seen = [
        (tuple(image[int(y), int(x)].tolist()), label)
        for (x, y), label in zip(prompt.points, prompt.labels, strict=True)
    ]
    return (
        [colour for colour, label in seen if label],
        [colour for colour, label in seen if not label],
        tuple(int(value) for value in prompt.box),
    )


@pytest.mark.parametrize(("part", "colour"), [("upper", SHIRT), ("lower", TROUSERS)])
def test_points_lie_on_the_garment_and_beside_it(
    person: tuple[np.ndarray, np.ndarray], part: str, colour: tuple[int, int, int]
) -> None:
    on, off, _ = prompted(*person, part)
    assert on.count(colour) >= 2
    assert set(off) == {SKIN, SHIRT, TROUSERS} - {colour}


def from_the_waist_down(hem: int, shoes: tuple[int, int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Belly, a lower garment to the row `hem`, two legs in it or below it, shoes: `(image, figure)`."""
    image = np.full((400, 300, 3), 255, np.uint8)
    figure = np.zeros((400, 300), bool)
    for rows, columns, colour in (
        (slice(10, 40), slice(100, 200), SKIN),
        (slice(40, min(hem, 140)), slice(90, 210), TROUSERS),
        *((slice(140, 350), legs, SKIN) for legs in (slice(100, 140), slice(160, 200))),
        *((slice(140, hem), legs, TROUSERS) for legs in (slice(95, 145), slice(155, 205)) if hem > 140),
        *((slice(350, 380), feet, shoes) for feet in (slice(85, 140), slice(160, 215))),
    ):
        image[rows, columns], figure[rows, columns] = colour, True
    return image, figure


def test_shorts_are_asked_for_where_they_are_not_where_trousers_would_be() -> None:
    on, off, (_, top, _, bottom) = prompted(*from_the_waist_down(120, shoes=(20, 20, 20)), "lower")
    assert set(on) == {TROUSERS}
    assert SKIN in off
    assert 35 <= top <= 45
    assert 115 <= bottom <= 125


def test_shoes_that_trousers_reach_are_beside_them() -> None:
    shoes = (230, 230, 235)
    on, off, _ = prompted(*from_the_waist_down(350, shoes), "lower")
    assert set(on) == {TROUSERS}
    assert shoes in off


def test_shoes_below_bare_ankles_are_outside_the_box() -> None:
    on, _, (_, _, _, bottom) = prompted(*from_the_waist_down(300, shoes=TROUSERS), "lower")
    assert set(on) == {TROUSERS}
    assert bottom <= 305


def test_black_shoes_on_black_trousers_are_not_told_apart() -> None:
    _, off, _ = prompted(*from_the_waist_down(350, shoes=(66, 62, 60)), "lower")
    assert set(off) == {SKIN}


def test_a_hem_is_no_shoe_where_the_photo_ends_above_the_feet() -> None:
    image, figure = from_the_waist_down(350, shoes=SHIRT)
    _, off, _ = prompted(image[:380], figure[:380], "lower")
    assert SHIRT not in off


def test_the_hem_of_shorts_is_no_shoe() -> None:
    image, figure = from_the_waist_down(130, shoes=(20, 20, 20))
    image[105:130, 90:210] = SHIRT
    _, off, _ = prompted(image, figure, "lower")
    assert set(off) == {SKIN}


@pytest.mark.parametrize("rows", [slice(40, 50), slice(50, 140)], ids=["a waistband", "a panel beside the seam"])
def test_what_belongs_to_trousers_is_not_beside_them(rows: slice) -> None:
    image, figure = from_the_waist_down(350, shoes=TROUSERS)
    image[rows, 90 : 210 if rows.start == 40 else 180] = SHIRT
    _, off, _ = prompted(image, figure, "lower")
    assert set(off) == {SKIN}


def test_shorts_are_asked_for_below_a_larger_top_and_a_bare_belly() -> None:
    image = np.full((400, 300, 3), 255, np.uint8)
    for rows, columns, colour in (
        (slice(10, 60), slice(130, 170), SKIN),
        (slice(60, 150), slice(70, 230), SHIRT),
        (slice(150, 180), slice(110, 190), SKIN),
        (slice(180, 240), slice(100, 200), TROUSERS),
        (slice(240, 360), slice(110, 190), SKIN),
        (slice(360, 385), slice(100, 150), TROUSERS),
        (slice(360, 385), slice(155, 205), TROUSERS),
    ):
        image[rows, columns] = colour
    on, _, (_, top, _, bottom) = prompted(image, (image != 255).any(axis=2), "lower")
    assert set(on) == {TROUSERS}
    assert top >= 170
    assert bottom <= 250


def shirt_and_skin() -> tuple[np.ndarray, np.ndarray]:
    """A shirt with short sleeves, and the neck and the bare arms beside it: two masks."""
    shirt, skin = np.zeros((400, 300), bool), np.zeros((400, 300), bool)
    shirt[100:300, 90:210] = shirt[100:170, 60:240] = True
    shirt[100:125, 135:165], skin[40:125, 135:165] = False, True
    skin[170:330, 62:85] = skin[170:330, 215:238] = True
    return shirt, skin


def test_neck_and_bare_arms_cover_no_shirt() -> None:
    shirt, skin = shirt_and_skin()
    assert covered_by_hands(shirt, skin, "upper") < 0.002


def test_a_hand_before_the_hem_covers_a_shirt() -> None:
    shirt, skin = shirt_and_skin()
    shirt[275:300, 140:165], skin[275:320, 140:165] = False, True
    assert covered_by_hands(shirt, skin, "upper") > 0.01


@pytest.mark.parametrize(("hand", "covers"), [((40, 70), False), ((70, 100), True)])
def test_a_hand_covers_trousers_only_where_it_is_before_them(hand: tuple[int, int], covers: bool) -> None:
    trousers, skin = np.zeros((400, 300), bool), np.zeros((400, 300), bool)
    trousers[80:380, 70:140] = trousers[80:380, 160:230] = trousers[80:140, 140:160] = True
    skin[20:80, 90:210] = True  # a bare belly
    skin[140:190, hand[0] : hand[1]] = True
    assert (covered_by_hands(trousers & ~skin, skin, "lower") > 0.01) == covers


def test_a_thumb_covers_a_carton_that_a_hand_holds() -> None:
    carton, skin = np.zeros((400, 300), bool), np.zeros((400, 300), bool)
    carton[60:340, 90:210], skin[180:260, :90] = True, True
    assert covered_by_hands(carton, skin, "") == 0
    carton[190:250, 90:170], skin[190:250, 90:170] = False, True
    assert covered_by_hands(carton, skin, "") > 0.1
