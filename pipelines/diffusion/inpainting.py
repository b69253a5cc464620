"""One sampler for every inpainting method of the paper: a UNet, branches, a blend.

Standard and soft inpainting, 9-channel UNets, an inpainting ControlNet, Fooocus and BrushNet differ in three things
only: the UNet's input channels, the branch that reads the masked image, and the blend (the paper, sections 2.1 and
3.1). So there is one denoising loop, and `METHODS` lists what each method uses. Masked ControlNets (section 3.2), scene
LoRAs and an IP-Adapter work with every method, on SD 1.5 and SDXL.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from diffusers import AutoencoderKL, ControlNetModel, UNet2DConditionModel
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from pipelines.diffusion import fooocus, loras, schedule
from pipelines.diffusion.blends import DEFAULT_SOFT_BLEND, SoftBlend, blend_prediction, hard_blend
from pipelines.diffusion.branches import load_branch, load_branch_net
from pipelines.diffusion.brushnet import BrushNetModel
from pipelines.diffusion.conditioning import (
    AS_SAMPLED,
    Conditioning,
    Encoder,
    Sizes,
    Text,
    check_sizes,
    condition,
    encode_texts,
)
from pipelines.diffusion.controlnets import control_inputs, inpaint_control, prepare_controls
from pipelines.diffusion.denoiser import Denoiser, DenoiserInputs, Guidance
from pipelines.diffusion.feature_cache import FeatureCache
from pipelines.diffusion.inputs import (
    Images,
    Layout,
    Masks,
    as_masks,
    as_pixels,
    common_size,
    generator_per_image,
    image_list,
    prompt_per_shot,
)
from pipelines.diffusion.ip_adapter import IPAdapter
from pipelines.diffusion.latents import decode, encode
from pipelines.diffusion.mask_guidance import Resize
from pipelines.diffusion.masking import inpaint_condition, latent_mask, masked_image
from pipelines.diffusion.methods import METHODS, check_parts, method_named
from pipelines.models.checkpoints import load_profile_base
from pipelines.models.profile import load_profile
from pipelines.settings import get_settings

__all__ = ["METHODS", "InpaintingOutput", "InpaintingPipeline", "Sizes", "SoftBlend", "latent_mask", "masked_image"]


@dataclass(frozen=True, slots=True)
class InpaintingOutput:
    """`images`: PIL, RGB, without pasted product; a shot's `num_images` follow one another. `latents`: (B, 4, h, w),
    normalised."""

    images: list[Image.Image]
    latents: Tensor


class InpaintingPipeline:
    """Paint a scene around a product.

    Args:
        vae: Its config's `scaling_factor`, `shift_factor`, `latents_mean` and `latents_std` are applied.
        text_encoder: CLIP's text tower; SDXL's first.
        tokenizer: Its tokenizer.
        unet: Of SD 1.5 or SDXL; for method "fooocus" the patched one.
        scheduler: Any of diffusers' for such UNets: DDIM, DPM++, UniPC, Euler, LCM, …
        brushnet: For method "brushnet".
        controlnets: Any number; their outputs are summed.
        method: A key of `METHODS`.
        text_encoder_2: SDXL's second, with its projection.
        tokenizer_2: Its tokenizer.
        inpaint_controlnet: For method "controlnet_inpaint".
        inpaint_head: For method "fooocus".
        control_kinds: What each ControlNet was trained on ("canny"), if known: mask guidance refuses some kinds.
        inpaint_scale: Usual factor on the inpainting ControlNet's outputs, as its publisher recommends.

    Raises:
        ValueError: an unknown method, a missing module, or modules that do not fit together.
    """

    def __init__(
        self,
        vae: AutoencoderKL,
        text_encoder: CLIPTextModel,
        tokenizer: CLIPTokenizer,
        unet: UNet2DConditionModel,
        scheduler: Any,
        brushnet: BrushNetModel | None = None,
        controlnets: Sequence[ControlNetModel] = (),
        method: str = "brushnet",
        text_encoder_2: CLIPTextModelWithProjection | None = None,
        tokenizer_2: CLIPTokenizer | None = None,
        inpaint_controlnet: ControlNetModel | None = None,
        inpaint_head: fooocus.InpaintHead | None = None,
        control_kinds: Sequence[str] = (),
        inpaint_scale: float = 1.0,
    ):
        self.method = method_named(method)
        branches = {
            "brushnet": (brushnet, "a BrushNet"),
            "inpaint_controlnet": (inpaint_controlnet, "a ControlNet that inpaints"),
            "inpaint_head": (inpaint_head, "Fooocus' inpaint head"),
        }
        for branch, (module, wanted) in branches.items():
            if self.method.branch == branch and module is None:
                raise ValueError(f"Method {method!r} needs {wanted}.")
        if unet.config.in_channels != self.method.unet_channels:
            raise ValueError(
                f"Method {method!r} needs a UNet of {self.method.unet_channels} input channels, "
                f"but this one has {unet.config.in_channels}."
            )
        check_sizes(unet, text_encoder_2)
        if self.method.branch == "inpaint_head":
            fooocus.check_unet(unet)
        self.vae = vae
        self.text_encoder = text_encoder
        self.tokenizer = tokenizer
        self.text_encoder_2 = text_encoder_2
        self.tokenizer_2 = tokenizer_2
        self.unet = unet
        self.scheduler = scheduler
        self.brushnet = brushnet if self.method.branch == "brushnet" else None
        self.inpaint_controlnet = inpaint_controlnet if self.method.branch == "inpaint_controlnet" else None
        self.inpaint_head = inpaint_head if self.method.branch == "inpaint_head" else None
        self.controlnets = tuple(controlnets)
        self.control_kinds = tuple(control_kinds)
        self.inpaint_scale = inpaint_scale
        self.ip_adapter: IPAdapter | None = None
        self.lora_scales: dict[str, float] = {}
        self.offload = False
        self.vae_factor = 2 ** (len(vae.config.block_out_channels) - 1)

    @classmethod
    def from_profile(
        cls,
        name: str,
        method: str = "brushnet",
        models_dir: Path | None = None,
        controls: Sequence[str] = (),
        ip_adapter: str | None = None,
    ) -> InpaintingPipeline:
        """Load the modules of a profile, float32, on the CPU. Every file's digest is checked before the file is read.

        Args:
            name: A profile of `pipelines/profiles`.
            method: A key of `METHODS`. Modules that it does not need are not loaded.
            models_dir: Folder with the files of a profile that is not bundled; default: PACKSHOT_MODELS_DIR.
            controls: Kinds of the ControlNets ("canny"), in the order of `control_images`.
            ip_adapter: The profile's part with an IP-Adapter ("ip_adapter"); its image encoder is `image_encoder`.

        Raises:
            UsageError: an unknown profile or part, or missing files.
            IntegrityError: a file differs from the profile, or does not fit this base.
        """
        profile = load_profile(name, models_dir or get_settings().models_dir)
        check_parts(profile, method)
        base = load_profile_base(profile, method_named(method).unet_channels)
        pipeline = cls(
            vae=base.vae,
            text_encoder=base.text_encoder,
            tokenizer=base.tokenizer,
            unet=base.unet,
            scheduler=base.scheduler,
            controlnets=[
                load_branch_net(profile, f"controlnet_{kind}", ControlNetModel, base.unet, "a ControlNet")
                for kind in controls
            ],
            method=method,
            text_encoder_2=base.text_encoder_2,
            tokenizer_2=base.tokenizer_2,
            control_kinds=controls,
            **load_branch(profile, method, base.unet),
        )
        if ip_adapter is not None:
            encoder = profile.part("image_encoder").check()
            folder = encoder.path / Path(encoder.files[0]).parent if encoder.files else encoder.path
            pipeline.load_ip_adapter(profile.part(ip_adapter).check().path, folder, encoder.weights)
        return pipeline

    @property
    def scheduler(self) -> Any:
        """diffusers' scheduler; it may be replaced. Raises ValueError for an unsupported one."""
        return self._scheduler

    @scheduler.setter
    def scheduler(self, scheduler: Any) -> None:
        schedule.check_scheduler(scheduler)
        self._scheduler = scheduler

    @property
    def device(self) -> torch.device:
        """The UNet's device. Other modules are there too, or are moved there while they run."""
        return self.unet.device

    def save_memory(self, offload: bool = False, vae_tiling: bool = False) -> InpaintingPipeline:
        """Save memory on a small GPU; call it before `to`. Returns the pipeline itself.

        Args:
            offload: Keep VAE and encoders on the CPU and move them to the device while they run: same pixels.
            vae_tiling: Encode and decode large pictures tile by tile: pixels differ slightly.
        """
        self.offload = offload
        self.vae.enable_tiling() if vae_tiling else self.vae.disable_tiling()
        return self

    def to(self, device: str | torch.device, dtype: torch.dtype | None = None) -> InpaintingPipeline:
        """Move all modules except offloaded ones, and cast them if a `dtype` is given. Returns the pipeline itself."""
        image_encoder = self.ip_adapter and self.ip_adapter.image_encoder
        rests = (self.vae, self.text_encoder, self.text_encoder_2, image_encoder)
        works = (self.unet, self.brushnet, self.inpaint_controlnet, self.inpaint_head, *self.controlnets)
        for module in (*rests, *works):
            if module is not None:
                module.to("cpu" if self.offload and module in rests else device)
                if dtype not in (None, next(module.parameters()).dtype):  # diffusers warns at every cast
                    module.to(dtype=dtype)
        return self

    @contextmanager
    def _on_device(self, module: Any) -> Iterator[None]:
        """Keep an offloaded module on the device while it runs."""
        module.to(self.device)
        try:
            yield
        finally:
            if self.offload:
                module.to("cpu")

    @property
    def _text_encoders(self) -> list[Any]:
        return [encoder for encoder in (self.text_encoder, self.text_encoder_2) if encoder is not None]

    def load_lora(self, path: Path, scale: float = 1.0, name: str | None = None) -> None:
        """Load a LoRA in addition to those already loaded; see `pipelines.diffusion.loras.add_lora`."""
        self.lora_scales[loras.add_lora(self.unet, path, name, self._text_encoders)] = scale
        loras.set_scales(self.unet, self.lora_scales, self._text_encoders)

    def set_lora_scales(self, scales: dict[str, float]) -> None:
        """Set each LoRA's scale by name: 1 as trained. LoRAs without an entry are off."""
        loras.set_scales(self.unet, scales, self._text_encoders)
        self.lora_scales = dict(scales)

    def unload_lora(self) -> None:
        """Remove all LoRAs and restore UNet and text encoders."""
        loras.remove_loras(self.unet, self._text_encoders)
        self.lora_scales = {}

    def load_ip_adapter(self, path: Path, image_encoder: Path, encoder_weights: Collection[Path] | None = None) -> None:
        """Load a published IP-Adapter into the UNet, replacing any other; see `IPAdapter.from_files`."""
        self.unload_ip_adapter()
        self.ip_adapter = IPAdapter.from_files(self.unet, path, image_encoder, encoder_weights)
        self.ip_adapter.image_encoder.to("cpu" if self.offload else self.device, self.unet.dtype)

    def unload_ip_adapter(self) -> None:
        """Remove the IP-Adapter and restore the UNet."""
        if self.ip_adapter is not None:
            self.ip_adapter.remove()
        self.ip_adapter = None

    @torch.no_grad()
    def __call__(
        self,
        image: Images,
        product_mask: Masks,
        prompt: str | Sequence[str],
        negative_prompt: str | Sequence[str] = "",
        *,
        strength: float = 1.0,
        num_inference_steps: int = 20,
        guidance_scale: float = 7.5,
        num_images: int = 1,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        height: int | None = None,
        width: int | None = None,
        sizes: Sizes = AS_SAMPLED,
        brushnet_scale: float = 1.0,
        brushnet_mask: Literal["bicubic", "nearest"] = "bicubic",
        controlnet_inpaint_scale: float | None = None,
        control_images: Sequence[Images] = (),
        control_masks: Sequence[Masks | None] | None = None,
        control_scales: Sequence[float] | None = None,
        control_starts: Sequence[float] | None = None,
        control_ends: Sequence[float] | None = None,
        mask_guidance: bool = True,
        mask_resize: Resize = "area",
        ip_adapter_image: Images = (),
        ip_adapter_mask: Masks | None = None,
        ip_adapter_scale: float = 1.0,
        soft: SoftBlend = DEFAULT_SOFT_BLEND,
        guidance_start: float = 0.0,
        guidance_end: float = 1.0,
        cache_interval: int = 1,
        callback: Callable[[int, int], None] | None = None,
    ) -> InpaintingOutput:
        """Inpaint a batch of shots of one size.

        Args:
            image: The product on its canvas, RGB; one, or one per shot. Branches ignore the pixels outside the product.
                With `strength` < 1 sampling starts from them.
            product_mask: 1 = product; PIL "L", or (..., H, W) 0..1; one, or one per shot.
            prompt: One for all, or one per shot.
            negative_prompt: Likewise.
            strength: Share of the schedule that runs. Below 1 the original background influences the result.
            num_inference_steps: Steps of the whole schedule.
            guidance_scale: Classifier-free guidance; 1 is none, and costs half.
            num_images: Images per shot, drawn one after the other from the shot's generator.
            generator: On the CPU, one per shot. Its noise depends on its seed alone, never on the batch.
            height: Sampled size, px; default: the image's own.
            width: Likewise.
            sizes: SDXL's size conditioning.
            brushnet_scale: Factor on BrushNet's outputs; 0 turns it off.
            brushnet_mask: How BrushNet's mask is resized: "bicubic" as in the paper, "nearest" as in the released code.
            controlnet_inpaint_scale: Factor on the inpainting ControlNet's outputs; 0 turns it off. Default: the
                pipeline's `inpaint_scale`.
            control_images: One entry per ControlNet: an image for all shots, or one per shot. Empty: no ControlNet
                runs.
            control_masks: One entry per ControlNet: a refined product mask for all shots, one per shot, or None for no
                mask. Default: the product mask for every net.
            control_scales: One per ControlNet, 1 by default; 0 turns it off.
            control_starts: Share of the steps from which a net runs, one per ControlNet. It costs nothing outside.
            control_ends: Share of the steps up to which it runs.
            mask_guidance: False: no ControlNet is masked, whatever `control_masks` says. A `MaskGuidedControlNet` keeps
                its mask.
            mask_resize: How masks are resized to the ControlNets' outputs.
            ip_adapter_image: Image prompt; one for all shots, or one per shot. Empty: the IP-Adapter has no effect.
            ip_adapter_mask: 1 = where it has an effect (1 - `product_mask` for the scene alone); one, or one per shot.
                Default: everywhere.
            ip_adapter_scale: Its weight; the text's is 1.
            soft: Settings of method "soft".
            guidance_start: Share of the steps from which the prompt is guided. A step outside costs half.
            guidance_end: Share of the steps up to which it is guided.
            cache_interval: Every how many steps the whole UNet and the branches run; see
                `pipelines.diffusion.feature_cache`.
            callback: Called with (steps done, steps in all) after each step.

        Raises:
            ValueError: numbers or sizes that do not fit together, or an image prompt without an IP-Adapter.
            torch.OutOfMemoryError: the batch is too large for the device.
        """
        # 1. Check, and convert everything to tensors with one entry per shot
        images = image_list(image)
        shots = len(images)
        if not images:
            raise ValueError("There is no image to paint around.")
        size = common_size(images, height, width)
        if any(side < 1 or side % self.vae_factor for side in size):
            raise ValueError(f"Height and width must be multiples of {self.vae_factor}, got {size[0]} x {size[1]}.")
        if min(num_inference_steps, num_images) < 1:
            raise ValueError(
                f"num_inference_steps and num_images are 1 or more, got {num_inference_steps}, {num_images}."
            )
        if not 0 < strength <= 1:
            raise ValueError(f"strength is a share, 0 < strength <= 1, got {strength}.")
        pixels = as_pixels(images, size).to(self.device, self.vae.dtype)
        mask = as_masks(product_mask, shots, size).to(self.device)
        prompts = prompt_per_shot(prompt, shots, "prompt")
        negatives = prompt_per_shot(negative_prompt, shots, "negative_prompt")
        generators = generator_per_image(generator, shots, num_images)
        latent_size = (size[0] // self.vae_factor, size[1] // self.vae_factor)
        guidance = Guidance(guidance_scale, guidance_start, guidance_end)
        layout = Layout(shots, num_images, halves=2 if guidance.ever else 1)

        # 2. Text and sizes, and the IP-Adapter's image
        text = self._encode_text(prompts)
        negative = self._encode_text(negatives, empty_is_zero=True) if guidance.ever else None
        conditioning = condition(text, negative, layout, sizes.time_ids(size))
        unet_options = self._unet_options(
            conditioning, image_list(ip_adapter_image), ip_adapter_mask, ip_adapter_scale, layout, size
        )

        # 3. Timesteps
        timesteps = schedule.start(self.scheduler, num_inference_steps, strength, self.device)
        step_options = schedule.step_options(self.scheduler, generators)

        # 4. Noise, and the original if the method or the strength needs it
        noise = self._noise(generators or [None] * (shots * num_images), latent_size)
        original = torch.empty(0)
        if self.method.blend is not None or strength < 1:
            original = layout.per_image(self._encode_image(pixels))
        if strength == 1:
            latents = noise * self.scheduler.init_noise_sigma
        else:
            latents = self.scheduler.add_noise(original, noise, timesteps[:1])
        blend_mask = layout.per_image(F.adaptive_avg_pool2d(mask, latent_size)).to(latents.dtype)

        # 5. The branch's or the UNet's view of the masked image
        brushnet = self.brushnet if brushnet_scale != 0 else None
        brushnet_cond = unet_cond = feature = None
        if brushnet is not None:
            seen = self._encode_image(masked_image(pixels, mask))
            kept = latent_mask(mask, latent_size, brushnet_mask).to(seen.dtype)
            lay_out = layout.for_both_halves if brushnet.sees_text else layout.per_image
            brushnet_cond = lay_out(torch.cat([seen, kept], dim=1))
        if self.method.unet_channels == 9:
            # these UNets were trained with 1 = to be painted, and grey there
            seen = self._encode_image(masked_image(pixels, mask, fill=0.0))
            painted = 1 - latent_mask(mask, latent_size, "nearest").to(seen.dtype)
            unet_cond = layout.for_both_halves(torch.cat([painted, seen], dim=1))
        if self.inpaint_head is not None:
            seen = self._encode_image(masked_image(pixels, mask, fill=0.0))
            feature = layout.per_image(self.inpaint_head(fooocus.kept_mask(mask, latent_size), seen))

        # 6. ControlNets: masked, their images embedded once
        inputs = control_inputs(
            len(self.controlnets), control_images, mask if mask_guidance else None,
            masks=control_masks, scales=control_scales, starts=control_starts, ends=control_ends,
        )  # fmt: skip
        controls = prepare_controls(self.controlnets, self.control_kinds, inputs, layout, size, mask_resize)
        if self.inpaint_controlnet is not None:
            seen = inpaint_condition(pixels, mask)
            scale = self.inpaint_scale if controlnet_inpaint_scale is None else controlnet_inpaint_scale
            controls.append(inpaint_control(self.inpaint_controlnet, seen, scale, layout))

        # 7. Denoise
        denoiser_inputs = DenoiserInputs(conditioning, unet_options, unet_cond, brushnet_cond, tuple(controls))
        cache = FeatureCache(self.unet, cache_interval) if cache_interval != 1 else None
        denoiser = Denoiser(self.unet, brushnet, brushnet_scale, feature, layout, denoiser_inputs, guidance, cache)
        for step, t in enumerate(timesteps):
            model_input = self.scheduler.scale_model_input(latents, t)
            prediction = denoiser.predict(model_input, t, step, len(timesteps))
            if self.method.blend == "soft":
                signal = schedule.signal_at(self.scheduler, t)
                kind = self.scheduler.config.prediction_type
                prediction = blend_prediction(prediction, model_input, original, blend_mask, kind, signal, soft)
            latents = self.scheduler.step(prediction, t, latents, return_dict=False, **step_options)[0]
            if self.method.blend == "hard":
                kept_latents = original
                if step + 1 < len(timesteps):
                    kept_latents = self.scheduler.add_noise(original, noise, timesteps[step + 1 : step + 2])
                latents = hard_blend(kept_latents, latents, blend_mask)
            if callback is not None:
                callback(step + 1, len(timesteps))

        # 8. Decode
        with self._on_device(self.vae):
            return InpaintingOutput(decode(self.vae, latents), latents)

    @torch.no_grad()
    def round_trip(self, image: Images) -> list[Image.Image]:
        """Images of one size as the autoencoder gives them back: encoded and decoded, nothing painted."""
        images = image_list(image)
        pixels = as_pixels(images, (images[0].height, images[0].width)).to(self.device, self.vae.dtype)
        latents = self._encode_image(pixels)
        with self._on_device(self.vae):
            return decode(self.vae, latents)

    def _encode_text(self, texts: Sequence[str], empty_is_zero: bool = False) -> Text:
        encoders = [Encoder(self.text_encoder, self.tokenizer)]
        if self.text_encoder_2 is not None and self.tokenizer_2 is not None:
            encoders.append(Encoder(self.text_encoder_2, self.tokenizer_2))
        return encode_texts(texts, encoders, self.device, self.unet.dtype, self._on_device, empty_is_zero)

    def _unet_options(
        self,
        conditioning: Conditioning,
        images: Sequence[Image.Image],
        masks: Masks | None,
        scale: float,
        layout: Layout,
        size: tuple[int, int],
    ) -> dict[str, Any]:
        """Return further keyword arguments of the UNet: SDXL's sizes and the IP-Adapter's images."""
        if self.ip_adapter is None:
            if images:
                raise ValueError("There is no IP-Adapter for ip_adapter_image: load one first.")
            return {"added_cond_kwargs": conditioning.added}
        latent_size = (size[0] // self.vae_factor, size[1] // self.vae_factor)
        heard = None if masks is None else as_masks(masks, layout.shots, size).to(self.device)
        with self._on_device(self.ip_adapter.image_encoder):
            shown = self.ip_adapter.prompt(images, heard, scale, layout, latent_size)
        added = {**(conditioning.added or {}), "image_embeds": shown.embeds}
        return {"added_cond_kwargs": added, "cross_attention_kwargs": shown.attention}

    def _encode_image(self, pixels: Tensor) -> Tensor:
        with self._on_device(self.vae):
            return encode(self.vae, pixels).to(self.unet.dtype)

    def _noise(self, generators: Sequence[torch.Generator | None], size: tuple[int, int]) -> Tensor:
        """Draw each image's noise separately, on the CPU in float32: it depends on no device and no batch."""
        shape = (1, self.vae.config.latent_channels, *size)
        noise = torch.cat([torch.randn(shape, generator=generator) for generator in generators])
        return noise.to(self.device, self.unet.dtype)
