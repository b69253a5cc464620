"""Scenes: reviewed presets in YAML, one file a scene. What a merchandiser chooses when they choose a look.

A scene says everything that decides how a shot looks: prompt, inpainting method, controls, LoRA, placement, channel and
the thresholds of its checks. Unknown keys are refused, so a typing error cannot silently fall back to a default.
"""

from __future__ import annotations

import string
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from pipelines.contracts import canonical_json, sha256_hex
from pipelines.diffusion.control_kinds import REFUSED_KINDS, Kind
from pipelines.errors import UsageError

FOLDER = Path(__file__).resolve().parent
PLACEHOLDERS = ("product", "tags", "colour", "category")
"""What a prompt template may ask of a product's description."""

Share = Annotated[float, Field(ge=0, le=1)]
Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,62}$")]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class MaskGuidance(_Part):
    """How the product mask is refined before it bounds a ControlNet (paper, section 3.2).

    Diameters in px of the model's canvas, 0 = off.
    """

    closing: int = Field(3, ge=0, le=63)
    opening: int = Field(0, ge=0, le=63)
    dilation: int = Field(3, ge=0, le=63)


class Control(_Part):
    """One ControlNet: what it draws, from where, how strongly and over which share of the steps.

    Of source `photo` are the edges of the photo, where the product is; of `cutout` those of the product on nothing,
    with its silhouette: no shadow and no backdrop of the photo has a part in them. An `openpose` control is drawn from
    the product's column `pose`, wherever its source; `low` and `high` are canny's.
    """

    kind: Kind = "canny"
    source: Literal["photo", "cutout"] = "photo"
    scale: float = Field(1.0, ge=0, le=2)
    start: Share = 0.0
    end: Share = 1.0
    low: int = Field(60, ge=0, le=255)
    high: int = Field(140, ge=0, le=255)
    mask_guidance: MaskGuidance | None = MaskGuidance()

    @field_validator("kind", mode="before")
    @classmethod
    def _free_outside(cls, kind: Any) -> Any:
        if kind in REFUSED_KINDS:
            choice = "choose canny, lineart or openpose"
            raise ValueError(f"mask guidance does not suit a {kind} control: {REFUSED_KINDS[kind]}; {choice}")
        return kind

    @model_validator(mode="after")
    def _in_order(self) -> Control:
        if self.start >= self.end:
            raise ValueError(f"start ({self.start:g}) must be before end ({self.end:g}): shares of the steps, 0 to 1")
        if self.low > self.high:
            raise ValueError(f"low ({self.low}) must not be above high ({self.high}): Canny's two thresholds")
        return self


class SceneLora(_Part):
    """The scene's LoRA, a part of the profile, and its strength."""

    name: Name
    scale: float = Field(1.0, ge=0, le=2)


class ScenePlacement(_Part):
    """Where the product stands: its longer side as a share of the canvas's shorter one, and the line it stands on."""

    anchor: Literal["ground", "centre"] = "ground"
    scale: float = Field(0.6, gt=0.05, le=0.98)
    ground_line: float = Field(0.86, ge=0.2, le=1)


class Channel(_Part):
    """Where the image is to be published, in px. `min_width` and `min_height` are the channel's own rule."""

    name: Name = "web"
    width: int = Field(1024, ge=64, le=8192)
    height: int = Field(1024, ge=64, le=8192)
    format: Literal["jpeg", "png", "webp"] = "jpeg"
    quality: int = Field(92, ge=50, le=100)
    min_width: int = Field(500, ge=1)
    min_height: int = Field(500, ge=1)

    @model_validator(mode="after")
    def _large_enough(self) -> Channel:
        if self.width < self.min_width or self.height < self.min_height:
            size, least = f"{self.width}×{self.height}", f"{self.min_width}×{self.min_height}"
            raise ValueError(f"{size} px is below the channel's own min_width and min_height, {least} px")
        return self


class Checks(_Part):
    """Thresholds. An image is held when E⁺ is above `overcompletion`, or a score is on the wrong side of its own."""

    overcompletion: float = Field(0.006, ge=0, le=1)
    fidelity: Share = 1.0
    halo: float = Field(0.06, ge=0)
    background: Share = 0.5


class Scene(_Part):
    """One reviewed look.

    `guidance_start` and `guidance_end` (shares of the steps) and `cache_interval` trade pixels for time; see
    `pipelines.diffusion.inpainting`. `rim`: px of the painted picture around the product that are filled from the scene
    beyond, because the autoencoder smears the product there (`pipelines.vision.plate`); 0 leaves it as it is.
    """

    name: Name
    title: str = Field(min_length=1, max_length=80)
    description: str = Field("", max_length=600)
    prompt: str = Field(min_length=1, max_length=600)
    negative_prompt: str = Field("", max_length=600)
    method: Literal["blended", "soft", "inpaint9", "controlnet_inpaint", "fooocus", "brushnet"] = "brushnet"
    steps: int = Field(20, ge=1, le=200)
    guidance_scale: float = Field(2.5, ge=1, le=30)
    guidance_start: Share = 0.0
    guidance_end: Share = 1.0
    cache_interval: int = Field(1, ge=1, le=20)
    strength: float = Field(1.0, gt=0, le=1)
    candidates: int = Field(3, ge=1, le=16)
    base_seed: int = Field(0, ge=0)
    brushnet_scale: float = Field(1.0, ge=0, le=2)
    rim: int = Field(9, ge=0, le=64)
    controls: tuple[Control, ...] = ()
    lora: SceneLora | None = None
    placement: ScenePlacement = ScenePlacement()
    channel: Channel = Channel()
    checks: Checks = Checks()
    picture: str = Field("", pattern=r"^([a-z0-9][a-z0-9_-]*\.(png|jpg|webp))?$")

    @field_validator("prompt")
    @classmethod
    def _known_placeholders(cls, prompt: str) -> str:
        for _, field, spec, conversion in string.Formatter().parse(prompt):
            if field is not None and (field not in PLACEHOLDERS or spec or conversion):
                raise ValueError(f"{{{field}}} is not one of {', '.join(f'{{{name}}}' for name in PLACEHOLDERS)}")
        return prompt

    @model_validator(mode="after")
    def _guided_in_order(self) -> Scene:
        start, end = self.guidance_start, self.guidance_end
        if start >= end:
            raise ValueError(f"guidance_start ({start:g}) must be before guidance_end ({end:g}): shares of the steps")
        return self

    @property
    def digest(self) -> str:
        """sha256 over the whole definition: which version of a scene made an image."""
        return sha256_hex(canonical_json(self.model_dump(mode="json")).encode())

    def fill_prompt(self, description: Mapping[str, Any]) -> str:
        """The prompt for one product, from the facts of its describe step (subject, tags, colour, category)."""
        tags = ", ".join(tag["tag"] for tag in description.get("tags", ()))
        filled = self.prompt.format(
            product=description["subject"],
            tags=tags,
            colour=description.get("colour", ""),
            category=description.get("category", ""),
        )
        return " ".join(filled.replace(" ,", ",").split()).strip(" ,")

    def sampler_settings(self) -> dict[str, Any]:
        """What of the scene reaches the sampler, as parameters of a generate step.

        Savings that are off are left out: a scene without them keeps the key of the steps that are there.
        """
        settings = self.model_dump(
            mode="json",
            include={
                "steps", "guidance_scale", "strength", "brushnet_scale", "rim", "controls", "lora", "placement",
            },
        )  # fmt: skip
        savings = {"guidance_start", "guidance_end", "cache_interval"}
        return settings | self.model_dump(mode="json", include=savings, exclude_defaults=True)


def list_scenes(folder: Path = FOLDER) -> list[Scene]:
    """All scenes of a folder, by name."""
    return [check_scene(path) for path in sorted(folder.glob("*.yaml"))]


def scene_names(folder: Path = FOLDER) -> list[str]:
    """Names alone, without reading the files: cheap enough for a DAG file."""
    return sorted(path.stem for path in folder.glob("*.yaml"))


def scene_titles(folder: Path = FOLDER) -> dict[str, str]:
    """Title by name, as a form shows them; the name where a file has no title that can be read. Nothing else of the
    files is checked, so that a DAG file can be read while a scene is being edited."""
    titles = {}
    for name in scene_names(folder):
        try:
            document = yaml.safe_load((folder / f"{name}.yaml").read_text("utf-8"))
        except (OSError, UnicodeDecodeError, yaml.YAMLError):
            document = None
        titles[name] = str(document.get("title", name)) if isinstance(document, dict) else name
    return titles


def load_scene(name: str, folder: Path = FOLDER) -> Scene:
    """One scene by name. Raises UsageError where there is none, naming those that there are."""
    path = folder / f"{name}.yaml"
    if name not in scene_names(folder):
        raise UsageError(f"no scene {name!r}: there are {', '.join(scene_names(folder)) or 'none'}")
    return check_scene(path)


def check_scene(path: Path) -> Scene:
    """Read and validate one file. Raises UsageError with one line that names file, field and what was expected."""
    try:
        data = yaml.safe_load(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UsageError(f"{path}: not a readable YAML file: {' '.join(str(error).split())}") from error
    if not isinstance(data, dict):
        raise UsageError(f"{path}: expected the keys of a scene, found {type(data).__name__}")
    try:
        scene = Scene.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "scene"
        more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
        raise UsageError(f"{path}: {where}: {first['msg']}{more}") from error
    if scene.name != path.stem:
        raise UsageError(f"{path}: name: {scene.name!r} must be the file's name, {path.stem!r}")
    return scene


def picture_of(scene: Scene, folder: Path = FOLDER) -> Path | None:
    """The preview picture of a scene, or None where it has none."""
    path = folder / scene.picture
    return path if scene.picture and path.is_file() else None
