"""A feed as the store keeps it: an index, and parts of some thousand products, so that no process holds a whole feed.

A part has one product a line: its row, its SKU, and its content as canonical JSON. Whether a product changed is told by
the digest of that content, without reading it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from hashlib import sha256
from typing import TYPE_CHECKING

from more_itertools import chunked

from pipelines.catalogue.encodings import UTF_8
from pipelines.contracts import Product, canonical_json
from pipelines.errors import UsageError

if TYPE_CHECKING:
    from pipelines.contracts import Store

MANIFEST = "packshot-manifest-2"
WHOLE = "packshot-manifest-1"
"""A manifest as it was before: all its products in one document."""

ADDITIONAL = b'"photo_of":'
"""What the text of every additional photo contains, and hardly another's."""

PART = 5000
"""Products of one part."""


@dataclass(frozen=True, slots=True)
class Line:
    """One product of a feed. `text` is canonical JSON of all its fields but the row, and those of an additional photo
    where it is none."""

    sku: str
    row: int
    text: bytes

    @property
    def photo_of(self) -> str:
        """SKU of the product that this is an additional photo of; "" for a product."""
        return self.product.photo_of if ADDITIONAL in self.text else ""

    @property
    def content(self) -> str:
        """sha256 of the product's content. A product that only changed its row has the same."""
        return sha256(self.text).hexdigest()

    @property
    def product(self) -> Product:
        """The product itself."""
        return Product(row=self.row, **json.loads(self.text))

    @classmethod
    def of(cls, product: Product) -> Line:
        """The line of a product."""
        fields = asdict(product)
        del fields["row"]
        fields["extra"] = dict(product.extra)
        if not product.photo_of:  # a product has the content that it had before there were additional photos
            del fields["photo_of"], fields["photo_number"]
        return cls(product.sku, product.row, canonical_json(fields).encode())


@dataclass(frozen=True, slots=True)
class Manifest:
    """The products of a feed, in its order; each pass reads the parts anew. `digest` is the index's, `source` the file
    name of the feed, `encoding` what its bytes were read in. An additional photo follows its product;
    `additional_photos` is how many of a product were read at most."""

    digest: str
    store: Store
    parts: tuple[str, ...]
    source: str = ""
    whole: tuple[Product, ...] = ()
    additional_photos: int = 0
    encoding: str = UTF_8

    @property
    def encoding_note(self) -> str:
        """A sentence that names an encoding other than UTF-8, else ""."""
        return "" if self.encoding == UTF_8 else f"{self.source} is not in UTF-8: it was read as {self.encoding}"

    def __iter__(self) -> Iterator[Line]:
        yield from map(Line.of, self.whole)
        for part in self.parts:
            for line in self.store.get(part).splitlines():
                row, sku, text = line.split(b"\t", 2)
                yield Line(json.loads(sku) if b"\\" in sku else sku[1:-1].decode(), int(row), text)


def write_manifest(
    store: Store,
    source: str,
    feed: str,
    products: Iterable[Product],
    encoding: str = UTF_8,
    additional_photos: int = 0,
) -> str:
    """Puts these products into the store; returns the manifest's digest. `feed` is the digest of the feed itself, and
    `additional_photos` how many of a product were read at most."""
    parts = []
    for products_of_part in chunked(products, PART):
        lines = map(Line.of, products_of_part)
        data = b"".join(b"%d\t%s\t%s\n" % (line.row, json.dumps(line.sku).encode(), line.text) for line in lines)
        parts.append(store.put(data, "text/plain"))
    document: dict[str, object] = {"kind": MANIFEST, "source": source, "feed": feed, "parts": parts}
    if encoding != UTF_8:  # a feed in UTF-8 keeps the digest that it had
        document["encoding"] = encoding
    if additional_photos:
        document["additional_photos"] = additional_photos
    return store.put(canonical_json(document).encode(), "application/json")


def read_manifest(store: Store, digest: str) -> Manifest:
    """The manifest of this digest. Raises UsageError if the store has none."""
    try:
        document = json.loads(store.get(digest))
    except (KeyError, ValueError) as error:
        raise UsageError(f"the store has no feed {digest}: put one there with `packshot run CATALOG`") from error
    kind = document.get("kind") if isinstance(document, dict) else None
    if kind == WHOLE:
        return Manifest(
            digest,
            store,
            (),
            str(document.get("source", "")),
            tuple(Product(**product) for product in document["products"]),
        )
    if kind != MANIFEST:
        raise UsageError(f"the object {digest} is no feed that `packshot run` put there")
    return Manifest(
        digest,
        store,
        tuple(document["parts"]),
        str(document["source"]),
        encoding=str(document.get("encoding", UTF_8)),
        additional_photos=int(document.get("additional_photos", 0)),
    )


def load_manifest(store: Store, digest: str) -> list[Product]:
    """All products of a manifest at once. Raises UsageError if the store has no manifest of that digest."""
    return [line.product for line in read_manifest(store, digest)]
