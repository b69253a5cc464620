"""Stage 4: enlarge the scene, then lay the original product over it (paper, section 1: step 4).

The network enlarges only what was generated. The product comes from the photo: where the matte is opaque, the final
pixel *is* the placed source pixel.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image

from pipelines.contracts import Job, Made, Output, Shot, Step
from pipelines.vision.photos import png_bytes, read_photo
from pipelines.vision.placement import Placement, lay_product
from pipelines.vision.upscalers import Upscaler
from pipelines.workflow import Recipe, Stage, Work


def job(shot: Shot, upstream: Mapping[str, Step], recipe: Recipe, candidate: int) -> Job:
    """What the final image depends on: the chosen candidate's plate, photo, cutout, placement, upscaler."""
    return Job(
        stage=STAGE.name,
        version=STAGE.version,
        inputs={
            "plate": upstream["generate"].output("plate"),
            "photo": shot.product.photo or "",
            "cutout": upstream["cutout"].output("cutout"),
        },
        parameters={"placement": dict(upstream["generate"].facts["placement"])},
        models=(recipe.profile.ref("upscaler"),),
        attempt=recipe.attempt,
    )


def load(recipe: Recipe) -> Upscaler:
    """Load the upscaler of the profile."""
    return Upscaler.from_profile(recipe.profile, recipe.device)


def compute(works: Sequence[Work], models: Upscaler, recipe: Recipe) -> list[Made]:
    """Enlarge each scene to its canvas and composite the product."""
    return [_finish(work, models, recipe) for work in works]


def _finish(work: Work, upscaler: Upscaler, recipe: Recipe) -> Made:
    placement = Placement.from_facts(dict(work.job.parameters["placement"]))
    plate = np.asarray(Image.open(io.BytesIO(work.inputs["plate"])).convert("RGB"))
    scene = upscaler.upscale(plate, (placement.canvas_width, placement.canvas_height))
    photo = read_photo(work.inputs["photo"], recipe.max_megapixels).image()
    product = lay_product(photo, Image.open(io.BytesIO(work.inputs["cutout"])), placement)
    return Made(
        outputs=(
            Output("final", png_bytes(Image.fromarray(product.over(scene))), "image/png"),
            Output("final_matte", png_bytes(Image.fromarray(product.matte)), "image/png"),
        ),
        facts={"width": placement.canvas_width, "height": placement.canvas_height},
    )


STAGE = Stage(name="upscale", version=3, needs=("generate",), job=job, load=load, compute=compute)
