"""Cutouts that a person draws, for a process that has no torch in it: what computes is in a child process.

The child (`pipelines.stages.drawing`) starts when an editor or the review page is opened, and ends when nobody has
asked for some minutes.
Requests take turns. What the image encoder made of a photo is kept in the store, so that it is not computed again.
"""

from __future__ import annotations

import atexit
import socket
import subprocess
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from pipelines.contracts import Store
from pipelines.errors import Rejected, Unavailable
from pipelines.ledger.embeddings import Embeddings
from pipelines.processors import cores
from pipelines.vision.child import receive, send, start

SILENCE_SECONDS = 120.0
"""A child that says nothing for so long is ended."""

PASSED_ON = ("PATH", "LD_LIBRARY_PATH", "PACKSHOT_STATE_DIR", "PACKSHOT_PROFILE", "PACKSHOT_MODELS_DIR")
"""Variables of the environment that the child gets."""


@dataclass(frozen=True, slots=True)
class Mask:
    """What is product: `bits` has one bit a pixel, row by row, the first in the highest bit."""

    width: int
    height: int
    bits: bytes

    @property
    def sizes(self) -> dict[str, int]:
        """Width and height of a request."""
        return {"width": self.width, "height": self.height}


@dataclass(frozen=True, slots=True)
class Prompts:
    """Clicks (x, y, 1 for product or 0) and a box (left, top, right, bottom), all in shares of the picture."""

    clicks: Sequence[tuple[float, float, int]] = ()
    box: Sequence[float] = ()


@dataclass(slots=True)
class _Child:
    """The process, and the socket to it."""

    process: subprocess.Popen[bytes]
    connection: socket.socket

    @classmethod
    def start(cls) -> _Child:
        """Start the process: the same interpreter, and two cores at most."""
        threads = {"OMP_NUM_THREADS": str(min(2, cores()))}
        return cls(*start("pipelines.stages.drawing", PASSED_ON, threads, SILENCE_SECONDS))

    def end(self) -> None:
        """End the process."""
        self.connection.close()
        self.process.kill()
        self.process.wait()


@dataclass(slots=True)
class Editor:
    """The child process, asked by one thread at a time.

    Args:
        store: Has the photos and the cutouts.
        embeddings: What was kept of photos; None keeps nothing.
        max_megapixels: The limit on photos.
    """

    store: Store
    embeddings: Embeddings | None
    max_megapixels: float
    _child: _Child | None = None
    _turn: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        atexit.register(self.close)

    def close(self) -> None:
        """End the child."""
        if self._child is not None:
            self._child.end()
        self._child = None

    def start(self) -> None:
        """Have the child, or a new one that loads its models meanwhile. Returns at once, also while it computes."""
        if self._turn.acquire(blocking=False):  # whoever has the turn has a child
            try:
                if self._child is not None and self._child.process.poll() is not None:
                    self.close()
                self._child = self._child or _Child.start()
            finally:
                self._turn.release()

    @property
    def is_running(self) -> bool:
        """Whether there is a child."""
        return self._child is not None and self._child.process.poll() is None

    def open(self, photo: str, model: str) -> None:
        """Have the encoding of a photo (sha256) by this model (sha256 of its weights) in the child.

        Raises:
            Rejected: the photo cannot be decoded.
            KeyError: the store has lost it.
        """
        with self._turn:
            self._open(photo, model)

    def answer(self, photo: str, model: str, mask: Mask, prompts: Prompts) -> bytes:
        """Return the bits of the mask that HQ-SAM answers with. Raises as `open` does."""
        request = {"do": "answer", "photo": photo, "clicks": list(prompts.clicks), "box": list(prompts.box)}
        with self._turn:
            head, bodies = self._ask(request | mask.sizes, mask.bits)
            if "unknown" in head:  # the child is a new one, or others were opened meanwhile
                self._open(photo, model)
                _, bodies = self._ask(request | mask.sizes, mask.bits)
            return bodies[0]

    def finish(self, photo: str, cutout: str, mask: Mask) -> tuple[bytes, dict[str, Any]]:
        """Return the cutout of a person's mask as PNG, and the facts of its step.

        Raises:
            Rejected: nothing was changed, or the mask is no product's.
        """
        request = {"do": "finish", "max_megapixels": self.max_megapixels}
        with self._turn:
            head, bodies = self._ask(request | mask.sizes, mask.bits, self.store.get(photo), self.store.get(cutout))
        return bodies[0], head["facts"]

    def _open(self, photo: str, model: str) -> None:
        kept = self.embeddings.find(photo, model) if self.embeddings else b""
        request = {"do": "open", "photo": photo, "max_megapixels": self.max_megapixels}
        _, (fresh,) = self._ask(request, self.store.get(photo), kept)
        if fresh and self.embeddings:
            self.embeddings.keep(photo, model, fresh)

    def _ask(self, head: dict[str, Any], *bodies: bytes) -> tuple[dict[str, Any], list[bytes]]:
        """Send a request. A child that ended meanwhile is replaced once."""
        for _ in range(2):
            child = self._child = self._child or _Child.start()
            try:
                send(child.connection, head, *bodies)
                answer, parts = receive(child.connection)
                break
            except (EOFError, ConnectionError):
                self.close()
            except BaseException:  # half an answer would be the next request's
                self.close()
                raise
        else:
            raise Unavailable("the process that draws cutouts does not stay up; the API server's log has its error")
        if "rejected" in answer:
            raise Rejected(answer["rejected"])
        if "error" in answer:
            raise RuntimeError(f"drawing a cutout failed: {answer['error']}")
        return answer, [part.tobytes() for part in parts]
