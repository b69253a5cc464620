"""Which encoding a feed's bytes are in, where they do not say so themselves.

UTF-8 is sure: other text is practically never valid UTF-8. Each older encoding decodes nearly any bytes, to nonsense.
So a decoding counts by its words: their letters must be those of one language, in a usual case, with no sign inside.
Windows-1252 is what spreadsheets write in most of the world. Another encoding is taken only where its words are right
and those of Windows-1252 are not. (charset-normalizer took Polish for ISO-8859-3 and Chinese for Johab.)
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from pipelines.errors import UsageError

UTF_8 = "UTF-8"
WESTERN = "Windows-1252"

SURE = 0.95
"""Share of the words that must be right in an encoding to take it."""

DOUBTFUL = 0.85
"""Share of the words that one western language explains, from which on Windows-1252 is never left."""

NONSENSE = 0.5
"""Share of right words below which Windows-1252 is no explanation either."""

FEWEST, FEWEST_CJK = 6, 8
"""Letters on which a sure answer can stand, and characters of Chinese, Japanese or Korean."""

SAMPLE = 2**18
"""Bytes of lines with other than ASCII characters that are judged."""

EXPORT = "save it as CSV UTF-8 (Excel: Save As, CSV UTF-8; LibreOffice: Edit filter settings, Unicode (UTF-8))"


@dataclass(frozen=True, slots=True)
class Decoded:
    """A feed's text, and the encoding that its bytes were read in, by its usual name."""

    text: str
    encoding: str = UTF_8


_WEST = {
    "French": "àâæçéèêëîïôœùûüÿ",
    "German": "äöüßé",
    "Spanish": "áéíñóúü",
    "Portuguese": "ãáàâçéêíóôõúü",
    "Italian": "àèéìíîòóùú",
    "Dutch": "áéëèïíóöüú",
    "Danish or Norwegian": "æøåéôòü",
    "Swedish": "åäöéàü",
    "Finnish": "åäöšž",
    "Estonian": "äöõüšž",
    "Icelandic": "áéíóúýþæöð",
    "Catalan": "àçéèíïóòúü",
}
_CENTRAL = {
    "Polish": "ąćęłńóśźż",
    "Czech": "áčďéěíňóřšťúůýž",
    "Slovak": "áäčďéíĺľňóôŕšťúýž",
    "Hungarian": "áéíóöőúüű",
    "Croatian or Slovene": "čćđšž",
    "Romanian": "ăâîşţ",
}
_CYRILLIC = {
    "Russian": "абвгдеёжзийклмнопрстуфхцчшщъыьэюя",
    "Ukrainian": "абвгґдеєжзиіїйклмнопрстуфхцчшщьюя",
    "Belarusian": "абвгдеёжзійклмнопрстуўфхцчшыьэюя",
    "Serbian": "абвгдђежзијклљмнњопрстћуфхцчџш",
    "Macedonian": "абвгдѓежзѕијклљмнњопрстќуфхцчџш",
}
_GREEK = {"Greek": "αβγδεζηθικλμνξοπρστυφχψωςάέήίόύώϊϋΐΰ"}
_TURKISH = {"Turkish": "çğıöşüâîûi̇"}


@dataclass(frozen=True, slots=True)
class _Alphabetic:
    """An encoding of one byte a letter, and the letters of its languages that are not in ASCII."""

    name: str
    codec: str
    languages: dict[str, str]
    latin: bool = True


_WINDOWS_1252 = _Alphabetic(WESTERN, "packshot-1252", _WEST)
_ALPHABETIC = (
    _WINDOWS_1252,
    _Alphabetic("Windows-1250", "cp1250", _CENTRAL),
    _Alphabetic("ISO-8859-2", "iso8859_2", _CENTRAL),
    _Alphabetic("Windows-1251", "cp1251", _CYRILLIC, latin=False),
    _Alphabetic("KOI8-R", "koi8_r", _CYRILLIC, latin=False),
    _Alphabetic("Windows-1253", "cp1253", _GREEK, latin=False),
    _Alphabetic("Windows-1254", "cp1254", _TURKISH),
    _Alphabetic("Mac Roman", "mac_roman", _WEST),
)

_DECLARED = {
    "utf-8": ("UTF-8", "utf-8"), "ascii": ("UTF-8", "utf-8"),
    "iso8859-1": (WESTERN, "packshot-1252"), "cp1252": (WESTERN, "packshot-1252"),
    "cp1250": ("Windows-1250", "cp1250"), "iso8859-2": ("ISO-8859-2", "iso8859_2"),
    "cp1251": ("Windows-1251", "cp1251"), "koi8-r": ("KOI8-R", "koi8_r"), "koi8-u": ("KOI8-U", "koi8_u"),
    "iso8859-5": ("ISO-8859-5", "iso8859_5"), "iso8859-15": ("ISO-8859-15", "iso8859_15"),
    "cp1253": ("Windows-1253", "cp1253"), "iso8859-7": ("ISO-8859-7", "iso8859_7"),
    "cp1254": ("Windows-1254", "cp1254"), "iso8859-9": ("ISO-8859-9", "iso8859_9"),
    "cp1257": ("Windows-1257", "cp1257"), "mac-roman": ("Mac Roman", "mac_roman"),
    "shift_jis": ("Shift-JIS", "cp932"), "cp932": ("Shift-JIS", "cp932"), "euc_jp": ("EUC-JP", "euc_jp"),
    "gb2312": ("GB18030", "gb18030"), "gbk": ("GB18030", "gb18030"), "gb18030": ("GB18030", "gb18030"),
    "big5": ("Big5", "cp950"), "cp950": ("Big5", "cp950"), "euc_kr": ("EUC-KR", "cp949"), "cp949": ("EUC-KR", "cp949"),
}  # fmt: skip
"""Encodings that an XML may declare, by Python's name of them: the usual name, and the codec that reads most of it."""

_DECLARATION = re.compile(rb"""\s*<\?xml[^>]{0,200}?\sencoding\s*=\s*["']([A-Za-z0-9._:-]{1,40})["']""")

_WORD = re.compile(rb"[A-Za-z\x80-\xff]*[\x80-\xff][A-Za-z\x80-\xff]*")
_EDGES = (
    "\u00a0\u2018\u2019\u201a\u201b\u201c\u201d\u201e\u2020\u2021\u2022\u2026\u2030\u2039\u203a\u20ac\u2122"
    "–—ªº«»¡¿®©°±²³´·¸¹¼½¾×÷£§¶¥¢µ№¨`'"
)
"""Signs that stand beside words, and alone. They say nothing of the encoding."""


def _windows_1252(error: UnicodeError) -> tuple[str, int]:
    """The five bytes that Windows-1252 lacks, as the controls that browsers make of them."""
    assert isinstance(error, UnicodeDecodeError)
    return error.object[error.start : error.end].decode("latin-1"), error.end


codecs.register_error("packshot-1252", _windows_1252)


def decode(source: str, data: bytes) -> Decoded:
    """The text of bytes that have no byte order mark.

    Raises UsageError, one sentence that names the likeliest encoding and how to export as UTF-8, where no encoding is
    sure; also where an XML's declaration is wrong.
    """
    declared = _DECLARATION.match(data[:400])
    if declared is not None and (found := _as_declared(source, data, declared[1].decode())):
        return found
    try:
        return Decoded(data.decode("utf-8"))
    except UnicodeDecodeError as error:
        damaged = error
    return _guessed(source, data, damaged)


def _as_declared(source: str, data: bytes, name: str) -> Decoded | None:
    """The text as the XML declares it; None where the declaration cannot be true or says UTF-8."""
    try:
        known = codecs.lookup(name).name
    except LookupError:
        known = ""
    if known.startswith("utf-16") or known.startswith("utf-32"):
        return None  # the declaration could be read, so it is in neither
    if known not in _DECLARED:
        raise UsageError(f"{source}: XML in the encoding {name}, which is not read: export it in UTF-8")
    usual, codec = _DECLARED[known]
    if codec == "utf-8":
        return None
    try:
        return Decoded(_read(data, codec), usual)
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise UsageError(
            f"{source}: XML that declares {name} and is not in it (line {line}): export it in UTF-8"
        ) from None


def _guessed(source: str, data: bytes, damaged: UnicodeDecodeError) -> Decoded:
    """The text in the one encoding whose words are right."""
    sample = _sample(data)
    if 10 * sample.decode("utf-8", "replace").count("\ufffd") < len(re.findall(rb"[\xc2-\xf4][\x80-\xbf]", sample)):
        line = data[: damaged.start].count(b"\n") + 1
        raise UsageError(f"{source}: UTF-8 with a damaged character in line {line}: export it again")
    words = sorted(set(_WORD.findall(sample)))
    west = max(_share(words, _WINDOWS_1252, letters) for letters in _WEST.values())
    found = []
    for encoding in _ALPHABETIC[1:]:
        if (text := _strict(data, encoding.codec)) is None:
            continue
        share = max(_share(words, encoding, letters) for letters in encoding.languages.values())
        contested = {word for word in words if _read(word, encoding.codec) != _read(word, "packshot-1252")}
        letters = sum(_letters(_read(word, encoding.codec)) for word in contested)
        found.append((share, letters >= FEWEST, text, encoding.name))
    found += [
        (share, many, text, name)
        for name, codec, judge in _IDEOGRAPHIC
        if (text := _strict(data, codec)) is not None
        for share, many in [judge(_read(sample, codec, "replace"))]
    ]
    best = max((share for share, *_ in found), default=0.0)
    sure = {text: name for share, many, text, name in reversed(found) if many and share >= max(SURE, best - 0.02)}
    if west < DOUBTFUL and len(sure) == 1:
        ((text, name),) = sure.items()
        return Decoded(text, name)
    anywhere = _share(words, _WINDOWS_1252, *_WEST.values())
    if anywhere >= NONSENSE or not words or (best < SURE and sum(map(_high, words)) < FEWEST):
        return Decoded(_read(data, "packshot-1252"), WESTERN)
    likely = max(found, default=(0.0, False, "", WESTERN))[3] if best > anywhere else WESTERN
    raise UsageError(f"{source}: not in UTF-8, and no other encoding is sure (perhaps {likely}): {EXPORT}")


def _sample(data: bytes) -> bytes:
    """The first lines that are not ASCII."""
    lines, size = [], 0
    for line in data.splitlines():
        if not line.isascii():
            lines.append(line)
            size += len(line)
            if size > SAMPLE:
                break
    return b"\n".join(lines)


def _read(data: bytes, codec: str, errors: str = "strict") -> str:
    if codec == "packshot-1252":
        return data.decode("cp1252", "packshot-1252")
    return data.decode(codec, errors)


def _strict(data: bytes, codec: str) -> str | None:
    try:
        return _read(data, codec)
    except UnicodeDecodeError:
        return None


def _share(words: Iterable[bytes], encoding: _Alphabetic, *alphabets: str) -> float:
    """The share of the words that are right in one of these alphabets; 1 where no word says anything."""
    right = counted = 0
    for raw in words:
        try:
            word = _read(raw, encoding.codec).strip(_EDGES)
        except UnicodeDecodeError:
            counted += 1
            continue
        if word.isascii():
            continue
        counted += 1
        right += any(_is_right(word, letters, encoding.latin) for letters in alphabets)
    return right / counted if counted else 1.0


def _is_right(word: str, letters: str, latin: bool) -> bool:
    """Whether a word has only a language's letters, and a capital only at its beginning or throughout."""
    for part in re.split("['’\\-]", word):
        lower = part.lower()
        if any(letter not in letters and not (letter.isascii() and latin) for letter in lower):
            return False
        if not (part[1:] == lower[1:] or part == part.upper()):
            return False
    return True


def _letters(text: str) -> int:
    return sum(letter.isalpha() and not letter.isascii() for letter in text)


def _high(word: bytes) -> int:
    return sum(byte > 127 for byte in word)


# ------------------------------------------------------------------------------------- Chinese, Japanese and Korean


def _rows(codec: str, text: str) -> list[int]:
    """The first byte of each character that is not ASCII, in another encoding; 0 for one that it lacks."""
    return [(letter.encode(codec, "replace"))[0] if len(letter.encode(codec, "ignore")) == 2 else 0 for letter in text]


def _other(text: str) -> str:
    return "".join(letter for letter in text if not letter.isascii())


def _lonely(text: str) -> bool:
    """Whether most of the characters stand alone among small Latin letters, as accented letters do."""
    alone = len(re.findall(r"(?<=[a-z])[^\x00-\x7f](?![^\x00-\x7f])|(?<![^\x00-\x7f])[^\x00-\x7f](?=[a-z])", text))
    return alone > 0.3 * len(_other(text))


_SIGNS = "\u3000、。·ˉˇ¨〃—～…‘’“”〔〕〈〉《》「」『』〖〗【】±×÷°′″℃￥¥§№☆★○●◎◇◆□■△▲→←↑↓①②③④⑤⑥⑦⑧⑨⑩ⅠⅡⅢ"
"""Signs of Chinese titles, besides those in full width."""


def _chinese(text: str) -> tuple[float, bool]:
    """Simplified Chinese: GB 2312's signs and its first 3,755 characters, which go by their sound to 0xD7."""
    other = _other(text)
    characters = [row for row in _rows("gb2312", other) if row >= 0xB0]
    signs = sum(letter in _SIGNS or "\uff01" <= letter <= "\uff5e" for letter in other)
    share = (signs + sum(0xB0 <= row <= 0xD7 for row in characters)) / max(1, len(other))
    late = sum(row > 0xC8 for row in characters) / max(1, len(characters))  # Korean has none there
    return (0.0 if late < 0.1 or _lonely(text) else share), len(characters) >= FEWEST_CJK


def _traditional(text: str) -> tuple[float, bool]:
    """Traditional Chinese: Big5's signs and its 5,401 frequent characters. Of these, 40 % end with an ASCII byte; of
    what else decodes as Big5, Korean and Japanese as EUC, none do."""
    other = _other(text)
    rows = _rows("big5", other)
    share = sum(0xA1 <= row <= 0xC6 for row in rows) / max(1, len(rows))
    ascii_ends = sum(letter.encode("big5", "ignore")[1:] < b"\x7f" for letter in other)
    return (0.0 if ascii_ends < 0.1 * len(other) or _lonely(text) else share), len(rows) >= FEWEST_CJK


def _japanese(text: str) -> tuple[float, bool]:
    """Japanese: kana, signs and the characters of the first level. No text is without kana."""
    other = _other(text)
    kana = sum("\u3041" <= letter <= "\u30ff" for letter in other)
    half = sum("\uff61" <= letter <= "\uff9f" for letter in other)
    common = (
        kana + half + sum(row in (0x81, 0x82) or 0x88 <= row <= 0x97 for row in _rows("cp932", _without_kana(other)))
    )
    few = kana < 0.1 * len(other) or half > kana
    return (0.0 if few or _lonely(text) else common / max(1, len(other))), len(other) >= FEWEST_CJK


def _without_kana(text: str) -> str:
    return "".join(letter for letter in text if not ("\u3041" <= letter <= "\u30ff" or "\uff61" <= letter <= "\uff9f"))


def _korean(text: str) -> tuple[float, bool]:
    """Korean: KS X 1001's syllables and signs."""
    rows = _rows("euc_kr", _other(text))
    share = sum(row in (0xA1, 0xA2, 0xA3) or 0xB0 <= row <= 0xC8 for row in rows) / max(1, len(rows))
    return (0.0 if _lonely(text) else share), len(rows) >= FEWEST_CJK


_IDEOGRAPHIC: tuple[tuple[str, str, Callable[[str], tuple[float, bool]]], ...] = (
    ("Shift-JIS", "cp932", _japanese),
    ("EUC-JP", "euc_jp", _japanese),
    ("GB18030", "gb18030", _chinese),
    ("Big5", "cp950", _traditional),
    ("EUC-KR", "cp949", _korean),
)
