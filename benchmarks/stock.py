"""A step of method `blended` beside a step of diffusers' own ControlNet inpainting, with the same models and inputs.

    python -m benchmarks.stock

Prints a table; `make bench` has the same rows. The models are the bundled ones, with the canny ControlNet.
"""

from __future__ import annotations

import itertools
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from diffusers import StableDiffusionControlNetInpaintPipeline
from PIL import Image, ImageOps

from benchmarks.figures import Figure, print_figures
from pipelines.diffusion.control import canny_edges
from pipelines.diffusion.inpainting import InpaintingPipeline

SIDE = 256


def step_seconds(run: Callable[[Callable[[], None]], Any]) -> list[float]:
    """CPU seconds of each step but the first of one call; `run` calls its argument after every step."""
    ends: list[float] = []
    run(lambda: ends.append(time.process_time()))
    return [end - start for start, end in itertools.pairwise(ends)]


def against_stock(batch: int, pairs: int = 5, steps: int = 6) -> Figure:
    """`blended_step_batch_<n>`: median CPU seconds of a step over `pairs` calls; stock diffusers is the baseline."""
    ours = InpaintingPipeline.from_profile("mini", method="blended", controls=("canny",))
    stock = StableDiffusionControlNetInpaintPipeline(
        vae=ours.vae,
        text_encoder=ours.text_encoder,
        tokenizer=ours.tokenizer,
        unet=ours.unet,
        controlnet=ours.controlnets[0],
        scheduler=ours.scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    stock.set_progress_bar_config(disable=True)
    mask = np.zeros((SIDE, SIDE), np.uint8)
    mask[SIDE // 4 : -SIDE // 8, SIDE // 3 : -SIDE // 3] = 255
    picture, product = Image.fromarray(mask).convert("RGB"), Image.fromarray(mask)
    edges = canny_edges(picture)
    call: dict[str, Any] = {
        "prompt": ["a lamp on a table"] * batch,
        "num_inference_steps": steps,
        "guidance_scale": 3.0,
    }

    def run_ours(after: Callable[[], None]) -> None:
        seeds = [torch.Generator().manual_seed(n) for n in range(batch)]
        control: dict[str, Any] = {"control_images": [edges], "mask_guidance": False, "callback": lambda *_: after()}
        ours([picture] * batch, [product] * batch, generator=seeds, **control, **call)

    def run_stock(after: Callable[[], None]) -> None:
        def ended(_: Any, step: int, t: int, kept: dict[str, Any]) -> dict[str, Any]:
            after()
            return kept

        seeds = [torch.Generator().manual_seed(n) for n in range(batch)]
        images = {"image": [picture] * batch, "mask_image": [ImageOps.invert(product)] * batch}
        control = {"control_image": [edges] * batch, "callback_on_step_end": ended, "output_type": "latent"}
        stock(**images, **control, generator=seeds, height=SIDE, width=SIDE, **call)

    pairs_of = [(step_seconds(run_ours), step_seconds(run_stock)) for _ in range(pairs)]
    own, its = (float(np.median([second for pair in pairs_of for second in pair[side]])) for side in (0, 1))
    return Figure.of(f"blended_step_batch_{batch}", own, "CPU s", its)


def main() -> int:
    """Measure and print."""
    print_figures([against_stock(1), against_stock(4)])
    return 0


if __name__ == "__main__":
    sys.exit(main())
