"""Stage 4: bring the scene to full size, then lay the original product over it (paper, section 1: step 4).

A network enlarges what was generated. Of a backdrop nothing is enlarged but the light that was painted: the picture is
there at full size. The product comes from the photo: where the matte is opaque, the final pixel *is* the placed source
pixel.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from pipelines.contracts import Job, Made, Output, Shot, Step
from pipelines.vision.backdrops import DRAWN, BackdropSettings, lay_backdrop
from pipelines.vision.light import read_light, relight
from pipelines.vision.photos import png_bytes, read_photo
from pipelines.vision.placement import Placement, lay_product
from pipelines.vision.upscalers import Upscaler
from pipelines.workflow import Recipe, Stage, Work


def job(shot: Shot, upstream: Mapping[str, Step], recipe: Recipe, candidate: int) -> Job:
    """What the final image depends on: photo, cutout, placement, and the chosen candidate's plate with the upscaler, or
    its light with the backdrop."""
    made = upstream["generate"]
    product = {"photo": shot.product.photo or "", "cutout": upstream["cutout"].output("cutout")}
    parameters: dict[str, Any] = {"placement": dict(made.facts["placement"])}
    if _is_enlarged(recipe):
        inputs = {"plate": made.output("plate")}
    else:
        inputs = {"backdrop": made.job.inputs["backdrop"]}
        if made.job.parameters["backdrop"]["mode"] == "adjust":
            inputs["light"] = made.output("light")
        parameters |= {
            "backdrop": dict(made.job.parameters["backdrop"]),
            "anchor": made.job.parameters["placement"]["anchor"],
            "drawn": DRAWN,
        }
    return Job(
        stage=STAGE.name,
        version=STAGE.version,
        inputs=inputs | product,
        parameters=parameters,
        models=(recipe.profile.ref("upscaler"),) if _is_enlarged(recipe) else (),
        attempt=recipe.attempt,
    )


def _is_enlarged(recipe: Recipe) -> bool:
    """Whether the painted picture itself goes on to full size."""
    return recipe.scene.backdrop is None or recipe.scene.backdrop.mode == "transform"


def load(recipe: Recipe) -> Upscaler | None:
    """Load the upscaler of the profile, where something is to be enlarged."""
    return Upscaler.from_profile(recipe.profile, recipe.device) if _is_enlarged(recipe) else None


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


STAGE = Stage(name="upscale", version=3, needs=("generate",), job=job, load=load, compute=compute)
