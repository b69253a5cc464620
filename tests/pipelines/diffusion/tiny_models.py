"""Tiny random models of the real classes, woken up so that every part of them matters."""

from __future__ import annotations

import json
from dataclasses import dataclass

import numpy as np
import torch
from diffusers import AutoencoderKL, ControlNetModel, DDIMScheduler, UNet2DConditionModel
from PIL import Image, ImageDraw
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from pipelines.diffusion.brushnet import BrushNetModel
from pipelines.diffusion.fooocus import InpaintHead
from pipelines.diffusion.inpainting import InpaintingPipeline

SIDE = 64


@dataclass
class Parts:
    """The modules of a tiny SD 1.5 (four levels, two layers each, an 8x autoencoder) or SDXL (three levels)."""

    vae: AutoencoderKL
    text_encoder: CLIPTextModel
    tokenizer: CLIPTokenizer
    unet: UNet2DConditionModel
    brushnet: BrushNetModel
    controlnet: ControlNetModel
    scheduler_config: dict
    text_encoder_2: CLIPTextModelWithProjection | None = None
    tokenizer_2: CLIPTokenizer | None = None

    @property
    def scheduler(self) -> DDIMScheduler:
        return DDIMScheduler(**self.scheduler_config)

    def as_kwargs(self) -> dict:
        names = ("vae", "text_encoder", "tokenizer", "unet", "scheduler", "brushnet", "text_encoder_2", "tokenizer_2")
        return {name: getattr(self, name) for name in names}

    def pipeline(self, method: str, controls: int = 0) -> InpaintingPipeline:
        """The sampler of any method, with as many ControlNets."""
        modules = self.as_kwargs()
        if method == "inpaint9":
            make = make_unet if self.text_encoder_2 is None else make_sdxl_unet
            modules["unet"] = make(in_channels=9)
        elif method == "controlnet_inpaint":
            net = make_controlnet(self.unet, seed=3)
            embedding = net.controlnet_cond_embedding
            wake([embedding.conv_in, *embedding.blocks], scale=0.17, seed=3)  # as drawn, it hardly tells colours apart
            modules["inpaint_controlnet"] = net
        elif method == "fooocus":
            modules["inpaint_head"] = make_head(self.unet)
        nets = [make_controlnet(self.unet, seed=4 + n) for n in range(controls)]
        return InpaintingPipeline(**modules, controlnets=nets, method=method)


def make_unet(layers_per_block: int = 2, in_channels: int = 4) -> UNet2DConditionModel:
    torch.manual_seed(0)
    return UNet2DConditionModel(
        sample_size=64,
        in_channels=in_channels,
        block_out_channels=(32, 64, 64, 64),
        layers_per_block=layers_per_block,
        down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
        cross_attention_dim=32,
        attention_head_dim=8,
        norm_num_groups=16,
    ).eval()


def make_sdxl_unet(layers_per_block: int = 2, in_channels: int = 4) -> UNet2DConditionModel:
    """A tiny SDXL UNet: three levels, none of the first's layers with attention, pooled text (32) and sizes."""
    torch.manual_seed(0)
    return UNet2DConditionModel(
        sample_size=8,
        in_channels=in_channels,
        block_out_channels=(32, 64, 64),
        layers_per_block=layers_per_block,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 1, 2),
        cross_attention_dim=64,
        attention_head_dim=8,
        norm_num_groups=16,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + 32,
    ).eval()


def make_head(unet: UNet2DConditionModel) -> InpaintHead:
    width = unet.config.block_out_channels[0]
    return InpaintHead(torch.randn(width, 5, 3, 3, generator=torch.Generator().manual_seed(6)) * 0.3).eval()


def wake(zero_convs, scale: float = 0.1, seed: int = 2) -> None:
    """Give zero convolutions weights, as training would."""
    generator = torch.Generator().manual_seed(seed)
    for conv in zero_convs:
        conv.weight.data.copy_(torch.randn(conv.weight.shape, generator=generator) * scale)


def make_brushnet(unet: UNet2DConditionModel) -> BrushNetModel:
    brushnet = BrushNetModel.from_unet(unet).eval()
    wake([*brushnet.brushnet_down_blocks, brushnet.brushnet_mid_block, *brushnet.brushnet_up_blocks])
    return brushnet


def make_controlnet(unet: UNet2DConditionModel, seed: int = 2) -> ControlNetModel:
    controlnet = ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(8, 16, 16, 16)).eval()
    embedding = controlnet.controlnet_cond_embedding.conv_out
    wake([*controlnet.controlnet_down_blocks, controlnet.controlnet_mid_block, embedding], 0.3, seed)
    return controlnet


def make_tokenizer(folder) -> CLIPTokenizer:
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=16)


def make_text_config(tokenizer: CLIPTokenizer, **other) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=16,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        **other,
    )


def make_vae() -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(16, 32, 32, 32),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        norm_num_groups=8,
        mid_block_add_attention=False,
        scaling_factor=1.3,
        latents_mean=[0.1, 0.0, -0.1, 0.2],
        latents_std=[1.0, 0.9, 1.1, 1.0],
    ).eval()


def make_parts(folder, sdxl: bool = False) -> Parts:
    """Build them; `folder` takes the tokenizer's files."""
    torch.manual_seed(0)
    tokenizer = make_tokenizer(folder)
    vae = make_vae()
    text_encoder = CLIPTextModel(make_text_config(tokenizer)).eval()
    second = None
    if sdxl:
        config = make_text_config(tokenizer, projection_dim=32, hidden_act="gelu")
        second = CLIPTextModelWithProjection(config).eval()
    unet = make_sdxl_unet() if sdxl else make_unet()
    return Parts(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet,
        brushnet=make_brushnet(unet),
        controlnet=make_controlnet(unet),
        scheduler_config={
            "beta_start": 0.00085,
            "beta_end": 0.012,
            "beta_schedule": "scaled_linear",
            "clip_sample": False,
            "set_alpha_to_one": False,
            "steps_offset": 1,
        },
        text_encoder_2=second,
        tokenizer_2=tokenizer if sdxl else None,
    )


def product(colour: str = "red", shift: int = 0) -> tuple[Image.Image, Image.Image]:
    """A product on black, and its mask."""
    image, mask = Image.new("RGB", (SIDE, SIDE)), Image.new("L", (SIDE, SIDE))
    box = (20 + shift, 16, 44 + shift, 56)
    ImageDraw.Draw(image).rectangle(box, fill=colour)
    ImageDraw.Draw(image).line((24 + shift, 20, 40 + shift, 50), fill="white", width=3)
    ImageDraw.Draw(mask).rectangle(box, fill=255)
    return image, mask


def difference(a: Image.Image, b: Image.Image) -> int:
    """Largest difference of two pictures, 0..255."""
    return int(np.abs(np.asarray(a, int) - np.asarray(b, int)).max())
