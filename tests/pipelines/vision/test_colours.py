from __future__ import annotations

import numpy as np
import pytest

from pipelines.vision.colours import dominant_colour


@pytest.mark.parametrize(
    ("rgb", "name"),
    [
        ((250, 250, 250), "white"), ((15, 15, 18), "black"), ((128, 128, 130), "grey"), ((190, 30, 40), "red"),
        ((30, 60, 170), "blue"), ((22, 30, 66), "blue"), ((40, 130, 60), "green"), ((250, 215, 60), "yellow"),
        ((110, 70, 40), "brown"), ((240, 120, 30), "orange"), ((240, 150, 180), "pink"), ((110, 60, 150), "purple"),
        ((30, 160, 160), "turquoise"), ((225, 210, 185), "beige"),
    ],
)  # fmt: skip
def test_plain_colours_have_their_names(rgb: tuple[int, int, int], name: str) -> None:
    assert dominant_colour(np.full((20, 20, 3), rgb, np.uint8)) == (name, 1.0)


def test_only_the_product_counts() -> None:
    image = np.full((40, 40, 3), 255, np.uint8)
    image[10:20, 10:20] = (190, 30, 40)
    alpha = np.zeros((40, 40), np.float32)
    alpha[10:20, 10:20] = 1
    assert dominant_colour(image, alpha) == ("red", 1.0)
    assert dominant_colour(image)[0] == "white"
    assert dominant_colour(image, np.zeros_like(alpha)) == ("", 0.0)


def test_the_share_tells_a_pattern_from_a_colour() -> None:
    image = np.zeros((40, 40, 3), np.uint8)
    image[:25] = (30, 60, 170)
    image[25:] = (250, 250, 250)
    assert dominant_colour(image) == ("blue", pytest.approx(0.625))
