"""Kinds of ControlNets: those that the sampler draws control images for, and those that do not suit mask guidance."""

from __future__ import annotations

from typing import Literal

Kind = Literal["canny", "lineart", "openpose"]
"""Controls whose black means "no control". They have no effect outside the product, as the method requires."""

REFUSED_KINDS = {
    "tile": "a tile control paints what it shows, so black means 'paint black here' and not 'no control': "
    "there is no region it leaves free, and mask guidance would turn the scene dark",
    "depth": "in a depth map black means 'far away' and not 'no control': cutting it off at the product's edge "
    "would put the product in front of nothing",
}
"""Controls whose black has another meaning, and why that rules out mask guidance."""
