"""Segment the product: a fast salient-object net, and HQ-SAM prompted by it (paper, section 3.1, step 1).

Both map an RGB image to a soft mask, 1 = product. They are largely independent, so the checks report their disagreement
as uncertainty.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Protocol

import cv2
import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from pipelines.models.profile import BUNDLED_NET
from pipelines.models.weights import read_weights, reading
from pipelines.vision.salient_checkpoints import SalientModel, load_salient

if TYPE_CHECKING:
    from segment_anything_hq import SamPredictor
    from segment_anything_hq.modeling import Sam

    from pipelines.models.profile import Profile

WORKING_SIDE = 1024
"""Longer side of the picture for segmentation, px; HQ-SAM uses no more. Only the edge is refined at full resolution."""

MASK_SIDE = 256
"""Side of SAM's input and output masks: a quarter of the 1,024 px of its encoder."""

MIN_SALIENCY = 0.5
LOGIT_SCALE = 16.0
"""Logit of a fully salient pixel in SAM's mask prompt: the size of SAM's own logits."""

STABLE = 0.85
"""Stability of HQ-SAM's mask below which the object's edge is uncertain."""

SPECK = 0.002
"""Holes below this share of a mask are uncertainty about print and seams, not gaps."""


def working_picture(image: np.ndarray) -> np.ndarray:
    """Return a picture `(H, W, 3)` uint8 with its longer side at most WORKING_SIDE."""
    scale = WORKING_SIDE / max(image.shape[:2])
    if scale >= 1:
        return image
    size = (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale)))
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA)


class Segmenter(Protocol):
    """Segments the product in a picture."""

    def segment(self, image: np.ndarray) -> np.ndarray:
        """Map `(H, W, 3)` uint8 RGB to a soft mask `(H, W)` float32, 0..1, 1 = product."""


class SalientSegmenter:
    """A net for salient objects: the bundled U²-Net-P at 320 px, a tenth of HQ-SAM's time, or a published one."""

    def __init__(self, model: SalientModel, device: str = "cpu") -> None:
        # channels last is 25 % faster on a CPU
        self._net = model.net.eval().requires_grad_(False).to(device).to(memory_format=torch.channels_last)
        self._model = model
        self._device = device

    @classmethod
    def from_file(cls, path: Path, kind: str = BUNDLED_NET, device: str = "cpu") -> SalientSegmenter:
        """Load weights in the bundled format, or a published checkpoint of a `kind`; see `load_salient`."""
        return cls(load_salient(path, kind), device)

    @classmethod
    def from_profile(cls, profile: Profile, device: str = "cpu", part: str = "salient") -> SalientSegmenter:
        """Load a part of the profile and check its digest."""
        found = profile.part(part).check()
        return cls.from_file(found.weights[0], found.kind, device)

    def segment(self, image: np.ndarray) -> np.ndarray:
        """See `Segmenter.segment`.

        Publishers stretch each map to 0..1. It is left as it is here, so that a picture of nothing stays empty.
        """
        height, width = image.shape[:2]
        batch = self._model.prepare(image).to(self._device).contiguous(memory_format=torch.channels_last)
        with torch.inference_mode():
            saliency = self._net(batch)[0].sigmoid()[0, 0].cpu().numpy()
        return cv2.resize(saliency, (width, height), interpolation=cv2.INTER_LINEAR)


@dataclass(frozen=True, slots=True)
class Prompt:
    """HQ-SAM's prompt, in pixels of the image.

    Attributes:
        box: `(4,)` float, left, top, right, bottom, or `(0,)`: none.
        points: `(N, 2)` float, x and y.
        labels: `(N,)` int, 1 on the product, 0 outside it.
        mask: A rough mask `(H, W)` float in 0..1, or None.
    """

    box: np.ndarray
    points: np.ndarray
    labels: np.ndarray
    mask: np.ndarray | None = None


def prompt_from(saliency: np.ndarray, points: int = 3) -> Prompt | None:
    """Convert a saliency map `(H, W)`, 0..1, to a prompt; None if nothing is salient.

    The box contains every salient piece of at least 4 % of the largest one's area, so a set stays one product. Points
    lie where the salient region is widest, far from each other. The map is not used as a mask prompt: SAM trusts a mask
    prompt more than the picture and keeps its errors (measured: 0.94 against 0.92 IoU over scenes).
    """
    core = main_pieces(saliency > MIN_SALIENCY)
    if not core.any():
        return None
    rows, columns = np.flatnonzero(core.any(axis=1)), np.flatnonzero(core.any(axis=0))
    box = np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], np.float32)
    chosen = deepest_points(core, points)
    return Prompt(box, chosen, np.ones(len(chosen), np.int64))


def deepest_points(mask: np.ndarray, count: int) -> np.ndarray:
    """Return up to `count` points `(N, 2)` float32, x and y, where a boolean mask is widest, far from each other."""
    inside = np.pad(mask, 1).astype(np.uint8)
    chosen: list[tuple[int, int]] = []
    for _ in range(count):
        depth = cv2.distanceTransform(inside, cv2.DIST_L2, 5)
        y, x = np.unravel_index(int(depth.argmax()), depth.shape)
        if depth[y, x] < 1:
            break
        chosen.append((int(x) - 1, int(y) - 1))
        cv2.circle(inside, (int(x), int(y)), int(depth[y, x] * 0.8) + 1, 0, -1)
    return np.array(chosen, np.float32).reshape(-1, 2)


def main_pieces(mask: np.ndarray, share: float = 0.04) -> np.ndarray:
    """Return the connected pieces of a boolean mask with at least `share` of the largest one's area."""
    count, labels, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    if count <= 1:
        return np.zeros_like(mask, dtype=bool)
    areas = stats[1:, cv2.CC_STAT_AREA]
    kept = np.concatenate([[False], areas >= share * areas.max()])
    return kept[labels]


def filled(mask: np.ndarray, share: float = 0.02) -> np.ndarray:
    """Return a soft mask's main pieces, those of `share` of the largest one's area, with small holes filled."""
    kept = main_pieces(mask > 0.5, share)
    _, labels, stats, _ = cv2.connectedComponentsWithStats((~kept).astype(np.uint8), connectivity=4)
    small = stats[:, cv2.CC_STAT_AREA] < SPECK * kept.sum()
    small[0] = False
    return np.where(small[labels], 1.0, mask * cv2.dilate(kept.astype(np.uint8), np.ones((9, 9), np.uint8)))


def stability(mask: np.ndarray) -> float:
    """Return SAM's stability score of a soft mask: the IoU of its masks at a high and a low threshold.

    Kirillov et al., "Segment Anything", ICCV 2023, appendix B ("Filtering").
    """
    strict, lax = int((mask > 0.73).sum()), int((mask > 0.27).sum())  # logits above 1 and above -1
    return strict / max(1, lax)


@dataclass(frozen=True, slots=True)
class Encoding:
    """What HQ-SAM's image encoder made of a picture: all that a later prompt needs of it.

    Attributes:
        features: `(1, 256, 64, 64)`, the encoder's output.
        details: Output of its first blocks, which HQ-SAM's own output uses.
        size: Height and width of the picture.
        scaled: Height and width at which the encoder saw it.
    """

    features: Tensor
    details: Tensor
    size: tuple[int, int]
    scaled: tuple[int, int]

    def to_bytes(self) -> bytes:
        """Encode in half precision, about 3.4 MB for `vit_tiny`."""
        sizes = torch.tensor([self.size, self.scaled])
        halves = {"features": self.features.half(), "details": self.details.half()}
        return save({name: part.cpu().contiguous() for name, part in halves.items()} | {"sizes": sizes})

    @classmethod
    def from_bytes(cls, data: bytes) -> Encoding:
        """Decode what `to_bytes` returned. Raises ValueError for other bytes."""
        try:
            parts = load(data)
            size, scaled = ((int(h), int(w)) for h, w in parts["sizes"])
            return cls(parts["features"].float(), parts["details"].float(), size, scaled)
        except (SafetensorError, KeyError) as error:
            raise ValueError(f"these bytes are no encoding of a picture: {error}") from None


class HQSamSegmenter:
    """HQ-SAM (Ke et al. 2023, "Segment Anything in High Quality"), prompted by a salient-object segmenter or a caller.

    The slow image encoding is cached, so further prompts for the same picture are fast. Without `salient`, only a
    caller prompts it.
    """

    def __init__(self, sam: Sam, salient: Segmenter | None, device: str = "cpu") -> None:
        predictor_class = _segment_anything().SamPredictor
        _speed_up(sam.eval().requires_grad_(False))
        self._predictor: SamPredictor = predictor_class(sam.to(device))
        self._salient = salient
        self._encoded: np.ndarray | None = None

    @classmethod
    def from_file(cls, path: Path, salient: Segmenter, device: str = "cpu") -> HQSamSegmenter:
        """Load a whole `vit_tiny` model; half precision is converted to float32."""
        return cls(build_sam(path), salient, device)

    @classmethod
    def from_profile(cls, profile: Profile, salient: Segmenter | None, device: str = "cpu") -> HQSamSegmenter:
        """Load the profile's part `hqsam` and check its digest."""
        part = profile.part("hqsam").check()
        return cls(build_sam(part.weights[0], part.kind.removeprefix("sam_hq_")), salient, device)

    def segment(self, image: np.ndarray) -> np.ndarray:
        """See `Segmenter.segment`. Returns zeros if nothing in the picture is salient."""
        if self._salient is None:
            raise TypeError("this HQ-SAM has no salient-object segmenter: prompt it")
        prompt = prompt_from(self._salient.segment(image))
        if prompt is None:
            return np.zeros(image.shape[:2], np.float32)
        return self.segment_prompted(image, prompt)

    def encode(self, image: np.ndarray) -> Encoding:
        """Encode a picture `(H, W, 3)` uint8 RGB, unless it was the last one; the answer can be kept and restored."""
        if self._encoded is not image:
            with torch.inference_mode():
                self._predictor.set_image(image)
            self._encoded = image
        seen: Any = self._predictor
        return Encoding(seen.features, seen.interm_features[0], seen.original_size, seen.input_size)

    def restore(self, image: np.ndarray, encoding: Encoding) -> None:
        """Take an encoding of this picture instead of computing it. Raises ValueError if it is another picture's."""
        if encoding.size != image.shape[:2]:
            raise ValueError(f"the encoding is of a picture of {encoding.size}, not {image.shape[:2]}")
        seen: Any = self._predictor
        seen.original_size, seen.input_size = encoding.size, encoding.scaled
        seen.features = encoding.features.to(seen.device)
        seen.interm_features = [encoding.details.to(seen.device)]
        seen.is_image_set = True
        self._encoded = image

    def segment_prompted(self, image: np.ndarray, prompt: Prompt, passes: int = 2) -> np.ndarray:
        """Segment the object of `prompt`.

        Args:
            image: `(H, W, 3)` uint8 RGB.
            prompt: In pixels of `image`.
            passes: Decoder passes; each uses the previous mask as its mask prompt.

        Returns:
            `(H, W)` float32, 0..1: the sigmoid of the mask's logits.
        """
        self.encode(image)
        mask_input = None if prompt.mask is None else mask_prompt(prompt.mask)
        for _ in range(passes):
            with torch.inference_mode():
                logits, _, low = self._predictor.predict(
                    point_coords=prompt.points if len(prompt.points) else None,
                    point_labels=prompt.labels if len(prompt.points) else None,
                    box=prompt.box if len(prompt.box) else None,
                    mask_input=mask_input,
                    multimask_output=False,
                    return_logits=True,
                )
            mask_input = np.clip(low, -2 * LOGIT_SCALE, 2 * LOGIT_SCALE)
        return (1 / (1 + np.exp(-np.clip(logits[0], -30, 30)))).astype(np.float32)


class _Remembered(nn.Module):
    """A module that answers the same tensor, or a view of it, without computing again."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self._module = module
        self._last: tuple[Tensor, Tensor] | None = None

    def forward(self, given: Tensor) -> Tensor:
        """Return the module's output. The input is kept, so its address is that of no other tensor."""
        if self._last is None or self._last[0].data_ptr() != given.data_ptr() or self._last[0].shape != given.shape:
            self._last = given, self._module(given)
        return self._last[1]


def _speed_up(sam: Sam) -> None:
    """Save a fifth of the encoder's CPU time: fold batch normalisation into the convolutions, and work channels last.
    In the decoder, what depends on the picture alone is computed once a picture.

    The mask's probabilities change by less than 1e-5. The model can no longer be trained or saved.
    """
    decoder: Any = sam.mask_decoder
    for name in ("embedding_encoder", "compress_vit_feat"):
        setattr(decoder, name, _Remembered(getattr(decoder, name)))
    for block in sam.image_encoder.modules():
        if isinstance(block, nn.Sequential) and {"c", "bn"} == set(block._modules):  # TinyViT's pair
            pair: Any = block
            pair.c, pair.bn = fuse_conv_bn_eval(pair.c, pair.bn), nn.Identity()
    sam.image_encoder.to(memory_format=torch.channels_last)


def mask_prompt(mask: np.ndarray) -> np.ndarray:
    """Convert a soft mask `(H, W)` to SAM's format: logits `(1, 256, 256)`, the longer side fitted, background
    elsewhere."""
    height, width = mask.shape
    scale = MASK_SIDE / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    small = cv2.resize(mask.astype(np.float32), size, interpolation=cv2.INTER_AREA)
    prompt = np.full((1, MASK_SIDE, MASK_SIDE), -LOGIT_SCALE, np.float32)
    prompt[0, : size[1], : size[0]] = (2 * small - 1) * LOGIT_SCALE
    return prompt


HQ_PARTS = ("hf_token", "hf_mlp", "compress_vit_feat", "embedding_encoder", "embedding_maskfeature")
"""Modules that HQ-SAM adds to SAM's mask decoder."""

ENCODER_WIDTHS = {"vit_b": 768, "vit_l": 1024, "vit_h": 1280}
"""Widths of the image encoders; they identify the published checkpoints."""


def build_sam(path: Path | None = None, kind: str = "vit_tiny") -> Sam:
    """Build HQ-SAM of a `kind`, "vit_tiny", "vit_b", "vit_l" or "vit_h", with the weights of a file, if given.

    The file is safetensors or a published `.pth` (tensors only, never code). Raises IntegrityError, which names it, if
    it holds another model. Raises ValueError for an unknown kind.
    """
    if kind != "vit_tiny" and kind not in ENCODER_WIDTHS:
        raise ValueError(f"There is no HQ-SAM {kind!r}; there are vit_tiny, {', '.join(ENCODER_WIDTHS)}.")
    if path is None:
        return _segment_anything().sam_model_registry[kind]()
    expected = f"HQ-SAM {kind}"
    weights = read_weights(path, expected)
    with reading(path, expected):
        width = weights["image_encoder.patch_embed.proj.weight"].shape[0] if kind != "vit_tiny" else 0
        if width != ENCODER_WIDTHS.get(kind, 0):
            raise ValueError(f"its encoder is {width} wide, not {ENCODER_WIDTHS[kind]}")
        sam = _segment_anything().sam_model_registry[kind]() if kind == "vit_tiny" else _build_vit(weights, width)
        missing = sam.load_state_dict(weights, strict=False).missing_keys
        if missing:
            raise ValueError(f"{len(missing)} tensors are missing, {missing[0]} among them")
    return sam


def build_mobile_sam(path: Path) -> Sam:
    """Build HQ-SAM `vit_tiny` with the published `mobile_sam.pt` and an HQ output that adds nothing: SAM's own mask.

    Training of the HQ output starts from it and is compared with it. Raises IntegrityError if the file holds another
    model.
    """
    weights = read_weights(path, "MobileSAM")
    sam = build_sam()
    with reading(path, "MobileSAM"):
        missing, unexpected = sam.load_state_dict(weights, strict=False)
        lacking = [name for name in missing if not name.startswith(tuple(f"mask_decoder.{part}" for part in HQ_PARTS))]
        if unexpected or lacking:
            raise ValueError(f"unexpected tensors {unexpected[:3]}, missing ones {lacking[:3]}")
    last = sam.mask_decoder.hf_mlp.layers[-1]
    torch.nn.init.zeros_(last.weight)
    torch.nn.init.zeros_(last.bias)
    return sam


def _build_vit(weights: Mapping[str, Tensor], width: int) -> Sam:
    """Build a SAM with a ViT encoder as deep as the weights. Blocks with global attention have longer position
    tables."""
    tables = {
        int(name.split(".")[2]): table.shape
        for name, table in weights.items()
        if name.startswith("image_encoder.blocks.") and name.endswith(".attn.rel_pos_h")
    }
    window = min(shape[0] for shape in tables.values())
    _segment_anything()
    from segment_anything_hq.build_sam import _build_sam

    return _build_sam(
        encoder_embed_dim=width,
        encoder_depth=len(tables),
        encoder_num_heads=width // tables[0][1],
        encoder_global_attn_indexes=[block for block, shape in tables.items() if shape[0] > window],
    )


def _segment_anything():  # type: ignore[no-untyped-def]
    """Import the library without timm and torchvision, a second of modules of which it uses five functions.

    Its TinyViT takes three functions from `timm.models.layers`, which are those of `timm.layers`, and adds itself to a
    registry. Its predictor resizes by Pillow through torchvision; the rest of torchvision is for its mask generator.
    During the import stand-ins have these names; afterwards both libraries can be imported as usual.
    """
    if "segment_anything_hq" not in sys.modules:
        stand_ins = {} if "timm" in sys.modules else _timm_functions()
        stand_ins |= {} if "torchvision" in sys.modules else _torchvision_functions()
        sys.modules |= stand_ins
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                import_module("segment_anything_hq")
        finally:
            for name in stand_ins:
                del sys.modules[name]
    return sys.modules["segment_anything_hq"]


def _timm_functions() -> dict[str, ModuleType]:
    """Return stand-ins of timm's modules by name, without the models that `import timm` loads."""
    timm = find_spec("timm")
    assert timm is not None
    assert timm.origin is not None
    layers, registry = ModuleType("timm.models.layers"), ModuleType("timm.models.registry")
    for name in ("drop", "helpers", "weight_init"):  # these import torch alone
        spec = spec_from_file_location(f"timm.layers.{name}", Path(timm.origin).parent / "layers" / f"{name}.py")
        module = module_from_spec(spec)  # type: ignore[arg-type]
        spec.loader.exec_module(module)  # type: ignore[union-attr]
        vars(layers).update({name: value for name, value in vars(module).items() if not name.startswith("__")})
    registry.register_model = lambda build: build  # type: ignore[attr-defined]
    names = ("timm", "timm.models")
    return {name: ModuleType(name) for name in names} | {layers.__name__: layers, registry.__name__: registry}


def _torchvision_functions() -> dict[str, ModuleType]:
    """Return stand-ins of torchvision's modules by name. To a picture of Pillow they do what torchvision does."""
    functional, boxes = ModuleType("torchvision.transforms.functional"), ModuleType("torchvision.ops.boxes")
    functional.to_pil_image = Image.fromarray  # type: ignore[attr-defined]
    functional.resize = lambda image, size: image.resize(size[::-1], Image.Resampling.BILINEAR)  # type: ignore[attr-defined]
    boxes.batched_nms = boxes.box_area = None  # type: ignore[attr-defined]
    names = ("torchvision", "torchvision.transforms", "torchvision.ops")
    return {name: ModuleType(name) for name in names} | {functional.__name__: functional, boxes.__name__: boxes}
