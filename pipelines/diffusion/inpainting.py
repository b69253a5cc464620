"""One sampler for every inpainting method of the paper: a UNet, branches, a blend.

Standard and soft inpainting, 9-channel UNets, BrushNet and (planned) the rest differ in three things only: how many
channels the UNet takes, which branch sees the masked image, and how the kept picture is blended in (the paper, sections
2.1 and 3.1). So there is one denoising loop, and a table, `METHODS`, of what each method puts into it. ControlNets with
mask guidance (section 3.2) and a scene LoRA go with any of them.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from diffusers import AutoencoderKL, ControlNetModel, UNet2DConditionModel
from diffusers.loaders import StableDiffusionLoraLoaderMixin
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from transformers import CLIPTextModel, CLIPTokenizer

from pipelines.checkpoints import check_fits, check_lora, load_net, load_profile_base
from pipelines.diffusion.blends import hard_blend, soft_blend
from pipelines.diffusion.brushnet import BrushNetModel, inject
from pipelines.diffusion.mask_guidance import MaskGuidedControlNet, Resize, without_embedding
from pipelines.models import load_profile

Mask = Image.Image | np.ndarray | Tensor


@dataclass(frozen=True, slots=True)
class Method:
    """What an inpainting method needs: a row of the design's table.

    Attributes:
        unet_channels: Input channels of its UNet.
        branch: The module besides the UNet that sees the masked image.
        blend: How the original's latents come back in, at every step.
        planned: Not there yet; choosing it raises.
    """

    unet_channels: int = 4
    branch: Literal["brushnet", "controlnet", "inpaint_head"] | None = None
    blend: Literal["hard", "soft"] | None = None
    planned: bool = False


METHODS: dict[str, Method] = {
    "blended": Method(blend="hard"),
    "soft": Method(blend="soft"),
    "inpaint9": Method(unet_channels=9),
    "controlnet_inpaint": Method(branch="controlnet", planned=True),
    "fooocus": Method(branch="inpaint_head", planned=True),
    "brushnet": Method(branch="brushnet"),
}


@dataclass(frozen=True, slots=True)
class SoftBlend:
    """Settings of soft inpainting; see `pipelines.diffusion.blends.soft_blend`. The web UI's defaults."""

    power: float = 1.0
    scale: float = 0.5
    detail: float = 4.0


@dataclass(frozen=True, slots=True)
class InpaintingOutput:
    """`images`: PIL, RGB, before any paste, a shot's `num_images` together. `latents`: (B, 4, h, w), normalised."""

    images: list[Image.Image]
    latents: Tensor


@dataclass(frozen=True, slots=True)
class _Layout:
    """How a batch is laid out: guidance halves outermost, then shots, then each shot's pictures."""

    shots: int
    pictures: int
    halves: int

    def a_picture(self, values: Tensor) -> Tensor:
        """(1 or shots, ...) to one entry a picture."""
        return values.expand(self.shots, *values.shape[1:]).repeat_interleave(self.pictures, 0)

    def in_both_halves(self, values: Tensor) -> Tensor:
        """(1 or shots, ...) to one entry a picture and half, as the UNet gets them."""
        return torch.cat([self.a_picture(values)] * self.halves)


@dataclass(frozen=True, slots=True)
class _Control:
    """One ControlNet, ready for the loop: it takes `embedding` in the control image's place."""

    net: ControlNetModel
    embedding: Tensor
    scale: float
    start: float
    end: float

    def active(self, step: int, steps: int) -> bool:
        return self.scale != 0 and step / steps >= self.start and (step + 1) / steps <= self.end


class InpaintingPipeline:
    """Paint a scene around a product.

    Args:
        vae: Its config's `scaling_factor`, `shift_factor`, `latents_mean` and `latents_std` are obeyed.
        text_encoder: CLIP's text tower.
        tokenizer: Its tokenizer.
        unet: SD 1.5's or one like it.
        scheduler: Any of diffusers' that has `alphas_cumprod`: DDIM, DPM++, UniPC, Euler.
        brushnet: For method "brushnet".
        controlnets: Any number; their outputs are added up.
        method: A key of `METHODS`.

    Raises:
        ValueError: an unknown or planned method, or a module that it needs and has not got.
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
    ):
        self.method = _method(method)
        if self.method.branch == "brushnet" and brushnet is None:
            raise ValueError(f"Method {method!r} needs a BrushNet.")
        if unet.config.in_channels != self.method.unet_channels:
            raise ValueError(
                f"Method {method!r} needs a UNet of {self.method.unet_channels} input channels, "
                f"but this one has {unet.config.in_channels}."
            )
        if unet.config.addition_embed_type is not None:
            raise ValueError("This UNet wants pooled text and sizes (SDXL); the sampler conditions SD 1.5's so far.")
        self.vae = vae
        self.text_encoder = text_encoder
        self.tokenizer = tokenizer
        self.unet = unet
        self.scheduler = scheduler
        self.brushnet = brushnet if self.method.branch == "brushnet" else None
        self.controlnets = tuple(controlnets)
        self.offload = False
        self.vae_factor = 2 ** (len(vae.config.block_out_channels) - 1)

    @classmethod
    def from_profile(
        cls,
        name: str,
        method: str = "brushnet",
        models_dir: Path | None = None,
        controls: Sequence[str] = (),
    ) -> InpaintingPipeline:
        """Load the modules of a profile, float32, on the CPU. Every file's digest is checked before it is read.

        Args:
            name: A profile of `pipelines/profiles`.
            method: A key of `METHODS`; what it does not need is not loaded.
            models_dir: Where the files of a profile that is not bundled are.
            controls: Kinds of the ControlNets wanted ("canny"), in the order of `control_images`.

        Raises:
            UsageError: there is no such profile or part, or its files are missing.
            IntegrityError: a file is not the one that the profile names.
        """
        profile = load_profile(name, models_dir)
        needs = _method(method)

        base = load_profile_base(profile, needs.unet_channels)

        def branch(model: Any, key: str, expected: str) -> Any:
            part = profile.part(key).check()
            net = load_net(model, part, expected)
            check_fits(part.path, net, base.unet, expected)
            return net

        return cls(
            vae=base.vae,
            text_encoder=base.text_encoder,
            tokenizer=base.tokenizer,
            unet=base.unet,
            scheduler=base.scheduler,
            brushnet=branch(BrushNetModel, "brushnet", "a BrushNet") if needs.branch == "brushnet" else None,
            controlnets=[branch(ControlNetModel, f"controlnet_{kind}", "a ControlNet") for kind in controls],
            method=method,
        )

    @property
    def device(self) -> torch.device:
        """Where the UNet is; everything else is expected there, or comes there while it works."""
        return self.unet.device

    def save_memory(self, offload: bool = False, vae_tiling: bool = False) -> InpaintingPipeline:
        """Make room on a small GPU; to be said before `to`. Returns the pipeline itself.

        Args:
            offload: VAE and text encoder stay on the CPU and come to the device while they work: the same pixels.
            vae_tiling: Pictures larger than the VAE was trained on are coded tile by tile: pixels differ slightly.
        """
        self.offload = offload
        self.vae.enable_tiling() if vae_tiling else self.vae.disable_tiling()
        return self

    def to(self, device: str | torch.device, dtype: torch.dtype | None = None) -> InpaintingPipeline:
        """Move all modules but offloaded ones, and cast them where a `dtype` is given; returns the pipeline itself."""
        for module in (self.vae, self.text_encoder, self.unet, self.brushnet, *self.controlnets):
            if module is not None:
                rests = self.offload and module in (self.vae, self.text_encoder)
                module.to("cpu" if rests else device)
                if dtype not in (None, module.dtype):  # diffusers warns of every cast
                    module.to(dtype=dtype)
        return self

    @contextmanager
    def _working(self, module: Any) -> Iterator[None]:
        """Have an offloaded module on the device for as long as it works."""
        module.to(self.device)
        try:
            yield
        finally:
            if self.offload:
                module.to("cpu")

    def load_lora(self, path: Path, scale: float = 1.0) -> None:
        """Load a scene LoRA for the UNet (PEFT's or kohya's format), by diffusers' own loader.

        Args:
            path: A safetensors file, or a folder that holds one.
            scale: Its strength; 1 as trained.

        Raises:
            ValueError: not one safetensors file, or one for more than the UNet.
            IntegrityError: a file that is no LoRA, or one for another base.
        """
        files = [path] if path.is_file() else sorted(path.glob("*.safetensors"))
        if len(files) != 1:
            raise ValueError(f"{path}: expected one safetensors file with a LoRA, found {len(files)}.")
        check_lora(files[0], self.unet)
        state_dict, alphas, metadata = StableDiffusionLoraLoaderMixin.lora_state_dict(
            str(files[0].parent),
            weight_name=files[0].name,
            use_safetensors=True,
            local_files_only=True,
            unet_config=self.unet.config,
            return_lora_metadata=True,
        )
        foreign = sorted(key for key in state_dict if key.startswith("text_encoder"))
        if foreign:
            raise ValueError(f"{files[0].name}: has text encoder weights ({foreign[0]}); only the UNet takes a LoRA.")
        # UNet2DConditionModel.save_lora_adapter writes no prefix, the pipelines' save_lora_weights writes "unet."
        prefix = "unet" if any(key.startswith("unet.") for key in state_dict) else None
        adapter = files[0].stem.replace(".", "_")
        self.unet.load_lora_adapter(
            state_dict, prefix=prefix, network_alphas=alphas, adapter_name=adapter, metadata=metadata
        )
        if adapter not in getattr(self.unet, "peft_config", {}):
            raise ValueError(f"{files[0].name}: no LoRA weights for this UNet in it.")
        self.unet.set_adapters(adapter, weights=scale)

    def unload_lora(self) -> None:
        """Take the LoRA out again: the UNet is the one that it was before."""
        self.unet.unload_lora()

    @torch.no_grad()
    def __call__(
        self,
        image: Image.Image | Sequence[Image.Image],
        product_mask: Mask | Sequence[Mask],
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
        brushnet_scale: float = 1.0,
        brushnet_mask: Literal["bicubic", "nearest"] = "bicubic",
        control_images: Sequence[Image.Image | Sequence[Image.Image]] = (),
        control_masks: Sequence[Mask | Sequence[Mask] | None] | None = None,
        control_scales: Sequence[float] | None = None,
        control_starts: Sequence[float] | None = None,
        control_ends: Sequence[float] | None = None,
        mask_guidance: bool = True,
        mask_resize: Resize = "area",
        soft: SoftBlend = SoftBlend(),
        callback: Callable[[int, int], None] | None = None,
    ) -> InpaintingOutput:
        """Inpaint a batch of shots of one size.

        Args:
            image: The product on its canvas, RGB; one, or one a shot. What is outside the product is not looked at by
                BrushNet, and starts the picture where `strength` < 1.
            product_mask: 1 = product; PIL "L", or (..., H, W) 0..1; one, or one a shot.
            prompt: One for all, or one a shot.
            negative_prompt: Likewise.
            strength: Share of the schedule that is run; below 1 the original's outside shines through.
            num_inference_steps: Steps of the whole schedule.
            guidance_scale: Classifier-free guidance; 1 is none, and costs half.
            num_images: Pictures a shot, drawn one after the other from the shot's generator.
            generator: On the CPU, one a shot: its noise then depends on its seed alone, never on the batch it is in.
            height: Size to sample at, px; the image's own by default.
            width: Likewise.
            brushnet_scale: Factor on BrushNet's outputs; 0 leaves it out.
            brushnet_mask: How BrushNet's mask comes to latent size; the paper's is cubic, the released code's nearest.
            control_images: One entry a ControlNet: an image for all shots, or one a shot. Empty: no ControlNet is used.
            control_masks: One entry a ControlNet: a refined product mask for all shots, one a shot, or None for no
                mask. Left out, every net is guided by the product mask.
            control_scales: One a ControlNet, 1 by default; 0 leaves it out.
            control_starts: Share of the steps from which a net is on, one a ControlNet; it costs nothing outside.
            control_ends: Share of the steps up to which it is on.
            mask_guidance: False: no ControlNet is masked, whatever `control_masks` says.
            mask_resize: How masks come to the ControlNets' resolutions.
            soft: Settings of method "soft".
            callback: Told (steps done, steps in all) after each step.

        Raises:
            ValueError: numbers or sizes that do not fit together.
            torch.OutOfMemoryError: the batch is too large for the device.
        """
        # 1. Check, and bring everything to tensors, one entry a shot
        images = [image] if isinstance(image, Image.Image) else list(image)
        shots = len(images)
        size = (height or images[0].height, width or images[0].width)
        if any(side % self.vae_factor for side in size):
            raise ValueError(f"Height and width must be multiples of {self.vae_factor}, got {size[0]} x {size[1]}.")
        if not 0 < strength <= 1:
            raise ValueError(f"strength is a share, 0 < strength <= 1, got {strength}.")
        pixels = _pixels(images, size).to(self.device, self.vae.dtype)
        mask = _masks(product_mask, shots, size).to(self.device)
        prompts = _per_shot(prompt, shots, "prompt")
        negatives = _per_shot(negative_prompt, shots, "negative_prompt")
        generators = _per_image(generator, shots, num_images)

        # 2. Text: the guidance halves are [without, with]
        guided = guidance_scale > 1
        layout = _Layout(shots, num_images, halves=2 if guided else 1)
        embeds = layout.a_picture(self._encode_text(prompts))
        if guided:
            embeds = torch.cat([layout.a_picture(self._encode_text(negatives)), embeds])

        # 3. Timesteps
        self.scheduler.set_timesteps(num_inference_steps, device=self.device)
        skipped = (num_inference_steps - max(1, int(num_inference_steps * strength))) * self.scheduler.order
        if hasattr(self.scheduler, "set_begin_index"):
            self.scheduler.set_begin_index(skipped)
        timesteps = self.scheduler.timesteps[skipped:]
        step_options = {}
        if "generator" in inspect.signature(self.scheduler.step).parameters:
            step_options["generator"] = generators

        # 4. Noise, and the original where the method or the strength wants it
        latent_size = (size[0] // self.vae_factor, size[1] // self.vae_factor)
        noise = self._noise(generators or [None] * (shots * num_images), latent_size)
        original = torch.empty(0)
        if self.method.blend is not None or strength < 1:
            original = layout.a_picture(self._encode_image(pixels))
        if strength == 1:
            latents = noise * self.scheduler.init_noise_sigma
        else:
            latents = self.scheduler.add_noise(original, noise, timesteps[:1])
        blend_mask = layout.a_picture(F.adaptive_avg_pool2d(mask, latent_size)).to(latents.dtype)

        # 5. The branch's or the UNet's view of the masked image
        branch_cond = None
        if self.brushnet is not None and brushnet_scale != 0:
            seen = self._encode_image(masked_image(pixels, mask))
            kept = latent_mask(mask, latent_size, brushnet_mask).to(seen.dtype)
            branch_cond = layout.a_picture(torch.cat([seen, kept], dim=1))
        unet_cond = None
        if self.method.unet_channels == 9:
            # these UNets were trained on 1 = to be painted, and on grey there
            seen = self._encode_image(masked_image(pixels, mask, fill=0.0))
            painted = 1 - latent_mask(mask, latent_size, "nearest").to(seen.dtype)
            unet_cond = layout.in_both_halves(torch.cat([painted, seen], dim=1))

        # 6. ControlNets: masked, their images embedded once
        controls = self._prepare_controls(
            control_images, control_masks, control_scales, control_starts, control_ends,
            mask if mask_guidance else None, layout, size, mask_resize,
        )  # fmt: skip

        # 7. Denoise
        for step, t in enumerate(timesteps):
            model_input = self.scheduler.scale_model_input(latents, t)
            doubled = model_input.repeat(layout.halves, 1, 1, 1)

            residuals: dict[str, Any] = {}
            for control in controls:
                if control.active(step, len(timesteps)):
                    down, mid = control.net(
                        doubled, t, embeds, control.embedding, conditioning_scale=control.scale, return_dict=False
                    )
                    residuals = _add_residuals(residuals, down, mid)

            injection: AbstractContextManager[Any] = nullcontext()
            if self.brushnet is not None and branch_cond is not None:
                # without text both halves would get the same from BrushNet: it runs once, `inject` repeats
                injection = inject(self.unet, *self.brushnet(model_input, t, None, branch_cond, brushnet_scale))
            with injection:
                seen_by_unet = doubled if unet_cond is None else torch.cat([doubled, unet_cond], dim=1)
                prediction = self.unet(seen_by_unet, t, embeds, return_dict=False, **residuals)[0]
            if guided:
                without, with_text = prediction.chunk(2)
                prediction = without + guidance_scale * (with_text - without)

            if self.method.blend == "soft":
                prediction = self._blend_softly(prediction, model_input, original, blend_mask, t, soft)
            latents = self.scheduler.step(prediction, t, latents, return_dict=False, **step_options)[0]
            if self.method.blend == "hard":
                kept_latents = original
                if step + 1 < len(timesteps):
                    kept_latents = self.scheduler.add_noise(original, noise, timesteps[step + 1 : step + 2])
                latents = hard_blend(kept_latents, latents, blend_mask)
            if callback is not None:
                callback(step + 1, len(timesteps))

        # 8. Decode
        return InpaintingOutput(self._decode(latents), latents)

    def _encode_text(self, texts: Sequence[str]) -> Tensor:
        length = min(self.tokenizer.model_max_length, self.text_encoder.config.max_position_embeddings)
        tokens = self.tokenizer(
            list(texts), padding="max_length", max_length=length, truncation=True, return_tensors="pt"
        )
        with self._working(self.text_encoder):
            return self.text_encoder(tokens.input_ids.to(self.device))[0].to(self.unet.dtype)

    def _encode_image(self, pixels: Tensor) -> Tensor:
        """Encode (B, 3, H, W) in -1..1 to normalised latents; the distribution's mode, so that nothing is drawn."""
        with self._working(self.vae):
            latents = self.vae.encode(pixels).latent_dist.mode()
        shift, factor = self._normalisation(latents)
        return ((latents - shift) * factor).to(self.unet.dtype)

    def _decode(self, latents: Tensor) -> list[Image.Image]:
        shift, factor = self._normalisation(latents)
        with self._working(self.vae):
            pixels = self.vae.decode((latents / factor + shift).to(self.vae.dtype)).sample
        rounded = (pixels.float().clamp(-1, 1) * 127.5 + 127.5).round().to(torch.uint8)
        return [Image.fromarray(array) for array in rounded.permute(0, 2, 3, 1).cpu().numpy()]

    def _normalisation(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """Return shift and factor, (1, C, 1, 1), of the VAE's config: normalised = (latents - shift) * factor."""
        config = self.vae.config
        mean = torch.tensor(config.get("latents_mean") or [config.get("shift_factor") or 0.0]).to(latents)
        deviation = torch.tensor(config.get("latents_std") or [1.0]).to(latents)
        return mean.view(1, -1, 1, 1), config.scaling_factor / deviation.view(1, -1, 1, 1)

    def _noise(self, generators: Sequence[torch.Generator | None], size: tuple[int, int]) -> Tensor:
        """Draw each picture's noise on its own, on the CPU in float32: no device and no batch changes it."""
        shape = (1, self.vae.config.latent_channels, *size)
        noise = torch.cat([torch.randn(shape, generator=generator) for generator in generators])
        return noise.to(self.device, self.unet.dtype)

    def _prepare_controls(
        self,
        images: Sequence[Image.Image | Sequence[Image.Image]],
        masks: Sequence[Mask | Sequence[Mask] | None] | None,
        scales: Sequence[float] | None,
        starts: Sequence[float] | None,
        ends: Sequence[float] | None,
        product_mask: Tensor | None,
        layout: _Layout,
        size: tuple[int, int],
        resize: Resize,
    ) -> list[_Control]:
        """Mask each net (`product_mask` None: none of them) and embed its images once."""
        nets = len(self.controlnets)
        if not images:
            return []
        given = {"images": images, "masks": masks, "scales": scales, "starts": starts, "ends": ends}
        for name, values in given.items():
            if values is not None and len(values) != nets:
                raise ValueError(f"There are {nets} ControlNets, but control_{name} has {len(values)} entries.")
        controls = []
        for i, net in enumerate(self.controlnets):
            shown = images[i]
            of_shots = [shown] if isinstance(shown, Image.Image) else list(shown)
            if len(of_shots) not in (1, layout.shots):
                raise ValueError(f"{layout.shots} shots need one control image or {layout.shots}, got {len(of_shots)}.")
            pixels = ((_pixels(of_shots, size) + 1) / 2).to(net.device, net.dtype)
            embedding = layout.in_both_halves(net.controlnet_cond_embedding(pixels))
            own = product_mask if masks is None else masks[i]
            if product_mask is not None and own is not None:
                mask = _masks(own, layout.shots, size).to(net.device)
                net = MaskGuidedControlNet(net, layout.in_both_halves(mask), resize=resize)
            controls.append(
                _Control(
                    without_embedding(net),
                    embedding,
                    scale=scales[i] if scales is not None else 1.0,
                    start=starts[i] if starts is not None else 0.0,
                    end=ends[i] if ends is not None else 1.0,
                )
            )
        return controls

    def _blend_softly(
        self, prediction: Tensor, sample: Tensor, original: Tensor, mask: Tensor, t: Tensor, soft: SoftBlend
    ) -> Tensor:
        """Blend the picture that the UNet predicts, and say what the UNet would have predicted for the blend.

        Works on the prediction, before the scheduler's step, so that any scheduler will do. `sample` is the UNet's
        input, sqrt(a) * picture + sqrt(1 - a) * noise.
        """
        a = self.scheduler.alphas_cumprod[int(t)].to(sample.device, torch.float32)
        signal, deviation = a.sqrt(), (1 - a).sqrt()
        kind = self.scheduler.config.prediction_type
        if kind == "epsilon":
            picture = (sample - deviation * prediction) / signal
        elif kind == "v_prediction":
            picture = signal * sample - deviation * prediction
        else:
            picture = prediction
        sigma = (deviation / signal).item()
        picture = soft_blend(original, picture, mask, soft.power, soft.scale, soft.detail, sigma)
        if kind == "sample":
            return picture
        noise = (sample - signal * picture) / deviation
        blended = noise if kind == "epsilon" else signal * noise - deviation * picture
        return blended.to(prediction.dtype)


def masked_image(pixels: Tensor, product_mask: Tensor, fill: float = -1.0) -> Tensor:
    """Blank out what is not the product: black for BrushNet, grey (`fill` 0) for 9-channel UNets.

    pixels (B, 3, H, W), -1..1; mask (B, 1, H, W), 1 = product.
    """
    return torch.where(product_mask >= 0.5, pixels, fill)


def latent_mask(
    product_mask: Tensor, size: tuple[int, int], interpolation: Literal["bicubic", "nearest"] = "bicubic"
) -> Tensor:
    """Bring a product mask (B, 1, H, W) to latent size (h, w) for BrushNet: binary, then reduced, 0..1, 1 = kept.

    Cubic as in the paper (3.1.1), over the whole cell and without overshoot; "nearest" is what the released code does.
    """
    binary = (product_mask >= 0.5).to(product_mask.dtype)
    if interpolation == "nearest":
        return F.interpolate(binary, size, mode="nearest")
    return F.interpolate(binary, size, mode="bicubic", antialias=True, align_corners=False).clamp(0, 1)


def _method(name: str) -> Method:
    if name not in METHODS:
        raise ValueError(f"There is no inpainting method {name!r}; there are {', '.join(METHODS)}.")
    if METHODS[name].planned:
        ready = ", ".join(key for key, method in METHODS.items() if not method.planned)
        raise ValueError(f"Inpainting method {name!r} is planned but not there yet; choose one of {ready}.")
    return METHODS[name]


def _pixels(images: Sequence[Image.Image], size: tuple[int, int]) -> Tensor:
    """Images as (B, 3, H, W), -1..1, resampled where they have another size."""
    height, width = size
    arrays = []
    for image in images:
        rgb = image.convert("RGB")
        if rgb.size != (width, height):
            rgb = rgb.resize((width, height), Image.Resampling.LANCZOS)
        arrays.append(np.asarray(rgb))
    return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).float() / 127.5 - 1


def _masks(masks: Mask | Sequence[Mask], shots: int, size: tuple[int, int]) -> Tensor:
    """Masks as (shots, 1, H, W), 0..1, resampled by area where they have another size; one for all is repeated."""
    given = [masks] if isinstance(masks, Image.Image | np.ndarray | Tensor) else list(masks)
    tensors = []
    for mask in given:
        if isinstance(mask, Image.Image):
            mask = np.asarray(mask.convert("L"), np.float32) / 255
        tensor = torch.as_tensor(mask, dtype=torch.float32)
        tensors.append(tensor.reshape(-1, 1, *tensor.shape[-2:]))
    stacked = torch.cat(tensors)
    if len(stacked) not in (1, shots):
        raise ValueError(f"{shots} shots need one mask or {shots}, got {len(stacked)}.")
    if not (stacked.min() >= 0 and stacked.max() <= 1):
        raise ValueError("Masks are 0..1, 1 = product.")
    if stacked.shape[-2:] != size:
        stacked = F.interpolate(stacked, size, mode="area")
    return stacked.expand(shots, -1, -1, -1)


def _per_shot(texts: str | Sequence[str], shots: int, name: str) -> list[str]:
    listed = [texts] * shots if isinstance(texts, str) else list(texts)
    if len(listed) != shots:
        raise ValueError(f"{shots} shots need one {name} or {shots}, got {len(listed)}.")
    return listed


def _per_image(
    generator: torch.Generator | Sequence[torch.Generator] | None, shots: int, num_images: int
) -> list[torch.Generator] | None:
    if generator is None:
        return None
    listed = [generator] * shots if isinstance(generator, torch.Generator) else list(generator)
    if len(listed) != shots:
        raise ValueError(f"{shots} shots need {shots} generators, got {len(listed)}.")
    if any(one.device.type != "cpu" for one in listed):
        raise ValueError("Generators must be on the CPU: then the noise is the same on every device.")
    return [one for one in listed for _ in range(num_images)]


def _add_residuals(sum_so_far: dict[str, Any], down: Sequence[Tensor], mid: Tensor) -> dict[str, Any]:
    if sum_so_far:
        down = [a + b for a, b in zip(sum_so_far["down_block_additional_residuals"], down, strict=True)]
        mid = sum_so_far["mid_block_additional_residual"] + mid
    return {"down_block_additional_residuals": down, "mid_block_additional_residual": mid}
