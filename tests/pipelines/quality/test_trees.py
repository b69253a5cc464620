"""Trees tell what hangs on the interplay of figures, say what LightGBM says, and survive their file."""

from __future__ import annotations

import lightgbm
import numpy as np
import pytest
from safetensors import safe_open

from pipelines.errors import IntegrityError
from pipelines.quality.trees import SETTINGS, Trees

NAMES = tuple(f"figure {n}" for n in range(10))


def lesson(count: int = 3000) -> tuple[np.ndarray, np.ndarray]:
    """Which of two figures tells hangs on a third: no sum of figures tells that."""
    figures = np.random.default_rng(1).normal(size=(count, len(NAMES)))
    return figures, np.where(figures[:, 0] > 0, figures[:, 1], figures[:, 2]) > 0


def test_they_tell_what_no_sum_of_figures_does():
    figures, true = lesson()
    likely = Trees.fit(figures[:2000], true[:2000], rounds=200)(figures[2000:])
    assert ((likely > 0.5) == true[2000:]).mean() > 0.9
    assert ((likely >= 0) & (likely <= 1)).all()


def test_they_say_what_lightgbm_says():
    figures, true = lesson()
    own = Trees.fit(figures, true, rounds=60)(figures)
    assert own == pytest.approx(
        lightgbm.train(SETTINGS, lightgbm.Dataset(figures, true * 1.0), 60).predict(figures), abs=1e-5
    )


def test_where_nothing_can_be_told_they_say_how_often_it_is_so():
    figures = np.zeros((100, len(NAMES)))
    assert Trees.fit(figures, np.arange(100) < 20, rounds=3)(figures[:2]) == pytest.approx([0.2, 0.2], abs=1e-5)


def test_the_same_lessons_give_the_same_file(tmp_path):
    files = [tmp_path / f"{n}.safetensors" for n in range(4)]
    for file in files:
        Trees.fit(*lesson(), rounds=20).write(file, NAMES, "a test")
    assert len({file.read_bytes() for file in files}) == 1


def test_they_say_the_same_when_read(tmp_path):
    trees = Trees.fit(*lesson(), rounds=40)
    trees.write(tmp_path / "trees.safetensors", NAMES, "a test")
    figures, _ = lesson()
    assert (Trees.read(tmp_path / "trees.safetensors", NAMES)(figures) == trees(figures)).all()
    with safe_open(tmp_path / "trees.safetensors", framework="np") as stored:
        assert "a test" in stored.metadata()["trees"]


def test_trees_of_other_figures_are_refused(tmp_path):
    file = tmp_path / "trees.safetensors"
    Trees.fit(*lesson(), rounds=5).write(file, NAMES, "a test")
    with pytest.raises(IntegrityError, match="fit it again"):
        Trees.read(file, NAMES[::-1])
    file.write_bytes(b"no such file")
    with pytest.raises(IntegrityError, match=str(file)):
        Trees.read(file, NAMES)
