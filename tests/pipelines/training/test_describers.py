"""Trainers of CLIP, captioner and upscaler on a folder of drawings: they export what the stages load, and resume."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from pipelines.errors import UsageError
from pipelines.training import blip, clip, upscaler
from pipelines.training import data as training_data
from pipelines.training.categories import labelled, vocabulary, with_article
from pipelines.training.data import is_held_out
from pipelines.training.loop import TrainOptions
from pipelines.vision.captioner import Captioner
from pipelines.vision.upscalers import SRVGGNetCompact


@pytest.fixture
def drawings(tmp_path: Path) -> Path:
    """Twelve 'photos' of mugs and balls, two cutouts and a scene, as `index.csv` names them."""
    data = tmp_path / "data"
    rng = np.random.default_rng(0)
    rows = []

    def add(folder: str, file: str, name: str, picture: np.ndarray) -> None:
        (data / folder).mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(data / folder / file)
        rows.append((f"{folder}/{file}", name, "vendure", "CC0"))

    def drawing(ball: bool) -> np.ndarray:
        picture = np.full((150, 140, 3), rng.integers(180, 256, 3), np.uint8)
        colour = [int(c) for c in rng.integers(0, 150, 3)]
        if ball:
            cv2.circle(picture, (70, 75), 45, colour, -1)
        else:
            cv2.rectangle(picture, (35, 40), (105, 120), colour, -1)
        return picture

    for n in range(40):
        kind = ("Mug", "Ball")[n % 2]
        add("photos", f"{n}.png", f"Model {n} {kind}", drawing(kind == "Ball"))
    for n, kind in enumerate(("Mug", "Ball")):
        rgb = drawing(kind == "Ball")
        alpha = np.zeros((150, 140, 1), np.uint8)
        alpha[40:120, 35:105] = 255
        add("cutouts", f"{n}.png", f"Cut {kind} {'abcdefgh'[n]}", np.dstack([rgb, alpha]))
    for n in range(12):
        add("scenes", f"{n}.png", f"room {n}", drawing(False))
    with (data / "index.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("file", "name", "source", "licence"), *rows])
    assert any(is_held_out(name.lower()) for _, name, _, _ in rows)
    return data


def options(part: str, data: Path, steps: int) -> TrainOptions:
    folder = data.parent
    return TrainOptions(part, steps=steps, batch=4, data=data, out=folder / "out", work=folder / "work")


def test_labels_come_from_names_and_products_stay_on_one_side(drawings: Path) -> None:
    train, test = (labelled(options("blip", drawings, 1), "photos", split) for split in ("train", "test"))
    assert {one.category for one in train} == {"mug", "ball"}
    assert len(train) + len(test) == 40
    assert test


@pytest.mark.parametrize(
    ("category", "words"),
    [("hoodie", "a hoodie"), ("apple", "an apple"), ("shorts", "shorts"), ("garlic", "garlic"), ("dress", "a dress")],
)
def test_articles(category: str, words: str) -> None:
    assert with_article(category) == words


@pytest.mark.slow
def test_the_captioner_is_exported_as_transformers_loads_it(drawings: Path) -> None:
    folder = blip.train(options("blip", drawings, 2))
    [caption] = Captioner(folder, vocabulary()).caption([np.zeros((50, 40, 3), np.uint8)])
    assert 0 <= caption.confidence <= 1
    assert {"model.safetensors", "config.json", "tokenizer.json", "CARD.md"} <= {f.name for f in folder.iterdir()}
    assert not list(folder.glob("*.bin"))
    assert (folder / "model.safetensors").stat().st_size < 8e6
    assert "Held out by product" in (folder / "CARD.md").read_text()


@pytest.mark.slow
def test_clip_trains_on_without_the_tower_that_the_unet_learnt_with(drawings: Path, monkeypatch) -> None:
    with (drawings / "index.csv").open("a", newline="") as file:
        toys = [("cutouts/0.png", f"toy {n}", "fluent-emoji-3d", "MIT") for n in range(30)]
        csv.writer(file).writerows(toys)
    assert {is_held_out(name) for _, name, _, _ in toys} == {True, False}
    monkeypatch.setattr(clip, "SHOTS", 8)
    monkeypatch.setattr(training_data, "SHARD", 8)

    def trained(steps: int, resume: bool = True) -> dict[str, torch.Tensor]:
        folder = clip.train(replace(options("clip", drawings, steps), resume=resume))
        assert "own_scene_nearer" in (folder / "CARD.md").read_text()
        return load_file(folder / "model.safetensors")

    first = trained(1)
    checkpoint = drawings.parent / "work" / "clip" / "checkpoint.pt"
    with pytest.raises(UsageError, match=f"{checkpoint}: has another text tower than the exported CLIP"):
        trained(2)  # the first run's own tower moved on after what was exported, its average
    more = [trained(1, resume=False), trained(3)]
    for tensors in more:
        assert all(tensors[name].equal(value) for name, value in first.items() if name.startswith("text_model."))
        assert not tensors["visual_projection.weight"].equal(first["visual_projection.weight"])


def test_the_captioner_speaks_every_category() -> None:
    tokenizer = blip.build_tokenizer()
    words = vocabulary()
    captions = [f"a photo of {with_article(f'blue {word.tag}')}" for word in words.of_kind("category")]
    for caption, ids in zip(captions, blip.encode(tokenizer, captions), strict=True):
        assert tokenizer.unk_token_id not in ids
        spoken = tokenizer.decode(ids, skip_special_tokens=True).replace(" - ", "-")
        assert spoken == caption
        assert words.find(spoken) == words.find(caption)


@pytest.mark.slow
def test_the_upscaler_is_exported_and_goes_on(drawings: Path) -> None:
    folder = upscaler.train(options("upscaler", drawings, 2))
    first = SRVGGNetCompact.from_file(folder / "model.safetensors").state_dict()
    upscaler.train(options("upscaler", drawings, 4))
    more = SRVGGNetCompact.from_file(folder / "model.safetensors").state_dict()
    assert any(not torch.equal(first[name], more[name]) for name in first)
    assert "bicubic" in (folder / "CARD.md").read_text()


def test_shrinking_is_by_four_and_keeps_the_mean() -> None:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (64, 96, 3), np.uint8)
    small = upscaler.shrink(image)
    assert small.shape == (16, 24, 3)
    assert abs(float(small.mean()) - float(image.mean())) < 1
    assert upscaler.degrade(image, rng).shape == (16, 24, 3)
