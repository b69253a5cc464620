"""Channels: what is bundled, a shop's own, and what a wrong file is told."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipelines.contracts import Artifact, Job, Product, Shot, State, Step
from pipelines.errors import UsageError
from pipelines.models.profile import load_profile
from pipelines.scenes import Scene, list_scenes, load_scene
from pipelines.scenes.channels import FOLDER, channel_files, check_channel, list_channels, load_channel
from pipelines.settings import get_settings
from pipelines.stages.keys import publish_job
from pipelines.workflow import Recipe

BUNDLED = [
    "amazon-main", "amazon-secondary", "google-merchant", "shopify", "social-landscape", "social-portrait",
    "social-square",
]  # fmt: skip


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The folder that PACKSHOT_CHANNELS_DIR names."""
    monkeypatch.setenv("PACKSHOT_CHANNELS_DIR", str(tmp_path))
    get_settings.cache_clear()
    yield tmp_path
    get_settings.cache_clear()


def written(folder: Path, text: str, name: str = "ours") -> Path:
    file = folder / f"{name}.yaml"
    file.write_text(f"name: {name}\n{text}\n", "utf-8")
    return file


def test_the_bundled_channels_are_there_and_every_bundled_scene_fills_them() -> None:
    assert [channel.name for channel in list_channels()] == BUNDLED
    for scene in list_scenes():
        for name in BUNDLED:
            assert load_scene(scene.name, channel=name).channel == load_channel(name)


def test_channels_of_the_shops_folder_join_the_bundled_ones_and_replace_them_by_name(own: Path) -> None:
    written(own, "width: 640\nheight: 640\nformat: avif")
    written(own, "width: 3000\nheight: 3000", "shopify")
    assert list(channel_files()) == sorted([*BUNDLED, "ours"])
    assert load_channel("ours").format == "avif"
    assert load_channel("shopify").width == 3000
    assert load_scene("painted-sage", channel="ours").channel.width == 640


def test_a_channels_file_may_end_in_yml(own: Path) -> None:
    written(own, "width: 640\nheight: 640").rename(own / "ours.yml")
    assert load_channel("ours").width == 640


def test_a_form_offers_the_shops_channels(own: Path) -> None:
    from operators.policy import channels_param

    written(own, "width: 640\nheight: 640")
    assert "ours" in channels_param().schema["items"]["enum"]
    assert channels_param().resolve() is None


def test_a_scene_may_name_a_channel() -> None:
    scene = load_scene("painted-sage").model_dump() | {"channel": "social-square"}
    assert Scene.model_validate(scene).channel == load_channel("social-square")
    with pytest.raises(ValueError, match="no channel 'tv': there are amazon-main"):
        Scene.model_validate(scene | {"channel": "tv"})


def test_a_scenes_own_channel_is_not_taken_for_one_with_other_rules() -> None:
    scene = load_scene("pure-white").model_dump()
    own = {"name": "amazon-main", "width": 1000, "height": 1000}
    with pytest.raises(ValueError, match="amazon-main is a channel with other rules: write `channel: amazon-main`"):
        Scene.model_validate(scene | {"channel": own})
    same = load_channel("amazon-main").model_dump()
    assert Scene.model_validate(scene | {"channel": same}).channel == load_channel("amazon-main")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("widht: 640", "widht: there is no such key here, perhaps width"),
        ("format: gif", "format: Input should be"),
        ("width: 400\nheight: 400", "below the channel's own min_width"),
        ("width: 6000\nheight: 600\nmax_side: 5000", "6000×600 px is above the channel's own max_side, 5000 px"),
        ("max_megapixels: 1", "above the channel's own max_megapixels, 1"),
        ("min_product_share: 0.85", "product_share must be min_product_share \\(0.85\\) or more"),
        ("product_share: 0.9\nmargin: 0.1", "a product_share of 0.9 leaves no margin of 0.1"),
        ('provenance: {alt_text: "{colour}"}', "{colour} is not one of {title}"),
        ("width: 017", "readable YAML"),
        ("background: green", "background: Input should be"),
    ],
)
def test_a_wrong_file_is_told_field_and_remedy(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        check_channel(written(tmp_path, text))


def test_a_backdrop_that_is_too_small_for_a_channel_is_refused(own: Path) -> None:
    written(own, "width: 4000\nheight: 4000")
    with pytest.raises(UsageError, match=r"scene oak-window for channel ours: .*is 2048×2048 px, which is too small"):
        load_scene("oak-window", channel="ours")
    with pytest.raises(UsageError, match="no channel 'tv'"):
        load_scene("oak-window", channel="tv")


def test_a_scenes_own_channel_keeps_the_keys_that_its_steps_had() -> None:
    scene = load_scene("painted-sage")
    final = Artifact("f" * 64, "final", "image/png", 1)
    upscaled = Job("upscale", 3, {"cutout": "c" * 64}, {"placement": {}})
    shot = Shot(Product("CUP-1", 2, "Cup", "Kitchen", "a" * 64), scene.name, scene.channel.name)
    steps = {"upscale": Step(upscaled.key, upscaled, State.DONE, (final,))}
    job = publish_job(shot, steps, Recipe(load_profile("mini", None), scene), 0)
    iptc = "http://cv.iptc.org/newscodes/digitalsourcetype/compositeWithTrainedAlgorithmicMedia"
    assert job == Job("publish", 1, {"final": "f" * 64}, {"format": "jpeg", "quality": 92, "digital_source_type": iptc})
    assert "exact" not in scene.sampler_settings()["placement"]
    assert "shadow" not in load_scene("oak-window").backdrop.pictures[0].drawing


def test_the_package_has_the_files() -> None:
    assert {path.stem for path in FOLDER.glob("*.yaml")} == set(BUNDLED)
