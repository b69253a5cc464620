"""Train the compact x4 upscaler on photos and scenes, degraded to the softness of a small generator's pictures.

packshot train upscaler --minutes 8
python -m pipelines.training.upscaler          PSNR on held-out pictures, compared with bicubic
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

from pipelines.training.card import write_card
from pipelines.training.composer import compose, draw_scene
from pipelines.training.data import NOT_PHOTOGRAPHS, read_index
from pipelines.training.loop import PROFILE, ROOT, TrainOptions, fit, step_rng
from pipelines.vision.upscalers import SRVGGNetCompact, Upscaler

Pixels = NDArray[np.uint8]

PATCH = 128
"""Side of a training patch, in px of the large picture."""
SCALE = 4
COMPOSED = 60
"""Empty composed scenes among the pictures: the generator draws such walls, planks and marble."""


def train(options: TrainOptions) -> Path:
    """Train within the budget, export to `options.out`/upscaler with a card; return that folder."""
    torch.manual_seed(options.seed)
    batch, lr = options.batch or 12, options.lr or 1e-3
    files, composed = list_pictures(options.data, "train"), composed_scenes(COMPOSED)
    model = SRVGGNetCompact()
    initialise(model)
    model = model.to(options.device).to(memory_format=torch.channels_last)

    def loss_of_step(step: int) -> Tensor:
        small, large = draw_batch(files, composed, batch, step_rng(options, step))
        output = model(small.to(options.device, memory_format=torch.channels_last))
        return loss_of(output.float(), large.to(options.device))

    result = fit(options, model, loss_of_step, batch=batch, lr=lr)
    assert isinstance(result.ema, SRVGGNetCompact)
    folder = options.out / "upscaler"
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: value.half().contiguous() for name, value in result.ema.cpu().state_dict().items()}
    save_file(weights, folder / "model.safetensors")
    scores = evaluate(SRVGGNetCompact.from_file(folder / "model.safetensors"), options.data)
    write_card(folder, "upscaler", result.ema, options, result.figures, "\n".join(str(score) for score in scores))
    return folder


@dataclass(frozen=True, slots=True)
class PsnrScore:
    """Mean PSNR in dB over `n` held-out pictures of net and bicubic, and the 95 % interval of the difference."""

    shrunk: str
    n: int
    net: float
    bicubic: float
    low: float
    high: float

    def __str__(self) -> str:
        gain = f"{self.net - self.bicubic:+.2f}, 95 % interval {self.low:+.2f} to {self.high:+.2f}"
        return f"- x4, {self.shrunk}, {self.n} held-out: {self.net:.2f} dB, bicubic {self.bicubic:.2f} dB ({gain})"


def evaluate(net: SRVGGNetCompact, data: Path, limit: int = 120) -> list[PsnrScore]:
    """PSNR on held-out photos and scenes, shrunk cleanly and as in training; of the net and of PIL's bicubic."""
    files = sorted(set(list_pictures(data, "test")))
    files = files[:: max(len(files) // limit, 1)]
    upscaler, rng = Upscaler(net), np.random.default_rng(5)
    scores = []
    for shrunk in ("area-averaged", "blurred, noisy, JPEG"):
        pairs = []
        for file in files:
            image = read_rgb(file)
            height, width = image.shape[0] // SCALE * SCALE, image.shape[1] // SCALE * SCALE
            image = image[:height, :width]
            small = shrink(image) if shrunk == "area-averaged" else degrade(image, rng)
            bicubic = np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC))
            pairs.append((psnr(upscaler.upscale(small), image), psnr(bicubic, image)))
        ours, theirs = np.array(pairs).T
        error = 1.96 * float((ours - theirs).std(ddof=1)) / len(files) ** 0.5
        gain = float((ours - theirs).mean())
        scores.append(
            PsnrScore(shrunk, len(files), float(ours.mean()), float(theirs.mean()), gain - error, gain + error)
        )
    return scores


def psnr(image: Pixels, truth: Pixels) -> float:
    """Peak signal-to-noise ratio over all RGB values, in dB; 50 at most, where nobody sees a difference."""
    return float(10 * np.log10(255**2 / max(np.square(image.astype(np.float64) - truth).mean(), 255**2 / 1e5)))


def initialise(net: SRVGGNetCompact) -> None:
    """Start near the identity: without skip connections the default initialisation lets gradients vanish."""
    convolutions = [layer for layer in net.body if isinstance(layer, nn.Conv2d)]
    with torch.no_grad():
        for layer in convolutions:
            nn.init.kaiming_normal_(layer.weight, a=0.25)
            layer.bias = nn.Parameter(torch.zeros(layer.out_channels))
        for layer in convolutions[1:-1]:
            layer.weight.copy_(nn.init.dirac_(torch.empty_like(layer.weight)) + 0.1 * layer.weight)
        convolutions[-1].weight.mul_(0.1)


def list_pictures(data: Path, split: str) -> list[Path]:
    """Product photos and photographed scenes of one split; the few scenes three times."""
    scenes = [
        item for item in read_index(data, "scenes", split) if not NOT_PHOTOGRAPHS.search(item.path.name + item.name)
    ]
    return [item.path for item in scenes * 3 + read_index(data, "photos", split)]


def composed_scenes(count: int) -> list[Pixels]:
    """Composed scenes without a product, 384 px, as in the generator's training pictures."""
    rng = np.random.default_rng(21)
    shots = [compose(draw_scene(rng), (384, 384), None, rng) for _ in range(count)]
    return [np.clip(shot.image * 255 + 0.5, 0, 255).astype(np.uint8) for shot in shots]


def read_rgb(path: Path) -> Pixels:
    """(H, W, 3) uint8."""
    with Image.open(path) as file:
        return np.asarray(file.convert("RGB"))


def draw_batch(files: list[Path], composed: list[Pixels], size: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """(B, 3, 32, 32) small and (B, 3, 128, 128) large patches in 0..1, two of each picture."""
    small, large = [], []
    for _ in range(size // 2):
        if rng.random() < 0.15:
            image = composed[int(rng.integers(len(composed)))]
        else:
            image = read_rgb(files[int(rng.integers(len(files)))])
        for _ in range(2):
            patch = draw_patch(image, rng)
            large.append(patch)
            small.append(degrade(patch, rng))
    return to_tensor(small), to_tensor(large)


def to_tensor(images: list[Pixels]) -> Tensor:
    """Images (H, W, 3) uint8 as (N, 3, H, W) float in 0..1."""
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 255


def draw_patch(image: Pixels, rng: np.random.Generator) -> Pixels:
    """A random 128 px patch, turned and mirrored at random; smaller pictures are enlarged to fit."""
    short = min(image.shape[:2])
    if short < PATCH:
        factor = PATCH / short
        image = cv2.resize(image, None, fx=factor, fy=factor).astype(np.uint8)
    top = int(rng.integers(image.shape[0] - PATCH + 1))
    left = int(rng.integers(image.shape[1] - PATCH + 1))
    patch = np.rot90(image[top : top + PATCH, left : left + PATCH], int(rng.integers(4)))
    return np.ascontiguousarray(patch[:, ::-1] if rng.random() < 0.5 else patch)


def shrink(image: Pixels) -> Pixels:
    """Reduce to a quarter of the size; each pixel is the mean of sixteen."""
    return cv2.resize(image, (image.shape[1] // SCALE, image.shape[0] // SCALE), interpolation=cv2.INTER_AREA).astype(
        np.uint8
    )


def degrade(image: Pixels, rng: np.random.Generator) -> Pixels:
    """Shrink by 4 as Real-ESRGAN's first-order degradation (Wang et al. 2021, section 3.1), mildly: blur, noise, JPEG.

    Two of five pictures are only shrunk, since the generator's pictures are soft but not noisy.
    """
    if rng.random() < 0.4:
        return shrink(image)
    if rng.random() < 0.7:
        image = cv2.GaussianBlur(image, (0, 0), rng.uniform(0.3, 1.6)).astype(np.uint8)
    small = shrink(image)
    if rng.random() < 0.4:
        noise = rng.normal(0, rng.uniform(1, 5), small.shape)
        small = np.clip(small + noise, 0, 255).astype(np.uint8)
    if rng.random() < 0.4:
        encoded = io.BytesIO()
        Image.fromarray(small).save(encoded, "JPEG", quality=int(rng.integers(70, 96)))
        small = np.asarray(Image.open(encoded))
    return small


def loss_of(output: Tensor, target: Tensor) -> Tensor:
    """L1, and L1 of the differences between neighbouring pixels, which preserves edges."""
    difference = output - target
    edges = difference.diff(dim=-1).abs().mean() + difference.diff(dim=-2).abs().mean()
    return difference.abs().mean() + 0.2 * edges


if __name__ == "__main__":
    trained = SRVGGNetCompact.from_file(PROFILE / "upscaler" / "model.safetensors")
    print("\n".join(str(score) for score in evaluate(trained, ROOT / ".." / "shared" / "training")))
