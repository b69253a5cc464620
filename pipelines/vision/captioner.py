"""Caption a product photo with BLIP (Li et al. 2022, https://arxiv.org/abs/2201.12086), with a confidence."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import BlipForConditionalGeneration, BlipProcessor

from pipelines.models.weights import load_transformer
from pipelines.vision.vocabulary import Vocabulary, plain_words

if TYPE_CHECKING:
    from pipelines.models.profile import Profile

LONGEST = 24
"""Maximum number of tokens of a caption."""


@dataclass(frozen=True, slots=True)
class Caption:
    """A sentence, the vocabulary's category that it names ("" for none) and the probability of those words, 0..1."""

    text: str
    category: str
    confidence: float


class Captioner:
    """BLIP with its processor. `caption` decodes greedily, so the same picture gives the same sentence."""

    def __init__(
        self, folder: Path, vocabulary: Vocabulary, device: str = "cpu", weights: Collection[Path] | None = None
    ):
        model = load_transformer(BlipForConditionalGeneration, folder, "BLIP for captions", weights)
        self.model = model.to(device)
        self.processor = BlipProcessor.from_pretrained(folder, local_files_only=True)
        self.vocabulary = vocabulary
        self.device = device

    @classmethod
    def from_profile(cls, profile: Profile, vocabulary: Vocabulary, device: str = "cpu") -> Captioner:
        """Load the profile's captioner and check its digest."""
        part = profile.part("blip").check()
        return cls(part.path, vocabulary, device, part.weights)

    @torch.inference_mode()
    def caption(self, images: Sequence[np.ndarray]) -> list[Caption]:
        """Caption (H, W, 3) uint8 RGB images; crop them to the product for best results."""
        inputs = self.processor(images=[Image.fromarray(image) for image in images], return_tensors="pt")
        output = self.model.generate(
            pixel_values=inputs.pixel_values.to(self.device),
            max_new_tokens=LONGEST,
            num_beams=1,
            do_sample=False,
            output_scores=True,
            return_dict_in_generate=True,
        )
        words = output.sequences[:, -len(output.scores) :]
        scores = torch.stack(output.scores, dim=1).softmax(dim=-1)
        likely = scores.gather(-1, words[..., None])[..., 0]
        return [self._read(ids, chances) for ids, chances in zip(words.cpu(), likely.cpu(), strict=True)]

    def _read(self, ids: Tensor, chances: Tensor) -> Caption:
        """Decode a caption; its confidence is the product over the tokens of the category's words."""
        ends = [len(self._decode(ids[: n + 1])) for n in range(len(ids))]
        text = self._decode(ids)
        category, start, end = self.vocabulary.locate(text)
        if not category:
            return Caption(text, "", 0.0)
        starts = [0, *ends[:-1]]
        spelling = [float(p) for p, a, b in zip(chances, starts, ends, strict=True) if a < end and b > start and b > a]
        return Caption(text, category, float(np.prod(spelling)))

    def _decode(self, ids: Tensor) -> str:
        text = self.processor.tokenizer.decode(ids, skip_special_tokens=True)
        return plain_words(text.replace(" - ", "-"))
