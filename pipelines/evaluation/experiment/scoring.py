"""Measures of each painted picture, and of all pictures of a cell.

Overcompletion is measured as `inspect` does, on the picture with the product pasted back. Two fast finders give E+ of
every picture. HQ-SAM, which gives the uncertainty, runs on every fifth picture and on those near the threshold.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from transformers import CLIPImageProcessor, CLIPModel, CLIPTokenizerFast

from pipelines.evaluation.experiment.pairs import Pair
from pipelines.models.files import sha256_of
from pipelines.models.profile import Profile
from pipelines.models.weights import load_transformer
from pipelines.quality.detector import WEIGHTS
from pipelines.quality.overcompletion import SURE, OvercompletionDetector
from pipelines.training.composer import compose, draw_scene
from pipelines.training.data import Composer
from pipelines.training.perceptual import read_alexnet
from pipelines.vision.plate import RIM, clean_plate

BORDERLINE = (0.25, 4.0)
"""A picture with E+ between these multiples of tau is borderline: HQ-SAM runs."""

FIFTH = 5


@dataclass(frozen=True, slots=True)
class Scores:
    """Measures of one picture.

    Attributes:
        e_plus: E+ of the picture with the product pasted back.
        plated: E+ with the product over the clean plate, as a shop's images are finished. Measured only if e_plus is
            above tau, else equal to it. It is a lower bound, since the plate's seam may cause an alarm of its own.
        d_plus: Area of detached product-like objects, in products.
        uncertainty: Difference between the finders and HQ-SAM, in products; NaN if HQ-SAM did not run.
        sharpness: Mean gradient of the scene's luminance, levels per pixel.
        scene: Share of the prompt's wall and floor that a classifier recognises: 0, 0.5, 1; NaN without a classifier.
        product_error: Mean difference to the product inside its mask before it is pasted back, levels of 255.
        seconds: Painting time.
    """

    e_plus: float
    plated: float
    d_plus: float
    uncertainty: float
    sharpness: float
    scene: float
    product_error: float
    seconds: float


def composite(pair: Pair, painted: Image.Image) -> NDArray[np.uint8]:
    """The painted scene with the exact product pasted back, (side, side, 3)."""
    return pair.product.over(np.asarray(painted.convert("RGB")))


class Scorer:
    """Loads the models that measure. `version` lists the threshold and the weights that scores depend on.

    `classifier` is None if there are no composed scenes to learn walls and floors from.
    """

    def __init__(self, profile: Profile, tau: float, classifier: SceneClassifier | None, device: str = "cpu"):
        self.tau = tau
        self.version = [tau, SURE, sha256_of(WEIGHTS), *(profile.ref(part).sha256 for part in ("salient", "hqsam"))]
        self.detector = OvercompletionDetector.from_profile(profile, thorough=True, device=device)
        self.classifier = classifier

    def score(self, pair: Pair, painted: Image.Image, seconds: float) -> Scores:
        """Measure one picture."""
        raw, image, matte = np.asarray(painted.convert("RGB")), composite(pair, painted), pair.product.matte
        found = self.detector.measure(image, matte, lambda e_plus: self._doubtful(pair, e_plus))
        plated = found.e_plus
        if plated > self.tau:
            plated = self._on_plate(pair, raw)
        inside = matte >= 128
        luminance = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float32)
        slope = cv2.magnitude(cv2.Sobel(luminance, cv2.CV_32F, 1, 0), cv2.Sobel(luminance, cv2.CV_32F, 0, 1)) / 8
        scenery = cv2.dilate(matte, np.ones((9, 9), np.uint8)) == 0
        difference = np.abs(raw[inside].astype(np.float32) - pair.product.colour[inside])
        return Scores(
            e_plus=found.e_plus,
            plated=plated,
            d_plus=found.d_plus,
            uncertainty=found.uncertainty if self._doubtful(pair, found.e_plus) else float("nan"),
            sharpness=float(slope[scenery].mean()),
            scene=self.classifier.agreement(image, matte, pair.scene.wall, pair.scene.floor)
            if self.classifier
            else float("nan"),
            product_error=float(difference.mean()),
            seconds=seconds,
        )

    def _on_plate(self, pair: Pair, raw: NDArray[np.uint8]) -> float:
        picture = pair.product.over(clean_plate(raw, pair.product.matte, RIM))
        return self.detector.measure(picture, pair.product.matte, lambda e_plus: False).e_plus

    def _doubtful(self, pair: Pair, e_plus: float) -> bool:
        return pair.number % FIFTH == 0 or BORDERLINE[0] < e_plus / self.tau < BORDERLINE[1]


class PromptAgreement:
    """Agreement of pictures with prompts: the unscaled cosine of CLIPScore (Hessel et al. 2021) in the profile's CLIP.

    Cosines of two CLIPs are not comparable, and those of the bundled one are no published CLIPScore.
    """

    def __init__(self, profile: Profile):
        part = profile.part("clip").check()
        folder = part.path
        self._clip = load_transformer(CLIPModel, folder, "CLIP", part.weights).eval()
        self._images = CLIPImageProcessor.from_pretrained(folder, local_files_only=True)
        self._tokens = CLIPTokenizerFast.from_pretrained(folder, local_files_only=True)

    @torch.inference_mode()
    def __call__(self, images: Sequence[NDArray[np.uint8]], prompts: Sequence[str]) -> NDArray[np.float64]:
        """Cosine of every picture (H, W, 3) with every prompt, -1..1, (pictures, prompts)."""
        longest = self._clip.config.text_config.max_position_embeddings
        tokens = self._tokens(
            list(prompts), padding="max_length", truncation=True, max_length=longest, return_tensors="pt"
        )
        words = self._clip.get_text_features(**tokens).pooler_output
        pixels = [self._images([Image.fromarray(image)], return_tensors="pt").pixel_values for image in images]
        seen = torch.cat([self._clip.get_image_features(one).pooler_output for one in pixels])
        cosines: NDArray[np.float64] = (F.normalize(seen) @ F.normalize(words).T).double().numpy()
        return cosines


GRID = 16


class SceneClassifier:
    """Classifies the wall and the floor of a picture outside the product: a linear softmax over a coarse grid.

    It learns from composed scenes, whose captions are true. `accuracy` is measured on other composed scenes.
    """

    def __init__(self, data: Path, examples: int = 2400, tests: int = 400, seed: int = 3):
        composer = Composer(data, "train", seed=seed)
        features, walls, floors = [], [], []
        for n in range(examples + tests):
            rng = np.random.default_rng([seed, n])
            scene = draw_scene(rng)
            pool = composer.goods if n % 2 else composer.toys
            shot = compose(scene, (64, 64), pool[int(rng.integers(len(pool)))], rng)
            features.append(_grid(np.round(shot.image * 255).astype(np.uint8), np.round(shot.mask * 255)))
            walls.append(scene.wall)
            floors.append(scene.floor)
        seen = torch.tensor(np.stack(features))
        self._mean, self._deviation = seen[:examples].mean(0), seen[:examples].std(0) + 1e-3
        seen = (seen - self._mean) / self._deviation
        self.accuracy: dict[str, float] = {}
        self._heads: dict[str, tuple[list[str], Tensor]] = {}
        for kind, names in (("wall", walls), ("floor", floors)):
            words = sorted(set(names))
            labels = torch.tensor([words.index(name) for name in names])
            weights = _fit(seen[:examples], labels[:examples], len(words))
            right = (_logits(seen[examples:], weights).argmax(1) == labels[examples:]).float().mean()
            self._heads[kind], self.accuracy[kind] = (words, weights), float(right)

    def agreement(self, image: NDArray[np.uint8], matte: NDArray[np.uint8], wall: str, floor: str) -> float:
        """Share of wall and floor that are recognised as the prompt's: 0, 0.5 or 1."""
        seen = (torch.tensor(_grid(image, matte))[None] - self._mean) / self._deviation
        right = 0
        for kind, name in (("wall", wall), ("floor", floor)):
            words, weights = self._heads[kind]
            right += words[int(_logits(seen, weights).argmax())] == name
        return right / 2


def _grid(image: NDArray[np.uint8], matte: NDArray[Any]) -> NDArray[np.float32]:
    """Mean colour of the scene in each cell of a grid; the product's cells get their row's mean: (GRID * GRID * 3,)."""
    share = cv2.resize(1 - matte.astype(np.float32) / 255, (GRID, GRID), interpolation=cv2.INTER_AREA)[..., None]
    scenery = image.astype(np.float32) / 255 * (1 - matte.astype(np.float32)[..., None] / 255)
    cells = cv2.resize(scenery, (GRID, GRID), interpolation=cv2.INTER_AREA)
    row = cells.sum(1, keepdims=True) / np.maximum(share.sum(1, keepdims=True), 1e-3)
    return np.where(share > 0.5, cells / np.maximum(share, 1e-3), row).astype(np.float32).ravel()


def _fit(features: Tensor, labels: Tensor, classes: int) -> Tensor:
    weights = torch.zeros(features.shape[1] + 1, classes, requires_grad=True)
    optimizer = torch.optim.LBFGS([weights], max_iter=120, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(_logits(features, weights), labels) + 2e-3 * weights.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    return weights.detach()


def _logits(features: Tensor, weights: Tensor) -> Tensor:
    return features @ weights[:-1] + weights[-1]


class AlexNetFeatures:
    """AlexNet (Krizhevsky 2014) up to its last convolution, average-pooled: 256 features per picture, for KID."""

    def __init__(self, checkpoint: Path):
        self._layers = _read_alexnet(checkpoint)

    @torch.inference_mode()
    def __call__(self, images: Sequence[NDArray[np.uint8]]) -> NDArray[np.float64]:
        """(N, H, W, 3) uint8 pictures to (N, 256)."""
        features = []
        for image in images:
            small = cv2.resize(image, (224, 224), interpolation=cv2.INTER_AREA).astype(np.float32) / 255
            x = torch.from_numpy((small - MEAN) / DEVIATION).permute(2, 0, 1)[None]
            for n, (kernel, bias) in enumerate(self._layers):
                stride, padding = ((4, 2), (1, 2), (1, 1), (1, 1), (1, 1))[n]
                x = F.relu(F.conv2d(x, kernel, bias, stride=stride, padding=padding))
                if n in (0, 1):
                    x = F.max_pool2d(x, 3, 2)
            features.append(x.mean((2, 3))[0].double().numpy())
        return np.stack(features)


MEAN = np.array([0.485, 0.456, 0.406], np.float32)
DEVIATION = np.array([0.229, 0.224, 0.225], np.float32)


def _read_alexnet(checkpoint: Path) -> list[tuple[Tensor, Tensor]]:
    """Kernels (out, in, h, w) and biases of the five convolutions. Raises IntegrityError for any other file."""
    tree = read_alexnet(checkpoint)["AlexNet_0"]
    layers = [tree[f"Conv_{n}"] for n in range(5)]
    return [
        (torch.from_numpy(np.array(layer["kernel"])).permute(3, 2, 0, 1).float(), torch.tensor(np.array(layer["bias"])))
        for layer in layers
    ]
