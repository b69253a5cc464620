"""Two products with one photo are named; variants of one product are not."""

from __future__ import annotations

import io
from base64 import b64encode

import cv2
import numpy as np
import pytest
from PIL import Image

from pipelines.contracts import Product
from pipelines.quality.likeness import CELLS, find_twins, likeness_code


def cutout(seed: int, side: int = 200, noise: int = 0) -> np.ndarray:
    """A product of a few coloured patches, (h, w, 4) uint8."""
    rng = np.random.default_rng(seed)
    patches = cv2.resize(rng.integers(0, 255, (4, 3, 3)).astype(np.uint8), (side, side + 60))
    alpha = np.zeros(patches.shape[:2], np.uint8)
    cv2.ellipse(alpha, (side // 2, side // 2 + 30), (side // 2 - 9, side // 2 + 20), 0, 0, 360, 255, -1)
    grain = np.random.default_rng(1).integers(-noise, noise + 1, patches.shape)
    return np.dstack([np.clip(patches + grain, 0, 255).astype(np.uint8), alpha])


def product(sku: str, title: str = "", group: str = "") -> Product:
    return Product(sku, 2, title or f"Title of {sku}", "", None, item_group_id=group)


def saved_again(rgba: np.ndarray) -> np.ndarray:
    """Smaller, compressed, on a larger canvas, a little lighter."""
    small = cv2.resize(rgba, None, fx=0.6, fy=0.6, interpolation=cv2.INTER_AREA)
    data = io.BytesIO()
    Image.fromarray(small[..., :3]).save(data, "JPEG", quality=70)
    colours = np.asarray(Image.open(data)).astype(int) + 4
    return np.pad(np.dstack([np.clip(colours, 0, 255).astype(np.uint8), small[..., 3]]), ((30, 5), (10, 40), (0, 0)))


@pytest.mark.parametrize("seed", range(4))
def test_one_photo_under_two_products_is_found(seed: int) -> None:
    one, again = likeness_code(cutout(seed)), likeness_code(saved_again(cutout(seed)))
    others = [(product(f"other {n}"), likeness_code(cutout(100 + n))) for n in range(20)]
    shown = [(product("A"), one), *others, (product("B"), again)]
    assert find_twins(shown) == [("A", "B")]


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (product("A", "Mug"), product("B", "mug ")),
        (product("A", group="mugs"), product("B", group="mugs")),
    ],
    ids=["one title", "one item group"],
)
def test_variants_of_one_product_make_no_pair(first: Product, second: Product) -> None:
    code = likeness_code(cutout(0))
    assert find_twins([(first, code), (second, code)]) == []
    assert find_twins([(first, code), (product("C"), code)]) == [("A", "C")]


def test_what_has_no_code_makes_no_pair() -> None:
    assert likeness_code(np.zeros((9, 9, 4), np.uint8)) == ""
    assert find_twins([(product("A"), ""), (product("B"), "")]) == []
    assert find_twins([]) == []


def test_a_placeholder_under_every_product_is_no_list_of_all_pairs() -> None:
    code = likeness_code(cutout(0))
    found = find_twins([(product(f"{n}"), code) for n in range(3000)])
    assert {sku for pair in found for sku in pair} == {f"{n}" for n in range(3000)}
    assert len(found) < 3000 * 16


def test_what_a_comparison_of_all_finds_is_found() -> None:
    """The tree that finds candidates leaves none out, also at the limit: whole pictures that are a little lighter."""
    rng = np.random.default_rng(3)
    lighter = rng.integers(-16, 17, (80, 1, 3)).repeat(CELLS * CELLS, axis=1).reshape(80, -1)
    codes = (lighter + rng.integers(0, 2, lighter.shape)).astype(np.int8)
    shown = [(product(f"{n}"), b64encode(code.tobytes()).decode()) for n, code in enumerate(codes)]
    apart = np.sqrt(((codes[:, None].astype(float) - codes[None]) ** 2).sum(axis=-1) / CELLS**2)
    expected = [(f"{a}", f"{b}") for a, b in np.argwhere(np.triu(apart <= 6, 1))]
    assert 20 < len(expected) < 80 * 8
    assert find_twins(shown) == expected
