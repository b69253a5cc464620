"""Read a photo as shops upload it: any mode, any orientation, any size up to a limit that is checked before
decoding.

Strangers' bytes are decoded in a child process with limits on CPU time and memory (`decoding.py`), one photo at a time.
It starts with the first photo (0.3 s to 1 s) and stays; a photo of 1 megapixel then takes 3 to 25 ms more than in this
process.
"""

from __future__ import annotations

import atexit
import io
import logging
import os
import signal
import socket
import subprocess
import threading
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from pipelines.errors import Rejected, Unavailable
from pipelines.settings import MAX_MEGAPIXELS
from pipelines.vision import child
from pipelines.vision.child import receive, send
from pipelines.vision.decoding import FORMATS, MIN_SIDE

__all__ = ["FORMATS", "MIN_SIDE", "Photo", "photo_preview", "png_bytes", "read_photo"]

log = logging.getLogger(__name__)

SILENCE_SECONDS = 120
"""A decoder that says nothing for so long waits for something: it uses up its CPU time sooner, where it computes."""

REMEDY = "export it as a plain PNG or JPEG"

PHOTOS_A_PROCESS = 500
"""Then it is replaced, so that no leak of a decoder adds up."""


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

    It applies EXIF orientation, converts CMYK, Lab and colour profiles to sRGB, scales 16 bits and floats to 8 bits,
    expands palettes and grey, and takes an animation's first frame.

    Args:
        data: The file.
        max_megapixels: The limit; the header is checked before a pixel is decoded.

    Raises:
        Rejected: the file is empty, not an image, broken, too large, too small, too narrow, or takes more time or
            memory to decode than a photo of its size may.
    """
    head, (rgb, *alpha) = _DECODER.ask(data, max_megapixels)
    height, width, channels = head["shape"]
    return Photo(
        rgb.reshape(height, width, channels),
        alpha[0].reshape(height, width).astype(np.float32) / 255 if alpha else None,
    )


def photo_preview(data: bytes, size: int, max_megapixels: float = MAX_MEGAPIXELS) -> bytes:
    """Return a photo as WebP, at most `size` px on its longer side. Its pixels never are in this process.

    Raises:
        Rejected: as `read_photo` does.
    """
    _, (preview,) = _DECODER.ask(data, max_megapixels, size)
    return preview.tobytes()


def png_bytes(image: Image.Image) -> bytes:
    """Encode losslessly; equal pixels give equal bytes."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=4)
    return buffer.getvalue()


@dataclass(slots=True)
class _Child:
    """The process, the socket to it, and how many photos it was sent."""

    process: subprocess.Popen[bytes]
    connection: socket.socket
    asked: int = 0

    @classmethod
    def start(cls) -> _Child:
        """Start the process: the same interpreter, no more of the environment than it needs."""
        passed_on, one_thread = ("PATH", "LD_LIBRARY_PATH"), {"OPENBLAS_NUM_THREADS": "1"}
        return cls(*child.start("pipelines.vision.decoding", passed_on, one_thread, SILENCE_SECONDS))


class _Decoder:
    """The child process: started when first asked, asked by one thread at a time, ended with this process."""

    def __init__(self) -> None:
        self._child: _Child | None = None
        self._turn = threading.Lock()
        os.register_at_fork(after_in_child=self._forget)
        atexit.register(self._end)

    def _forget(self) -> None:
        """Begin without a process. After a fork it is the parent's, and so is whoever holds the lock."""
        if self._child is not None:
            self._child.connection.close()
            self._child.process.returncode = 0  # not this process's to wait for
        self._child = None
        self._turn = threading.Lock()

    def ask(self, data: bytes, max_megapixels: float, preview: int = 0) -> tuple[dict[str, Any], list[np.ndarray]]:
        """Send a photo and return the answer's head and bodies.

        Raises:
            Rejected: the photo cannot be decoded.
            Unavailable: somebody ended the process.
            RuntimeError: the decoder has a bug, or does not start.
        """
        if not data:
            raise Rejected("the photo is empty (0 bytes); upload it again")
        request = {"max_megapixels": max_megapixels, "preview": preview}
        with self._turn:
            try:
                head, bodies = self._exchange(request, data)
            except BaseException:  # a shot's time limit and Ctrl-C too: half an answer would be the next photo's
                self._end()
                raise
        for note in head["notes"]:
            log.warning("%s", note)
        if "error" in head:
            raise RuntimeError(f"decoding failed: {head['error']}")
        if "rejected" in head:
            raise Rejected(head["rejected"], head.get("facts"))
        return head, bodies

    def _exchange(self, request: dict[str, Any], data: bytes) -> tuple[dict[str, Any], list[np.ndarray]]:
        if self._child is not None and self._child.asked >= PHOTOS_A_PROCESS:
            self._end()
        child = self._child = self._child or _Child.start()
        child.asked += 1
        try:
            send(child.connection, request, data)
            return receive(child.connection)
        except TimeoutError:
            raise Rejected(f"the photo was not decoded within {SILENCE_SECONDS} s; {REMEDY}") from None
        except (EOFError, ConnectionError):
            ended = child.process.wait()
        if ended == -signal.SIGXCPU:
            raise Rejected(f"the photo takes more time to decode than one of its size should; {REMEDY}")
        if ended == -signal.SIGKILL:
            raise Unavailable("the process that decodes photos was killed, by the system for lack of memory or by hand")
        if ended < 0:
            raise Rejected(f"the photo is broken: its decoder crashed ({signal.Signals(-ended).name}); {REMEDY}")
        raise RuntimeError(f"the process that decodes photos ended with exit code {ended}; its error is above")

    def _end(self) -> None:
        if self._child is not None:
            self._child.connection.close()
            self._child.process.kill()
            self._child.process.wait()
        self._child = None


_DECODER = _Decoder()
