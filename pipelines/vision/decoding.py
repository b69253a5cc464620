"""Decode strangers' photos, in a process of its own: `python -c "from pipelines.vision.decoding import serve; …"`.

The process has a small interpreter, none of the parent's secrets in its environment, and limits that the kernel keeps:

    RLIMIT_CPU    seconds of all its threads, set anew for each photo; beyond them the kernel ends the process
    RLIMIT_AS     address space, set anew for each photo by its size in pixels; beyond it allocation fails
    RLIMIT_FSIZE  0: it writes no file

So no file, whatever its structure and whatever error a decoder has, takes more than that. `photos.py` starts the
process, and starts another one if it ends. The checks before decoding (`containers.py`) give better reasons.
"""

from __future__ import annotations

import io
import logging
import math
import os
import re
import resource
import signal
import socket
import sys
import traceback
import warnings
from dataclasses import dataclass
from logging.handlers import BufferingHandler
from typing import Any

import numpy as np
from PIL import AvifImagePlugin, ExifTags, Image, ImageOps, UnidentifiedImageError

from pipelines.errors import Rejected
from pipelines.vision.child import receive, send
from pipelines.vision.containers import (
    PNG_SIGNATURE,
    ColourTags,
    avif_cicp,
    check_jpeg,
    essential_png,
    webp_size,
)
from pipelines.vision.srgb import ADOBE_RGB, to_srgb

log = logging.getLogger(__name__)

FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "GIF", "BMP", "AVIF")
"""Formats that shops send. Each further decoder of Pillow's is attack surface without a user."""

MIN_SIDE = 32
MAX_ASPECT = 20

CPU_SECONDS, CPU_SECONDS_A_MEGAPIXEL = 4, 0.4
"""CPU time for one photo. The slowest that encoders write, 16-bit PNG and AVIF, take a tenth of it."""

MEMORY_BYTES, MEMORY_BYTES_A_PIXEL = 384 * 2**20, 64
"""Address space for one photo beside what the process has. AVIF with alpha takes 47 bytes a pixel, other formats 32."""

_SIGNATURES = {
    "JPEG": re.compile(rb"\xff\xd8\xff"),
    "PNG": re.compile(rb"\x89PNG"),
    "WEBP": re.compile(rb"RIFF....WEBP", re.DOTALL),
    "TIFF": re.compile(rb"II[*+]\0|MM\0[*+]"),
    "GIF": re.compile(rb"GIF8"),
    "BMP": re.compile(rb"BM....\0\0\0\0", re.DOTALL),
    "AVIF": re.compile(rb"....ftypavi[fs]", re.DOTALL),
}

_OTHERS = {
    "a HEIC picture, as iPhones take them": re.compile(rb"....ftyp(hei[cxms]|hevc|mif1|msf1)", re.DOTALL),
    "a JPEG 2000 picture": re.compile(rb"\0\0\0\x0cjP  |\xff\x4f\xff\x51"),
    "a JPEG XL picture": re.compile(rb"\0\0\0\x0cJXL |\xff\x0a"),
    "a Photoshop file": re.compile(rb"8BPS"),
    "a PDF": re.compile(rb"%PDF"),
    "a web page, perhaps an error or a login": re.compile(rb"\s*<(!doctype\s+html|html)", re.IGNORECASE),
    "a drawing (SVG)": re.compile(rb"\s*(<\?xml[^>]*>\s*)?(<!--.*?-->\s*)?<svg", re.IGNORECASE | re.DOTALL),
    "a video": re.compile(rb"....ftyp(isom|mp4|M4V|qt  )|\x1aE\xdf\xa3", re.DOTALL),
    "a zip file": re.compile(rb"PK\x03\x04"),
}
"""What shops send in place of a photo."""

OUT_OF_MEMORY = "the photo takes more memory to decode than one of its size should; export it as a plain PNG or JPEG"

PREVIEW_QUALITY = 82
MAX_NOTES = 100


@dataclass(frozen=True, slots=True)
class Decoded:
    """A decoded photo, upright, in sRGB: `rgb` is (H, W, 3) uint8, `alpha` (H, W) uint8 or None if all is opaque."""

    rgb: np.ndarray
    alpha: np.ndarray | None


@dataclass(frozen=True, slots=True)
class Bounds:
    """What this process had used when a photo came: CPU seconds, and bytes of address space."""

    seconds: float
    memory: int

    @classmethod
    def now(cls) -> Bounds:
        """Return what the process has used up to now."""
        used = resource.getrusage(resource.RUSAGE_SELF)
        with open("/proc/self/statm") as file:
            return cls(used.ru_utime + used.ru_stime, int(file.read().split()[0]) * resource.getpagesize())

    def allow(self, pixels: int) -> None:
        """Limit the process to what a photo of this many pixels may take beside that."""
        seconds = self.seconds + CPU_SECONDS + CPU_SECONDS_A_MEGAPIXEL * pixels / 1e6
        _limit(resource.RLIMIT_CPU, math.ceil(seconds))
        _limit(resource.RLIMIT_AS, self.memory + MEMORY_BYTES + MEMORY_BYTES_A_PIXEL * pixels)


def _limit(which: int, value: int | None) -> None:
    """Set a limit that can be lifted again; None lifts it, as far as the system's own limit."""
    hard = resource.getrlimit(which)[1]
    wanted = hard if value is None else value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(which, (wanted, hard))


def decode(data: bytes, max_megapixels: float, bounds: Bounds) -> Decoded:
    """Decode the bytes of a photo; see `photos.read_photo`.

    Args:
        data: The file.
        max_megapixels: The limit on the size; the header is checked before a pixel is decoded.
        bounds: Limits this process by the photo's size.

    Raises:
        Rejected: the file is not an image, broken, too large, too small, too narrow or of a hostile structure.
    """
    tags = ColourTags()
    if data.startswith(PNG_SIGNATURE):
        data, tags = essential_png(data)
    elif data.startswith(b"\xff\xd8"):
        check_jpeg(data)
    elif (size := webp_size(data)) is not None:
        _check_size(*size, max_megapixels, bounds)
    elif data[4:8] == b"ftyp":
        tags = ColourTags(cicp=avif_cicp(data))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # on decompression bombs: the limit below is ours; on odd metadata
            image: Image.Image = Image.open(io.BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError:
        for name, signature in _SIGNATURES.items():
            if signature.match(data):
                raise Rejected(
                    f"the photo is broken or a rare kind of {name}; export it again as JPEG or 8-bit PNG"
                ) from None
        what = next(
            (name for name, kind in _OTHERS.items() if kind.match(data[:1000])), "not an image that can be read"
        )
        raise Rejected(f"the photo is {what}; send one of {', '.join(FORMATS)}") from None
    except Image.DecompressionBombError:
        raise Rejected(
            f"the photo is far larger than the limit of {max_megapixels:g} megapixels; shrink it",
            {"max_megapixels": max_megapixels},
        ) from None
    except MemoryError:
        raise
    except Exception as error:  # a decoder's error, of whatever type, is about the file
        raise Rejected(f"the photo is broken ({_said(error)}); upload it again") from None
    _check_size(*image.size, max_megapixels, bounds)
    try:
        image.load()
    except MemoryError:
        raise
    except Exception as error:
        raise Rejected(f"the photo is cut short or broken ({_said(error)}); upload it again") from None
    if "icc_profile" in image.info:
        tags = ColourTags()  # JPEG, WebP, TIFF; of AVIF's both, the profile holds for colours (MIAF, 7.3.6.4)
    elif image.format in ("JPEG", "MPO") and _is_adobe_rgb(image):
        tags = ADOBE_RGB
    image = _upright(image)
    alpha = _alpha(image)
    return Decoded(to_srgb(image, tags), None if alpha is None or alpha.min() >= 254 else alpha)


def _check_size(width: int, height: int, max_megapixels: float, bounds: Bounds) -> None:
    if width * height > max_megapixels * 1e6:
        megapixels = width * height / 1e6
        raise Rejected(
            f"the photo is {width} × {height} px ({megapixels:.0f} megapixels), "
            f"the limit is {max_megapixels:g}; shrink it",
            {"max_megapixels": max_megapixels},
        )
    if min(width, height) < MIN_SIDE:
        raise Rejected(
            f"the photo is {width} × {height} px, too small: each side needs {MIN_SIDE} px at least; send a larger one"
        )
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise Rejected(
            f"the photo is {width} × {height} px, too narrow to hold a product; send one that is not a strip"
        )
    bounds.allow(width * height)


def _said(error: Exception) -> str:
    """Return what an error says, on one short line of printable characters."""
    text = " ".join(str(error).split()) or type(error).__name__
    return "".join(c if c.isprintable() else "?" for c in text)[:120]


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except MemoryError:
        raise
    except Exception as error:
        log.warning("unreadable EXIF, orientation left as it is: %s", _said(error))
        return image


def _is_adobe_rgb(image: Image.Image) -> bool:
    """Return whether a camera says that it wrote Adobe RGB: by EXIF alone (DCF 2.0), without a profile."""
    try:
        return image.getexif().get_ifd(ExifTags.IFD.Interop).get(1) == "R03"
    except MemoryError:
        raise
    except Exception:  # unreadable EXIF
        return False


def _alpha(image: Image.Image) -> np.ndarray | None:
    """Return (H, W) uint8; None if the mode has no transparency."""
    if not image.has_transparency_data:
        return None
    if image.mode.startswith("I"):  # one grey value marked transparent, 16 bits deep
        return np.where(np.asarray(image) == image.info["transparency"], 0, 255).astype(np.uint8)
    return np.array(image.convert("RGBA").getchannel("A"))


def _preview(photo: Decoded, size: int) -> bytes:
    """Return the photo as WebP, at most `size` px on its longer side."""
    image = Image.fromarray(photo.rgb)
    if photo.alpha is not None:
        image.putalpha(Image.fromarray(photo.alpha))
    image.thumbnail((size, size), Image.Resampling.LANCZOS)
    out = io.BytesIO()
    image.save(out, "WEBP", quality=PREVIEW_QUALITY)
    return out.getvalue()


def serve(descriptor: int) -> None:
    """Answer requests on a socket until the other side closes it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle; then it closes the socket
    Image.init()  # all imports before the first limit
    AvifImagePlugin.DEFAULT_MAX_THREADS = 1
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())  # libtiff prints what strangers' files say
    connection = socket.socket(fileno=descriptor)
    notes = BufferingHandler(capacity=MAX_NOTES)
    logging.getLogger("pipelines").addHandler(notes)
    while True:
        try:
            request, (data,) = receive(connection)
        except EOFError:
            return
        head, bodies = _answer(data.tobytes(), request["max_megapixels"], request["preview"])
        send(connection, head | {"notes": [record.getMessage() for record in notes.buffer]}, *bodies)
        notes.flush()
        _limit(resource.RLIMIT_CPU, None)
        _limit(resource.RLIMIT_AS, None)


def _answer(data: bytes, max_megapixels: float, size: int) -> tuple[dict[str, Any], list[Any]]:
    """Return head and bodies of the answer: a photo, its preview of `size` px, or why there is none."""
    bounds = Bounds.now()
    bounds.allow(0)
    try:
        photo = decode(data, max_megapixels, bounds)
        preview = _preview(photo, size) if size else b""
    except Rejected as rejection:
        return {"rejected": rejection.reason, "facts": rejection.facts}, []
    except MemoryError:
        return {"rejected": OUT_OF_MEMORY}, []
    except Exception:  # ours: decoders' errors are caught where decoders are called
        return {"error": traceback.format_exc()}, []
    if size:
        return {}, [preview]
    planes = [photo.rgb] if photo.alpha is None else [photo.rgb, photo.alpha]
    return {"shape": photo.rgb.shape}, [np.ascontiguousarray(plane) for plane in planes]
