"""Read a photo as shops upload it: any mode, any orientation, any size up to a limit that is checked before
decoding."""

from __future__ import annotations

import io
import logging
import struct
import warnings
import zlib
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError

from pipelines.errors import Rejected
from pipelines.settings import MAX_MEGAPIXELS

log = logging.getLogger(__name__)

FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "GIF", "BMP", "AVIF")
"""Formats that shops send. Each further decoder of Pillow's is attack surface without a user."""

MIN_SIDE = 32
MAX_ASPECT = 20

_BROKEN = (OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, TypeError, struct.error, zlib.error)
"""Exceptions that Pillow raises for broken files, by format."""


@dataclass(frozen=True, slots=True)
class Photo:
    """A decoded photo, upright, in sRGB.

    Attributes:
        rgb: `(H, W, 3)` uint8.
        alpha: `(H, W)` float32 in 0..1; None if the file has none or is opaque.
    """

    rgb: np.ndarray
    alpha: np.ndarray | None

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels."""
        return self.rgb.shape[1], self.rgb.shape[0]

    def image(self) -> Image.Image:
        """The colours as a Pillow image, mode RGB."""
        return Image.fromarray(self.rgb)


def read_photo(data: bytes, max_megapixels: float = MAX_MEGAPIXELS) -> Photo:
    """Decode the bytes of a photo.

    It applies EXIF orientation, converts CMYK, Lab and colour profiles to sRGB, scales 16 bits to 8, expands palettes
    and grey, and takes an animation's first frame.

    Args:
        data: The file.
        max_megapixels: The limit; the header is checked before a pixel is decoded.

    Raises:
        Rejected: the file is empty, not an image, broken, too large, too small or too narrow.
    """
    if not data:
        raise Rejected("the photo is empty (0 bytes); upload it again")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the limit below is ours
            image: Image.Image = Image.open(io.BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError:
        raise Rejected(f"the photo is not an image that can be read; send one of {', '.join(FORMATS)}") from None
    except Image.DecompressionBombError:
        raise Rejected(f"the photo is far larger than the limit of {max_megapixels:g} megapixels; shrink it") from None
    except _BROKEN as error:
        raise Rejected(f"the photo is broken ({error}); upload it again") from None

    width, height = image.size
    if width * height > max_megapixels * 1e6:
        megapixels = width * height / 1e6
        raise Rejected(
            f"the photo is {width} × {height} px ({megapixels:.0f} megapixels), "
            f"the limit is {max_megapixels:g}; shrink it"
        )
    if min(width, height) < MIN_SIDE:
        raise Rejected(f"the photo is {width} × {height} px, too small: each side needs {MIN_SIDE} px at least")
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise Rejected(f"the photo is {width} × {height} px, too narrow to hold a product")

    try:
        image.load()
    except _BROKEN as error:
        raise Rejected(f"the photo is cut short or broken ({error}); upload it again") from None
    image = _upright(image)
    alpha = _alpha(image)
    return Photo(_srgb(image), None if alpha is None or alpha.min() >= 254 / 255 else alpha)


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except _BROKEN as error:
        log.warning("unreadable EXIF, orientation left as it is: %s", error)
        return image


def _alpha(image: Image.Image) -> np.ndarray | None:
    """Return (H, W) float32, 0..1; None if the mode has no transparency."""
    if not image.has_transparency_data:
        return None
    if image.mode in ("I;16", "I"):  # one grey value marked transparent, 16 bits deep
        return (np.asarray(image) != image.info["transparency"]).astype(np.float32)
    return np.asarray(image.convert("RGBA").getchannel("A"), dtype=np.float32) / 255


def _srgb(image: Image.Image) -> np.ndarray:
    """Return (H, W, 3) uint8 colours; transparency is ignored."""
    if image.mode.startswith("I"):
        grey = np.asarray(image).astype(np.float32) / 257  # 65,535 becomes 255
        return np.repeat(np.clip(grey + 0.5, 0, 255).astype(np.uint8)[..., None], 3, axis=2)
    if image.mode == "F":
        grey = np.nan_to_num(np.asarray(image))
        grey = grey * 255 if grey.max(initial=0) <= 1 else grey
        return np.repeat(np.clip(grey + 0.5, 0, 255).astype(np.uint8)[..., None], 3, axis=2)
    if image.mode in ("RGB", "RGBA", "CMYK", "LAB", "L"):
        converted = _through_profile(image)
        if converted is not None:
            return np.array(converted)
    if image.mode in ("P", "PA", "LA", "La", "RGBa"):
        image = image.convert("RGBA")
    if image.mode == "RGBA":
        return np.array(image)[..., :3].copy()
    return np.array(image.convert("RGB"))


def _through_profile(image: Image.Image) -> Image.Image | None:
    """Convert the image to sRGB with its colour profile. Return None without a profile, for an sRGB one, or for an
    unusable one."""
    profile = image.info.get("icc_profile")
    if not profile and image.mode != "LAB":
        return None
    colours = image.convert("RGB") if image.mode == "RGBA" else image
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile)) if profile else ImageCms.createProfile("LAB")
        if "sRGB" in ImageCms.getProfileDescription(source):
            return None  # a conversion would only round the product's pixels
        return ImageCms.profileToProfile(colours, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
    except (ImageCms.PyCMSError, *_BROKEN) as error:
        log.warning("unusable colour profile, colours taken as sRGB: %s", error)
        return None


def png_bytes(image: Image.Image) -> bytes:
    """Encode losslessly; equal pixels give equal bytes."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=4)
    return buffer.getvalue()
