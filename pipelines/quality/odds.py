"""The odds that something is so, from figures about it: a line, and boosted trees small enough to be read.

The line is a logistic model: steady, and blind to how figures go together. The trees see that. A tree asks `DEPTH`
questions, the same ones whatever the answers (oblivious trees, as in Prokhorenkova et al. 2018), each whether a figure
is above a value, and has a value for every combination of answers. The sum of all trees' values is the log odds. Fitted
by Newton boosting (Chen and Guestrin 2016), some of the figures open to each tree.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import yaml

DEPTH = 4
BINS = 32
"""A figure is split at its quantiles: this many bins."""


@dataclass(frozen=True, slots=True)
class Line:
    """A logistic model: the `mean` and `scale` of each figure, its `weight` (N,) each, and a `bias`."""

    mean: np.ndarray
    scale: np.ndarray
    weight: np.ndarray
    bias: float

    def odds(self, figures: np.ndarray) -> np.ndarray:
        """Map figures (M, N) to log odds, (M,)."""
        log_odds: np.ndarray = (figures - self.mean) / self.scale @ self.weight + self.bias
        return log_odds

    @classmethod
    def fit(cls, figures: np.ndarray, true: np.ndarray, ridge: float = 3.0) -> Line:
        """Fit to figures (M, N) of which `true` (M,) bool says what they are: Newton's method, L2 penalty `ridge`."""
        mean, scale = figures.mean(axis=0), figures.std(axis=0) + 1e-6
        x = np.column_stack([(figures - mean) / scale, np.ones(len(figures))])
        penalty = np.diag([ridge] * (x.shape[1] - 1) + [1e-6])
        w = np.zeros(x.shape[1])
        for _ in range(15):
            p = likely(x @ w)
            hessian = (x * (p * (1 - p))[:, None]).T @ x + penalty
            w = w - np.linalg.solve(hessian, x.T @ (p - true) + penalty @ w)
        return cls(mean, scale, w[:-1], float(w[-1]))


@dataclass(frozen=True, slots=True)
class Trees:
    """`trees` trees: the `figure` (T, DEPTH) int each question is about, the `above` (T, DEPTH) it asks for, and the
    `value` (T, 2**DEPTH) of each combination, the first question's answer the highest bit. `prior`: log odds before."""

    figure: np.ndarray
    above: np.ndarray
    value: np.ndarray
    prior: float

    def odds(self, figures: np.ndarray) -> np.ndarray:
        """Map figures (M, N) to log odds, (M,)."""
        answers = figures[:, self.figure] > self.above
        leaf = answers @ (1 << np.arange(DEPTH)[::-1])
        log_odds: np.ndarray = self.prior + self.value[np.arange(len(self.value)), leaf].sum(axis=1)
        return log_odds

    @classmethod
    def fit(
        cls, figures: np.ndarray, true: np.ndarray, rounds: int = 200, rate: float = 0.06, ridge: float = 4.0,
        open_share: float = 0.4,
    ) -> Trees:  # fmt: skip
        """Fit to figures (M, N) of which `true` (M,) bool says what they are.

        rounds: how many trees; rate: how much of its best value each has; ridge: L2 penalty of a value; open_share: of
        the figures, those a tree may ask about. The same data give the same trees.
        """
        rng = np.random.default_rng(0)
        _, width = figures.shape
        edges = np.quantile(figures, np.arange(1, BINS) / BINS, axis=0).T
        bins = np.stack([np.searchsorted(edges[n], figures[:, n], "left") for n in range(width)]).astype(np.int32)
        target = true.astype(np.float64)
        share = float(target.mean())
        prior = float(np.log(share / (1 - share)))
        odds = np.full(len(target), prior)
        asked, above, value = [], [], []
        for _ in range(rounds):
            p = likely(odds)
            slope, bend = p - target, p * (1 - p)
            own = np.sort(rng.choice(width, max(1, round(open_share * width)), replace=False))
            leaf, questions = np.zeros(len(target), np.int32), []
            for _ in range(DEPTH):
                number, cut = _best_question(bins[own], leaf, slope, bend, ridge)
                leaf = 2 * leaf + (bins[own[number]] > cut)
                questions.append((int(own[number]), float(edges[own[number], cut])))
            slopes, bends = (np.bincount(leaf, each, 2**DEPTH) for each in (slope, bend))
            values = -rate * slopes / (bends + ridge)
            odds = odds + values[leaf]
            asked.append([number for number, _ in questions])
            above.append([cut for _, cut in questions])
            value.append(values)
        return cls(np.array(asked), np.array(above), np.array(value), prior)


@dataclass(frozen=True, slots=True)
class Odds:
    """A line and trees, which say what they do half and half."""

    line: Line
    trees: Trees

    def log(self, figures: np.ndarray) -> np.ndarray:
        """Map figures (M, N) to log odds, (M,)."""
        return (self.line.odds(figures) + self.trees.odds(figures)) / 2

    def __call__(self, figures: np.ndarray) -> np.ndarray:
        """Map figures (M, N) to how likely it is, 0..1, (M,)."""
        return likely(self.log(figures))

    @classmethod
    def fit(cls, figures: np.ndarray, true: np.ndarray) -> Odds:
        """Fit both to figures (M, N) of which `true` (M,) bool says what they are."""
        return cls(Line.fit(figures, true), Trees.fit(figures, true))

    def text(self, names: Sequence[str], key: str) -> str:
        """As YAML under `key`: a line a figure (mean, scale, weight), and a line a tree: what it asks, what it says."""
        line = zip(names, self.line.mean, self.line.scale, self.line.weight, strict=True)
        lines = [
            "figures:",
            *(f"  {name}: [{mean:.4f}, {scale:.4f}, {weight:.4f}]" for name, mean, scale, weight in line),
            f"bias: {self.line.bias:.4f}",
            f"prior: {self.trees.prior:.4f}",
            "trees:",
        ]
        for asked, above, value in zip(self.trees.figure, self.trees.above, self.trees.value, strict=True):
            questions = ", ".join(f"{number}: {cut:.6g}" for number, cut in zip(asked, above, strict=True))
            lines.append(f"- [[{questions}], [{', '.join(f'{each:.3g}' for each in value)}]]")
        return f"{key}:\n" + "".join(f"  {line}\n" for line in lines)

    @classmethod
    def read(cls, file: Path, names: Sequence[str], key: str) -> Odds:
        """Read what `text` wrote. Raises ValueError where it is of other figures than `names`."""
        document = yaml.load(file.read_text(encoding="utf-8"), yaml.CSafeLoader).get(key, {})  # quick: it is large
        if list(document.get("figures", ())) != list(names) or "trees" not in document:
            raise ValueError(f"{file}: its figures are not those of this version; fit it again")
        mean, scale, weight = np.array(list(document["figures"].values()), np.float64).T
        pairs = [[next(iter(question.items())) for question in questions] for questions, _ in document["trees"]]
        asked = np.array([[number for number, _ in tree] for tree in pairs])
        above = np.array([[float(cut) for _, cut in tree] for tree in pairs])
        value = np.array([value for _, value in document["trees"]], np.float64)
        return cls(Line(mean, scale, weight, document["bias"]), Trees(asked, above, value, document["prior"]))


def likely(odds: np.ndarray) -> np.ndarray:
    """Log odds as probabilities, 0..1."""
    probability: np.ndarray = 1 / (1 + np.exp(-np.clip(odds, -30, 30)))
    return probability


def _best_question(
    bins: np.ndarray, leaf: np.ndarray, slope: np.ndarray, bend: np.ndarray, ridge: float
) -> tuple[int, int]:
    """Which figure, and above which bin's edge, parts what is in every leaf best."""
    leaves = int(leaf.max()) + 1
    slopes, bends = (
        np.stack([np.bincount(leaf * BINS + own, each, leaves * BINS) for own in bins])
        .reshape(len(bins), leaves, BINS)
        .cumsum(axis=2)
        for each in (slope, bend)
    )
    low = slopes[..., :-1] ** 2 / (bends[..., :-1] + ridge)
    high = (slopes[..., -1:] - slopes[..., :-1]) ** 2 / (bends[..., -1:] - bends[..., :-1] + ridge)
    gain = (low + high).sum(axis=1)
    number, cut = np.unravel_index(int(gain.argmax()), gain.shape)
    return int(number), int(cut)
