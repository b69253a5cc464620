"""The clean plate: what an autoencoder smears over a product's outline is filled from the scene beyond it."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.models.profile import load_profile
from pipelines.quality.fidelity import halo
from pipelines.scenes import Scene
from pipelines.training.autoencoder import tensor_bytes, to_tensor
from pipelines.vision.placement import LaidProduct
from pipelines.vision.plate import RIM, clean_plate

SIDE = 256


def disc(radius: int = 60) -> np.ndarray:
    matte = np.zeros((SIDE, SIDE), np.uint8)
    return cv2.circle(matte, (128, 140), radius, 255, -1, cv2.LINE_AA)


def wall() -> np.ndarray:
    """A wall that is lighter to the right, and warm."""
    across = np.linspace(110, 190, SIDE)[None, :, None] * np.array([1.0, 0.9, 0.8])
    return np.rint(np.broadcast_to(across, (SIDE, SIDE, 3))).astype(np.uint8)


def test_a_smear_around_the_product_is_gone_and_the_scene_beyond_is_not_touched() -> None:
    scene, matte = wall(), disc()
    away = cv2.distanceTransform((matte < 128).astype(np.uint8), cv2.DIST_L2, 5)
    smeared = scene.copy()
    smeared[away < 6] = (20, 30, 60)

    plate = clean_plate(smeared, matte, RIM)

    rim = (away > 0) & (away < 6)
    assert np.abs(plate[rim].astype(int) - scene[rim]).mean() < 3
    assert np.abs(smeared[rim].astype(int) - scene[rim]).mean() > 60
    assert (plate[away >= RIM] == smeared[away >= RIM]).all()


def test_a_contact_shadow_that_reaches_further_goes_on_under_the_product() -> None:
    scene, matte = wall(), disc()
    shadow = cv2.GaussianBlur(np.roll(matte, 40, axis=0).astype(np.float32) / 255, (0, 0), 12)[..., None]
    shaded = np.rint(scene * (1 - 0.5 * shadow)).astype(np.uint8)

    plate = clean_plate(shaded, matte, RIM)

    foot = np.s_[203:207, 118:138]
    assert plate[foot].mean() < scene[foot].mean() - 20


@pytest.mark.parametrize("matte", [np.full((SIDE, SIDE), 255, np.uint8), np.zeros((SIDE, SIDE), np.uint8)])
def test_without_a_scene_or_without_a_product_there_is_nothing_to_fill(matte: np.ndarray) -> None:
    assert (clean_plate(wall(), matte, RIM) == wall()).all()


@pytest.mark.parametrize("rim", [1, 2, 3])
def test_the_products_place_is_filled_however_narrow_the_rim(rim: int) -> None:
    painted = wall()
    painted[disc(57) >= 128] = (250, 0, 250)  # well inside the matte, and of a colour that the wall has not
    middle = np.s_[140, 128]
    assert np.abs(clean_plate(painted, disc(), rim)[middle].astype(int) - wall()[middle]).max() < 30


def test_scenes_leave_out_as_much_as_the_decoder_smears() -> None:
    assert Scene(name="mine", title="Mine", prompt="a photo").outline_margin == RIM


def test_a_rim_of_nought_leaves_the_picture_as_painted() -> None:
    noisy = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), np.uint8)
    assert (clean_plate(noisy, disc(), 0) == noisy).all()


@settings(deadline=None, max_examples=30)
@given(
    st.tuples(st.integers(1, 90), st.integers(1, 90)),
    st.integers(0, 40),
    st.tuples(*[st.integers(0, 255)] * 3),
    st.randoms(use_true_random=False),
)
def test_a_flat_scene_stays_flat_whatever_the_product(size, rim, colour, random) -> None:
    height, width = size
    scene = np.full((height, width, 3), colour, np.uint8)
    matte = np.zeros((height, width), np.uint8)
    centre, radius = (random.randrange(width), random.randrange(height)), random.randrange(1, 40)
    cv2.circle(matte, centre, radius, 255, -1)
    assert (clean_plate(scene, matte, rim) == scene).all()


def test_the_bundled_autoencoder_leaves_a_rim_on_a_perfect_picture_and_the_plate_has_none() -> None:
    product = LaidProduct(np.broadcast_to(np.array([200, 40, 90], np.uint8), (SIDE, SIDE, 3)).copy(), disc())
    perfect = product.over(wall())
    autoencoder = AutoencoderKL.from_pretrained(load_profile("mini").part("autoencoder").path).float().eval()
    with torch.inference_mode():
        latents = autoencoder.encode(to_tensor(perfect[None])).latent_dist.mode()
        decoded = tensor_bytes(autoencoder.decode(latents).sample)[0]

    smeared = halo(product.over(decoded), product.matte).score
    plated = halo(product.over(clean_plate(decoded, product.matte, RIM)), product.matte).score

    assert smeared > 0.06 > 0.02 > plated
