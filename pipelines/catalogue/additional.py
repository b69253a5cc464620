"""Additional photos (`additional_image_link`): each is taken through the stages as a product of its own.

Its name is the row's SKU, `~` and its number among the row's photos: `CUP-1~2` is the second photo of `CUP-1`. So its
shot, its steps, its verdict and its stable address are its own, and those of the main photo stay as they are.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from pipelines.catalogue.links import is_web
from pipelines.catalogue.reading import clean_name

if TYPE_CHECKING:
    from pipelines.catalogue.manifest import Line
    from pipelines.contracts import Product

COLUMN = "additional_image_link"


def split_links(field: str) -> list[str]:
    """The links of a field that holds several, each once. They are separated by commas, semicolons, bars or spaces.

    A comma inside a web address separates only where another address follows, because it may belong to the address.
    """
    found = []
    for part in re.split(r"[\s,;|]+(?=https?://)|,\s+", field):
        found += [part] if is_web(part) else re.split(r"[,;|]", part)
    return list(dict.fromkeys(link for part in found if (link := clean_name(part).strip(" ,;|"))))


def additional_photos_of(product: Product, most: int, taken: set[str]) -> Iterator[Product]:
    """At most so many additional photos of a row. They have its title and category, and links in place of photos.

    A link that is the row's main one is left out, and a row that cannot be used has none. `taken` are the names that
    the feed has, and these are added: one that is taken gets a further `~`.
    """
    if product.photo_problem:
        return
    links = [link for link in split_links(product.extra.get(COLUMN, "")) if link != product.image_link]
    for number, link in enumerate(links[:most], start=2):
        mark = f"~{number}"
        while product.sku + mark in taken:
            mark = f"~{mark}"
        taken.add(product.sku + mark)
        yield replace(
            product,
            sku=product.sku + mark,
            image_link=link,
            photo_of=product.sku,
            photo_number=number,
            extra={name: value for name, value in product.extra.items() if name != COLUMN},
        )


def with_photos(lines: Iterable[Line], additional: int) -> Iterator[Line]:
    """The products, and of each at most so many additional photos: those that a scene asks for."""
    for line in lines:
        if not line.photo_of or line.product.photo_number <= 1 + additional:
            yield line


def first_products(lines: Iterable[Line], limit: int | None) -> Iterator[Line]:
    """The first so many products, each with its additional photos; all without a limit."""
    seen: set[str] = set()
    for line in lines:
        if limit is not None:
            seen.add(line.photo_of or line.sku)
            if len(seen) > limit:
                return
        yield line
