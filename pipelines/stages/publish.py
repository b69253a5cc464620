"""Stage 6: encode passed images for their channel, with their provenance in the file, sign it, hold it to its rules.

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
from pipelines.vision.credentials import Signer, statement
from pipelines.vision.placement import Placement, lay
from pipelines.vision.provenance import srgb_profile, xmp_packet
from pipelines.workflow import Recipe, Work

MEDIA_TYPES = {"jpeg": "image/jpeg", "png": "image/png", "webp": "image/webp", "avif": "image/avif"}


def load(recipe: Recipe) -> Signer | None:
    """What signs, where files are signed. Encoding needs no model. Raises UsageError where nothing can be signed."""
    return Signer(recipe.credentials) if recipe.credentials is not None else None


def compute(works: Sequence[Work], models: Signer | None, recipe: Recipe) -> list[Made]:
    """Encode each final image, and sign the file. Raises Rejected where it breaks a rule of its channel."""
    return [_encode(work, models) for work in works]


def _encode(work: Work, signer: Signer | None) -> Made:
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
    file = data.getvalue()
    if signer is not None:
        photo, title = work.job.parameters["credentials"]["photo"], said["sku"] if said is not None else ""
        file = signer.sign(file, MEDIA_TYPES[kind], statement(work.job.parameters["digital_source_type"], photo, title))
    _hold_to_rules(work, file)
    return Made(
        outputs=(Output("published", file, MEDIA_TYPES[kind]),),
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
