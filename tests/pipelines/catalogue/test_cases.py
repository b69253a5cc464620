"""Feeds as tools write them: every row arrives once, with its own fields, or with the reason why it cannot be used."""

from __future__ import annotations

import csv
import io
import shutil
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.catalogue.feed import PublishedImage, ingest, parse_catalogue, published_feed
from pipelines.catalogue.manifest import load_manifest
from pipelines.contracts import Product
from pipelines.settings import Settings
from pipelines.store import FolderStore

CASES = Path(__file__).resolve().parents[4] / "shared" / "cases" / "feeds"
LINE = st.text(st.characters(exclude_categories=("Cs", "Cc", "Cf", "Zl", "Zp", "Zs")) | st.just(" "), min_size=1)


def read(name: str) -> list[Product]:
    if not CASES.is_dir():
        pytest.skip("needs ../shared/cases")
    return list(parse_catalogue(name, (CASES / name).read_bytes()).rows)


def test_inch_marks_in_a_tsv_hold_no_rows_together():
    assert [(p.sku, p.title, p.photo_problem) for p in read("10-quotes-inch.tsv")] == [
        ("A1", '24" Monitor', ""),
        ("A2", '"Best" mug', ""),
        ("A3", '"Deluxe cup', ""),
        ("A4", 'Cup 3"', ""),
        ("A5", "cup", ""),
    ]


def test_what_looks_like_an_entity_in_an_address_is_left_alone():
    links = [p.image_link.partition("?id=can")[2] for p in read("12-entity-url.csv")]
    assert links == [
        "&section=3&copy=1",
        "&section=3&copy=1",
        "&reg=de&times=2",
        "&order=2&lang=en",
        "&not=1&para=2&amp=3&lt=4&curren=EUR&currency=EUR",
    ]


def test_empty_columns_at_the_end_may_be_left_out():
    assert [(p.sku, p.category, p.photo_problem) for p in read("04-omitted-trailing.csv")] == [
        ("A1", "Home > Paint", ""),
        ("A2", "Home > Paint", ""),
        ("A3", "", ""),
    ]
    (surplus,) = parse_catalogue("f.csv", b"id,title,image_link\n1,Mug,i.jpg,,,\n").rows
    assert surplus.photo_problem == ""


def test_merchant_xml_is_read_like_a_csv():
    (product,) = read("01-merchant.xml")
    assert (product.sku, product.title, product.category) == ("A1", "Yellow bucket", "Home > Paint")
    assert product.image_link == "https://shop.example/a.jpg"


def test_merchant_xml_comes_as_atom_too_and_its_own_names_win():
    atom = """<?xml version="1.0"?><feed xmlns="http://www.w3.org/2005/Atom" xmlns:g="http://base.google.com/ns/1.0">
      <entry><id>urn:7</id><g:id>A7</g:id><title>Jug</title><g:image_link>https://s.example/j.jpg</g:image_link>
      <g:additional_image_link>https://s.example/1.jpg</g:additional_image_link>
      <g:additional_image_link>https://s.example/2.jpg</g:additional_image_link></entry></feed>"""
    (product,) = parse_catalogue("feed.xml", atom.encode()).rows
    assert (product.sku, product.title) == ("A7", "Jug")
    assert product.extra["additional_image_link"] == "https://s.example/1.jpg, https://s.example/2.jpg"


def test_lines_above_the_header_are_skipped():
    assert [(p.sku, p.row) for p in read("02-sep-line.csv")] == [("A1", 2), ("A2", 3)]
    (product,) = parse_catalogue("f.csv", b"# exported 2026-11-01\n\nid,title,image_link\n1,Mug,i.jpg\n").rows
    assert (product.sku, product.row) == ("1", 4)


def test_marks_that_nobody_sees_are_no_part_of_a_header_or_an_id():
    assert [p.sku for p in read("06-double-bom.csv")] == ["A1"]
    first, second, third = read("09-zero-width.csv")
    assert (first.sku, second.sku, third.sku) == ("A1", "A1#3", "A2")
    assert "repeats the id of row 2" in second.photo_problem
    (product,) = parse_catalogue("f.csv", "g:id,g:title,g:image_link\n1,a\u202ebc,i.jpg\n".encode()).rows
    assert (product.sku, product.title) == ("1", "abc")


def test_files_are_found_however_their_names_are_spelt(tmp_path):
    if not CASES.is_dir():
        pytest.skip("needs ../shared/cases")
    folder = tmp_path / "files"
    folder.mkdir()
    named = ["my shoe.jpg", "100% cotton #2.jpg", "Photo.JPG", "image, front.jpg", "🥾 boot.jpg", "tom&jerry.jpg"]
    for name in [*named, unicodedata.normalize("NFD", "Schuh größe é.jpg"), "a&copy1.jpg"]:
        (folder / name).write_bytes(name.encode())
    shutil.copy(CASES / "14-files.csv", tmp_path / "feed.csv")
    store = FolderStore(tmp_path / "store")
    products = {p.sku: p for p in load_manifest(store, ingest(tmp_path / "feed.csv", store, Settings()))}
    found = {sku for sku, product in products.items() if product.photo}
    assert found == {"A1", "A2", "A3", "A4", "A5", "A7", "A8", "A9", "B1", "B3"}
    assert "is it files/Photo.JPG?" in products["A6"].photo_problem
    for sku in ("B4", "B5"):
        assert "is an absolute path" in products[sku].photo_problem


@pytest.mark.parametrize("between", [", ", " ", "|", ";"])
def test_of_several_addresses_in_one_field_the_first_is_the_photo(between):
    row = f'1,Mug,"https://s.example/a.jpg{between}https://s.example/b.jpg"\n'
    (product,) = parse_catalogue("f.csv", ("id,title,image_link\n" + row).encode()).rows
    assert product.image_link == "https://s.example/a.jpg"


def test_no_spreadsheet_computes_an_exported_feed():
    hostile = ['=HYPERLINK("http://evil")', "@SUM(A1)", "+cmd|' /C calc'!A0", "-2+3", "\t=1+1", "\uff1d1+1"]
    written = published_feed([PublishedImage(text, text, "a.jpg", "0") for text in hostile])
    read = list(csv.reader(io.StringIO(written.decode())))
    assert [row[:2] for row in read[1:]] == [["'" + text] * 2 for text in hostile]
    assert b"\n-5,Mug" in published_feed([PublishedImage("-5", "Mug", "a.jpg", "0")])


@st.composite
def feeds(draw: st.DrawFn) -> tuple[bytes, list[tuple[str, str]]]:
    """A feed as one of many tools would write it, and the ids and titles that are in it."""
    delimiter = draw(st.sampled_from("\t,;|"))
    end = draw(st.sampled_from(["\n", "\r\n", "\r"]))
    properly = draw(st.booleans())
    titles = draw(st.lists(LINE.map(str.strip).filter(bool), min_size=1, max_size=8))
    if not properly:  # Merchant's TSV: quotes are text, and no field holds a delimiter
        titles = [title.replace(delimiter, "x").strip() or "x" for title in titles]
        titles = [draw(st.sampled_from(["", '"'])) + title + draw(st.sampled_from(["", '"'])) for title in titles]
    else:
        titles = [title + draw(st.sampled_from(["", "\n\n", '"', ' 3" x', delimiter])) + "y" for title in titles]
    rows = [[f"A{n}", title, f"https://s.example/{n}.jpg", ""] for n, title in enumerate(titles)]
    header = ["id", "title", "image_link", "color"]
    buffer = io.StringIO(newline="")
    if properly:
        # Python's writer does not quote a line feed where lines end otherwise
        quoting = csv.QUOTE_ALL if end == "\r" else draw(st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]))
        csv.writer(buffer, delimiter=delimiter, lineterminator=end, quoting=quoting).writerows([header, *rows])
    else:
        width = draw(st.sampled_from([3, 4]))
        buffer.write(
            end.join(delimiter.join(row[:width]) for row in [header, *rows]) + draw(st.sampled_from(["", end]))
        )
    mark = draw(st.sampled_from(["", "\ufeff", "\ufeff\ufeff"]))
    encoding = draw(st.sampled_from(["utf-8", "utf-16"]))
    return (mark + buffer.getvalue()).encode(encoding), [(row[0], row[1]) for row in rows]


@given(feeds())
@settings(max_examples=100, deadline=None)
def test_no_row_is_lost(feed):
    check_no_row_is_lost(feed)


@pytest.mark.slow
@pytest.mark.exhaustive
@given(feeds())
@settings(max_examples=5000, deadline=None)
def test_no_row_of_five_thousand_feeds_is_lost(feed):
    check_no_row_is_lost(feed)


def check_no_row_is_lost(feed: tuple[bytes, list[tuple[str, str]]]) -> None:
    data, written = feed
    rows = parse_catalogue("feed", data).rows
    assert [row.sku for row in rows] == [sku for sku, _ in written]
    usable = [row for row in rows if not row.photo_problem]
    assert [row.image_link for row in usable] == [f"https://s.example/{row.sku[1:]}.jpg" for row in usable]
