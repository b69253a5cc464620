"""`packshot shoot`: a catalogue through every stage in one process, with a folder as its store and no services.

For a designer who tries a photo, and for tests. Steps are kept in memory, artifacts in `.packshot` of the output
folder. There is no lineage across runs: that needs the services. Until a run ends, its finished steps are kept in
`.packshot` too, so that the same command goes on where it was interrupted.
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from pipelines.catalogue import reading
from pipelines.catalogue.feed import ingest
from pipelines.catalogue.manifest import read_manifest
from pipelines.contracts import (
    FINISHED,
    STAGES,
    Artifact,
    Job,
    ModelRef,
    Product,
    Shot,
    ShotState,
    State,
    Step,
    Store,
    Verdict,
    sha256_hex,
)
from pipelines.errors import UsageError
from pipelines.ledger.memory import MemoryLedger
from pipelines.ledger.outcomes import outcome_of
from pipelines.runs.contact_sheet import SheetRow, contact_sheet
from pipelines.scenes.channels import channel_files
from pipelines.settings import Settings
from pipelines.stages import stage
from pipelines.stages.keys import fingerprint
from pipelines.store import FolderStore
from pipelines.workflow import Limits, Recipe, StageModels, run_stage

RECORD = "steps.json"
"""In the output folder's `.packshot`: what was computed, for `packshot measure scenes`."""

SUFFIXES = {"image/jpeg": "jpg", "image/png": "png", "image/webp": "webp", "image/avif": "avif"}
"""How a published image's file name ends."""

NAME_BYTES = 120
"""File systems take 255 bytes; scene, digest and suffix are to come."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """The outcome of one shot. `picture` is the file that was written, or None. `product` is the SKU of its row, and
    `photo_number` the photo's place there."""

    sku: str
    row: int
    state: ShotState
    reason: str
    picture: Path | None
    product: str
    photo_number: int


def shoot(
    source: Path,
    recipe: Recipe,
    out: Path,
    settings: Settings,
    limit: int | None = None,
    progress: Callable[[str, Shot, Step], None] | None = None,
    started: Callable[[str, int], None] | None = None,
    finished: Callable[[Outcome], None] | None = None,
    noted: Callable[[str], None] | None = None,
    resumed: Callable[[int, int], None] | None = None,
) -> list[Outcome]:
    """Takes an image or a catalogue through every stage. Writes images that pass, and a contact sheet, into `out`.

    The first shot goes through all stages alone, so that its image is there early; the others go stage by stage.
    That holds the models of all stages at once: with `offload`, which saves memory, all shots go stage by stage.
    A run of these scene and channel that was interrupted in this folder is taken up: its finished steps are reused.

    `started(stage, shots)` is called before each stage of either, `progress(stage, shot, step)` after each step,
    `finished(outcome)` once a shot's image is written, `noted(sentence)` where the catalogue is not in UTF-8, and
    `resumed(steps, shots)` at the end with how many steps were reused, and of how many shots.
    Raises UsageError for a missing source, one that is neither image nor catalogue, an `out` that cannot be a folder,
    and a scene that needs a model which the profile does not have.
    """
    _have_folder(source, out)
    fingerprint(recipe)  # what is missing is said before hundreds of photos are cut out
    store = FolderStore(out / ".packshot")
    products, note = _products(source, store, settings, limit, recipe.scene.additional_photos)
    if note and noted is not None:
        noted(note)
    shots = [Shot(product, recipe.scene.name, recipe.scene.channel.name) for product in products]
    ledger = _Kept(out / ".packshot" / f"unfinished-{recipe.scene.name}-{recipe.scene.channel.name}.jsonl", store)
    limits = Limits(settings.batch_size, settings.shot_seconds)
    run = f"shoot/{recipe.scene.name}"
    models = {name: StageModels(stage(name), recipe) for name in STAGES}
    outcomes: list[Outcome] = []
    parts = [part for part in (shots[:1], shots[1:]) if part] if not recipe.compute.offload else [shots]
    for part in parts:
        for name in STAGES:
            loaded = models[name] if part is not parts[-1] else models.pop(name)  # the last part frees them
            ready = part if name != "publish" else [s for s in part if _passed(ledger.chosen(run, [s])[s.sku])]
            if started is not None:
                started(name, len(ready))
            report = (lambda shot, step, name=name: progress(name, shot, step)) if progress is not None else None
            run_stage(stage(name), run, ready, recipe, ledger, store, limits, report, models=loaded)
        steps = ledger.chosen(run, part)
        _remove_former(part, out)
        for shot in part:
            outcomes.append(_write(shot, steps[shot.sku], store, out))
            if finished is not None:
                finished(outcomes[-1])
        write_record(out, [(shot, steps[shot.sku]) for shot in part])
    steps = ledger.chosen(run, shots)
    rows = (sheet_row(shot, steps[shot.sku], o.state, o.reason, store) for shot, o in zip(shots, outcomes, strict=True))
    contact_sheet(rows, [outcome.state for outcome in outcomes], out / "contact_sheet.png")
    reused = [sum(step.key in ledger.found for step in steps[shot.sku].values()) for shot in shots]
    if resumed is not None and any(reused):
        resumed(sum(reused), sum(count > 0 for count in reused))
    ledger.end()
    return outcomes


class _Kept(MemoryLedger):
    """The ledger of a run, with its finished steps in a file, one a line, until the run ends. `found` has the keys of
    those that an interrupted run left there."""

    def __init__(self, path: Path, store: FolderStore) -> None:
        super().__init__()
        self._path = path
        self.found: set[str] = set()
        for line in path.read_text("utf-8").splitlines() if path.is_file() else ():
            try:
                step = _step(json.loads(line))
            except ValueError:  # the machine stopped in the middle of this line
                continue
            if all(store.has(output.sha256) for output in step.outputs):
                self.found.add(super().record(step).key)
        if path.is_file():
            path.write_text("".join(_line(self._steps[key]) for key in self._steps), "utf-8")

    def record(self, step: Step, run: str = "") -> Step:
        """See `MemoryLedger.record`."""
        if step.state in FINISHED:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("a", encoding="utf-8") as file:
                file.write(_line(step))
        return super().record(step, run)

    def end(self) -> None:
        """The run is through: nothing is left to go on with."""
        self._path.unlink(missing_ok=True)


def _line(step: Step) -> str:
    return json.dumps(asdict(step)) + "\n"


def write_record(out: Path, walked: Sequence[tuple[Shot, dict[str, Step]]]) -> None:
    """Add the steps of these shots to the output folder's record, in place of those of the same shots in it."""
    path = out / ".packshot" / RECORD
    known = {(shot.sku, shot.scene, shot.channel): (shot, steps) for shot, steps in read_record(out)}
    known |= {(shot.sku, shot.scene, shot.channel): (shot, steps) for shot, steps in walked}
    rows = [{"shot": asdict(s), "steps": {n: asdict(step) for n, step in steps.items()}} for s, steps in known.values()]
    path.write_text(json.dumps(rows), "utf-8")


def read_record(out: Path) -> list[tuple[Shot, dict[str, Step]]]:
    """The shots whose images are in an output folder, each with its steps by stage; none where there is no record."""
    path = out / ".packshot" / RECORD
    if not path.is_file():
        return []
    rows = json.loads(path.read_text("utf-8"))
    return [(_shot(row["shot"]), {name: _step(step) for name, step in row["steps"].items()}) for row in rows]


def _shot(row: dict[str, Any]) -> Shot:
    return Shot(**{**row, "product": Product(**row["product"])})


def _step(row: dict[str, Any]) -> Step:
    job = Job(**{**row["job"], "models": tuple(ModelRef(**model) for model in row["job"]["models"])})
    outputs, verdicts = [Artifact(**o) for o in row["outputs"]], [Verdict(**v) for v in row["verdicts"]]
    return Step(
        **{**row, "job": job, "state": State(row["state"]), "outputs": tuple(outputs), "verdicts": tuple(verdicts)}
    )


def _have_folder(source: Path, out: Path) -> None:
    remedy = "give an image, or a catalogue as CSV, TSV or Merchant XML"
    if source.is_dir():
        raise UsageError(f"{source} is a folder: {remedy}")
    if source.parts[:1] in (("http:",), ("https:",)):
        raise UsageError(f"{source.name} is at an address: download it, then {remedy}")
    if not source.is_file():
        raise UsageError(f"{source}: no such file: {remedy}")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"{out}: cannot be made ({error.strerror}): name a folder to write to") from error


def sheet_row(shot: Shot, steps: dict[str, Step], state: ShotState, reason: str, store: Store) -> SheetRow:
    """One row of the contact sheet: photo → cutout → raw → final, up to the last finished stage and without what the
    store no longer has."""

    def picture(stage_name: str, role: str) -> Image.Image | None:
        step = steps.get(stage_name)
        if step is None or step.state is not State.DONE:
            return None
        made = step.output(role)
        try:
            return Image.open(io.BytesIO(store.get(made)))
        except KeyError:
            return None  # it was pruned

    described = steps["describe"].facts if "describe" in steps else {}
    return SheetRow(
        sku=shot.sku,
        title=shot.product.title,
        state=state,
        reason=reason,
        subject=described.get("subject", ""),
        tags=tuple(tag["tag"] for tag in described.get("tags", ())),
        photo=_photo(shot.product, steps, store),
        cutout=picture("cutout", "cutout"),
        raw=picture("generate", "raw"),
        final=picture("upscale", "final"),
    )


def _photo(product: Product, steps: dict[str, Step], store: Store) -> Image.Image | None:
    """The photo, where the cutout stage could read it."""
    if product.photo is None or "cutout" not in steps or steps["cutout"].state is not State.DONE:
        return None
    from pipelines.vision.photos import read_photo

    return read_photo(store.get(product.photo), math.inf).image()  # the cutout held it to the limit


def _products(
    source: Path, store: Store, settings: Settings, limit: int | None, additional_photos: int
) -> tuple[Sequence[Product], str]:
    """The products of a catalogue or of one photo, and a note on the catalogue's encoding or ""."""
    if source.suffix.lower() in reading.SUFFIXES or reading.seems_a_table(source):
        manifest = read_manifest(store, ingest(source, store, settings, limit, additional_photos=additional_photos))
        return [line.product for line in manifest], manifest.encoding_note
    photo = store.put(source.read_bytes(), "application/octet-stream")
    title = source.stem.replace("_", " ").replace("-", " ")
    return [Product(source.stem, 1, title, "", photo, image_link=source.name)], ""


def _passed(steps: dict[str, Step]) -> bool:
    return "inspect" in steps and all(verdict.passed for step in steps.values() for verdict in step.verdicts)


def _write(shot: Shot, steps: dict[str, Step], store: Store, out: Path) -> Outcome:
    state, reason = outcome_of(steps)
    path = None
    if state is ShotState.PUBLISHED:
        published = steps["publish"].outputs[0]
        path = _image_path(shot, published, out)
        path.write_bytes(store.get(published.sha256))
    about = shot.product
    return Outcome(about.sku, about.row, state, reason, path, about.row_sku, about.photo_number)


def _image_path(shot: Shot, published: Artifact, out: Path) -> Path:
    # with scene and channel: they may share a folder, and a photo that lies in it is never written over
    look = f"{shot.scene}-{shot.channel}" if shot.channel in channel_files() else shot.scene
    return out / f"{file_name(shot.sku)}-{look}.{SUFFIXES[published.media_type]}"


def _remove_former(shots: Sequence[Shot], out: Path) -> None:
    """Remove the images that an earlier call published of these shots: one that is held now must not lie there as if it
    had passed. A file that somebody changed since stays."""
    again = {(shot.sku, shot.scene, shot.channel) for shot in shots}
    for shot, steps in read_record(out):
        if (shot.sku, shot.scene, shot.channel) in again and "publish" in steps and steps["publish"].outputs:
            published = steps["publish"].outputs[0]
            path = _image_path(shot, published, out)
            if path.is_file() and sha256_hex(path.read_bytes()) == published.sha256:
                path.unlink()


def file_name(sku: str) -> str:
    """A SKU as a short file name without separators and leading dot. It is unique: a name that differs from its SKU
    contains the SKU's digest."""
    safe = "".join(c if c.isalnum() or c in "-_." else "_" for c in sku).lstrip(".")
    safe = safe.encode()[:NAME_BYTES].decode(errors="ignore")
    return safe if safe == sku else f"{safe or 'product'}-{sha256_hex(sku.encode())[:8]}"
