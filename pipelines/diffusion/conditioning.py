"""Text and size conditioning of UNet and branches: SD 1.5's one text encoder, SDXL's two encoders and its sizes."""

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
    """SDXL's size conditioning, px (Podell et al. 2023, section 2.2). SD 1.5 has none.

    Attributes:
        original: (height, width) of the photo before resizing; default: the sampled size. A small one gives the look of
            an enlarged photo.
        crop: (top, left) of the crop; (0, 0) asks for a centred product.
        target: (height, width) that the picture stands for; default: the sampled size.
    """

    original: tuple[int, int] | None = None
    crop: tuple[int, int] = (0, 0)
    target: tuple[int, int] | None = None

    def time_ids(self, sampled: tuple[int, int]) -> Tensor:
        """Return (1, 6) in SDXL's order, for a picture sampled at (height, width)."""
        return torch.tensor([[*(self.original or sampled), *self.crop, *(self.target or sampled)]])


AS_SAMPLED = Sizes()
"""A whole photo of the sampled size."""


@dataclass(frozen=True, slots=True)
class Encoder:
    """A text encoder and its tokenizer."""

    model: CLIPTextModel | CLIPTextModelWithProjection
    tokenizer: CLIPTokenizer

    def tokens(self, texts: Sequence[str]) -> Tensor:
        """Return token ids (B, L), padded and truncated to the encoder's length."""
        length = min(self.tokenizer.model_max_length, self.model.config.max_position_embeddings)
        ids: Tensor = self.tokenizer(
            list(texts), padding="max_length", max_length=length, truncation=True, return_tensors="pt"
        ).input_ids
        return ids


@dataclass(frozen=True, slots=True)
class Text:
    """Encoded texts: `embeds` (B, L, D) for cross-attention, and SDXL's `pooled` (B, P)."""

    embeds: Tensor
    pooled: Tensor | None = None


@dataclass(frozen=True, slots=True)
class Conditioning:
    """Conditioning of the UNet's whole batch: `embeds` (n, L, D), and SDXL's `added`: `text_embeds` (n, P) and
    `time_ids` (n, 6)."""

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
    """Encode texts as SD 1.5 does (last layer of one encoder) or as SDXL does (second to last layers of two,
    concatenated).

    `working` keeps a module on the device while it runs. With `empty_is_zero` SDXL's empty text becomes zeros, as in
    its training; its published configuration calls this `force_zeros_for_empty_prompt`.
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
        pooled = output[0]  # ends as the second encoder's projection
    embeds = torch.cat(hidden, dim=-1).to(dtype)
    assert pooled is not None
    pooled = pooled.to(dtype)
    if empty_is_zero:
        said = torch.tensor([bool(text) for text in texts], device=device)
        embeds, pooled = embeds * said[:, None, None], pooled * said[:, None]
    return Text(embeds, pooled)


def condition(text: Text, negative: Text | None, layout: Layout, time_ids: Tensor) -> Conditioning:
    """Arrange texts and sizes for the UNet's batch: the guidance halves are [without, with] prompt."""
    embeds = layout.by_half(negative.embeds if negative else None, text.embeds)
    if text.pooled is None:
        return Conditioning(embeds, None)
    pooled = layout.by_half(negative.pooled if negative else None, text.pooled)
    sizes = layout.for_both_halves(time_ids.to(pooled))
    return Conditioning(embeds, {"text_embeds": pooled, "time_ids": sizes})


def check_sizes(unet: Any, second: CLIPTextModelWithProjection | None) -> None:
    """Raise ValueError if a UNet needs other conditioning than these encoders and sizes give."""
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
