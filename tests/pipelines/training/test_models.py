"""The architectures that the bundled models share with SD 1.5, and what their trainers promise."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers import ControlNetModel

from pipelines.diffusion.brushnet import BrushNetModel
from pipelines.training import autoencoder, clip, controlnet, unet


def test_the_unet_has_the_outputs_of_sd15():
    model = unet.build()
    branch = BrushNetModel.from_unet(model)
    net = ControlNetModel.from_unet(model, conditioning_embedding_out_channels=controlnet.EMBEDDING)
    latents, states = torch.zeros(1, 4, 16, 16), torch.zeros(1, clip.CONTEXT, clip.WIDTH)
    with torch.no_grad():
        down, mid = net(latents, 1, states, torch.zeros(1, 3, 128, 128), return_dict=False)
        branch_down, _, branch_up = branch(latents, 1, None, torch.zeros(1, 5, 16, 16))
    assert len(down) + 1 == 13
    assert mid.shape[1] == unet.WIDTHS[-1]
    assert len(branch_down) + 1 + len(branch_up) == 28


def test_folding_normalises_the_latents_and_keeps_the_pictures():
    torch.manual_seed(0)
    model = autoencoder.build().eval()
    images = torch.rand(6, 3, 64, 64) * 2 - 1
    with torch.no_grad():
        before = model.decode(model.encode(images).latent_dist.mode()).sample
        autoencoder.fold_normalisation(model, images)
        posterior = model.encode(images).latent_dist
        after = model.decode(posterior.mode()).sample
    latents = posterior.mode()
    assert latents.mean(dim=(0, 2, 3)).tolist() == pytest.approx([0] * 4, abs=1e-3)
    assert latents.std(dim=(0, 2, 3)).tolist() == pytest.approx([1] * 4, abs=1e-3)
    assert torch.allclose(before, after, atol=1e-3)
    assert posterior.std.max() < 0.003


def test_the_scheduler_ends_in_pure_noise_and_clips_nothing():
    scheduler = unet.build_scheduler()
    assert scheduler.alphas_cumprod[-1] < 1e-6
    assert scheduler.config.clip_sample is False
    scheduler.set_timesteps(20)
    assert scheduler.timesteps[0] == 999


def test_the_tokenizer_writes_any_title_and_keeps_its_words(tmp_path):
    texts = ["a photo of a mug on an oak wood floor against a sage green wall, soft light from the left"] * 20
    tokenizer = clip.build_tokenizer(texts)
    tokenizer.save_pretrained(tmp_path)
    from transformers import AutoTokenizer

    loaded = AutoTokenizer.from_pretrained(tmp_path)
    title = "Crème brûlée set №4, 30 × 20 cm"
    assert tokenizer.unk_token_id not in loaded(title).input_ids[1:-1]
    assert loaded.decode(loaded(texts[0]).input_ids, skip_special_tokens=True).replace(" ,", ",") == texts[0]
    assert loaded.model_max_length == clip.CONTEXT


def test_a_shortened_caption_says_nothing_new():
    caption = (
        "a photo of a mug on a white floor against a pink wall, soft light from the left, plant shadow on the wall"
    )
    for seed in range(30):
        short = clip.shorten(caption, np.random.default_rng(seed))
        assert short.startswith("a photo of a mug")
        for clause in short.split(", ")[1:]:
            assert clause in caption
