"""What makes the sampler faster or smaller on a GPU. Every option is off by default, because it changes last bits.

docs/how-to/gpu.md says when to use each option, and what it does to the pixels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import psutil
import torch

if TYPE_CHECKING:
    from pipelines.diffusion.inpainting import InpaintingPipeline
    from pipelines.settings import Compute

REPEATED = ("BasicTransformerBlock",)
"""Blocks that are compiled. A net repeats them, so few compilations serve many blocks. The hooks of BrushNet and of
masked ControlNets are outside of them."""


def accelerate(pipeline: InpaintingPipeline, compute: Compute) -> None:
    """Apply the options of `compute` to a pipeline that has its device, precision and LoRAs.

    TF32 and cuDNN's autotuning are switches of the process.
    """
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = compute.tf32
    torch.backends.cudnn.benchmark = compute.cudnn_autotune
    pipeline.vae.enable_slicing() if compute.vae_slicing else pipeline.vae.disable_slicing()
    if compute.compile:
        for net in (pipeline.unet, pipeline.inpaint_controlnet, *pipeline.controlnets):
            for block in net.modules() if net is not None else ():
                if type(block).__name__ in REPEATED:
                    block.compile()


BYTES_A_SHOT = 2.1e9
"""Memory that one shot of 512 px takes in float32 besides the weights, with guidance and one ControlNet.

`python -m benchmarks.step_memory` measures it on the CPU: 10.5 GB in all, 8.4 GB of them weights.
"""

USABLE, MOST_SHOTS = 0.8, 64
"""Share of the free memory that a batch may take, and the largest batch: larger ones are no faster."""


def shots_that_fit(free: int, native_size: int, dtype: str) -> int:
    """Return how many shots of a model's `native_size` px fit into `free` bytes, 1..64. `dtype` is torch's name.

    A batch that does not fit after all is halved (`pipelines.workflow`).
    """
    needed = BYTES_A_SHOT * (native_size / 512) ** 2 * getattr(torch, dtype).itemsize / 4
    return max(1, min(MOST_SHOTS, int(USABLE * free / needed)))


def free_memory(device: str) -> int:
    """Return the free bytes of a CUDA device, or those of the machine for "cpu"."""
    return psutil.virtual_memory().available if device == "cpu" else torch.cuda.mem_get_info(device)[0]
