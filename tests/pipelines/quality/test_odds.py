"""Trees tell what hangs on the interplay of figures, a line what does not, and both survive their file."""

from __future__ import annotations

import numpy as np
import pytest

from pipelines.quality.odds import DEPTH, Line, Odds, Trees

NAMES = ("thick", "unlike M", "lighter", "M's saliency")


def lesson(count: int = 600) -> tuple[np.ndarray, np.ndarray]:
    """True where exactly one of two figures is high: no sum of figures tells that."""
    figures = np.random.default_rng(1).normal(size=(count, len(NAMES)))
    return figures, (figures[:, 0] > 0) != (figures[:, 1] > 0)


def test_trees_tell_what_no_sum_of_figures_does():
    figures, true = lesson()
    trees = Trees.fit(figures[:400], true[:400], rounds=40, rate=0.3)
    assert ((trees.odds(figures[400:]) > 0) == true[400:]).mean() > 0.9
    line = Line.fit(figures[:400], true[:400])
    assert ((line.odds(figures[400:]) > 0) == true[400:]).mean() < 0.7


def test_a_line_tells_a_sum():
    figures, _ = lesson()
    true = figures[:, 0] > figures[:, 3]
    line = Line.fit(figures[:400], true[:400])
    assert ((line.odds(figures[400:]) > 0) == true[400:]).mean() > 0.95


def test_the_same_lessons_give_the_same_text():
    first, second = (Odds.fit(*lesson()).text(NAMES, "judge") for _ in range(2))
    assert first == second


def test_a_tree_is_a_line_of_text_and_says_the_same_when_read(tmp_path):
    figures, true = lesson()
    odds = Odds.fit(figures, true)
    file = tmp_path / "odds.yaml"
    file.write_text(odds.text(NAMES, "judge"))
    assert file.read_text().count("\n  - ") == len(odds.trees.value)
    read = Odds.read(file, NAMES, "judge")
    assert read.trees.value.shape == (len(odds.trees.value), 2**DEPTH)
    assert read(figures) == pytest.approx(odds(figures), abs=0.01)
    assert ((read(figures) >= 0) & (read(figures) <= 1)).all()


def test_odds_of_other_figures_are_refused(tmp_path):
    file = tmp_path / "odds.yaml"
    file.write_text(Odds.fit(*lesson()).text(NAMES, "judge"))
    with pytest.raises(ValueError, match="fit it again"):
        Odds.read(file, NAMES[::-1], "judge")
