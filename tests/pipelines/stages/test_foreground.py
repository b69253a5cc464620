"""A profile's stronger net for the foreground: which photos ask it, and what stays with the bundled net."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import yaml

from pipelines.contracts import Product, Shot
from pipelines.errors import Rejected
from pipelines.evaluation.cutout import iou
from pipelines.models.files import sha256_of
from pipelines.models.profile import PROFILES, Profile, load_profile
from pipelines.quality.overcompletion import Overcompletion
from pipelines.stages.cutout import CutoutModels, cutout
from pipelines.stages.keys import STAGES
from pipelines.vision.photos import Photo
from pipelines.vision.segmenters import Prompt

BUNDLED = PROFILES / "mini" / "salient" / "model.safetensors"


class Sees:
    """A net that sees one thing, however the picture is cropped."""

    def __init__(self, mask: np.ndarray):
        self.mask, self.runs = mask, 0

    def segment(self, image: np.ndarray) -> np.ndarray:
        self.runs += 1
        return self.mask[: image.shape[0], : image.shape[1]].astype(np.float32)


class FillsBox:
    """HQ-SAM, as far as it does what the prompt says."""

    def segment_prompted(self, image: np.ndarray, prompt: Prompt, passes: int = 2) -> np.ndarray:
        left, top, right, bottom = prompt.box.astype(int)
        mask = np.zeros(image.shape[:2], np.float32)
        mask[top:bottom, left:right] = 0.99
        return mask


class Detector:
    """Remembers the saliency map that it was given."""

    saliency: np.ndarray | None = None

    def measure(self, image: np.ndarray, matte: np.ndarray, saliency: np.ndarray | None) -> Overcompletion:
        self.saliency = saliency
        return Overcompletion(0.0, 0.0, 0.0, 0.0, {}, np.zeros(matte.shape, np.float32))


def box(top: int, left: int, bottom: int, right: int) -> np.ndarray:
    mask = np.zeros((400, 400), bool)
    mask[top:bottom, left:right] = True
    return mask


PRODUCT, POSTER, NOTHING = box(120, 140, 280, 260), box(20, 20, 90, 100), box(0, 0, 0, 0)


def lived_in() -> np.ndarray:
    image = np.random.default_rng(0).integers(60, 120, (400, 400, 3)).astype(np.uint8)
    image[PRODUCT] = (190, 40, 35)
    return image


def cut(image: np.ndarray, salient: Sees, foreground: Sees | None, detector: Detector | None = None):
    models = CutoutModels(salient, FillsBox(), detector, foreground)  # type: ignore[arg-type]
    return cutout(Photo(image, None), models)


def test_the_stronger_net_finds_the_product_and_the_detector_keeps_the_map_that_it_is_fitted_to() -> None:
    detector = Detector()
    assert iou(cut(lived_in(), Sees(POSTER), None).matte > 0.5, POSTER) > 0.9
    result = cut(lived_in(), Sees(POSTER), Sees(PRODUCT), detector)
    assert iou(result.matte > 0.5, PRODUCT) > 0.97
    assert result.score > 0.97, "it agrees with the net that found it"
    assert result.held == ""
    assert detector.saliency is not None
    assert np.array_equal(detector.saliency, POSTER)


@pytest.mark.parametrize(("bundled", "stronger"), [(NOTHING, PRODUCT), (PRODUCT, NOTHING)])
def test_a_photo_in_which_the_stronger_net_sees_nothing_is_rejected(bundled: np.ndarray, stronger: np.ndarray) -> None:
    if stronger.any():
        assert iou(cut(lived_in(), Sees(bundled), Sees(stronger)).matte > 0.5, PRODUCT) > 0.97
    else:
        with pytest.raises(Rejected, match="nothing in the photo stands out"):
            cut(lived_in(), Sees(bundled), Sees(stronger))


def test_on_plain_paper_the_stronger_net_is_asked_only_if_the_bundled_one_sees_nothing() -> None:
    image = np.full((400, 400, 3), 252, np.uint8)
    image[PRODUCT] = (190, 40, 35)
    stronger = Sees(PRODUCT)
    assert cut(image, Sees(PRODUCT), stronger).path == "studio"
    assert stronger.runs == 0
    result = cut(image, Sees(NOTHING), stronger)
    assert (result.path, stronger.runs) == ("hqsam", 1)
    assert result.doubtful is not None, "openings are looked for, as on all paper"


@pytest.fixture
def with_copy(tmp_path: Path) -> Profile:
    """`sd15` with the bundled models, and a copy of the bundled net for the foreground."""
    shutil.copy(BUNDLED, tmp_path / "copy.safetensors")
    part = {"kind": "salient", "path": "copy.safetensors", "revision": "1", "source": "here", "licence": "Apache-2.0"}
    parts = {"foreground": part | {"sha256": sha256_of(BUNDLED)}, "hqsam": {"like": "mini/hqsam"}}
    (tmp_path / "sd15.yaml").write_text(yaml.safe_dump({"parts": parts}))
    return load_profile("sd15", tmp_path)


@pytest.mark.skipif(not BUNDLED.exists(), reason="no bundled weights")
def test_the_profile_says_whether_there_is_a_stronger_net(with_copy: Profile, tmp_path: Path) -> None:
    assert CutoutModels.from_profile(load_profile("mini")).foreground is None
    models = CutoutModels.from_profile(with_copy)
    assert models.foreground is not None
    image = lived_in()
    assert np.array_equal(models.foreground.segment(image), models.salient.segment(image))
    (tmp_path / "sd15.yaml").write_text("parts: {foreground: {like: salient}, hqsam: {like: mini/hqsam}}")
    load_profile.cache_clear()
    assert CutoutModels.from_profile(load_profile("sd15", tmp_path)).foreground is None, "the same net runs once"


def test_the_net_is_in_the_key_of_the_cutout_and_of_nothing_else(with_copy: Profile, tmp_path: Path) -> None:
    shot = Shot(Product("1", 1, "Mug", "Mugs", "a" * 64), "studio-sage", "")

    def models_of(profile: Profile) -> dict[str, str]:
        recipe = SimpleNamespace(profile=profile, path="auto", attempt="")
        return {ref.name: ref.sha256 for ref in STAGES["cutout"].job(shot, {}, recipe, 0).models}  # type: ignore[arg-type]

    assert set(models_of(load_profile("mini"))) == {"hqsam", "salient", "evidence"}
    published = models_of(load_profile("sd15", tmp_path / "none"))
    assert published["foreground"] == load_profile("sd15", tmp_path / "none").part("foreground").ref.sha256
    assert models_of(with_copy)["foreground"] == sha256_of(BUNDLED) != published["foreground"]
