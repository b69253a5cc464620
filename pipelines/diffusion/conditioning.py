"""What the UNet and its branches are told in words and sizes: SD 1.5's one text encoder, SDXL's two and its sizes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from pipelines.diffusion.inputs import Layout


@dataclass(frozen=True, slots=True)
class Sizes:
    """What SDXL is told of the picture's size, px (Podell et al. 2023, section 2.2); SD 1.5 is told nothing.

    Attributes:
        original: (height, width) that the photo had before it was brought to size. Left out: what is sampled. A small
            one asks for the look of an enlarged photo.
        crop: (top, left) of the part that was cut out of it; (0, 0) asks for a product in the middle.
        target: (height, width) that the picture stands for. Left out: what is sampled.
    """

    original: tuple[int, int] | None = None
    crop: tuple[int, int] = (0, 0)
    target: tuple[int, int] | None = None

    def time_ids(self, sampled: tuple[int, int]) -> Tensor:
        """(1, 6), in the order in which SDXL reads them, for a picture sampled at (height, width)."""
        return torch.tensor([[*(self.original or sampled), *self.crop, *(self.target or sampled)]])


AS_SAMPLED = Sizes()
"""A whole photo of the size that is sampled."""


@dataclass(frozen=True, slots=True)
class Encoder:
    """A text encoder and its tokenizer."""

    model: CLIPTextModel | CLIPTextModelWithProjection
    tokenizer: CLIPTokenizer

    def tokens(self, texts: Sequence[str]) -> Tensor:
        """(B, L), padded and cut to what the encoder reads."""
        length = min(self.tokenizer.model_max_length, self.model.config.max_position_embeddings)
        ids: Tensor = self.tokenizer(
            list(texts), padding="max_length", max_length=length, truncation=True, return_tensors="pt"
        ).input_ids
        return ids


@dataclass(frozen=True, slots=True)
class Text:
    """Encoded texts: `embeds` (B, L, D), which cross-attention reads, and SDXL's `pooled` (B, P)."""

    embeds: Tensor
    pooled: Tensor | None = None


@dataclass(frozen=True, slots=True)
class Conditioning:
    """For the UNet's whole batch: `embeds` (n, L, D), and SDXL's `added` (`text_embeds` (n, P), `time_ids` (n, 6))."""

    embeds: Tensor
    added: dict[str, Any] | None


def encode_texts(
    texts: Sequence[str],
    encoders: Sequence[Encoder],
    device: torch.device,
    dtype: torch.dtype,
    working: Callable[[Any], AbstractContextManager[None]],
    empty_is_zero: bool = False,
) -> Text:
    """Encode texts as SD 1.5 (one encoder, its last layer) or as SDXL (two, each's last but one layer, side by side).

    Args:
        texts: One an entry.
        encoders: One, or SDXL's two in order.
        device: Where the tokens go.
        dtype: What the UNet computes in.
        working: Keeps a module on the device for as long as it works.
        empty_is_zero: An empty text of SDXL's is all zeros, as `force_zeros_for_empty_prompt` of its published
            configuration says: what "no text" was in its training.
    """
    if len(encoders) == 1:
        [encoder] = encoders
        with working(encoder.model):
            return Text(encoder.model(encoder.tokens(texts).to(device))[0].to(dtype))
    hidden, pooled = [], None
    for encoder in encoders:
        with working(encoder.model):
            output = encoder.model(encoder.tokens(texts).to(device), output_hidden_states=True)
        hidden.append(output.hidden_states[-2])
        pooled = output[0]  # of the last: the second one's projection
    embeds = torch.cat(hidden, dim=-1).to(dtype)
    assert pooled is not None
    pooled = pooled.to(dtype)
    if empty_is_zero:
        said = torch.tensor([bool(text) for text in texts], device=device)
        embeds, pooled = embeds * said[:, None, None], pooled * said[:, None]
    return Text(embeds, pooled)


def condition(text: Text, negative: Text | None, layout: Layout, time_ids: Tensor) -> Conditioning:
    """Lay texts and sizes out for the UNet's batch: the guidance halves are [without, with]."""
    embeds = layout.by_half(negative.embeds if negative else None, text.embeds)
    if text.pooled is None:
        return Conditioning(embeds, None)
    pooled = layout.by_half(negative.pooled if negative else None, text.pooled)
    sizes = layout.for_both_halves(time_ids.to(pooled))
    return Conditioning(embeds, {"text_embeds": pooled, "time_ids": sizes})


def check_sizes(unet: Any, second: CLIPTextModelWithProjection | None) -> None:
    """Raise ValueError where a UNet wants other things to be told than these encoders and sizes are."""
    config = unet.config
    if config.addition_embed_type is None:
        return
    if config.addition_embed_type != "text_time":
        raise ValueError(f"The sampler conditions UNets of SD 1.5 and SDXL, not {config.addition_embed_type!r}.")
    if second is None:
        raise ValueError(
            "This UNet wants pooled text and sizes (SDXL): it needs the second text encoder and tokenizer."
        )
    wanted = config.projection_class_embeddings_input_dim - second.config.projection_dim
    if wanted != 6 * config.addition_time_embed_dim:
        raise ValueError("This UNet wants other sizes than SDXL's base, as its refiner does: the sampler has none.")
