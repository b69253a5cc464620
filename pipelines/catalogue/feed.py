"""The catalogue contract: a CSV, TSV or XML with Google Merchant's names, read into products.

Every row is one product. A product carries the problem of its row, and is rejected with it later. Only a file that is
no catalogue at all is an error. `ingest` first puts feed and photos into the store, so that every worker reads the same
bytes.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from pipelines.catalogue.additional import COLUMN, additional_photos_of
from pipelines.catalogue.downloads import fetch
from pipelines.catalogue.encodings import UTF_8
from pipelines.catalogue.links import Unreachable, is_web
from pipelines.catalogue.manifest import write_manifest
from pipelines.catalogue.photos import Memory, Source, fetch_photos
from pipelines.catalogue.reading import REQUIRED, Record, clean, clean_name, read_table
from pipelines.catalogue.spreadsheet import csv_parts
from pipelines.contracts import Product
from pipelines.errors import Rejected, Unavailable, UsageError

if TYPE_CHECKING:
    from pipelines.contracts import Store
    from pipelines.settings import Settings

NAMED = (*REQUIRED, "product_type", "item_group_id")
"""Columns that products have fields for; all others are kept in `extra`."""

MAX_ID = 200
"""Characters in an id. Google Merchant allows 50, the ledger's indexes a few hundred."""

ROUNDED = re.compile(r"\d([.,]\d+)?E\+\d+")
"""How a spreadsheet writes a long number, such as an EAN: its last digits are lost."""

MAX_TITLE, MAX_CATEGORY = 150, 750
"""Characters that Google Merchant allows in a title and in a product_type. Longer values are cut, because the stages
read them word by word. The feed in the store keeps them whole."""


def within(category: str, wanted: str) -> bool:
    """Whether a product_type is `wanted` or below it: `Home` holds `Home > Kitchen`."""
    path, prefix = _path(category), _path(wanted)
    return path[: len(prefix)] == prefix


def _path(category: str) -> list[str]:
    return [part.strip().casefold() for part in category.split(">")]


@dataclass(frozen=True, slots=True)
class Catalogue:
    """A catalogue as read: one product a row, without photos. `row` counts as in a spreadsheet: the header is row 1.
    `photo_problem` says why a row cannot be used. `encoding` is what the bytes were read in."""

    source: str
    rows: tuple[Product, ...]
    encoding: str = UTF_8

    @property
    def problems(self) -> tuple[str, ...]:
        """The problems of unusable rows."""
        return tuple(product.photo_problem for product in self.rows if product.photo_problem)


def read_catalogue(path: Path, settings: Settings | None = None) -> Catalogue:
    """Reads a catalogue file. Raises UsageError, with file and remedy, if it is no catalogue."""
    return parse_catalogue(str(path), _read_file(path, settings))


def parse_catalogue(source: str, data: bytes) -> Catalogue:
    """Read a catalogue from its bytes; `source` names it in errors. Raises UsageError where it is none."""
    table = read_table(source, data)
    products = [_product(record, table.columns) for record in table.records]
    if not products:
        raise UsageError(f"{source}: no product below its header")
    return Catalogue(source, tuple(_unique(products)), table.encoding)


def ingest(
    source: Path | str,
    store: Store,
    settings: Settings,
    limit: int | None = None,
    memory: Memory | None = None,
    additional_photos: int = 0,
) -> str:
    """Puts a catalogue (a file, or an http(s) address) and its photos into the store; returns its manifest's digest.

    The manifest (`pipelines.catalogue.manifest`) has each product with its photo's digest, or the reason why it has
    none. Equal files give an equal digest. `limit` keeps the first rows. With a `memory` of what links gave before,
    photos that did not change are not fetched again. Of each product at most so many `additional_photos` are read, and
    each follows its product in the manifest. Raises UsageError if the source is no catalogue, Unavailable in an outage.
    """
    return asyncio.run(_ingest(source, store, settings, limit, memory, additional_photos))


class PublishedImage(NamedTuple):
    """A published image as a feed names it. `photo_of` is the product's SKU where it is of an additional photo."""

    sku: str
    title: str
    link: str
    sha256: str
    photo_of: str = ""


def published_feed(images: Iterable[PublishedImage], with_additional: bool = False) -> bytes:
    """Published images as a feed: a CSV with Google Merchant's `id`, `title`, `image_link`, and with `sha256`.

    `with_additional` adds the column `additional_image_link`: then the images of one product follow one another, and
    are one row. It has no `image_link` where its main image is not published.
    """
    if not with_additional:
        return b"".join(csv_parts(["id", "title", "image_link", "sha256"], (image[:4] for image in images)))
    products = (list(group) for _, group in groupby(images, key=lambda image: image.photo_of or image.sku))
    return b"".join(csv_parts(["id", "title", "image_link", COLUMN, "sha256"], map(_row_of, products)))


def _row_of(images: Sequence[PublishedImage]) -> tuple[str, ...]:
    """The row of a product's images."""
    first, main = images[0], [image for image in images if not image.photo_of]
    link, sha256 = (main[0].link, main[0].sha256) if main else ("", "")
    additional = ",".join(image.link for image in images if image.photo_of)
    return first.photo_of or first.sku, first.title, link, additional, sha256


# ------------------------------------------------------------------- reading a file


def _read_file(path: Path, settings: Settings | None) -> bytes:
    remedy = f"give a CSV or TSV with the columns {', '.join(REQUIRED)}"
    try:
        size = path.stat().st_size
        if settings is not None and size > settings.feed_max_bytes:
            limit = settings.feed_max_bytes / 2**20
            raise UsageError(f"{path}: larger than {limit:g} MiB: split it, or raise PACKSHOT_FEED_MAX_BYTES")
        return path.read_bytes()
    except FileNotFoundError as error:
        raise UsageError(f"{path}: no such file: {remedy}") from error
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror}): {remedy}") from error


# ------------------------------------------------------------------ rows to products


def _product(record: Record, columns: Sequence[str]) -> Product:
    """One row; its `photo_problem` says what is wrong with it."""
    number = record.number
    values: dict[str, str] = {}
    for name, field in zip(columns, record.fields, strict=False):
        value = clean_name(field) if name in ("id", "image_link") else clean(field)
        # Merchant feeds may repeat a column, such as additional_image_link
        values[name] = ", ".join(filter(None, (values.get(name), value)))
    values["image_link"] = first_link(values["image_link"])
    problem = record.problem
    if problem:
        pass
    elif any("\x00" in field for field in record.fields):
        problem = f"row {number} holds a NUL character: save the file as text"
    elif not values["id"]:
        problem = f"row {number} has no id"
    elif len(values["id"]) > MAX_ID:
        problem = f"row {number} has an id of {len(values['id'])} characters: shorten it to {MAX_ID} at most"
    elif ROUNDED.fullmatch(values["id"]):
        problem = f"row {number} has the id {values['id']}, a number that a spreadsheet rounded: export it as text"
    elif not values["image_link"]:
        problem = f"row {number} names no photo: fill in image_link"
    return Product(
        sku=values.get("id", "")[:MAX_ID] or f"#{number}",
        row=number,
        title=values.get("title", "")[:MAX_TITLE].rstrip(),
        category=(values.get("product_type", "") or values.get("google_product_category", ""))[:MAX_CATEGORY].rstrip(),
        photo=None,
        photo_problem=problem,
        image_link=values.get("image_link", ""),
        item_group_id=values.get("item_group_id", ""),
        extra={name: value for name, value in values.items() if name and name not in NAMED and value},
    )


def first_link(field: str) -> str:
    """The first address of a field that holds several, as some tools export all photos of a product; else the field."""
    return re.split(r"[\s,;|]+(?=https?://)", field, maxsplit=1)[0] if is_web(field) else field


def _unique(products: Sequence[Product]) -> Iterator[Product]:
    """The first usable row of a SKU keeps it; other rows become `SKU#row`, with a reason."""
    owners: dict[str, int] = {}
    for product in sorted(products, key=lambda p: bool(p.photo_problem)):
        owners.setdefault(product.sku, product.row)
    taken = set(owners)
    for product in products:
        if owners[product.sku] == product.row:
            yield product
            continue
        mark = f"#{product.row}"
        while (name := product.sku[: MAX_ID - len(mark)] + mark) in taken:
            mark += "#"
        taken.add(name)
        duplicate = f"row {product.row} repeats the id of row {owners[product.sku]}, which is the one used"
        yield replace(product, sku=name, photo_problem=product.photo_problem or duplicate)


# ------------------------------------------------------------------ into the store


async def _ingest(
    source: Path | str,
    store: Store,
    settings: Settings,
    limit: int | None,
    memory: Memory | None,
    additional_photos: int,
) -> str:
    folder = None if isinstance(source, str) and is_web(source) else Path(source).parent
    data = await _feed(source, settings)
    catalogue = parse_catalogue(str(source), data)
    products: Sequence[Product] = catalogue.rows[:limit]
    if additional_photos:
        taken = {product.sku for product in catalogue.rows}
        products = [one for row in products for one in (row, *additional_photos_of(row, additional_photos, taken))]
    links = dict.fromkeys(product.image_link for product in products if not product.photo_problem)
    photos = await fetch_photos(links, Source(folder, settings), store, memory)
    feed = store.put(data, "text/csv")
    pictured = (_with_photo(product, photos) for product in products)
    name = Path(str(source)).name
    return write_manifest(store, name, feed, pictured, catalogue.encoding, additional_photos)


async def _feed(source: Path | str, settings: Settings) -> bytes:
    if not (isinstance(source, str) and is_web(source)):
        return _read_file(Path(source), settings)
    try:
        limit, seconds = settings.feed_max_bytes, 10 * settings.photo_timeout_seconds
        return (await fetch(source, limit, seconds, settings.allow_private_links)).data
    except Unreachable as error:
        raise Unavailable(error.reason) from error
    except Rejected as error:
        raise UsageError(f"{error.reason}: give a catalogue that can be reached from here") from error


def _with_photo(product: Product, photos: Mapping[str, str | Rejected]) -> Product:
    if product.photo_problem:
        return product
    photo = photos[product.image_link]
    if isinstance(photo, Rejected):
        return replace(product, photo_problem=f"row {product.row}: photo {photo.reason}")
    return replace(product, photo=photo)
