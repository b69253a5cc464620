"""Paper seen through a product is opened; white prints stay; on overexposed paper the title or a person decides."""

from __future__ import annotations

import numpy as np
import pytest

from pipelines.vision.openings import Openings, find_openings, names_opening, shaded_pieces
from pipelines.vision.studio import find_studio


def ring(paper: int, inside: int, grain: float = 0.6) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A brown ring on paper: image, its filled disc and its hole."""
    noise = np.random.default_rng(0).normal(0, grain, (400, 400, 3))
    rows, columns = np.mgrid[:400, :400]
    distance = np.hypot(rows - 200, columns - 200)
    image = np.full((400, 400, 3), paper, np.float32)
    image[distance < 150] = (150, 100, 40)
    image[distance < 110] = inside
    return np.clip(image + noise + 0.5, 0, 255).astype(np.uint8), distance < 150, distance < 110


def openings(paper: int, inside: int, title: str = "", grain: float = 0.6) -> tuple[Openings, np.ndarray]:
    image, product, hole = ring(paper, inside, grain)
    studio = find_studio(image)
    assert studio is not None
    return find_openings(image, studio, product, product.astype(np.float32), title), hole


def test_paper_inside_a_ring_is_opened() -> None:
    found, hole = openings(246, 246)
    assert (found.certain & hole).sum() > 0.98 * hole.sum()
    assert (found.certain & ~hole).sum() < 0.02 * hole.sum()
    assert not found.doubtful.any()


@pytest.mark.parametrize("inside", [243, 250, 255])
def test_a_white_print_of_another_level_stays(inside: int) -> None:
    found, _ = openings(246, inside)
    assert not found.certain.any()
    assert not found.doubtful.any()


def test_on_overexposed_paper_a_person_decides_unless_the_title_does() -> None:
    found, hole = openings(255, 255, "Round tray", grain=0)
    assert not found.certain.any()
    assert found.doubtful.sum() > 0.95 * hole.sum()
    found, hole = openings(255, 255, "Wooden ring", grain=0)
    assert found.certain.sum() > 0.95 * hole.sum()
    assert not found.doubtful.any()


def test_overexposed_white_of_which_a_part_is_open_is_paper() -> None:
    image, product, hole = ring(255, 255, grain=0)
    product[hole & (np.mgrid[:400, :400][0] < 120)] = False  # the net left out the top of the hole
    studio = find_studio(image)
    assert studio is not None
    found = find_openings(image, studio, product, product.astype(np.float32), "Headphones")
    assert found.certain[hole & product].mean() > 0.95
    assert not found.doubtful.any()


def test_overexposed_white_that_the_net_doubts_is_paper() -> None:
    image, product, hole = ring(255, 255, grain=0)
    saliency = np.where(hole & (np.mgrid[:400, :400][0] < 130), 0.6, product).astype(np.float32)
    studio = find_studio(image)
    assert studio is not None
    found = find_openings(image, studio, product, saliency, "Tray")
    assert found.certain.sum() > 0.95 * hole.sum()
    assert not found.doubtful.any()


def test_white_that_reaches_the_products_edge_is_the_product() -> None:
    image, _, _ = ring(246, 246)
    rows, columns = np.mgrid[:400, :400]
    product = np.hypot(rows - 200, columns - 200) < 100  # a white disc, cut out of the hole
    studio = find_studio(image)
    assert studio is not None
    found = find_openings(image, studio, product, product.astype(np.float32))
    assert not found.certain.any()
    assert not found.doubtful.any()


def test_an_opening_with_a_gap_to_the_outside_is_decided_by_a_person() -> None:
    image, product, hole = ring(246, 246)
    rows, columns = np.mgrid[:400, :400]
    gap = (np.abs(np.arctan2(rows - 200, columns - 200)) < np.radians(10)) & (np.hypot(rows - 200, columns - 200) > 106)
    studio = find_studio(image)
    assert studio is not None
    saliency = product.astype(np.float32)
    found = find_openings(image, studio, product & ~gap, saliency)  # as between the cups and the band of headphones
    assert not found.certain.any()
    assert found.doubtful.sum() > 0.95 * hole.sum()


def test_a_title_names_an_opening_by_whole_words() -> None:
    assert names_opening("Gold Ring, 18 ct")
    assert not names_opening("String bag")


def leaves(level: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A green lattice with gaps of 10 px that have a level, on paper of level 246: image, its hull and its gaps."""
    noise = np.random.default_rng(0).normal(0, 0.6, (400, 400, 3))
    rows, columns = np.mgrid[:400, :400]
    hull = (np.abs(rows - 200) < 120) & (np.abs(columns - 200) < 120)
    gaps = hull & (rows % 24 < 10) & (columns % 24 < 10) & (np.abs(rows - 200) < 108) & (np.abs(columns - 200) < 108)
    image = np.full((400, 400, 3), 246, np.float32)
    image[hull] = (50, 120, 40)
    image[gaps] = level
    return np.clip(image + noise + 0.5, 0, 255).astype(np.uint8), hull, gaps


@pytest.mark.parametrize(("level", "is_paper"), [(238, True), (150, False)])
def test_lightly_shaded_paper_between_leaves_is_decided_by_a_person(level: int, is_paper: bool) -> None:
    image, hull, gaps = leaves(level)
    studio = find_studio(image)
    assert studio is not None
    doubtful = find_openings(image, studio, hull, hull.astype(np.float32)).doubtful
    assert (doubtful[gaps].mean() > 0.3) == is_paper
    assert not doubtful[~gaps].any()


def test_a_white_product_is_no_shaded_paper() -> None:
    image, _, _ = leaves(246)
    rows, columns = np.mgrid[:400, :400]
    mug = np.hypot(rows - 200, columns - 200) < 90
    image[mug] = np.clip(244 - 0.12 * np.abs(columns - 170), 0, 255)[mug][:, None].astype(np.uint8)
    studio = find_studio(image)
    assert studio is not None
    assert not shaded_pieces(image, studio, mug).any()
