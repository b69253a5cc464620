"""Over backdrops: how much of what the model grows reaches the final image (`packshot experiment backdrops`)?

The products of the experiment stand in the bundled scenes with a backdrop in mode `adjust`. The stages `generate` and
`upscale` of the pipeline make the images, with the BrushNet and the guidance of two cells of the claim. Only the first
seed is tried, so no image is chosen. E+ of the generated image is measured as the claim does, E+ of the final image as
`inspect` does.

Measures are stored at once, one JSON line each, under the key of the step that generated the image.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipelines.contracts import Artifact, Job, Made, Product, Shot, State, Step, sha256_hex
from pipelines.diffusion.brushnet import BrushNetModel
from pipelines.diffusion.inpainting import InpaintingPipeline
from pipelines.errors import UsageError
from pipelines.evaluation import statistics
from pipelines.evaluation.experiment.cells import BASELINE, CLAIM, TREATED, Cell
from pipelines.evaluation.experiment.pairs import Subject, catalogue_subjects, load_subjects
from pipelines.evaluation.statistics import Figure
from pipelines.models.checkpoints import load_net
from pipelines.models.profile import Profile
from pipelines.quality.intervals import Interval, wilson
from pipelines.sample import CATALOGUE
from pipelines.scenes import FOLDER, Scene, list_scenes
from pipelines.settings import CPU, Compute
from pipelines.stages import generate, upscale
from pipelines.stages.keys import generate_job, supplies, upscale_job
from pipelines.vision.photos import png_bytes
from pipelines.workflow import BATCH, Recipe, Work

ARMS = tuple(next(cell for cell in CLAIM if cell.name == name) for name in (TREATED, BASELINE))
"""The claim's cells that are made over backdrops; the method is first, since it is what shops get."""

Matted = tuple[NDArray[np.uint8], NDArray[np.uint8]]
"""An image (H, W, 3) and its product's matte (H, W)."""

STORED = "backdrops.jsonl"


@dataclass(frozen=True, slots=True)
class Measured:
    """One image: E+ of what the model generated, and of the final image, in areas of the product."""

    key: str
    arm: str
    scene: str
    product: str
    generated: float
    final: float


@dataclass(frozen=True, slots=True)
class ArmRow:
    """Images of one arm over backdrops.

    Attributes:
        overcompleted: Finals with E+ above tau; `over_products` is Wilson's interval of the products that have one.
        generated, final: Share of images with E+ above tau, with the bootstrap interval over products.
    """

    arm: str
    n: int
    products: int
    overcompleted: int
    over_products: Interval
    generated: Figure
    final: Figure
    mean_generated: Figure
    mean_final: Figure


def adjusted_scenes() -> list[Scene]:
    """The bundled scenes of which only the light is generated."""
    return [scene for scene in list_scenes(FOLDER) if scene.backdrop is not None and scene.backdrop.mode == "adjust"]


def run(
    profile: Profile,
    shared: Path,
    out: Path,
    products: int | None = None,
    scenes: Sequence[Scene] | None = None,
    compute: Compute = CPU,
    progress: Callable[[str, int, int], None] | None = None,
) -> list[Measured]:
    """Make and measure each product in each scene with both arms; what `out` has already is not made again.

    Args:
        profile: It has the BrushNets of both arms.
        shared: The folder with `catalog` and `training`; if it is missing, the sample catalogue is used.
        products: Use the first so many; by default all.
        scenes: Scenes with a backdrop in mode `adjust`; by default the bundled ones.
        progress: Called with (arm and scene, images done, images in all).

    Raises:
        UsageError: there is no product, or the profile lacks an arm.
    """
    for cell in ARMS:
        if not profile.has(cell.brushnet):
            raise UsageError(f"the profile {profile.name} has no {cell.brushnet}")
    there = (shared / "training" / "index.csv").exists()
    subjects = (load_subjects(shared) if there else catalogue_subjects(CATALOGUE))[:products]
    scenes = adjusted_scenes() if scenes is None else scenes
    stored = _read(out / STORED)
    total, done = len(ARMS) * len(scenes) * len(subjects), 0
    found: list[Measured] = []
    for cell in ARMS:
        for scene in scenes:
            recipe = Recipe(profile, scene, mask_guidance=cell.guidance == "guided", compute=compute)
            for one in _images(cell, recipe, subjects, stored, out / STORED):
                found.append(one)
                done += 1
                if progress is not None:
                    progress(f"{cell.name}, {scene.name}", done, total)
    return found


def rows_of(measured: Sequence[Measured], tau: float) -> list[ArmRow]:
    """Rates and means of each arm; `tau` is the threshold of the check `overcompletion`."""
    rows = []
    for cell in ARMS:
        of_arm = [one for one in measured if one.arm == cell.name]
        products = [one.product for one in of_arm]
        grown = {one.product for one in of_arm if one.final > tau}
        rows.append(
            ArmRow(
                cell.name,
                len(of_arm),
                len(set(products)),
                sum(one.final > tau for one in of_arm),
                wilson(len(grown), len(set(products))),
                statistics.mean(products, [one.generated > tau for one in of_arm]),
                statistics.mean(products, [one.final > tau for one in of_arm]),
                statistics.mean(products, [one.generated for one in of_arm]),
                statistics.mean(products, [one.final for one in of_arm]),
            )
        )
    return rows


def _read(path: Path) -> dict[str, Measured]:
    if not path.exists():
        return {}
    lines = path.read_text(encoding="utf-8").splitlines()
    return {one.key: one for one in (Measured(**json.loads(line)) for line in lines)}


def _images(
    cell: Cell, recipe: Recipe, subjects: Sequence[Subject], stored: dict[str, Measured], path: Path
) -> Iterator[Measured]:
    """Yield the measures of an arm in a scene; the models are loaded when the first image is to be made."""
    models: generate.GenerateModels | None = None
    weights = recipe.profile.ref(cell.brushnet).sha256
    for start in range(0, len(subjects), BATCH):
        batch = [_Placed.of(subject, recipe) for subject in subjects[start : start + BATCH]]
        keys = [sha256_hex(f"{weights} {one.work.job.key}".encode())[:16] for one in batch]
        if not all(key in stored for key in keys):
            models = models or _models(cell, recipe)
            made = generate.compute([one.work for one in batch], models, recipe)
            for key, one, image in zip(keys, batch, made, strict=True):
                assert isinstance(image, Made)  # nothing is rejected without an openpose control
                generated, final = one.finished(image, recipe)
                e_plus = [models.detector.measure(*picture).e_plus for picture in (generated, final)]
                stored[key] = Measured(key, cell.name, recipe.scene.name, one.product, *e_plus)
            with path.open("a", encoding="utf-8") as file:
                file.writelines(json.dumps(asdict(stored[key])) + "\n" for key in keys)
        yield from (stored[key] for key in keys)


def _models(cell: Cell, recipe: Recipe) -> generate.GenerateModels:
    models = generate.load(recipe)
    assert isinstance(models.pipeline, InpaintingPipeline)
    part = recipe.profile.part(cell.brushnet).check()
    models.pipeline.brushnet = load_net(BrushNetModel, part, "a BrushNet").to(recipe.device)
    return models


@dataclass(frozen=True, slots=True)
class _Placed:
    """A product before it is generated: the shot, and the stage's work."""

    product: str
    shot: Shot
    cutout: Step
    work: Work

    @classmethod
    def of(cls, subject: Subject, recipe: Recipe) -> _Placed:
        photo, cutout = png_bytes(subject.photo), png_bytes(subject.cutout)
        digest = sha256_hex(photo)
        shot = Shot(Product(subject.name, 1, subject.name, "", digest), recipe.scene.name, recipe.scene.channel.name)
        made = Artifact(sha256_hex(cutout), "cutout", "image/png", len(cutout))
        cut = Step("", Job("cutout", 0, {"photo": digest}, {}), State.DONE, (made,))
        described = Step("", Job("describe", 0, {}, {}), State.DONE, facts={"subject": subject.name})
        job = generate_job(shot, {"cutout": cut, "describe": described}, recipe, 0)
        inputs = {"photo": photo, "cutout": cutout, "backdrop": supplies(shot, recipe)[0][0]}
        return cls(subject.name, shot, cut, Work(job, inputs))

    def finished(self, made: Made, recipe: Recipe) -> tuple[Matted, Matted]:
        """The generated image with the product laid back, and the final image."""
        outputs = {output.role: output.data for output in made.outputs}
        placed = _opened(outputs["placed"])
        raw = Image.alpha_composite(_opened(outputs["raw"]), placed)
        artifacts = tuple(
            Artifact(sha256_hex(one.data), one.role, one.media_type, len(one.data)) for one in made.outputs
        )
        generated = Step("", self.work.job, State.DONE, artifacts, made.facts)
        job = upscale_job(self.shot, {"cutout": self.cutout, "generate": generated}, recipe, 0)
        (whole,) = upscale.compute([Work(job, {**self.work.inputs, "light": outputs["light"]})], None, recipe)
        final = {output.role: _opened(output.data) for output in whole.outputs}
        return (
            (np.asarray(raw.convert("RGB")), np.asarray(placed.getchannel("A"))),
            (np.asarray(final["final"].convert("RGB")), np.asarray(final["final_matte"].convert("L"))),
        )


def _opened(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data)).convert("RGBA")
