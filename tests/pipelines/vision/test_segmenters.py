"""What the segmenters load: the editor's process starts with them, and a person waits for it."""

from __future__ import annotations

import subprocess
import sys

from pipelines.settings import ROOT

PROGRAM = """
import sys
from pipelines.vision.segmenters import build_sam
build_sam()
assert not {name for name in sys.modules if name.startswith(("torch._dynamo", "timm.models"))}

import timm, torch
from torchvision.ops import roi_align
boxes = torch.tensor([[0.0, 0.0, 0.0, 4.0, 4.0]])
torch.use_deterministic_algorithms(True)
assert roi_align(torch.ones(1, 1, 8, 8), boxes, 2).shape == (1, 1, 2, 2)
assert torch._dynamo.utils.is_compile_supported.__module__ == "torch._dynamo.utils", "the real one, once it is asked"
assert timm.list_models("vit_tiny*")
"""


def test_hq_sam_needs_neither_torchs_compiler_nor_timms_models_and_leaves_both_usable() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
