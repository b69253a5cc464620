"""A channel's feed: which image it shows of each product, with stable addresses, as TSV or as Merchant XML.

It is a supplemental feed: a shopping platform joins it to the shop's own by `id`. Equal publications make equal bytes,
so a roll-back restores the feed that was there before.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import groupby, islice
from typing import TYPE_CHECKING
from urllib.parse import quote
from xml.sax.saxutils import escape

if TYPE_CHECKING:
    from pipelines.contracts import ShownImage
    from pipelines.scenes.channels import ChannelFeed

MEDIA_TYPES = {"tsv": "text/tab-separated-values; charset=utf-8", "xml": "application/xml; charset=utf-8"}

VERSION_DIGITS = 16
"""Hex digits of the file's sha256 in a link: a platform that knows the address learns that its image is a new one."""

MOST_LINKS = 10
"""Additional images of a product, as Google Merchant takes them."""

XML_HEAD = """<?xml version="1.0" encoding="UTF-8"?>
<rss version="2.0" xmlns:g="http://base.google.com/ns/1.0"><channel>
"""
XML_TAIL = "</channel></rss>\n"


def address(base: str, channel: str, scene: str, sku: str) -> str:
    """The stable address of what a channel shows of a product in a scene. `base` is PACKSHOT_PUBLIC_URL."""
    return "/".join([base.rstrip("/"), *(quote(part, safe="") for part in (channel, scene, sku))])


def versioned(image: ShownImage, channel: str, base: str) -> str:
    """The address of an image as a feed has it."""
    return f"{address(base, channel, image.scene, image.sku)}?v={image.digest[:VERSION_DIGITS]}"


def channel_feed(images: Iterable[ShownImage], channel: str, feed: ChannelFeed, base: str) -> Iterator[bytes]:
    """The feed in parts, one a product. `images` come by the product's SKU: those of its main photo in every scene,
    then those of its additional photos. Of an attribute that Google Merchant takes MOST_LINKS times, a product has the
    first ones."""
    xml = feed.format == "xml"
    yield (XML_HEAD if xml else f"id\t{feed.attribute}\n").encode()
    most = MOST_LINKS if feed.attribute == "additional_image_link" else None
    for sku, shown in groupby(images, key=lambda image: image.row_sku):
        links = [versioned(one, channel, base) for one in islice(shown, most)]
        yield (_item(sku, links, feed.attribute) if xml else f"{_cell(sku)}\t{','.join(links)}\n").encode()
    if xml:
        yield XML_TAIL.encode()


def _item(sku: str, links: list[str], attribute: str) -> str:
    elements = "".join(f"<g:{attribute}>{escape(link)}</g:{attribute}>" for link in links)
    return f"<item><g:id>{escape(sku)}</g:id>{elements}</item>\n"


def _cell(sku: str) -> str:
    """A SKU as a cell of a TSV. It is an identifier and stays as it is, but for what would end the cell."""
    return f'"{sku.replace(chr(34), chr(34) * 2)}"' if any(c in sku for c in '\t\n\r"') else sku
