"""What the sampler costs beside the modules that it calls. `make bench` runs it.

    python -m benchmarks.sampler build/bench.json

Prints a table, and writes a list of {name, value, unit, baseline, ratio}, ratio = value / baseline:

guided_step_flops       one guided step at SD 1.5 shapes, counted while the sampler itself runs; the baseline is the
                        naive sum: UNet, BrushNet and ControlNet, each for both guidance halves, the control image
                        embedded anew
ended_control_flops     what a ControlNet costs in a step past its end; the baseline is what it costs before
sampler_step_seconds    wall time of one step of the bundled models; the baseline is the bare calls of UNet, BrushNet
                        and ControlNet with the same inputs, made in turn with the steps
blended_step_batch_<n>  CPU time of one step of method `blended` with a ControlNet; the baseline is diffusers' own
                        ControlNet inpainting with the same models (`benchmarks/stock.py`)
"""

from __future__ import annotations

import itertools
import json
import statistics
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.figures import Figure, print_figures
from benchmarks.sd15 import make_sampler, shot
from benchmarks.stock import against_stock
from pipelines.diffusion.control import canny_edges
from pipelines.diffusion.inpainting import InpaintingPipeline
from pipelines.diffusion.mask_guidance import without_embedding


class _Counted(Exception):
    """Ends the sampler after its last step: "meta" has no picture to decode."""


def step_flops(pipeline: InpaintingPipeline, **call: Any) -> list[int]:
    """FLOPs of each step but the first, by running the sampler on "meta"."""
    counter, totals = FlopCounterMode(display=False), []

    def after_step(step: int, steps: int) -> None:
        totals.append(counter.get_total_flops())
        if step == steps:
            raise _Counted

    try:
        with counter:
            pipeline(**{**shot(), **call}, callback=after_step)
    except _Counted:
        pass
    return [after - before for before, after in itertools.pairwise(totals)]


@torch.no_grad()
def naive_step_flops(pipeline: InpaintingPipeline, side: int = 512) -> int:
    """FLOPs of the three modules, each called with both guidance halves, the control image as pixels."""
    (controlnet,), brushnet = pipeline.controlnets, pipeline.brushnet
    assert brushnet is not None
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        latents, embeds = torch.empty(2, 4, side // 8, side // 8), torch.empty(2, 77, 768)
        timestep = torch.empty(2, dtype=torch.long)
        controlnet(latents, timestep, embeds, torch.empty(2, 3, side, side))
        brushnet(latents, timestep, embeds, torch.empty(2, 5, side // 8, side // 8))
        pipeline.unet(latents, timestep, embeds)
    total: int = counter.get_total_flops()
    return total


def count() -> list[Figure]:
    """`guided_step_flops` and `ended_control_flops`."""
    pipeline = make_sampler("meta")
    whole = step_flops(pipeline, num_inference_steps=2)[-1]
    past_end = step_flops(pipeline, num_inference_steps=4, control_ends=[0.5])[-1]
    without = step_flops(pipeline, num_inference_steps=2, control_images=[], control_masks=None)[-1]
    return [
        Figure.of("guided_step_flops", whole, "FLOP", naive_step_flops(pipeline)),
        Figure.of("ended_control_flops", past_end - without, "FLOP", whole - without),
    ]


class BareCalls:
    """Repeats the calls of the sampler's last step without the sampler: no masks, no hooks, no scheduler."""

    def __init__(self, pipeline: InpaintingPipeline):
        assert pipeline.brushnet is not None
        self.unet, self.brushnet = pipeline.unet, pipeline.brushnet
        (controlnet,) = pipeline.controlnets
        self.controlnet = without_embedding(controlnet)
        self.embedding = torch.empty(0)
        self.inputs: dict[Any, tuple[Any, Any]] = {}
        self.listening = True
        for module in (self.unet, self.brushnet):
            module.register_forward_pre_hook(self._listen, with_kwargs=True)

    def _listen(self, module: Any, args: Any, kwargs: Any) -> None:
        if self.listening:
            self.inputs[module] = (args, kwargs)

    def seconds(self) -> float:
        """Make the three calls; how long they took."""
        self.listening = False
        (sample, t, embeds), kwargs = self.inputs[self.unet]
        channels = self.controlnet.config.block_out_channels[0]
        if self.embedding.shape[0] != sample.shape[0]:
            self.embedding = torch.zeros(sample.shape[0], channels, *sample.shape[2:])
        began = time.perf_counter()
        self.controlnet(sample, t, embeds, self.embedding, return_dict=False)
        brushnet_args, brushnet_kwargs = self.inputs[self.brushnet]
        self.brushnet(*brushnet_args, **brushnet_kwargs)
        self.unet(sample, t, embeds, **kwargs)
        taken = time.perf_counter() - began
        self.listening = True
        return taken


def time_steps(steps: int = 40, warm_up: int = 4, side: int = 256) -> Figure:
    """`sampler_step_seconds`: medians over `steps` pairs of a step of the sampler and the same calls made bare."""
    pipeline = InpaintingPipeline.from_profile("mini", controls=("canny",))
    bare, sampled, called = BareCalls(pipeline), [], []
    began = 0.0

    def after_step(step: int, _: int) -> None:
        nonlocal began
        taken, alone = time.perf_counter() - began, bare.seconds()
        if step > warm_up:
            sampled.append(taken)
            called.append(alone)
        began = time.perf_counter()

    mask = np.zeros((side, side), np.float32)
    mask[side // 4 : -side // 8, side // 3 : -side // 3] = 1
    picture = Image.fromarray((mask * 200).astype(np.uint8)).convert("RGB")
    pipeline(
        image=picture,
        product_mask=mask,
        prompt="a lamp on a table",
        control_images=[canny_edges(picture)],
        num_inference_steps=warm_up + steps,
        guidance_scale=3.0,
        generator=torch.Generator().manual_seed(0),
        callback=after_step,
    )
    return Figure.of("sampler_step_seconds", statistics.median(sampled), "s", statistics.median(called))


def main() -> int:
    """Measure, print, write."""
    figures = [*count(), time_steps(), against_stock(1), against_stock(4)]
    print_figures(figures)
    if sys.argv[1:]:
        path = Path(sys.argv[1])
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps([asdict(figure) for figure in figures], indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
