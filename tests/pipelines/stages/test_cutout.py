"""The cutout stage: which path a photo takes, what it makes of it, and why it refuses or holds one."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from pipelines import sample
from pipelines.contracts import Job, Made, Product, Shot, Verdict
from pipelines.errors import Rejected, UsageError
from pipelines.evaluation.cutout import iou, measure_cutouts
from pipelines.evaluation.planted_paper import hard_shadow
from pipelines.models.profile import PROFILES, load_profile
from pipelines.quality.overcompletion import ColourFinder, Overcompletion, OvercompletionDetector, SalientFinder
from pipelines.stages.cutout import CutoutModels, _Found, _touches_skin, by_hand, cutout, redraw
from pipelines.stages.keys import STAGES
from pipelines.vision.clicks import Click, answer_clicks
from pipelines.vision.photos import Photo, png_bytes, read_photo
from pipelines.vision.segmenters import Encoding, Prompt
from pipelines.vision.studio import cut_studio, find_studio
from pipelines.workflow import Work

CATALOG = Path(__file__).parents[3] / ".." / "shared" / "catalog"
CASES = CATALOG.with_name("cases")
SAMPLE = Path(sample.__file__).parent
WEIGHTS = [PROFILES / "mini" / part / "model.safetensors" for part in ("salient", "hqsam")]

LIMITED = SimpleNamespace(max_megapixels=50, keep_encoding=None)
"""What the computing reads of a recipe."""

pytestmark = pytest.mark.skipif(not all(w.exists() for w in WEIGHTS), reason="the bundled weights are not here")


@pytest.fixture(scope="module")
def models() -> CutoutModels:
    return CutoutModels.from_profile(load_profile("mini"))


def block_on(background: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A red box with a blue label on it: image and mask."""
    image = background.copy()
    image[120:280, 140:260] = (190, 40, 35)
    image[170:230, 160:240] = (30, 60, 170)
    mask = np.zeros(image.shape[:2], bool)
    mask[120:280, 140:260] = True
    return image, mask


def white() -> np.ndarray:
    return np.full((400, 400, 3), 252, np.uint8)


def test_a_photo_with_alpha_is_taken_as_it_is_without_its_shadow(models: CutoutModels) -> None:
    image, mask = block_on(white())
    alpha = mask.astype(np.float32)
    alpha[290:310, 140:260] = 0.4  # a soft shadow
    result = cutout(Photo(image, alpha), models)
    assert result.path == "alpha"
    assert result.box == (140, 120, 260, 280)
    assert np.array_equal(result.matte, mask)
    assert np.array_equal(result.colours, image)


def case(name: str) -> bytes:
    if not CASES.exists():
        pytest.skip("../shared/cases is not here")
    return (CASES / "photos" / name).read_bytes()


def verdicts(data: bytes, models: CutoutModels, title: str) -> dict[str, Verdict]:
    """What the step says of a photo, by check."""
    settings = {"path": "auto", "garment": "", "whole_tau": 0.006, "title": title}
    job = Job("cutout", STAGES["cutout"].version, {"photo": "x"}, settings)
    (made,) = STAGES["cutout"].compute([Work(job, {"photo": data})], models, LIMITED)
    assert isinstance(made, Made)
    assert {verdict.picture for verdict in made.verdicts} <= {output.role for output in made.outputs} | {""}
    return {verdict.check: verdict for verdict in made.verdicts}


def test_a_ring_on_paper_is_open(models: CutoutModels) -> None:
    result = cutout(read_photo(case("39-ring.png")), models)
    assert (result.matte > 0.5).mean() == pytest.approx(0.138, abs=0.01)
    assert not result.held
    assert result.beyond <= 0.006  # its opening is no missing part


def test_alpha_that_clears_only_the_corners_is_believed(models: CutoutModels) -> None:
    data = case("19-notebook-fills-frame-rgba.png")
    photo = read_photo(data)
    result = cutout(photo, models)
    assert (result.path, result.held, result.box) == ("alpha", "", (0, 0, *photo.size))
    assert np.array_equal(result.matte, photo.alpha)


def test_a_photo_that_is_transparent_everywhere_has_no_product(models: CutoutModels) -> None:
    """What a viewer shows of it is nothing; the hidden pixels are no product that a shop meant to show."""
    image = np.full((300, 300, 3), 245, np.uint8)
    image[100:200, 100:200] = (180, 40, 40)
    with pytest.raises(Rejected, match="transparent everywhere"):
        cutout(Photo(image, np.zeros((300, 300), np.float32)), models)


def test_alpha_that_rounds_the_corners_of_a_studio_photo_is_held(models: CutoutModels) -> None:
    image, _ = block_on(white())
    alpha = np.ones(image.shape[:2], np.float32)
    alpha[:15, :15] = alpha[-15:, :15] = 0
    assert "inside is a plain background" in cutout(Photo(image, alpha), models).held


def test_scattered_clear_pixels_are_no_cutout(models: CutoutModels) -> None:
    image, mask = block_on(white())
    alpha = np.ones(image.shape[:2], np.float32)
    alpha[::20, ::20] = 0
    result = cutout(Photo(image, alpha), models)
    assert result.path == "studio"
    assert iou(result.matte > 0.5, mask) > 0.97


def test_a_see_through_product_keeps_its_alpha_and_its_colours_and_is_held(models: CutoutModels) -> None:
    data = case("17-glass-semitransparent.png")
    photo = read_photo(data)
    assert photo.alpha is not None
    result = cutout(photo, models)
    inside = np.s_[120:500, 230:370]
    assert np.array_equal(result.matte[inside], photo.alpha[inside])
    assert np.array_equal(result.colours, photo.rgb)
    found = verdicts(data, models, "Tonic glass")
    assert not found["see_through"].passed
    assert "see-through" in found["see_through"].reason


@pytest.mark.parametrize(
    ("name", "title", "check", "reason"),
    [
        ("32-text-banner.png", "Blue jug", "product_photo", "no product photo but a graphic"),
        ("31-six-products.jpg", "Yellow slip-on shoe", "single_product", "6 separate things"),
        ("16-shoe-painted-checkerboard.png", "Yellow slip-on shoe", "checkerboard", "a painted checkerboard of 12 px"),
    ],
)
@pytest.mark.slow
def test_what_is_no_photo_of_one_product_is_held_with_the_reason(
    models: CutoutModels, name: str, title: str, check: str, reason: str
) -> None:
    verdict = verdicts(case(name), models, title)[check]
    assert not verdict.passed
    assert reason in verdict.reason


def test_a_studio_photo_is_cut_by_colour_and_opaque_inside(models: CutoutModels) -> None:
    image, mask = block_on(white())
    result = cutout(Photo(image, None), models)
    assert result.path == "studio"
    assert not result.held
    assert iou(result.matte > 0.5, mask) > 0.97
    assert (result.matte[130:270, 150:250] == 1).all()
    assert np.array_equal(result.colours[130:270, 150:250], image[130:270, 150:250])


@pytest.mark.parametrize("level", [128, 252])
def test_a_photo_without_a_product_is_rejected(models: CutoutModels, level: int) -> None:
    with pytest.raises(Rejected, match="no product found"):
        cutout(Photo(np.full((300, 400, 3), level, np.uint8), None), models)


@pytest.mark.parametrize(("by_box_alone", "expected"), [(0.99, ""), (0.6, "unsure where the product ends")])
def test_an_unsure_mask_gives_way_to_a_surer_one_of_the_box_alone(
    models: CutoutModels, by_box_alone: float, expected: str
) -> None:
    image, mask = block_on(white())

    class Unsure:
        def segment_prompted(self, image: np.ndarray, prompt: Prompt, passes: int = 2) -> np.ndarray:
            return np.where(mask, 0.6 if len(prompt.points) else by_box_alone, 0).astype(np.float32)

    result = cutout(Photo(image, None), CutoutModels(models.salient, Unsure()), "hqsam")  # type: ignore[arg-type]
    assert result.held.startswith(expected)
    assert bool(result.held) == bool(expected)


def test_a_scene_with_a_plain_border_is_no_studio(models: CutoutModels) -> None:
    image, mask = block_on(white())
    assert cutout(Photo(image, None), models).path == "studio"
    image[40:90, 40:120] = (20, 120, 60)  # another thing in the picture, apart from the product

    class Sam:
        def segment_prompted(self, image: np.ndarray, prompt: Prompt, passes: int = 2) -> np.ndarray:
            return mask.astype(np.float32)

    result = cutout(Photo(image, None), CutoutModels(models.salient, Sam()))  # type: ignore[arg-type]
    assert result.path == "hqsam"
    assert iou(result.matte > 0.5, mask) > 0.97


@pytest.mark.parametrize(
    ("certainty", "runs"), [(0.99, 1), (0.7, 3)], ids=["certain: the photo alone", "doubtful: two crops more"]
)
def test_the_salient_net_runs_once_for_search_and_completeness_and_on_crops_only_in_doubt(
    models: CutoutModels, certainty: float, runs: int
) -> None:
    image, mask = block_on(np.full((400, 400, 3), (70, 110, 60), np.uint8))
    seen = []

    class Salient:
        def segment(self, image: np.ndarray) -> np.ndarray:
            seen.append(image.shape[:2])
            return mask[: image.shape[0], : image.shape[1]].astype(np.float32)

    class Sam:
        def segment_prompted(self, image: np.ndarray, prompt: Prompt, passes: int = 2) -> np.ndarray:
            return np.where(mask, certainty, 0).astype(np.float32)

    salient = Salient()
    detector = OvercompletionDetector([SalientFinder(salient), ColourFinder()])
    result = cutout(Photo(image, None), CutoutModels(salient, Sam(), detector))  # type: ignore[arg-type]
    assert result.beyond == 0
    assert len(seen) == runs


def test_an_encoding_that_was_kept_answers_as_the_photo_itself_does(models: CutoutModels) -> None:
    kept: dict[tuple[str, str], bytes] = {}
    profile = load_profile("mini")
    recipe = SimpleNamespace(max_megapixels=50, profile=profile, keep_encoding=lambda *of: kept.update({of[:2]: of[2]}))
    image, mask = block_on(white())
    job = Job("cutout", 1, {"photo": "x"}, {"path": "auto", "garment": "", "whole_tau": 0.006, "title": "Box"})
    STAGES["cutout"].compute([Work(job, {"photo": png_bytes(Image.fromarray(image))})], models, recipe)
    ((key, data),) = kept.items()
    assert key == ("x", profile.ref("hqsam").sha256), "a drawing is held, so its encoding is kept"

    clicks = [Click(200, 200, True)]
    fresh = answer_clicks(image, np.zeros_like(mask), clicks, models.hqsam)
    again = image.copy()
    models.hqsam.restore(again, Encoding.from_bytes(data))
    assert iou(answer_clicks(again, np.zeros_like(mask), clicks, models.hqsam), fresh) > 0.995
    excluded = answer_clicks(again, mask, [Click(200, 150, False)], models.hqsam)
    assert not excluded[150, 200], "whatever the model answers, the click holds"
    with pytest.raises(ValueError, match="no encoding"):
        Encoding.from_bytes(b"something else")


def test_a_drawn_cutout_changes_where_it_was_drawn_and_nowhere_else() -> None:
    image, mask = block_on(white())
    before = np.dstack([image, mask.astype(np.uint8) * 255])
    drawn = mask.copy()
    drawn[120:160, 140:260] = False
    made = by_hand(redraw(Photo(image, None), before, drawn))
    after = np.asarray(Image.open(io.BytesIO(made.outputs[0].data)))
    assert after[130, 200, 3] == 0
    assert (after[185:] == before[185:]).all(), "exactly as it was"
    assert made.facts["box"][1] > 150
    assert [verdict.passed for verdict in made.verdicts] == [True]
    with pytest.raises(Rejected, match="not changed"):
        redraw(Photo(image, None), before, mask)
    with pytest.raises(Rejected, match="no product"):
        redraw(Photo(image, None), before, np.zeros_like(mask))


def test_an_unknown_path_is_a_usage_error(models: CutoutModels) -> None:
    with pytest.raises(UsageError, match="auto, hqsam"):
        cutout(Photo(white(), None), models, path="magic")


def test_the_step_carries_the_cutout_at_the_photos_size_and_a_verdict(models: CutoutModels) -> None:
    image, mask = block_on(white())
    settings = {"path": "auto", "garment": "", "whole_tau": 0.006, "title": "Box"}
    job = Job("cutout", STAGES["cutout"].version, {"photo": "x"}, settings)
    made, refused = STAGES["cutout"].compute(
        [Work(job, {"photo": png_bytes(Image.fromarray(image))}), Work(job, {"photo": b""})], models, LIMITED
    )
    assert isinstance(made, Made)
    rgba = np.asarray(Image.open(io.BytesIO(made.outputs[0].data)))
    assert rgba.shape == (400, 400, 4)
    assert iou(rgba[..., 3] > 127, mask) > 0.97
    assert made.facts["path"] == "studio"
    checks = ["cutout", "whole", "openings", "product_photo", "single_product", "checkerboard", "border"]
    assert [verdict.check for verdict in made.verdicts] == checks
    assert [verdict.check for verdict in made.verdicts if not verdict.passed] == ["product_photo"]  # it is a drawing
    assert [output.role for output in made.outputs] == checks
    assert isinstance(refused, Rejected)
    assert "0 bytes" in refused.reason


def test_a_cutout_that_lacks_a_part_is_held_with_the_share_and_a_picture_of_where(models: CutoutModels) -> None:
    image, mask = block_on(white())
    rows = np.flatnonzero(mask.any(axis=1))

    class Lacking:
        """Sees a tenth of the product go on below its cutout."""

        def measure(self, image: np.ndarray, matte: np.ndarray, saliency: np.ndarray | None) -> Overcompletion:
            heat = np.zeros(matte.shape, np.float32)
            heat[rows[-1] + 4 : rows[-1] + 12] = 1
            return Overcompletion(0.1, 1.0, 0.0, 0.0, {}, heat)

    settings = {"path": "auto", "garment": "", "whole_tau": 0.006, "title": "Box"}
    job = Job("cutout", STAGES["cutout"].version, {"photo": "x"}, settings)
    lacking = CutoutModels(models.salient, models.hqsam, Lacking())  # type: ignore[arg-type]
    (made,) = STAGES["cutout"].compute([Work(job, {"photo": png_bytes(Image.fromarray(image))})], lacking, LIMITED)
    assert isinstance(made, Made)
    (verdict,) = [verdict for verdict in made.verdicts if verdict.check == "whole"]
    assert not verdict.passed
    assert (verdict.check, verdict.score, verdict.threshold) == ("whole", 0.1, 0.006)
    assert verdict.reason == "the cutout seems to lack a part: 10.0% of its area beside it"
    (where,) = [output for output in made.outputs if output.role == verdict.picture]
    shown = np.asarray(Image.open(io.BytesIO(where.data)).convert("RGB")).astype(int)
    red = shown[..., 0] - shown[..., 1] > 60
    assert red[rows[-1] + 8].mean() > 0.9
    assert not red[: rows[-1]].any()


def test_skin_beside_a_garment_is_who_wears_it_and_skin_all_around_is_a_floor() -> None:
    coat, arm = np.zeros((200, 200), np.float32), np.zeros((200, 200), bool)
    coat[60:160, 60:140] = 1
    assert not _touches_skin(coat, arm)
    arm[60:150, 142:150] = True
    assert _touches_skin(coat, arm)
    assert not _touches_skin(coat, np.roll(arm, 40, axis=1))  # somebody else's
    assert not _touches_skin(coat, coat < 0.5)


def test_a_speck_is_rejected_before_anyone_asks_whether_it_is_whole(
    models: CutoutModels, monkeypatch: pytest.MonkeyPatch
) -> None:
    image, _ = block_on(white())
    speck = np.zeros(image.shape[:2], np.float32)
    speck[200, 200] = 1
    monkeypatch.setattr("pipelines.stages.cutout._find", lambda *_: _Found(speck, "hqsam", 1.0, speck))
    with pytest.raises(Rejected, match="a shadow or a speck"):
        cutout(Photo(image, None), models)


def test_a_product_without_a_photo_is_rejected_with_the_catalogues_reason(models: CutoutModels) -> None:
    recipe = SimpleNamespace(path="auto", attempt="", max_megapixels=50, profile=load_profile("mini"))
    shot = Shot(Product("A1", 1, "Mug", "", None, "row 1: images/a.jpg is not there"), "oak", "square")
    job = STAGES["cutout"].job(shot, {}, recipe, 0)
    assert job.inputs == {}
    (refused,) = STAGES["cutout"].compute([Work(job, {})], models, recipe)
    assert isinstance(refused, Rejected)
    assert refused.reason == "row 1: images/a.jpg is not there"


@pytest.mark.slow
@pytest.mark.skipif(not CATALOG.exists(), reason="../shared/catalog is not here")
@pytest.mark.parametrize("path", ["auto", "hqsam"])
def test_cutouts_of_real_products_match_their_masks(models: CutoutModels, tmp_path: Path, path: str) -> None:
    catalogue = _excerpt(tmp_path, ["saleor-002", "solidus-013", "solidus-016"])
    found = measure_cutouts(catalogue, path, None, models)
    assert found.n == 3
    assert found.mean_iou > 0.95
    assert all(product.boundary_f > 0.5 for product in found.products)


@pytest.mark.slow
def test_a_product_that_a_crop_cuts_through_keeps_its_foot(models: CutoutModels) -> None:
    photo = read_photo((SAMPLE / "images" / "smp-009-cactus-in-black-pot.jpg").read_bytes())
    with Image.open(SAMPLE / "masks" / "smp-009.png") as mask:
        truth = np.asarray(mask.convert("L").resize(photo.size)) >= 128
    assert iou(cutout(photo, models).matte > 0.5, truth) > 0.95  # 0.56 where the pot is missing


@pytest.mark.slow
@pytest.mark.skipif(not CATALOG.exists(), reason="../shared/catalog is not here")
def test_a_garment_is_cut_from_the_person_who_wears_it(models: CutoutModels) -> None:
    photo = read_photo((CATALOG / "images" / "magento2-027.jpg").read_bytes())
    result = cutout(photo, models, garment="upper")
    assert result.path == "hqsam"
    assert result.certain is not None
    assert result.certain.reason.startswith("worn by a person")
    red = (photo.rgb[..., 0] > 140) & (photo.rgb[..., 1] < 110)
    shirt = result.matte > 0.5
    assert red[shirt].mean() > 0.8
    assert not shirt[:300].any()  # the head


@pytest.mark.slow
@pytest.mark.skipif(not CATALOG.exists(), reason="../shared/catalog is not here")
def test_a_product_on_a_sheet_that_fills_the_photo_is_cut_from_the_sheet(models: CutoutModels, tmp_path: Path) -> None:
    sheet = tmp_path / "sheet"
    sheet.mkdir()
    (sheet / "page.jpg").symlink_to((CATALOG / "scenes" / "codec-co-01242.jpg").resolve())
    catalogue = _excerpt(tmp_path, ["saleor-009"])
    (found,) = measure_cutouts(catalogue, "auto", sheet, models).products
    assert found.iou > 0.9


def _excerpt(folder: Path, skus: list[str]) -> Path:
    """A catalogue of some rows; its pictures are linked into `folder`."""
    with (CATALOG / "catalog.csv").open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["id"] in skus]
    for name in ("images", "masks"):
        (folder / name).symlink_to((CATALOG / name).resolve())
    with (folder / "catalog.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)
    return folder / "catalog.csv"


def bear() -> np.ndarray:
    """The sample's teddy bear, `(h, w, 4)` uint8."""
    photo = np.asarray(Image.open(SAMPLE / "images" / "smp-005-burlap-teddy-bear.jpg").convert("RGB"))
    mask = np.asarray(Image.open(SAMPLE / "masks" / "smp-005.png").convert("L").resize(photo.shape[1::-1]))
    rows, columns = np.nonzero(mask > 200)
    return np.dstack([photo, mask])[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]


def test_a_hard_shadow_that_colour_takes_for_product_is_removed(models: CutoutModels) -> None:
    picture, truth = hard_shadow(bear(), np.random.default_rng(9))
    studio = find_studio(picture)
    assert studio is not None
    assert iou(cut_studio(picture, studio, models.salient.segment(picture)), truth) < 0.9
    result = cutout(Photo(picture, None), models)
    assert result.path == "studio"
    assert iou(result.matte > 0.5, truth) > 0.95
    assert result.certain is not None
    assert not result.certain.reason


def test_a_hard_shadow_that_is_not_removed_whole_is_held(models: CutoutModels) -> None:
    picture, truth = hard_shadow(bear(), np.random.default_rng(6))  # a piece lies between an arm and a leg
    result = cutout(Photo(picture, None), models)
    assert iou(result.matte > 0.5, truth) < 0.9
    assert result.certain is not None
    assert "may be a shadow or the floor" in result.certain.reason
