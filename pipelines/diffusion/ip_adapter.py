"""IP-Adapter: an image prompt in addition to the text, limited by a mask. Library surface: no scene or command uses it
yet.

Ye et al., "IP-Adapter: Text Compatible Image Prompt Adapter for Text-to-Image Diffusion Models", 2023
(https://huggingface.co/papers/2308.06721). Each cross-attention of the UNet also attends to a few image tokens. Its
result is multiplied by a mask before it is added. The paper's mask guidance comes from there (section 2.2). Attention
and masks are diffusers' own; this module reads the files and prepares the inputs.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from diffusers.image_processor import IPAdapterMaskProcessor
from diffusers.models.attention_processor import IPAdapterAttnProcessor2_0
from diffusers.models.embeddings import ImageProjection
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor
from transformers import CLIPImageProcessor, CLIPVisionModelWithProjection

from pipelines.diffusion.inputs import Layout
from pipelines.models.files import LEGACY_SUFFIXES
from pipelines.models.weights import load_transformer, reading

Weights = Mapping[str, Mapping[str, Tensor]]
"""`{"image_proj": tensors, "ip_adapter": tensors}`, under their published names."""

_READS = {"proj.weight": "proj.weight", "latents": "proj_in.weight", "proj.3.weight": "proj.0.weight"}
"""Published image projections: a tensor that identifies each kind, and the tensor whose input is the image embedding.
In order: plain, "plus", "full face"."""


@dataclass(frozen=True, slots=True)
class ImagePrompt:
    """Inputs of the UNet's whole batch: `embeds` are its `image_embeds`, `attention` its `cross_attention_kwargs`."""

    embeds: list[Tensor]
    attention: dict[str, Any] | None


class IPAdapter:
    """An adapter in a UNet, and its image encoder. It has no effect until `prompt` sets its scale.

    Args:
        unet: Of the base that the adapter was trained for. Its cross-attentions get diffusers'
            `IPAdapterAttnProcessor2_0`; `remove` restores them.
        image_encoder: CLIP's vision tower that the adapter was trained with.
        weights: Its tensors, see `Weights`.

    Raises:
        ValueError: the weights are for another UNet or image encoder, or of an unknown kind.
    """

    def __init__(self, unet: UNet2DConditionModel, image_encoder: CLIPVisionModelWithProjection, weights: Weights):
        self.unet = unet
        self.image_encoder = image_encoder
        side = image_encoder.config.image_size
        self._pixels = CLIPImageProcessor(size={"shortest_edge": side}, crop_size={"height": side, "width": side})
        self._masks = IPAdapterMaskProcessor(do_resize=False)
        _check(weights, unet, image_encoder)
        self._before = dict(unet.attn_processors)
        try:
            # without meta tensors, which hide missing weights
            unet._load_ip_adapter_weights([weights], low_cpu_mem_usage=False)
        except BaseException:
            self.remove()
            raise
        self._set_scale(0.0)

    @classmethod
    def from_files(
        cls,
        unet: UNet2DConditionModel,
        path: Path,
        image_encoder: Path,
        encoder_weights: Collection[Path] | None = None,
    ) -> IPAdapter:
        """Load a published adapter into a UNet. Check files from elsewhere first with `ModelPart.check`.

        Args:
            unet: See the class.
            path: `ip-adapter_sd15.safetensors` or a similar file. A legacy `.bin` is read as tensors only, never as
                code.
            image_encoder: A folder with CLIP's vision tower.
            encoder_weights: Which of its files to read; see `load_transformer`.

        Raises:
            IntegrityError: a file is broken, or for another base or encoder; the message names it.
        """
        encoder = load_transformer(CLIPVisionModelWithProjection, image_encoder, "CLIP's vision tower", encoder_weights)
        with reading(path, "an IP-Adapter for this base"):
            return cls(unet, encoder, _read(path))

    @torch.no_grad()
    def prompt(
        self,
        images: Sequence[Image.Image],
        masks: Tensor | None,
        scale: float,
        layout: Layout,
        latent_size: tuple[int, int],
    ) -> ImagePrompt:
        """Encode images for a batch, convert masks to diffusers' format and set the adapter's scale.

        Args:
            images: One for all shots, or one per shot. Empty: the adapter has no effect, as at scale 0.
            masks: (shots, 1, H, W), 0..1, 1 = where the adapter has an effect; None: everywhere.
            scale: Its weight; the text's is 1.
            layout: Of the batch.
            latent_size: Sampled (h, w).

        Raises:
            ValueError: the number of images is wrong, or diffusers would misplace a mask at this size.
        """
        self._set_scale(scale if images else 0.0)
        if not images:
            return ImagePrompt([layout.for_both_halves(self._nothing())], None)
        if len(images) not in (1, layout.shots):
            raise ValueError(f"{layout.shots} shots need one ip_adapter_image or {layout.shots}, got {len(images)}.")
        embeds = layout.by_half(*self._encode(images))
        if masks is None:
            return ImagePrompt([embeds], None)
        self._check_size(latent_size)
        # one binary mask per image and half, which diffusers' downsampling uses unchanged
        binary = self._masks.preprocess(masks.clone())
        return ImagePrompt([embeds], {"ip_adapter_masks": [layout.for_both_halves(binary.to(embeds))]})

    def remove(self) -> None:
        """Remove the adapter and restore the UNet."""
        self.unet.encoder_hid_proj = None  # first: the resampler of "plus" has its own attention
        self.unet.config.encoder_hid_dim_type = None
        self.unet.set_attn_processor(dict(self._before))  # it empties its argument

    def _encode(self, images: Sequence[Image.Image]) -> tuple[Tensor, Tensor]:
        """Return embeddings (without, with) the images: (B, 1, D), or (B, 1, tokens, D) of the second to last layer.
        Only the plain adapter reads the former."""
        encoder = self.image_encoder
        pixels = self._pixels(images=[image.convert("RGB") for image in images], return_tensors="pt").pixel_values
        pixels = pixels.to(encoder.device, encoder.dtype)
        if self._reads_pooled:
            code = encoder(pixels).image_embeds[:, None].to(self.unet.dtype)
            return torch.zeros_like(code), code
        without, code = (
            encoder(x, output_hidden_states=True).hidden_states[-2][:, None].to(self.unet.dtype)
            for x in (torch.zeros_like(pixels), pixels)
        )
        return without, code

    def _nothing(self) -> Tensor:
        """Return an unused embedding of the right shape."""
        config = self.image_encoder.config
        shape = (1, 1, config.projection_dim) if self._reads_pooled else (1, 1, 1, config.hidden_size)
        return torch.zeros(shape, device=self.unet.device, dtype=self.unet.dtype)

    @property
    def _reads_pooled(self) -> bool:
        return isinstance(self.unet.encoder_hid_proj.image_projection_layers[0], ImageProjection)

    def _set_scale(self, scale: float) -> None:
        for processor in self.unet.attn_processors.values():
            if isinstance(processor, IPAdapterAttnProcessor2_0):
                processor.scale = [scale]

    def _check_size(self, latent_size: tuple[int, int]) -> None:
        """Raise ValueError for sizes at which diffusers' attention misplaces masks. It derives a feature map's height
        from its number of cells."""
        down: Any = self.unet.down_blocks
        for level, block in enumerate(down):
            if not (hasattr(block, "attentions") or level == len(down) - 1):
                continue
            height, width = (math.ceil(side / 2**level) for side in latent_size)
            guess = int(math.sqrt(height * width * latent_size[0] / latent_size[1]))
            guess += int(guess > 0 and height * width % guess != 0)
            if guess != height:
                raise ValueError(
                    f"An IP-Adapter's mask does not fit latents of {latent_size[0]} x {latent_size[1]}: diffusers "
                    f"misplaces it at {height} x {width}. Their sides should be multiples of {2 ** (len(down) - 1)}."
                )


def _read(path: Path) -> Weights:
    if path.suffix in LEGACY_SUFFIXES:
        stored = torch.load(path, map_location="cpu", weights_only=True)
        return {part: stored[part] for part in ("image_proj", "ip_adapter")}
    weights: dict[str, dict[str, Tensor]] = {"image_proj": {}, "ip_adapter": {}}
    for name, value in load_file(path).items():
        part, _, rest = name.partition(".")
        weights[part][rest] = value
    return weights


def _check(weights: Weights, unet: Any, image_encoder: Any) -> None:
    """Raise ValueError if weights are for another UNet or image encoder, or of an unknown kind."""
    projection, attention = weights["image_proj"], weights["ip_adapter"]
    kinds = [kind for kind in _READS if kind in projection]
    if not kinds:
        raise ValueError("none of the known image projections is in it: plain, plus, full face")
    config = image_encoder.config
    width = config.projection_dim if kinds[0] == "proj.weight" else config.hidden_size
    found = projection[_READS[kinds[0]]].shape[1]
    if found != width:
        raise ValueError(f"it reads images of {found} numbers, and the image encoder gives {width}")
    wanted = unet.config.cross_attention_dim
    widths = {value.shape[1] for name, value in attention.items() if name.endswith("to_k_ip.weight")}
    places = sum(name.endswith("attn2.processor") for name in unet.attn_processors)
    count = sum(name.endswith("to_k_ip.weight") for name in attention)
    if widths != {wanted} or count != places:
        raise ValueError(
            f"it is for {count} cross-attentions of text width {', '.join(map(str, sorted(widths)))}, "
            f"and this base has {places} of {wanted}"
        )
