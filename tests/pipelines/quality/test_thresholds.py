from __future__ import annotations

from pathlib import Path

import yaml

from pipelines.quality import overcompletion
from pipelines.scenes import Checks


def test_the_thresholds_in_use_are_the_reviewed_ones():
    reviewed = yaml.safe_load(Path(overcompletion.__file__).with_name("thresholds.yaml").read_text())
    checks = Checks()
    assert checks.overcompletion == reviewed["overcompletion"]["tau"]
    assert checks.halo == reviewed["halo"]["threshold"]
    assert checks.background == reviewed["background"]["threshold"]
    assert checks.text == reviewed["text"]["threshold"]
