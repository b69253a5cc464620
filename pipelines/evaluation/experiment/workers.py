"""Paint and score in several processes of one thread each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import cv2
import torch

from pipelines.evaluation.experiment.cells import Cell
from pipelines.evaluation.experiment.making import results_of
from pipelines.evaluation.experiment.painting import Painter
from pipelines.evaluation.experiment.pairs import Pair
from pipelines.evaluation.experiment.scoring import SceneClassifier, Scorer
from pipelines.evaluation.processes import end_with_parent
from pipelines.processors import keep_pages

_tools: tuple[Painter, Scorer] | None = None
"""The models of this worker process."""


def make_in_processes(
    batches: Sequence[tuple[Cell, Sequence[Pair]]], painter: Painter, scorer: Scorer, out: Path, jobs: int
) -> Iterator[tuple[Cell, int]]:
    """Paint and score batches of pairs in `jobs` processes of one thread each; results are stored in `out`.

    Yields:
        The cell and the number of pairs of each finished batch, in order.

    Raises:
        The error of a worker; batches that have not started are cancelled. BrokenProcessPool if a worker could not
        start, or was killed.
    """
    with ProcessPoolExecutor(jobs, get_context("spawn"), _equip, (painter, scorer.tau, scorer.classifier)) as pool:
        made = [(cell, pool.submit(_make, cell, pairs, out)) for cell, pairs in batches]
        try:
            for cell, future in made:
                yield cell, future.result()
        finally:
            pool.shutdown(cancel_futures=True)


def _equip(painter: Painter, tau: float, classifier: SceneClassifier | None) -> None:
    global _tools
    end_with_parent()
    keep_pages()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    _tools = painter, Scorer(painter.profile, tau, classifier, painter.device)


def _make(cell: Cell, pairs: Sequence[Pair], out: Path) -> int:
    assert _tools is not None, "workers are equipped when they start"
    painter, scorer = _tools
    return sum(1 for _ in results_of(cell, pairs, painter, scorer, out))
