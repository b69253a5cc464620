"""Every method of the table, on SD 1.5 and on SDXL: the same again, the same in a batch, at odd sizes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EDMEulerScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    HeunDiscreteScheduler,
    LCMScheduler,
    PNDMScheduler,
    StableDiffusionControlNetPipeline,
    StableDiffusionXLControlNetPipeline,
    UniPCMultistepScheduler,
)
from PIL import Image

from pipelines.diffusion.control import canny_edges
from pipelines.diffusion.inpainting import METHODS, InpaintingPipeline
from pipelines.diffusion.inputs import as_masks, as_pixels
from pipelines.diffusion.mask_guidance import MaskGuidedControlNet
from pipelines.diffusion.masking import inpaint_condition
from tests.pipelines.diffusion.tiny_models import SIDE, Parts, difference, product

CALL = {"num_inference_steps": 3, "guidance_scale": 3.0}
ROWS = [("sd15", method) for method in METHODS if method != "fooocus"] + [("sdxl", method) for method in METHODS]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(params=ROWS, ids=["-".join(row) for row in ROWS])
def row(request, parts, sdxl_parts) -> tuple[Parts, str]:
    family, method = request.param
    return {"sd15": parts, "sdxl": sdxl_parts}[family], method


def shots() -> tuple[list[Image.Image], list[Image.Image]]:
    images, masks = zip(product("red"), product("green", shift=8), product("blue", shift=-8), strict=True)
    return list(images), list(masks)


def with_two_controls(images, masks, only: int | None = None) -> dict:
    """Two ControlNets, each with its own image, mask, scale, start and end; of all shots, or of one."""
    edges = [canny_edges(*shot) for shot in zip(images, masks, strict=True)]
    region = torch.zeros(3, 1, SIDE, SIDE)
    region[:, :, 16:40] = torch.tensor([0.3, 0.6, 1.0])[:, None, None, None]
    picked = slice(None) if only is None else slice(only, only + 1)
    return {
        "control_images": [edges[picked], images[picked]],
        "control_masks": [None, region[picked]],
        "control_scales": [0.7, 1.2],
        "control_starts": [0.0, 0.3],
        "control_ends": [0.7, 1.0],
    }


def test_the_same_call_twice_gives_the_same_bytes_and_a_shot_is_the_same_alone_or_in_a_batch(row):
    parts, method = row
    pipeline = parts.pipeline(method, controls=2)
    images, masks = shots()
    prompts, negatives = ["a lamp", "a chair", "a vase"], ["", "blue", ""]
    batch, again = (
        pipeline(
            images, masks, prompts, negatives, generator=[seeded(1), seeded(2), seeded(3)],
            **with_two_controls(images, masks), **CALL,
        ).images
        for _ in range(2)
    )  # fmt: skip
    assert [one.tobytes() for one in batch] == [one.tobytes() for one in again]
    for n in range(3):
        alone = pipeline(
            images[n], masks[n], prompts[n], negatives[n], generator=seeded(n + 1),
            **with_two_controls(images, masks, only=n), **CALL,
        ).images[0]  # fmt: skip
        assert difference(batch[n], alone) <= 2
        assert difference(batch[n - 1], alone) > 2


def test_product_seed_and_prompt_matter(row):
    parts, method = row
    pipeline = parts.pipeline(method)
    image, mask = product()
    picture = pipeline(image, mask, "a lamp", generator=seeded(), **CALL).images[0]
    assert difference(picture, pipeline(image, mask, "a lamp", generator=seeded(1), **CALL).images[0]) > 2
    assert difference(picture, pipeline(image, mask, "zzz", generator=seeded(), **CALL).images[0]) > 2
    blue = pipeline(product("blue")[0], mask, "a lamp", generator=seeded(), **CALL).images[0]
    assert difference(picture, blue) > 2


def test_what_is_outside_the_mask_is_not_looked_at(row):
    parts, method = row
    if METHODS[method].blend is not None:
        pytest.skip("blends start from the whole original, and reach the scene through the autoencoder")
    pipeline = parts.pipeline(method)
    image, mask = product()
    littered = image.copy()
    littered.paste("yellow", (0, 0, 12, 60))
    pictures = [pipeline(one, mask, "a lamp", generator=seeded(), **CALL).images[0] for one in (image, littered)]
    assert pictures[0].tobytes() == pictures[1].tobytes()


@pytest.mark.parametrize("size", [(72, 104), (88, 56)])
def test_odd_latents(row, size):
    parts, method = row
    pipeline = parts.pipeline(method, controls=1)
    image, mask = (one.resize((size[1], size[0])) for one in product())
    call = {"control_images": [canny_edges(image, mask)], **CALL}
    batch = pipeline([image, image], mask, "a lamp", generator=[seeded(0), seeded(1)], **call)
    assert batch.latents.shape == (2, 4, size[0] // 8, size[1] // 8)
    assert batch.images[0].size == (size[1], size[0])
    alone = pipeline(image, mask, "a lamp", generator=seeded(1), **call).images[0]
    assert difference(batch.images[1], alone) <= 2
    assert np.asarray(alone).std() > 1


SCHEDULERS = {
    "ddim": DDIMScheduler,
    "dpm++": DPMSolverMultistepScheduler,
    "unipc": UniPCMultistepScheduler,
    "euler": EulerDiscreteScheduler,
    "euler_a": EulerAncestralDiscreteScheduler,
    "heun": HeunDiscreteScheduler,
    "lcm": LCMScheduler,
    "pndm": PNDMScheduler,
}


def scheduler_named(name: str, parts: Parts):
    config = {key: value for key, value in parts.scheduler_config.items() if key.startswith("beta")}
    return SCHEDULERS[name](**config, **({"skip_prk_steps": True} if name == "pndm" else {}))


@pytest.mark.parametrize("name", SCHEDULERS)
@pytest.mark.parametrize("method", ["brushnet", "blended", "soft"])
def test_any_scheduler_that_suits(parts, name, method):
    pipeline = parts.pipeline(method)
    pipeline.scheduler = scheduler_named(name, parts)
    images, masks = shots()
    call = {"num_inference_steps": 4, "guidance_scale": 3.0}
    batch = pipeline(images, masks, "a lamp", generator=[seeded(n) for n in range(3)], **call)
    assert torch.isfinite(batch.latents).all()
    assert np.asarray(batch.images[1]).std() > 1
    alone = pipeline(images[1], masks[1], "a lamp", generator=seeded(1), **call)
    assert difference(batch.images[1], alone.images[0]) <= 2
    again = pipeline(images[1], masks[1], "a lamp", generator=seeded(1), **call)
    assert again.images[0].tobytes() == alone.images[0].tobytes()


@pytest.mark.parametrize("name", SCHEDULERS)
def test_every_scheduler_keeps_the_product_of_a_hard_blend(parts, name):
    pipeline = parts.pipeline("blended")
    pipeline.scheduler = scheduler_named(name, parts)
    image, mask = product()
    original = pipeline._encode_image(torch.from_numpy(np.array(image)).permute(2, 0, 1)[None] / 127.5 - 1)
    for strength in (1.0, 0.5):
        latents = pipeline(image, mask, "a lamp", generator=seeded(), strength=strength, **CALL).latents
        assert torch.allclose(latents[..., 3:6, 3:5], original[..., 3:6, 3:5], atol=1e-3)


@pytest.mark.parametrize(
    ("scheduler", "message"),
    [
        (FlowMatchEulerDiscreteScheduler(), "no alphas_cumprod, so it is for models of flow matching or EDM"),
        (EDMEulerScheduler(), "EDMEulerScheduler does not suit"),
        (UniPCMultistepScheduler(use_flow_sigmas=True, prediction_type="flow_prediction"), "for flow matching"),
    ],
    ids=["flow matching", "EDM", "UniPC of flow matching"],
)
def test_a_scheduler_that_does_not_suit_says_so(parts, scheduler, message):
    with pytest.raises(ValueError, match=message):
        InpaintingPipeline(**parts.as_kwargs() | {"scheduler": scheduler})
    pipeline = parts.pipeline("brushnet")
    with pytest.raises(ValueError, match=message):
        pipeline.scheduler = scheduler


class TestSeveralControlNets:
    def test_each_runs_in_its_own_share_of_the_steps(self, parts):
        pipeline = parts.pipeline("brushnet", controls=2)
        ran: dict[int, list[int]] = {0: [], 1: []}
        done = [0]
        hooks = [
            net.mid_block.register_forward_hook(lambda *_, n=n: ran[n].append(done[0]))
            for n, net in enumerate(pipeline.controlnets)
        ]
        image, mask = product()
        pipeline(
            image, mask, "a lamp", generator=seeded(), num_inference_steps=4, control_images=[image, image],
            control_starts=[0.0, 0.25], control_ends=[0.5, 1.0], callback=lambda step, _: done.__setitem__(0, step),
        )  # fmt: skip
        for hook in hooks:
            hook.remove()
        assert ran == {0: [0, 1], 1: [1, 2, 3]}

    def test_each_has_its_own_mask_and_scale_and_they_add_up(self, parts):
        pipeline = parts.pipeline("brushnet", controls=2)
        image, mask = product()
        edges = canny_edges(image, mask)
        nothing = np.zeros((SIDE, SIDE), np.float32)

        def shoot(images, **other):
            call = {"control_images": images, "generator": seeded(), **CALL}
            return pipeline(image, mask, "a lamp", **call | other).images[0]

        both = shoot([edges, image])
        first = shoot([edges, image], control_scales=[1.0, 0.0])
        second = shoot([edges, image], control_scales=[0.0, 1.0])
        assert min(difference(both, first), difference(both, second), difference(first, second)) > 2
        assert shoot([edges, image], control_masks=[mask, nothing]).tobytes() == first.tobytes()
        assert shoot([edges, image], control_masks=[nothing, mask]).tobytes() == second.tobytes()

    def test_one_that_came_masked_keeps_its_mask_and_options(self, parts):
        pipeline = parts.pipeline("brushnet", controls=1)
        [net] = pipeline.controlnets
        image, mask = product()

        def shoot(**other):
            call = {"control_images": [image], "generator": seeded(), **CALL}
            return pipeline(image, mask, "a lamp", **call | other).images[0]

        free, none = shoot(mask_guidance=False), shoot(control_scales=[0.0])
        pipeline.controlnets = (MaskGuidedControlNet(net, torch.zeros(1, 1, SIDE, SIDE)),)
        assert shoot().tobytes() == none.tobytes()
        assert difference(free, none) > 2


class TestControlNetThatInpaints:
    def test_it_is_the_stock_pipeline_with_the_published_condition(self, parts):
        pipeline = parts.pipeline("controlnet_inpaint")
        image, mask = product()
        # as the card of lllyasviel/control_v11p_sd15_inpaint makes it
        condition = np.array(image).astype(np.float32) / 255.0
        condition[(255 - np.array(mask)) / 255.0 > 0.5] = -1.0
        stock = StableDiffusionControlNetPipeline(
            parts.vae, parts.text_encoder, parts.tokenizer, parts.unet, pipeline.inpaint_controlnet, parts.scheduler,
            safety_checker=None, feature_extractor=None, requires_safety_checker=False,
        )  # fmt: skip
        stock.set_progress_bar_config(disable=True)
        expected = stock(
            "a lamp",
            image=torch.from_numpy(condition).permute(2, 0, 1)[None],
            generator=seeded(),
            output_type="latent",
            **CALL,
        ).images
        ours = pipeline(image, mask, "a lamp", generator=seeded(), **CALL).latents
        assert torch.allclose(ours, expected, atol=1e-4)

    def test_its_condition_is_the_published_one(self):
        """As the cards of control_v11p_sd15_inpaint and EcomXL_controlnet_inpaint say, whose masks are 1 = paint."""
        rng = np.random.default_rng(0)
        image = rng.integers(0, 256, (16, 256, 3)).astype(np.uint8)
        product = np.tile(np.arange(256, dtype=np.uint8), (16, 1))  # every level of a matte
        published = image.astype(np.float32) / 255
        published[(255 - product).astype(np.float32) / 255 > 0.5] = -1.0
        pixels = as_pixels([Image.fromarray(image)], (16, 256))
        ours = inpaint_condition(pixels, as_masks(Image.fromarray(product), 1, (16, 256)))
        assert ours.shape == (1, 3, 16, 256)
        assert torch.allclose(ours, torch.from_numpy(published).permute(2, 0, 1)[None], atol=1e-6)

    def test_on_sdxl_it_is_the_stock_pipeline_as_ecomxl_is_published(self, sdxl_parts):
        pipeline = sdxl_parts.pipeline("controlnet_inpaint")
        image, mask = product()
        condition = np.array(image).astype(np.float32) / 255.0
        condition[(255 - np.array(mask)) / 255.0 > 0.5] = -1.0
        stock = StableDiffusionXLControlNetPipeline(
            sdxl_parts.vae, sdxl_parts.text_encoder, sdxl_parts.text_encoder_2, sdxl_parts.tokenizer,
            sdxl_parts.tokenizer_2, sdxl_parts.unet, pipeline.inpaint_controlnet, sdxl_parts.scheduler,
            add_watermarker=False,
        )  # fmt: skip
        stock.set_progress_bar_config(disable=True)
        expected = stock(
            "a lamp",
            image=torch.from_numpy(condition).permute(2, 0, 1)[None],
            controlnet_conditioning_scale=0.5,
            generator=seeded(),
            output_type="latent",
            **CALL,
        ).images
        ours = pipeline(image, mask, "a lamp", generator=seeded(), controlnet_inpaint_scale=0.5, **CALL).latents
        assert torch.allclose(ours, expected, atol=1e-4)

    def test_its_scale_and_the_masks_of_other_nets(self, parts):
        pipeline = parts.pipeline("controlnet_inpaint", controls=1)
        image, mask = product()

        def shoot(**other):
            return pipeline(image, mask, "a lamp", generator=seeded(), **CALL | other).images[0]

        plain = parts.pipeline("brushnet")(image, mask, "a lamp", generator=seeded(), brushnet_scale=0, **CALL)
        assert shoot(controlnet_inpaint_scale=0).tobytes() == plain.images[0].tobytes()
        edges = [canny_edges(image, mask)]
        nothing = np.zeros((SIDE, SIDE), np.float32)
        # a mask of nothing silences the other net and not the one that inpaints
        assert shoot(control_images=edges, control_masks=[nothing]).tobytes() == shoot().tobytes()
        assert difference(shoot(control_images=edges), shoot()) > 2

    def test_it_is_embedded_once(self, parts):
        pipeline = parts.pipeline("controlnet_inpaint")
        calls = []
        hook = pipeline.inpaint_controlnet.controlnet_cond_embedding.register_forward_hook(lambda *_: calls.append(1))
        pipeline(*product(), "a lamp", generator=seeded(), **CALL)
        hook.remove()
        assert len(calls) == 1


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ("controlnet_inpaint", "needs a ControlNet that inpaints"),
        ("inpaint9", "9 input channels"),
        ("nothing", "there are blended, soft, inpaint9, controlnet_inpaint, fooocus, brushnet"),
    ],
)
def test_what_a_method_needs_is_said(parts, method, message):
    with pytest.raises(ValueError, match=message):
        InpaintingPipeline(**parts.as_kwargs(), method=method)


def test_fooocus_needs_its_head(sdxl_parts):
    with pytest.raises(ValueError, match="needs Fooocus' inpaint head"):
        InpaintingPipeline(**sdxl_parts.as_kwargs(), method="fooocus")


def test_shots_do_not_share_a_generator(parts):
    images, masks = shots()
    with pytest.raises(ValueError, match="3 shots need 3 generators, got 1"):
        parts.pipeline("brushnet")(images, masks, "a lamp", generator=seeded(), **CALL)
