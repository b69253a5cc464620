"""Stage 6: encode passed images, with their provenance in the file.

Encoding is a step like any other. The table checks decide on a run's whole set whether the encoded images are
published; that happens in one transaction (operators/publish.py).
"""

from __future__ import annotations

import io
from collections.abc import Sequence

from PIL import Image

from pipelines.contracts import Made, Output
from pipelines.workflow import Recipe, Work

MEDIA_TYPES = {"jpeg": "image/jpeg", "png": "image/png", "webp": "image/webp"}

XMP = """<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
<rdf:Description rdf:about="" xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/"
 Iptc4xmpExt:DigitalSourceType="{source_type}"/></rdf:RDF></x:xmpmeta>
<?xpacket end="w"?>"""


def load(recipe: Recipe) -> None:
    """Encoding needs no model."""


def compute(works: Sequence[Work], models: None, recipe: Recipe) -> list[Made]:
    """Encode each final image."""
    return [_encode(work) for work in works]


def _encode(work: Work) -> Made:
    kind = work.job.parameters["format"]
    image = Image.open(io.BytesIO(work.inputs["final"])).convert("RGB")
    xmp = XMP.format(source_type=work.job.parameters["digital_source_type"]).encode()
    data = io.BytesIO()
    if kind == "png":
        from PIL.PngImagePlugin import PngInfo

        info = PngInfo()
        info.add_itxt("XML:com.adobe.xmp", xmp.decode())
        image.save(data, "PNG", pnginfo=info)
    elif kind == "jpeg":
        image.save(data, "JPEG", quality=work.job.parameters["quality"], subsampling=0, xmp=xmp)
    else:
        image.save(data, "WEBP", quality=work.job.parameters["quality"], xmp=xmp)
    return Made(
        outputs=(Output("published", data.getvalue(), MEDIA_TYPES[kind]),),
        facts={"width": image.width, "height": image.height},
    )
