"""A catalogue in which almost everything is wrong that shops get wrong, and what should become of each row.

bad = write_bad_catalogue(tmp_path)
run(bad.path)                          # must end normally
bad.expected["NO-FILE"].reason         # what the report must say of it
"""

from __future__ import annotations

import csv
import struct
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from pipelines.sample import CATALOGUE

GOOD = ("SMP-003", "SMP-005")
"""Products of the sample that stand between the bad ones, under their own SKUs."""


@dataclass(frozen=True, slots=True)
class Expected:
    """What becomes of a row. `usable`: the photo can be read and holds a product, so it is published or, at worst,
    held by a check. Otherwise the shot is rejected and its reason contains `reason`; "" where any reason will do."""

    usable: bool
    reason: str = ""


@dataclass(frozen=True, slots=True)
class BadCatalogue:
    """The file, and what is expected of each SKU that a report names (a repeated id is shown as `SKU#row`)."""

    path: Path
    expected: Mapping[str, Expected]

    @property
    def usable(self) -> frozenset[str]:
        """SKUs that must not be rejected."""
        return frozenset(sku for sku, expected in self.expected.items() if expected.usable)


def write_bad_catalogue(folder: Path) -> BadCatalogue:
    """Write the catalogue and its photos into `folder`; nothing outside is touched, nothing large is allocated."""
    images = folder / "images"
    images.mkdir(parents=True, exist_ok=True)
    sample = {row["id"]: row for row in csv.DictReader(CATALOGUE.open(encoding="utf-8"))}
    product = Image.open(CATALOGUE.parent / sample[GOOD[0]]["image_link"]).convert("RGB")
    for sku in GOOD:
        source = CATALOGUE.parent / sample[sku]["image_link"]
        (images / source.name).write_bytes(source.read_bytes())
    makers: dict[str, Callable[[Path], object]] = {
        "text.jpg": lambda path: path.write_text("Photo follows on Monday.\n", encoding="utf-8"),
        "empty.jpg": lambda path: path.write_bytes(b""),
        "cut-short.jpg": lambda path: path.write_bytes(_jpeg_of(product, images)[:20_000]),
        "huge.png": lambda path: path.write_bytes(blank_png(40_000, 40_000)),
        "tiny.png": lambda path: product.resize((9, 9)).save(path),
        "cmyk.jpg": lambda path: product.convert("CMYK").save(path, quality=90),
        "sixteen-bit.png": lambda path: cv2.imwrite(str(path), np.asarray(product)[..., ::-1].astype(np.uint16) * 257),
        "sideways.jpg": lambda path: _save_sideways(product, path),
        "palette.png": lambda path: product.quantize(128).save(path),
        "grey.jpg": lambda path: Image.new("RGB", (1024, 1024), (128, 128, 128)).save(path),
        "gradient.jpg": lambda path: Image.linear_gradient("L").resize((1024, 1024)).convert("RGB").save(path),
    }
    for name, make in makers.items():
        make(images / name)
    rows: list[tuple[list[str], Expected]] = []

    def add(sku: str, image_link: str, expected: Expected, *more: str) -> None:
        rows.append(([sku, f"Title of {sku}", "Home & Garden > Decor", image_link, *more], expected))

    def add_good(sku: str) -> None:
        link = f"images/{Path(sample[sku]['image_link']).name}"
        rows.append(([sku, sample[sku]["title"], sample[sku]["product_type"], link], Expected(True)))

    add_good(GOOD[0])
    add("NO-FILE", "images/nowhere.jpg", Expected(False, "images/nowhere.jpg"))
    add("TEXT-FILE", "images/text.jpg", Expected(False, "not an image"))
    add("EMPTY-FILE", "images/empty.jpg", Expected(False, "0 bytes"))
    add("CUT-SHORT", "images/cut-short.jpg", Expected(False, "broken"))
    add("HUGE", "images/huge.png", Expected(False, "limit"))
    add("TINY", "images/tiny.png", Expected(False, "too small"))
    add("FOLDER", "images", Expected(False))
    add("CMYK", "images/cmyk.jpg", Expected(True))
    add("SIXTEEN-BIT", "images/sixteen-bit.png", Expected(True))
    add("SIDEWAYS", "images/sideways.jpg", Expected(True))
    add("PALETTE", "images/palette.png", Expected(True))
    add("FLAT-GREY", "images/grey.jpg", Expected(False))
    add("GRADIENT", "images/gradient.jpg", Expected(False))
    add(GOOD[0], "images/cmyk.jpg", Expected(False, "repeats the id of row 2"))
    add("COLUMNS", "images/cmyk.jpg", Expected(False, "columns"), "one", "too", "many")
    add("CLIMBS-OUT", "../../etc/passwd", Expected(False, "leaves the catalogue's folder"))
    add("ABSOLUTE", "/etc/passwd", Expected(False, "absolute path"))
    add("PRIVATE-ADDRESS", "http://169.254.169.254/latest/meta-data/photo.jpg", Expected(False, "no public address"))
    add("LOOPBACK", "http://127.0.0.1:9/photo.jpg", Expected(False, "no public address"))
    add("NO-LINK", "", Expected(False, "image_link"))
    add_good(GOOD[1])

    path, expected = folder / "bad.csv", {}
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "title", "product_type", "image_link"])
        for number, (fields, outcome) in enumerate(rows, start=2):
            writer.writerow(fields)
            expected[fields[0] if fields[0] not in expected else f"{fields[0]}#{number}"] = outcome
    return BadCatalogue(path, expected)


def blank_png(width: int, height: int) -> bytes:
    """A valid PNG, 1 bit a pixel, compressed row by row: some 200 kB on disk for 1.6 gigapixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    packer, row = zlib.compressobj(1), bytes(1 + (width + 7) // 8)
    packed = b"".join([*(packer.compress(row) for _ in range(height)), packer.flush()])
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", packed) + chunk(b"IEND", b"")


def _save_sideways(image: Image.Image, path: Path) -> None:
    """Pixels lie on their side and EXIF says how to turn them, as phones do it."""
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    image.transpose(Image.Transpose.ROTATE_90).save(path, quality=90, exif=exif)


def _jpeg_of(image: Image.Image, folder: Path) -> bytes:
    path = folder / "whole.jpg"
    image.save(path, quality=90)
    data = path.read_bytes()
    path.unlink()
    return data
