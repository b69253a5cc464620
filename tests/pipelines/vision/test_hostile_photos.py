"""Photos made to hurt: each is decoded or rejected with a reason, in bounded time and memory, and the next one is
read."""

from __future__ import annotations

import io
import os
import random
import resource
import signal
import struct
import subprocess
import sys
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from socket import socketpair

import numpy as np
import pytest
from PIL import Image

from pipelines.errors import Rejected, Unavailable
from pipelines.settings import ROOT
from pipelines.vision import photos
from pipelines.vision.containers import MAX_CHUNKS, MAX_SCANS
from pipelines.vision.decoding import MEMORY_BYTES
from pipelines.vision.photos import FORMATS, MIN_SIDE, photo_preview, read_photo
from tests.pipelines.vision.pictures import encoded, linear_p3, png_chunk

MUTANTS, MUTANTS_IN_CI = 2_000, 200
SLOWEST_SECONDS = 5


def gradient(side: int = 64) -> Image.Image:
    across = np.tile(np.linspace(0, 255, side).astype(np.uint8), (side, 1))
    return Image.fromarray(np.dstack([across, across.T, 255 - across]))


def files() -> dict[str, list[bytes]]:
    """Small files of every accepted format, several where the format has several decoders."""
    picture, icc = gradient(), linear_p3()
    exif = Image.Exif()
    exif[0x0112] = 6
    clear = picture.convert("RGBA")
    clear.putalpha(picture.getchannel(0))
    return {
        "JPEG": [
            encoded(picture, "JPEG", icc_profile=icc, exif=exif),
            encoded(picture, "JPEG", progressive=True),
            encoded(picture.convert("CMYK"), "JPEG"),
        ],
        "PNG": [encoded(clear, icc_profile=icc, exif=exif), encoded(picture.quantize(16), transparency=3)],
        "WEBP": [encoded(clear, "WEBP", icc_profile=icc, exif=exif), encoded(picture, "WEBP", lossless=True)],
        "TIFF": [
            encoded(picture, "TIFF", compression=compression, icc_profile=icc)
            for compression in (None, "tiff_lzw", "tiff_adobe_deflate", "jpeg", "packbits")
        ],
        "GIF": [encoded(picture.quantize(32), "GIF", save_all=True, append_images=[picture.rotate(90).quantize(32)])],
        "BMP": [encoded(picture, "BMP"), encoded(picture.quantize(16), "BMP")],
        "AVIF": [encoded(clear, "AVIF", icc_profile=icc, exif=exif), encoded(picture, "AVIF")],
    }


def mutant(data: bytes, rng: random.Random) -> bytes:
    """The file with some bytes changed, a part cut out, doubled or overwritten, or with its end missing."""
    damaged = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 5, 30))):
        at = rng.randrange(len(damaged)) if rng.random() < 0.6 else rng.randrange(min(200, len(damaged)))
        size = rng.choice((1, 2, 4, 16))
        match rng.randrange(6):
            case 0:
                damaged[at] ^= 1 << rng.randrange(8)
            case 1:
                damaged[at : at + size] = rng.randbytes(size)
            case 2:
                damaged[at : at + size] = rng.choice((b"\0", b"\xff", b"\x7f")) * size
            case 3:
                del damaged[at : at + size]
            case 4:
                damaged[at:at] = damaged[at : at + size]
            case 5 if rng.random() < 0.1:
                del damaged[at:]
        if not damaged:
            break
    return bytes(damaged)


def with_right_checksums(png: bytes) -> bytes:
    """A damaged PNG whose damage only the decoder can see."""
    parts, position = [png[:8]], 8
    while position + 12 <= len(png):
        (length,) = struct.unpack_from(">I", png, position)
        parts.append(png_chunk(png[position + 4 : position + 8], png[position + 8 : position + 8 + length]))
        position += 12 + length
    return b"".join(parts)


def decoder_seconds() -> tuple[int, float]:
    """Process id of the decoder and the CPU time that it has used; zeros if there is none."""
    child = photos._DECODER._child
    if child is None:
        return 0, 0.0
    fields = Path(f"/proc/{child.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
    return child.process.pid, (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def decoded_or_rejected(file_format: str, count: int) -> None:
    rng, originals = random.Random(f"{file_format} {count}"), files()[file_format]
    read = 0
    for number in range(count):
        data = mutant(originals[number % len(originals)], rng)
        if file_format == "PNG" and rng.random() < 0.7:
            data = with_right_checksums(data)
        process, used = decoder_seconds()
        try:
            photo = read_photo(data)
            assert min(photo.size) >= MIN_SIDE
            read += 1
            reason = "the photo is read"
        except Rejected as rejection:
            reason = rejection.reason
        assert reason.startswith("the photo")
        assert reason.isprintable()
        assert "more time" not in reason
        assert len(reason) < 300
        after, now = decoder_seconds()
        assert after != process or now - used < SLOWEST_SECONDS
    assert read > count / 50  # the mutants are near enough to photos


@pytest.mark.parametrize("file_format", FORMATS)
def test_a_damaged_file_is_decoded_or_rejected(file_format: str) -> None:
    for data in files()[file_format]:
        assert read_photo(data).rgb.std() > 20
    decoded_or_rejected(file_format, MUTANTS_IN_CI)


@pytest.mark.slow
@pytest.mark.exhaustive
@pytest.mark.parametrize("file_format", FORMATS)
def test_two_thousand_damaged_files_are_decoded_or_rejected(file_format: str) -> None:
    decoded_or_rejected(file_format, MUTANTS)


def test_a_damaged_avif_is_rejected() -> None:
    data = bytearray(encoded(gradient(), "AVIF"))
    middle = data.index(b"mdat") + 40
    data[middle:] = bytes(len(data) - middle)
    with pytest.raises(Rejected, match="broken"):
        read_photo(bytes(data))


def many_scans(scans: int) -> bytes:
    """A progressive JPEG whose first scan of an AC band is repeated."""
    data = encoded(gradient(), "JPEG", progressive=True)
    starts = [i for i in range(len(data) - 1) if data[i : i + 2] == b"\xff\xda"]
    last = data[starts[-1] : -2]
    return data[:-2] + last * (scans - len(starts)) + b"\xff\xd9"


def test_a_jpeg_of_very_many_scans_is_rejected_and_one_of_few_is_read() -> None:
    assert read_photo(many_scans(MAX_SCANS)).size == (64, 64)
    with pytest.raises(Rejected, match="scans; open it in an image editor"):
        read_photo(many_scans(MAX_SCANS + 1))


def test_a_jpeg_inside_metadata_does_not_count_as_scans() -> None:
    exif = Image.Exif()
    exif[0x010E] = "\xff\xda" * 300
    data = encoded(gradient(), "JPEG")
    thumbnails = b"".join(b"\xff\xe5" + struct.pack(">H", 602) + b"\xff\xda" * 300 for _ in range(3))
    assert read_photo(data[:2] + thumbnails + data[2:]).size == (64, 64)


def test_a_png_of_a_million_empty_chunks_is_rejected_and_one_of_a_thousand_is_read() -> None:
    picture, empty = encoded(gradient()), png_chunk(b"teSt", b"")
    with pytest.raises(Rejected, match="chunks; open it in an image editor"):
        read_photo(picture[:33] + empty * 1_000_000 + picture[33:])
    assert np.array_equal(read_photo(picture[:33] + empty * 1_000 + picture[33:]).rgb, np.asarray(gradient()))
    with pytest.raises(Rejected, match="chunks"):
        read_photo(picture[:33] + png_chunk(b"IDAT", b"") * (MAX_CHUNKS + 1) + picture[33:])


def test_a_webp_that_claims_a_huge_canvas_is_refused_by_its_header() -> None:
    body = b"VP8X" + struct.pack("<I", 10) + bytes(4) + (16_382).to_bytes(3, "little") * 2
    body += b"ANIM" + struct.pack("<I", 6) + bytes(6)
    with pytest.raises(Rejected, match=r"16383 × 16383 px .* the limit is 50; shrink it"):
        read_photo(b"RIFF" + struct.pack("<I", len(body) + 4) + b"WEBP" + body)


def test_a_tiff_whose_tile_is_far_larger_than_the_picture_cannot_take_the_memory() -> None:
    strip = zlib.compress(bytes(40 * 40 * 3))
    tags = [
        (256, 4, 1, 40),
        (257, 4, 1, 40),
        (258, 3, 1, 8),
        (259, 3, 1, 8),
        (262, 3, 1, 1),
        (277, 3, 1, 1),
        (322, 4, 1, 65_520),
        (323, 4, 1, 65_520),
        (324, 4, 1, 8),
        (325, 4, 1, len(strip)),
    ]
    directory = struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", *tag) for tag in tags) + bytes(4)
    data = b"II*\0" + struct.pack("<I", 8 + len(strip)) + strip + directory
    with pytest.raises(Rejected, match="the photo"):
        read_photo(data)


def test_the_decoder_has_no_secrets_and_ends_with_its_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PACKSHOT_S3_SECRET_KEY", "hidden")
    photos._DECODER._end()
    read_photo(encoded(gradient()))
    child = photos._DECODER._child
    assert child is not None
    assert b"hidden" not in Path(f"/proc/{child.process.pid}/environ").read_bytes()
    assert "Max file size             0" in Path(f"/proc/{child.process.pid}/limits").read_text()


HOSTILE = f"""
import sys
from pipelines.vision import decoding

def decode(data, max_megapixels, bounds):
    while data == b"loop":
        pass
    bytearray({2 * MEMORY_BYTES})

decoding.decode = decode
decoding.serve(int(sys.argv[1]))
"""


@pytest.mark.medium
def test_the_kernel_ends_a_decoder_that_computes_or_allocates_without_end() -> None:
    ours, theirs = socketpair()
    process = subprocess.Popen(
        [sys.executable, "-c", HOSTILE, str(theirs.fileno())], pass_fds=[theirs.fileno()], cwd=ROOT
    )
    theirs.close()
    decoder = photos._Decoder()
    decoder._child = photos._Child(process, ours)
    with pytest.raises(Rejected, match="takes more memory to decode"):
        decoder.ask(b"allocate", 50)
    with pytest.raises(Rejected, match="takes more time to decode"):
        decoder.ask(b"loop", 50)
    assert process.returncode == -signal.SIGXCPU
    assert decoder.ask(encoded(gradient()), 50)[0]["shape"] == [64, 64, 3]  # by a fresh one
    decoder._end()


def test_a_decoder_that_was_killed_or_interrupted_is_replaced() -> None:
    data = encoded(gradient())
    read_photo(data)
    child = photos._DECODER._child
    assert child is not None
    child.process.kill()
    child.process.wait()
    with pytest.raises(Unavailable, match="killed"):
        read_photo(data)
    assert read_photo(data).size == (64, 64)

    def interrupt(*_: object) -> None:
        raise TimeoutError("a shot's time limit")

    previous = signal.signal(signal.SIGALRM, interrupt)
    try:
        large = encoded(gradient(3_000), compress_level=1)
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        with pytest.raises((TimeoutError, Rejected)):
            read_photo(large)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
    assert np.array_equal(read_photo(data).rgb, np.asarray(gradient()))  # not the rest of the answer before


def test_threads_and_forks_get_their_own_photos() -> None:
    pictures = [encoded(Image.new("RGB", (40, 40), (shade, shade, shade))) for shade in range(0, 240, 10)]
    with ThreadPoolExecutor(8) as pool:
        shades = [int(photo.rgb[0, 0, 0]) for photo in pool.map(read_photo, pictures)]
    assert shades == list(range(0, 240, 10))
    forked = os.fork()
    if forked == 0:
        os._exit(int(read_photo(pictures[7]).rgb[0, 0, 0]))
    assert int(read_photo(pictures[3]).rgb[0, 0, 0]) == 30
    assert os.waitstatus_to_exitcode(os.waitpid(forked, 0)[1]) == 70


def test_a_preview_takes_no_memory_of_its_process() -> None:
    data = encoded(Image.new("RGB", (7_000, 7_000), (200, 30, 30)), compress_level=1)
    photos._DECODER._end()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    shown = Image.open(io.BytesIO(photo_preview(data, 200)))
    assert shown.size == (200, 200)
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < 20 * 2**20
