"""Additional photos of a feed: which links are photos, what they are called, and what a bad one costs."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from pipelines.catalogue.additional import first_products, split_links, with_photos
from pipelines.catalogue.feed import PublishedImage, ingest, parse_catalogue, published_feed
from pipelines.catalogue.manifest import Line, load_manifest, read_manifest
from pipelines.contracts import Product
from pipelines.settings import Settings
from pipelines.store import FolderStore

ROWS = {
    "tsv": "id\ttitle\timage_link\tadditional_image_link\n"
    "CUP\tCup\tcup.png\t\n"
    "POT\tPot\tpot.png\tpot-2.png\n"
    "JUG\tJug\tjug.png\tjug-2.png,none.png,jug-4.png\n",
    "csv": "id,title,image_link,additional_image_link,additional_image_link,additional_image_link\n"
    "CUP,Cup,cup.png,,,\nPOT,Pot,pot.png,pot-2.png,,\nJUG,Jug,jug.png,jug-2.png,none.png,jug-4.png\n",
    "xml": '<rss xmlns:g="http://base.google.com/ns/1.0"><channel>'
    "<item><g:id>CUP</g:id><g:title>Cup</g:title><g:image_link>cup.png</g:image_link></item>"
    "<item><g:id>POT</g:id><g:title>Pot</g:title><g:image_link>pot.png</g:image_link>"
    "<g:additional_image_link>pot-2.png</g:additional_image_link></item>"
    "<item><g:id>JUG</g:id><g:title>Jug</g:title><g:image_link>jug.png</g:image_link>"
    "<g:additional_image_link>jug-2.png</g:additional_image_link>"
    "<g:additional_image_link>none.png</g:additional_image_link>"
    "<g:additional_image_link>jug-4.png</g:additional_image_link></item></channel></rss>",
}
PHOTOS = ("cup.png", "pot.png", "pot-2.png", "jug.png", "jug-2.png", "jug-4.png")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with the photos of the feeds, but one."""
    for number, name in enumerate(PHOTOS):
        Image.new("RGB", (64, 64), (10 * number, 90, 90)).save(tmp_path / name)
    return tmp_path


@pytest.fixture
def store(tmp_path: Path) -> FolderStore:
    return FolderStore(tmp_path / "store")


@pytest.mark.parametrize("kind", ROWS)
def test_each_additional_photo_follows_its_product_and_a_bad_one_costs_itself_alone(kind, folder, store) -> None:
    feed = folder / f"feed.{kind}"
    feed.write_text(ROWS[kind])
    products = load_manifest(store, ingest(feed, store, Settings(), additional_photos=10))
    assert [p.sku for p in products] == ["CUP", "POT", "POT~2", "JUG", "JUG~2", "JUG~3", "JUG~4"]
    assert [(p.row_sku, p.photo_number) for p in products[3:]] == [("JUG", n) for n in (1, 2, 3, 4)]
    assert [p.sku for p in products if p.photo is None] == ["JUG~3"]
    assert "photo none.png is not there" in products[5].photo_problem
    assert {p.title for p in products[3:]} == {"Jug"}
    assert len({p.photo for p in products}) == 7


def test_a_feed_is_read_as_before_where_nobody_asks_for_additional_photos(folder, store) -> None:
    feed = folder / "feed.tsv"
    feed.write_text(ROWS["tsv"])
    digest = ingest(feed, store, Settings())
    assert [p.sku for p in load_manifest(store, digest)] == ["CUP", "POT", "JUG"]
    assert b"additional_photos" not in store.get(digest)
    text = next(iter(read_manifest(store, digest))).text
    assert b"photo_" not in text.replace(b"photo_problem", b""), "its content, and so its version, is what it was"
    read = read_manifest(store, ingest(feed, store, Settings(), additional_photos=2))
    assert read.additional_photos == 2
    assert [line.sku for line in read][-1] == "JUG~3"
    assert next(iter(read)).text == text


def test_a_limit_counts_products_and_takes_their_photos(folder, store) -> None:
    feed = folder / "feed.tsv"
    feed.write_text(ROWS["tsv"])
    products = load_manifest(store, ingest(feed, store, Settings(), limit=2, additional_photos=10))
    assert [p.sku for p in products] == ["CUP", "POT", "POT~2"]
    lines = [Line.of(p) for p in load_manifest(store, ingest(feed, store, Settings(), additional_photos=10))]
    assert [line.sku for line in first_products(lines, 2)] == ["CUP", "POT", "POT~2"]
    assert [line.sku for line in with_photos(lines, 1)] == ["CUP", "POT", "POT~2", "JUG", "JUG~2"]


@pytest.mark.parametrize(
    ("field", "links"),
    [
        ("", []),
        ("a.png", ["a.png"]),
        ("a.png, b.png,c.png", ["a.png", "b.png", "c.png"]),
        ("a.png;b.png|a.png", ["a.png", "b.png"]),
        ("https://s.example/a,b.png,https://s.example/c.png", ["https://s.example/a,b.png", "https://s.example/c.png"]),
        ("https://s.example/a.png https://s.example/b.png", ["https://s.example/a.png", "https://s.example/b.png"]),
        ("https://s.example/a.png, b.png", ["https://s.example/a.png", "b.png"]),
        (" , ,", []),
    ],
)
def test_the_links_of_a_field(field: str, links: list[str]) -> None:
    assert split_links(field) == links


def test_names_never_take_a_products_own_and_the_main_photo_is_not_shown_twice(folder, store) -> None:
    feed = folder / "feed.csv"
    feed.write_text(
        "id,title,image_link,additional_image_link\n"
        'JUG,Jug,jug.png,"jug.png,jug-2.png"\nJUG~2,Another,cup.png,pot.png\nJUG~,Third,pot.png,pot-2.png\n'
    )
    skus = [p.sku for p in load_manifest(store, ingest(feed, store, Settings(), additional_photos=10))]
    assert skus == ["JUG", "JUG~~2", "JUG~2", "JUG~2~2", "JUG~", "JUG~~~2"]


def test_a_row_that_cannot_be_used_has_no_additional_photo(folder, store) -> None:
    feed = folder / "feed.csv"
    feed.write_text("id,title,image_link,additional_image_link\nJUG,Jug,,jug-2.png\nJUG,Jug,jug.png,jug-2.png\n")
    rows = parse_catalogue("feed.csv", feed.read_bytes()).rows
    assert [bool(row.photo_problem) for row in rows] == [True, False]
    products = load_manifest(store, ingest(feed, store, Settings(), additional_photos=10))
    assert [(p.sku, p.row) for p in products] == [("JUG#2", 2), ("JUG", 3), ("JUG~2", 3)]


def test_a_column_that_is_called_like_our_own_field_is_no_additional_photo() -> None:
    assert Line.of(Product("A", 2, "A", "", None, extra={"photo_of": "B"})).photo_of == ""


def test_a_published_feed_has_one_row_a_product_and_the_photos_where_merchant_looks_for_them() -> None:
    images = [
        PublishedImage("CUP", "Cup", "cup.jpg", "1"),
        PublishedImage("JUG", "Jug", "jug.jpg", "2"),
        PublishedImage("JUG~2", "Jug", "jug-2.jpg", "3", "JUG"),
        PublishedImage("JUG~4", "Jug", "jug-4.jpg", "4", "JUG"),
        PublishedImage("POT~2", "Pot", "pot-2.jpg", "5", "POT"),
    ]
    assert published_feed(images, with_additional=True).decode().splitlines() == [
        "id,title,image_link,additional_image_link,sha256",
        "CUP,Cup,cup.jpg,,1",
        'JUG,Jug,jug.jpg,"jug-2.jpg,jug-4.jpg",2',
        "POT,Pot,,pot-2.jpg,",
    ]
    assert published_feed(images[:1]).decode().splitlines() == ["id,title,image_link,sha256", "CUP,Cup,cup.jpg,1"]
