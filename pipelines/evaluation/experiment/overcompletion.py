"""Run the experiment: paint and score every cell's pairs, and compute the table. Results are stored: see `making`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from pipelines.errors import UsageError
from pipelines.evaluation import statistics
from pipelines.evaluation.experiment.cells import BY_PARITY, CELLS, COMPARED, PAIRS, Cell
from pipelines.evaluation.experiment.labels import Agreement, agreement, read_labels
from pipelines.evaluation.experiment.making import Result, is_made, results_of
from pipelines.evaluation.experiment.painting import BATCH, Painter
from pipelines.evaluation.experiment.pairs import Pair, catalogue_subjects, load_pairs, load_subjects
from pipelines.evaluation.experiment.scoring import AlexNetFeatures, PromptAgreement, SceneClassifier, Scorer
from pipelines.evaluation.experiment.workers import make_in_processes
from pipelines.evaluation.products import photographed_scenes
from pipelines.evaluation.statistics import Figure
from pipelines.models.profile import Profile
from pipelines.sample import CATALOGUE
from pipelines.scenes import Checks

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class Row:
    """One cell of the table: `n` pictures of `products` products.

    Attributes:
        overcompleted: How many pictures have E+ above tau; `rate` is their share, `plated_rate` that on clean plates.
        kid: None if there are no reference pictures.
        clip: Agreement of pictures with their prompts.
        clip_margin: How much higher it is than the agreement with the other pairs' prompts.
        labelled: How many pictures a person labelled, `grown_by_eye` of them as grown.
    """

    cell: str
    group: str
    n: int
    products: int
    overcompleted: int
    rate: Figure
    plated_rate: Figure
    e_plus: Figure
    d_plus: Figure
    kid: Figure | None
    sharpness: Figure
    clip: Figure
    clip_margin: Figure
    scene: Figure
    product_error: Figure
    uncertainty: Figure
    labelled: int
    grown_by_eye: int
    seconds: float


@dataclass(frozen=True, slots=True)
class CellComparison:
    """Two cells, pair by pair. Ratios are baseline / treated; differences are treated - baseline per picture.

    `unfamiliar` counts the pairs of products that the detector was not fitted to; ratios of none are None.
    """

    baseline: str
    treated: str
    n: int
    rate_ratio: Figure
    mean_ratio: Figure
    apart: bool
    unfamiliar: int
    unfamiliar_rate_ratio: Figure | None
    unfamiliar_mean_ratio: Figure | None
    kid_difference: Figure | None
    clip_difference: Figure
    clip_margin_difference: Figure
    scene_difference: Figure


@dataclass(frozen=True, slots=True)
class Reference:
    """Figures of unpainted pictures of the same pairs, as a scale for those of the cells."""

    kid: Figure | None
    clip: Figure
    clip_margin: Figure


@dataclass(frozen=True, slots=True)
class Table:
    """The experiment's result.

    Attributes:
        clip: Digest of the CLIP that measures agreement with prompts.
        references: Figures of pictures that are drawn as the prompt says, and of two kinds that are not scenes.
        labelled: Agreement of E+ with human labels; None if no picture has a label.
    """

    smoke_test: bool
    tau: float
    clip: str
    pairs: int
    subjects: int
    rows: tuple[Row, ...]
    comparisons: tuple[CellComparison, ...]
    references: dict[str, Reference]
    classifier_accuracy: dict[str, float]
    labelled: Agreement | None
    missing: dict[str, str]


def run(
    profile: Profile,
    shared: Path,
    out: Path,
    pairs: int | None = None,
    groups: Sequence[str] = ("claim", "methods", "ablations"),
    device: str = "cpu",
    progress: Progress | None = None,
    jobs: int = 1,
) -> tuple[Table, dict[str, list[Result]]]:
    """Paint and score what is not stored yet, then compute the table.

    Args:
        profile: Whose models paint.
        shared: The folder with `catalog`, `training` and `models`; if it is missing, the sample catalogue is used.
        out: Folder for pictures and scores.
        pairs: Number in every cell of the largest part, fewer in the others as in a full run; by default all.
        groups: Parts of the table.
        device: Torch device of the models.
        progress: Called with (cell, pictures done, pictures in all).
        jobs: Processes that paint and score, each with its own models; with more than one, one thread each.

    Returns:
        The table, and the results of each cell.

    Raises:
        UsageError: there is no product to paint, or no such group.
    """
    unknown = set(groups) - set(PAIRS)
    if unknown:
        raise UsageError(f"no such part of the experiment: {', '.join(sorted(unknown))}; there are {', '.join(PAIRS)}")
    smoke_test = not (shared / "training" / "index.csv").exists()
    subjects = catalogue_subjects(CATALOGUE) if smoke_test else load_subjects(shared)
    counts = pair_counts(pairs, groups)
    listed = load_pairs(subjects, max(counts.values()), profile.native_size)
    cells = [cell for cell in CELLS if cell.group in groups]
    missing = {cell.name: absent for cell in cells if (absent := _missing(cell, profile))}
    cells = [cell for cell in cells if cell.name not in missing]
    missing |= BY_PARITY if "methods" in groups else {}

    classifier = None if smoke_test else SceneClassifier(shared / "training")
    scorer = Scorer(profile, Checks().overcompletion, classifier, device)
    painter, report = Painter(profile, device), progress or (lambda cell, done, total: None)
    paired = [(cell, listed[: counts[cell.group]]) for cell in cells]
    total, done = sum(len(of_cell) for _, of_cell in paired), 0
    if jobs > 1:
        batches = [(cell, pairs[n : n + BATCH]) for cell, pairs in paired for n in range(0, len(pairs), BATCH)]
        batches = [batch for batch in batches if not is_made(*batch, profile, scorer, out)]
        done = total - sum(len(pairs) for _, pairs in batches)
        if done:
            report(cells[0].name, done, total)
        for cell, made in make_in_processes(batches, painter, scorer, out, jobs):
            done += made
            report(cell.name, done, total)
    results: dict[str, list[Result]] = {}
    for cell, of_cell in paired:
        results[cell.name] = []
        for result in results_of(cell, of_cell, painter, scorer, out):
            results[cell.name].append(result)
            if jobs == 1:
                done += 1
                report(cell.name, done, total)
    table = _table(cells, results, shared, profile, scorer, smoke_test, len(subjects))
    return replace(table, missing=missing), results


def pair_counts(pairs: int | None, groups: Sequence[str]) -> dict[str, int]:
    """Pairs in each cell of some groups: PAIRS, or scaled so that the largest group has `pairs`."""
    share = 1.0 if pairs is None else min(1.0, pairs / max(PAIRS[group] for group in groups))
    return {group: max(1, round(share * PAIRS[group])) for group in groups}


def _missing(cell: Cell, profile: Profile) -> str:
    """Why a profile cannot paint a cell: the parts that it lacks; "" if it can."""
    there = {part.name for part in profile.parts}
    absent = [part for part in cell.parts if part not in there]
    return f"the profile {profile.name} has no {', '.join(absent)}" if absent else ""


@dataclass(frozen=True, slots=True)
class _Embedded:
    """Embeddings of a cell's pictures: AlexNet features (n, 256) or None, agreement with the own prompt, (n,), and how
    much higher it is than the agreement with the other prompts, (n,)."""

    products: list[str]
    features: NDArray[np.float64] | None
    clip: list[float]
    margins: list[float]

    @classmethod
    def of(
        cls,
        results: Sequence[Result],
        images: Sequence[NDArray[np.uint8]],
        agree: PromptAgreement,
        alexnet: AlexNetFeatures | None,
    ) -> _Embedded:
        agreements = agree(images, [result.pair.prompt for result in results])
        return cls(
            [result.pair.subject.name for result in results],
            alexnet(images) if alexnet is not None else None,
            np.diag(agreements).tolist(),
            statistics.margins(agreements).tolist(),
        )

    def kid(self, real: NDArray[np.float64] | None) -> Figure | None:
        """KID to the features of real pictures; None if there are none."""
        return None if self.features is None or real is None else statistics.kid(self.products, self.features, real)

    def mean(self, values: Sequence[float]) -> Figure:
        return statistics.mean(self.products, values)


def _table(
    cells: Sequence[Cell],
    results: dict[str, list[Result]],
    shared: Path,
    profile: Profile,
    scorer: Scorer,
    smoke_test: bool,
    subjects: int,
) -> Table:
    alexnet, real, longest = None, None, max(results.values(), key=len, default=[])
    agree = PromptAgreement(profile)
    scenes = [] if smoke_test else sorted(photographed_scenes(shared))
    if not smoke_test and scenes and (checkpoint := shared / "models" / "alexnet.ckpt").exists() and longest:
        alexnet = AlexNetFeatures(checkpoint)
        real = alexnet([_over_scene(result.pair, scenes, 0) for result in longest])
    embedded = {
        name: _Embedded.of(made, [one.composite() for one in made], agree, alexnet) for name, made in results.items()
    }
    kinds: dict[str, Callable[[Pair], NDArray[np.uint8]]] = {"drawn as the prompt says": Pair.drawn}
    if scenes:
        kinds["a real scene, blurred"] = lambda pair: _over_scene(pair, scenes, 1)
        kinds["a flat colour"] = lambda pair: _over_scene(pair, scenes, 2)
    references = {}
    for kind, draw in kinds.items() if longest else ():
        seen = _Embedded.of(longest, [draw(result.pair) for result in longest], agree, alexnet)
        references[kind] = Reference(seen.kid(real), seen.mean(seen.clip), seen.mean(seen.margins))
    labels = read_labels()
    said = {label.picture: label.grown for label in labels}
    rows = tuple(_row(cell, results[cell.name], scorer.tau, embedded[cell.name], real, said) for cell in cells)
    by_cell = {row.cell: row for row in rows}
    comparisons = [
        _compare(baseline, treated, results, scorer.tau, by_cell, embedded, real)
        for baseline, treated in COMPARED
        if baseline in results and treated in results
    ]
    return Table(
        smoke_test=smoke_test,
        tau=scorer.tau,
        clip=profile.ref("clip").sha256[:12],
        pairs=max((len(made) for made in results.values()), default=0),
        subjects=subjects,
        rows=rows,
        comparisons=tuple(comparisons),
        references=references,
        classifier_accuracy=scorer.classifier.accuracy if scorer.classifier else {},
        labelled=agreement(labels, results, scorer.tau),
        missing={},
    )


def _row(
    cell: Cell,
    results: Sequence[Result],
    tau: float,
    embedded: _Embedded,
    real: NDArray[np.float64] | None,
    said: Mapping[str, bool],
) -> Row:
    products = [result.pair.subject.name for result in results]

    def figure(name: str) -> Figure:
        return statistics.mean(products, [getattr(result.scores, name) for result in results])

    above = [result.scores.e_plus > tau for result in results]
    seen = [said[result.picture.stem] for result in results if result.picture.stem in said]
    return Row(
        cell=cell.name,
        group=cell.group,
        n=len(results),
        products=len(set(products)),
        overcompleted=sum(above),
        rate=statistics.mean(products, above),
        plated_rate=statistics.mean(products, [result.scores.plated > tau for result in results]),
        e_plus=figure("e_plus"),
        d_plus=figure("d_plus"),
        kid=embedded.kid(real),
        sharpness=figure("sharpness"),
        clip=embedded.mean(embedded.clip),
        clip_margin=embedded.mean(embedded.margins),
        scene=figure("scene"),
        product_error=figure("product_error"),
        uncertainty=figure("uncertainty"),
        labelled=len(seen),
        grown_by_eye=sum(seen),
        seconds=float(np.mean([result.scores.seconds for result in results])),
    )


def _compare(
    baseline: str,
    treated: str,
    results: dict[str, list[Result]],
    tau: float,
    rows: dict[str, Row],
    embedded: Mapping[str, _Embedded],
    real: NDArray[np.float64] | None,
) -> CellComparison:
    before, after = results[baseline], results[treated]
    products = [result.pair.subject.name for result in before]

    def both(name: str) -> tuple[list[float], list[float]]:
        return [getattr(r.scores, name) for r in before], [getattr(r.scores, name) for r in after]

    e_before, e_after = both("e_plus")
    new = [n for n, one in enumerate(before) if not one.pair.subject.familiar]
    of_new = [products[n] for n in new], [e_before[n] for n in new], [e_after[n] for n in new]
    features = embedded[baseline].features, embedded[treated].features
    kid = None
    if features[0] is not None and features[1] is not None and real is not None:
        kid = statistics.kid_difference(products, features[0], features[1], real)
    return CellComparison(
        baseline=baseline,
        treated=treated,
        n=len(before),
        rate_ratio=statistics.rate_ratio(products, e_before, e_after, tau),
        mean_ratio=statistics.mean_ratio(products, e_before, e_after),
        apart=rows[baseline].rate.apart(rows[treated].rate) and rows[baseline].e_plus.apart(rows[treated].e_plus),
        unfamiliar=len(new),
        unfamiliar_rate_ratio=statistics.rate_ratio(*of_new, tau) if new else None,
        unfamiliar_mean_ratio=statistics.mean_ratio(*of_new) if new else None,
        kid_difference=kid,
        clip_difference=statistics.difference(products, embedded[baseline].clip, embedded[treated].clip),
        clip_margin_difference=statistics.difference(products, embedded[baseline].margins, embedded[treated].margins),
        scene_difference=statistics.difference(products, *both("scene")),
    )


def _over_scene(pair: Pair, scenes: Sequence[Path], kind: int) -> NDArray[np.uint8]:
    """A pair's product over a real photograph (0), the same blurred (1), or its mean colour (2)."""
    with Image.open(scenes[pair.number % len(scenes)]) as file:
        picture = file.convert("RGB")
    edge = min(picture.size)
    rng = np.random.default_rng([1791, pair.number])
    left, top = (int(rng.integers(0, extent - edge + 1)) for extent in picture.size)
    scene = picture.crop((left, top, left + edge, top + edge)).resize((pair.side, pair.side), Image.Resampling.LANCZOS)
    if kind == 1:
        scene = scene.filter(ImageFilter.GaussianBlur(pair.side / 24))
    pixels = np.asarray(scene)
    if kind == 2:
        pixels = np.broadcast_to(np.round(pixels.mean((0, 1))).astype(np.uint8), pixels.shape)
    return pair.product.over(pixels)
