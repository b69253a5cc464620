"""Pictures that show a scene before it is used: one sample product, taken through the pipeline like any other."""

from __future__ import annotations

import csv
import io
import tempfile
from pathlib import Path

from PIL import Image

from pipelines.catalogue.reading import SUFFIXES
from pipelines.contracts import sha256_hex
from pipelines.errors import UsageError
from pipelines.models.profile import Profile
from pipelines.runs.local import read_record, shoot
from pipelines.scenes import Scene
from pipelines.settings import Settings
from pipelines.store import FolderStore
from pipelines.workflow import Recipe

SAMPLE = Path(__file__).resolve().parents[1] / "sample" / "catalog.csv"
SHOWN = ("SMP-001", "SMP-004", "SMP-007", "SMP-008", "SMP-009", "SMP-011", "SMP-012")
"""Sample products that scenes are shown with; a scene's name chooses one."""

SIDE = 640
"""Longer side of a preview, px."""


def preview(scene: Scene, profile: Profile, settings: Settings, photo: Path | None = None) -> Path:
    """Shoot one product in a scene and write the result beside the scene's file, under the name that its `picture` has.

    photo: of the product; by default one of the sample catalogue's. Raises UsageError where the scene names no picture,
    or no final image came of the photo.
    """
    check_photo(photo)
    if not scene.picture:
        raise UsageError(f"scene {scene.name} names no `picture` to write: add one, such as {scene.name}.jpg")
    with tempfile.TemporaryDirectory() as folder:
        final = _final(scene, profile, settings, photo, Path(folder))
    final.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    path = scene.folder / scene.picture
    final.save(path, quality=88)
    return path


def check_photo(photo: Path | None) -> None:
    """Raise UsageError where a product photo is no file, or a catalogue."""
    if photo is not None and (not photo.is_file() or photo.suffix.lower() in SUFFIXES):
        raise UsageError(f"{photo}: no such photo: give one product photo, or leave it out for a sample product")


def _final(scene: Scene, profile: Profile, settings: Settings, photo: Path | None, folder: Path) -> Image.Image:
    recipe = Recipe(profile, scene, compute=settings.compute(), max_megapixels=settings.photo_max_megapixels)
    (outcome,) = shoot(photo or sample_photo(scene.name), recipe, folder, settings)
    ((_, steps),) = read_record(folder)
    if "upscale" not in steps:
        raise UsageError(f"scene {scene.name}: no image came of it: {outcome.reason}")
    store = FolderStore(folder / ".packshot")
    return Image.open(io.BytesIO(store.get(steps["upscale"].output("final")))).convert("RGB")


def sample_photo(name: str) -> Path:
    """The sample product that a scene of this name is shown with."""
    wanted = SHOWN[int(sha256_hex(name.encode())[:8], 16) % len(SHOWN)]
    with SAMPLE.open(encoding="utf-8", newline="") as file:
        return next(SAMPLE.parent / row["image_link"] for row in csv.DictReader(file) if row["id"] == wanted)
