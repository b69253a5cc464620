"""Train HQ-SAM's high-quality output on what cutouts get wrong, on top of MobileSAM's frozen weights.

    python -m pipelines.training hqsam --minutes 45 --dtype bfloat16

Ke et al., "Segment Anything in High Quality", NeurIPS 2023, section 3.2: a learnable output token, its MLP and three
fusion convolutions (0.45 M parameters) are trained; their mask is added to SAM's. The image encoder is frozen and takes
most of the time, so each composite is encoded once. Its features are kept in the work folder, 3.4 MB a composite; a run
that is killed continues there.

The prompts are those of the cutout stage: from the salient-object net's mask, and on plain paper from the cutout by
colour, with their errors. As in the stage, a second pass has the first one's mask as its mask prompt.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from rich.progress import track
from safetensors.numpy import load_file as load_arrays
from safetensors.numpy import save_file as save_arrays
from safetensors.torch import save_file
from segment_anything_hq.modeling import Sam
from torch import Tensor
from torch.nn import functional as F

from pipelines.training.card import write_card
from pipelines.training.composites import Composite, Draw
from pipelines.training.loop import DTYPES, TrainOptions, fit, step_rng
from pipelines.training.pitfalls import PitfallSource
from pipelines.vision.segmenters import (
    HQ_PARTS,
    LOGIT_SCALE,
    MASK_SIDE,
    Encoding,
    HQSamSegmenter,
    Prompt,
    SalientSegmenter,
    build_mobile_sam,
    build_sam,
    deepest_points,
    main_pieces,
    prompt_from,
)
from pipelines.vision.studio import cut_studio, find_studio

COMPOSITES = 1600
HELD_OUT = 96
SIDE = 640
"""Size of the composites, px; the cutouts are small, so larger composites would only be blurred."""

RIGHT_THING = 0.5
"""IoU of a mask with the product from which its prompt means the product. Other prompts mean another thing."""

WRONG = 0.95
"""IoU below which a mask is wrong."""

FROM_STAGE, BOX_ALONE, BOTH_PASSES, NEGATIVE = 0.7, 0.2, 0.6, 0.5
"""Shares of the prompts of the stage where there are any; of these, of the ones without points; of the steps on the
second pass; and of the drawn prompts with a point on another thing, where there is one."""

WEIGHTS = "model.safetensors"
NOTES = """MobileSAM's weights (Apache-2.0, see NOTICE) in HQ-SAM's `vit_tiny`; only the HQ token, its MLP and the
fusion convolutions are trained (`pipelines/training/hqsam.py`), on encoded composites of what cutouts get wrong
(`pipelines/training/pitfalls.py`), with the cutout stage's own prompts. The figures compare SAM's output and HQ's on
held-out products: mean IoU, and the share of masks with an IoU below 0.95."""


@dataclass(frozen=True, slots=True)
class Encoded:
    """A composite as the decoder sees it.

    Attributes:
        encoding: The frozen encoder's features, half precision.
        mask: `(h, w)` float32, 1 = product; its longer side has 256 px.
        other: `(h, w)` bool, another thing that touches or covers the product; none is all false.
        prompts: What the cutout stage would ask, in pixels of `mask`.
    """

    encoding: Encoding
    mask: np.ndarray
    other: np.ndarray
    prompts: tuple[Prompt, ...]

    def save(self, path: Path) -> None:
        """Write one file; there is no half one after a kill."""
        arrays = {
            "encoding": np.frombuffer(self.encoding.to_bytes(), np.uint8),
            "mask": self.mask,
            "other": self.other,
        }
        for n, prompt in enumerate(self.prompts):
            arrays |= {f"box {n}": prompt.box, f"points {n}": prompt.points}
        save_arrays({name: np.ascontiguousarray(array) for name, array in arrays.items()}, path.with_suffix(".tmp"))
        path.with_suffix(".tmp").replace(path)

    @classmethod
    def load(cls, path: Path) -> Encoded:
        """Read what `save` wrote."""
        arrays = load_arrays(path)
        count = sum(name.startswith("box ") for name in arrays)
        prompts = tuple(_prompt(arrays[f"box {n}"], arrays[f"points {n}"]) for n in range(count))
        return cls(Encoding.from_bytes(arrays["encoding"].tobytes()), arrays["mask"], arrays["other"], prompts)


def encode(
    folder: Path,
    segmenter: HQSamSegmenter,
    salient: SalientSegmenter,
    source: PitfallSource,
    count: int,
    seed: int,
    dtype: torch.dtype,
) -> list[Path]:
    """Draw composites and encode each once into `folder`, 1.3 s of CPU each. Those already there stay.

    Returns their files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / f"{index:05d}.safetensors" for index in range(count)]
    for index, file in enumerate(track(files, description="encode")):
        if file.exists():
            continue
        composite = source.draw(SIDE, np.random.default_rng([seed, index]))
        with torch.autocast("cpu", dtype=dtype, enabled=dtype is not torch.float32):
            encoding = segmenter.encode(composite.image)
        mask, other = _small(composite.mask), _small(_other(composite)) > 0.5
        Encoded(encoding, mask, other, _stage_prompts(composite, salient)).save(file)
    return files


def decode(sam: Sam, item: Encoded, prompt: Prompt, passes: int = 2) -> tuple[Tensor, Tensor]:
    """Logits `(1, 1, h, w)` of SAM's own mask and of SAM's plus the HQ mask. Only the last pass has a gradient."""
    rough = None
    if passes > 1:
        with torch.no_grad():
            rough = _decode_once(sam, item, prompt, None)[1].float().clamp(-2 * LOGIT_SCALE, 2 * LOGIT_SCALE)
    height, width = item.mask.shape
    own, both = (logits[..., :height, :width] for logits in _decode_once(sam, item, prompt, rough))
    return own, both


def _decode_once(sam: Sam, item: Encoded, prompt: Prompt, rough: Tensor | None) -> tuple[Tensor, Tensor]:
    scale = sam.image_encoder.img_size / MASK_SIDE
    labels = torch.from_numpy(prompt.labels).int()[None]
    sparse, dense = sam.prompt_encoder(
        points=(torch.from_numpy(prompt.points * scale)[None], labels) if len(prompt.points) else None,
        boxes=torch.from_numpy(prompt.box * scale)[None] if len(prompt.box) else None,
        masks=rough,
    )
    decoder = sam.mask_decoder
    image, early = item.encoding.features, item.encoding.details.permute(0, 3, 1, 2)
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


def draw_prompt(item: Encoded, rng: Draw) -> tuple[Prompt, int]:
    """Draw a prompt and the number of passes, as the stage and a person's clicks ask.

    A prompt that is not the stage's has a box with an error of a few percent, up to three points, and at times one on
    another thing.
    """
    if item.prompts and rng.random() < FROM_STAGE:
        prompt = item.prompts[int(rng.integers(len(item.prompts)))]
        if rng.random() < BOX_ALONE:
            return _prompt(prompt.box, prompt.points[:0]), 1
    else:
        prompt = _drawn_prompt(item, rng)
    return prompt, 2 if rng.random() < BOTH_PASSES else 1


@torch.no_grad()
def evaluate(sam: Sam, files: list[Path]) -> dict[str, float]:
    """Mean IoU, and share of wrong masks, of SAM's mask and of the HQ mask for the stage's first prompt."""
    scores = []
    for index, file in enumerate(files):
        item = Encoded.load(file)
        prompt = item.prompts[0] if item.prompts else _drawn_prompt(item, np.random.default_rng([2, index]))
        true = torch.from_numpy(item.mask)[None, None] > 0.5
        found = [logits > 0 for logits in decode(sam, item, prompt)]
        scores.append([float((one & true).sum() / (one | true).sum().clamp(min=1)) for one in found])
    ious = np.array(scores)
    (own, both), (own_wrong, both_wrong) = ious.mean(axis=0), (ious < WRONG).mean(axis=0)
    return {
        "held_out_iou_sam": round(float(own), 4),
        "held_out_iou": round(float(both), 4),
        "held_out_wrong_sam": round(float(own_wrong), 4),
        "held_out_wrong": round(float(both_wrong), 4),
    }


def train(options: TrainOptions) -> dict[str, float]:
    """Train the HQ output and write the whole model, half precision, with its card into `options.out / "hqsam"`.

    Continues from existing weights; without them it starts from `../models/mobile_sam.pt` of the training folder. The
    salient-object net of `options.out` draws the prompts. `options.minutes` is the time after the encoding. The encoded
    composites belong to their seed, to this net and to what is drawn: a change of these needs another work folder.
    """
    folder = options.out / "hqsam"

    def build() -> Sam:
        if (folder / WEIGHTS).exists():
            return build_sam(folder / WEIGHTS)
        return build_mobile_sam(options.data.parent / "models" / "mobile_sam.pt")

    sam = build()
    for name, parameter in sam.named_parameters():
        parameter.requires_grad_(name.startswith(tuple(f"mask_decoder.{part}" for part in HQ_PARTS)))
    salient = SalientSegmenter.from_file(options.out / "salient" / WEIGHTS)
    encoder = HQSamSegmenter(build(), salient)
    precision = DTYPES[options.dtype]
    train_set, test_set = PitfallSource(options.data), PitfallSource(options.data, "test")
    files = encode(options.folder / "train", encoder, salient, train_set, COMPOSITES, options.seed, precision)
    held_out = encode(options.folder / "test", encoder, salient, test_set, HELD_OUT, 1, precision)

    def loss_of_step(step: int) -> Tensor:
        rng = step_rng(options, step)
        item = Encoded.load(files[int(rng.integers(len(files)))])
        prompt, passes = draw_prompt(item, rng)
        _, logits = decode(sam, item, prompt, passes)
        return loss_of(logits.float(), torch.from_numpy(item.mask)[None, None])

    result = fit(options, sam, loss_of_step, batch=1, lr=options.lr or 5e-4, ceiling=0.998)
    scores = evaluate(result.ema, held_out)  # type: ignore[arg-type]
    figures = {**result.figures, "composites": len(files), **scores}
    folder.mkdir(parents=True, exist_ok=True)
    save_file({k: v.half().contiguous() for k, v in result.ema.state_dict().items()}, folder / WEIGHTS)
    write_card(folder, "hqsam", sam, options, figures, NOTES)
    return figures


def _stage_prompts(composite: Composite, salient: SalientSegmenter) -> tuple[Prompt, ...]:
    """Return the prompts of the cutout stage that mean the product, in pixels of the small mask."""
    saliency = salient.segment(composite.image)
    asked = [(main_pieces(saliency > 0.5), prompt_from(saliency))]
    if (studio := find_studio(composite.image)) is not None:
        figure = cut_studio(composite.image, studio, saliency)
        asked.append((figure, prompt_from(figure.astype(np.float32), points=4)))
    product, scale = composite.mask > 0.5, MASK_SIDE / max(composite.mask.shape)
    found = []
    for mask, prompt in asked:
        overlap = float((mask & product).sum() / max(1, (mask | product).sum()))
        if prompt is not None and overlap >= RIGHT_THING:
            found.append(_prompt(prompt.box * scale, prompt.points * scale))
    return tuple(found)


def _drawn_prompt(item: Encoded, rng: Draw) -> Prompt:
    product = item.mask > 0.5
    if not product.any():
        return _prompt(np.array([0, 0, *product.shape[::-1]]), np.zeros((0, 2)))
    rows, columns = np.flatnonzero(product.any(axis=1)), np.flatnonzero(product.any(axis=0))
    box = np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], np.float32)
    reach = np.tile(box[2:] - box[:2], 2)
    box = np.clip(box + rng.normal(0, 0.02, 4) * reach, 0, np.tile(product.shape[::-1], 2))
    points = deepest_points(product, int(rng.integers(0, 4)))
    beside = deepest_points(item.other, 1) if rng.random() < NEGATIVE else np.zeros((0, 2), np.float32)
    labels = np.array([1] * len(points) + [0] * len(beside), np.int64)
    return Prompt(box.astype(np.float32), np.concatenate([points, beside]), labels)


def _prompt(box: np.ndarray, points: np.ndarray) -> Prompt:
    return Prompt(box.astype(np.float32), points.astype(np.float32), np.ones(len(points), np.int64))


def _other(composite: Composite) -> np.ndarray:
    return np.zeros_like(composite.mask) if composite.other is None else composite.other


def _small(mask: np.ndarray) -> np.ndarray:
    """Reduce `(H, W)` float32 so that its longer side has 256 px."""
    scale = MASK_SIDE / max(mask.shape)
    size = (round(mask.shape[1] * scale), round(mask.shape[0] * scale))
    return np.asarray(cv2.resize(mask, size, interpolation=cv2.INTER_AREA), np.float32)
