"""Stock diffusers pipelines take a mask-guided ControlNet, to the byte."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    ControlNetModel,
    MultiControlNetModel,
    StableDiffusionControlNetImg2ImgPipeline,
    StableDiffusionControlNetInpaintPipeline,
    StableDiffusionControlNetPipeline,
    StableDiffusionXLControlNetImg2ImgPipeline,
    StableDiffusionXLControlNetInpaintPipeline,
    StableDiffusionXLControlNetPipeline,
)
from PIL import ImageOps

from pipelines.diffusion.mask_guidance import MaskGuidedControlNet
from tests.pipelines.diffusion.tiny_models import SIDE, product

SCALE = 0.8
PIPELINES = [
    StableDiffusionControlNetPipeline,
    StableDiffusionControlNetInpaintPipeline,
    StableDiffusionControlNetImg2ImgPipeline,
    StableDiffusionXLControlNetPipeline,
    StableDiffusionXLControlNetInpaintPipeline,
    StableDiffusionXLControlNetImg2ImgPipeline,
]


@pytest.fixture(scope="module")
def families(parts, sdxl_parts) -> dict[bool, dict[str, Any]]:
    """The modules of each family, by whether it is SDXL."""
    names = ("vae", "text_encoder", "tokenizer", "unet", "controlnet")
    sdxl = (*names, "text_encoder_2", "tokenizer_2")
    return {
        False: {name: getattr(parts, name) for name in names},
        True: {name: getattr(sdxl_parts, name) for name in sdxl},
    }


class Studio:
    """One pipeline class with one family's modules; only the ControlNet and the call change."""

    def __init__(self, kind: type, modules: dict[str, Any], scheduler: Callable[[], Any]):
        self.kind, self.modules, self.scheduler = kind, modules, scheduler
        self.net: ControlNetModel = modules["controlnet"]

    @property
    def is_sdxl(self) -> bool:
        return "text_encoder_2" in self.modules

    def guided(self, fill: float) -> MaskGuidedControlNet:
        return MaskGuidedControlNet(self.net, torch.full((1, 1, SIDE, SIDE), fill))

    def pipeline(self, controlnet: Any) -> Any:
        options = {"add_watermarker": False} if self.is_sdxl else {}
        if not self.is_sdxl:
            options |= {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
        modules = self.modules | {"controlnet": controlnet, "scheduler": self.scheduler()}
        pipeline = self.kind(**modules, **options)
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    def render(self, controlnet: Any, scale: Any = SCALE, **call: Any) -> np.ndarray:
        image, mask = product()
        nets = len(scale) if isinstance(scale, list) else 0
        control = [image] * nets if nets else image
        settings = {
            "prompt": "a lamp",
            "num_inference_steps": 3,
            "guidance_scale": 5.0,
            "generator": torch.Generator().manual_seed(0),
            "controlnet_conditioning_scale": scale,
            "output_type": "np",
        }
        if "Img2Img" in self.kind.__name__:
            settings |= {"image": image, "control_image": control, "strength": 0.8}
        elif "Inpaint" in self.kind.__name__:
            settings |= {"image": image, "mask_image": ImageOps.invert(mask), "control_image": control}
        else:
            settings |= {"image": control}
        return self.pipeline(controlnet)(**settings | call).images


@pytest.fixture(params=PIPELINES, ids=lambda kind: kind.__name__)
def studio(request, families, parts) -> Studio:
    modules = families["XL" in request.param.__name__]
    return Studio(request.param, modules, lambda: parts.scheduler)


@pytest.mark.parametrize(
    "call",
    [{}, {"guidance_scale": 1.0}, {"guess_mode": True}, {"num_images_per_prompt": 2}],
    ids=["guided", "unguided", "guess", "two pictures"],
)
def test_ones_are_the_net_itself_and_zeros_are_scale_0(studio, call):
    plain, off = studio.render(studio.net, **call), studio.render(studio.net, 0.0, **call)
    assert plain.tobytes() != off.tobytes()
    assert studio.render(studio.guided(1.0), **call).tobytes() == plain.tobytes()
    assert studio.render(studio.guided(0.0), **call).tobytes() == off.tobytes()


@pytest.mark.parametrize("gather", [list, MultiControlNetModel], ids=["list", "MultiControlNetModel"])
def test_several_nets_each_with_its_own_mask(studio, gather):
    def render(first, second, *scales):
        return studio.render(gather([first, second]), list(scales)).tobytes()

    both, second_only = render(studio.net, studio.net, SCALE, 0.5), render(studio.net, studio.net, 0.0, 0.5)
    assert both != second_only
    assert render(studio.guided(1.0), studio.net, SCALE, 0.5) == both
    assert render(studio.guided(1.0), studio.guided(1.0), SCALE, 0.5) == both
    assert render(studio.guided(0.0), studio.net, SCALE, 0.5) == second_only


def test_part_of_a_mask_is_part_of_the_control(studio):
    half = torch.ones(1, 1, SIDE, SIDE)
    half[..., : SIDE // 2] = 0
    pictures = [studio.render(net).tobytes() for net in (studio.net, MaskGuidedControlNet(studio.net, half))]
    assert len({*pictures, studio.render(studio.net, 0.0).tobytes()}) == 3


class TestSeveralPictures:
    """One prompt a mask; the batch of a stock pipeline holds a prompt's pictures side by side."""

    @pytest.fixture
    def studio(self, families, parts) -> Studio:
        return Studio(StableDiffusionControlNetPipeline, families[False], lambda: parts.scheduler)

    @staticmethod
    def masks() -> torch.Tensor:
        left = torch.zeros(1, 1, SIDE, SIDE)
        left[..., : SIDE // 2] = 1
        return torch.cat([left, 1 - left])

    @pytest.mark.parametrize("guess_mode", [False, True])
    def test_each_picture_has_its_own_mask(self, studio, guess_mode):
        def generators():
            return [torch.Generator().manual_seed(seed) for seed in (1, 2)]

        call = {"prompt": ["a lamp", "a vase"], "guess_mode": guess_mode}
        image, _ = product()
        together = studio.render(
            MaskGuidedControlNet(studio.net, self.masks()), image=[image] * 2, generator=generators(), **call
        )
        for i, prompt in enumerate(call["prompt"]):
            mask = self.masks()[i : i + 1]
            alone = studio.render(
                MaskGuidedControlNet(studio.net, mask),
                prompt=prompt,
                guess_mode=guess_mode,
                generator=generators()[i],
            )
            assert np.abs(together[i] - alone[0]).max() < 1 / 255
        assert np.abs(together[0] - together[1]).max() > 2 / 255

    def test_masks_are_repeated_as_the_prompts_pictures_are(self, studio):
        def generators():
            return [torch.Generator().manual_seed(seed) for seed in (1, 2, 3, 4)]

        call = {"prompt": ["a lamp", "a vase"], "image": [product()[0]] * 2}
        masks = self.masks().repeat_interleave(2, dim=0)
        twice = studio.render(
            MaskGuidedControlNet(studio.net, masks), num_images_per_prompt=2, generator=generators(), **call
        )
        alone = studio.render(
            MaskGuidedControlNet(studio.net, self.masks()[1:]), prompt="a vase", generator=generators()[2]
        )
        assert np.abs(twice[2] - alone[0]).max() < 1 / 255


class TestSaving:
    def test_the_net_is_saved_without_its_mask(self, parts, tmp_path):
        guided = MaskGuidedControlNet(parts.controlnet, torch.zeros(1, 1, SIDE, SIDE))
        guided.save_pretrained(tmp_path)
        again = ControlNetModel.from_pretrained(tmp_path)
        assert type(again) is ControlNetModel
        assert list(again.config.block_out_channels) == list(parts.controlnet.config.block_out_channels)
        assert all(torch.equal(a, b) for a, b in zip(again.parameters(), parts.controlnet.parameters(), strict=True))

    def test_loading_a_net_with_a_mask_says_where_the_mask_comes_from(self, parts, tmp_path):
        parts.controlnet.save_pretrained(tmp_path)
        with pytest.raises(ValueError, match=r"ControlNetModel\.from_pretrained and give both"):
            MaskGuidedControlNet.from_pretrained(tmp_path)

    def test_a_saved_pipeline_is_loaded_with_a_net_and_a_mask(self, families, parts, tmp_path):
        studio = Studio(StableDiffusionControlNetPipeline, families[False], lambda: parts.scheduler)
        guided = studio.guided(1.0)
        studio.pipeline(guided).save_pretrained(tmp_path)
        net = ControlNetModel.from_pretrained(tmp_path / "controlnet")
        pipeline = StableDiffusionControlNetPipeline.from_pretrained(
            tmp_path, controlnet=MaskGuidedControlNet(net, guided.mask), safety_checker=None
        )
        pipeline.set_progress_bar_config(disable=True)
        picture = pipeline(
            "a lamp",
            image=product()[0],
            num_inference_steps=3,
            guidance_scale=5.0,
            generator=torch.Generator().manual_seed(0),
            controlnet_conditioning_scale=SCALE,
            output_type="np",
        ).images
        assert np.abs(picture - studio.render(studio.net)).max() < 1e-4  # weights at other addresses, other last bits
