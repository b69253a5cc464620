"""The trainer of HQ-SAM's own output: features on disk, the stage's prompts, and what it changes."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from pipelines.models.profile import PROFILES
from pipelines.training import hqsam
from pipelines.training.hqsam import Encoded, decode, draw_prompt, encode
from pipelines.training.loop import TrainOptions
from pipelines.training.pitfalls import PitfallSource
from pipelines.vision.segmenters import (
    HQ_PARTS,
    MASK_SIDE,
    Encoding,
    HQSamSegmenter,
    Prompt,
    SalientSegmenter,
    build_sam,
    main_pieces,
    prompt_from,
)
from tests.pipelines.training.drawn import drawn_folder

SALIENT, HQSAM = (PROFILES / "mini" / part / "model.safetensors" for part in ("salient", "hqsam"))


@pytest.fixture(scope="module")
def salient() -> SalientSegmenter:
    return SalientSegmenter.from_file(SALIENT)


@pytest.fixture(scope="module")
def segmenter(salient: SalientSegmenter) -> HQSamSegmenter:
    return HQSamSegmenter.from_file(HQSAM, salient)


def item(prompts: tuple[Prompt, ...] = ()) -> Encoded:
    mask, other = np.zeros((MASK_SIDE, 200), np.float32), np.zeros((MASK_SIDE, 200), bool)
    mask[60:160, 50:120] = 1
    other[80:140, 130:170] = True
    encoding = Encoding(torch.zeros(1, 256, 64, 64), torch.zeros(1, 64, 64, 160), (640, 500), (1024, 800))
    return Encoded(encoding, mask, other, prompts)


def test_an_encoded_composite_is_read_as_it_was_written(tmp_path: Path) -> None:
    prompt = Prompt(np.array([1, 2, 30, 40], np.float32), np.array([[5, 6]], np.float32), np.ones(1, np.int64))
    written = item((prompt, prompt))
    written.save(tmp_path / "one.safetensors")
    read = Encoded.load(tmp_path / "one.safetensors")
    assert np.array_equal(read.mask, written.mask)
    assert np.array_equal(read.other, written.other)
    assert read.encoding.size == (640, 500)
    assert len(read.prompts) == 2
    assert np.array_equal(read.prompts[1].points, prompt.points)
    assert read.prompts[1].labels.tolist() == [1]
    assert [file.name for file in tmp_path.iterdir()] == ["one.safetensors"]


def test_points_mean_the_product_and_negative_ones_the_other_thing() -> None:
    drawn = [draw_prompt(item(), np.random.default_rng(seed))[0] for seed in range(40)]
    labels = {int(label) for prompt in drawn for label in prompt.labels}
    assert labels == {0, 1}
    for prompt in drawn:
        for (x, y), label in zip(prompt.points.astype(int), prompt.labels, strict=True):
            assert item().mask[y, x] == label
            assert item().other[y, x] == (not label)


def test_most_prompts_are_the_stages_own() -> None:
    stage = Prompt(np.array([40, 40, 150, 200], np.float32), np.array([[80, 90]], np.float32), np.ones(1, np.int64))
    drawn = [draw_prompt(item((stage,)), np.random.default_rng(seed)) for seed in range(200)]
    same = [(prompt, passes) for prompt, passes in drawn if np.array_equal(prompt.box, stage.box)]
    assert 0.6 < len(same) / len(drawn) < 0.8
    alone = [passes for prompt, passes in same if not len(prompt.points)]
    assert alone
    assert set(alone) == {1}, "the stage asks once for a box alone"
    assert {passes for _, passes in drawn} == {1, 2}


@pytest.mark.slow
def test_the_trained_decoder_is_the_one_that_the_stage_asks(
    tmp_path: Path, salient: SalientSegmenter, segmenter: HQSamSegmenter
) -> None:
    """Mask and prompts, also of an upright picture, lie where the segmenter has them."""
    source = PitfallSource(drawn_folder(tmp_path))
    [file] = encode(tmp_path / "features", segmenter, salient, source, 1, 5, torch.float32)
    picture = source.draw(hqsam.SIDE, np.random.default_rng([5, 0]))
    assert picture.image.shape[0] != picture.image.shape[1], "a seed whose picture is no square"
    read, prompt = Encoded.load(file), prompt_from(picture.mask)
    assert prompt is not None
    expected = segmenter.segment_prompted(picture.image, prompt) > 0.5
    scale = MASK_SIDE / max(picture.mask.shape)
    small = Prompt((prompt.box * scale).astype(np.float32), prompt.points * np.float32(scale), prompt.labels)
    with torch.no_grad():
        found = decode(build_sam(HQSAM), read, small)[1][0, 0].numpy() > 0
    assert found.shape == read.mask.shape
    for other in (expected, picture.mask > 0.5):
        seen = hqsam._small(other.astype(np.float32)) > 0.5
        assert (found & seen).sum() / (found | seen).sum() > 0.93


@pytest.mark.slow
def test_prompts_are_of_masks_that_mean_the_product(
    tmp_path: Path, salient: SalientSegmenter, segmenter: HQSamSegmenter
) -> None:
    source = PitfallSource(drawn_folder(tmp_path))
    files = encode(tmp_path / "features", segmenter, salient, source, 3, 0, torch.bfloat16)
    for index, file in enumerate(files):
        picture, read = source.draw(hqsam.SIDE, np.random.default_rng([0, index])), Encoded.load(file)
        salient_mask = main_pieces(salient.segment(picture.image) > 0.5)
        product = picture.mask > 0.5
        if (salient_mask & product).sum() > 0.6 * (salient_mask | product).sum():
            assert read.prompts
        for prompt in read.prompts:
            assert (prompt.box[2:] <= np.array(read.mask.shape[::-1]) + 1).all()


@pytest.mark.slow
def test_only_the_high_quality_output_is_trained_and_features_are_kept(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(hqsam, "COMPOSITES", 3)
    monkeypatch.setattr(hqsam, "HELD_OUT", 2)
    data, out = drawn_folder(tmp_path), tmp_path / "out"
    for part, weights in (("salient", SALIENT), ("hqsam", HQSAM)):
        (out / part).mkdir(parents=True)
        shutil.copy(weights, out / part / hqsam.WEIGHTS)
    before = load_file(out / "hqsam" / hqsam.WEIGHTS)
    options = TrainOptions("hqsam", steps=3, dtype="bfloat16", data=data, out=out, work=tmp_path / "work")
    figures = hqsam.train(options)
    after = load_file(out / "hqsam" / hqsam.WEIGHTS)
    changed = {name for name, weights in after.items() if not torch.equal(weights, before[name])}
    changed = {name for name in changed if not name.endswith("num_batches_tracked")}  # counters that nothing reads
    assert changed
    assert all(name.startswith(tuple(f"mask_decoder.{part}" for part in HQ_PARTS)) for name in changed)
    assert (out / "hqsam" / hqsam.WEIGHTS).stat().st_size == HQSAM.stat().st_size
    assert 0 <= figures["held_out_wrong"] <= 1
    assert "with the cutout stage's own prompts" in (out / "hqsam" / "CARD.md").read_text()

    files = sorted((options.folder / "train").iterdir())
    assert len(files) == 3
    written = [file.stat().st_mtime_ns for file in files]
    files[1].unlink()
    hqsam.train(options)
    again = [file.stat().st_mtime_ns for file in files]
    assert [a == b for a, b in zip(again, written, strict=True)] == [True, False, True]
