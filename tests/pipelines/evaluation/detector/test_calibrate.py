"""What is said of tau and of the detector: by products that had no say in it, with intervals over products."""

from __future__ import annotations

import csv

import cv2
import numpy as np
import pytest

from pipelines.evaluation.detector.calibrate import Asked, Judged, auroc, figures, know, tune
from pipelines.evaluation.detector.composites import PHOTO, Composite, Mask
from pipelines.evaluation.detector.photos import MISSING
from pipelines.quality.intervals import clustered
from pipelines.quality.overcompletion import OvercompletionDetector


def judged(product: str, share: float, e_plus: float, part: str = "cord", background: str = "studio") -> Judged:
    return Judged(product, background, part if share else "", "true alpha", share, e_plus, e_plus, 0.1)


def test_tau_lies_in_the_middle_of_what_separates() -> None:
    assert tune(np.array([0.0, 0.01, 0.02]), np.array([0.06, 0.07])) == pytest.approx(0.04)
    assert tune(np.array([0.0, 0.01, 0.50]), np.array([0.05, 0.07, 0.09])) == pytest.approx(0.03)


def test_auroc_counts_pairs_and_halves_ties() -> None:
    assert auroc(np.array([0.0, 0.1]), np.array([0.2, 0.3])) == 1
    assert auroc(np.array([0.2, 0.3]), np.array([0.0, 0.1])) == 0
    assert auroc(np.array([0.0, 0.0]), np.array([0.0, 0.5])) == pytest.approx(0.75)


def test_an_interval_resamples_products_not_measurements() -> None:
    values = np.repeat([0.0, 1.0], 500)
    of_two, of_many = (
        clustered(names, lambda rows: float(values[rows].mean()))
        for names in (["a"] * 500 + ["b"] * 500, [str(n) for n in range(1000)])
    )
    assert of_two == (0.5, (0.0, 1.0))  # two products, a thousand masks: nothing is known
    assert 0.46 < of_many[1][0] < of_many[1][1] < 0.54


def test_figures_are_of_the_masks_above_tau() -> None:
    masks = [
        *(judged(f"jar {n}", 0.0, 0.0) for n in range(9)),
        judged("jar 9", 0.0, 0.5, background="shadow"),
        *(judged(f"jar {n}", 0.02, 0.02) for n in range(8)),
        judged("jar 8", 0.2, 0.2, part="handle"),
        judged("jar 9", 0.2, 0.0, part="handle"),
    ]
    photos = [
        Asked("mug", 0.0),
        Asked("cap", 0.02),
        Asked("coat", 0.3, lacks=True, saw=True),  # its sleeve, which the cutout lacks
        Asked("hat", 0.0, lacks=True),
    ]
    found = figures(masks, photos, tau=0.01, seconds=1.0)
    assert (found.n, found.products) == (20, 10)
    assert found.recall == pytest.approx(0.9)
    assert found.precision == pytest.approx(0.9)
    assert found.auroc == pytest.approx((9 * 9 + 0.5 * 9) / 100)
    assert (found.alarms, found.false_alarms, found.photos) == (0.5, 0.25, 4)
    assert (found.noticed, found.lacking) == (0.5, 2)
    assert found.by_kind["handle"].rate == 0.5
    assert found.by_kind["whole"].rate == pytest.approx(0.1)
    assert found.by_size["2% to 5%"].n == 8
    assert found.by_size["10% to 30%"].n == 2
    assert found.by_background["shadow, whole"].rate == 1
    low, high = found.intervals["recall"]
    assert low < 0.9 <= high


def test_precision_where_the_recall_is_high_enough() -> None:
    masks = [
        # grown: 19 of 20 are high, one is low; whole: one is higher still, the others lie between
        *(judged(f"jar {n}", 0.1, 0.5 if n < 19 else 0.01) for n in range(20)),
        *(judged(f"jar {n}", 0.0, 0.6 if n == 0 else 0.02) for n in range(20)),
    ]
    found = figures(masks, [], tau=0.005, seconds=1.0)
    assert found.precision == pytest.approx(0.5)  # tau is too low for these
    assert found.precision_at_recall == pytest.approx(19 / 20)


def test_without_photos_there_is_no_rate_of_false_alarms() -> None:
    found = figures([judged("jar", 0.0, 0.0), judged("jar", 0.1, 0.1)], [], tau=0.01, seconds=1.0)
    assert found.false_alarms is found.alarms is found.noticed is None
    assert "false_alarms" not in found.intervals


class Sees:
    """A finder that sees what it was told."""

    def __init__(self, name: str, found: np.ndarray):
        self.name = name
        self._found = found

    def find(self, image: np.ndarray, placed: np.ndarray) -> np.ndarray:
        return cv2.resize(self._found, placed.shape[::-1]) > 0


def test_what_a_cutout_is_known_to_lack_is_product_and_the_rest_of_its_photo_untold() -> None:
    """A jumper of which the cutout holds the body: one sleeve has a point, a shadow has none."""
    body, sleeve, shadow = np.s_[150:360, 180:330], np.s_[180:220, 60:180], np.s_[300:340, 330:460]
    image = np.full((383, 512, 3), 255, np.uint8)
    found = np.zeros(image.shape[:2], np.uint8)
    for part, colour in ((body, 60), (sleeve, 60), (shadow, 200)):
        image[part], found[part] = colour, 255
    matte = np.zeros_like(found)
    matte[body] = 255
    detector = OvercompletionDetector([Sees("salient", found), Sees("colour", found)])

    def told(lacking: tuple[tuple[int, int], ...]) -> dict[str, list[bool | None]]:
        (one,) = know(detector, [Composite("jumper", PHOTO, image, (Mask(matte, 0.0, "", "cutout"),), lacking)])
        at = {"sleeve": (125, 75), "shadow": (200, 250)}  # of the 320 px that are looked at
        return {
            name: [is_product for piece, is_product in zip(one.pieces, one.product, strict=True) if piece.mask[where]]
            for name, where in at.items()
        }

    assert set(told(())["sleeve"]) == set(told(())["shadow"]) == {False}
    pointed = told(((200, 120), (200, 511)))  # the second is at the picture's edge, on nothing
    assert pointed["sleeve"].count(True) == 1
    assert set(pointed["shadow"]) == {None}


def test_the_parts_that_cutouts_are_known_to_lack_lie_in_pictures() -> None:
    with MISSING.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert all(0 <= float(row[axis]) < 1 for row in rows for axis in "xy")
    assert all(row["what"] for row in rows)
