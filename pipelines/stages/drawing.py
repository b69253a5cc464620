"""The process in which a person's cutouts are computed: `python -c "from pipelines.stages.drawing import serve; …"`.

It holds torch, HQ-SAM and the encodings of the last photos. `pipelines.runs.editing` starts it, and it ends by itself
if nobody asks for a while.
"""

from __future__ import annotations

import io
import signal
import socket
import threading
import traceback
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image

from pipelines.errors import Rejected
from pipelines.models.profile import active_profile
from pipelines.vision.child import receive, send
from pipelines.vision.clicks import Click, answer_box, answer_clicks
from pipelines.vision.photos import png_bytes, read_photo
from pipelines.vision.segmenters import Encoding, HQSamSegmenter, working_picture

IDLE_SECONDS = 300.0
"""After so long without a request the process ends, and its memory is free."""

OPEN_PHOTOS = 4
"""Photos whose encodings are in memory, about 10 MB each."""


@dataclass(slots=True)
class Drawing:
    """The segmenter, and the working pictures and encodings of the photos that were opened last."""

    hqsam: HQSamSegmenter
    opened: OrderedDict[str, tuple[np.ndarray, Encoding]] = field(default_factory=OrderedDict)

    def answer(self, head: dict[str, Any], bodies: list[np.ndarray]) -> tuple[dict[str, Any], list[bytes]]:
        """Return head and bodies of the answer to a request."""
        if head["do"] == "open":
            return self._open(head, *(body.tobytes() for body in bodies))
        shape = (int(head["height"]), int(head["width"]))
        mask = np.unpackbits(bodies[0], count=shape[0] * shape[1]).reshape(shape) > 0
        if head["do"] == "finish":
            return self._finish(head, mask, *(body.tobytes() for body in bodies[1:]))
        if head["photo"] not in self.opened:
            return {"unknown": True}, []
        self.opened.move_to_end(head["photo"])
        image, encoding = self.opened[head["photo"]]
        self.hqsam.restore(image, encoding)
        return {}, [np.packbits(self._corrected(image, mask, head)).tobytes()]

    def _corrected(self, image: np.ndarray, mask: np.ndarray, head: dict[str, Any]) -> np.ndarray:
        """Return HQ-SAM's answer, at the size of the mask that was sent; clicks and box are shares of the picture."""
        height, width = image.shape[:2]
        if head["box"]:
            left, top, right, bottom = head["box"]
            found = answer_box(image, (left * width, top * height, right * width, bottom * height), self.hqsam)
        else:
            clicks = [Click(x * width, y * height, bool(product)) for x, y, product in head["clicks"]]
            found = answer_clicks(image, _resized(mask, (height, width)), clicks, self.hqsam)
        return _resized(found, mask.shape)

    def _open(self, head: dict[str, Any], data: bytes, kept: bytes) -> tuple[dict[str, Any], list[bytes]]:
        """Have a photo's encoding: the one that was kept, else a new one, which is the answer's body."""
        if head["photo"] in self.opened:
            return {}, [b""]
        image = working_picture(read_photo(data, head["max_megapixels"]).rgb)
        encoding = None
        if kept:
            encoding = Encoding.from_bytes(kept)
            if encoding.size != image.shape[:2]:
                encoding = None
        fresh = encoding is None
        encoding = encoding or self.hqsam.encode(image)
        self.opened[head["photo"]] = image, encoding
        while len(self.opened) > OPEN_PHOTOS:
            self.opened.popitem(last=False)
        return {}, [encoding.to_bytes() if fresh else b""]

    def _finish(
        self, head: dict[str, Any], mask: np.ndarray, data: bytes, cutout: bytes
    ) -> tuple[dict[str, Any], list[bytes]]:
        """Make the cutout of a person's mask."""
        from pipelines.stages.cutout import by_hand, redraw  # not before the first click: 0.2 s

        photo = read_photo(data, head["max_megapixels"])
        before = np.asarray(Image.open(io.BytesIO(cutout)).convert("RGBA").resize(photo.size))
        made = by_hand(redraw(photo, before, mask))
        return {"facts": dict(made.facts)}, [made.outputs[0].data]


def _resized(mask: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Return a mask `(h, w)` bool at another size."""
    if mask.shape == shape:
        return mask
    return np.asarray(Image.fromarray(mask).resize((shape[1], shape[0]), Image.Resampling.NEAREST))


def serve(descriptor: int) -> None:
    """Answer requests on a socket until the other side closes it, or says nothing for IDLE_SECONDS."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle; then it closes the socket
    connection = socket.socket(fileno=descriptor)
    connection.settimeout(IDLE_SECONDS)
    # the decoder's process starts now, while HQ-SAM is loaded, and not with the first photo
    threading.Thread(target=read_photo, args=(png_bytes(Image.new("RGB", (64, 64))),), daemon=True).start()
    drawing = Drawing(HQSamSegmenter.from_profile(active_profile(), salient=None))
    while True:
        try:
            head, bodies = receive(connection)
        except (EOFError, TimeoutError, ConnectionError):
            return
        try:
            answer, parts = drawing.answer(head, bodies)
        except Rejected as rejection:
            answer, parts = {"rejected": rejection.reason}, []
        except Exception:
            answer, parts = {"error": traceback.format_exc()}, []
        send(connection, answer, *parts)
