"""Train the bundled CLIP (Radford et al. 2021): its text tower conditions the UNet, both towers rank the vocabulary.

The loss is contrastive over composed scenes with their captions and over labelled photos. A row's target is spread over
equal captions of the batch. The text tower is first trained with the UNet (`unet.train_at`). If an exported model
exists, the text tower is frozen here, because the UNet depends on it.
"""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from torch import Tensor
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor, CLIPTokenizer

from pipelines.errors import UsageError
from pipelines.training.autoencoder import to_tensor
from pipelines.training.card import write_card
from pipelines.training.categories import labelled, vocabulary
from pipelines.training.composer import COLOURS, LIGHTS, MATERIALS, PROPS, ComposedScene, caption_of
from pipelines.training.data import Composer, load_square, read_index, shot_pack
from pipelines.training.loop import TrainOptions, fit, step_rng

CONTEXT = 48
WIDTH = 128
SIDE = 96
VOCABULARY = 2400
SHOTS = 16_000
PHOTO = "a photo of {}"


def build(tokenizer: CLIPTokenizer) -> CLIPModel:
    """Two small towers: text 4 x 128 with `CONTEXT` positions, image 4 x 192 over 36 patches of 16 px."""
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": WIDTH,
        "intermediate_size": 4 * WIDTH,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "max_position_embeddings": CONTEXT,
        "projection_dim": WIDTH,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    vision = {
        "hidden_size": 192,
        "intermediate_size": 576,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "image_size": SIDE,
        "patch_size": 16,
        "projection_dim": WIDTH,
    }
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=WIDTH))


def build_tokenizer(texts: Sequence[str]) -> CLIPTokenizer:
    """Learn byte-pair merges from `texts`; every byte keeps a token, so any catalogue title can be encoded."""
    backend = Tokenizer(models.BPE(end_of_word_suffix="</w>", continuing_subword_prefix=""))
    backend.normalizer = normalizers.Lowercase()
    backend.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Whitespace(), pre_tokenizers.ByteLevel(False)])
    backend.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, initial_alphabet=alphabet, end_of_word_suffix="</w>", show_progress=False
    )
    backend.train_from_iterator(texts, trainer)
    merges: list[tuple[str, str]] = [tuple(pair) for pair in json.loads(backend.to_str())["model"]["merges"]]
    tokens = [*alphabet, *(f"{letter}</w>" for letter in alphabet), *("".join(pair) for pair in merges)]
    vocabulary = {token: n for n, token in enumerate(dict.fromkeys(tokens))}
    for special in ("<|startoftext|>", "<|endoftext|>"):
        vocabulary[special] = len(vocabulary)
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=CONTEXT)


def train(options: TrainOptions) -> Path:
    """Train within the budget and export model, tokenizer and processor to `options.out`/clip; return that folder."""
    torch.manual_seed(options.seed)
    folder = options.out / "clip"
    batch, lr = options.batch or 64, options.lr or 1e-3
    pack = shot_pack(options.work / "shots", options.data, 128, SHOTS)
    photos, labels = labelled_photos(options)
    if (folder / "model.safetensors").exists():
        tokenizer, model = CLIPTokenizer.from_pretrained(folder), CLIPModel.from_pretrained(folder).float()
        model.text_model.requires_grad_(False)
        if options.resume:
            check_text_tower(options.folder / "checkpoint.pt", model)
    else:
        tokenizer = prepare_tokenizer(options)
        model = build(tokenizer)
    model = model.to(options.device)

    def loss_of_step(step: int) -> Tensor:
        rng = step_rng(options, step)
        half = batch // 2
        shots, real = rng.integers(0, len(pack), batch - half), rng.integers(0, len(photos), half)
        pictures = np.stack([_cut(pack.image(int(n)), rng) for n in shots] + [_cut(photos[int(n)], rng) for n in real])
        texts = [shorten(pack.captions[int(n)], rng) for n in shots] + [PHOTO.format(labels[n]) for n in real]
        tokens = tokenizer(texts, padding="max_length", truncation=True, max_length=CONTEXT, return_tensors="pt")
        logits = model(
            input_ids=tokens.input_ids.to(options.device),
            attention_mask=tokens.attention_mask.to(options.device),
            pixel_values=to_tensor(pictures).to(options.device),
        ).logits_per_image
        return contrastive_loss(logits, texts)

    result = fit(options, model, loss_of_step, batch=batch, lr=lr, weight_decay=0.05)
    ema = result.ema.cpu()
    assert isinstance(ema, CLIPModel)
    export(ema, tokenizer, options)
    figures = {**result.figures, **evaluate(ema, tokenizer, options)}
    write_card(folder, "clip", ema, options, figures)
    return folder


def check_text_tower(checkpoint: Path, model: CLIPModel) -> None:
    """Raise UsageError if a checkpoint's text tower differs from `model`'s, with which the UNet was trained."""
    if not checkpoint.exists():
        return
    stored = torch.load(checkpoint, weights_only=True, map_location="cpu")["model"]
    if any(not value.equal(stored[f"text_model.{name}"]) for name, value in model.text_model.state_dict().items()):
        raise UsageError(
            f"{checkpoint}: has another text tower than the exported CLIP, which the UNet learnt with; remove "
            "the checkpoint, or train with --no-resume"
        )


def export(model: CLIPModel, tokenizer: CLIPTokenizer, options: TrainOptions) -> None:
    """Write model, tokenizer and processors into `options.out`/clip."""
    folder = options.out / "clip"
    copy.deepcopy(model).half().save_pretrained(folder)
    CLIPProcessor(_image_processor(), tokenizer).save_pretrained(folder)
    _image_processor().save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def prepare_tokenizer(options: TrainOptions) -> CLIPTokenizer:
    """The tokenizer learnt from composed captions, the names of all training pictures and the vocabulary; learnt once
    into the work folder."""
    learnt = options.work / "tokenizer"
    if (learnt / "tokenizer.json").exists():
        return CLIPTokenizer.from_pretrained(learnt)
    names = [item.name for folder in ("photos", "cutouts") for item in read_index(options.data, folder)]
    captions = shot_pack(options.work / "shots", options.data, 128, SHOTS).captions
    tags = [word.sentence for word in vocabulary().words] * 4  # the tagger compares pictures with them
    photos = [PHOTO.format(name) for name in names]
    tokenizer = build_tokenizer([*captions, *every_caption_word(), *tags, *photos])
    tokenizer.save_pretrained(learnt)
    return tokenizer


def contrastive_loss(logits: Tensor, texts: Sequence[str]) -> Tensor:
    """Symmetric cross-entropy of `logits` (N images, N texts); equal texts share the target."""
    same = torch.tensor([[one == other for other in texts] for one in texts], dtype=torch.float32, device=logits.device)
    target = same / same.sum(dim=1, keepdim=True)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def shorten(caption: str, rng: np.random.Generator) -> str:
    """Drop clauses of a composed caption at random, so that CLIP learns short prompts too."""
    if rng.random() < 0.5:
        return caption
    subject, _, rest = caption.partition(" on ")
    clauses = rest.split(", ")
    place = clauses[0].split(" against ")
    kept = [f"on {place[0]}"] if rng.random() < 0.7 else []
    kept += [f"against {place[1]}"] if len(place) > 1 and rng.random() < 0.7 else []
    words = " ".join([subject, *kept])
    return ", ".join([words, *(clause for clause in clauses[1:] if rng.random() < 0.7)])


def every_caption_word() -> list[str]:
    """Captions that together contain every word of the composer, for the tokenizer."""
    names = [*COLOURS, *MATERIALS]
    base = ComposedScene("white", "white", "left", "none", "white", 0.6, 0.01, 0.8, 0.5, 0.5, 0.2, 0.0)
    return [
        caption_of(dataclasses.replace(base, wall=name, floor=name, accent=name, prop=prop, light=light), "product")
        for name in names
        for prop in PROPS
        for light in LIGHTS
    ] * 4


def labelled_photos(options: TrainOptions) -> tuple[NDArray[np.uint8], list[str]]:
    """The labelled product photos, (N, 112, 112, 3) uint8, packed once in the work folder, and their categories."""
    items = labelled(options, "photos", "train")
    packed = options.folder / "labelled.npy"
    if not packed.exists():
        np.save(packed, np.stack([load_square(one.item.path, 112) for one in items]))
    return np.load(packed, mmap_mode="r"), [one.category for one in items]


@torch.no_grad()
def evaluate(model: CLIPModel, tokenizer: CLIPTokenizer, options: TrainOptions, count: int = 400) -> dict[str, float]:
    """Figures on held-out composed shots.

    Returns:
        `wall_accuracy` and `floor_accuracy`: the share of shots whose name is ranked first. `own_caption_nearer`: how
        often the own caption is nearer than another shot's; `own_scene_nearer`: how often it is nearer than the own
        product in another scene. Chance is 0.5.
    """
    composer = Composer(options.data, "test", seed=21)
    shots = [composer.shot(n, (128, 128)) for n in range(count)]
    pictures = np.stack([_cut(np.round(shot.image * 255).astype(np.uint8), None) for shot in shots])
    images = F.normalize(model.get_image_features(pixel_values=to_tensor(pictures)).pooler_output, dim=-1)
    captions = _words(model, tokenizer, [shot.caption for shot in shots])
    agreements = images @ captions.T
    nearer = (agreements < agreements.diag()[:, None]).float().sum() / (count * (count - 1))
    own = [shot.caption.partition(" on ")[0] for shot in shots]
    elsewhere = [shots[(n + 1) % count].caption.partition(" on ")[2] for n in range(count)]
    moved = _words(model, tokenizer, [f"{product} on {scene}" for product, scene in zip(own, elsewhere, strict=True)])
    rightly = (images * captions).sum(dim=1) > (images * moved).sum(dim=1)
    figures = {
        "own_caption_nearer": round(float(nearer), 3),
        "own_scene_nearer": round(float(rightly.float().mean()), 3),
    }
    for place, names in (("wall", [*COLOURS, "concrete", "linen"]), ("floor", [*COLOURS, *MATERIALS])):
        texts = [f"{'against' if place == 'wall' else 'on'} a {name} {place}" for name in names]
        words = _words(model, tokenizer, [f"a photo of a product {text}" for text in texts])
        best = (images @ words.T).argmax(dim=1).tolist()
        right = [f"{names[b]} {place}" in shot.caption for b, shot in zip(best, shots, strict=True)]
        figures[f"{place}_accuracy"] = round(float(np.mean(right)), 3)
    return figures


def _words(model: CLIPModel, tokenizer: CLIPTokenizer, texts: list[str]) -> Tensor:
    tokens = tokenizer(texts, padding="max_length", truncation=True, max_length=CONTEXT, return_tensors="pt")
    return F.normalize(model.get_text_features(**tokens).pooler_output, dim=-1)


def _image_processor() -> CLIPImageProcessor:
    return CLIPImageProcessor(
        size={"shortest_edge": SIDE},
        crop_size={"height": SIDE, "width": SIDE},
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )


def _cut(picture: NDArray[np.uint8], rng: np.random.Generator | None) -> NDArray[np.uint8]:
    """Reduce a square picture to `SIDE` px; with `rng`, a random crop of 90 % or more, blurred in half of the cases.

    Painted pictures are less sharp than photos; the blur keeps CLIP from using sharpness.
    """
    side = picture.shape[0]
    if rng is not None:
        crop = int(rng.integers(int(0.9 * side), side + 1))
        top, left = rng.integers(0, side - crop + 1, 2)
        picture = picture[top : top + crop, left : left + crop]
        if rng.random() < 0.5:
            picture = cv2.GaussianBlur(picture, (0, 0), float(rng.uniform(0.3, 2.0))).astype(np.uint8)
    return cv2.resize(picture, (SIDE, SIDE), interpolation=cv2.INTER_AREA).astype(np.uint8)
