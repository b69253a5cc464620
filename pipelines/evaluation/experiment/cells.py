"""The cells of the experiment's table: each is one combination of method, weights and settings.

claim       {random masks, control arm, stage 1, stage 2} x {no ControlNet, unmasked, mask-guided}
methods     every other inpainting method, without and with mask guidance
ablations   the best arm with one setting changed at a time
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from pipelines.diffusion.mask_guidance import Resize

Group = Literal["claim", "methods", "ablations"]
Guidance = Literal["none", "unmasked", "guided"]

STEPS = 8
"""Sampler steps of a cell; a scene uses more."""

ARMS = {"random": "brushnet_random", "control": "brushnet_control", "stage1": "brushnet_salient", "stage2": "brushnet"}
"""The profile's BrushNet of each arm of the claim; `pipelines.training.brushnet.ARMS` trains them."""

SECOND = "base_high_key"
"""The profile's second base model, stored as its difference from the first (`pipelines.training.loras`)."""

BASELINE, CONTROL_ARM, TREATED = "random/unmasked", "control/unmasked", "stage2/guided"
"""The claim compares the baseline with the treated cell, and with the control arm."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One row of the table.

    Attributes:
        name: Unique. Its folder has the same name, with "-" for "/".
        group: The part of the table that it belongs to.
        method: A key of `pipelines.diffusion.inpainting.METHODS`.
        brushnet: The profile's part for method "brushnet".
        guidance: No ControlNet, an unmasked canny ControlNet, or one with mask guidance.
        refine: Diameters of closing, opening and dilation of the guiding mask, px.
        resize: How the mask is reduced to the residuals' sizes.
        masked: The residuals that the mask multiplies: all 13, or those of the two larger or two smaller sizes.
        edges: The source of the ControlNet's edges: the whole photo, the photo within the mask (as scenes with
            `source: photo`), or the cutout alone.
        lora: A LoRA of the profile at full strength. One of all attention and resnet layers acts as another base model.
        steps: Sampler steps.
        guided_steps: Classifier-free guidance acts between these shares of the steps.
        cache_interval: The whole UNet and the branches run every so many steps.
    """

    name: str
    group: Group
    method: str = "brushnet"
    brushnet: str = "brushnet"
    guidance: Guidance = "guided"
    refine: tuple[int, int, int] = (3, 0, 3)
    resize: Resize = "area"
    masked: Literal["all", "larger", "smaller"] = "all"
    edges: Literal["photo", "product", "cutout"] = "photo"
    lora: str | None = None
    steps: int = STEPS
    guided_steps: tuple[float, float] = (0.0, 1.0)
    cache_interval: int = 1

    @property
    def parts(self) -> tuple[str, ...]:
        """The profile's parts that it needs in addition to UNet, autoencoder, text encoder and scheduler."""
        named = {"brushnet": self.brushnet, "inpaint9": "unet_inpaint9", "controlnet_inpaint": "controlnet_inpaint"}
        parts = [named[self.method]] if self.method in named else []
        parts += ["controlnet_canny"] if self.guidance != "none" else []
        return (*parts, self.lora) if self.lora else tuple(parts)


CLAIM = tuple(
    Cell(f"{arm}/{guidance}", "claim", brushnet=part, guidance=guidance)
    for arm, part in ARMS.items()
    for guidance in ("none", "unmasked", "guided")
)
OTHERS = tuple(
    Cell(f"{method}/{guidance}", "methods", method=method, guidance=guidance)
    for method in ("blended", "soft", "inpaint9", "controlnet_inpaint")
    for guidance in ("unmasked", "guided")
)
_BEST = Cell("best", "ablations")
ABLATIONS = (
    replace(_BEST, name="mask not refined", refine=(0, 0, 0)),
    replace(_BEST, name="mask dilated by 9 px", refine=(3, 0, 9)),
    replace(_BEST, name="mask reduced bilinearly", resize="bilinear"),
    replace(_BEST, name="mask reduced by maximum", resize="max"),
    replace(_BEST, name="larger layers masked", masked="larger"),
    replace(_BEST, name="smaller layers masked", masked="smaller"),
    replace(_BEST, name="photo's edges within the product, unmasked", edges="product", guidance="unmasked"),
    replace(_BEST, name="photo's edges within the product, guided", edges="product"),
    replace(_BEST, name="cutout's edges, unmasked", edges="cutout", guidance="unmasked"),
    replace(_BEST, name="cutout's edges, guided", edges="cutout"),
    replace(_BEST, name="LoRA not trained with", lora="lora_oak_window"),
    Cell("second base, random/unmasked", "ablations", brushnet="brushnet_random", guidance="unmasked", lora=SECOND),
    replace(_BEST, name="second base, stage2/guided", lora=SECOND),
    replace(_BEST, name="4 steps", steps=4),
    replace(_BEST, name="guidance in the middle half of the steps", guided_steps=(0.25, 0.75)),
    replace(_BEST, name="features cached every 2nd step", cache_interval=2),
)
CELLS = (*CLAIM, *OTHERS, *ABLATIONS)
BY_PARITY = {
    "fooocus": "it is of SDXL, of which there is no small model here; head and patch match the published ones "
    "(tests/pipelines/diffusion/test_fooocus.py)",
    "inpaint9 and brushnet of SDXL": "there is no small SDXL here; BrushNet's injections match the published ones "
    "(tests/pipelines/diffusion/test_brushnet.py), the rest runs at tiny size (test_sdxl.py)",
}
"""Methods without a cell, and the tests that verify them instead."""
COMPARED = (
    (BASELINE, TREATED),
    (BASELINE, CONTROL_ARM),
    (BASELINE, "stage2/none"),
    (BASELINE, "random/guided"),
    ("second base, random/unmasked", "second base, stage2/guided"),
)
"""Cells that are compared pair by pair: (baseline, treated)."""
PAIRS = {"claim": 300, "methods": 100, "ablations": 100}
"""Pairs of product and scene in each cell of a full run."""
