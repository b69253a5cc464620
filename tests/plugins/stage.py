"""Pictures that look like a shot's, made of the sample in a moment: no model runs."""

from __future__ import annotations

import io
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from pipelines.settings import ROOT

SIDE = 800
SAMPLE = ROOT / "pipelines" / "sample" / "images"
BACKDROP = ROOT / "pipelines" / "scenes" / "backdrops" / "oak-window-1.webp"
STAGED = {
    "SMP-003": ("Red capsule espresso machine", "smp-003-red-capsule-espresso-machine.jpg"),
    "SMP-004": ("Mustard tilt-head stand mixer", "smp-004-mustard-tilt-head-stand-mixer.jpg"),
    "SMP-007": ("Cream shoulder handbag", "smp-007-cream-shoulder-handbag.jpg"),
}


@lru_cache
def staged(sku: str) -> dict[str, bytes]:
    """Photo, cutout, raw, final and where, by role: the sample's photo on paper, its product on a backdrop."""
    photo = Image.open(SAMPLE / STAGED[sku][1]).convert("RGB").resize((SIDE, SIDE))
    paper = np.asarray(photo).min(axis=2)
    matte = Image.fromarray(np.where(paper < 205, 255, 0).astype(np.uint8)).filter(ImageFilter.MaxFilter(21))
    matte = matte.filter(ImageFilter.MinFilter(23)).filter(ImageFilter.GaussianBlur(1))
    cutout = photo.copy()
    cutout.putalpha(matte)
    final = Image.open(BACKDROP).convert("RGB").resize((SIDE, SIDE))
    small = cutout.resize((560, 560))
    final.paste(small, (120, 190), small)
    raw = final.resize((200, 200)).filter(ImageFilter.GaussianBlur(1.5)).resize((512, 512))
    where = Image.blend(final, Image.new("RGB", final.size, "#808080"), 0.45)
    glow = Image.new("L", final.size, 0)
    ImageDraw.Draw(glow).ellipse((560, 420, 700, 620), fill=210)
    where.paste(Image.new("RGB", final.size, "#e02020"), mask=glow.filter(ImageFilter.GaussianBlur(18)))
    return {
        role: _png(image)
        for role, image in {"photo": photo, "cutout": cutout, "raw": raw, "final": final, "where": where}.items()
    }


def _png(image: Image.Image) -> bytes:
    out = io.BytesIO()
    image.save(out, "PNG", compress_level=1)
    return out.getvalue()
