"""What is told from what by the evidence's own weights, on pictures whose truth is drawn."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from pipelines.quality.evidence import FEATURES, Evidence, Piece, pieces

SIDE = 320
RED, PAPER = (190, 50, 40), (205, 205, 200)


def box(top: int, left: int, bottom: int, right: int) -> np.ndarray:
    mask = np.zeros((SIDE, SIDE), bool)
    mask[top:bottom, left:right] = True
    return mask


PRODUCT = box(100, 110, 220, 190)
CORD = box(150, 190, 155, 260) | box(110, 255, 155, 260)
SHADOW = box(205, 150, 230, 280)


def picture(*parts: tuple[np.ndarray, tuple[int, int, int]]) -> np.ndarray:
    image = np.full((SIDE, SIDE, 3), PAPER, np.float64)
    for where, colour in parts:
        image[where] = colour
    noise = np.random.default_rng(0).normal(0, 3, image.shape)
    return np.clip(cv2.GaussianBlur(image, (0, 0), 0.6) + noise, 0, 255).astype(np.uint8)


def sureness(image: np.ndarray, salient: np.ndarray, colour: np.ndarray) -> np.ndarray:
    return Evidence.read()(image, PRODUCT, {"salient": salient.astype(np.float32), "colour": colour})


def test_a_cord_in_the_products_colour_is_product():
    image = picture((PRODUCT, RED), (CORD, RED))
    sure = sureness(image, PRODUCT | CORD, PRODUCT | CORD)
    assert sure[130, 257] > 0.5
    assert sure[PRODUCT].max() == 0
    assert sure[20, 20] == 0


def test_a_soft_shadow_is_not():
    shade = cv2.GaussianBlur(SHADOW.astype(np.float64), (0, 0), 9)[..., None] * 0.35 * ~PRODUCT[..., None]
    image = np.clip(picture((PRODUCT, RED)) * (1 - shade), 0, 255).astype(np.uint8)
    salient = PRODUCT | (shade[..., 0] > 0.15)
    found = pieces(image, PRODUCT, {"salient": salient.astype(np.float32), "colour": PRODUCT})
    assert found  # the salient-object net took it for product
    assert sureness(image, salient, PRODUCT).max() < 0.5


def test_pieces_hang_together_with_the_mask_and_are_no_rim():
    seen = PRODUCT | CORD | box(20, 20, 60, 60) | box(97, 107, 223, 190)
    found = pieces(picture((PRODUCT, RED)), PRODUCT, {"salient": seen.astype(np.float32), "colour": PRODUCT})
    assert found
    for piece in found:
        assert not piece.mask[20:60, 20:60].any()
        assert not (piece.mask & PRODUCT).any()
        assert tuple(piece.features) == FEATURES
        assert np.isfinite(list(piece.features.values())).all()


def test_a_cord_that_no_finder_saw_is_a_piece_of_its_own():
    image = picture((PRODUCT, RED), (CORD, (40, 40, 40)))
    found = pieces(image, PRODUCT, {"salient": PRODUCT.astype(np.float32), "colour": PRODUCT})
    assert max((piece.mask & CORD).sum() / (piece.mask | CORD).sum() for piece in found) > 0.5


def test_fitted_evidence_tells_what_it_was_fitted_to_and_survives_the_file(tmp_path):
    rng = np.random.default_rng(0)
    product = rng.random(900) < 0.5
    table = rng.normal(size=(900, len(FEATURES)))
    table[:, 3] += 3 * np.where(product, 1, -1)
    features = [dict(zip(FEATURES, row, strict=True)) for row in table.tolist()]
    found = [Piece(PRODUCT, 1.0, one) for one in features]
    Evidence.fit(features, product).write("a test", tmp_path / "evidence.safetensors")
    assert ((Evidence.read(tmp_path / "evidence.safetensors").sure(found) > 0.5) == product).mean() > 0.9


def test_the_committed_weights_score_pieces_as_before():
    image = picture((PRODUCT, RED), (CORD, RED))
    seen = PRODUCT | CORD | SHADOW
    found = pieces(image, PRODUCT, {"salient": seen.astype(np.float32), "colour": PRODUCT | CORD})
    recorded = [0.9993040679, 0.0030506891, 0.9946492378]
    assert Evidence.read().sure(found) == pytest.approx(recorded, abs=1e-6)
    shuffled = [Piece(one.mask, one.share, dict(reversed(one.features.items()))) for one in found]
    assert (Evidence.read().sure(shuffled) == Evidence.read().sure(found)).all()  # by name, not by position
