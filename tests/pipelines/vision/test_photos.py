"""Photos as shops upload them: every mode and orientation is read, every bad file is a rejection with a reason."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms

from pipelines.errors import Rejected
from pipelines.vision.photos import MIN_SIDE, read_photo


def encoded(image: Image.Image, file_format: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def split_picture() -> Image.Image:
    """Red on the left, blue on the right, 80 × 60 px."""
    image = Image.new("RGB", (80, 60), (200, 30, 30))
    image.paste((30, 30, 200), (40, 0, 80, 60))
    return image


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds next to nothing."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 64)) + chunk(b"IEND", b"")
    )


@settings(max_examples=60, deadline=None)
@given(
    mode=st.sampled_from(["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16"]),
    width=st.integers(MIN_SIDE, 90),
    height=st.integers(MIN_SIDE, 90),
)
def test_any_mode_and_size_becomes_rgb_of_the_same_size(mode: str, width: int, height: int) -> None:
    data = encoded(Image.new(mode, (width, height)), "TIFF" if mode == "CMYK" else "PNG")
    photo = read_photo(data)
    assert photo.size == (width, height)
    assert photo.rgb.shape == (height, width, 3)
    assert photo.rgb.dtype == np.uint8
    assert (photo.alpha is not None) == (mode in ("LA", "RGBA"))  # new images are clear throughout


@settings(max_examples=60, deadline=None)
@given(data=st.binary(min_size=0, max_size=300))
def test_bytes_that_are_no_image_are_rejected_with_a_reason(data: bytes) -> None:
    with pytest.raises(Rejected, match="photo"):
        read_photo(data)


@settings(max_examples=40, deadline=None)
@given(cut=st.floats(0.02, 0.9), file_format=st.sampled_from(["PNG", "JPEG", "WEBP"]))
def test_a_file_cut_short_is_rejected(cut: float, file_format: str) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8))
    data = encoded(noise, file_format)
    with pytest.raises(Rejected, match="photo"):
        read_photo(data[: int(len(data) * cut)])


def test_an_empty_file_says_so() -> None:
    with pytest.raises(Rejected, match="0 bytes"):
        read_photo(b"")


@pytest.mark.parametrize(("width", "height"), [(40_000, 40_000), (12_000, 9_000)])
def test_a_huge_png_is_refused_before_decoding(width: int, height: int) -> None:
    with pytest.raises(Rejected, match="limit"):
        read_photo(png_header(width, height))


def test_the_limit_on_megapixels_is_the_callers() -> None:
    data = encoded(Image.new("RGB", (200, 200)))
    assert read_photo(data, max_megapixels=0.04).size == (200, 200)
    with pytest.raises(Rejected, match="200 × 200 px"):
        read_photo(data, max_megapixels=0.039)


@pytest.mark.parametrize("size", [(10, 400), (MIN_SIDE - 1, MIN_SIDE), (2000, 40)])
def test_slivers_are_rejected(size: tuple[int, int]) -> None:
    with pytest.raises(Rejected, match=r"too small|too narrow"):
        read_photo(encoded(Image.new("RGB", size)))


def test_exif_orientation_is_applied() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held upright: turn by 90° clockwise
    photo = read_photo(encoded(split_picture(), "JPEG", exif=exif, quality=95))
    assert photo.size == (60, 80)
    assert photo.rgb[10, 30, 0] > 150  # what was left is on top
    assert photo.rgb[70, 30, 2] > 150


def test_cmyk_and_grey_and_16_bits_keep_their_tones() -> None:
    cmyk = read_photo(encoded(split_picture().convert("CMYK"), "JPEG", quality=95))
    assert cmyk.rgb[30, 10, 0] > cmyk.rgb[30, 10, 2] + 80
    deep = Image.fromarray(np.full((40, 40), 0x8000, np.uint16))
    assert abs(int(read_photo(encoded(deep)).rgb[0, 0, 0]) - 128) <= 1
    assert read_photo(encoded(Image.new("L", (40, 40), 77))).rgb[5, 5].tolist() == [77, 77, 77]


def test_srgb_pixels_pass_unchanged_and_other_profiles_are_converted() -> None:
    picture = split_picture()
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    assert np.array_equal(read_photo(encoded(picture, icc_profile=srgb)).rgb, np.asarray(picture))
    broken = read_photo(encoded(picture, icc_profile=b"no profile at all"))
    assert np.array_equal(broken.rgb, np.asarray(picture))


def test_alpha_is_read_from_channel_and_palette_and_dropped_where_opaque() -> None:
    clear = split_picture().convert("RGBA")
    clear.putpixel((0, 0), (0, 0, 0, 0))
    photo = read_photo(encoded(clear))
    assert photo.alpha is not None
    assert photo.alpha[0, 0] == 0
    assert photo.alpha[30, 30] == 1
    palette = split_picture().quantize(4)
    assert read_photo(encoded(palette, transparency=0)).alpha is not None
    assert read_photo(encoded(split_picture().convert("RGBA"))).alpha is None
