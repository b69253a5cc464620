"""Text on the product that changed, and text that was painted into the scene, are held with what they say."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from pipelines.contracts import Job
from pipelines.errors import UsageError
from pipelines.models.profile import load_profile
from pipelines.quality.lettering import comparable, error_rate, measure_lettering, measure_text, on_canvas
from pipelines.scenes import Checks, load_scene
from pipelines.settings import Settings
from pipelines.stages import inspect
from pipelines.stages.describe import read_text
from pipelines.stages.keys import fingerprint, made_up_results
from pipelines.vision import reader as reading
from pipelines.vision.photos import png_bytes
from pipelines.vision.placement import LaidProduct, Placement, lay_product, place
from pipelines.vision.reader import TextLine, find_reader, installed_reader, load_reader
from pipelines.workflow import Recipe, Work

needs_reader = pytest.mark.skipif(installed_reader() is None, reason="rapidocr or onnxruntime is not installed")
SIDE = 640


def label(words: list[str], size: tuple[int, int] = (600, 800)) -> Image.Image:
    """A package with words printed on it."""
    image = Image.new("RGB", size, (235, 228, 210))
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(72)
    for n, word in enumerate(words):
        draw.text((50, 80 + 160 * n), word, fill=(30, 60, 90), font=font)
    return image


def shot_of(photo: Image.Image) -> tuple[np.ndarray, LaidProduct, Placement]:
    """The photo's product, all of it opaque, on a plain scene."""
    cutout = photo.convert("RGBA")
    placement = place(np.asarray(cutout.getchannel("A")), (SIDE, SIDE), 0.6, "ground", 0.9)
    product = lay_product(photo, cutout, placement)
    scene = np.random.default_rng(0).normal(150, 4, (SIDE, SIDE, 3)).clip(0, 255).astype(np.uint8)
    return product.over(scene), product, placement


def lines_of(photo: Image.Image, placement: Placement, matte: np.ndarray) -> list[TextLine]:
    """The lines as `describe` notes them and `inspect` finds them in the image."""
    noted = read_text(np.asarray(photo), np.full(photo.size[::-1], 255, np.uint8), load_reader())
    lines = [TextLine(line["text"], line["confidence"], tuple(map(tuple, line["quad"]))) for line in noted]
    return comparable(on_canvas(lines, placement), matte)


@pytest.fixture(scope="module")
def shown():
    photo = label(["ORGANIC", "Oat drink", "Vanilla"])
    image, product, placement = shot_of(photo)
    return image, product, lines_of(photo, placement, product.matte)


@needs_reader
@pytest.mark.medium
def test_text_that_only_became_smaller_passes(shown):
    image, _, lines = shown
    assert len(lines) == 3
    found = measure_text(image, lines, load_reader())
    assert (found.score, found.reason) == (0.0, "")


@needs_reader
@pytest.mark.medium
@pytest.mark.parametrize("fault", ["replaced", "smeared"])
def test_a_line_that_changed_is_held_and_named(shown, fault):
    image, _, lines = shown
    (line,) = [line for line in lines if line.text == "ORGANIC"]
    corners = np.asarray(line.quad)
    (left, top), (right, bottom) = corners.min(axis=0).astype(int), corners.max(axis=0).astype(int)
    changed = Image.fromarray(image)
    patch = changed.crop((left, top, right, bottom))
    if fault == "smeared":
        changed.paste(patch.filter(ImageFilter.BoxBlur(float(bottom - top) / 2)), (left, top))
    else:
        other, _, _ = shot_of(label(["LEMONYX", "Oat drink", "Vanilla"]))
        changed.paste(Image.fromarray(other).crop((left, top, right, bottom)), (left, top))
    found = measure_text(np.asarray(changed), lines, load_reader())
    assert found.score > Checks().text
    assert found.reason.startswith("the text 'ORGANIC' on the product ")
    assert found.where[(top + bottom) // 2, (left + right) // 2] > 0.3
    assert found.where[:, : left - 10].max() == 0


@needs_reader
@pytest.mark.medium
def test_a_word_in_the_scene_is_held_unless_the_photo_has_it(shown):
    image, product, _ = shown
    reader = load_reader()
    assert measure_lettering(image, product.matte, [], reader).score == 0
    painted = Image.fromarray(image)
    ImageDraw.Draw(painted).text((20, 30), "SALE NOW", fill=(60, 20, 20), font=ImageFont.load_default(48))
    found = measure_lettering(np.asarray(painted), product.matte, ["ORGANIC"], reader)
    assert found.score == len("SALENOW")
    assert "SALE" in found.reason
    assert found.where[:120].max() == 1
    assert found.where[200:].max() == 0
    assert measure_lettering(np.asarray(painted), product.matte, ["Sale now"], reader).score == 0


@needs_reader
@pytest.mark.medium
def test_only_lines_that_can_be_read_in_the_image_are_compared(shown):
    _, product, lines = shown
    line = lines[0]
    small = tuple((x / 8, y / 8) for x, y in line.quad)
    beside = tuple((x - 400, y) for x, y in line.quad)
    for other in (
        replace(line, confidence=0.9), replace(line, text="a1"), replace(line, quad=small), replace(line, quad=beside),
    ):  # fmt: skip
        assert comparable([other], product.matte) == []


@needs_reader
@pytest.mark.slow
def test_inspect_gives_both_verdicts_with_their_pictures(shown):
    image, _, _ = shown
    photo = label(["ORGANIC", "Oat drink", "Vanilla"])
    _, _, placement = shot_of(photo)
    painted = Image.fromarray(image)
    ImageDraw.Draw(painted).text((20, 30), "SALE NOW", fill=(60, 20, 20), font=ImageFont.load_default(48))
    noted = read_text(np.asarray(photo), np.full(photo.size[::-1], 255, np.uint8), load_reader())
    parameters = {
        "placement": placement.facts(),
        "thresholds": Checks().thresholds,
        "text": {"version": 1, "lines": noted, "limit": Checks().text, "painted": True},
    }
    inputs = {"final": painted, "photo": photo, "cutout": photo.convert("RGBA")}
    work = Work(Job("inspect", 1, {}, parameters), {role: png_bytes(picture) for role, picture in inputs.items()})
    recipe = Recipe(load_profile("mini"), load_scene("painted-sage"), reader=installed_reader())
    (made,) = inspect.compute([work], inspect.load(recipe), recipe)
    verdicts = {verdict.check: verdict for verdict in made.verdicts}
    assert verdicts["text"].passed
    assert verdicts["lettering"].reason == "the scene has text that the photo has not: 'SALE NOW'"
    assert {"text", "lettering"} <= {output.role for output in made.outputs}


@given(st.text(max_size=12), st.text(max_size=12))
def test_the_error_rate_is_a_share_and_zero_for_the_same_letters(wanted, read):
    assert 0 <= error_rate(wanted, read) <= 1
    assert error_rate(wanted, wanted) == 0


def test_case_accents_and_spaces_do_not_count_as_errors():
    assert error_rate("Crème Brûlée", "CREME BRULEE") == 0
    assert error_rate("ORGANIC", "ORGAMC") == pytest.approx(2 / 7)
    assert error_rate("ORGANIC", "") == 1


def test_a_check_that_is_asked_for_and_not_installed_stops_the_command(monkeypatch):
    monkeypatch.setattr(reading, "FILES", ("absent.onnx",))
    assert find_reader(None, Settings()) is None
    assert find_reader(False, Settings(read_text=True)) is None
    for asked, settings in ((True, Settings()), (None, Settings(read_text=True))):
        with pytest.raises(UsageError, match=r"is not installed: install packshot\[ocr\]"):
            find_reader(asked, settings)


@needs_reader
def test_the_reader_is_in_the_keys_and_only_where_text_is_read():
    off = Recipe(load_profile("mini"), load_scene("oak-window"))
    on = replace(off, reader=find_reader(True, Settings()))
    other = replace(on, reader=replace(on.reader, sha256="f" * 64))
    assert len({fingerprint(recipe) for recipe in (off, on, other)}) == 3
    assert made_up_results(off)["cutout"] == made_up_results(on)["cutout"]
