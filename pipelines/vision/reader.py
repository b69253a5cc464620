"""Read the text of a picture: where lines of text are, and what they say.

`TextReader` is the port. Its one implementation is PP-OCRv6 (PaddleOCR, Apache-2.0) by way of rapidocr, whose wheel
holds the models. It is an optional extra. Each line is read by itself, in one thread, so a reading depends neither on
the other lines nor on the number of cores. cv2 and NumPy are imported when a picture is read: `packshot status` asks
only which reader is installed.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, distribution, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from pipelines.contracts import ModelRef
from pipelines.errors import UsageError
from pipelines.models.files import sha256_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np

    from pipelines.settings import Settings

FILES = ("PP-OCRv6_det_small.onnx", "PP-OCRv6_rec_small.onnx")
"""The models in rapidocr's wheel: the detector of lines, and what reads a line."""

SIDES = (736, 960)
"""The longer side of the picture that the detector sees, px: smaller pictures are enlarged, larger ones reduced."""

UPRIGHT = 1.5
"""A line is turned by 90° to be read if it is this many times higher than wide."""

Quad = tuple[tuple[float, float], ...]
"""The corners of a line of text as (x, y) in px: upper left, upper right, lower right, lower left, as it is read."""


@dataclass(frozen=True, slots=True)
class TextLine:
    """A line of text, how sure its reader is (0..1), and where it is."""

    text: str
    confidence: float
    quad: Quad


class TextReader(Protocol):
    """What finds and reads lines of text. Pictures are (H, W, 3) uint8 RGB."""

    def find(self, image: np.ndarray) -> list[Quad]:
        """Where lines of text are, from the top."""

    def read(self, image: np.ndarray, quads: Sequence[Quad]) -> list[TextLine]:
        """What the lines at these places say, in the same order."""


def find_reader(asked: bool | None, settings: Settings) -> ModelRef | None:
    """The reader of a scene whose option `checks.read_text` is `asked`, for the keys of its steps; None: text is not
    read.

    Raises UsageError where text is to be read and the extra `ocr` is not installed: a check that was asked for is never
    left out in silence.
    """
    if not (settings.read_text if asked is None else asked):
        return None
    if (ref := installed_reader()) is None:
        who = "the scene's checks.read_text" if asked else "PACKSHOT_READ_TEXT"
        raise UsageError(f"{who} is on, and rapidocr or onnxruntime is not installed: install packshot[ocr]")
    return ref


def installed_reader() -> ModelRef | None:
    """The reader that is installed: version of the code around the models, digest of both models. None: none is."""
    try:
        files = _files()
        revision = f"rapidocr {version('rapidocr')}, onnxruntime {version('onnxruntime')}"
        return ModelRef("text_reader", revision, sha256_of(*files))
    except (PackageNotFoundError, FileNotFoundError):
        return None


def reading_state(settings: Settings) -> str:
    """A sentence on whether text is read, for people."""
    ref = installed_reader()
    if ref is None:
        return "Text on products is not checked: the extra `ocr` is not installed"
    scenes = "scenes decide with checks.read_text"
    if settings.read_text:
        return f"Text on products is checked, by {ref.revision}; {scenes}"
    return f"Text on products is not checked: PACKSHOT_READ_TEXT is off; {scenes}"


@lru_cache(maxsize=1)
def load_reader() -> TextReader:
    """The installed reader, loaded once a process."""
    return RapidReader(*_files())


class RapidReader:
    """PP-OCRv6 in onnxruntime, on the CPU."""

    def __init__(self, detector: Path, recogniser: Path):
        from rapidocr import RapidOCR

        self._engine: Any = RapidOCR(
            params={
                "Global.use_cls": False,
                "Global.use_preprocess_img": False,
                "Global.text_score": 0.0,
                "Global.log_level": "error",
                "Det.model_path": str(detector),
                "Det.limit_type": "max",
                "Det.limit_side_len": SIDES[1],
                "Rec.model_path": str(recogniser),
                "EngineConfig.onnxruntime.intra_op_num_threads": 1,
                "EngineConfig.onnxruntime.inter_op_num_threads": 1,
            }
        )

    def find(self, image: np.ndarray) -> list[Quad]:
        """Where lines of text are, from the top."""
        longer = max(image.shape[:2])
        scale = min(max(longer, SIDES[0]), SIDES[1]) / longer
        size = (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale)))
        import cv2
        import numpy as np

        seen = cv2.resize(image, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)
        found = self._engine(_bgr(seen), use_det=True, use_cls=False, use_rec=False)
        back = np.array([image.shape[1] / size[0], image.shape[0] / size[1]])
        return [_quad(corners * back) for corners in (found.boxes if found.boxes is not None else ())]

    def read(self, image: np.ndarray, quads: Sequence[Quad]) -> list[TextLine]:
        """What the lines at these places say, in the same order."""
        bgr = _bgr(image)
        return [TextLine(*self._read_one(_straightened(bgr, quad)), quad) for quad in quads]

    def _read_one(self, line: np.ndarray) -> tuple[str, float]:
        read = self._engine(line, use_det=False, use_cls=False, use_rec=True)
        return (read.txts[0], float(read.scores[0])) if read.txts else ("", 0.0)


def height_of(quad: Quad) -> float:
    """The height of a line's letters with their margin, px: the shorter side of its quad."""
    import numpy as np

    corners = np.asarray(quad)
    across = np.linalg.norm(corners[1] - corners[0]) + np.linalg.norm(corners[2] - corners[3])
    down = np.linalg.norm(corners[3] - corners[0]) + np.linalg.norm(corners[2] - corners[1])
    return float(min(across, down) / 2)


def _straightened(image: np.ndarray, quad: Quad) -> np.ndarray:
    """A line of text as a picture of its own, from left to right."""
    import cv2
    import numpy as np

    corners = np.asarray(quad, np.float32)
    width = max(1, round(max(np.linalg.norm(corners[0] - corners[1]), np.linalg.norm(corners[2] - corners[3]))))
    height = max(1, round(max(np.linalg.norm(corners[0] - corners[3]), np.linalg.norm(corners[1] - corners[2]))))
    target = np.array([[0, 0], [width, 0], [width, height], [0, height]], np.float32)
    warp = cv2.getPerspectiveTransform(corners, target)
    line = cv2.warpPerspective(image, warp, (width, height), flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)
    return np.ascontiguousarray(np.rot90(line)) if height >= UPRIGHT * width else line


def _bgr(image: np.ndarray) -> np.ndarray:
    import numpy as np

    return np.ascontiguousarray(image[..., ::-1])


def _quad(corners: np.ndarray) -> Quad:
    return tuple((round(float(x), 1), round(float(y), 1)) for x, y in corners)


def _files() -> list[Path]:
    return [Path(str(distribution("rapidocr").locate_file(f"rapidocr/models/{name}"))) for name in FILES]
