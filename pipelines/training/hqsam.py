"""Train HQ-SAM's high-quality output on product composites, on top of MobileSAM's frozen weights.

    python -m pipelines.training hqsam --minutes 5

Ke et al., "Segment Anything in High Quality", NeurIPS 2023, section 3.2: a learnable output token, its MLP and three
fusion convolutions (0.45 M parameters) are trained; their mask is added to SAM's. The image encoder is frozen and takes
99 % of the time, so each composite is encoded once and its features are stored.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import torch
from rich.progress import track
from safetensors.torch import save_file
from segment_anything_hq.modeling import Sam
from segment_anything_hq.utils.transforms import ResizeLongestSide
from torch import Tensor
from torch.nn import functional as F

from pipelines.training.card import write_card
from pipelines.training.composites import CompositeSource
from pipelines.training.loop import TrainOptions, fit, step_rng
from pipelines.vision.segmenters import HQ_PARTS, MASK_SIDE, build_mobile_sam, build_sam, deepest_points

COMPOSITES = 110
HELD_OUT = 16
SIDE = 640
"""Size of the composites, px; the cutouts are small, so larger composites would only be blurred."""

WEIGHTS = "model.safetensors"
NOTES = """MobileSAM's weights (Apache-2.0, see NOTICE) in HQ-SAM's `vit_tiny`; only the HQ token, its MLP and the
fusion convolutions are trained (`pipelines/training/hqsam.py`), on encoded composites, prompted by a jittered box and
up to three points. The figures compare mean IoU on held-out products over held-out scenes: SAM's output, and HQ's."""


@dataclass(frozen=True, slots=True)
class Encoded:
    """The frozen encoder's features of a composite.

    Attributes:
        image: `(1, 256, 64, 64)` float16, the image embedding.
        early: `(1, 64, 64, 160)` float16, the early features that HQ-SAM fuses in.
        mask: `(256, 256)` float32, 1 = product.
    """

    image: Tensor
    early: Tensor
    mask: np.ndarray


@torch.no_grad()
def encode(sam: Sam, source: CompositeSource, count: int, seed: int, dtype: torch.dtype) -> list[Encoded]:
    """Draw composites and encode each once."""
    resize = ResizeLongestSide(sam.image_encoder.img_size)
    items = []
    for index in track(range(count), description="encode"):
        composite = source.draw(SIDE, np.random.default_rng([seed, index]))
        pixels = torch.from_numpy(resize.apply_image(composite.image)).permute(2, 0, 1)[None].float()
        with torch.autocast("cpu", dtype=dtype, enabled=dtype is not torch.float32):
            embedding, early = sam.image_encoder(sam.preprocess(pixels))
        mask = cv2.resize(composite.mask, (MASK_SIDE, MASK_SIDE), interpolation=cv2.INTER_AREA)
        items.append(Encoded(embedding.half(), early[0].half(), mask))
    return items


def decode(sam: Sam, item: Encoded, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Logits `(1, 1, 256, 256)` of SAM's own mask and of SAM's plus the HQ mask, for a prompt drawn with `rng`."""
    box, points = _prompt(item.mask, rng)
    side = sam.image_encoder.img_size
    scale = side / MASK_SIDE
    sparse, dense = sam.prompt_encoder(
        points=(torch.from_numpy(points * scale)[None], torch.ones(1, len(points))) if len(points) else None,
        boxes=torch.from_numpy(box * scale)[None],
        masks=None,
    )
    decoder = sam.mask_decoder
    image, early = item.image.float(), item.early.float().permute(0, 3, 1, 2)
    masks, _ = decoder.predict_masks(
        image_embeddings=image,
        image_pe=sam.prompt_encoder.get_dense_pe(),
        sparse_prompt_embeddings=sparse,
        dense_prompt_embeddings=dense,
        hq_features=decoder.embedding_encoder(image) + decoder.compress_vit_feat(early),
    )
    return masks[:, :1], masks[:, :1] + masks[:, -1:]


def loss_of(logits: Tensor, mask: Tensor) -> Tensor:
    """Cross-entropy and Dice loss (section 3.2), the cross-entropy three-fold near the mask's edge."""
    edge = F.max_pool2d(mask, 9, 1, 4) + F.max_pool2d(-mask, 9, 1, 4)
    entropy = F.binary_cross_entropy_with_logits(logits, mask, weight=1 + 2 * edge)
    p = logits.sigmoid()
    dice = 1 - (2 * (p * mask).sum() + 1) / (p.sum() + mask.sum() + 1)
    return entropy + dice


@torch.no_grad()
def evaluate(sam: Sam, items: list[Encoded]) -> tuple[float, float]:
    """Mean IoU of SAM's mask and of the HQ mask."""
    scores = []
    for index, item in enumerate(items):
        true = torch.from_numpy(item.mask)[None, None] > 0.5
        for logits in decode(sam, item, np.random.default_rng([2, index])):
            found = logits > 0
            scores.append(float((found & true).sum() / (found | true).sum().clamp(min=1)))
    return float(np.mean(scores[::2])), float(np.mean(scores[1::2]))


def train(options: TrainOptions) -> dict[str, float]:
    """Train the HQ output and write the whole model, half precision, with its card into `options.out / "hqsam"`.

    Continues from existing weights; without them it starts from `../models/mobile_sam.pt` of the training folder.
    """
    folder = options.out / "hqsam"
    if (folder / WEIGHTS).exists():
        sam = build_sam(folder / WEIGHTS)
    else:
        sam = build_mobile_sam(options.data.parent / "models" / "mobile_sam.pt")
    for name, parameter in sam.named_parameters():
        parameter.requires_grad_(name.startswith(tuple(f"mask_decoder.{part}" for part in HQ_PARTS)))
    precision = torch.bfloat16 if options.dtype == "bfloat16" else torch.float32
    items = encode(sam, CompositeSource(options.data), COMPOSITES, options.seed, precision)
    held_out = encode(sam, CompositeSource(options.data, "test"), HELD_OUT, 1, precision)

    def loss_of_step(step: int) -> Tensor:
        rng = step_rng(options, step)
        item = items[int(rng.integers(len(items)))]
        _, logits = decode(sam, item, rng)
        return loss_of(logits.float(), torch.from_numpy(item.mask)[None, None])

    result = fit(options, sam, loss_of_step, batch=1, lr=options.lr or 5e-4, ceiling=0.99)
    with_sam, with_hq = evaluate(result.ema, held_out)  # type: ignore[arg-type]
    figures = {**result.figures, "held_out_iou_sam": round(with_sam, 4), "held_out_iou": round(with_hq, 4)}
    folder.mkdir(parents=True, exist_ok=True)
    save_file({k: v.half().contiguous() for k, v in result.ema.state_dict().items()}, folder / WEIGHTS)
    write_card(folder, "hqsam", sam, options, figures, NOTES)
    return figures


def _prompt(mask: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A box with an error of a few percent, like a salient-object net's, and up to three points, in mask pixels."""
    product = mask > 0.5
    if not product.any():
        return np.array([0, 0, MASK_SIDE, MASK_SIDE], np.float32), np.zeros((0, 2), np.float32)
    rows, columns = np.flatnonzero(product.any(axis=1)), np.flatnonzero(product.any(axis=0))
    box = np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], np.float32)
    reach = np.tile(box[2:] - box[:2], 2)
    box = np.clip(box + rng.normal(0, 0.02, 4) * reach, 0, MASK_SIDE).astype(np.float32)
    return box, deepest_points(product, int(rng.integers(0, 4)))
