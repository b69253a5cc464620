"""Read the rows of a feed as shops' tools write them: CSV, TSV or Merchant XML. No row is lost.

Quotes are the hard part. RFC 4180 quotes fields, Merchant's TSV does not, and titles hold inch marks. A field counts as
quoted where its closing quote stands before a delimiter or a line end; any other quote is text. A quoted field may
span lines, but never where these lines are rows of their own.
"""

from __future__ import annotations

import bisect
import codecs
import html
import io
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path

from pipelines.catalogue.encodings import EXPORT, UTF_8, Decoded, decode
from pipelines.errors import UsageError

REQUIRED = ("id", "title", "image_link")

SUFFIXES = (".csv", ".tsv", ".txt", ".xml")
"""How the name of a feed's file ends."""

TABLES = (".xlsx", ".xls", ".ods", ".json", ".jsonl", ".gz", ".zip", ".html", ".htm", ".pdf")
"""How the name of a file ends that holds a shop's data and is no photo. Reading it says how to export it."""

DELIMITERS = ("\t", ",", ";", "|")

MAX_FIELD = 2**16
"""Characters in a quoted field. Merchant takes 5,000 of a description."""

MERCHANT = "{http://base.google.com/ns/1.0}"
"""Merchant's namespace, as ElementTree writes it before a name."""

INVISIBLE = re.compile("[\u200b\u2060\ufeff\u200e\u200f\u202a-\u202e\u2066-\u2069]")
"""Zero-width characters, byte order marks and marks of direction: they hide or reorder what a person reads."""

JOINERS = re.compile("[\u200c\u200d\u00ad]")
"""Invisible too, but part of some scripts' spelling and of emoji: removed from names and ids only."""

CONTROLS = re.compile(r" *[\x00-\x1f\x7f-\x9f\u2028\u2029]+ *")

ENTITY = re.compile(r"&(?:#\d{1,7}|#[xX][0-9a-fA-F]{1,6}|[A-Za-z][A-Za-z0-9]{1,31});")
"""An HTML entity with its semicolon. Without one it is part of an address: `&copy=1`."""

LINK = re.compile(r"\s*(?:https?://\S|.*\.(?:jpe?g|png|webp|tiff?|gif|bmp|avif)\s*(?:[?#].*)?$)", re.I | re.S)
"""What a filled image_link looks like."""

SHOWN_COLUMN = re.compile(r"[a-z][a-z_ ]{0,31}")
"""Header names that an error may repeat. A file that is no catalogue may be any file, also one with secrets."""

_KINDS = (
    (b"PK\x03\x04", "a zip file, perhaps an Excel workbook (.xlsx): export the sheet as CSV UTF-8"),
    (b"\xd0\xcf\x11\xe0", "an old Excel workbook (.xls): export the sheet as CSV UTF-8"),
    (b"\x1f\x8b", "compressed with gzip: unpack it first (gunzip)"),
    (b"%PDF", "a PDF: export the catalogue as CSV or TSV"),
    (b"\x89PNG", "a PNG picture: give the catalogue that names it"),
    (b"\xff\xd8\xff", "a JPEG picture: give the catalogue that names it"),
)

_MARKS = (
    ((codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE), "utf-32"),  # before UTF-16, whose mark begins this one
    ((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE), "utf-16"),
)
"""Byte order marks, and the encodings that they say."""


@dataclass(frozen=True, slots=True)
class Record:
    """One row before it is a product: its number as a spreadsheet counts, its fields, and what is wrong with it."""

    number: int
    fields: Sequence[str]
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Table:
    """A feed's column names, normalised, its rows, and the encoding that its bytes were read in."""

    columns: tuple[str, ...]
    records: tuple[Record, ...]
    encoding: str = UTF_8


def read_table(source: str, data: bytes) -> Table:
    """Read the rows of a feed from its bytes; `source` names it in errors.

    Every line that is not blank is part of exactly one record. Raises UsageError, one sentence that says what the file
    is and how to export it, where it is no CSV, TSV or Merchant XML.
    """
    decoded = _decode(source, data)
    return replace(_read(source, decoded.text), encoding=decoded.encoding)


def _read(source: str, text: str) -> Table:
    start = text.lstrip()[:200].lower()
    if not start:
        raise UsageError(f"{source}: the file is empty: give a CSV or TSV with the columns {', '.join(REQUIRED)}")
    if start.startswith(("<!doctype html", "<html")):
        raise UsageError(f"{source}: a web page, perhaps a login: give the address or file of the feed itself")
    if start.startswith(("<?xml", "<rss", "<feed", "<!doctype", "<!--")):
        return _read_xml(source, text)
    if start.startswith(("{", "[{")):
        raise UsageError(f"{source}: JSON: export the catalogue as CSV, TSV or Merchant XML")
    return _read_text(source, text)


def seems_a_table(path: Path) -> bool:
    """Whether a file whose name does not end like a feed's holds one all the same, or other data that are no photo."""
    if path.suffix.lower() in TABLES:
        return True
    if path.suffix:
        return False
    with path.open("rb") as file:
        start = file.read(4096)
    return all(name.encode() in start.replace(b"\0", b"").lower() for name in REQUIRED)


def clean(field: str) -> str:
    """A field as text: entities decoded, control characters as spaces, no character that hides or reorders others."""
    decoded = ENTITY.sub(lambda match: html.unescape(match[0]), field)
    return CONTROLS.sub(" ", INVISIBLE.sub("", decoded)).strip()


def clean_name(field: str) -> str:
    """An id or a link as text: `clean`, and without joiners and soft hyphens."""
    return JOINERS.sub("", clean(field))


def column_name(field: str) -> str:
    """A header's field as the name of a column: lower case, `_` for spaces, without Merchant's `g:`."""
    return "_".join(clean_name(field).strip('"').lower().split()).removeprefix("g:")


def _decode(source: str, data: bytes) -> Decoded:
    """The text by its byte order mark, else as `encodings.decode` finds it."""
    for magic, kind in _KINDS:
        if data.startswith(magic):
            raise UsageError(f"{source}: {kind}")
    for marks, encoding in _MARKS:
        if data.startswith(marks):
            try:
                return Decoded(data.decode(encoding), encoding.upper())
            except UnicodeDecodeError as error:
                raise UsageError(f"{source}: {encoding.upper()} that is damaged: {EXPORT}") from error
    if len(data) > 3 and 0 in (data[0], data[1]) and data[:400].count(0) * 3 > len(data[:400]):
        raise UsageError(f"{source}: UTF-16 without a byte order mark: save it as CSV in UTF-8")
    return decode(source, data)


# ------------------------------------------------------------------------------------------------------ CSV and TSV


def _read_text(source: str, text: str) -> Table:
    # not str.splitlines: it also cuts at characters that are text to a CSV, such as U+2028
    lines = io.StringIO(text, newline="").readlines()
    skipped, given = _above_header(lines)
    delimiter = given or _delimiter(lines[skipped])
    columns = tuple(column_name(field) for field in _fields(lines[skipped], 0, len(lines[skipped]), delimiter)[0])
    for name in REQUIRED:
        if columns.count(name) != 1:
            found = ", ".join(filter(SHOWN_COLUMN.fullmatch, columns)) or "nothing like a column's name"
            many, remedy = "no column", "rename or add it"
            if name in columns:
                many, remedy = "more than one column", "keep one of them"
            raise UsageError(f"{source}: {many} {name!r} in its header (found: {found}): {remedy}")
    above = sum(not SEPARATOR.match(line) for line in lines[:skipped])  # spreadsheets do not show a `sep=` line
    return Table(columns, tuple(_records(lines[skipped + 1 :], columns, delimiter, first=above + 2)))


SEPARATOR = re.compile(r"\s*\ufeff*sep=(?P<delimiter>[\t,;|])\s*$", re.I)
"""Excel's line above the header that names the delimiter."""


def _above_header(lines: Sequence[str]) -> tuple[int, str]:
    """How many lines stand above the header (blank ones, a `sep=` line, comments), and the delimiter they name."""
    delimiter, skipped = "", 0
    for line in lines[:-1]:
        if match := SEPARATOR.match(line):
            delimiter = match["delimiter"]
        elif line.strip() and not line.lstrip("\ufeff ").startswith("#"):
            break
        skipped += 1
    return skipped, delimiter


def _delimiter(header: str) -> str:
    """The delimiter that finds most of the required columns, then the one that finds most columns."""

    def found(delimiter: str) -> tuple[int, int]:
        names = [column_name(field) for field in _fields(header, 0, len(header), delimiter)[0]]
        return len(set(REQUIRED) & set(names)), len(names)

    return max(DELIMITERS, key=found)


def _records(lines: Sequence[str], columns: Sequence[str], delimiter: str, first: int) -> Iterator[Record]:
    """Every row that is not blank. `first` is the number of the first line's row."""
    text, starts = "".join(lines), [0, *accumulate(map(len, lines))]
    line, number = 0, first
    while line < len(lines):
        fields, stop = _fields(text, starts[line], min(starts[line] + MAX_FIELD, len(text)), delimiter)
        after = bisect.bisect_left(starts, stop)
        if after - line > 1 and not _is_one_row(lines[line:after], fields, columns, delimiter):
            fields, stop = _fields(text, starts[line], starts[line + 1], delimiter)
            after = line + 1
        if after - line == 1:
            plain = _plain(lines[line], delimiter)
            fields = plain if len(_trimmed(fields, len(columns))) != len(columns) == len(plain) else fields
        line = after
        if any(field.strip() for field in fields):
            fields = _trimmed(fields, len(columns))
            problem = ""
            if len(fields) > len(columns):
                problem = (
                    f"row {number} has {len(fields)} columns, the header {len(columns)}: "
                    "quote fields that hold a delimiter, and close every quote"
                )
            yield Record(number, [*fields, *[""] * (len(columns) - len(fields))], problem)
        number += 1


def _fields(text: str, start: int, end: int, delimiter: str) -> tuple[list[str], int]:
    """Fields of the record at `start` and the position after its line end; no quoted field reaches beyond `end`."""
    fields: list[str] = []
    position = start
    quoted = re.compile(rf'[ ]*"((?:[^"]++|"")*+)"[ ]*(?=[{re.escape(delimiter)}\r\n]|\Z)')
    plain = re.compile(rf"[^{re.escape(delimiter)}\r\n]*")
    while True:
        if match := quoted.match(text, position, end):
            fields.append(match[1].replace('""', '"'))
        else:
            match = plain.match(text, position)
            assert match is not None  # it also matches nothing
            fields.append(match[0])
        position = match.end()
        if text[position : position + 1] != delimiter:
            return fields, position + (2 if text[position : position + 2] == "\r\n" else 1)
        position += 1


def _plain(line: str, delimiter: str) -> list[str]:
    """The fields of one line with its quotes as text."""
    return line.rstrip("\r\n").split(delimiter)


def _trimmed(fields: list[str], width: int) -> list[str]:
    """The fields without surplus empty ones at the end."""
    while len(fields) > width and not fields[-1].strip():
        fields = fields[:-1]
    return fields


def _is_one_row(lines: Sequence[str], fields: list[str], columns: Sequence[str], delimiter: str) -> bool:
    """Whether lines that a quoted field holds together are one row, and not rows whose inch marks look like quotes."""
    if len(_trimmed(fields, len(columns))) > len(columns):
        return False
    looks = [_looks_like_a_row(_plain(line, delimiter), columns) for line in lines]
    if all(looks):
        return False
    linked = [look == "linked" for look in looks]
    return not (any(linked[1:-1]) or (linked[0] and linked[-1]))


def _looks_like_a_row(fields: list[str], columns: Sequence[str]) -> str:
    """`linked` where the fields have an id and what looks like a photo's link; `possible` where the link is empty and
    every column is there; else ""."""
    fields = _trimmed(fields, len(columns))
    filled = [*fields, *[""] * (len(columns) - len(fields))]
    if len(fields) > len(columns) or not filled[columns.index("id")].strip():
        return ""
    link = filled[columns.index("image_link")]
    if link.strip():
        return "linked" if LINK.match(link) else ""
    return "possible" if len(fields) == len(columns) else ""


# -------------------------------------------------------------------------------------------------------------- XML


def _read_xml(source: str, text: str) -> Table:
    """Read Merchant's XML: items of RSS 2.0 or entries of Atom. A name in Merchant's namespace wins over a plain one.

    A document type could define entities that grow without bound, so a file with one is refused.
    """
    if "<!doctype" in text.lower():
        raise UsageError(f"{source}: XML with a document type, which Merchant XML does not have: export it without")
    try:
        root = ElementTree.fromstring(text.lstrip("\ufeff \r\n\t"))  # noqa: S314  no document type, so no entities
    except (ElementTree.ParseError, ValueError) as error:
        raise UsageError(f"{source}: XML that is not well-formed ({error}): export it again") from error
    rows = [element for element in root.iter() if _local(element.tag) in ("item", "entry")]
    if not rows:
        raise UsageError(f"{source}: XML of another kind (<{_local(root.tag)}>): give Merchant XML, a CSV or a TSV")
    products = [_values(row) for row in rows]
    columns = tuple(dict.fromkeys(name for product in products for name in product))
    for name in REQUIRED:
        if name not in columns:
            raise UsageError(f"{source}: no <g:{name}> in any of its {len(rows)} items: export Merchant's attributes")
    return Table(
        columns,
        tuple(Record(n, [values.get(name, "") for name in columns]) for n, values in enumerate(products, start=2)),
    )


def _values(row: ElementTree.Element) -> dict[str, str]:
    plain: dict[str, list[str]] = {}
    merchant: dict[str, list[str]] = {}
    for child in row:
        values = merchant if child.tag.startswith(MERCHANT) else plain
        values.setdefault(column_name(_local(child.tag)), []).append(child.text or child.get("href") or "")
    return {name: ", ".join(filter(None, values)) for name, values in (plain | merchant).items()}


def _local(tag: object) -> str:
    """A name without its namespace; comments have none."""
    return tag.rpartition("}")[2] if isinstance(tag, str) else ""
