from __future__ import annotations

import dataclasses
import io
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import BlipProcessor, CLIPImageProcessor

from pipelines.contracts import Artifact, Job, Product, Shot, State, Step
from pipelines.models.profile import ModelPart, load_profile
from pipelines.stages import describe
from pipelines.stages.describe import choose_category, choose_tags, product_view, subject
from pipelines.stages.keys import STAGES
from pipelines.training import blip, clip
from pipelines.training.categories import vocabulary
from pipelines.vision.captioner import Caption
from pipelines.vision.tagger import Tag
from pipelines.workflow import Work

WORDS = vocabulary()


def save_untrained_models(folder: Path) -> None:
    """BLIP and CLIP of the bundled sizes with random weights, as their trainers save them."""
    torch.manual_seed(0)
    tokenizer = blip.build_tokenizer()
    blip.build(tokenizer).half().save_pretrained(folder / "blip")
    BlipProcessor(blip.image_processor(), tokenizer).save_pretrained(folder / "blip")
    words = clip.build_tokenizer([word.sentence for word in WORDS.words])
    clip.build(words).half().save_pretrained(folder / "clip")
    words.save_pretrained(folder / "clip")
    CLIPImageProcessor(
        size={"shortest_edge": 96}, crop_size={"height": 96, "width": 96}, image_mean=[0.5] * 3, image_std=[0.5] * 3
    ).save_pretrained(folder / "clip")


def pinned(part: ModelPart, path: Path) -> ModelPart:
    moved = dataclasses.replace(part, path=path, locked=None)
    return dataclasses.replace(moved, ref=dataclasses.replace(part.ref, sha256=moved.digest()))


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    folder = tmp_path_factory.mktemp("models")
    save_untrained_models(folder)
    profile = load_profile("mini")
    parts = tuple(pinned(profile.part(name), folder / name) for name in ("blip", "clip"))
    return SimpleNamespace(
        profile=dataclasses.replace(profile, parts=parts), device="cpu", attempt="", max_megapixels=50, reader=None
    )


def png(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG")
    return buffer.getvalue()


def red_square() -> dict[str, bytes]:
    photo = np.full((120, 90, 3), 255, np.uint8)
    photo[30:90, 20:70] = (190, 30, 40)
    alpha = np.zeros((120, 90, 1), np.uint8)
    alpha[30:90, 20:70] = 255
    return {"photo": png(photo), "cutout": png(np.dstack([photo, alpha]))}


def shot(title: str, category: str = "") -> Shot:
    return Shot(Product("sku-1", 1, title, category, "f" * 64), "studio", "web")


def upstream() -> dict[str, Step]:
    job = Job("cutout", 1, {}, {})
    return {"cutout": Step(job.key, job, State.DONE, (Artifact("a" * 64, "cutout", "image/png", 1),))}


def test_a_batch_is_described_the_same_every_time(recipe: SimpleNamespace) -> None:
    jobs = [STAGES["describe"].job(shot(title), upstream(), recipe, 0) for title in ("Mug", "Flim Flam 3000", "")]
    works = [Work(job, red_square()) for job in jobs]
    models = describe.load(recipe)
    first, again = describe.compute(works, models, recipe), describe.compute(works, models, recipe)
    assert [made.facts for made in first] == [made.facts for made in again]
    facts = [made.facts for made in first]
    assert [fact["subject"] for fact in facts] == ["red mug", "flim flam 3000", "product"]
    assert {fact["colour"] for fact in facts} == {"red"}
    assert all(0 <= fact["confidence"] <= 1 and isinstance(fact["caption"], str) for fact in facts)
    assert not any(made.outputs for made in first)


def test_title_category_and_vocabulary_are_in_the_key(recipe: SimpleNamespace) -> None:
    def key(**changed: object) -> str:
        changed_recipe = SimpleNamespace(**{**vars(recipe), **changed})
        return STAGES["describe"].job(shot("Mug", "Kitchen"), upstream(), changed_recipe, 0).key

    other_words = dataclasses.replace(recipe.profile, vocabulary=recipe.profile.parts[0].path / "words.txt")
    other_words.vocabulary.write_text("[category] a photo of {}\nmug\n")
    less_sure = dataclasses.replace(recipe.profile, caption_confidence=0.1)
    keys = {
        key(),
        key(profile=other_words),
        key(profile=less_sure),
        key(attempt="run-2"),
        STAGES["describe"].job(shot("Cup", "Kitchen"), upstream(), recipe, 0).key,
        STAGES["describe"].job(shot("Mug", "Office"), upstream(), recipe, 0).key,
    }
    assert len(keys) == 6
    assert key() == STAGES["describe"].job(shot("Mug", "Kitchen"), upstream(), recipe, 5).key


@pytest.mark.parametrize(
    ("title", "category", "confidence", "expected"),
    [
        ("Ceramic Mug", "", 0.99, "mug"),
        ("Flim Flam", "Kitchen > Mugs", 0.99, "mug"),
        ("Flim Flam", "", 0.99, "hoodie"),
        ("Flim Flam", "", 0.3, ""),
    ],
)
def test_the_shop_is_believed_before_the_picture(title: str, category: str, confidence: float, expected: str) -> None:
    caption = Caption("a photo of a hoodie", "hoodie", confidence)
    assert choose_category(title, category, caption, 0.8, WORDS) == expected


def test_the_subject_is_the_title_where_no_category_is_known() -> None:
    assert subject("Nebula&trade; Thing", "", "", "blue") == "nebula thing"
    assert subject("", "Home > Decor", "", "") == "decor"
    assert subject("Sunny Orange", "", "orange", "orange") == "orange"
    assert subject("x", "", "hoodie", "") == "hoodie"


def test_only_tags_that_are_sure_enough_enter_the_prompt() -> None:
    ranked = [Tag("mug", "category", 0.9), Tag("denim", "material", 0.8), Tag("bowl", "category", 0.2)]
    assert [tag.tag for tag in choose_tags(ranked, "Leather thing", {"category": 0.5}, WORDS)] == ["leather", "mug"]
    named = choose_tags(ranked, "Kitchen > Mugs Denim Mug", {"category": 0.1}, WORDS)
    assert [(tag.tag, tag.score) for tag in named] == [("mug", 1.0), ("denim", 1.0), ("bowl", 0.2)]


def test_the_models_see_the_product_and_a_little_around_it() -> None:
    alpha = np.zeros((100, 200), np.uint8)
    alpha[40:60, 100:150] = 255
    assert product_view(np.zeros((100, 200, 3), np.uint8), alpha).shape == (28, 58, 3)
    assert product_view(np.zeros((100, 200, 3), np.uint8), np.zeros_like(alpha)).shape == (100, 200, 3)
