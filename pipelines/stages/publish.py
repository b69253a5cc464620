"""Stage 6: encode passed images for their channel, with their provenance in the file, and hold the file to its rules.

Encoding is a step like any other. A file that breaks a rule of its channel ends as a rejected step, so it is never
shown. The table checks decide on a run's whole set whether the encoded images are published; that happens in one
transaction (operators/publish.py).
"""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from pipelines.contracts import Made, Output
from pipelines.errors import Rejected
from pipelines.quality.channel_rules import broken_rules
from pipelines.vision.placement import Placement, lay
from pipelines.vision.provenance import srgb_profile, xmp_packet
from pipelines.workflow import Recipe, Work

MEDIA_TYPES = {"jpeg": "image/jpeg", "png": "image/png", "webp": "image/webp", "avif": "image/avif"}


def load(recipe: Recipe) -> None:
    """Encoding needs no model."""


def compute(works: Sequence[Work], models: None, recipe: Recipe) -> list[Made]:
    """Encode each final image. Raises Rejected where the file breaks a rule of its channel."""
    return [_encode(work) for work in works]


def _encode(work: Work) -> Made:
    kind, said = work.job.parameters["format"], work.job.parameters.get("provenance")
    image = Image.open(io.BytesIO(work.inputs["final"])).convert("RGB")
    xmp = xmp_packet(work.job.parameters["digital_source_type"], said)
    how = {"icc_profile": srgb_profile()} if said is not None else {}
    data = io.BytesIO()
    if kind == "png":
        info = PngInfo()
        info.add_itxt("XML:com.adobe.xmp", xmp.decode())
        image.save(data, "PNG", pnginfo=info, **how)
    elif kind == "jpeg":
        image.save(data, "JPEG", quality=work.job.parameters["quality"], subsampling=0, xmp=xmp, **how)
    else:
        image.save(data, kind.upper(), quality=work.job.parameters["quality"], xmp=xmp, **how)
    _hold_to_rules(work, data.getvalue())
    return Made(
        outputs=(Output("published", data.getvalue(), MEDIA_TYPES[kind]),),
        facts={"width": image.width, "height": image.height},
    )


def _hold_to_rules(work: Work, data: bytes) -> None:
    """Raises Rejected with every rule of the channel that the file breaks."""
    if "rules" not in work.job.parameters:
        return
    placement = Placement.from_facts(dict(work.job.parameters["placement"]))
    matte = None
    if "cutout" in work.inputs:
        alpha = Image.open(io.BytesIO(work.inputs["cutout"])).getchannel("A")
        canvas = Image.new("L", (placement.canvas_width, placement.canvas_height))
        canvas.paste(lay(alpha, placement), (placement.left, placement.top))
        matte = np.asarray(canvas)
    broken = broken_rules(data, work.job.parameters["rules"], placement, matte)
    if broken:
        raise Rejected(f"channel {work.job.parameters['channel']}: {'; '.join(broken)}")
