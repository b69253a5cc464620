"""Stage 4: bring the scene to full size, then lay the original product over it (paper, section 1: step 4).

A network enlarges what was generated. Of a backdrop nothing is enlarged but the light that was painted: the picture is
there at full size. The product comes from the photo: where the matte is opaque, the final pixel *is* the placed source
pixel.
"""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
from PIL import Image

from pipelines.contracts import Made, Output
from pipelines.stages.keys import is_enlarged
from pipelines.vision.backdrops import BackdropSettings, lay_backdrop
from pipelines.vision.light import read_light, relight
from pipelines.vision.photos import png_bytes, read_photo
from pipelines.vision.placement import Placement, lay_product
from pipelines.vision.upscalers import Upscaler
from pipelines.workflow import Recipe, Work


def load(recipe: Recipe) -> Upscaler | None:
    """Load the upscaler of the profile, where something is to be enlarged."""
    return Upscaler.from_profile(recipe.profile, recipe.device) if is_enlarged(recipe) else None


def compute(works: Sequence[Work], models: Upscaler | None, recipe: Recipe) -> list[Made]:
    """Bring each scene to its canvas and composite the product."""
    return [_finish(work, models, recipe) for work in works]


def _finish(work: Work, upscaler: Upscaler | None, recipe: Recipe) -> Made:
    placement = Placement.from_facts(dict(work.job.parameters["placement"]))
    canvas = (placement.canvas_width, placement.canvas_height)
    photo = read_photo(work.inputs["photo"], recipe.max_megapixels).image()
    product = lay_product(photo, Image.open(io.BytesIO(work.inputs["cutout"])), placement)
    if upscaler is None:
        settings = BackdropSettings.from_parameters(work.job.parameters["backdrop"])
        laid = lay_backdrop(work.inputs["backdrop"], canvas, settings)
        scene = laid.shaded(product, work.job.parameters["anchor"]).pixels
        if "light" in work.inputs:
            scene = relight(scene, read_light(work.inputs["light"]))
    else:
        plate = np.asarray(Image.open(io.BytesIO(work.inputs["plate"])).convert("RGB"))
        scene = upscaler.upscale(plate, canvas)
    return Made(
        outputs=(
            Output("final", png_bytes(Image.fromarray(product.over(scene))), "image/png"),
            Output("final_matte", png_bytes(Image.fromarray(product.matte)), "image/png"),
        ),
        facts={"width": placement.canvas_width, "height": placement.canvas_height},
    )
