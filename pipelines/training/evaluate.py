"""Evaluate a BrushNet by its pictures: E+ on a frozen set of products that it was not trained on.

    evaluator = Evaluator.prepare(folder, held_out_pictures, store, profile, products=12, seeds=2)
    evaluator.evaluate(brushnet)                                           # an Evaluation, and pictures to look at

The set, the prompts and the noise depend only on the pictures, so two models are compared pair by pair. BrushNet paints
without ControlNet and LoRA, which belong to a scene and not to the branch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from pipelines.contracts import Store, sha256_hex
from pipelines.diffusion.brushnet import BrushNetModel
from pipelines.diffusion.inpainting import InpaintingPipeline
from pipelines.errors import UsageError
from pipelines.models.profile import Profile
from pipelines.quality.overcompletion import OvercompletionDetector
from pipelines.revisions.comparison import Evaluation, Score
from pipelines.scenes import Checks
from pipelines.settings import CPU, Compute
from pipelines.training.data import ShotPack
from pipelines.training.loop import grid_picture
from pipelines.training.sources import Picture, frozen_pictures, picture_pack
from pipelines.training.unet import GUIDANCE
from pipelines.vision.placement import LaidProduct

STEPS = 12
"""Sampler steps: enough for a stable E+, and about half of a scene's 20."""

AT_ONCE = 4
SHOWN = 6
"""Products on the sheet of painted pictures."""


@dataclass(frozen=True, slots=True)
class Evaluator:
    """The frozen set, one shot per product, with the sampler that paints it and the detector that measures it."""

    shots: ShotPack
    products: tuple[str, ...]
    seeds: int
    steps: int
    tau: float
    pipeline: InpaintingPipeline
    detector: OvercompletionDetector

    @classmethod
    def prepare(
        cls,
        folder: Path,
        held_out: Sequence[Picture],
        store: Store,
        profile: Profile,
        *,
        products: int = 12,
        seeds: int = 2,
        steps: int = STEPS,
        max_megapixels: float,
        compute: Compute = CPU,
    ) -> Evaluator:
        """Freeze at most `products` held-out products, each to be painted from `seeds` seeds, and load the models.

        Raises UsageError if no product is held out.
        """
        frozen = frozen_pictures(held_out, products)
        if not frozen:
            raise UsageError("none of the products is held out, so nothing can judge the model: every tenth name is")
        shots = picture_pack(folder, frozen, store, profile.native_size, len(frozen), max_megapixels)
        in_order = [p for p in frozen if p.kind == "photo"] + [p for p in frozen if p.kind == "cutout"]
        pipeline = InpaintingPipeline.from_profile(profile.name, method="brushnet", models_dir=profile.models_dir)
        return cls(
            shots=shots,
            products=tuple(picture.product for picture in in_order),
            seeds=seeds,
            steps=steps,
            tau=Checks().overcompletion,
            pipeline=pipeline.to(compute.device),
            detector=OvercompletionDetector.from_profile(profile),
        )

    def evaluate(self, brushnet: BrushNetModel | None = None) -> tuple[Evaluation, list[NDArray[np.uint8]]]:
        """Paint the set with `brushnet` (None: the profile's own) and measure it.

        Returns the evaluation, and the first seed's picture of every product, (H, W, 3) uint8.
        """
        own = self.pipeline.brushnet
        if brushnet is not None:
            self.pipeline.brushnet = brushnet.to(device=self.pipeline.device)
        try:
            painted = [
                (shot, seed, picture)
                for seed in range(self.seeds)
                for start in range(0, len(self.shots), AT_ONCE)
                for shot, picture in self._paint(range(start, min(start + AT_ONCE, len(self.shots))), seed)
            ]
        finally:
            self.pipeline.brushnet = own
        scores = [
            Score(self.products[n], seed, self.detector.measure(picture, np.asarray(self.shots.mask(n))).e_plus)
            for n, seed, picture in painted
        ]
        return Evaluation(self.tau, tuple(scores)), [picture for _, seed, picture in painted if seed == 0]

    def _paint(self, batch: range, seed: int) -> list[tuple[int, NDArray[np.uint8]]]:
        """Paint each of these shots and paste its product back; the noise depends on product and seed."""
        masks = [np.asarray(self.shots.mask(n), np.float32) / 255 for n in batch]
        images = self.pipeline(
            image=[Image.fromarray(np.asarray(self.shots.image(n))) for n in batch],
            product_mask=masks,
            prompt=[self.shots.captions[n] for n in batch],
            num_inference_steps=self.steps,
            guidance_scale=GUIDANCE,
            generator=[torch.Generator("cpu").manual_seed(_noise(self.products[n], seed)) for n in batch],
        ).images
        products = [LaidProduct(np.asarray(self.shots.image(n)), np.asarray(self.shots.mask(n))) for n in batch]
        pasted = [product.over(np.asarray(image)) for product, image in zip(products, images, strict=True)]
        return list(zip(batch, pasted, strict=True))

    def sheet(self, *rows: Sequence[NDArray[np.uint8]]) -> Image.Image:
        """The first products in columns: the shots, then one row of painted pictures per model."""
        count = min(SHOWN, len(self.shots))
        shown = [np.asarray(self.shots.image(n)) for n in range(count)]
        return grid_picture([*shown, *(picture for row in rows for picture in row[:count])], columns=count)


def _noise(product: str, seed: int) -> int:
    return int(sha256_hex(f"{product}/{seed}".encode())[:8], 16) >> 1
