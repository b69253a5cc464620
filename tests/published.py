"""Writes tiny random models in the very formats in which the large ones are published."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderKL, ControlNetModel, DDIMScheduler, UNet2DConditionModel
from safetensors.torch import save_file
from torch import Tensor
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
)

WIDTH = 32
"""Width of the text of the tiny SD 1.5; the tiny SDXL's is three times that, of two encoders."""


@dataclass
class TinyBase:
    """The modules of a base, and its family: "sd15" or "sdxl"."""

    family: str
    vae: AutoencoderKL
    text_encoder: CLIPTextModel
    unet: UNet2DConditionModel
    text_encoder_2: CLIPTextModelWithProjection | None = None


def tiny_base(family: str = "sd15", in_channels: int = 4) -> TinyBase:
    """A base of the family's structure, from a seed."""
    torch.manual_seed({"sd15": 0, "sdxl": 1}[family])
    vae = AutoencoderKL(
        block_out_channels=(16, 32, 32, 32),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=2,
        norm_num_groups=8,
        scaling_factor=0.18215,
    )
    text = CLIPTextModel(text_config())
    if family == "sd15":
        return TinyBase(family, vae, text, tiny_unet(in_channels))
    second = CLIPTextModelWithProjection(
        text_config(hidden_act="gelu", hidden_size=2 * WIDTH, num_hidden_layers=11, projection_dim=WIDTH)
    )
    unet = UNet2DConditionModel(
        block_out_channels=(16, 32, 32),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 1, 2),
        cross_attention_dim=3 * WIDTH,
        attention_head_dim=8,
        norm_num_groups=8,
        use_linear_projection=True,
        in_channels=in_channels,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + WIDTH,
    )
    return TinyBase(family, vae, text, unet, second)


def tiny_unet(in_channels: int = 4, width: int = WIDTH) -> UNet2DConditionModel:
    """SD 1.5's structure: four levels, two layers each."""
    return UNet2DConditionModel(
        block_out_channels=(16, 32, 32, 32),
        cross_attention_dim=width,
        attention_head_dim=8,
        norm_num_groups=8,
        in_channels=in_channels,
    )


def text_config(**other) -> CLIPTextConfig:
    sizes = {
        "vocab_size": 55, "hidden_size": WIDTH, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 4, "max_position_embeddings": 16, "bos_token_id": 52, "eos_token_id": 53,
    }  # fmt: skip
    return CLIPTextConfig(**sizes | other)


def write_tokenizer(folder: Path) -> CLIPTokenizer:
    folder.mkdir(parents=True, exist_ok=True)
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>", "!"]
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=16)
    tokenizer.save_pretrained(folder)
    return tokenizer


def write_clip(folder: Path) -> Path:
    """A CLIP folder, as openai/clip-vit-large-patch14 has it."""
    vision = {
        "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4,
        "image_size": 32, "patch_size": 16, "projection_dim": 16,
    }  # fmt: skip
    text = text_config(projection_dim=16)
    CLIPModel(CLIPConfig(text_config=text.to_dict(), vision_config=vision, projection_dim=16)).save_pretrained(folder)
    write_tokenizer(folder)
    (folder / "preprocessor_config.json").write_text(
        json.dumps({"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 32}, "crop_size": 32})
    )
    return folder


def write_folder(base: TinyBase, folder: Path, weights: bool = True) -> Path:
    """A diffusers folder; without weights the configurations alone, as the profiles bring them."""
    modules = {"vae": base.vae, "text_encoder": base.text_encoder, "unet": base.unet}
    if base.text_encoder_2 is not None:
        modules["text_encoder_2"] = base.text_encoder_2
    for name, module in modules.items():
        if weights:
            module.save_pretrained(folder / name)
        else:
            (folder / name).mkdir(parents=True)
            config = module.config if isinstance(module.config, dict) else module.config.to_dict()
            (folder / name / "config.json").write_text(json.dumps(config))
    DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, steps_offset=1
    ).save_pretrained(folder / "scheduler")
    index = {
        "_class_name": "StableDiffusionXLPipeline" if base.text_encoder_2 is not None else "StableDiffusionPipeline"
    }
    index |= {
        "vae": ["diffusers", "AutoencoderKL"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "scheduler": ["diffusers", "DDIMScheduler"],
    }
    tokenizers = ["tokenizer"]
    if base.text_encoder_2 is not None:
        index["text_encoder_2"] = ["transformers", "CLIPTextModelWithProjection"]
        index["tokenizer_2"] = ["transformers", "CLIPTokenizer"]
        tokenizers.append("tokenizer_2")
    if weights:
        for name in tokenizers:
            write_tokenizer(folder / name)
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


def single_file(base: TinyBase) -> dict[str, Tensor]:
    """The tensors of a community single-file checkpoint: the names of CompVis's and Stability's own code."""
    tensors = {f"model.diffusion_model.{name}": value for name, value in ldm_unet(base.unet).items()}
    tensors |= {f"first_stage_model.{name}": value for name, value in ldm_vae(base.vae).items()}
    text = {f"text_model.{name.removeprefix('text_model.')}": v for name, v in base.text_encoder.state_dict().items()}
    prefix = "cond_stage_model.transformer." if base.family == "sd15" else "conditioner.embedders.0.transformer."
    tensors |= {f"{prefix}{name}": value for name, value in text.items()}
    if base.text_encoder_2 is not None:
        tensors |= {f"conditioner.embedders.1.model.{n}": v for n, v in open_clip(base.text_encoder_2).items()}
    return {name: value.clone().contiguous() for name, value in tensors.items()}


def write_single_file(base: TinyBase, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(single_file(base), path)
    return path


RESNET = {
    "norm1.": "in_layers.0.", "conv1.": "in_layers.2.", "time_emb_proj.": "emb_layers.1.",
    "norm2.": "out_layers.0.", "conv2.": "out_layers.3.", "conv_shortcut.": "skip_connection.",
}  # fmt: skip


def ldm_unet(unet: UNet2DConditionModel) -> dict[str, Tensor]:
    """A UNet's tensors under their original names."""
    layers, blocks, at = unet.config.layers_per_block, _unet_blocks(unet), 0
    for level in range(len(unet.config.block_out_channels)):
        attends = "CrossAttn" in unet.config.up_block_types[level]
        for layer in range(layers + 1):
            blocks[f"up_blocks.{level}.resnets.{layer}."] = f"output_blocks.{at}.0."
            blocks[f"up_blocks.{level}.attentions.{layer}."] = f"output_blocks.{at}.1."
            at += 1
        blocks[f"up_blocks.{level}.upsamplers.0.conv."] = f"output_blocks.{at - 1}.{2 if attends else 1}.conv."
    blocks |= {"conv_norm_out.": "out.0.", "conv_out.": "out.2."}
    return {_renamed(name, blocks, RESNET): value for name, value in unet.state_dict().items()}


def _unet_blocks(net: UNet2DConditionModel | ControlNetModel) -> dict[str, str]:
    """Ours to original names of what a UNet and a ControlNet have in common: the way down and the middle."""
    blocks: dict[str, str] = {}
    at = 1
    for level in range(len(net.config.block_out_channels)):
        for layer in range(net.config.layers_per_block):
            blocks[f"down_blocks.{level}.resnets.{layer}."] = f"input_blocks.{at}.0."
            blocks[f"down_blocks.{level}.attentions.{layer}."] = f"input_blocks.{at}.1."
            at += 1
        blocks[f"down_blocks.{level}.downsamplers.0.conv."] = f"input_blocks.{at}.0.op."
        at += 1
    return blocks | {
        "mid_block.resnets.0.": "middle_block.0.", "mid_block.attentions.0.": "middle_block.1.",
        "mid_block.resnets.1.": "middle_block.2.", "time_embedding.linear_1.": "time_embed.0.",
        "time_embedding.linear_2.": "time_embed.2.", "conv_in.": "input_blocks.0.0.",
        "add_embedding.linear_1.": "label_emb.0.0.", "add_embedding.linear_2.": "label_emb.0.2.",
    }  # fmt: skip


def ldm_vae(vae: AutoencoderKL) -> dict[str, Tensor]:
    """An autoencoder's tensors under their original names; its attention was made of 1x1 convolutions."""
    levels = len(vae.config.block_out_channels)
    layers = vae.config.layers_per_block
    blocks = {"quant_conv.": "quant_conv.", "post_quant_conv.": "post_quant_conv."}
    for half in ("encoder", "decoder"):
        blocks |= {
            f"{half}.conv_in.": f"{half}.conv_in.", f"{half}.conv_out.": f"{half}.conv_out.",
            f"{half}.conv_norm_out.": f"{half}.norm_out.", f"{half}.mid_block.resnets.0.": f"{half}.mid.block_1.",
            f"{half}.mid_block.resnets.1.": f"{half}.mid.block_2.",
            f"{half}.mid_block.attentions.0.": f"{half}.mid.attn_1.",
        }  # fmt: skip
    for level in range(levels):
        for layer in range(layers + 1):
            blocks[f"encoder.down_blocks.{level}.resnets.{layer}."] = f"encoder.down.{level}.block.{layer}."
            blocks[f"decoder.up_blocks.{level}.resnets.{layer}."] = f"decoder.up.{levels - 1 - level}.block.{layer}."
        blocks[f"encoder.down_blocks.{level}.downsamplers.0."] = f"encoder.down.{level}.downsample."
        blocks[f"decoder.up_blocks.{level}.upsamplers.0."] = f"decoder.up.{levels - 1 - level}.upsample."
    inner = {
        "conv_shortcut.": "nin_shortcut.", "group_norm.": "norm.", "to_q.": "q.", "to_k.": "k.", "to_v.": "v.",
        "to_out.0.": "proj_out.",
    }  # fmt: skip
    tensors = {_renamed(name, blocks, inner): value for name, value in vae.state_dict().items()}
    return {
        name: value[:, :, None, None] if re.search(r"attn_1\.(q|k|v|proj_out)\.weight", name) else value
        for name, value in tensors.items()
    }


def ldm_controlnet(net: ControlNetModel) -> dict[str, Tensor]:
    """A ControlNet's tensors under the names of its publishers: a UNet's first half, and convolutions beside it."""
    branch = {"controlnet_mid_block.": "middle_block_out.0."}
    branch |= {f"controlnet_down_blocks.{n}.": f"zero_convs.{n}.0." for n in range(len(net.controlnet_down_blocks))}
    hint = [*(f"blocks.{n}" for n in range(len(net.controlnet_cond_embedding.blocks))), "conv_out"]
    branch["controlnet_cond_embedding.conv_in."] = "input_hint_block.0."
    branch |= {f"controlnet_cond_embedding.{name}.": f"input_hint_block.{2 * n + 2}." for n, name in enumerate(hint)}
    blocks = branch | _unet_blocks(net)
    return {f"control_model.{_renamed(name, blocks, RESNET)}": value for name, value in net.state_dict().items()}


def open_clip(encoder: CLIPTextModelWithProjection) -> dict[str, Tensor]:
    """A text encoder's tensors under OpenCLIP's names: queries, keys and values in one."""
    names = {
        "embeddings.token_embedding.weight": "token_embedding.weight",
        "embeddings.position_embedding.weight": "positional_embedding",
        "final_layer_norm.": "ln_final.", "encoder.layers.": "transformer.resblocks.", "layer_norm1.": "ln_1.",
        "layer_norm2.": "ln_2.", "mlp.fc1.": "mlp.c_fc.", "mlp.fc2.": "mlp.c_proj.",
        "self_attn.out_proj.": "attn.out_proj.",
    }  # fmt: skip
    tensors: dict[str, Tensor] = {}
    state = {name.removeprefix("text_model."): value for name, value in encoder.state_dict().items()}
    for name, value in state.items():
        if name == "text_projection.weight":
            tensors["text_projection"] = value.T
        elif "q_proj" in name:
            kind = name.rsplit(".", 1)[1]
            stacked = torch.cat([state[name.replace("q_proj", f"{one}_proj")] for one in "qkv"])
            layer = name.split(".self_attn")[0].replace("encoder.layers.", "transformer.resblocks.")
            tensors[f"{layer}.attn.in_proj_{kind}"] = stacked
        elif "k_proj" not in name and "v_proj" not in name and not name.endswith("position_ids"):
            for ours, theirs in names.items():
                name = name.replace(ours, theirs)
            tensors[name] = value
    return tensors


def _renamed(name: str, blocks: dict[str, str], inner: dict[str, str]) -> str:
    for ours, theirs in blocks.items():
        if name.startswith(ours):
            rest = name.removeprefix(ours)
            for part, original in inner.items():
                if rest.startswith(part):
                    rest = original + rest.removeprefix(part)
                    break
            return theirs + rest
    raise KeyError(name)
