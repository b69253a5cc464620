"""The sampler: what each part changes, and that a shot is the same alone, in a batch and again."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, EulerDiscreteScheduler, UniPCMultistepScheduler
from diffusers import StableDiffusionInpaintPipeline as StockInpaintPipeline
from diffusers import StableDiffusionPipeline as StockPipeline
from peft import LoraConfig
from PIL import ImageOps

from pipelines.diffusion.control import canny_edges
from pipelines.diffusion.inpainting import InpaintingPipeline, latent_mask, masked_image
from tests.pipelines.diffusion.tiny_models import SIDE, difference, make_unet, product

STEPS = 3


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def pipeline(parts) -> InpaintingPipeline:
    return InpaintingPipeline(**parts.as_kwargs(), controlnets=[parts.controlnet])


def shoot(pipeline, image=None, mask=None, prompt="a lamp on a table", seed=0, **kwargs):
    default_image, default_mask = product()
    settings = {"num_inference_steps": STEPS, "guidance_scale": 3.0, "generator": seeded(seed)} | kwargs
    mask = default_mask if mask is None else mask
    return pipeline(default_image if image is None else image, mask, prompt, **settings).images[0]


def edges(colour="red"):
    image, mask = product(colour)
    return canny_edges(image, mask)


class TestSameInSameOut:
    def test_twice_gives_the_same_bytes(self, pipeline):
        assert (
            shoot(pipeline, control_images=[edges()]).tobytes() == shoot(pipeline, control_images=[edges()]).tobytes()
        )

    def test_alone_or_in_a_batch(self, pipeline):
        shots = [product("red"), product("green", shift=8), product("blue", shift=-8)]
        batch = pipeline(
            [image for image, _ in shots],
            [mask for _, mask in shots],
            ["a lamp", "a chair", "a vase"],
            num_inference_steps=STEPS,
            guidance_scale=3.0,
            generator=[seeded(1), seeded(2), seeded(3)],
            control_images=[[canny_edges(*shot) for shot in shots]],
        ).images
        alone = shoot(pipeline, *shots[1], "a chair", seed=2, control_images=[canny_edges(*shots[1])])
        assert difference(batch[1], alone) <= 2
        assert difference(batch[0], alone) > 2

    def test_pictures_of_one_shot_differ_and_the_first_is_the_single_one(self, pipeline):
        image, mask = product()
        call = {"num_inference_steps": STEPS, "guidance_scale": 3.0}
        two_shots = pipeline(
            [image, product("blue")[0]],
            mask,
            "a lamp on a table",
            num_images=2,
            generator=[seeded(0), seeded(5)],
            **call,
        ).images
        assert len(two_shots) == 4
        assert difference(two_shots[0], shoot(pipeline)) <= 2
        assert difference(two_shots[0], two_shots[1]) > 2
        assert difference(two_shots[2], shoot(pipeline, product("blue")[0], mask, seed=5)) <= 2


class TestEveryPartMatters:
    def test_prompt(self, pipeline):
        assert difference(shoot(pipeline), shoot(pipeline, prompt="zzz")) > 2

    def test_negative_prompt(self, pipeline):
        assert difference(shoot(pipeline), shoot(pipeline, negative_prompt="zzz")) > 2

    def test_seed(self, pipeline):
        assert difference(shoot(pipeline), shoot(pipeline, seed=1)) > 2

    def test_product(self, pipeline):
        assert difference(shoot(pipeline), shoot(pipeline, product("blue")[0])) > 2

    def test_brushnet(self, pipeline):
        assert difference(shoot(pipeline), shoot(pipeline, brushnet_scale=0)) > 2

    def test_controlnet_and_its_mask_guidance(self, pipeline):
        none = shoot(pipeline)
        full = np.ones((SIDE, SIDE), np.float32)
        guided = shoot(pipeline, control_images=[edges()])
        unguided = shoot(pipeline, control_images=[edges()], mask_guidance=False)
        assert difference(none, guided) > 2
        assert difference(guided, unguided) > 2
        assert shoot(pipeline, control_images=[edges()], control_masks=[full]).tobytes() == unguided.tobytes()
        assert shoot(pipeline, control_images=[edges()], control_masks=[None]).tobytes() == unguided.tobytes()
        assert shoot(pipeline, control_images=[edges()], control_scales=[0.0]).tobytes() == none.tobytes()
        assert shoot(pipeline, control_images=[edges()], control_masks=[full * 0]).tobytes() == none.tobytes()

    def test_lora_changes_the_picture_and_leaves_nothing_behind(self, pipeline, tmp_path):
        plain = shoot(pipeline)
        pipeline.load_lora(write_lora(tmp_path), scale=1.0)
        assert difference(shoot(pipeline), plain) > 2
        strong = shoot(pipeline)
        pipeline.unload_lora()
        assert shoot(pipeline).tobytes() == plain.tobytes()
        pipeline.load_lora(tmp_path, scale=0.2)
        assert difference(shoot(pipeline), strong) > 0
        pipeline.unload_lora()

    def test_a_lora_for_another_model_is_refused(self, pipeline, tmp_path):
        with pytest.raises(ValueError, match="found 0"):
            pipeline.load_lora(tmp_path)


def write_lora(folder, prefix: bool = False):
    unet = make_unet()
    unet.add_adapter(LoraConfig(r=4, lora_alpha=4, target_modules=["to_q", "to_k", "to_v"], init_lora_weights=False))
    unet.save_lora_adapter(folder)
    return folder


class TestControlEnds:
    def test_a_net_costs_nothing_after_its_end(self, pipeline, parts):
        calls = []
        hook = parts.controlnet.mid_block.register_forward_hook(lambda *_: calls.append(1))
        embeddings = []
        other = parts.controlnet.controlnet_cond_embedding.register_forward_hook(lambda *_: embeddings.append(1))
        shoot(pipeline, control_images=[edges()], control_ends=[0.5], num_inference_steps=4)
        hook.remove()
        other.remove()
        assert (len(calls), len(embeddings)) == (2, 1)

    def test_brushnet_runs_once_for_both_halves(self, pipeline, parts):
        batches = []
        hook = parts.brushnet.conv_in_condition.register_forward_hook(lambda m, args, out: batches.append(len(out)))
        shoot(pipeline)
        hook.remove()
        assert batches == [1] * STEPS


class TestMethods:
    @pytest.mark.parametrize("method", ["blended", "soft"])
    @pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
    def test_blends_keep_the_product(self, parts, method, prediction):
        scheduler = DDIMScheduler(**parts.scheduler_config | {"prediction_type": prediction})
        pipeline = InpaintingPipeline(**parts.as_kwargs() | {"scheduler": scheduler}, method=method)
        image, mask = product()
        original = pipeline._encode_image(torch.from_numpy(np.array(image)).permute(2, 0, 1)[None] / 127.5 - 1)
        latents = pipeline(image, mask, "a lamp", num_inference_steps=STEPS, generator=seeded()).latents
        # the last step of this schedule ends just short of noise-free, and soft blending happens before it
        assert torch.allclose(latents[..., 3:6, 3:5], original[..., 3:6, 3:5], atol=0.1 if method == "soft" else 1e-3)
        assert not torch.allclose(latents[..., :2, :2], original[..., :2, :2], atol=0.5)

    def test_without_a_branch_it_is_plain_text_to_image(self, parts, pipeline):
        stock = StockPipeline(
            parts.vae,
            parts.text_encoder,
            parts.tokenizer,
            parts.unet,
            parts.scheduler,
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
        stock.set_progress_bar_config(disable=True)
        expected = stock(
            "a lamp on a table",
            height=SIDE,
            width=SIDE,
            num_inference_steps=STEPS,
            guidance_scale=3.0,
            generator=seeded(),
            output_type="latent",
        ).images
        image, mask = product()
        call = {"num_inference_steps": STEPS, "guidance_scale": 3.0, "generator": seeded(), "brushnet_scale": 0}
        ours = pipeline(image, mask, "a lamp on a table", **call).latents
        assert torch.allclose(ours, expected, atol=1e-4)

    def test_inpaint9_is_the_stock_inpainting_pipeline(self, parts):
        unet = make_unet(in_channels=9)
        stock = StockInpaintPipeline(
            parts.vae,
            parts.text_encoder,
            parts.tokenizer,
            unet,
            parts.scheduler,
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
        stock.set_progress_bar_config(disable=True)
        pipeline = InpaintingPipeline(**parts.as_kwargs() | {"unet": unet}, method="inpaint9")
        image, mask = product()
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None] / 127.5 - 1
        paint = ImageOps.invert(mask)
        call = {"num_inference_steps": STEPS, "guidance_scale": 3.0}
        expected = stock(
            "a lamp",
            image=image,
            mask_image=paint,
            # the stock pipeline draws these from the autoencoder's distribution, ours takes its mode
            masked_image_latents=pipeline._encode_image(pixels * (torch.from_numpy(np.array(paint)) < 128)),
            latents=torch.randn(1, 4, SIDE // 8, SIDE // 8, generator=seeded()),
            height=SIDE,
            width=SIDE,
            strength=1.0,
            output_type="latent",
            **call,
        ).images
        ours = pipeline(image, mask, "a lamp", generator=seeded(), **call)
        assert torch.allclose(ours.latents, expected, atol=1e-4)
        again = pipeline(image, mask, "a lamp", generator=seeded(), **call)
        assert again.images[0].tobytes() == ours.images[0].tobytes()
        other = pipeline(product("blue")[0], mask, "a lamp", generator=seeded(), **call)
        assert difference(other.images[0], ours.images[0]) > 2

    @pytest.mark.parametrize(
        "scheduler", [DPMSolverMultistepScheduler, UniPCMultistepScheduler, EulerDiscreteScheduler]
    )
    @pytest.mark.parametrize("method", ["brushnet", "blended", "soft"])
    def test_other_schedulers(self, parts, scheduler, method):
        config = {k: v for k, v in parts.scheduler_config.items() if k.startswith("beta")}
        pipeline = InpaintingPipeline(**parts.as_kwargs() | {"scheduler": scheduler(**config)}, method=method)
        picture = shoot(pipeline)
        assert picture.tobytes() == shoot(pipeline).tobytes()
        assert np.asarray(picture).std() > 1

    def test_zero_terminal_snr(self, parts):
        scheduler = DDIMScheduler(
            **parts.scheduler_config
            | {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
        )
        for method in ("brushnet", "blended", "soft"):
            pipeline = InpaintingPipeline(**parts.as_kwargs() | {"scheduler": scheduler}, method=method)
            image, mask = product()
            latents = pipeline(image, mask, "a lamp", num_inference_steps=STEPS, generator=seeded()).latents
            assert torch.isfinite(latents).all()

    def test_low_strength_stays_near_the_original(self, parts):
        pipeline = InpaintingPipeline(**parts.as_kwargs(), method="blended")
        image, mask = product()
        call = {"num_inference_steps": 10, "guidance_scale": 1.0}
        original = pipeline._encode_image(torch.from_numpy(np.array(image)).permute(2, 0, 1)[None] / 127.5 - 1)
        steps = []
        weak, strong = (
            pipeline(
                image, mask, "a", strength=strength, generator=seeded(), callback=lambda *s: steps.append(s), **call
            ).latents
            for strength in (0.2, 1.0)
        )
        assert (weak - original).abs().mean() < (strong - original).abs().mean()
        assert steps[:2] == [(1, 2), (2, 2)]
        assert len(steps) == 12

    def test_how_the_mask_comes_to_brushnet(self, parts):
        image, mask = product()
        slanted = mask.rotate(20)  # so that cells of the latents are product in part
        brushnet = copy.deepcopy(parts.brushnet)
        with torch.no_grad():
            brushnet.conv_in_condition.weight[:, -1] = 0.3  # an untrained one has nought there

        def latents(**option):
            pipeline = InpaintingPipeline(**parts.as_kwargs() | {"brushnet": brushnet})
            return pipeline(image, slanted, "a", num_inference_steps=2, generator=seeded(), **option).latents

        cubic, nearest = latents(brushnet_mask="bicubic"), latents(brushnet_mask="nearest")
        assert torch.equal(cubic, latents())
        assert not torch.equal(cubic, nearest)

    @pytest.mark.parametrize("kind", ["tile", "depth"])
    def test_a_control_that_no_mask_suits_is_refused_unless_it_is_not_masked(self, parts, kind):
        pipeline = InpaintingPipeline(**parts.as_kwargs(), controlnets=[parts.controlnet], control_kinds=[kind])
        with pytest.raises(ValueError, match=f"does not suit a {kind} ControlNet"):
            shoot(pipeline, control_images=[edges()])
        shoot(pipeline, control_images=[edges()], mask_guidance=False)

    def test_brushnet_needs_its_net(self, parts):
        with pytest.raises(ValueError, match="needs a BrushNet"):
            InpaintingPipeline(**parts.as_kwargs() | {"brushnet": None})


class TestInput:
    def test_a_picture_of_another_size_is_resampled(self, pipeline):
        image, mask = product()
        picture = shoot(pipeline, image.resize((128, 128)), mask.resize((128, 128)), height=64, width=64)
        assert picture.size == (64, 64)

    def test_shots_of_two_sizes_are_resampled_to_the_size_that_is_named(self, pipeline):
        (image, mask), larger = product(), tuple(one.resize((128, 128)) for one in product())
        both = dict.fromkeys(("height", "width"), SIDE) | {"generator": [seeded(), seeded()], "num_inference_steps": 1}
        made = pipeline([image, larger[0]], [mask, larger[1]], "a mug", **both).images
        assert [one.size for one in made] == [(SIDE, SIDE)] * 2

    @pytest.mark.parametrize(
        ("wrong", "message"),
        [
            ({"height": 60}, "multiples of 8"),
            ({"height": 0}, "multiples of 8"),
            ({"strength": 0.0}, "strength"),
            ({"num_inference_steps": 0}, "num_inference_steps"),
            ({"num_images": 0}, "num_images"),
            ({"image": []}, "no image"),
            ({"image": [product()[0], product()[0].resize((128, 64))]}, "one size, got 64 x 64, 64 x 128"),
            ({"mask": []}, "got none"),
            ({"brushnet_mask": "area"}, "bicubic or nearest"),
            ({"control_images": [edges()], "mask_resize": "nearest"}, "area, max, bilinear"),
            ({"control_images": edges()}, "one entry a ControlNet"),
            ({"control_images": [edges()], "control_starts": [0.9], "control_ends": [0.1]}, "start <= end"),
            ({"control_images": [edges()], "control_ends": [5.0]}, "start <= end"),
            ({"prompt": ["a", "b"]}, "one prompt"),
            ({"generator": [seeded(), seeded()]}, "1 generators"),
            ({"control_images": []}, None),
            ({"control_images": [edges(), edges()]}, "1 ControlNets"),
            ({"control_images": [edges()], "control_scales": [1.0, 1.0]}, "control_scales"),
            ({"mask": torch.full((1, 1, SIDE, SIDE), 255.0)}, "0..1"),
        ],
    )
    def test_what_does_not_fit_is_refused(self, pipeline, wrong, message):
        if message is None:
            shoot(pipeline, **wrong)
            return
        with pytest.raises(ValueError, match=message):
            shoot(pipeline, **wrong)

    def test_mask_is_one_for_the_product(self):
        pixels, mask = torch.ones(1, 3, 16, 16), torch.zeros(1, 1, 16, 16)
        mask[..., :8] = 1
        seen = masked_image(pixels, mask)
        assert (seen[..., :8] == 1).all()
        assert (seen[..., 8:] == -1).all()
        for interpolation in ("bicubic", "nearest"):
            small = latent_mask(mask, (2, 2), interpolation)
            assert torch.allclose(small, torch.tensor([[1.0, 0.0]]).expand(1, 1, 2, 2), atol=0.1)
