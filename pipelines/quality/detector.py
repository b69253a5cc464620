"""What the overcompletion detector's verdicts depend on. Free of heavy imports, because step keys name it."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from pipelines.contracts import ModelRef, sha256_hex

WEIGHTS = Path(__file__).with_name("evidence.safetensors")
"""Boosted trees of `evidence.py`."""

SURE = 0.55
"""Probability from which a piece counts as product. It is the strictest, in steps of 0.05, with a recall of at least
0.95 on the calibration products (0.952, mean of five fits)."""


def weights_ref() -> ModelRef:
    """Return the weights as a model of a step's key and lineage."""
    digest = _digest_of(WEIGHTS)
    return ModelRef("evidence", digest[:12], digest)


@cache
def _digest_of(file: Path) -> str:
    return sha256_hex(file.read_bytes())
