"""Do finished images look as if they had been photographed where they stand (`packshot measure scenes`)?

Where a shot has a backdrop, the final image is compared with that backdrop alone: how much of its sharpness is left,
how much darker the ground is just below the foot, and on which side of the product the shadow lies. The verdicts of
the pipeline's own checks are counted too.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from pipelines.contracts import Shot, State, Step, Store
from pipelines.errors import UsageError
from pipelines.quality.contact import measure_contact
from pipelines.quality.intervals import Interval, interval
from pipelines.runs.local import read_record
from pipelines.scenes import Checks
from pipelines.settings import Settings
from pipelines.store import FolderStore
from pipelines.vision.backdrops import BackdropSettings, lay_backdrop
from pipelines.vision.light import LUMA

LIT = 0.03
"""The light changed where the final differs from the backdrop by more than this share, over a neighbourhood."""


@dataclass(frozen=True, slots=True)
class FinalMeasure:
    """One final image. None where a measure does not apply: no backdrop, nothing that stands, light from the front.

    darkening: of the band below the foot, 0..1. side: how much darker the ground is on the side away from the light
    than on the other, -1..1.
    """

    sku: str
    scene: str
    sharpness_ratio: float | None
    darkening: float | None
    side: float | None
    e_plus: float
    overcompleted: bool
    halo: float


@dataclass(frozen=True, slots=True)
class Figure:
    """A mean over finals with its 95 % interval over products; None where there is none to measure."""

    value: float | None
    interval: Interval | None
    n: int


@dataclass(frozen=True, slots=True)
class SceneMeasure:
    """Means over the finals of a run.

    sharpness_ratio: sharpness of the scene over the backdrop's own, outside of the product and its shadow.
    contact_shadow: share of standing products with a contact shadow; darkening: how dark it is. shadow_side: share of
    shadows on the side away from the light. overcompleted: share of finals over the threshold. e_plus, halo: means.
    """

    n: int
    sharpness_ratio: Figure
    contact_shadow: Figure
    darkening: Figure
    shadow_side: Figure
    overcompleted: Figure
    e_plus: Figure
    halo: Figure
    finals: tuple[FinalMeasure, ...]


def measure_scenes(source: str, settings: Settings) -> SceneMeasure:
    """Measure every inspected final of a run of the ledger, or of an output folder of `packshot shoot`.

    Raises UsageError where there is no such run, or nothing in it that was inspected.
    """
    found = [
        measure_final(shot, steps, store)
        for shot, steps, store in _walked(source, settings)
        if "inspect" in steps and steps["inspect"].state is State.DONE
    ]
    if not found:
        raise UsageError(f"{source}: there is no inspected final image to measure")
    return summarise(found)


def summarise(finals: Sequence[FinalMeasure]) -> SceneMeasure:
    """Means and intervals of what was measured on each final."""

    def mean(values: Sequence[float | None]) -> Figure:
        known = [(final.sku, float(v)) for final, v in zip(finals, values, strict=True) if v is not None]
        if not known:
            return Figure(None, None, 0)
        skus, numbers = [sku for sku, _ in known], [number for _, number in known]
        return Figure(float(np.mean(numbers)), interval(skus, numbers), len(known))

    return SceneMeasure(
        n=len(finals),
        sharpness_ratio=mean([f.sharpness_ratio for f in finals]),
        contact_shadow=mean([None if f.darkening is None else f.darkening >= Checks().contact for f in finals]),
        darkening=mean([f.darkening for f in finals]),
        shadow_side=mean([None if f.side is None else f.side > 0 for f in finals]),
        overcompleted=mean([f.overcompleted for f in finals]),
        e_plus=mean([f.e_plus for f in finals]),
        halo=mean([f.halo for f in finals]),
        finals=tuple(finals),
    )


def _walked(source: str, settings: Settings) -> Iterator[tuple[Shot, dict[str, Step], Store]]:
    folder = Path(source)
    if folder.is_dir():
        store = FolderStore(folder / ".packshot")
        walked = read_record(folder)
        if not walked:
            raise UsageError(f"{folder}: no record of `packshot shoot` is in this folder")
        yield from ((shot, steps, store) for shot, steps in walked)
        return
    from pipelines.ledger.postgres import PostgresLedger, connect
    from pipelines.ledger.reports import latest_run, report
    from pipelines.store import S3Store

    engine = connect(settings.database_url)
    run = latest_run(engine, settings.state_dir) if source == "latest" else source
    report(engine, run)  # an unknown run is said so
    ledger, objects = PostgresLedger(engine), S3Store(settings)
    shots = ledger.shots(run)
    chosen = ledger.chosen(run, shots)
    yield from ((shot, chosen.get(shot.sku, {}), objects) for shot in shots)


def measure_final(shot: Shot, steps: dict[str, Step], store: Store) -> FinalMeasure:
    """Measure one shot's final image."""
    verdicts = {verdict.check: verdict for verdict in steps["inspect"].verdicts}
    grown, halo = verdicts.get("overcompletion"), verdicts.get("halo")
    job = steps["generate"].job
    sharpness = darkening = side = None
    if "backdrop" in job.inputs:
        final = _pixels(store.get(steps["upscale"].output("final")), "RGB")
        matte = _pixels(store.get(steps["upscale"].output("final_matte")), "L")
        settings = BackdropSettings.from_parameters(job.parameters["backdrop"])
        bare = lay_backdrop(store.get(job.inputs["backdrop"]), (final.shape[1], final.shape[0]), settings).pixels
        sharpness = sharpness_ratio(final, bare, matte)
        if job.parameters["placement"]["anchor"] == "ground":
            contact = measure_contact(final, bare, matte)
            darkening = contact.score if contact else None
            if settings.light_from != "front":
                side = shadow_side(final, bare, matte, settings.light_from)
    return FinalMeasure(
        shot.sku,
        shot.scene,
        sharpness,
        darkening,
        side,
        grown.score if grown else 0.0,
        bool(grown and not grown.passed),
        halo.score if halo else 0.0,
    )


def _pixels(data: bytes, mode: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)).convert(mode))


def _shade(final: np.ndarray, bare: np.ndarray) -> np.ndarray:
    """By which share each pixel is darker than the bare backdrop, (H, W) float32, -1..1."""
    after, before = (picture.astype(np.float32) @ LUMA for picture in (final, bare))
    return np.clip(1 - (after + 1) / (before + 1), -1, 1)


def sharpness_ratio(final: np.ndarray, bare: np.ndarray, matte: np.ndarray) -> float | None:
    """Mean absolute Laplacian of the final's luminance over the bare backdrop's, both (H, W, 3) uint8.

    Measured away from the product (matte (H, W) uint8), and where the light did not change; where it changed
    everywhere, away from the product. None where the backdrop has no detail at all.
    """
    side = min(matte.shape)
    away = cv2.distanceTransform((matte < 3).astype(np.uint8), cv2.DIST_L2, 5) > 0.02 * side
    unlit = away & (np.abs(cv2.GaussianBlur(_shade(final, bare), (0, 0), 0.008 * side)) < LIT)
    region = unlit if unlit.mean() > 0.05 else away
    if not region.any():
        return None
    own, left = (
        float(np.abs(cv2.Laplacian(picture.astype(np.float32) @ LUMA, cv2.CV_32F))[region].mean())
        for picture in (bare, final)
    )
    return left / own if own > 0.05 else None


def shadow_side(final: np.ndarray, bare: np.ndarray, matte: np.ndarray, light_from: str) -> float | None:
    """How much darker the ground beside the foot is on the side away from the light than on the other, -1..1.

    Measured over half of the product's width to each side, from a little above the foot to a little below it.
    """
    rows, columns = np.flatnonzero((matte >= 128).any(axis=1)), np.flatnonzero((matte >= 128).any(axis=0))
    if rows.size == 0:
        return None
    foot, tall, wide = rows[-1], np.ptp(rows) + 1, np.ptp(columns) + 1
    zone = np.zeros(matte.shape, bool)
    zone[max(0, foot - round(0.15 * tall)) : foot + round(0.06 * tall) + 1] = True
    zone &= matte < 3
    shade = _shade(final, bare)
    x = np.arange(matte.shape[1])[None, :]
    middle = columns.mean()
    sides = []
    for sign in (-1, 1):
        beside = zone & (sign * (x - middle) > 0) & (np.abs(x - middle) < wide)
        sides.append(float(shade[beside].mean()) if beside.any() else 0.0)
    left, right = sides
    return right - left if light_from == "left" else left - right
