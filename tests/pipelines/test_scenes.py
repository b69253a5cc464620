from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from pipelines.errors import UsageError
from pipelines.scenes import (
    FOLDER,
    PLACEHOLDERS,
    Scene,
    check_scene,
    list_scenes,
    load_scene,
    picture_of,
    scene_names,
    scene_titles,
)
from pipelines.training.composer import COLOURS, LIGHTS, MATERIALS
from pipelines.vision.placement import place

SCENES = list_scenes()
EACH = pytest.mark.parametrize("scene", SCENES, ids=lambda scene: scene.name)
MINIMAL = {"name": "mine", "title": "Mine", "prompt": "a photo of {product} on a white floor"}


def written(folder: Path, **changes: object) -> Path:
    path = folder / "mine.yaml"
    path.write_text(yaml.safe_dump({**MINIMAL, **changes}), "utf-8")
    return path


def test_there_are_scenes_to_choose_from() -> None:
    assert len(SCENES) >= 5
    assert len({scene.title for scene in SCENES}) == len(SCENES)
    assert scene_names() == [scene.name for scene in SCENES]
    assert scene_titles() == {scene.name: scene.title for scene in SCENES}


def test_a_scene_that_is_being_edited_is_shown_by_its_name(tmp_path: Path) -> None:
    written(tmp_path)
    (tmp_path / "broken.yaml").write_text("title: [", "utf-8")
    (tmp_path / "empty.yaml").write_text("", "utf-8")
    assert scene_titles(tmp_path) == {"broken": "broken", "empty": "empty", "mine": "Mine"}


def test_a_file_that_ends_in_yml_is_a_scene_too(tmp_path: Path) -> None:
    written(tmp_path).rename(tmp_path / "mine.yml")
    assert [scene.title for scene in list_scenes(tmp_path)] == ["Mine"]
    assert load_scene("mine", tmp_path).name == "mine"
    written(tmp_path, title="Another")
    with pytest.raises(UsageError, match=r"mine\.yaml and mine\.yml have one name: remove one of them"):
        load_scene("mine", tmp_path)


def test_one_scene_has_all_that_the_paper_combines() -> None:
    """BrushNet, a ControlNet under mask guidance, and the scene's own LoRA."""
    full = [s for s in SCENES if s.method == "brushnet" and s.lora and any(c.mask_guidance for c in s.controls)]
    assert [scene.name for scene in full] == ["oak-window"]


@EACH
def test_the_prompt_speaks_the_words_that_the_bundled_models_were_taught(scene: Scene) -> None:
    surfaces = "|".join([*COLOURS, *MATERIALS])
    taught = (
        rf"a photo of {{product}} (standing on an? ({'|'.join(COLOURS)}) podium )?on an? ({surfaces}) floor "
        rf"against an? ({surfaces}) wall, soft light from the ({'|'.join(LIGHTS)}|{{light}})"
        rf"(, an? ({'|'.join(COLOURS)}) (ball beside|arch behind) it|, (window light|plant shadow) on the wall)?"
    )
    assert re.fullmatch(taught, scene.prompt), scene.prompt


@EACH
def test_a_prompt_is_filled_from_a_description(scene: Scene) -> None:
    prompt = scene.fill_prompt({"subject": "a brass table lamp", "tags": [{"tag": "lamp"}], "colour": "yellow"})
    assert "a brass table lamp" in prompt
    assert not set("{}") & set(prompt)


def test_a_product_that_is_hardly_described_leaves_no_holes_in_the_prompt(tmp_path: Path) -> None:
    scene = check_scene(written(tmp_path, prompt="a photo of {product}, {tags}, {colour} on a white floor, {category}"))
    assert scene.fill_prompt({"subject": "a cup"}).endswith("floor")


@EACH
def test_the_image_is_at_least_what_its_channel_asks_for(scene: Scene) -> None:
    assert scene.channel.width >= scene.channel.min_width
    assert scene.channel.height >= scene.channel.min_height


@EACH
@pytest.mark.parametrize("size", [(300, 900), (900, 300), (500, 500)], ids=["tall", "wide", "square"])
def test_every_product_fits_the_canvas(scene: Scene, size: tuple[int, int]) -> None:
    import numpy as np

    matte = np.full((size[1], size[0]), 255, np.uint8)
    canvas = (scene.channel.width, scene.channel.height)
    placed = place(matte, canvas, scene.placement.scale, scene.placement.anchor, scene.placement.ground_line)
    assert 0 <= placed.left <= placed.left + placed.width <= canvas[0]
    assert 0 <= placed.top <= placed.top + placed.height <= canvas[1]


def test_a_change_of_any_field_is_another_version() -> None:
    scene = load_scene("studio-sage")
    assert scene.digest == load_scene("studio-sage").digest
    assert scene.digest != scene.model_copy(update={"steps": scene.steps + 1}).digest


def test_what_saves_time_is_a_setting_and_where_it_is_off_a_step_keeps_its_key() -> None:
    plain = Scene.model_validate(MINIMAL)
    saving = {"guidance_start": 0.25, "guidance_end": 0.75, "cache_interval": 2}
    assert not set(saving) & set(plain.sampler_settings())
    settings = Scene.model_validate({**MINIMAL, **saving}).sampler_settings()
    assert settings == plain.sampler_settings() | saving


def test_an_unknown_scene_is_answered_with_those_there_are() -> None:
    with pytest.raises(UsageError, match=r"no scene 'sage-studio': there are .*studio-sage"):
        load_scene("sage-studio")


def test_a_scene_name_cannot_leave_the_folder() -> None:
    with pytest.raises(UsageError, match="no scene"):
        load_scene("../scenes/studio-sage")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"promt": "typo"}, r"mine\.yaml: promt: there is no such key here, perhaps prompt"),
        ({"scale": 0.5}, "scale: there is no such key here$"),
        (
            {"controls": [{"kind": "canny", "mask_guidence": None}]},
            r"controls\.0\.mask_guidence: there is no such key here, perhaps mask_guidance",
        ),
        ({"prompt": "a photo of {produkt}"}, r"prompt: \{produkt\} is not one of \{product\}"),
        ({"prompt": "a photo of {product!r}"}, "prompt: "),
        ({"prompt": "a photo of {product"}, "prompt: "),
        ({"method": "magic"}, "method: .*brushnet"),
        ({"steps": 0}, "steps: .*greater than or equal to 1"),
        ({"guidance_scale": "much"}, "guidance_scale: "),
        ({"guidance_start": 0.7, "guidance_end": 0.2}, r"guidance_start \(0\.7\) must be before guidance_end \(0\.2\)"),
        ({"cache_interval": 0}, "cache_interval: .*greater than or equal to 1"),
        ({"placement": {"scale": 1.4}}, r"placement\.scale: .*0\.98"),
        ({"placement": {"anchor": "ceiling"}}, r"placement\.anchor: .*ground"),
        ({"controls": [{"kind": "sketch"}]}, r"controls\.0\.kind: .*'canny', 'lineart' or 'openpose'"),
        ({"controls": [{"kind": "tile"}]}, r"controls\.0\.kind: .*black means 'paint black here'.*choose canny"),
        ({"controls": [{"kind": "depth"}]}, r"controls\.0\.kind: .*black means 'far away'.*choose canny"),
        ({"controls": [{"start": 0.7, "end": 0.2}]}, r"controls\.0.*end"),
        ({"channel": {"width": 400, "min_width": 500}}, "channel.*min_width"),
        ({"lora": {"name": "../elsewhere"}}, r"lora\.name: "),
        ({"checks": {"overcompletion": -1}}, r"checks\.overcompletion: "),
        ({"picture": "../../secret.png"}, "picture: "),
        ({"title": ""}, "title: "),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_wrong_field_is_named_in_one_line(changes: dict[str, object], message: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        check_scene(written(tmp_path, **changes))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text",
    ["", "- a\n- list\n", "name: [", "\x00\x01", "title: !!python/object/apply:os.getcwd []", f"a: {'[' * 3000}"],
)
def test_a_file_that_is_no_scene_is_refused_in_one_line(text: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text, "utf-8")
    with pytest.raises(UsageError, match=r"mine\.yaml: ") as caught:
        check_scene(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("title: Yours", "key 'title' occurs twice"),
        ("steps: 020", "020 would be read as 16"),
        ("steps: 0_20", "0_20 would be read as 16"),
        ("guidance_scale: 17:04", "17:04 would be read as 1024"),
        ("description: no", "no would be read as False"),
        ("description: 2026-05-01", r"2026-05-01 would be read as .*date\(2026, 5, 1\)"),
        ("placement: {scale: 0.5, scale: 0.6}", "key 'scale' occurs twice"),
        ("{a: 1}: 2", "mine.yaml: "),
    ],
)
def test_what_yaml_would_read_otherwise_than_it_looks_is_refused(line: str, said: str, tmp_path: Path) -> None:
    path = written(tmp_path)
    path.write_text(f"{path.read_text()}{line}\n")
    with pytest.raises(UsageError, match=said) as caught:
        check_scene(path)
    assert "\n" not in str(caught.value)


def test_what_yaml_reads_as_it_looks_is_accepted(tmp_path: Path) -> None:
    path = written(tmp_path)
    path.write_text(f"{path.read_text()}steps: 20\nguidance_scale: 2.50\nstrength: .5\ndescription: 'no'\nlora: ~\n")
    scene = check_scene(path)
    assert (scene.steps, scene.guidance_scale, scene.strength, scene.description) == (20, 2.5, 0.5, "no")


def test_a_file_under_another_name_than_its_scene_is_refused(tmp_path: Path) -> None:
    written(tmp_path).rename(tmp_path / "yours.yaml")
    with pytest.raises(UsageError, match="name: 'mine' must be the file's name, 'yours'"):
        check_scene(tmp_path / "yours.yaml")


def test_a_file_that_is_not_there_is_refused_by_its_path(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"none\.yaml: No such file or directory: give a scene's YAML file"):
        check_scene(tmp_path / "none.yaml")


def test_scenes_stand_before_backdrops_and_one_is_painted_from_noise() -> None:
    assert [scene.name for scene in SCENES if scene.backdrop is None] == ["painted-sage"]


@EACH
def test_backdrops_say_what_was_rendered(scene: Scene) -> None:
    """render.py writes backdrops.yaml; the scenes repeat what a product must know of each picture."""
    rendered = yaml.safe_load((FOLDER / "backdrops" / "backdrops.yaml").read_text("utf-8"))
    for picture in scene.backdrop.pictures if scene.backdrop else ():
        if picture.shadow == 0:  # one colour: nothing was rendered
            continue
        entry = rendered[picture.file.removeprefix("backdrops/")]
        assert entry["scene"] == scene.name
        for name in ("licence", "ground_line", "light_from", "light_elevation"):
            assert getattr(picture, name) == entry[name]
        assert picture.reflection == entry["gloss"]
        assert len(picture.ground) == len(entry["ground"])
        for said, seen in zip(picture.ground, entry["ground"], strict=True):
            assert said == pytest.approx(seen, abs=1e-3)


@EACH
def test_a_picture_that_is_named_is_there(scene: Scene) -> None:
    assert not scene.picture or picture_of(scene) == FOLDER / scene.picture


def test_every_placeholder_is_filled() -> None:
    scene = Scene(name="all", title="All", prompt=" ".join(f"{{{name}}}" for name in PLACEHOLDERS))
    filled = scene.fill_prompt({"subject": "s", "tags": [{"tag": "t"}], "colour": "c", "category": "k"})
    assert filled == "s t c k"
