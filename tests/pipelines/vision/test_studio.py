"""Plain paper is recognised, and products are cut from it without their shadows."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from pipelines.evaluation.cutout import iou
from pipelines.vision.studio import clutter, cut_studio, find_studio, without_paper

SIDE = 400


def paper(level: float = 250, fall_off: float = 0.0) -> np.ndarray:
    yy, xx = np.mgrid[0:SIDE, 0:SIDE] / SIDE
    light = 1 - fall_off * ((yy - 0.3) ** 2 + (xx - 0.4) ** 2)
    return np.repeat((level * light)[..., None], 3, axis=2)


def ring(thickness: int = 40) -> np.ndarray:
    """A product with a hole, as a mask."""
    mask = np.zeros((SIDE, SIDE), np.uint8)
    cv2.circle(mask, (200, 190), 100, 1, thickness)
    return mask > 0


def blurred(mask: np.ndarray, sigma: float) -> np.ndarray:
    """What a net of 320 px makes of it."""
    return cv2.GaussianBlur(mask.astype(np.float32), (0, 0), sigma)


def scene(mask: np.ndarray, background: np.ndarray, colour: tuple[int, int, int], shadow: float = 0.35) -> np.ndarray:
    moved = np.roll(mask, (25, 30), axis=(0, 1))
    image = background * (1 - shadow * blurred(moved, 12))[..., None]
    image[mask] = colour
    return np.clip(image, 0, 255).astype(np.uint8)


@pytest.mark.parametrize("fall_off", [0.0, 0.25])
def test_plain_paper_is_recognised(fall_off: float) -> None:
    background = paper(fall_off=fall_off)
    studio = find_studio(scene(ring(), background, (180, 40, 40)))
    assert studio is not None
    assert np.abs(studio.colour - background).max() < 12


def test_busy_and_dark_backgrounds_are_not_paper() -> None:
    rng = np.random.default_rng(0)
    rough = cv2.resize(rng.integers(0, 255, (40, 40, 3), dtype=np.uint8), (SIDE, SIDE))
    assert find_studio(rough) is None
    assert find_studio(np.full((SIDE, SIDE, 3), 12, np.uint8)) is None


@pytest.mark.parametrize("colour", [(180, 40, 40), (40, 40, 44), (120, 125, 118)])
@pytest.mark.parametrize("fall_off", [0.0, 0.2])
def test_the_product_is_cut_without_shadow_and_with_its_hole(colour: tuple[int, int, int], fall_off: float) -> None:
    mask = ring()
    image = scene(mask, paper(fall_off=fall_off), colour)
    studio = find_studio(image)
    assert studio is not None
    assert iou(cut_studio(image, studio, blurred(mask, 4)), mask) > 0.95


def test_thin_parts_that_the_net_misses_are_kept() -> None:
    mask = ring()
    cord = np.zeros_like(mask, dtype=np.uint8)
    cv2.line(cord, (300, 190), (380, 150), 1, 3)
    product = mask | (cord > 0)
    image = scene(product, paper(), (20, 60, 160), shadow=0.0)
    studio = find_studio(image)
    assert studio is not None
    saliency = np.maximum(blurred(mask, 3), 0.05 * blurred(cord > 0, 3))
    saliency[cord > 0] = np.maximum(saliency[cord > 0], 0.05)
    found = cut_studio(image, studio, saliency)
    assert (found & (cord > 0)).sum() > 0.8 * cord.sum()


def test_a_black_foot_that_the_net_overlooks_is_no_shadow():
    image = np.full((200, 200, 3), 245, np.uint8)
    image[40:140, 60:140] = (200, 30, 30)
    image[140:160, 50:150] = (18, 18, 20)
    image[160:175, 50:190] = (190, 190, 190)  # its soft shadow on the paper
    saliency = np.zeros((200, 200), np.float32)
    saliency[40:140, 60:140] = 1.0
    studio = find_studio(image)
    assert studio is not None
    product = cut_studio(image, studio, saliency)
    assert product[142:158, 55:145].all()
    assert not product[164:174, 55:185].any()


@pytest.mark.parametrize(("level", "is_product"), [(238, True), (250, False)])
def test_a_hole_without_plain_paper_is_the_products_own(level: int, is_product: bool) -> None:
    """A lid of nearly the paper's colour, of which the net is not sure; and the same with paper in it."""
    lid = ring(thickness=-1) & ~ring()
    image = scene(ring(), paper(), (180, 40, 40), shadow=0.0)
    image[lid] = level
    studio = find_studio(image)
    assert studio is not None
    found = cut_studio(image, studio, blurred(ring(), 3))
    assert found[lid].mean() > 0.99 if is_product else found[lid].mean() < 0.1


def test_paper_has_nothing_but_the_product_and_its_shadow_on_it() -> None:
    product = ring()
    image = scene(product, paper(fall_off=0.25), (40, 90, 180))
    studio = find_studio(image)
    assert studio is not None
    assert clutter(image, studio, product) == 0
    image[20:60, 20:60] = (30, 120, 40)
    assert clutter(image, studio, product) == pytest.approx(1600 / (SIDE**2 - product.sum()), rel=0.25)
    assert clutter(image, studio, np.ones_like(product)) == 0


def test_a_shadow_is_removed_only_where_another_segmenter_leaves_it_out() -> None:
    image = paper().astype(np.uint8)
    disc, cast = (cv2.circle(np.zeros(image.shape[:2], np.uint8), (x, 200), 80, 1, -1) > 0 for x in (180, 220))
    image[cast] = 110
    image[disc] = (200, 40, 30)
    studio = find_studio(image)
    assert studio is not None
    assert iou(without_paper(image, studio, disc | cast, disc), disc) > 0.97
    assert np.array_equal(without_paper(image, studio, disc | cast, disc | cast), disc | cast)
    inner = cv2.circle(np.zeros(image.shape[:2], np.uint8), (180, 200), 30, 1, -1) > 0
    image[inner] = 110  # a grey glass
    assert without_paper(image, studio, disc, disc & ~inner)[inner].all()
    image[inner] = paper()[inner]  # an opening
    assert without_paper(image, studio, disc, disc & ~inner)[inner].mean() < 0.1
    image[disc] = (200, 40, 30)
    image[cast & ~disc] = (60, 140, 60)  # no paper has this colour, in any shadow
    assert np.array_equal(without_paper(image, studio, disc | cast, disc), disc | cast)


def test_a_label_stays_whose_thread_has_the_papers_colour() -> None:
    image = paper().astype(np.uint8)
    body, label = (np.zeros(image.shape[:2], bool) for _ in range(2))
    body[100:340, 100:300], label[150:170, 330:345] = True, True
    thread = np.zeros_like(body)
    thread[156:164, 300:330] = True
    image[body | label], image[thread] = (40, 60, 170), (170, 170, 170)
    studio = find_studio(image)
    assert studio is not None
    cleared = without_paper(image, studio, body | thread | label, body)
    assert cleared[label].mean() > 0.9
    assert cleared[body].all()
