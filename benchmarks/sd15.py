"""A sampler of SD 1.5's real size from its published configurations: with random weights, or with none on "meta"."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, ControlNetModel, DDIMScheduler, UNet2DConditionModel
from PIL import Image
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from pipelines.diffusion.brushnet import BrushNetModel
from pipelines.diffusion.inpainting import InpaintingPipeline
from pipelines.models.profile import load_profile

CONFIGS = Path(__file__).parents[1] / "pipelines/profiles/sd15"
SIDE = 512


class HostScheduler(DDIMScheduler):
    """DDIM whose timesteps stay on the CPU: the sampler looks at their values, and "meta" has none."""

    def set_timesteps(self, num_inference_steps: int, device: Any = None) -> None:
        """As the parent's; `device` is not looked at."""
        super().set_timesteps(num_inference_steps, "cpu")


def make_sampler(device: str = "meta") -> InpaintingPipeline:
    """UNet, BrushNet, one ControlNet, VAE and text tower, float32.

    On "meta" they have shapes and no values, which suffices for counting. Elsewhere their weights are drawn from
    -0.02..0.02, in place: 2.1 G parameters are never there twice.
    """
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(UNet2DConditionModel.load_config(CONFIGS / "unet"))
        brushnet = BrushNetModel.from_config(BrushNetModel.load_config(CONFIGS / "brushnet"))
        controlnet = ControlNetModel.from_unet(unet, load_weights_from_unet=False)
        vae = AutoencoderKL.from_config(AutoencoderKL.load_config(CONFIGS / "vae"))
    text_encoder = CLIPTextModel(CLIPTextConfig.from_pretrained(CONFIGS / "text_encoder"))
    for module in (unet, brushnet, controlnet, vae):
        fill(module, device)
    clip = load_profile("mini").part("clip").path  # the published vocabulary is not here; any tokens cost the same
    tokenizer = CLIPTokenizer.from_pretrained(clip, local_files_only=True, model_max_length=77)
    scheduler = HostScheduler.from_config(DDIMScheduler.load_config(CONFIGS / "scheduler"))
    return InpaintingPipeline(
        vae.eval(),
        text_encoder.to(device).eval(),
        tokenizer,
        unet.eval(),
        scheduler,
        brushnet.eval(),
        [controlnet.eval()],
    )


def fill(module: nn.Module, device: str) -> None:
    """Give a module on "meta" weights on `device`; none where that is "meta", too."""
    module.to_empty(device=device)
    if device != "meta":
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.uniform_(-0.02, 0.02)


def shot() -> dict[str, Any]:
    """What the sampler is called with: one picture of 512 px, guidance on, one control behind the product's mask."""
    mask = np.zeros((SIDE, SIDE), np.float32)
    mask[128:448, 160:352] = 1
    picture = Image.fromarray((mask * 200).astype(np.uint8)).convert("RGB")
    return {
        "image": picture,
        "product_mask": mask,
        "prompt": "a lamp on a table",
        "guidance_scale": 7.5,
        "control_images": [picture],
        "control_masks": [mask],
        "generator": torch.Generator().manual_seed(0),
    }
