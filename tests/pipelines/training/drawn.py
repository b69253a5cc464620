"""A small training folder of drawings, as `index.csv` names them."""

from __future__ import annotations

import csv
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from pipelines.training.data import is_held_out


def drawn_folder(folder: Path, side: int = 96) -> Path:
    """Draw 24 cutouts, of which a half have an opening, 20 scenes and 20 photos; both splits have all of them."""
    data = folder / "training"
    rng = np.random.default_rng(0)
    rows = []

    def add(kind: str, n: int, source: str, picture: np.ndarray) -> None:
        (data / kind).mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(data / kind / f"{n}.png")
        word = "".join(chr(97 + int(digit)) for digit in f"{n:02d}")
        rows.append((f"{kind}/{n}.png", f"thing {word}", source, "CC0"))

    for n in range(24):
        rgba = np.zeros((side, side, 4), np.uint8)
        colour = tuple(int(c) for c in rng.integers(0, 200, 3))
        cv2.circle(rgba, (side // 2, side // 2), side // 3, (*colour, 255), -1)
        if n % 4 < 2:
            cv2.circle(rgba, (side // 2, side // 2), side // 8, (0, 0, 0, 0), -1)
        add("cutouts", n, "fluent-emoji-3d" if n % 2 else "saleor", rgba)
    for kind, source in (("scenes", "iclight"), ("photos", "vendure")):
        for n in range(20):
            coarse = rng.integers(0, 256, (6, 6, 3)).astype(np.uint8)
            add(kind, n, source, cv2.resize(coarse, (2 * side, 2 * side), interpolation=cv2.INTER_CUBIC))
    with (data / "index.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("file", "name", "source", "licence"), *rows])
    for kind in ("cutouts", "photos"):
        names = [name for file_name, name, *_ in rows if file_name.startswith(kind)]
        assert {is_held_out(name) for name in names} == {True, False}
    return data
