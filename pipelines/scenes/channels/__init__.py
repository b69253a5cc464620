"""Channels: where images are published, and the rules of that place. One YAML file a channel.

A scene says how a product looks, a channel what its images must be: size, format, the product's share of the frame,
limits, the background, and what the file says about its origin. Channels are in this package and in the folder of
`PACKSHOT_CHANNELS_DIR`. A channel of that folder replaces a bundled channel of the same name. A scene may also describe
a channel of its own.
"""

from __future__ import annotations

import string
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from pipelines.errors import UsageError
from pipelines.scenes.strict_yaml import Name, Named, Part, read_model, yaml_files
from pipelines.settings import get_settings

FOLDER = Path(__file__).resolve().parent

Share = Annotated[float, Field(ge=0, le=1)]

SourceType = Literal[
    "compositeWithTrainedAlgorithmicMedia", "trainedAlgorithmicMedia", "compositeSynthetic", "algorithmicallyEnhanced"
]
"""IPTC's codes that may suit an image with a real product and another background."""

WORDS = ("title", "category", "scene", "sku")
"""What an alternative text may contain."""


class Provenance(Part):
    """What a published file says besides its source type: sRGB profile, SKU, credit line and alternative text.

    `alt_text` is a template over `WORDS`.
    """

    credit: str = Field("", max_length=300)
    alt_text: str = Field("{title}", max_length=300)

    @field_validator("alt_text")
    @classmethod
    def _known_words(cls, alt_text: str) -> str:
        for _, field, spec, conversion in string.Formatter().parse(alt_text):
            if field is not None and (field not in WORDS or spec or conversion):
                raise ValueError(f"{{{field}}} is not one of {', '.join(f'{{{word}}}' for word in WORDS)}")
        return alt_text


class ChannelFeed(Part):
    """The channel's feed: its format, and the name of the column or element that holds an image's address."""

    format: Literal["tsv", "xml"] = "tsv"
    attribute: Literal["lifestyle_image_link", "additional_image_link"] = "lifestyle_image_link"


class Channel(Named):
    """Where an image is to be published. Lengths in px, shares of the frame's shorter side.

    Wanted: `width`, `height`, `format`, `quality`, and `product_share`, the product's longer side; it replaces the
    scene's `placement.scale`. Required, or the image is not published: everything from `min_width` to `background`.
    """

    name: Name = "web"
    description: str = Field("", max_length=600)
    width: int = Field(1024, ge=64, le=8192)
    height: int = Field(1024, ge=64, le=8192)
    format: Literal["jpeg", "png", "webp", "avif"] = "jpeg"
    quality: int = Field(92, ge=50, le=100)
    product_share: float | None = Field(None, gt=0.05, le=0.98)
    min_width: int = Field(500, ge=1)
    min_height: int = Field(500, ge=1)
    max_side: int | None = Field(None, ge=64)
    max_megapixels: float | None = Field(None, gt=0)
    max_bytes: int | None = Field(None, ge=1000)
    min_product_share: Share | None = None
    margin: float | None = Field(None, ge=0, le=0.45)
    background: Literal["any", "white"] = "any"
    digital_source_type: SourceType = "compositeWithTrainedAlgorithmicMedia"
    provenance: Provenance | None = None
    feed: ChannelFeed | None = None

    @model_validator(mode="after")
    def _possible(self) -> Self:
        size = f"{self.width}×{self.height}"
        if self.width < self.min_width or self.height < self.min_height:
            least = f"{self.min_width}×{self.min_height}"
            raise ValueError(f"{size} px is below the channel's own min_width and min_height, {least} px")
        if self.max_side is not None and max(self.width, self.height) > self.max_side:
            raise ValueError(f"{size} px is above the channel's own max_side, {self.max_side} px")
        if self.max_megapixels is not None and self.width * self.height > self.max_megapixels * 1e6:
            raise ValueError(f"{size} px is above the channel's own max_megapixels, {self.max_megapixels:g}")
        wanted = self.product_share
        if self.min_product_share is not None and (wanted is None or wanted < self.min_product_share):
            raise ValueError(f"product_share must be min_product_share ({self.min_product_share:g}) or more")
        if self.margin is not None and wanted is not None and self.margin > (1 - wanted) / 2 + 1e-9:
            raise ValueError(f"a product_share of {wanted:g} leaves no margin of {self.margin:g}")
        return self

    @property
    def prescribes_place(self) -> bool:
        """Whether a rule depends on where the product is, and how large: then it is laid at exactly that size."""
        return self.min_product_share is not None or self.margin is not None

    @property
    def rules(self) -> dict[str, float | str]:
        """The rules that a file is held to before it is published, without those that the channel does not have."""
        names = {"max_side", "max_megapixels", "max_bytes", "min_product_share", "margin"}
        found: dict[str, float | str] = self.model_dump(mode="json", include=names, exclude_none=True)
        if self.background != "any":
            found["background"] = self.background
        return {"min_width": self.min_width, "min_height": self.min_height, **found} if found else {}


def channel_files() -> dict[str, Path]:
    """Name → file of every channel, by name: the bundled ones and those of PACKSHOT_CHANNELS_DIR.

    Reads file names only. Raises UsageError where PACKSHOT_CHANNELS_DIR is no folder, or has two files of one name.
    """
    own = get_settings().channels_dir
    if own is not None and not own.is_dir():
        raise UsageError(f"PACKSHOT_CHANNELS_DIR: {own} is not a folder")
    folders = [FOLDER, *([own] if own is not None else [])]
    return yaml_files(folders)


def list_channels() -> list[Channel]:
    """All channels, by name."""
    return [check_channel(path) for path in channel_files().values()]


def load_channel(name: str) -> Channel:
    """One channel by name. Raises UsageError where there is none, naming those that there are."""
    files = channel_files()
    if name not in files:
        raise UsageError(f"no channel {name!r}: there are {', '.join(files) or 'none'}")
    return check_channel(files[name])


def check_channel(path: Path) -> Channel:
    """Read and validate one file. Raises UsageError with one line that names file, field and what was expected."""
    return read_model(path, Channel, "channel")
