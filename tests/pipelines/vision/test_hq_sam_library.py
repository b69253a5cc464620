"""HQ-SAM's library works without timm and torchvision, and leaves both to be imported as usual."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from pipelines.settings import ROOT

IMPORT_BOTH = """
import json, sys
import numpy as np
from pipelines.vision.segmenters import _segment_anything

library = _segment_anything()
stand_ins = [name for name in sys.modules if name.partition(".")[0] in ("timm", "torchvision")]
from segment_anything_hq.utils.transforms import ResizeLongestSide

import timm.layers, torchvision.ops
from torchvision.transforms.functional import resize, to_pil_image

equal = []
for height, width in ((700, 1024), (1024, 333), (90, 61), (2048, 2047)):
    picture = np.random.default_rng(height).integers(0, 256, (height, width, 3), np.uint8)
    size = ResizeLongestSide.get_preprocess_shape(height, width, 1024)
    theirs = np.array(resize(to_pil_image(picture), size))
    equal.append(bool((ResizeLongestSide(1024).apply_image(picture) == theirs).all()))
print(json.dumps({"stand_ins": stand_ins, "equal": equal, "timm": hasattr(timm.layers, "DropPath")}))
"""


@pytest.mark.medium
def test_stand_ins_resize_as_torchvision_does_and_are_gone_after_the_import() -> None:
    done = subprocess.run([sys.executable, "-c", IMPORT_BOTH], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == {"stand_ins": [], "equal": [True] * 4, "timm": True}
