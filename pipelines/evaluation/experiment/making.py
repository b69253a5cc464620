"""Paint and score pairs, and store each picture and its scores at once.

A stored file's name contains a digest of its inputs: cell, settings, weights and pair; for scores also the detector and
tau. So an interrupted run continues, and a longer run reuses the pictures of a shorter one. New painting weights give
new pictures; a new threshold scores the stored ones again. KID and agreement with prompts need all pictures of a cell:
they are computed with the table and not stored.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from safetensors import safe_open

from pipelines.contracts import canonical_json, sha256_hex
from pipelines.evaluation.experiment import painting
from pipelines.evaluation.experiment.cells import Cell
from pipelines.evaluation.experiment.painting import BATCH, Painter
from pipelines.evaluation.experiment.pairs import Pair
from pipelines.evaluation.experiment.scoring import Scorer, Scores, composite
from pipelines.models.profile import Profile

PAINTING, SCORING = 1, 4
"""Versions of painting and scoring; increment one to invalidate what is stored."""


@dataclass(frozen=True, slots=True)
class Painted:
    """A stored picture, and the seconds that painting it took."""

    pair: Pair
    picture: Path
    seconds: float

    def composite(self) -> NDArray[np.uint8]:
        """The picture with the product pasted back, (side, side, 3)."""
        with Image.open(self.picture) as file:
            return composite(self.pair, file)


@dataclass(frozen=True, slots=True)
class Result(Painted):
    """A stored picture and its scores."""

    scores: Scores


def results_of(cell: Cell, pairs: Sequence[Pair], painter: Painter, scorer: Scorer, out: Path) -> Iterator[Result]:
    """Yield the result of each pair, stored or new; each new one is stored at once."""
    for one in painted(cell, pairs, painter, out):
        stored = _scores(one.picture, scorer)
        if not stored.exists():
            with Image.open(one.picture) as image:
                scores = scorer.score(one.pair, image, one.seconds)
            unfinished = stored.with_suffix(".part")
            unfinished.write_text(json.dumps(asdict(scores)), encoding="utf-8")
            unfinished.replace(stored)
        scores = Scores(**json.loads(stored.read_text(encoding="utf-8")))
        yield Result(one.pair, one.picture, one.seconds, scores)


def painted(cell: Cell, pairs: Sequence[Pair], painter: Painter, out: Path) -> Iterator[Painted]:
    """Yield the picture of each pair, stored or newly painted; each new batch is stored at once."""
    for start in range(0, len(pairs), BATCH):
        batch = pairs[start : start + BATCH]
        pictures = [_picture(cell, pair, painter.profile, out) for pair in batch]
        if not all(path.exists() for path in pictures):
            # the whole batch again: pixels are reproducible only in a batch of the same shape
            images, seconds = painter.paint(cell, batch)
            pictures[0].parent.mkdir(parents=True, exist_ok=True)
            for image, path in zip(images, pictures, strict=True):
                note = PngInfo()
                note.add_text("seconds", f"{seconds:.4f}")
                unfinished = path.with_suffix(".part")
                image.save(unfinished, "PNG", pnginfo=note)
                unfinished.replace(path)
        for pair, path in zip(batch, pictures, strict=True):
            with Image.open(path) as stored:
                yield Painted(pair, path, float(stored.info["seconds"]))


def is_made(cell: Cell, pairs: Sequence[Pair], profile: Profile, scorer: Scorer, out: Path) -> bool:
    """Whether all pictures of these pairs and their scores are stored."""
    pictures = [_picture(cell, pair, profile, out) for pair in pairs]
    return all(one.exists() and _scores(one, scorer).exists() for one in pictures)


def _picture(cell: Cell, pair: Pair, profile: Profile, out: Path) -> Path:
    folder = out / "pictures" / cell.name.replace("/", "-").replace(" ", "-")
    return folder / f"{pair.number:04d}-{picture_key(cell, pair, profile)}.png"


def _scores(picture: Path, scorer: Scorer) -> Path:
    measured_by = sha256_hex(canonical_json({"version": SCORING, "scorer": scorer.version}).encode())[:8]
    return picture.with_name(f"{picture.stem}-{measured_by}.json")


def picture_key(cell: Cell, pair: Pair, profile: Profile) -> str:
    """Digest of all inputs of a pair's picture in a cell: settings, weights and pair; 16 hexadecimal digits."""
    made_of = canonical_json(
        {
            "version": PAINTING,
            "cell": asdict(replace(cell, name="", group="claim")),
            "settings": [painting.STEPS, painting.GUIDANCE_SCALE, painting.CONTROL_SCALE, painting.CONTROL_END],
            "models": [_digest(profile, part) for part in (*profile.sampler_parts, *cell.parts)],
        }
    )
    return sha256_hex(f"{made_of} {pair.digest}".encode())[:16]


def _digest(profile: Profile, part: str) -> str:
    """Digest of a part as far as a picture depends on it: of a CLIP only the text tower, which the sampler reads."""
    # called for every picture, so the file is only located; whoever loads it verifies it
    words = _text_tower(profile.part(part).located().weights[0]) if part == "clip" else ""
    return words or profile.ref(part).sha256


@cache
def _text_tower(clip: Path) -> str:
    """Digest of a text tower; "" if the file is not safetensors, or has no tower under the usual names."""
    if clip.suffix != ".safetensors":
        return ""
    read = hashlib.sha256()
    with safe_open(clip, "pt") as tensors:
        names = sorted(name for name in tensors.keys() if name.startswith("text_model."))  # noqa: SIM118  no mapping
        for name in names:
            read.update(name.encode() + tensors.get_tensor(name).contiguous().view(torch.uint8).numpy().tobytes())
    return read.hexdigest() if names else ""
