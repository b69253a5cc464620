"""Boosted trees: fitted with LightGBM (Ke et al. 2017), evaluated with NumPy, so that only calibration needs LightGBM.

They are stored as safetensors, like all weights here, with the names of their features.
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
"""LightGBM's parameters. Of four sets tried, none had a lower error on held-out calibration products."""


@dataclass(frozen=True, slots=True)
class Trees:
    """T trees of up to S splits and S + 1 leaves. The sum of all trees' leaves is the log odds.

    Attributes:
        figure: (T, S) int16, the feature of a split.
        upto: (T, S) float32, its threshold: is the feature at most this?
        yes: (T, S) int16, the next split if so. Negative: the leaf with index -1 - yes.
        no: (T, S) int16, the same if not.
        answer: (T, S + 1) float32, the leaves.
    """

    figure: np.ndarray
    upto: np.ndarray
    yes: np.ndarray
    no: np.ndarray
    answer: np.ndarray

    def __call__(self, figures: np.ndarray) -> np.ndarray:
        """Map features (M, N) to probabilities, 0..1, (M,)."""
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
        """Fit `rounds` trees to features (M, N) with labels `true` (M,) bool. The same data give the same trees. Raises
        UsageError if LightGBM is not installed."""
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
        """Return trees whose leaves are all 0."""
        shape = count, questions
        figure, upto, answer = np.zeros(shape, np.int16), np.zeros(shape, np.float32), np.zeros((count, questions + 1))
        return cls(figure, upto, np.full(shape, -1, np.int16), np.full(shape, -1, np.int16), answer.astype(np.float32))

    def _store(self, tree: int, node: dict[str, Any]) -> int:
        """Store a node of LightGBM's and its subtree; return its index in the form of `yes` and `no`."""
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
        """Write the trees, with the names of their features and a comment on their origin."""
        tensors = {name: getattr(self, name) for name in self.__slots__}
        # one entry: safetensors writes several in random order, which would change the digest
        save_file(tensors, file, {"trees": json.dumps({"figures": list(names), "comment": comment})})

    @classmethod
    def read(cls, file: Path, names: Sequence[str]) -> Trees:
        """Read what `write` wrote. Raises IntegrityError if the file is not valid, or has other features than
        `names`."""
        with reading(file, "trees about the figures of this version"), safe_open(file, framework="np") as stored:
            about = json.loads((stored.metadata() or {}).get("trees", "{}"))
            if about.get("figures") != list(names):
                raise ValueError("its figures are others; fit it again")
            return cls(*(stored.get_tensor(name) for name in cls.__slots__))
