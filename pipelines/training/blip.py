"""Train the bundled captioner, a small BLIP (Li et al. 2022), on photos whose names say what is on them.

    packshot train blip --minutes 10
    python -m pipelines.training.blip          held-out figures of captioner, tagger, title and majority class

A caption is "a photo of a blue hoodie": the category comes from the name, in the vocabulary's words; the colour is
measured. Each category is sampled by the root of its frequency, so that T-shirts do not dominate.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from transformers import BertTokenizerFast, BlipConfig, BlipForConditionalGeneration, BlipImageProcessor, BlipProcessor

from pipelines.quality.intervals import wilson
from pipelines.training.autoencoder import to_tensor
from pipelines.training.card import write_card
from pipelines.training.categories import Labelled, labelled, vocabulary, with_article
from pipelines.training.composer import compose, draw_scene
from pipelines.training.data import load_product, product_of
from pipelines.training.loop import TrainOptions, fit, step_rng
from pipelines.vision.captioner import Caption, Captioner
from pipelines.vision.colours import ANCHORS, dominant_colour
from pipelines.vision.tagger import Tagger

SIDE = 96
PACKED = 112
WIDTH = 192
LONGEST = 16
"""Input side of the model and side of the stored pictures, px; width of both towers; longest caption in tokens."""

Pixels = NDArray[np.uint8]


def build(tokenizer: BertTokenizerFast) -> BlipForConditionalGeneration:
    """A vision tower of 4 blocks over 36 patches of 16 px, and a text decoder of 2 blocks with cross-attention."""
    vision = {
        "hidden_size": WIDTH,
        "intermediate_size": 2 * WIDTH,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "image_size": SIDE,
        "patch_size": 16,
        "initializer_range": 0.02,
    }
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": WIDTH,
        "intermediate_size": 2 * WIDTH,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 2 * LONGEST,
        "bos_token_id": tokenizer.convert_tokens_to_ids("[DEC]"),
        "eos_token_id": tokenizer.sep_token_id,
        "sep_token_id": tokenizer.sep_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    return BlipForConditionalGeneration(BlipConfig(vision_config=vision, text_config=text))


def build_tokenizer() -> BertTokenizerFast:
    """BERT's tokenizer over whole words: those of the vocabulary's categories and colours."""
    words = ["a", "an", "photo", "of", *ANCHORS]
    words += [part for word in vocabulary().of_kind("category") for part in word.tag.replace("-", " - ").split()]
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[DEC]"]
    tokens = {token: n for n, token in enumerate([*special, *dict.fromkeys(words)])}
    return BertTokenizerFast(vocab=tokens, do_lower_case=True, additional_special_tokens=["[DEC]"])


def train(options: TrainOptions) -> Path:
    """Train within the budget, export model, tokenizer and processor to `options.out`/blip; return that folder."""
    torch.manual_seed(options.seed)
    batch, lr = options.batch or 48, options.lr or 1e-3
    pictures, captions, categories = training_pictures(options)
    tokenizer = build_tokenizer()
    tokens = encode(tokenizer, captions)
    odds = sampling_odds(categories)
    model = build(tokenizer).to(options.device)

    def loss_of_step(step: int) -> Tensor:
        rng = step_rng(options, step)
        chosen = rng.choice(len(pictures), batch, p=odds)
        pixels = to_tensor(np.stack([augment(pictures[n], rng) for n in chosen])).to(options.device)
        ids = tokens[torch.from_numpy(chosen)].to(options.device)
        seen = (ids != tokenizer.pad_token_id).long()
        loss: Tensor = model(
            pixel_values=pixels, input_ids=ids, attention_mask=seen, labels=ids.masked_fill(seen == 0, -100)
        ).loss
        return loss

    result = fit(options, model, loss_of_step, batch=batch, lr=lr, weight_decay=0.05)
    assert isinstance(result.ema, BlipForConditionalGeneration)
    folder = options.out / "blip"
    result.ema.cpu().half().save_pretrained(folder)
    BlipProcessor(image_processor(), tokenizer).save_pretrained(folder)
    notes = "Held out by product:\n\n" + "\n".join(f"- {share}" for share in evaluate(options))
    write_card(folder, "blip", result.ema, options, {**result.figures, "pictures": len(pictures)}, notes)
    return folder


def image_processor() -> BlipImageProcessor:
    """Resizes pictures to a square, without their proportions, and scales them to -1..1."""
    return BlipImageProcessor(size={"height": SIDE, "width": SIDE}, image_mean=[0.5] * 3, image_std=[0.5] * 3)


def encode(tokenizer: BertTokenizerFast, captions: list[str]) -> Tensor:
    """(N, T) token ids: [DEC], the words, [SEP], padding."""
    ids = tokenizer(captions, padding=True, truncation=True, max_length=LONGEST, return_tensors="pt").input_ids
    ids[:, 0] = tokenizer.convert_tokens_to_ids("[DEC]")
    return ids


def sampling_odds(categories: list[str]) -> NDArray[np.float64]:
    """The sampling probability of each picture; a category's is proportional to the root of its frequency."""
    counts = {name: categories.count(name) for name in set(categories)}
    odds = np.array([counts[name] ** -0.5 for name in categories])
    return odds / odds.sum()


def training_pictures(options: TrainOptions) -> tuple[Pixels, list[str], list[str]]:
    """Photos, and cutouts composed into scenes: (N, 112, 112, 3) uint8, captions, categories."""
    photos, cutouts = labelled(options, "photos", "train"), labelled(options, "cutouts", "train")
    rng = np.random.default_rng(7)
    pictures, captions, categories = [], [], []
    for one in photos:
        picture = read_rgb(one.item.path)
        pictures.append(squeeze(picture))
        captions.append(photo_caption(one, picture))
        categories.append(one.category)
    for one in cutouts:
        product = load_product(one.item)
        colour, _ = dominant_colour((product.rgb * 255).astype(np.uint8), product.alpha)
        for _ in range(2 if one.item.source == "fluent-emoji-3d" else 5):
            shot = compose(draw_scene(rng), (160, 160), product, rng)
            image = np.clip(shot.image * 255, 0, 255).astype(np.uint8)
            pictures.append(squeeze(around(image, shot.mask, rng.uniform(0.05, 0.25))))
            captions.append(f"a photo of {with_article(f'{colour} {one.category}')}")
            categories.append(one.category)
    return np.stack(pictures), captions, categories


def photo_caption(one: Labelled, picture: Pixels) -> str:
    """The reference caption of a photo. Fruit and cartons are named without a colour, garments with it."""
    if one.item.source == "grocery-store":
        return f"a photo of {with_article(one.category)}"
    colour = vocabulary().find(one.item.name.rsplit(" ", 1)[-1], "colour") if one.item.source == "magento2" else ""
    if not colour:
        height, width = picture.shape[:2]
        middle = picture[int(0.35 * height) : int(0.65 * height), int(0.35 * width) : int(0.65 * width)]
        colour, share = dominant_colour(np.ascontiguousarray(middle))
        colour = colour if share > 0.5 else ""
    return f"a photo of {with_article(f'{colour} {one.category}'.strip())}"


def read_rgb(path: Path) -> Pixels:
    """(H, W, 3) uint8."""
    with Image.open(path) as file:
        return np.asarray(file.convert("RGB"))


def squeeze(picture: Pixels, side: int = PACKED) -> Pixels:
    """Resize the whole picture to a square, without its proportions, so that no tall garment is cut off."""
    return cv2.resize(picture, (side, side), interpolation=cv2.INTER_AREA).astype(np.uint8)


def around(image: Pixels, mask: NDArray[np.float32], margin: float) -> Pixels:
    """Crop `image` to the product, with a margin of this share of its size on every side."""
    rows, columns = np.flatnonzero(mask.max(axis=1) > 0.5), np.flatnonzero(mask.max(axis=0) > 0.5)
    extra = int(margin * max(rows[-1] - rows[0], columns[-1] - columns[0]))
    top, left = max(rows[0] - extra, 0), max(columns[0] - extra, 0)
    return image[top : rows[-1] + extra + 1, left : columns[-1] + extra + 1]


def augment(picture: Pixels, rng: np.random.Generator) -> Pixels:
    """Crop to 80 % or more, rotate slightly, mirror, and change the brightness; the colour keeps its name."""
    side, share = picture.shape[0], rng.uniform(0.8, 1.0)
    matrix = cv2.getRotationMatrix2D((side / 2, side / 2), rng.normal(0, 6), SIDE / (side * share))
    slack = side * (1 - share) / 2
    matrix[:, 2] += (SIDE - side) / 2 + rng.uniform(-slack, slack, 2) * SIDE / (side * share)
    if rng.random() < 0.5:
        matrix = np.array([[-1, 0, SIDE - 1], [0, 1, 0]], np.float64) @ np.vstack([matrix, [0, 0, 1]])
    moved = cv2.warpAffine(picture, matrix, (SIDE, SIDE), flags=cv2.INTER_AREA, borderMode=cv2.BORDER_REPLICATE)
    light = rng.uniform(0.85, 1.15) * moved.astype(np.float32) + rng.uniform(-12, 12)
    return np.clip(light, 0, 255).astype(np.uint8)


@dataclass(frozen=True, slots=True)
class Proportion:
    """How many of `n` are right, with Wilson's 95 % interval."""

    what: str
    right: int
    n: int

    def __str__(self) -> str:
        low, high = wilson(self.right, self.n)
        return f"{self.what}: {self.right / max(self.n, 1):.1%} ({self.right} of {self.n}, {low:.1%} to {high:.1%})"


def evaluate(options: TrainOptions) -> list[Proportion]:
    """Category top-1 and tag recall@5 on photos of held-out products, and the precision at confidence thresholds.

    Each threshold is set on one half of the products and measured on the other.
    """
    words = vocabulary()
    held_out, train = labelled(options, "photos", "test"), labelled(options, "photos", "train")
    known = {one.category for one in train}
    majority = max(known, key=[one.category for one in train].count)
    pictures = [read_rgb(one.item.path) for one in held_out]
    captions = Captioner(options.out / "blip", words).caption(pictures)
    shares = [
        Proportion("majority class", sum(one.category == majority for one in held_out), len(held_out)),
        Proportion("caption names the category", _right(held_out, captions), len(held_out)),
    ]
    pairs = [(one, c) for one, c in zip(held_out, captions, strict=True) if one.category in known]
    seen, said = [one for one, _ in pairs], [caption for _, caption in pairs]
    shares.append(Proportion("the same, categories that were trained on", _right(seen, said), len(seen)))
    sure = [(c.confidence, c.category == one.category) for one, c in zip(held_out, captions, strict=True)]
    shares += _calibrated("captions at least {:.2f} sure", held_out, sure)
    if (options.out / "clip" / "model.safetensors").exists():
        ranked = [
            [tag for tag in tags if tag.kind == "category"]
            for tags in Tagger(options.out / "clip", words).rank(pictures)
        ]
        pairs5 = list(zip(held_out, ranked, strict=True))
        shares.append(Proportion("first tag is right", sum(o.category == t[0].tag for o, t in pairs5), len(pairs5)))
        five = sum(o.category in {tag.tag for tag in tags[:5]} for o, tags in pairs5)
        shares.append(Proportion("tag recall@5", five, len(pairs5)))
        sure = [(tags[0].score, tags[0].tag == one.category) for one, tags in pairs5]
        shares += _calibrated("tags at least {:.2f} sure", held_out, sure)
    return shares


def _right(items: list[Labelled], captions: list[Caption]) -> int:
    return sum(one.category == caption.category for one, caption in zip(items, captions, strict=True))


def _calibrated(what: str, items: list[Labelled], sure: list[tuple[float, bool]]) -> list[Proportion]:
    """The lowest threshold at which 90 % of one half are right, and the figures of the other half there."""
    halves: tuple[list[tuple[float, bool]], list[tuple[float, bool]]] = ([], [])
    for one, score in zip(items, sure, strict=True):
        halves[zlib.crc32(product_of(one.item).encode()) % 2].append(score)
    for threshold in np.arange(0.3, 1.0, 0.01):
        kept = [right for score, right in halves[0] if score >= threshold]
        if kept and np.mean(kept) >= 0.9:
            break
    kept = [right for score, right in halves[1] if score >= threshold]
    name = what.format(threshold)
    return [
        Proportion(f"{name} are right", sum(kept), len(kept)),
        Proportion(f"{name} among all", len(kept), len(halves[1])),
    ]


if __name__ == "__main__":
    print("\n".join(f"- {share}" for share in evaluate(TrainOptions("blip"))))
