"""What each branch of the bundled models does to a picture, and where: prompt, LoRA, ControlNet, BrushNet.

One sample product in the oak scene, the same seeds throughout, one thing changed at a time.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage

from pipelines.diffusion.control import canny_edges
from pipelines.diffusion.inpainting import InpaintingPipeline
from pipelines.models.profile import load_profile
from pipelines.scenes import load_scene
from pipelines.vision.placement import lay_product, place

pytestmark = pytest.mark.slow

SAMPLE = Path(__file__).resolve().parents[1] / "pipelines" / "sample"
SIDE, PICTURES = 256, 4
OAK = "a photo of a {} on an oak wood floor against a {} wall, soft light from the left, window light on the wall"


@dataclass(frozen=True)
class Placed:
    """The product on the model's canvas: colour, matte (1, 1, H, W) 0..1, and masks (H, W) of it and of the scene."""

    colour: Image.Image
    mask: torch.Tensor
    inside: np.ndarray
    scene: np.ndarray


@pytest.fixture(scope="module")
def placed() -> Placed:
    photo = Image.open(SAMPLE / "images" / "smp-001-brass-mushroom-table-lamp.jpg").convert("RGB")
    alpha = Image.open(SAMPLE / "masks" / "smp-001.png").convert("L").resize(photo.size)
    cutout = photo.copy()
    cutout.putalpha(alpha)
    where = place(np.asarray(alpha), (1024, 1024), 0.6, "ground", 0.87)
    colour, matte = lay_product(photo, cutout, where).reduced(SIDE, SIDE)
    mask = np.asarray(matte, np.float32) / 255
    inside = ndimage.binary_erosion(mask > 0.9, iterations=2)
    scene = ~ndimage.binary_dilation(mask > 0.02, iterations=12)
    return Placed(colour, torch.from_numpy(mask)[None, None], inside, scene)


def paint(
    placed: Placed, *, wall="white", method="brushnet", brushnet=1.0, lora=True, control=1.0, guided=True
) -> np.ndarray:
    """Four pictures, (4, H, W, 3) float 0..255, before any paste."""
    pipeline = InpaintingPipeline.from_profile("mini", method=method, controls=("canny",))
    if lora:
        pipeline.load_lora(load_profile("mini").part("lora_oak_window").path, load_scene("oak-window").lora.scale)
    made = pipeline(
        image=placed.colour,
        product_mask=placed.mask,
        prompt=OAK.format("lamp", wall),
        num_images=PICTURES,
        num_inference_steps=12,
        guidance_scale=2.5,
        brushnet_scale=brushnet,
        control_images=[canny_edges(placed.colour, placed.mask, 100, 200)],
        control_scales=[control],
        mask_guidance=guided,
        generator=torch.Generator("cpu").manual_seed(3),
        height=SIDE,
        width=SIDE,
    ).images
    return np.stack([np.asarray(image, np.float32) for image in made])


@pytest.fixture(scope="module")
def whole(placed) -> np.ndarray:
    return paint(placed)


def moved(one: np.ndarray, other: np.ndarray, where: np.ndarray) -> float:
    """Mean absolute difference of two paintings over a region, 0..255."""
    return float(np.abs(one - other)[:, where].mean())


def test_another_prompt_paints_the_wall_that_it_names(placed, whole):
    navy = paint(placed, wall="navy blue")
    upper = placed.scene.copy()
    upper[SIDE // 2 :] = False
    brightness = whole[:, upper].mean(), navy[:, upper].mean()
    assert brightness[0] > brightness[1] + 40
    blueness = [float((p[..., 2] - p[..., 0])[:, upper].mean()) for p in (whole, navy)]
    assert blueness[1] > blueness[0] + 15


def test_the_lora_warms_the_scene(placed, whole):
    plain = paint(placed, lora=False)
    warmth = [float((p[..., 0] - p[..., 2])[:, placed.scene].mean()) for p in (whole, plain)]
    assert warmth[0] > warmth[1] + 3


def test_the_control_draws_the_product_and_leaves_the_scene(placed):
    """BrushNet would hold the product in its place: without it, the control alone moves it."""
    with_control, without = (paint(placed, brushnet=0, lora=False, control=scale) for scale in (1.0, 0.0))
    inside, outside = (moved(with_control, without, where) for where in (placed.inside, placed.scene))
    assert inside > 2
    assert inside > 2 * outside


def test_mask_guidance_keeps_the_control_off_the_scene(placed, whole):
    without = paint(placed, control=0)
    everywhere = paint(placed, guided=False)
    assert moved(whole, without, placed.scene) < moved(everywhere, without, placed.scene) / 3


def test_brushnet_knows_the_product(placed, whole):
    known = np.asarray(placed.colour, np.float32)[None]
    blind = paint(placed, method="blended")  # keeps the product by blending: the reference for 'known'
    unguided = moved(np.roll(whole, 64, axis=2), known, placed.inside)
    assert moved(whole, known, placed.inside) < 0.6 * unguided
    assert moved(whole, blind, placed.scene) > 2
