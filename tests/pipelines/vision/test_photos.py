"""Photos as shops upload them: every mode and orientation is read, every bad file is a rejection with a reason."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms

from pipelines.errors import Rejected
from pipelines.vision.photos import MIN_SIDE, read_photo
from pipelines.vision.srgb import icc_profile
from tests.pipelines.vision.pictures import (
    P3,
    encoded,
    from_linear,
    from_linear_p3,
    inverted_lab,
    linear_grey,
    linear_p3,
    png_chunk,
    with_chunk,
    yellow_for_cyan,
)

CASES = Path(__file__).resolve().parents[4] / "shared" / "cases" / "photos"
COLOUR, GREY = (190, 120, 60), 100

needs_cases = pytest.mark.skipif(not CASES.exists(), reason="the cases are not beside the checkout")


def split_picture() -> Image.Image:
    """Red on the left, blue on the right, 80 × 60 px."""
    image = Image.new("RGB", (80, 60), (200, 30, 30))
    image.paste((30, 30, 200), (40, 0, 80, 60))
    return image


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds next to nothing."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + png_chunk(b"IHDR", header)
        + png_chunk(b"IDAT", zlib.compress(b"\0" * 64))
        + png_chunk(b"IEND", b"")
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


def test_a_file_that_is_no_kind_of_its_format_that_is_read_is_named() -> None:
    with pytest.raises(Rejected, match="rare kind of TIFF; export it again as JPEG"):
        read_photo(b"II*\0" + bytes(200))


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(400), "a HEIC picture, as iPhones take them"),
        (b"\n<!DOCTYPE html><title>Log in</title>", "a web page"),
        (b'<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg"/>', "a drawing"),
        (b"%PDF-1.7\n", "a PDF"),
        (b"PK\x03\x04" + bytes(40), "a zip file"),
        (b"id,title\n", "not an image that can be read"),
    ],
)
def test_what_was_sent_in_place_of_a_photo_is_named(data: bytes, said: str) -> None:
    with pytest.raises(Rejected, match=f"the photo is {said}.*; send one of JPEG, PNG"):
        read_photo(data)


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


def middle(data: bytes) -> np.ndarray:
    """The colour of a file of one colour."""
    return read_photo(data).rgb[20, 20].astype(float)


COLOUR_FILES = [
    *(("RGB", file_format) for file_format in ("PNG", "JPEG", "WEBP", "TIFF", "AVIF")),
    *(("RGBA", file_format) for file_format in ("PNG", "WEBP", "TIFF", "AVIF")),
    ("P", "PNG"),
    ("P", "TIFF"),
]


@pytest.mark.parametrize(("mode", "file_format"), COLOUR_FILES)
def test_a_profile_is_applied_to_colours_in_every_mode_and_format(mode: str, file_format: str) -> None:
    image = Image.new("RGB", (40, 40), COLOUR)
    if mode == "P":
        image.paste((0, 0, 255), (0, 0, 5, 5))
        image = image.quantize(2)
    elif mode == "RGBA":
        image.putalpha(Image.new("L", (40, 40), 128))
    options = {} if file_format in ("PNG", "TIFF") else {"quality": 100}
    plain = middle(encoded(image, file_format, **options))
    assert np.abs(plain - COLOUR).max() <= 3
    converted = middle(encoded(image, file_format, icc_profile=linear_p3(), **options))
    assert np.abs(converted - from_linear_p3(COLOUR)).max() <= 3
    assert np.abs(converted - plain).max() > 40


@pytest.mark.parametrize("profile", [linear_p3(), linear_grey()], ids=["of colours", "of grey"])
@pytest.mark.parametrize(
    ("mode", "file_format"),
    [
        *(("L", file_format) for file_format in ("PNG", "JPEG", "TIFF")),
        *((mode, file_format) for mode in ("LA", "I;16") for file_format in ("PNG", "TIFF")),
        ("I", "TIFF"),
        ("F", "TIFF"),
    ],
)
def test_a_profile_is_applied_to_grey_in_every_mode_and_format(mode: str, file_format: str, profile: bytes) -> None:
    value = {"I;16": GREY * 257, "I": GREY * 257, "F": GREY / 255, "LA": (GREY, 128)}.get(mode, GREY)
    image = Image.new(mode, (40, 40), value)
    assert np.abs(middle(encoded(image, file_format)) - GREY).max() <= 1
    converted = middle(encoded(image, file_format, icc_profile=profile))
    assert np.abs(converted - from_linear(GREY / 255)).max() <= 2


def test_a_profile_is_applied_to_inks_and_lab() -> None:
    """Lab of sRGB's red for the white of D50: (54.29, 80.81, 69.89)."""
    red = Image.new("LAB", (40, 40), (138, 209, 198))
    assert np.abs(middle(encoded(red, "TIFF")) - (255, 0, 0)).max() <= 8
    dark = Image.new("LAB", (40, 40), (0, 209, 198))
    assert np.abs(middle(encoded(dark, "TIFF", icc_profile=inverted_lab())) - 255).max() <= 3
    yellow = middle(encoded(Image.new("LAB", (40, 40), (204, 128, 188)), "TIFF"))
    for file_format in ("JPEG", "TIFF"):
        cyan = Image.new("CMYK", (40, 40), (255, 0, 0, 0))
        assert np.abs(middle(encoded(cyan, file_format)) - (0, 255, 255)).max() <= 2
        printed = middle(encoded(cyan, file_format, icc_profile=yellow_for_cyan()))
        assert np.abs(printed - yellow).max() <= 4


def test_a_profile_for_another_kind_of_picture_is_left_aside() -> None:
    image = Image.new("RGB", (40, 40), COLOUR)
    for profile in (yellow_for_cyan(), linear_grey(), inverted_lab()):
        assert middle(encoded(image, icc_profile=profile)).tolist() == list(COLOUR)


def test_a_profile_is_believed_by_its_curves_and_never_by_its_name() -> None:
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (60, 60, 3), dtype=np.uint8))
    named = linear_p3().replace(b"packshot", b"sRGB IEC"[:8])
    assert np.abs(read_photo(encoded(picture, icc_profile=named)).rgb.astype(int) - np.asarray(picture)).max() > 40
    srgb = icc_profile((*P3[:2], 0.64, 0.33, 0.30, 0.60, 0.15, 0.06), srgb_curve).replace(b"packshot", b"AdobeRGB")
    assert np.array_equal(read_photo(encoded(picture, icc_profile=srgb)).rgb, np.asarray(picture))


def srgb_curve(level: np.ndarray) -> np.ndarray:
    return np.where(level <= 0.04045, level / 12.92, ((level + 0.055) / 1.055) ** 2.4)


CICP = {
    "linear P3": ((12, 8), from_linear_p3(COLOUR)),
    "sRGB": ((1, 13), COLOUR),
    "a camera's": ((1, 1), COLOUR),
    "unspecified": ((2, 2), COLOUR),
    "unknown": ((77, 99), COLOUR),
}


@pytest.mark.parametrize(("code", "expected"), CICP.values(), ids=CICP)
def test_code_points_of_png_and_avif_are_applied(code: tuple[int, int], expected: np.ndarray) -> None:
    image = Image.new("RGB", (40, 40), COLOUR)
    png = with_chunk(encoded(image), b"cICP", bytes([*code, 0, 1]))
    assert np.abs(middle(png) - expected).max() <= 2
    avif = encoded(image, "AVIF", quality=100, subsampling="4:4:4")
    assert avif.count(b"colrnclx") == 1
    avif = avif.replace(b"colrnclx" + bytes([0, 1, 0, 13]), b"colrnclx" + struct.pack(">HH", *code))
    assert np.abs(middle(avif) - expected).max() <= 3


def test_code_points_come_before_a_profile_in_png_and_after_it_in_avif() -> None:
    image = Image.new("RGB", (40, 40), COLOUR)
    png = with_chunk(encoded(image, icc_profile=linear_p3()), b"cICP", bytes([1, 13, 0, 1]))
    assert middle(png).tolist() == list(COLOUR)
    avif = encoded(image, "AVIF", quality=100, subsampling="4:4:4", icc_profile=linear_p3())
    assert np.abs(middle(avif) - from_linear_p3(COLOUR)).max() <= 3


def test_a_camera_that_says_adobe_rgb_in_its_exif_is_believed() -> None:
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0xA001] = 0xFFFF  # colour space: uncalibrated
    exif.get_ifd(0x8769)[0xA005] = {1: "R03"}
    green = Image.new("RGB", (40, 40), (144, 255, 120))
    assert np.abs(middle(encoded(green, "JPEG", quality=100)) - (144, 255, 120)).max() <= 3
    converted = middle(encoded(green, "JPEG", quality=100, exif=exif))
    assert np.abs(converted - (0, 255, 110)).max() <= 4


@pytest.mark.parametrize("transfer", [16, 18], ids=["PQ", "HLG"])
def test_high_dynamic_range_keeps_white_paper_white_and_mid_grey_between(transfer: int) -> None:
    paper = {16: 148, 18: 191}[transfer]  # 203 nits

    def shown(level: int) -> float:
        image = Image.new("RGB", (40, 40), (level, level, level))
        return float(middle(with_chunk(encoded(image), b"cICP", bytes([9, transfer, 0, 1]))).mean())

    assert shown(paper) >= 250
    assert shown(255) == 255
    assert 60 < shown(paper * 2 // 3) < 200
    assert shown(0) == 0


def test_gamma_and_chromaticities_of_a_png_are_applied_unless_it_says_srgb() -> None:
    image = Image.new("RGB", (40, 40), COLOUR)
    linear = with_chunk(encoded(image), b"gAMA", struct.pack(">I", 100_000))
    assert np.abs(middle(linear) - [from_linear(v / 255) for v in COLOUR]).max() <= 2
    chromaticities = struct.pack(">8I", *(round(v * 100_000) for v in P3))
    assert np.abs(middle(with_chunk(linear, b"cHRM", chromaticities)) - from_linear_p3(COLOUR)).max() <= 2
    assert middle(with_chunk(linear, b"sRGB", b"\0")).tolist() == list(COLOUR)
    usual = with_chunk(encoded(image), b"gAMA", struct.pack(">I", 45_455))
    assert middle(usual).tolist() == list(COLOUR)
    for nonsense in (bytes(32), b"\xff" * 32):
        assert middle(with_chunk(encoded(image), b"cHRM", nonsense)).tolist() == list(COLOUR)


@pytest.mark.parametrize(("white", "highlight"), [(1.0, 40.0), (255.0, 900.0), (65_535.0, 1e6), (1.0, np.inf)])
def test_bright_pixels_of_a_float_picture_turn_it_neither_black_nor_white(white: float, highlight: float) -> None:
    values = np.tile(np.linspace(0, white, 60, dtype=np.float32), (60, 1))
    values[:2] = highlight
    values[3, 3] = np.nan
    values[4, 4] = -5
    rgb = read_photo(encoded(Image.fromarray(values), "TIFF")).rgb
    assert np.abs(rgb[30, :, 1].astype(float) - np.linspace(0, 255, 60)).max() <= 1
    assert rgb[0, 0].tolist() == [255, 255, 255]
    assert rgb[3, 3].tolist() == rgb[4, 4].tolist() == [0, 0, 0]


def test_a_palette_of_grey_and_one_of_alpha_keep_both() -> None:
    clear = split_picture().quantize(4)
    photo = read_photo(encoded(clear, icc_profile=linear_p3(), transparency=bytes([255, 80])))
    assert photo.alpha is not None
    assert len(np.unique(photo.alpha)) == 2
    assert np.abs(photo.rgb[30, 10] - from_linear_p3((200, 30, 30))).max() <= 2


@needs_cases
@pytest.mark.parametrize("name", ["38-can-gimp-linear-srgb", "03-can-palette-adobergb"])
def test_a_can_with_a_profile_has_the_colours_of_the_one_without(name: str) -> None:
    reference = read_photo((CASES / "00-ref-can.png").read_bytes()).rgb.astype(float)
    can = read_photo((CASES / f"{name}.png").read_bytes()).rgb.astype(float)
    product = reference.min(axis=2) < 200
    assert np.abs(can[product].mean(axis=0) - reference[product].mean(axis=0)).max() <= 2
    yellow = product & (reference[..., 0] > 200) & (reference[..., 1] > 150)
    assert np.abs(can[yellow].mean(axis=0) - reference[yellow].mean(axis=0)).max() <= 2


@needs_cases
@pytest.mark.parametrize("name", ["59-bad-crc-ancillary", "60-ztxt-3MB"])
def test_ancillary_chunks_decide_nothing(name: str) -> None:
    photo = read_photo((CASES / f"{name}.png").read_bytes())
    assert photo.size == (400, 400)
    assert photo.rgb.std() > 20


def test_a_chunk_with_a_wrong_checksum_is_left_out_if_ancillary_and_broken_if_critical() -> None:
    picture = split_picture()
    png = with_chunk(encoded(picture), b"iCCP", b"x\0\0" + zlib.compress(linear_p3()))
    assert not np.array_equal(read_photo(png).rgb, np.asarray(picture))
    damaged = png.replace(b"iCCPx", b"iCCPy")
    assert np.array_equal(read_photo(damaged).rgb, np.asarray(picture))
    data = bytearray(encoded(picture))
    data[-16] ^= 1  # the checksum of IDAT
    with pytest.raises(Rejected, match="broken"):
        read_photo(bytes(data))
