"""Boosted trees: fitted by LightGBM (Ke et al. 2017), which calibration needs and a shop does not; asked with NumPy.

Kept as safetensors, like all weights here, with the names of the figures that the trees ask about.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file

from pipelines.errors import UsageError
from pipelines.models.weights import reading

ROUNDS = 500
SETTINGS = {
    "objective": "binary",
    "learning_rate": 0.04,
    "num_leaves": 31,
    "min_data_in_leaf": 20,
    "lambda_l2": 4.0,
    "feature_fraction": 0.3,
    "bagging_fraction": 0.7,
    "bagging_freq": 1,
    "seed": 0,
    "deterministic": True,
    "num_threads": 1,
    "verbosity": -1,
}
"""LightGBM's; of four sets tried, none was less wrong on calibration products that it was not fitted to."""


@dataclass(frozen=True, slots=True)
class Trees:
    """T trees of up to S questions and S + 1 answers; the sum of all trees' answers is the log odds.

    Attributes:
        figure: (T, S) int16, which figure a question is about.
        upto: (T, S) float32: is it at most this much?
        yes: (T, S) int16, the question that comes next if so; where negative, the answer of number -1 - yes.
        no: (T, S) int16, the same if not.
        answer: (T, S + 1) float32.
    """

    figure: np.ndarray
    upto: np.ndarray
    yes: np.ndarray
    no: np.ndarray
    answer: np.ndarray

    def __call__(self, figures: np.ndarray) -> np.ndarray:
        """Map figures (M, N) to how likely it is, 0..1, (M,)."""
        tree, row = np.arange(len(self.answer)), np.arange(len(figures))[:, None]
        at = np.zeros((len(figures), len(tree)), np.int16)
        while (asking := at >= 0).any():
            question = np.maximum(at, 0)
            below = figures[row, self.figure[tree, question]] <= self.upto[tree, question]
            following = np.where(below, self.yes[tree, question], self.no[tree, question])
            at = np.where(asking, following, at)
        log_odds = self.answer[tree, -1 - at].sum(axis=1, dtype=np.float64)
        likely: np.ndarray = 1 / (1 + np.exp(-np.clip(log_odds, -30, 30)))
        return likely

    @classmethod
    def fit(cls, figures: np.ndarray, true: np.ndarray, rounds: int = ROUNDS) -> Trees:
        """Fit `rounds` trees to figures (M, N) of which `true` (M,) bool says what they are. The same data give the
        same trees. Raises UsageError where LightGBM is not installed."""
        try:
            import lightgbm
        except ImportError as error:
            raise UsageError("LightGBM is not installed, which fits the detector: pip install -e '.[dev]'") from error

        lessons = lightgbm.Dataset(figures, true.astype(np.float64))
        dumped = lightgbm.train(SETTINGS, lessons, rounds).dump_model()["tree_info"]
        trees = cls._empty(len(dumped), max(max(tree["num_leaves"] - 1 for tree in dumped), 1))
        for number, tree in enumerate(dumped):
            trees._store(number, tree["tree_structure"])
        return trees

    @classmethod
    def _empty(cls, count: int, questions: int) -> Trees:
        """Trees that answer 0 whatever they are asked."""
        shape = count, questions
        figure, upto, answer = np.zeros(shape, np.int16), np.zeros(shape, np.float32), np.zeros((count, questions + 1))
        return cls(figure, upto, np.full(shape, -1, np.int16), np.full(shape, -1, np.int16), answer.astype(np.float32))

    def _store(self, tree: int, node: dict[str, Any]) -> int:
        """Store a node of LightGBM's and what hangs on it; returns where, as `yes` and `no` have it."""
        if "leaf_value" in node:
            leaf = int(node.get("leaf_index", 0))
            self.answer[tree, leaf] = node["leaf_value"]
            return -1 - leaf
        own = int(node["split_index"])
        self.figure[tree, own], self.upto[tree, own] = node["split_feature"], node["threshold"]
        self.yes[tree, own] = self._store(tree, node["left_child"])
        self.no[tree, own] = self._store(tree, node["right_child"])
        return own

    def write(self, file: Path, names: Sequence[str], comment: str) -> None:
        """Write them, with the names of the figures and where they come from."""
        tensors = {name: getattr(self, name) for name in self.__slots__}
        # one entry: of several, safetensors writes now this first and now that, and the digest would change
        save_file(tensors, file, {"trees": json.dumps({"figures": list(names), "comment": comment})})

    @classmethod
    def read(cls, file: Path, names: Sequence[str]) -> Trees:
        """Read what `write` wrote. Raises IntegrityError where it is no such file, or of other figures than `names`."""
        with reading(file, "trees about the figures of this version"), safe_open(file, framework="np") as stored:
            about = json.loads((stored.metadata() or {}).get("trees", "{}"))
            if about.get("figures") != list(names):
                raise ValueError("its figures are others; fit it again")
            return cls(*(stored.get_tensor(name) for name in cls.__slots__))
