"""Painters: pipelines of diffusers that a profile may name to paint on a backdrop.

It imports no model library, so a profile can be read before any model is loaded.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

PAINTER = "painter"
"""Name and kind of the part of a profile that paints in place of packshot's own sampler."""


@dataclass(frozen=True, slots=True)
class PainterClass:
    """An image-to-image pipeline of diffusers: a row of docs/reference/profiles.md.

    Attributes:
        weights: Folder of each module with weights, and its class in diffusers or transformers.
        readers: Folder of each tokenizer or processor, and its class in transformers.
        flags: Booleans of model_index.json that the pipeline takes.
        fixed: Further arguments of its constructor.
        edits: It looks at the canvas and begins from noise. Otherwise it begins from the canvas, with a strength.
        negative_prompt: Whether it takes one.
        guidance: Its argument for classifier-free guidance.
        frames: Whether its autoencoder is one for video, with an axis for frames.
        bfloat16: Whether its weights are published in bfloat16, which float16 cannot hold; then it never runs in
            float16.
    """

    weights: Mapping[str, str]
    readers: Mapping[str, str]
    flags: tuple[str, ...] = ()
    fixed: Mapping[str, Any] = field(default_factory=dict)
    edits: bool = False
    negative_prompt: bool = True
    guidance: str = "guidance_scale"
    frames: bool = False
    bfloat16: bool = False


_QWEN_IMAGE_EDIT = PainterClass(
    weights={
        "text_encoder": "Qwen2_5_VLForConditionalGeneration",
        "transformer": "QwenImageTransformer2DModel",
        "vae": "AutoencoderKLQwenImage",
    },
    readers={"tokenizer": "Qwen2Tokenizer", "processor": "Qwen2VLProcessor"},
    edits=True,
    guidance="true_cfg_scale",
    frames=True,
    bfloat16=True,
)

PAINTERS: dict[str, PainterClass] = {
    "StableDiffusionImg2ImgPipeline": PainterClass(
        weights={"text_encoder": "CLIPTextModel", "unet": "UNet2DConditionModel", "vae": "AutoencoderKL"},
        readers={"tokenizer": "CLIPTokenizer"},
        fixed={"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False},
    ),
    "StableDiffusionXLImg2ImgPipeline": PainterClass(
        weights={
            "text_encoder": "CLIPTextModel",
            "text_encoder_2": "CLIPTextModelWithProjection",
            "unet": "UNet2DConditionModel",
            "vae": "AutoencoderKL",
        },
        readers={"tokenizer": "CLIPTokenizer", "tokenizer_2": "CLIPTokenizer"},
        flags=("force_zeros_for_empty_prompt", "requires_aesthetics_score"),
        fixed={"add_watermarker": False},
    ),
    "Flux2KleinPipeline": PainterClass(
        weights={
            "text_encoder": "Qwen3ForCausalLM",
            "transformer": "Flux2Transformer2DModel",
            "vae": "AutoencoderKLFlux2",
        },
        readers={"tokenizer": "Qwen2Tokenizer"},
        flags=("is_distilled",),
        edits=True,
        negative_prompt=False,
        bfloat16=True,
    ),
    "QwenImageEditPipeline": _QWEN_IMAGE_EDIT,
    "QwenImageEditPlusPipeline": _QWEN_IMAGE_EDIT,
}


def painter_class(name: str) -> PainterClass:
    """Return a row of the table. Raises ValueError, which lists the known names."""
    if name not in PAINTERS:
        raise ValueError(f"pipeline {name!r} is no painter; there are {', '.join(PAINTERS)}")
    return PAINTERS[name]
