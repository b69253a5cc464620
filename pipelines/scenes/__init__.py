"""Scenes: reviewed presets in YAML, one file a scene. What a merchandiser chooses when they choose a look.

A scene says everything that decides how a shot looks: prompt, inpainting method, backdrop, controls, LoRA, placement,
channel and the thresholds of its checks. Unknown keys are refused, so a typing error cannot silently fall back to a
default. Scenes are in this package and in the folder of `PACKSHOT_SCENES_DIR`. A scene of that folder replaces a
bundled scene of the same name.
"""

from __future__ import annotations

import string
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, PrivateAttr, field_validator, model_validator

from pipelines.contracts import canonical_json, sha256_hex
from pipelines.diffusion.control_kinds import REFUSED_KINDS, Kind
from pipelines.errors import UsageError
from pipelines.scenes.channels import Channel, channel_files, load_channel
from pipelines.scenes.strict_yaml import Name, Named, Part, read_model, yaml_files
from pipelines.settings import MAX_MEGAPIXELS, get_settings

FOLDER = Path(__file__).resolve().parent
PLACEHOLDERS = ("product", "tags", "colour", "category")
"""What a prompt template may ask of a product's description."""

LIGHT = "light"
"""What it may ask of the backdrop: the side from which its light comes."""

MOST_ADDITIONAL = 10
"""Additional photos of a product, as many as Google Merchant takes."""

PICTURES = {".png": "image/png", ".jpg": "image/jpeg", ".jpeg": "image/jpeg", ".webp": "image/webp"}
"""Media type of a backdrop by the end of its file's name."""

ORIENTATION = 0x0112
"""EXIF's tag; from 5 on the picture lies on its side."""

Share = Annotated[float, Field(ge=0, le=1)]
Point = tuple[Share, Share]
"""x and y as shares of a picture's width and height, from the upper left."""


class MaskGuidance(Part):
    """How the product mask is refined before it bounds a ControlNet (paper, section 3.2).

    Diameters in px of the model's canvas, 0 = off.
    """

    closing: int = Field(3, ge=0, le=63)
    opening: int = Field(0, ge=0, le=63)
    dilation: int = Field(3, ge=0, le=63)


class Control(Part):
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


class SceneLora(Part):
    """The scene's LoRA, a part of the profile, and its strength."""

    name: Name
    scale: float = Field(1.0, ge=0, le=2)


class ScenePlacement(Part):
    """Where the product stands: its longer side as a share of the canvas's shorter one, and the line it stands on."""

    anchor: Literal["ground", "centre"] = "ground"
    scale: float = Field(0.6, gt=0.05, le=0.98)
    ground_line: float = Field(0.86, ge=0.2, le=1)


class BackdropPicture(Part):
    """One picture of an empty set, and what a product on it must know.

    file: relative to the scene's folder. licence: who may use it, in a line. ground_line: share of the height on which
    the product's foot stands, from the top. ground: corners of the visible ground; none: everything below the highest
    place where a foot may be. light_from, light_elevation: where the main light is, degrees above the ground.
    reflection: how strongly the ground mirrors, 0 = matt. shadow: how dark the drawn shadow is, 0 = none.
    """

    file: str
    licence: str = Field(min_length=1, max_length=300)
    ground_line: float = Field(0.86, ge=0.2, le=1)
    ground: tuple[Point, ...] = ()
    light_from: Literal["left", "right", "front"] = "front"
    light_elevation: float = Field(40, ge=10, le=80)
    reflection: Share = 0.0
    shadow: Share = 1.0

    @field_validator("file")
    @classmethod
    def _below_the_scene(cls, file: str) -> str:
        path = PurePosixPath(file)
        if path.is_absolute() or {"..", "."} & set(file.split("/")) or "\\" in file or not file.isprintable():
            raise ValueError(f"{file!r} must be in the scene's folder, or in a folder below it")
        if path.suffix.lower() not in PICTURES:
            raise ValueError(f"{file!r} must be a picture whose name ends in .jpg, .jpeg, .png or .webp")
        return file

    @field_validator("licence", mode="before")
    @classmethod
    def _said(cls, licence: Any) -> Any:
        if not str(licence or "").strip():
            raise ValueError("a backdrop needs a line that says under which licence the picture may be used")
        return licence

    @model_validator(mode="after")
    def _stands_on_it(self) -> BackdropPicture:
        if self.ground and len(self.ground) < 3:
            raise ValueError("ground: a polygon has at least 3 corners, [x, y] as shares of width and height")
        if self.ground and self.foot is None:
            raise ValueError(f"ground_line {self.ground_line:g} is not on the ground: its polygon is not crossed there")
        return self

    @property
    def drawing(self) -> dict[str, Any]:
        """What decides how the picture is shown, as parameters of a step; a shadow as usual is left out."""
        hidden = {"file", "licence", *(() if self.shadow < 1 else ("shadow",))}
        return self.model_dump(mode="json", exclude=hidden)

    @property
    def media_type(self) -> str:
        """Of the file, by its name."""
        return PICTURES[PurePosixPath(self.file).suffix.lower()]

    @property
    def foot(self) -> tuple[float, float] | None:
        """From where to where, as shares of the width, there is ground on the ground line; None where there is none."""
        if not self.ground:
            return 0.0, 1.0
        crossings = []
        for (x0, y0), (x1, y1) in zip(self.ground, self.ground[1:] + self.ground[:1], strict=True):
            if min(y0, y1) <= self.ground_line <= max(y0, y1):
                along = (self.ground_line - y0) / (y1 - y0) if y1 != y0 else 0.0
                crossings += [x0 + along * (x1 - x0)] + ([x1] if y1 == y0 else [])
        return (min(crossings), max(crossings)) if crossings and max(crossings) > min(crossings) else None


class Backdrop(Part):
    """Pictures that stand behind the products, and what is painted of the result.

    pictures: a product's id chooses among them, always the same one, for all of its photos. chosen_by: with
    `group`, the `item_group_id` chooses, so that variants look alike. mode: `lock` draws a contact shadow and paints
    nothing; `adjust` paints light and shadow and keeps the picture's detail; `transform` begins from the picture and
    paints everything. strength: share of the noise to begin from. garments: whether clothes hang before the wall or
    stand on the ground like everything else.
    """

    pictures: tuple[BackdropPicture, ...] = Field(min_length=1, max_length=64)
    mode: Literal["lock", "adjust", "transform"] = "adjust"
    strength: float | None = Field(None, gt=0, le=1)
    garments: Literal["hang", "stand"] = "hang"
    chosen_by: Literal["product", "group"] = "product"

    @property
    def noise(self) -> float:
        """`strength`, or what suits the mode."""
        return self.strength or {"lock": 1.0, "adjust": 0.45, "transform": 0.9}[self.mode]

    def picture_for(self, sku: str, group: str = "") -> BackdropPicture:
        """The picture for a product, always the same one. `group` is its `item_group_id`, "" where it has none."""
        chooses = group if self.chosen_by == "group" and group else sku
        return self.pictures[int(sha256_hex(chooses.encode())[:8], 16) % len(self.pictures)]


class Checks(Part):
    """Thresholds. An image is held when E⁺ is above `overcompletion`, or a score is on the wrong side of its own.

    read_text: whether the text of photo and image is read and compared; None: as `PACKSHOT_READ_TEXT` says. `text` is
    the character error rate up to which a line of text is still the photo's.
    """

    overcompletion: float = Field(0.006, ge=0, le=1)
    fidelity: Share = 1.0
    halo: float = Field(0.06, ge=0)
    background: Share = 0.5
    text: Share = 0.25
    read_text: bool | None = None
    contact: Share = 0.08

    @property
    def thresholds(self) -> dict[str, float]:
        """The thresholds of the checks that need no reader of text, by name."""
        return self.model_dump(mode="json", exclude={"read_text", "text"})


class Scene(Named):
    """One reviewed look.

    `guidance_start` and `guidance_end` (shares of the steps) and `cache_interval` trade pixels for time; see
    `pipelines.diffusion.inpainting`. `outline_margin`: px of the painted picture around the product that are filled
    from the scene beyond, because the autoencoder smears the product there (`pipelines.vision.plate`); 0 fills none.
    With a `backdrop`, `strength` and `placement.ground_line` are the backdrop's. `additional_photos`: how many of a
    product's additional photos are shown in the scene, as the feed names them; `all` of them are 10 at most.
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
    outline_margin: int = Field(9, ge=0, le=64)
    backdrop: Backdrop | None = None
    controls: tuple[Control, ...] = ()
    lora: SceneLora | None = None
    placement: ScenePlacement = ScenePlacement()
    channel: Channel = Channel()
    additional_photos: int = Field(0, ge=0, le=MOST_ADDITIONAL)
    checks: Checks = Checks()
    picture: str = Field("", pattern=r"^([a-z0-9][a-z0-9_-]*\.(png|jpg|webp))?$")
    _folder: Path = PrivateAttr(default=FOLDER)

    @field_validator("additional_photos", mode="before")
    @classmethod
    def _all_of_them(cls, most: Any) -> Any:
        return MOST_ADDITIONAL if most == "all" else most

    @field_validator("channel", mode="before")
    @classmethod
    def _by_name(cls, channel: Any) -> Any:
        if not isinstance(channel, str):
            return channel
        try:
            return load_channel(channel)
        except UsageError as error:
            raise ValueError(str(error)) from error

    @field_validator("channel")
    @classmethod
    def _not_under_anothers_name(cls, channel: Channel) -> Channel:
        """A channel of the scene's own keeps none of the rules of the channel that others know by its name."""
        if channel.name in channel_files() and channel != load_channel(channel.name):
            name = channel.name
            raise ValueError(f"{name} is a channel with other rules: write `channel: {name}`, or choose another name")
        return channel

    @field_validator("prompt")
    @classmethod
    def _known_placeholders(cls, prompt: str) -> str:
        known = (*PLACEHOLDERS, LIGHT)
        for _, field, spec, conversion in string.Formatter().parse(prompt):
            if field is not None and (field not in known or spec or conversion):
                raise ValueError(f"{{{field}}} is not one of {', '.join(f'{{{name}}}' for name in known)}")
        return prompt

    @model_validator(mode="after")
    def _light_of_a_backdrop(self) -> Scene:
        fields = [field for _, field, _, _ in string.Formatter().parse(self.prompt)]
        if LIGHT in fields and self.backdrop is None:
            raise ValueError("{light} in the prompt is the side of the backdrop's light, and there is no backdrop")
        return self

    @model_validator(mode="after")
    def _guided_in_order(self) -> Scene:
        start, end = self.guidance_start, self.guidance_end
        if start >= end:
            raise ValueError(f"guidance_start ({start:g}) must be before guidance_end ({end:g}): shares of the steps")
        return self

    @property
    def folder(self) -> Path:
        """Where the scene's file is, and the pictures that it names."""
        return self._folder

    @property
    def digest(self) -> str:
        """sha256 over the whole definition: which version of a scene made an image."""
        return sha256_hex(canonical_json(self.model_dump(mode="json")).encode())

    def fill_prompt(self, description: Mapping[str, Any], light: str = "") -> str:
        """The prompt for one product, from the facts of its describe step (subject, tags, colour, category).

        light: the side from which the backdrop's light comes.
        """
        tags = ", ".join(tag["tag"] for tag in description.get("tags", ()))
        filled = self.prompt.format(
            product=description["subject"],
            tags=tags,
            colour=description.get("colour", ""),
            category=description.get("category", ""),
            light=light,
        )
        return " ".join(filled.replace(" ,", ",").split()).strip(" ,")

    def sampler_settings(self) -> dict[str, Any]:
        """What of the scene reaches the sampler, as parameters of a generate step.

        Savings that are off, and a share that the channel does not prescribe, are left out: a scene without them keeps
        the key of the steps that are there.
        """
        settings = self.model_dump(
            mode="json",
            include={
                "steps", "guidance_scale", "strength", "brushnet_scale", "outline_margin", "controls", "lora",
                "placement",
            },
        )  # fmt: skip
        if self.channel.product_share is not None:
            settings["placement"]["scale"] = self.channel.product_share
        if self.channel.prescribes_place:
            settings["placement"]["exact"] = True
        savings = {"guidance_start", "guidance_end", "cache_interval"}
        return settings | self.model_dump(mode="json", include=savings, exclude_defaults=True)

    def backdrop_bytes(self, picture: BackdropPicture) -> bytes:
        """The file of one of the backdrop's pictures. Raises UsageError where it cannot be read."""
        try:
            return (self.folder / picture.file).read_bytes()
        except OSError as error:
            raise UsageError(f"scene {self.name}: backdrop {self.folder / picture.file}: {error.strerror}") from error

    def backdrop_digest(self, picture: BackdropPicture) -> str:
        """sha256 of that file: the name of the backdrop in the store. Raises UsageError where it cannot be read."""
        path = self.folder / picture.file
        try:
            found = path.stat()
        except OSError as error:
            raise UsageError(f"scene {self.name}: backdrop {path}: {error.strerror}") from error
        return _file_digest(path, found.st_mtime_ns, found.st_size)


@lru_cache(maxsize=1024)
def _file_digest(path: Path, mtime_ns: int, size: int) -> str:
    """sha256 of a file; when it was changed and its size tell whether it must be read again."""
    return sha256_hex(path.read_bytes())


def scene_files(folder: Path | None = None) -> dict[str, Path]:
    """Name → file of every scene, by name: those of `folder`, else the bundled ones and those of PACKSHOT_SCENES_DIR.

    Reads file names only. Raises UsageError where PACKSHOT_SCENES_DIR is no folder, or has two files of one name.
    """
    own = get_settings().scenes_dir if folder is None else None
    if own is not None and not own.is_dir():
        raise UsageError(f"PACKSHOT_SCENES_DIR: {own} is not a folder")
    folders = [folder] if folder is not None else [FOLDER, *([own] if own is not None else [])]
    return yaml_files(folders)


def list_scenes(folder: Path | None = None) -> list[Scene]:
    """All scenes, or those of a folder, by name."""
    return [check_scene(path) for path in scene_files(folder).values()]


def scene_names(folder: Path | None = None) -> list[str]:
    """Names alone, without reading the files: cheap enough for a DAG file."""
    return list(scene_files(folder))


def scene_titles(folder: Path | None = None) -> dict[str, str]:
    """Title by name, as a form shows them; the name where a file has no title that can be read. Nothing else of the
    files is checked, so that a DAG file can be read while a scene is being edited."""
    titles = {}
    for name, file in scene_files(folder).items():
        try:
            document = yaml.safe_load(file.read_text("utf-8"))
        except (OSError, UnicodeDecodeError, yaml.YAMLError):
            document = None
        titles[name] = str(document.get("title", name)) if isinstance(document, dict) else name
    return titles


def load_scene(name: str, folder: Path | None = None, channel: str = "") -> Scene:
    """One scene by name, for its own channel or for the channel of this name.

    Raises UsageError where there is no such scene or channel, naming those that there are, and where a backdrop is too
    small for the channel.
    """
    files = scene_files(folder)
    if name not in files:
        raise UsageError(f"no scene {name!r}: there are {', '.join(files) or 'none'}")
    scene = check_scene(files[name])
    if channel in ("", scene.channel.name):
        return scene
    other = scene.model_copy(update={"channel": load_channel(channel)})
    _check_pictures(other, f"scene {name} for channel {channel}")
    return other


def check_scene(path: Path) -> Scene:
    """Read and validate one file, and the headers of its backdrop's pictures.

    Raises UsageError with one line that names file, field and what was expected.
    """
    scene = read_model(path, Scene, "scene")
    scene._folder = path.parent
    _check_pictures(scene, str(path))
    return scene


def _check_pictures(scene: Scene, where: str) -> None:
    """Raises UsageError if a picture of the backdrop does not fill the channel's frame; `where` begins the message."""
    for number, picture in enumerate(scene.backdrop.pictures if scene.backdrop else ()):
        try:
            check_backdrop_file(scene.folder / picture.file, scene.channel)
        except UsageError as error:
            raise UsageError(f"{where}: backdrop.pictures.{number}: {error}") from error


def check_backdrop_file(path: Path, channel: Channel) -> tuple[int, int]:
    """Width and height of a picture that may stand behind a channel's products, px. Only its header is read.

    Raises UsageError for a file that is no picture, or whose picture does not fill the channel's frame.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path, formats=("JPEG", "PNG", "WEBP")) as image:
            width, height = image.size
            if image.getexif().get(ORIENTATION, 1) >= 5:
                width, height = height, width
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError) as error:
        said = getattr(error, "strerror", None) or "not a JPEG, PNG or WebP picture"
        if isinstance(error, OSError) and not isinstance(error, UnidentifiedImageError) and not error.strerror:
            said = f"cut short or broken ({error}): save it again"
        raise UsageError(f"{path}: {said}") from error
    if width < channel.width or height < channel.height:
        wanted = f"channel {channel.name} needs {channel.width}×{channel.height} px or more"
        raise UsageError(f"{path.name} is {width}×{height} px, which is too small: {wanted}")
    if width * height > MAX_MEGAPIXELS * 1e6:
        raise UsageError(f"{path.name} has {width * height / 1e6:.0f} megapixels: at most {MAX_MEGAPIXELS}")
    return width, height


def check_pixels(scene: Scene) -> None:
    """Read the backdrop's pictures whole. Raises UsageError for one that is cut short or broken."""
    from PIL import Image

    for number, picture in enumerate(scene.backdrop.pictures if scene.backdrop else ()):
        try:
            with Image.open(scene.folder / picture.file) as image:
                image.load()
        except (OSError, SyntaxError) as error:  # Pillow's, of a broken PNG
            where = f"{scene.folder / picture.file}: backdrop.pictures.{number}"
            raise UsageError(f"{where}: cut short or broken ({error}): save it again") from error


def picture_of(scene: Scene) -> Path | None:
    """The preview picture of a scene, or None where it has none."""
    path = scene.folder / scene.picture
    return path if scene.picture and path.is_file() else None
