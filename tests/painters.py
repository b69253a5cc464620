"""Writes tiny random painters in the layout in which the large ones are published."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKLFlux2,
    AutoencoderKLQwenImage,
    FlowMatchEulerDiscreteScheduler,
    Flux2KleinPipeline,
    Flux2Transformer2DModel,
    QwenImageEditPipeline,
    QwenImageTransformer2DModel,
)
from tokenizers.pre_tokenizers import ByteLevel
from transformers import (
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2Tokenizer,
    Qwen2VLImageProcessor,
    Qwen2VLProcessor,
    Qwen2VLVideoProcessor,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from tests.published import tiny_base, write_folder

TURN = "<|im_start|>", "<|im_end|>"
VISION = "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"
CHAT = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}<|im_start|>assistant\n"


def tokenizer(*special: str) -> Qwen2Tokenizer:
    """Qwen's tokenizer with a vocabulary of single bytes."""
    vocabulary = {letter: i for i, letter in enumerate(sorted(ByteLevel.alphabet()))}
    made = Qwen2Tokenizer(vocab=vocabulary, merges=[], additional_special_tokens=list(special))
    made.chat_template = CHAT
    return made


def write_klein(folder: Path) -> None:
    """FLUX.2-klein: the layers of its text encoder that are read are the 9th, 18th and 27th."""
    torch.manual_seed(2)
    words = tokenizer(*TURN)
    text = Qwen3Config(
        vocab_size=len(words), hidden_size=8, intermediate_size=8, num_hidden_layers=28, num_attention_heads=2,
        num_key_value_heads=1, head_dim=4, tie_word_embeddings=True,
    )  # fmt: skip
    Flux2KleinPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        vae=AutoencoderKLFlux2(
            block_out_channels=(4, 4, 4, 4), layers_per_block=1, latent_channels=2, norm_num_groups=2,
            mid_block_add_attention=False,
        ),
        text_encoder=Qwen3ForCausalLM(text),
        tokenizer=words,
        transformer=Flux2Transformer2DModel(
            patch_size=1, in_channels=8, num_layers=1, num_single_layers=1, attention_head_dim=8, num_attention_heads=1,
            joint_attention_dim=3 * 8, timestep_guidance_channels=8, axes_dims_rope=[2, 2, 2, 2], guidance_embeds=False,
        ),
    ).save_pretrained(folder, max_shard_size="40KB")  # fmt: skip


def write_qwen(folder: Path) -> None:
    """Qwen-Image-Edit, its two large modules in shards. It shows its autoencoder every canvas at 1,024 x 1,024 px."""
    torch.manual_seed(3)
    words = tokenizer(*TURN, *VISION)
    start, end, image, video = words.convert_tokens_to_ids(VISION)
    text = {
        "vocab_size": len(words), "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1,
        "num_attention_heads": 1, "num_key_value_heads": 1, "bos_token_id": None, "eos_token_id": None,
        "rope_parameters": {"rope_type": "default", "mrope_section": [2, 1, 1], "rope_theta": 10000.0},
    }  # fmt: skip
    vision = {
        "depth": 1, "hidden_size": 8, "intermediate_size": 8, "num_heads": 1, "out_hidden_size": 8,
        "fullatt_block_indexes": [0], "patch_size": 14,
    }  # fmt: skip
    config = Qwen2_5_VLConfig(
        text_config=text, vision_config=vision, image_token_id=image, video_token_id=video,
        vision_start_token_id=start, vision_end_token_id=end,
    )  # fmt: skip
    pixels = 56 * 56
    QwenImageEditPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        vae=AutoencoderKLQwenImage(
            base_dim=1, z_dim=4, dim_mult=[1, 2, 2, 2], num_res_blocks=1, latents_mean=[0.0] * 4, latents_std=[1.0] * 4
        ),
        text_encoder=Qwen2_5_VLForConditionalGeneration(config),
        tokenizer=words,
        processor=Qwen2VLProcessor(
            image_processor=Qwen2VLImageProcessor(min_pixels=pixels, max_pixels=pixels),
            tokenizer=words,
            video_processor=Qwen2VLVideoProcessor(),
        ),
        transformer=QwenImageTransformer2DModel(
            patch_size=2, in_channels=16, out_channels=4, num_layers=1, attention_head_dim=8, num_attention_heads=1,
            joint_attention_dim=8, axes_dims_rope=(4, 2, 2),
        ),
    ).save_pretrained(folder, max_shard_size="20KB")  # fmt: skip


def write_stable_diffusion(family: str, folder: Path) -> None:
    """SD 1.5 or SDXL; the published UNets say for which size of latents they were trained."""
    base = tiny_base(family)
    base.unet.register_to_config(sample_size={"sd15": 64, "sdxl": 128}[family])
    write_folder(base, folder)


PAINTER_FILES: dict[str, Callable[[Path], object]] = {
    "StableDiffusionImg2ImgPipeline": partial(write_stable_diffusion, "sd15"),
    "StableDiffusionXLImg2ImgPipeline": partial(write_stable_diffusion, "sdxl"),
    "Flux2KleinPipeline": write_klein,
    "QwenImageEditPipeline": write_qwen,
    "QwenImageEditPlusPipeline": write_qwen,
}
"""What writes the folder of each painter."""
