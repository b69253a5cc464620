"""Is one model better than another? E+ of both on the same pictures, and how sure that is.

    compare(Evaluation(tau, scores of the model in use), Evaluation(tau, scores of the candidate)).better

Both paint the same products from the same noise, so they are compared picture by picture. Pictures of one product hang
together, so what is resampled for an interval is products, never pictures (cluster bootstrap, Field and Welsh 2007).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from pipelines.quality.intervals import interval

MIN_PRODUCTS = 8
"""Below so many products a bootstrap says nothing: its interval is far too narrow."""


@dataclass(frozen=True, slots=True)
class Score:
    """E+ of one picture: which product, painted from which seed."""

    product: str
    seed: int
    e_plus: float


@dataclass(frozen=True, slots=True)
class Evaluation:
    """E+ of a model on a frozen set of pictures. A picture above `tau` is overcompleted."""

    tau: float
    scores: tuple[Score, ...]

    @property
    def n(self) -> int:
        """Pictures."""
        return len(self.scores)

    @property
    def products(self) -> int:
        """Different products on them."""
        return len({score.product for score in self.scores})

    @property
    def mean(self) -> float:
        """Mean E+."""
        return float(np.mean([score.e_plus for score in self.scores]))

    @property
    def rate(self) -> float:
        """Share of the pictures above tau, 0..1."""
        return float(np.mean([score.e_plus > self.tau for score in self.scores]))

    def figures(self) -> dict[str, Any]:
        """What a person reads, as JSON: means with their 95 % intervals over products, and of how many pictures."""
        values = [score.e_plus for score in self.scores]
        above = [float(value > self.tau) for value in values]
        names = [score.product for score in self.scores]
        return {
            "mean_e_plus": self.mean,
            "mean_interval": list(interval(names, values)),
            "rate": self.rate,
            "rate_interval": list(interval(names, above)),
            "tau": self.tau,
            "n": self.n,
            "products": self.products,
        }

    def to_json(self) -> dict[str, Any]:
        """Everything, for the ledger; `from_json` reads it."""
        return {"tau": self.tau, "scores": [asdict(score) for score in self.scores]}

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Evaluation:
        """The inverse of `to_json`."""
        return cls(document["tau"], tuple(Score(**score) for score in document["scores"]))


@dataclass(frozen=True, slots=True)
class Comparison:
    """How much lower the candidate's mean E+ is, with its 95 % interval over products; `rate_gain` is the rate's."""

    gain: float
    interval: tuple[float, float]
    rate_gain: float
    products: int
    n: int

    @property
    def better(self) -> bool:
        """Lower beyond the interval, on enough products to tell, and the rate is not higher."""
        return self.products >= MIN_PRODUCTS and self.interval[0] > 0 and self.rate_gain >= 0

    def __str__(self) -> str:
        low, high = self.interval
        told = f"mean E+ lower by {self.gain:.4f} (95 % interval {low:.4f} to {high:.4f}), rate lower by "
        return f"{told}{self.rate_gain:.1%}, {self.n} pictures of {self.products} products"


def compare(current: Evaluation, candidate: Evaluation) -> Comparison:
    """Compare picture by picture. Raises ValueError where the two are not of the same pictures and tau."""
    before = {(score.product, score.seed): score.e_plus for score in current.scores}
    after = {(score.product, score.seed): score.e_plus for score in candidate.scores}
    if before.keys() != after.keys() or current.tau != candidate.tau:
        raise ValueError("the two evaluations are not of the same pictures and threshold")
    names = [product for product, _ in before]
    gains = [before[key] - after[key] for key in before]
    return Comparison(
        gain=float(np.mean(gains)),
        interval=interval(names, gains),
        rate_gain=current.rate - candidate.rate,
        products=candidate.products,
        n=candidate.n,
    )
