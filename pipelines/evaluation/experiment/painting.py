"""Paint the pairs of one cell with the sampler that shops use."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from diffusers import ControlNetModel
from PIL import Image
from torch import Tensor

from pipelines.diffusion.brushnet import BrushNetModel
from pipelines.diffusion.control import canny_edges
from pipelines.diffusion.inpainting import InpaintingPipeline
from pipelines.diffusion.mask_guidance import MaskGuidedControlNet, refine_mask
from pipelines.evaluation.experiment.cells import STEPS as STEPS  # with the other settings of every cell
from pipelines.evaluation.experiment.cells import Cell
from pipelines.evaluation.experiment.pairs import Pair
from pipelines.models.checkpoints import load_net
from pipelines.models.profile import Profile

GUIDANCE_SCALE, CONTROL_SCALE, CONTROL_END = 2.5, 0.8, 0.8
"""Sampler settings of every cell, those of the scenes."""

BATCH = 8

OUTPUTS, LARGER = 13, 6
"""Residuals of an SD 1.5 ControlNet; the first LARGER have the two larger sizes."""


@dataclass(slots=True)
class Painter:
    """Paints cells with the models of a profile; a method's modules stay loaded until another method is needed."""

    profile: Profile
    device: str = "cpu"
    _pipeline: InpaintingPipeline | None = field(default=None, init=False)
    _loaded: tuple[object, ...] = field(default=(), init=False)
    _controlnets: tuple[ControlNetModel, ...] = field(default=(), init=False)

    def paint(self, cell: Cell, pairs: Sequence[Pair]) -> tuple[list[Image.Image], float]:
        """Paint pairs of one size; returns the pictures before the paste, and the seconds per picture."""
        pipeline = self._ready(cell)
        started = time.monotonic()
        masks = torch.from_numpy(np.stack([pair.product.matte for pair in pairs])).float()[:, None] / 255
        controlled = cell.guidance != "none"
        refined = refine_mask(masks, *cell.refine)
        guides: Tensor | None = refined
        if controlled and cell.masked != "all":
            net, outputs = self._controlnets[0], range(OUTPUTS)
            layers = [(n < LARGER) == (cell.masked == "larger") for n in outputs]
            pipeline.controlnets = (MaskGuidedControlNet(net, refined, resize=cell.resize, masked_layers=layers),)
            guides = None  # the net has its own mask
        images = pipeline(
            image=[Image.fromarray(pair.product.colour) for pair in pairs],
            product_mask=list(masks),
            prompt=[pair.prompt for pair in pairs],
            num_inference_steps=cell.steps,
            guidance_scale=GUIDANCE_SCALE,
            guidance_start=cell.guided_steps[0],
            guidance_end=cell.guided_steps[1],
            cache_interval=cell.cache_interval,
            control_images=[[edges_of(pair, cell) for pair in pairs]] if controlled else [],
            control_masks=[guides] if controlled else None,
            control_scales=[CONTROL_SCALE] if controlled else None,
            control_ends=[CONTROL_END] if controlled else None,
            mask_guidance=cell.guidance == "guided",
            mask_resize=cell.resize,
            generator=[torch.Generator().manual_seed(pair.number) for pair in pairs],
        ).images
        return images, (time.monotonic() - started) / len(pairs)

    def _ready(self, cell: Cell) -> InpaintingPipeline:
        controls = ("canny",) if cell.guidance != "none" else ()
        wanted = (cell.method, cell.brushnet, controls, cell.lora)
        if self._pipeline is None or self._loaded != wanted:
            pipeline = InpaintingPipeline.from_profile(
                self.profile.name, cell.method, self.profile.models_dir, controls=controls
            )
            if cell.method == "brushnet":
                pipeline.brushnet = load_net(BrushNetModel, self.profile.part(cell.brushnet).check(), "a BrushNet")
            pipeline.to(self.device)
            if cell.lora:
                pipeline.load_lora(self.profile.part(cell.lora).check().path)
            self._pipeline, self._loaded, self._controlnets = pipeline, wanted, pipeline.controlnets
        self._pipeline.controlnets = self._controlnets
        return self._pipeline


def edges_of(pair: Pair, cell: Cell) -> Image.Image:
    """Edges for the cell's ControlNet: of the whole placed photo, of the photo within the product, or of the cutout."""
    if cell.edges == "photo":
        return canny_edges(pair.photo)
    matte = Image.fromarray(pair.product.matte)
    if cell.edges == "product":
        return canny_edges(pair.photo, matte)
    colour = Image.fromarray(pair.product.colour)
    alone = Image.composite(colour, Image.new("RGB", colour.size), matte)
    alone.putalpha(matte)
    return canny_edges(alone)
