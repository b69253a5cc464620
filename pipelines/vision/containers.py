"""What a photo's file says before a pixel is decoded: size, colour space and structure of PNG, JPEG, WebP and AVIF.

A decoder's time follows the file's structure, not only its size in pixels. Each file is walked here first, in time
linear in its bytes, and refused if its structure is not one that an encoder for photos writes.
"""

from __future__ import annotations

import re
import struct
import zlib
from dataclasses import dataclass

from pipelines.errors import Rejected

MAX_CHUNKS = 20_000
"""PNG chunks, JPEG segments. libpng writes 8 KiB a chunk: a file of 64 MiB, the largest allowed, has 8,192."""

MAX_SCANS = 100
"""JPEG scans. libjpeg writes 10 for a progressive photo, mozjpeg up to 20; each costs up to a pass over the picture."""

MAX_PROFILE_BYTES = 8 * 2**20
"""Decompressed colour profile. CMYK printer profiles have up to 3 MB."""

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_CRITICAL = (b"IHDR", b"PLTE", b"IDAT", b"IEND")
_DECODED = (*_CRITICAL, b"tRNS", b"eXIf")
_COLOUR = (b"cICP", b"iCCP", b"sRGB", b"gAMA", b"cHRM")

_JPEG_MARKER = re.compile(rb"\xff+([^\x00\xff\xd0-\xd7])", re.DOTALL)
"""A marker in entropy-coded data, where FF00 is a byte FF and FFD0 to FFD7 are restarts."""

_NO_LENGTH = frozenset([0x01, *range(0xD0, 0xD9)])
_START_OF_SCAN, _END_OF_IMAGE = 0xDA, 0xD9


@dataclass(frozen=True, slots=True)
class ColourTags:
    """How a file describes its colours, beside what Pillow reads.

    Attributes:
        cicp: Colour primaries and transfer characteristics, as ITU-T H.273 numbers them.
        icc: An ICC profile.
        srgb: The file says that it is sRGB.
        gamma: Exponent of the encoding, such as 0.45455.
        chromaticities: x and y of white, red, green and blue.

    The first of them that is there holds (PNG, third edition, section 4.3).
    """

    cicp: tuple[int, int] | None = None
    icc: bytes | None = None
    srgb: bool = False
    gamma: float | None = None
    chromaticities: tuple[float, ...] | None = None


def essential_png(data: bytes) -> tuple[bytes, ColourTags]:
    """Return a PNG with the chunks that decide its pixels, and its colour tags.

    Ancillary chunks decide nothing else: texts, times and animations are left out, and so is a chunk with a wrong
    checksum.

    Raises:
        Rejected: it has more than `MAX_CHUNKS` chunks, or a critical one with a wrong checksum.
    """
    kept: list[bytes] = [PNG_SIGNATURE]
    tags: dict[bytes, bytes] = {}
    position = len(PNG_SIGNATURE)
    for _ in range(MAX_CHUNKS):
        if position + 8 > len(data):
            break
        length, kind = struct.unpack_from(">I4s", data, position)
        end = position + 12 + length
        if kind in _DECODED or kind in _COLOUR:
            chunk = data[position:end]
            intact = struct.pack(">I", zlib.crc32(memoryview(chunk)[4:-4])) == chunk[-4:]
            if kind in _CRITICAL and end <= len(data) and not intact:
                raise Rejected(f"the photo is broken (checksum of a chunk {kind.decode()}); upload it again")
            if kind in _COLOUR and intact:
                tags.setdefault(kind, chunk[8:-4])
            elif kind in _CRITICAL or intact:  # of a file cut short, the decoder says so
                kept.append(chunk)
        position = end
        if kind == b"IEND":
            break
    else:
        raise Rejected(
            f"the photo is a PNG of more than {MAX_CHUNKS:,} chunks; open it in an image editor and export it again"
        )
    return b"".join(kept), _png_tags(tags)


def _png_tags(tags: dict[bytes, bytes]) -> ColourTags:
    cicp, gamma, chromaticities = tags.get(b"cICP", b""), tags.get(b"gAMA", b""), tags.get(b"cHRM", b"")
    return ColourTags(
        cicp=(cicp[0], cicp[1]) if len(cicp) == 4 else None,
        icc=_inflated(tags[b"iCCP"]) if b"iCCP" in tags else None,
        srgb=b"sRGB" in tags,
        gamma=struct.unpack(">I", gamma)[0] / 1e5 if len(gamma) == 4 else None,
        chromaticities=tuple(v / 1e5 for v in struct.unpack(">8I", chromaticities))
        if len(chromaticities) == 32
        else None,
    )


def _inflated(chunk: bytes) -> bytes | None:
    """Return the profile in an iCCP chunk: a name, a zero, the method 0, zlib data; None if broken or too large."""
    start = chunk.find(b"\0") + 2
    try:
        stream = zlib.decompressobj()
        profile = stream.decompress(chunk[start:], MAX_PROFILE_BYTES)
    except zlib.error:
        return None
    return profile if stream.eof else None


def check_jpeg(data: bytes) -> None:
    """Refuse a JPEG with more than `MAX_SCANS` scans or `MAX_CHUNKS` segments.

    Raises:
        Rejected: as said.
    """
    position, scans = 2, 0
    for _ in range(MAX_CHUNKS):
        marker = _JPEG_MARKER.search(data, position)
        if marker is None or marker[1][0] == _END_OF_IMAGE:
            return
        position = marker.end()
        if marker[1][0] in _NO_LENGTH:
            continue
        scans += marker[1][0] == _START_OF_SCAN
        if scans > MAX_SCANS:
            raise Rejected(
                f"the photo is a JPEG of more than {MAX_SCANS} scans; open it in an image editor and export it as a "
                "baseline JPEG"
            )
        position += int.from_bytes(data[position : position + 2])
    raise Rejected(
        f"the photo is a JPEG of more than {MAX_CHUNKS:,} segments; open it in an image editor and export it again"
    )


def webp_size(data: bytes) -> tuple[int, int] | None:
    """Return width and height of a WebP's canvas, for which its decoder takes memory at once; None if unknown."""
    kind, body = data[12:16], data[20:30]
    if data[:4] != b"RIFF" or data[8:12] != b"WEBP" or len(body) < 10:
        return None
    if kind == b"VP8X":
        return int.from_bytes(body[4:7], "little") + 1, int.from_bytes(body[7:10], "little") + 1
    if kind == b"VP8L":
        bits = int.from_bytes(body[1:5], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    if kind == b"VP8 ":
        width, height = struct.unpack_from("<HH", body, 6)
        return width & 0x3FFF, height & 0x3FFF
    return None


def avif_cicp(data: bytes) -> tuple[int, int] | None:
    """Return colour primaries and transfer characteristics of an AVIF's primary picture; None if it has none.

    They are in its `colr` property of type `nclx`. Pillow uses the matrix coefficients beside them, not these two.
    """
    try:
        meta = _boxes(data, 0, len(data))[b"meta"][0]
        inside = _boxes(data, meta[0] + 4, meta[1])
        start = inside[b"pitm"][0][0]
        primary = int.from_bytes(data[start + 4 : start + (8 if data[start] else 6)])
        properties = _boxes(data, *inside[b"iprp"][0])
        listed = _listed(data, *properties[b"ipco"][0])
        for index in _associated(data, properties[b"ipma"][0][0], primary):
            kind, start = listed[index - 1]
            if kind == b"colr" and data[start : start + 4] == b"nclx":
                return struct.unpack_from(">HH", data, start + 4)
    except (KeyError, IndexError, struct.error):
        return None
    return None


def _listed(data: bytes, start: int, end: int) -> list[tuple[bytes, int]]:
    """Return kind and start of the content of each box, in order."""
    found: list[tuple[bytes, int]] = []
    while start + 8 <= end and len(found) < MAX_CHUNKS:
        length, kind = struct.unpack_from(">I4s", data, start)
        header = 8
        if length == 1:
            (length,) = struct.unpack_from(">Q", data, start + 8)
            header = 16
        found.append((kind, start + header))
        start = end if length < header else start + length
    return found


def _boxes(data: bytes, start: int, end: int) -> dict[bytes, list[tuple[int, int]]]:
    """Return start and end of the contents of the boxes, by kind. The end is the parent's: a box lies within it."""
    boxes: dict[bytes, list[tuple[int, int]]] = {}
    for kind, content in _listed(data, start, end):
        length = int.from_bytes(data[content - 8 : content - 4])
        inside = min(end, content - 8 + length) if length > 8 else end
        boxes.setdefault(kind, []).append((content, inside))
    return boxes


def _associated(data: bytes, start: int, item: int) -> list[int]:
    """Return the one-based indices of the properties of an item, from an `ipma` box."""
    version, wide = data[start], data[start + 3] & 1
    (entries,) = struct.unpack_from(">I", data, start + 4)
    position = start + 8
    for _ in range(min(entries, MAX_CHUNKS)):
        size = 4 if version else 2
        number, count = int.from_bytes(data[position : position + size]), data[position + size]
        position += size + 1
        step = 2 if wide else 1
        indices = [
            int.from_bytes(data[at : at + step]) & (0x7FFF if wide else 0x7F)
            for at in range(position, position + step * count, step)
        ]
        if number == item:
            return [index for index in indices if index]
        position += step * count
    return []
