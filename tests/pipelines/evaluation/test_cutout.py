"""The figures of `packshot measure cutout`, on masks whose answer is known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipelines.errors import IntegrityError, UsageError
from pipelines.evaluation.baselines import PublishedU2NetP
from pipelines.evaluation.cutout import boundary_f, iou, measure_cutouts, over_scene
from pipelines.models.profile import PROFILES, load_profile
from pipelines.vision.photos import Photo

PUBLISHED = Path(__file__).parents[3] / ".." / "shared" / "models"
BUNDLED = PROFILES / "mini" / "hqsam" / "model.safetensors"


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


def boxes(folder: Path) -> Path:
    """A catalogue of two boxes on white, with their masks."""
    rows = ["id,image_link,ground_truth_alpha"]
    for n, colour in enumerate([(190, 40, 35), (30, 60, 170)]):
        image, alpha = np.full((200, 200, 3), 250, np.uint8), np.zeros((200, 200), np.uint8)
        image[60:150, 70:130], alpha[60:150, 70:130] = colour, 255
        image[90:110, 80:120] = 240  # a label
        Image.fromarray(image).save(folder / f"{n}.png")
        Image.fromarray(alpha).save(folder / f"{n}-alpha.png")
        rows.append(f"box-{n},{n}.png,{n}-alpha.png")
    catalogue = folder / "catalog.csv"
    catalogue.write_text("\n".join(rows))
    return catalogue


def test_a_picture_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    catalogue, scenes = boxes(tmp_path), tmp_path / "scenes"
    scenes.mkdir()
    (scenes / "note.jpg").write_text("no picture")
    models = object()
    with pytest.raises(UsageError, match=r"note\.jpg: the scene cannot be read"):
        measure_cutouts(catalogue, "auto", scenes, models)  # type: ignore[arg-type]
    Image.new("L", (100, 200)).save(tmp_path / "0-alpha.png")
    with pytest.raises(UsageError, match=r"0-alpha\.png: the alpha mask is 100 × 200 px, its photo 200 × 200"):
        measure_cutouts(catalogue, "auto", None, models)  # type: ignore[arg-type]
    Image.new("1", (40_000, 40_000)).save(tmp_path / "0-alpha.png")
    with pytest.raises(UsageError, match=r"0-alpha\.png: the alpha mask cannot be read .*decompression bomb"):
        measure_cutouts(catalogue, "auto", None, models)  # type: ignore[arg-type]


@pytest.mark.slow
@pytest.mark.skipif(not PUBLISHED.exists(), reason="../shared/models is not here")
@pytest.mark.skipif(not BUNDLED.exists(), reason="the bundled weights are not here")
def test_baselines_are_measured_on_the_same_photos(tmp_path: Path) -> None:
    found = measure_cutouts(boxes(tmp_path), "hqsam", None, load_profile("mini"), baselines=PUBLISHED)
    assert [baseline.name for baseline in found.baselines] == ["u2netp", "mobile_sam"]
    for row in (found, *found.baselines):
        assert [product.sku for product in row.products] == ["box-0", "box-1"]
        assert row.mean_iou == pytest.approx(np.mean([product.iou for product in row.products]))
        assert row.iou_interval[0] <= row.mean_iou <= row.iou_interval[1]
        assert row.boundary_f_interval[0] <= row.mean_boundary_f <= row.boundary_f_interval[1]
        assert row.mean_iou > 0.9
    sams = {product.path for row in (found, found.baselines[1]) for product in row.products}
    assert sams == {"hqsam"}


def test_baselines_that_are_missing_or_broken_are_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no u2netp\.onnx"):
        measure_cutouts(boxes(tmp_path), "auto", None, object(), baselines=tmp_path)  # type: ignore[arg-type]
    (tmp_path / "u2netp.onnx").write_bytes(b"no network")
    with pytest.raises(IntegrityError, match=r"u2netp\.onnx: expected U²-Net-P"):
        PublishedU2NetP(tmp_path / "u2netp.onnx")
