"""Colours of any mode, profile or tag as sRGB: one path for all of them.

A tag of numbers (cICP of PNG, nclx of AVIF, gAMA and cHRM) becomes an ICC profile first. A profile is believed by what
it does to colours, never by its name. If it changes no colour of a cube by more than one level, the pixels stay as they
are.
"""

from __future__ import annotations

import io
import logging
import struct
from collections.abc import Callable
from functools import lru_cache
from itertools import product

import numpy as np
from PIL import Image, ImageCms

from pipelines.vision.containers import MAX_PROFILE_BYTES, ColourTags

log = logging.getLogger(__name__)

CUBE_STEPS = 9
"""Levels a channel of the cube that tells whether a profile is sRGB."""

_D50 = np.array([0.9642, 1.0, 0.8249])
_BRADFORD = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])
_D65_XY, _SRGB_XY = (0.3127, 0.3290), (0.64, 0.33, 0.30, 0.60, 0.15, 0.06)
_SRGB_GAMMA = 0.45455

_PRIMARIES: dict[int, tuple[float, ...]] = {
    1: (*_D65_XY, *_SRGB_XY),
    4: (0.310, 0.316, 0.67, 0.33, 0.21, 0.71, 0.14, 0.08),
    5: (*_D65_XY, 0.64, 0.33, 0.29, 0.60, 0.15, 0.06),
    6: (*_D65_XY, 0.630, 0.340, 0.310, 0.595, 0.155, 0.070),
    7: (*_D65_XY, 0.630, 0.340, 0.310, 0.595, 0.155, 0.070),
    9: (*_D65_XY, 0.708, 0.292, 0.170, 0.797, 0.131, 0.046),
    11: (0.314, 0.351, 0.680, 0.320, 0.265, 0.690, 0.150, 0.060),
    12: (*_D65_XY, 0.680, 0.320, 0.265, 0.690, 0.150, 0.060),
}
"""x and y of white, red, green and blue, by the number of ITU-T H.273, table 2."""

ADOBE_RGB = ColourTags(gamma=256 / 563, chromaticities=(*_D65_XY, 0.64, 0.33, 0.21, 0.71, 0.15, 0.06))

_WHITE_NITS, _HLG_WHITE = 203.0, 0.75
"""HDR: luminance of white paper in PQ, and its level in HLG (ITU-R BT.2408). Brighter light is cut off."""


def _srgb_curve(v: np.ndarray) -> np.ndarray:
    return np.where(v <= 0.04045, v / 12.92, ((v + 0.055) / 1.055) ** 2.4)


def _pq_curve(v: np.ndarray) -> np.ndarray:
    root = v ** (1 / 78.84375)
    light = (np.maximum(root - 0.8359375, 0) / (18.8515625 - 18.6875 * root)) ** (1 / 0.1593017578125)
    return light * 10_000 / _WHITE_NITS


def _hlg_curve(v: np.ndarray) -> np.ndarray:
    def light(level: np.ndarray) -> np.ndarray:
        bright = (np.exp((level - 0.55991073) / 0.17883277) + 0.28466892) / 12
        return np.where(level <= 0.5, level**2 / 3, bright) ** 1.2  # at a peak of 1,000 nits

    return light(v) / light(np.array(_HLG_WHITE))


_TRANSFERS: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    4: lambda v: v**2.2,
    5: lambda v: v**2.8,
    8: lambda v: v,
    13: _srgb_curve,
    16: _pq_curve,
    17: lambda v: v**2.6,
    18: _hlg_curve,
}
"""Level 0..1 → light, 1 = white, by the number of ITU-T H.273, table 3.

Left out are 1, 6, 14 and 15, the camera's curve of BT.709, 601 and 2020: viewers show it as sRGB's.
"""


def to_srgb(image: Image.Image, tags: ColourTags) -> np.ndarray:
    """Return the colours `(H, W, 3)` uint8 of a decoded picture of any mode in sRGB; transparency is left out.

    An unusable profile is left aside: colours are taken as sRGB.
    """
    profile = _profile(image, tags)
    if image.mode == "F" or image.mode.startswith("I"):
        return _deep_grey(image, profile)
    colours = _for_space(image, _space(profile)) if profile is not None else None
    if profile is not None and colours is not None:
        try:
            return _converted(colours, profile)
        except (ImageCms.PyCMSError, ValueError, OSError) as error:
            log.warning("unusable colour profile, colours taken as sRGB: %s", error)
    elif profile is not None:
        log.warning("a colour profile of another kind in a picture of mode %s, taken as sRGB", image.mode)
    if image.mode == "LAB":
        return _converted(image, ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")))
    return np.array(_flat(image).convert("RGB"))


def _profile(image: Image.Image, tags: ColourTags) -> ImageCms.ImageCmsProfile | None:
    """Return the profile that describes the picture's colours; None for sRGB, or if there is no usable one."""
    icc = _icc_of_cicp(*tags.cicp) if tags.cicp is not None else None
    if icc is None:  # no code points, or they leave it open
        icc = tags.icc or image.info.get("icc_profile")
    if icc is None and not tags.srgb and (tags.gamma or tags.chromaticities):
        icc = _icc_of_gamma(tags.gamma, tags.chromaticities)
    if not icc or len(icc) > MAX_PROFILE_BYTES:
        return None
    try:
        profile = ImageCms.ImageCmsProfile(io.BytesIO(icc))
        _space(profile)
        return profile
    except (OSError, TypeError, ValueError) as error:
        log.warning("unreadable colour profile, colours taken as sRGB: %s", error)
        return None


def _space(profile: ImageCms.ImageCmsProfile) -> str:
    """Return the kind of colours that a profile takes: RGB, GRAY, CMYK, Lab; UnicodeDecodeError for damaged ones."""
    return str(profile.profile.xcolor_space.strip())


def _for_space(image: Image.Image, space: str) -> Image.Image | None:
    """Return the picture in the mode that a profile of this colour space takes; None if there is no such mode."""
    if space == "RGB" and image.mode not in ("CMYK", "LAB", "YCbCr"):
        return _flat(image).convert("RGB")
    if space == "GRAY" and image.mode in ("1", "L", "LA"):
        return _flat(image).convert("L")
    if (space, image.mode) in (("CMYK", "CMYK"), ("Lab", "LAB")):
        return image
    return None


def _flat(image: Image.Image) -> Image.Image:
    """Return the picture without palette and alpha. Colours under clear pixels stay."""
    if image.mode in ("P", "PA"):
        image = image.convert("RGBA")
    if image.mode == "RGBA":
        return Image.merge("RGB", image.split()[:3])
    return image.getchannel("L") if image.mode == "LA" else image


def _converted(colours: Image.Image, profile: ImageCms.ImageCmsProfile) -> np.ndarray:
    """Return `(H, W, 3)` uint8 in sRGB; the very pixels if the profile is sRGB's.

    Raises:
        PyCMSError: the profile cannot be used for pictures.
    """
    if colours.mode in ("L", "RGB"):
        cube = _cube(colours.mode)
        plain = np.array(cube.convert("RGB"), dtype=np.int16)
        if np.abs(np.array(_through(cube, profile), dtype=np.int16) - plain).max() <= 1:
            return np.array(colours.convert("RGB"))
    return np.array(_through(colours, profile))


def _through(colours: Image.Image, profile: ImageCms.ImageCmsProfile) -> Image.Image:
    converted = ImageCms.profileToProfile(colours, profile, _srgb_profile(), outputMode="RGB")
    assert converted is not None  # only a conversion in place returns nothing
    return converted


@lru_cache
def _srgb_profile() -> ImageCms.ImageCmsProfile:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))


@lru_cache
def _cube(mode: str) -> Image.Image:
    """Return every level of grey, or `CUBE_STEPS`³ colours, as a picture one pixel high."""
    if mode == "L":
        return Image.fromarray(np.arange(256, dtype=np.uint8)[None])
    levels = np.linspace(0, 255, CUBE_STEPS).round().astype(np.uint8)
    return Image.fromarray(np.array(list(product(levels, repeat=3)), dtype=np.uint8)[None])


def _deep_grey(image: Image.Image, profile: ImageCms.ImageCmsProfile | None) -> np.ndarray:
    """Return `(H, W, 3)` uint8 of a grey picture of 16 or 32 bits or of floats.

    The profile is applied to 256 levels, and values between two levels are interpolated.
    """
    values = np.asarray(image)
    values = values.view(np.uint32) if image.mode == "I" else values  # Pillow reads 32 bits as signed ones
    grey = np.nan_to_num(values, posinf=np.inf, neginf=0).astype(np.float32)
    np.clip(grey / _white(grey, image.mode), 0, 1, out=grey)
    ramp = _cube("L")
    curve = np.array(ramp.convert("RGB"))[0]
    colours = _for_space(ramp, _space(profile)) if profile is not None else None
    if profile is not None and colours is not None:
        try:
            curve = _converted(colours, profile)[0]
        except (ImageCms.PyCMSError, ValueError, OSError) as error:
            log.warning("unusable colour profile, colours taken as sRGB: %s", error)
    levels = np.linspace(0, 1, 256, dtype=np.float32)
    out = np.empty((*grey.shape, 3), np.uint8)
    for channel in range(3):
        out[..., channel] = np.interp(grey, levels, curve[:, channel]) + 0.5
    return out


def _white(grey: np.ndarray, mode: str) -> float:
    """Return the value of white: of 1, 255, 65,535 (and 4,294,967,295 of 32 bits), the first at or above the median of
    what is not black. Single pixels beyond it are highlights; integers have 16 bits at least."""
    sample = grey.reshape(-1)[:: max(1, grey.size // 1_000_000)]
    sample = sample[sample > 0]
    middle = float(np.median(sample)) if sample.size else 0.0
    whites = (1.0, 255.0, 65_535.0) if mode == "F" else (65_535.0, 4_294_967_295.0)
    return next((white for white in whites if middle <= white), whites[-1])


@lru_cache
def _icc_of_cicp(primaries: int, transfer: int) -> bytes | None:
    """Return a profile for code points of H.273; None for those that are unspecified or unknown."""
    if primaries not in _PRIMARIES and transfer not in _TRANSFERS:
        return None
    return icc_profile(_PRIMARIES.get(primaries, _PRIMARIES[1]), _TRANSFERS.get(transfer, _srgb_curve))


def _icc_of_gamma(gamma: float | None, chromaticities: tuple[float, ...] | None) -> bytes | None:
    """Return a profile for a PNG's gAMA and cHRM; None for values that no picture has."""
    gamma, chromaticities = gamma or _SRGB_GAMMA, chromaticities or _PRIMARIES[1]
    if not 0.1 <= gamma <= 2 or not all(0 <= value <= 1 for value in chromaticities):
        return None
    curve = _srgb_curve if abs(gamma - _SRGB_GAMMA) < 1e-4 else lambda v: v ** (1 / gamma)  # what writers mean by it
    try:
        return icc_profile(chromaticities, curve)
    except (ZeroDivisionError, FloatingPointError, ValueError, struct.error, np.linalg.LinAlgError):
        return None  # primaries on one line


def icc_profile(chromaticities: tuple[float, ...], curve: Callable[[np.ndarray], np.ndarray]) -> bytes:
    """Return an RGB profile (ICC 2.1) with a matrix and one curve for all channels.

    Args:
        chromaticities: x and y of white, red, green and blue.
        curve: From levels 0..1 to light, 1 = white; light above 1 is cut off.
    """
    x, y = np.array(chromaticities[0::2]), np.array(chromaticities[1::2])
    white, *corners = np.stack([x / y, np.ones(4), (1 - x - y) / y], axis=1)
    matrix = np.stack(corners, axis=1)
    matrix = matrix * np.linalg.solve(matrix, white)
    adapted = np.linalg.solve(_BRADFORD, np.diag((_BRADFORD @ _D50) / (_BRADFORD @ white)) @ _BRADFORD) @ matrix
    light = np.clip(curve(np.linspace(0, 1, 4096)), 0, 1)
    table = b"curv" + bytes(4) + struct.pack(">I", light.size) + np.round(light * 65_535).astype(">u2").tobytes()
    text = b"desc" + bytes(4) + struct.pack(">I", 8) + b"packshot" + bytes(78)
    elements = [(b"desc", text + bytes(-len(text) % 4)), (b"wtpt", _xyz(_D50))]
    elements += [(name, _xyz(adapted[:, i])) for i, name in enumerate((b"rXYZ", b"gXYZ", b"bXYZ"))]
    start = 128 + 4 + 12 * (len(elements) + 3)
    directory, body = [], b""
    for name, content in elements:
        directory.append(name + struct.pack(">II", start + len(body), len(content)))
        body += content
    directory += [name + struct.pack(">II", start + len(body), len(table)) for name in (b"rTRC", b"gTRC", b"bTRC")]
    body += table
    size = start + len(body)
    header = struct.pack(">I4sI4s4s4s", size, bytes(4), 0x02100000, b"mntr", b"RGB ", b"XYZ ")
    header += struct.pack(">6H", 2026, 1, 1, 0, 0, 0) + b"acsp" + bytes(28) + _xyz(_D50)[8:] + bytes(48)
    return header + struct.pack(">I", len(directory)) + b"".join(directory) + body


def _xyz(values: np.ndarray) -> bytes:
    return b"XYZ " + bytes(4) + struct.pack(">3i", *np.round(values * 65_536).astype(int).tolist())
