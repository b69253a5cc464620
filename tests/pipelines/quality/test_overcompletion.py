from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipelines import sample, scenes
from pipelines.evaluation.experiment.pairs import catalogue_subjects, load_pairs
from pipelines.models.profile import load_profile
from pipelines.quality.overcompletion import SURE, ColourFinder, OvercompletionDetector, detached, extension

SIDE = 320
SAMPLE = Path(sample.__file__).with_name("catalog.csv")
SCENES = Path(scenes.__file__).parent


def box(top: int, left: int, bottom: int, right: int) -> np.ndarray:
    mask = np.zeros((SIDE, SIDE), bool)
    mask[top:bottom, left:right] = True
    return mask


PRODUCT = box(120, 120, 200, 200)


class Seen:
    """A finder that has already made up its mind."""

    def __init__(self, name: str, found: np.ndarray):
        self.name = name
        self._found = found

    def find(self, image, placed):
        return self._found


def measure(*found: np.ndarray):
    detector = OvercompletionDetector([Seen(str(i), one) for i, one in enumerate(found)])
    return detector.measure(np.zeros((SIDE, SIDE, 3), np.uint8), PRODUCT.astype(np.uint8) * 255)


class TestExtension:
    def test_what_is_found_where_it_was_placed_is_none(self):
        assert not extension(PRODUCT, PRODUCT).any()

    def test_a_shrunken_product_is_none(self):
        assert not extension(box(140, 140, 180, 180), PRODUCT).any()

    def test_a_thin_rim_is_the_segmenters_unsure_edge(self):
        assert not extension(box(117, 117, 203, 203), PRODUCT).any()

    def test_a_cord_is_one(self):
        grown = extension(PRODUCT | box(158, 200, 161, 260), PRODUCT)
        assert grown[159, 230]
        assert grown.sum() == pytest.approx(3 * 60, rel=0.1)

    def test_what_does_not_touch_the_product_is_another_object(self):
        assert not extension(PRODUCT | box(20, 20, 60, 60), PRODUCT).any()


class TestDetached:
    SECOND = box(120, 240, 200, 310)
    """A twin of the product, a little smaller, beside it."""

    @staticmethod
    def picture(colour: tuple[int, int, int]) -> np.ndarray:
        rng = np.random.default_rng(0)
        image = rng.normal((170, 180, 160), 4, (SIDE, SIDE, 3))
        for where, mean in ((PRODUCT, (150, 40, 30)), (TestDetached.SECOND, colour)):
            image[where] = rng.normal(mean, 6, (where.sum(), 3))
        return image.clip(0, 255).astype(np.uint8)

    def test_a_second_product_is_counted_whole(self):
        second = detached(PRODUCT | self.SECOND, self.picture((150, 40, 30)), PRODUCT)
        assert (second == self.SECOND).all()

    def test_an_object_of_other_colours_is_a_prop(self):
        assert not detached(PRODUCT | self.SECOND, self.picture((40, 90, 150)), PRODUCT).any()

    def test_what_touches_the_product_is_an_extension(self):
        grown = PRODUCT | box(120, 200, 200, 240)
        assert not detached(grown, self.picture((150, 40, 30)), PRODUCT).any()

    def test_the_measure_is_in_products_and_leaves_e_plus_alone(self):
        seen = PRODUCT | self.SECOND
        detector = OvercompletionDetector([Seen("a", seen), Seen("b", PRODUCT)])
        measured = detector.measure(self.picture((150, 40, 30)), PRODUCT.astype(np.uint8) * 255)
        assert measured.d_plus == pytest.approx(70 / 80, abs=0.01)
        assert measured.e_plus == 0


class TestDetector:
    def test_normalised_by_the_product(self):
        grown = PRODUCT | box(120, 200, 200, 240)
        assert measure(grown, grown).e_plus == pytest.approx(0.5, abs=0.05)

    def test_one_alone_does_not_convince(self):
        found = measure(PRODUCT | box(120, 200, 200, 240), PRODUCT)
        assert found.e_plus == 0
        assert found.uncertainty == pytest.approx(0.5, abs=0.05)

    def test_two_of_three_do(self):
        grown = PRODUCT | box(120, 200, 200, 240)
        found = measure(grown, grown, PRODUCT)
        assert found.e_plus == pytest.approx(0.5, abs=0.05)
        assert found.confidence == 1
        assert found.heat[150, 220] > 0.5
        assert found.heat[150, 150] == 0

    def test_a_judge_has_the_say(self):
        grown = PRODUCT | box(120, 200, 200, 240)

        def doubtful(image, placed, seen):
            assert set(seen) == {"a", "b"}
            return 0.8 * SURE * extension(seen["a"], placed)

        detector = OvercompletionDetector([Seen("a", grown), Seen("b", grown)], doubtful)
        measured = detector.measure(np.zeros((SIDE, SIDE, 3), np.uint8), PRODUCT.astype(np.uint8) * 255)
        assert measured.e_plus == 0
        assert measured.confidence == pytest.approx(0.8 * SURE)
        assert measured.heat.max() == pytest.approx(0.8 * SURE, abs=0.01)

    def test_a_product_thinner_than_a_pixel_of_the_measured_picture_is_placed_all_the_same(self):
        matte = np.zeros((8 * SIDE, 8 * SIDE), np.uint8)
        matte[:, 4 * SIDE] = 255
        nothing = np.zeros((320, 320), bool)
        detector = OvercompletionDetector([Seen("a", nothing), Seen("b", nothing)])
        image = np.zeros((*matte.shape, 3), np.uint8)
        assert detector.measure(image, matte).e_plus == 0
        with pytest.raises(ValueError, match="empty"):
            detector.measure(image, np.zeros_like(matte))

    def test_a_second_opinion_is_doubt_not_a_verdict_and_asked_only_where_something_was_seen(self):
        grown, asked = PRODUCT | box(120, 200, 200, 240), []

        class Opinion(Seen):
            def find(self, image, placed):
                asked.append(1)
                return super().find(image, placed)

        def judged(seen: np.ndarray):
            detector = OvercompletionDetector([Seen("a", seen), Seen("b", seen)], second_opinion=Opinion("c", PRODUCT))
            return detector.measure(np.zeros((SIDE, SIDE, 3), np.uint8), PRODUCT.astype(np.uint8) * 255)

        assert judged(PRODUCT).e_plus == 0
        assert not asked
        assert judged(grown).e_plus == pytest.approx(0.5, abs=0.05)
        assert judged(grown).uncertainty == pytest.approx(0.5, abs=0.05)
        assert judged(grown).by_finder["c"] == 0
        assert len(asked) == 3

    def test_many_mattes_of_one_picture_are_measured_as_one_by_one(self):
        detector = OvercompletionDetector([Seen("a", PRODUCT), Seen("b", PRODUCT)])
        image = np.zeros((SIDE, SIDE, 3), np.uint8)
        whole, half = PRODUCT.astype(np.uint8) * 255, box(120, 120, 200, 160).astype(np.uint8) * 255
        together = detector.measure_all(image, [whole, half])
        assert [one.e_plus for one in together] == [detector.measure(image, m).e_plus for m in (whole, half)]
        assert together[1].e_plus == pytest.approx(1, abs=0.1)

    def test_a_single_finder_is_refused(self):
        with pytest.raises(ValueError, match="at least two"):
            OvercompletionDetector([ColourFinder()])

    @pytest.mark.parametrize("matte", [np.zeros((SIDE, SIDE), np.uint8), np.zeros((8, 8), np.uint8)])
    def test_a_matte_without_a_product_or_of_another_size_is_refused(self, matte):
        detector = OvercompletionDetector([Seen("a", PRODUCT), Seen("b", PRODUCT)])
        with pytest.raises(ValueError, match="matte"):
            detector.measure(np.zeros((SIDE, SIDE, 3), np.uint8), matte)


class TestColourFinder:
    def test_follows_the_products_colour_and_stops_at_the_scene(self):
        rng = np.random.default_rng(0)
        image = rng.normal((170, 180, 160), 4, (SIDE, SIDE, 3))
        image[PRODUCT | box(150, 200, 175, 250)] = rng.normal((150, 40, 30), 6, ((80 * 80) + 25 * 50, 3))
        found = ColourFinder().find(image.clip(0, 255).astype(np.uint8), PRODUCT)
        grown = extension(found, PRODUCT)
        assert grown[160, 230]
        assert not grown[:140].any()
        assert grown.sum() == pytest.approx(25 * 50, rel=0.3)


@pytest.mark.medium
@pytest.mark.parametrize("backdrop", ["studio-sage-1", "white-plain-1"])
def test_a_second_product_beside_the_first_is_one_of_d_plus_and_no_growth(backdrop):
    detector = OvercompletionDetector.from_profile(load_profile("mini"))
    pairs = load_pairs(catalogue_subjects(SAMPLE), 4, SIDE)
    with Image.open(SCENES / "backdrops" / f"{backdrop}.webp") as picture:
        scene = np.asarray(picture.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BOX))
    for pair in (replace(pair, scale=0.3) for pair in pairs):
        alone, matte = pair.product.over(scene), pair.product.matte
        aside = round(1.15 * matte.any(axis=0).sum())
        second, colour = (np.roll(picture, aside, axis=1) for picture in (matte, pair.product.colour))
        twice = np.where((second >= 128)[..., None], colour, alone)
        assert detector.measure(alone, matte).d_plus == 0
        found = detector.measure(twice, matte)
        assert found.d_plus == pytest.approx(1, abs=0.1)
        assert found.e_plus == 0
