"""The figures of `packshot measure cutout`, on masks whose answer is known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipelines.errors import UsageError
from pipelines.measure import boundary_f, iou, measure_cutouts, over_scene
from pipelines.vision.photos import Photo


def square(left: int = 20) -> np.ndarray:
    mask = np.zeros((80, 80), bool)
    mask[20:60, left : left + 40] = True
    return mask


def test_iou_and_boundary_f_of_a_known_shift() -> None:
    assert iou(square(), square()) == 1
    assert iou(square(), square(30)) == pytest.approx(30 / 50)
    assert boundary_f(square(), square()) == 1
    assert boundary_f(square(), square(22)) == 1  # within the tolerance
    assert boundary_f(square(), square(30)) < 0.8
    assert boundary_f(np.zeros((80, 80), bool), square()) == 0


def test_swapping_a_white_background_is_exact() -> None:
    rng = np.random.default_rng(0)
    product = rng.integers(0, 255, (50, 40, 3)).astype(np.float32)
    alpha = rng.random((50, 40)).astype(np.float32)
    white = product * alpha[..., None] + 255 * (1 - alpha[..., None])
    scene = Image.new("RGB", (40, 50), (10, 90, 200))
    wanted = product * alpha[..., None] + np.array([10, 90, 200]) * (1 - alpha[..., None])
    mixed = over_scene(Photo((white + 0.5).astype(np.uint8), None), alpha, scene)
    assert np.abs(mixed.rgb - wanted).max() <= 1.5


def test_what_cannot_be_measured_is_a_clear_error(tmp_path: Path) -> None:
    catalogue = tmp_path / "catalog.csv"
    catalogue.write_text("id,title,image_link\nA,Mug,a.png\n")
    models = object()
    with pytest.raises(UsageError, match="ground_truth_alpha"):
        measure_cutouts(catalogue, "auto", None, models)  # type: ignore[arg-type]
    for text, why in (
        ("", "the file has no rows"),
        ("id,image_link,ground_truth_alpha\n", "no rows below its header"),
        ("id,ground_truth_alpha\nA,a.png\n", "no column 'image_link'"),
    ):
        catalogue.write_text(text)
        with pytest.raises(UsageError, match=why):
            measure_cutouts(catalogue, "auto", None, models)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="cannot be read"):
        measure_cutouts(tmp_path / "no.csv", "auto", None, models)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="auto, hqsam"):
        measure_cutouts(catalogue, "best", None, models)  # type: ignore[arg-type]
