"""Judge a BrushNet by what it paints: E+ on a frozen set of products that it never learnt from.

    exam = Exam.prepare(folder, held_out_pictures, store, profile, products=12, seeds=2)
    exam.judge(brushnet)                                           # an Evaluation, and pictures to look at

Set, prompts and noise depend on the pictures alone, so two models are judged by the same pictures, one by one. BrushNet
paints by itself, without ControlNet and LoRA: what these add is the scene's choice and not the branch's merit.
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
"""Of the sampler: enough for E+ to settle, and half the price of a scene's 20."""

AT_ONCE = 4
SHOWN = 6
"""Products on the picture of what a model paints."""


@dataclass(frozen=True, slots=True)
class Exam:
    """The frozen set, one shot a product, with the sampler and the detector that it is painted and measured with."""

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
    ) -> Exam:
        """Freeze at most so many held-out products, each painted from so many seeds, and load what judges them.

        Raises UsageError where no product is held out.
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

    def judge(self, brushnet: BrushNetModel | None = None) -> tuple[Evaluation, list[NDArray[np.uint8]]]:
        """Paint the set with `brushnet` (the profile's own where None) and measure it.

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
        """One picture of each of these shots, product laid back; the noise is the product's and the seed's own."""
        masks = [np.asarray(self.shots.mask(n), np.float32) / 255 for n in batch]
        images = self.pipeline(
            image=[Image.fromarray(np.asarray(self.shots.image(n))) for n in batch],
            product_mask=masks,
            prompt=[self.shots.captions[n] for n in batch],
            num_inference_steps=self.steps,
            guidance_scale=GUIDANCE,
            generator=[torch.Generator("cpu").manual_seed(_noise(self.products[n], seed)) for n in batch],
        ).images
        return [(n, self._laid_back(n, np.asarray(image))) for n, image in zip(batch, images, strict=True)]

    def _laid_back(self, n: int, painted: NDArray[np.uint8]) -> NDArray[np.uint8]:
        return LaidProduct(np.asarray(self.shots.image(n)), np.asarray(self.shots.mask(n))).over(painted)

    def sheet(self, *rows: Sequence[NDArray[np.uint8]]) -> Image.Image:
        """The first products in columns: as they were laid out, then as painted, one row a model."""
        count = min(SHOWN, len(self.shots))
        shown = [np.asarray(self.shots.image(n)) for n in range(count)]
        return grid_picture([*shown, *(picture for row in rows for picture in row[:count])], columns=count)


def _noise(product: str, seed: int) -> int:
    return int(sha256_hex(f"{product}/{seed}".encode())[:8], 16) >> 1
