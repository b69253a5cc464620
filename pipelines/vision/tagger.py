"""Rank the reviewed vocabulary against a product photo with CLIP (Radford et al. 2021, section 3.1: zero-shot)."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional
from transformers import CLIPImageProcessor, CLIPModel, CLIPTokenizerFast

from pipelines.models.weights import load_transformer
from pipelines.vision.vocabulary import Vocabulary

if TYPE_CHECKING:
    from pipelines.models.profile import Profile


@dataclass(frozen=True, slots=True)
class Tag:
    """A word of the vocabulary and its probability among the words of its kind, 0..1."""

    tag: str
    kind: str
    score: float


class Tagger:
    """CLIP, with the vocabulary's sentences embedded once."""

    def __init__(
        self, folder: Path, vocabulary: Vocabulary, device: str = "cpu", weights: Collection[Path] | None = None
    ):
        self.model = load_transformer(CLIPModel, folder, "CLIP", weights).to(device)
        self.images = CLIPImageProcessor.from_pretrained(folder, local_files_only=True)
        self.vocabulary = vocabulary
        self.device = device
        self._text = self._embed_words(CLIPTokenizerFast.from_pretrained(folder, local_files_only=True))

    @classmethod
    def from_profile(cls, profile: Profile, vocabulary: Vocabulary, device: str = "cpu") -> Tagger:
        """Load the profile's tagger and check its digest."""
        part = profile.part("clip").check()
        return cls(part.path, vocabulary, device, part.weights)

    @torch.inference_mode()
    def rank(self, images: Sequence[np.ndarray]) -> list[list[Tag]]:
        """Return all words of the vocabulary for each (H, W, 3) uint8 RGB image, the most probable first."""
        pixels = self.images([Image.fromarray(image) for image in images], return_tensors="pt").pixel_values
        features = functional.normalize(_features(self.model.get_image_features(pixels.to(self.device))), dim=-1)
        logits = (features @ self._text.T * self.model.logit_scale.exp()).cpu()
        return [self._rank_one(row) for row in logits]

    def _rank_one(self, logits: Tensor) -> list[Tag]:
        tags = []
        for kind in dict.fromkeys(word.kind for word in self.vocabulary.words):
            rows = [n for n, word in enumerate(self.vocabulary.words) if word.kind == kind]
            chances = logits[rows].softmax(dim=0).tolist()
            tags += [Tag(self.vocabulary.words[n].tag, kind, p) for n, p in zip(rows, chances, strict=True)]
        return sorted(tags, key=lambda tag: -tag.score)

    @torch.inference_mode()
    def _embed_words(self, tokenizer: CLIPTokenizerFast) -> Tensor:
        sentences = [word.sentence for word in self.vocabulary.words]
        longest = self.model.config.text_config.max_position_embeddings
        tokens = tokenizer(sentences, padding="max_length", truncation=True, max_length=longest, return_tensors="pt")
        features = self.model.get_text_features(**{name: value.to(self.device) for name, value in tokens.items()})
        return functional.normalize(_features(features), dim=-1)


def _features(output: object) -> Tensor:
    """Return the projected features, which transformers 5 wraps in a model output."""
    return output if isinstance(output, Tensor) else output.pooler_output  # type: ignore[attr-defined]
