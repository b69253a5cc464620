"""A shop's own scenes: a folder beside the bundled ones, and a scene made of a picture."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from pipelines.cli.main import app
from pipelines.errors import Rejected, UsageError
from pipelines.scenes import FOLDER, check_scene, list_scenes, load_scene, picture_of, scene_names
from pipelines.scenes.new import NewScene, write_scene
from pipelines.settings import ROOT, get_settings
from pipelines.vision.backdrops import BackdropSettings, lay_backdrop


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The folder that PACKSHOT_SCENES_DIR names."""
    folder = tmp_path / "sets"
    folder.mkdir()
    monkeypatch.setenv("PACKSHOT_SCENES_DIR", str(folder))
    get_settings.cache_clear()
    yield folder
    get_settings.cache_clear()


def picture(folder: Path, name: str = "loft.jpg", size: tuple[int, int] = (1200, 1100)) -> Path:
    """A wall above a floor, with grain."""
    grain = np.random.default_rng(0).normal(0, 6, (size[1], size[0], 1))
    rows = np.arange(size[1])[:, None, None] / size[1]
    pixels = np.where(rows < 0.6, [205.0, 200, 190], [150.0, 120, 90]) + grain
    Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(folder / name)
    return folder / name


def test_scenes_of_the_shops_folder_join_the_bundled_ones(own: Path) -> None:
    bundled = scene_names(FOLDER)
    write_scene(NewScene("loft", picture(own), "own photograph"))
    assert scene_names() == sorted([*bundled, "loft"])
    assert load_scene("loft").folder == own
    assert {scene.name for scene in list_scenes()} == {*bundled, "loft"}


def test_a_scene_of_the_shop_replaces_a_bundled_one_of_its_name(own: Path) -> None:
    write_scene(NewScene("studio-sage", picture(own), "own photograph", title="Our sage"))
    assert load_scene("studio-sage").title == "Our sage"
    assert scene_names() == scene_names(FOLDER)


def test_a_form_offers_the_shops_scenes(own: Path) -> None:
    from operators.policy import scene_param

    write_scene(NewScene("loft", picture(own), "own photograph"))
    assert "loft" in scene_param().schema["enum"]


def test_names_are_listed_without_reading_a_file(own: Path) -> None:
    (own / "broken.yaml").write_text("name: [", "utf-8")
    assert "broken" in scene_names()


def test_a_folder_that_is_not_there_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PACKSHOT_SCENES_DIR", str(tmp_path / "none"))
    get_settings.cache_clear()
    with pytest.raises(UsageError, match=r"PACKSHOT_SCENES_DIR: .*none is not a folder"):
        scene_names()
    get_settings.cache_clear()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"licence": " "}, 'loft.jpg: say under which licence it may be used, such as --licence "own photograph"'),
        (
            {"width": 2048, "height": 2048},
            r"loft\.jpg is 1200×1100 px, which is too small: channel web needs 2048×2048",
        ),
        ({"ground_line": 1.2}, r"loft\.jpg: the ground line 1\.2 is out of the frame"),
        ({"name": "Loft!"}, "'Loft!' is no name: use a-z, 0-9"),
        ({"name": "lofts/one"}, "'lofts/one' is no name"),
        ({"prompt": "a {thing}"}, r"prompt: .*\{thing\} is not one of"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_is_wrong_with_a_new_scene_is_one_sentence_and_leaves_no_file(
    tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    asked = {"name": "loft", "picture": picture(tmp_path), "licence": "own photograph", **changes}
    with pytest.raises(UsageError, match=message) as caught:
        write_scene(NewScene(**asked))
    assert "\n" not in str(caught.value)
    assert list(tmp_path.glob("*.yaml")) == []


def test_a_phones_picture_is_measured_upright(tmp_path: Path) -> None:
    upright = Image.new("RGB", (600, 1400), "white")
    exif = Image.Exif()
    exif[0x0112] = 6
    upright.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "loft.jpg", exif=exif)
    write_scene(NewScene("loft", tmp_path / "loft.jpg", "own photograph", width=600, height=1400))
    (tmp_path / "loft.yaml").unlink()
    with pytest.raises(UsageError, match="600×1400 px, which is too small"):
        write_scene(NewScene("loft", tmp_path / "loft.jpg", "own photograph", width=1400, height=600))


@pytest.mark.parametrize("name", ["IMG_1234.JPG", "my loft.jpeg", "küche.webp"])
def test_a_picture_keeps_the_name_that_a_camera_or_a_person_gave_it(tmp_path: Path, name: str) -> None:
    Image.new("RGB", (1200, 1100), "white").save(tmp_path / name)
    scene = write_scene(NewScene("loft", tmp_path / name, "own photograph"))
    assert scene.backdrop is not None
    assert scene.backdrop.pictures[0].media_type in ("image/jpeg", "image/webp")
    assert check_scene(tmp_path / "loft.yaml") == scene


@pytest.mark.parametrize("name", ["loft.jpg", "loft.png"])
def test_a_picture_that_is_cut_short_is_named_before_a_product_is_shot(tmp_path: Path, name: str) -> None:
    path = picture(tmp_path, name)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UsageError, match=r"backdrop\.pictures\.0: .*cut short or broken .*: save it again"):
        write_scene(NewScene("loft", path, "own photograph"))
    assert list(tmp_path.glob("*.yaml")) == []
    path.write_bytes(whole)
    scene = write_scene(NewScene("loft", path, "own photograph"))
    path.write_bytes(whole[: len(whole) // 2])
    done = CliRunner().invoke(app, ["scenes", "check", str(tmp_path / "loft.yaml")])
    assert "cut short or broken" in str(done.exception)
    assert scene.backdrop is not None
    drawing = scene.backdrop.pictures[0].drawing
    settings = BackdropSettings.from_parameters({"mode": "adjust", "wanted_line": 0.8, "foot": (0, 1), **drawing})
    with pytest.raises(Rejected, match="the scene's backdrop cannot be read: the picture is cut short"):
        lay_backdrop(path.read_bytes(), (64, 64), settings)


@pytest.mark.parametrize("photo", ["catalog.csv", "none.jpg", "broken.jpg"])
def test_a_command_that_ends_without_a_preview_leaves_no_scene(tmp_path: Path, photo: str) -> None:
    (tmp_path / "catalog.csv").write_text("id,title,image_link\n1,Mug,i.jpg\n2,Cup,i.jpg\n")
    (tmp_path / "broken.jpg").write_bytes(b"no photo")
    asked = ["--from", str(picture(tmp_path)), "--licence", "own photograph", "--photo", str(tmp_path / photo)]
    done = CliRunner().invoke(app, ["scenes", "new", "loft", *asked])
    assert isinstance(done.exception, UsageError)
    assert "such photo: give one product photo" in str(done.exception) or photo == "broken.jpg"
    assert list(tmp_path.glob("*.yaml")) == []


def test_a_picture_that_is_no_picture_and_a_scene_that_is_there_are_refused(tmp_path: Path) -> None:
    (tmp_path / "loft.jpg").write_bytes(b"no picture")
    with pytest.raises(UsageError, match="not a JPEG, PNG or WebP picture"):
        write_scene(NewScene("loft", tmp_path / "loft.jpg", "own photograph"))
    write_scene(NewScene("loft", picture(tmp_path), "own photograph"))
    with pytest.raises(UsageError, match="there already"):
        write_scene(NewScene("loft", picture(tmp_path), "own photograph"))
    with pytest.raises(UsageError, match="no such picture"):
        write_scene(NewScene("other", tmp_path / "none.jpg", "own photograph"))


@pytest.mark.parametrize(
    ("picture_changes", "message"),
    [
        ({"licence": ""}, "licence"),
        ({"file": "../secret.png"}, r"file: '\.\./secret\.png' must be in the scene's folder"),
        ({"file": "/secret.png"}, "file: '/secret.png' must be in the scene's folder"),
        ({"file": "loft.tiff"}, r"file: 'loft\.tiff' must be a picture whose name ends in \.jpg"),
        ({"file": "none.jpg"}, r"backdrop\.pictures\.0: .*none\.jpg: No such file"),
        ({"ground": [[0, 0.9], [1, 0.9], [1, 1], [0, 1]]}, r"ground_line 0\.86 is not on the ground"),
        ({"ground": [[0, 0.5], [1, 0.9]]}, "a polygon has at least 3 corners"),
        ({"ground": [[0, 0.5], [1.4, 0.5], [0.5, 1]]}, "ground"),
        ({"light_from": "below"}, "light_from: .*left"),
        ({"reflection": 2}, "reflection"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_wrong_backdrop_is_named_in_one_line(tmp_path: Path, picture_changes: dict, message: str) -> None:
    import yaml

    write_scene(NewScene("loft", picture(tmp_path), "own photograph"))
    document = yaml.safe_load((tmp_path / "loft.yaml").read_text("utf-8"))
    document["backdrop"]["pictures"][0] |= picture_changes
    (tmp_path / "loft.yaml").write_text(yaml.safe_dump(document), "utf-8")
    with pytest.raises(UsageError, match=message) as caught:
        check_scene(tmp_path / "loft.yaml")
    assert "\n" not in str(caught.value)


def test_the_light_in_a_prompt_needs_a_backdrop(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("name: mine\ntitle: Mine\nprompt: light from the {light}\n", "utf-8")
    with pytest.raises(UsageError, match="there is no backdrop"):
        check_scene(tmp_path / "mine.yaml")


@pytest.mark.slow
def test_a_scene_of_a_shops_own_picture_runs_end_to_end(own: Path, tmp_path: Path) -> None:
    """`scenes new` with its preview, `shoot` in that scene, and `measure scenes` of what came of it."""
    photo = ROOT / "pipelines/sample/images/smp-016-whole-milk-carton-1-l.jpg"
    runner = CliRunner()
    given = ["--licence", "own photograph", "--light-from", "left", "--width", "512", "--height", "512"]
    made = runner.invoke(
        app, ["scenes", "new", "loft", "--from", str(picture(own)), *given, "--photo", str(photo), "--json"]
    )
    assert made.exit_code == 0, made.output
    scene = load_scene("loft")
    assert json.loads(made.stdout)["picture"] == str(picture_of(scene))
    assert Image.open(picture_of(scene)).size == (512, 512)

    out = tmp_path / "shots"
    done = runner.invoke(app, ["shoot", str(photo), "--scene", "loft", "--out", str(out), "--json"])
    (shot,) = json.loads(done.stdout)["shots"]
    assert shot["state"] == "published", shot["reason"]
    image = np.asarray(Image.open(shot["picture"]).convert("RGB"), float)
    backdrop = np.asarray(Image.open(own / "loft.jpg").convert("RGB"), float)
    assert np.abs(image[:60].mean((0, 1)) - backdrop[:130].mean((0, 1))).max() < 3  # the wall is the picture's

    measured = json.loads(runner.invoke(app, ["measure", "scenes", str(out), "--json"]).stdout)
    assert measured["n"] == 1
    assert measured["sharpness_ratio"]["value"] > 0.95
    assert measured["contact_shadow"]["value"] == 1
    assert measured["shadow_side"]["value"] == 1
