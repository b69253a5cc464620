"""The catalogue contract: what is read, what is refused, and that one bad row never costs another."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.catalogue.feed import ingest, parse_catalogue, read_catalogue
from pipelines.catalogue.manifest import load_manifest
from pipelines.contracts import Product, sha256_hex
from pipelines.errors import UsageError
from pipelines.settings import Settings
from pipelines.store import FolderStore

HEADER = "id,title,image_link,product_type,item_group_id,color\n"


def parse(text: str | bytes) -> tuple[Product, ...]:
    return parse_catalogue("feed.csv", text.encode() if isinstance(text, str) else text).rows


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A catalogue's folder with one photo, and a secret beside it."""
    (tmp_path / "secret.jpg").write_bytes(b"not yours")
    images = tmp_path / "shop" / "images"
    images.mkdir(parents=True)
    (images / "mug.jpg").write_bytes(b"a mug")
    return tmp_path / "shop"


def products_of(folder: Path, text: str, settings: Settings | None = None, **more: int) -> list[Product]:
    (folder / "feed.csv").write_text(text, encoding="utf-8")
    store = FolderStore(folder.parent / "store")
    return load_manifest(store, ingest(folder / "feed.csv", store, settings or Settings(), **more))


# ----------------------------------------------------------------------- reading


def test_merchant_columns_become_a_product_and_unknown_ones_are_kept():
    (product,) = parse(HEADER + "A1,Mug,images/mug.jpg,Home > Kitchen,G7,blue\n")
    assert product == Product(
        "A1", 2, "Mug", "Home > Kitchen", None, "", "images/mug.jpg", "G7", {"color": "blue"}
    )  # fmt: skip


@pytest.mark.parametrize("delimiter", ["\t", ",", ";", "|"])
def test_the_delimiter_is_found(delimiter):
    rows = ["id,title,image_link,additional_image_link", "1,A; b | c,i.jpg,j.jpg"]
    text = "\n".join(row.replace(",", "\x01").replace(delimiter, "/").replace("\x01", delimiter) for row in rows)
    (product,) = parse(text)
    assert (product.sku, product.image_link, product.extra) == ("1", "i.jpg", {"additional_image_link": "j.jpg"})


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp1252", "utf-32"])
def test_the_encodings_that_spreadsheets_write_are_read(encoding):
    (product,) = parse("id,title,image_link\n1,Crème brûlée – 5 €,i.jpg\n".encode(encoding))
    assert product.title == "Crème brûlée – 5 €"


def test_html_entities_are_decoded():
    (product,) = parse("id,title,image_link\n1,Salt &amp; Pepper&nbsp;&#8211; 2&quot;,http://x.org/?a=1&amp;b=2\n")
    assert product.title == 'Salt & Pepper\xa0– 2"'
    assert product.image_link == "http://x.org/?a=1&b=2"


def test_column_names_may_be_written_as_people_read_them():
    (product,) = parse("ID, Title ,Image Link\r\n1,Mug,i.jpg\r\n")
    assert (product.sku, product.title, product.image_link) == ("1", "Mug", "i.jpg")


def test_rows_count_as_in_a_spreadsheet():
    rows = parse('id,title,image_link\n1,"Two\nlines",i.jpg\n\n2,Mug,i.jpg\n')
    assert [(p.row, p.title) for p in rows] == [(2, "Two lines"), (4, "Mug")]


def test_only_line_ends_end_a_row():
    odd = "".join(map(chr, (0x0B, 0x0C, 0x1C, 0x85, 0x2028, 0x2029)))
    rows = parse(f"id,title,image_link\r\n1,A{odd}mug,i.jpg\r2,Cup,i.jpg\n")
    assert [(p.row, p.sku, p.photo_problem) for p in rows] == [(2, "1", ""), (3, "2", "")]
    assert rows[0].title == "A mug"  # and control characters are no text


# ---------------------------------------------------------------- what is wrong


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "the file is empty"),
        ("\n\n", "the file is empty"),
        ("id,title,picture\n1,Mug,i.jpg\n", "no column 'image_link' in its header (found: id, title, picture)"),
        (
            "id,title,image_link,id\n1,Mug,i.jpg,2\n",
            "more than one column 'id' in its header (found: id, title, image_link, id): keep one of them",
        ),
        ("id,title,image_link\n", "no product below its header"),
        (b"\x89PNG\r\n\x1a\n\x81\x8d\x00", "a PNG picture"),
        (b"PK\x03\x04\x14\x00xl/workbook.xml", "export the sheet as CSV UTF-8"),
        (b"\x1f\x8b\x08\x00", "compressed with gzip"),
        ("id,title,image_link\n1,Mug,i.jpg\n".encode("utf-16-le"), "UTF-16 without a byte order mark"),
        ("<!DOCTYPE html><html><form>login</form></html>", "a web page, perhaps a login"),
        ('[{"id": 1}]', "JSON: export the catalogue as CSV"),
        ("<rss><channel><title>x</title></channel></rss>", "XML of another kind (<rss>)"),
        ("<rss><channel><item>", "XML that is not well-formed"),
        ('<!DOCTYPE a [<!ENTITY b "c">]><rss/>', "XML with a document type"),
    ],
)
def test_a_file_that_is_no_catalogue_is_one_line_with_its_remedy(text, said):
    with pytest.raises(UsageError) as caught:
        parse(text)
    assert str(caught.value).startswith("feed.csv: ")
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("secrets", ["admin: hunter2secret\n", "PATH=/bin\x00KEY=hunter2secret", "hunter2secret\n"])
def test_a_file_that_is_no_catalogue_is_not_repeated(secrets):
    with pytest.raises(UsageError, match="no column 'id'") as caught:
        parse(secrets)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    ("written", "rounded"), [("4.00638E+12", True), ("4E+12", True), ("4E12", False), ("A4.1E+12", False)]
)
def test_an_id_that_a_spreadsheet_rounded_costs_its_row(written, rounded):
    [row, other] = parse(f"id,title,image_link\n{written},Mug,i.jpg\n4006381333931,Cup,i.jpg\n")
    assert ("a spreadsheet rounded: export it as text" in row.photo_problem) == rounded
    assert not other.photo_problem


def test_an_id_that_no_index_would_take_costs_its_row():
    rows = parse(f"id,title,image_link\n{'x' * 5000},Mug,i.jpg\n{'x' * 5001},Cup,i.jpg\n3,Jug,i.jpg\n")
    assert [bool(p.photo_problem) for p in rows] == [True, True, False]
    assert "row 2 has an id of 5000 characters" in rows[0].photo_problem
    assert all(len(p.sku) < 250 for p in rows)


def test_titles_and_product_types_are_as_long_as_merchant_takes_them():
    long = "oak " * 200_000
    (product,) = parse(f"id,title,product_type,image_link\nA,{long},Home > {long},a.jpg\n")
    assert product.title == ("oak " * 38)[:150].rstrip()
    assert len(product.category) == 750
    assert product.photo_problem == ""
    (product,) = parse(f"id,title,image_link\nA,{'ü' * 150},a.jpg\n")
    assert product.title == "ü" * 150


def test_a_catalogue_that_is_not_there_is_a_usage_error(tmp_path):
    for path in (tmp_path / "absent.csv", tmp_path):
        with pytest.raises(UsageError, match=str(path)):
            read_catalogue(path)


def test_a_catalogue_beyond_the_limit_is_a_usage_error(tmp_path):
    (tmp_path / "feed.csv").write_text(HEADER + "1,Mug,i.jpg,,,\n")
    with pytest.raises(UsageError, match="PACKSHOT_FEED_MAX_BYTES"):
        read_catalogue(tmp_path / "feed.csv", Settings(feed_max_bytes=10))


def test_one_bad_row_costs_that_row():
    rows = parse(
        "id,title,image_link\n"
        "1,Mug,i.jpg\n"
        "2,Mug, with a comma,i.jpg\n"
        "3,Mug\n"
        ",Mug,i.jpg\n"
        "5,Mug,\n"
        "6,Mu\x00g,i.jpg\n"
        "7,Mug,i.jpg\n"
    )
    assert [(p.row, p.sku) for p in rows] == [(2, "1"), (3, "2"), (4, "3"), (5, "#5"), (6, "5"), (7, "6"), (8, "7")]
    problems = [p.photo_problem for p in rows]
    assert problems[0] == problems[6] == ""
    for problem, said in zip(
        problems[1:6],
        ["row 3 has 4 columns, the header 3", "row 4 names no photo", "no id", "names no photo", "NUL"],
        strict=True,
    ):
        assert said in problem


@pytest.mark.parametrize("broken", ['2,"Mug,i.jpg\n', '2,Mug,"i.jpg\n'])
@pytest.mark.parametrize("cup", ["3,Cup,i.jpg", '3,"Cup",i.jpg', '3,9" cup,i.jpg', '3,Cup,"i.jpg"'])
@pytest.mark.parametrize("end", ["", "\n"])
def test_an_open_quote_swallows_no_other_row(broken, cup, end):
    rows = parse(f"id,title,image_link\n1,Pan,i.jpg\n{broken}{cup}\n4,Jug,i.jpg{end}")
    assert [p.sku for p in rows] == ["1", "2", "3", "4"]
    assert (rows[0].title, rows[3].title) == ("Pan", "Jug")


def test_the_first_usable_row_of_a_sku_wins_and_the_others_are_shown():
    rows = parse("id,title,image_link\n1,No photo,\n1,First,i.jpg\n2,Mug,i.jpg\n1,Second,i.jpg\n")
    assert [(p.sku, p.title) for p in rows] == [
        ("1#2", "No photo"), ("1", "First"), ("2", "Mug"), ("1#5", "Second"),
    ]  # fmt: skip
    assert rows[3].photo_problem == "row 5 repeats the id of row 3, which is the one used"
    assert "names no photo" in rows[0].photo_problem


def test_the_name_of_a_repeated_id_is_no_longer_than_an_id_may_be():
    long = "x" * 250
    rows = parse(f"id,title,image_link\n{long},a,i.jpg\n{long},b,i.jpg\n{'y' * 200},c,i.jpg\n{'y' * 200},d,i.jpg\n")
    assert len({p.sku for p in rows}) == 4
    assert max(len(p.sku) for p in rows) == 200


@pytest.mark.medium
@given(st.text(max_size=300))
def test_any_text_gives_distinct_products_or_a_usage_error(text):
    try:
        rows = parse("id,title,image_link\n" + text)
    except UsageError:
        return
    assert len({product.sku for product in rows}) == len(rows)
    assert all(product.photo_problem or (product.sku and product.image_link) for product in rows)


# ------------------------------------------------------------------ into the store


def test_feed_and_photos_are_in_the_store_under_their_digests(folder):
    store = FolderStore(folder.parent / "store")
    feed = HEADER + "A1,Mug,images/mug.jpg,Kitchen,,blue\n"
    (product,) = products_of(folder, feed)
    assert product.photo == sha256_hex(b"a mug")
    assert store.get(product.photo) == b"a mug"
    assert store.stat(product.photo).media_type == "image/jpeg"
    assert store.get(sha256_hex(feed.encode())) == feed.encode()


def test_the_same_files_give_the_same_manifest(folder, store):
    (folder / "feed.csv").write_text(HEADER + "A1,Mug,images/mug.jpg,Kitchen,,blue\n")
    digests = {ingest(folder / "feed.csv", s, Settings()) for s in (store, store, FolderStore(folder / "store"))}
    assert len(digests) == 1


def test_a_limit_takes_the_first_rows(folder):
    rows = "".join(f"{n},Mug,images/mug.jpg,,,\n" for n in range(5))
    assert [p.sku for p in products_of(folder, HEADER + rows, limit=2)] == ["0", "1"]


@pytest.mark.parametrize(
    ("link", "said"),
    [
        ("images/absent.jpg", "is not there"),
        ("images", "is no file"),
        ("images/mug.jpg/x", "is not there"),
        ("../secret.jpg", "leaves the catalogue's folder"),
        ("images/../../secret.jpg", "leaves the catalogue's folder"),
        ("images/link.jpg", "leaves the catalogue's folder"),
        ("linked/secret.jpg", "leaves the catalogue's folder"),
        ("/etc/passwd", "is an absolute path"),
        ("file:///etc/passwd", "is no http or https address"),
        ("images/pipe.jpg", "is no file"),
        ("images/loop.jpg", "cannot be read"),
        ("x" * 5000, "too long"),
        ("images/empty.jpg", "is empty (0 bytes)"),
        ("images/large.jpg", "is larger than"),
    ],
)
def test_a_photo_that_cannot_be_had_is_the_reason_of_its_row_alone(folder, link, said):
    (folder / "images" / "link.jpg").symlink_to(folder.parent / "secret.jpg")
    (folder / "linked").symlink_to(folder.parent)
    (folder / "images" / "loop.jpg").symlink_to("loop.jpg")
    (folder / "images" / "empty.jpg").touch()
    (folder / "images" / "large.jpg").write_bytes(b"x" * 2000)
    os.mkfifo(folder / "images" / "pipe.jpg")
    text = HEADER + f"1,Mug,images/mug.jpg,,,\n2,Mug,{link},,,\n"
    good, bad = products_of(folder, text, Settings(photo_max_bytes=1000))
    assert good.photo is not None
    assert bad.photo is None
    assert bad.photo_problem.startswith("row 3: photo ")
    assert said in bad.photo_problem


def test_a_link_inside_of_the_folder_may_be_a_symlink(folder):
    (folder / "images" / "same.jpg").symlink_to("mug.jpg")
    assert products_of(folder, HEADER + "1,Mug,images/same.jpg,,,\n")[0].photo == sha256_hex(b"a mug")


def test_a_digest_that_is_no_feed_is_a_usage_error(tmp_path):
    store = FolderStore(tmp_path)
    for digest in ("0" * 64, store.put(b"[]", "application/json"), store.put(b"\xff\xd8", "image/jpeg"), "nonsense"):
        with pytest.raises(UsageError, match="feed"):
            load_manifest(store, digest)


def test_the_real_catalogue_is_read_whole(shared, tmp_path):
    store = FolderStore(tmp_path)
    products = load_manifest(store, ingest(shared / "catalog" / "catalog.csv", store, Settings()))
    assert len(products) == 58
    assert not [product.photo_problem for product in products if product.photo_problem]
    assert sum("ground_truth_alpha" in product.extra for product in products) == 18
