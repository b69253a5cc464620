"""Files of pictures for the tests: encoded by Pillow, and colour profiles whose effect is large, byte by byte."""

from __future__ import annotations

import io
import struct
import zlib
from itertools import product

import numpy as np
from PIL import Image

from pipelines.vision.srgb import icc_profile

P3 = (0.3127, 0.3290, 0.680, 0.320, 0.265, 0.690, 0.150, 0.060)
_P3_TO_SRGB = np.array([[1.2249, -0.2247, 0.0], [-0.0420, 1.0419, 0.0], [-0.0197, -0.0786, 1.0979]])


def encoded(image: Image.Image, file_format: str = "PNG", **options: object) -> bytes:
    """The picture as a file."""
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def png_chunk(kind: bytes, data: bytes) -> bytes:
    """A PNG chunk with a right checksum."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def with_chunk(png: bytes, kind: bytes, data: bytes) -> bytes:
    """A PNG with one more chunk behind its header."""
    return png[:33] + png_chunk(kind, data) + png[33:]


def linear_p3() -> bytes:
    """A profile: primaries of Display P3, light proportional to levels."""
    return icc_profile(P3, lambda level: level)


def from_linear_p3(colour: tuple[int, int, int]) -> np.ndarray:
    """The colour in sRGB, by the matrix of the literature."""
    return _encoded_srgb(_P3_TO_SRGB @ (np.array(colour) / 255))


def from_linear(grey: float) -> float:
    """A grey level 0..1 of linear light as an sRGB level 0..255."""
    return float(_encoded_srgb(np.array(grey)))


def _encoded_srgb(light: np.ndarray) -> np.ndarray:
    light = np.clip(light, 0, 1)
    return 255 * np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)


def linear_grey() -> bytes:
    """A grey profile: light proportional to levels."""
    curve = b"curv" + bytes(4) + struct.pack(">I", 0)
    return _profile(b"mntr", b"GRAY", b"XYZ ", {b"kTRC": curve})


def yellow_for_cyan() -> bytes:
    """A CMYK profile: full cyan alone is Lab (80, 0, 60), every other ink is black."""
    colours = {(0, 0, 0, 0): (100, 0, 0), (1, 0, 0, 0): (80, 0, 60)}
    nodes = [colours.get(inks, (0, 0, 0)) for inks in product((0, 1), repeat=4)]
    return _profile(b"prtr", b"CMYK", b"Lab ", {b"A2B0": _table(4, nodes)})


def inverted_lab() -> bytes:
    """A Lab profile: light is dark, and colours are grey."""
    nodes = [(100 - 100 * light, 0, 0) for light, _, _ in product((0, 1), repeat=3)]
    return _profile(b"spac", b"Lab ", b"Lab ", {b"A2B0": _table(3, nodes)})


def _table(inputs: int, nodes: list[tuple[int, int, int]]) -> bytes:
    """An 8-bit table with two points a channel (ICC `lut8Type`)."""
    grid = b"".join(bytes([round(light * 2.55), a + 128, b + 128]) for light, a, b in nodes)
    identity = struct.pack(">9i", *(65_536 * (i % 4 == 0) for i in range(9)))
    head = b"mft1" + bytes(4) + bytes([inputs, 3, 2, 0]) + identity
    return head + bytes(range(256)) * inputs + grid + bytes(range(256)) * 3


def _profile(kind: bytes, space: bytes, pcs: bytes, tags: dict[bytes, bytes]) -> bytes:
    white = struct.pack(">3i", 63_190, 65_536, 54_061)
    tags = tags | {b"wtpt": b"XYZ " + bytes(4) + white}
    start, directory, body = 132 + 12 * len(tags), b"", b""
    for name, content in tags.items():
        directory += name + struct.pack(">II", start + len(body), len(content))
        body += content + bytes(-len(content) % 4)
    head = struct.pack(">I4sI4s4s4s", start + len(body), bytes(4), 0x02100000, kind, space, pcs)
    head += bytes(12) + b"acsp" + bytes(28) + white + bytes(48)
    return head + struct.pack(">I", len(tags)) + directory + body
