"""Feeds in the encodings of old systems: their words are read right, or the file is refused with the guess."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.catalogue.encodings import decode
from pipelines.catalogue.feed import ingest, parse_catalogue
from pipelines.catalogue.manifest import read_manifest
from pipelines.errors import UsageError
from pipelines.settings import Settings
from pipelines.store import FolderStore

TITLES = {
    "Russian": [
        "Чашка керамическая синяя, 350 мл",
        "Рюкзак городской чёрный",
        "Куртка мужская зимняя",
        "Часы наручные Восток",
        "Стол обеденный дубовый",
        "Крем для рук увлажняющий",
    ],
    "Ukrainian": [
        "Чашка керамічна синя",
        "Рюкзак міський чорний",
        "Куртка чоловіча зимова",
        "Ґудзики дерев'яні",
        "Їжа для котів",
    ],
    "Japanese": [
        "陶器のマグカップ 青 350ml",
        "黒いリュックサック",
        "メンズ冬ジャケット",
        "腕時計「東京」",
        "オーク材のダイニングテーブル",
        "ハンドクリーム",
    ],
    "Chinese": [
        "蓝色陶瓷杯 350毫升",
        "黑色双肩背包",
        "男士冬季夹克",
        "上海牌手表",
        "橡木餐桌,四人用",
        "保湿护手霜",
    ],
    "Taiwanese": [
        "藍色陶瓷杯 350毫升",
        "黑色雙肩背包",
        "男士冬季夾克",
        "橡木餐桌",
        "保濕護手霜",
    ],
    "Korean": [
        "파란색 도자기 컵 350ml",
        "검은색 배낭",
        "남성 겨울 재킷",
        "손목시계",
        "참나무 식탁",
        "핸드크림",
    ],
    "Polish": [
        "Kubek ceramiczny żółty, duży",
        "Plecak miejski czarny",
        "Kurtka męska zimowa",
        "Zegarek na rękę",
        "Stół dębowy",
        "Krem do rąk nawilżający",
    ],
    "Czech": [
        "Hrnek keramický modrý",
        "Batoh městský černý",
        "Bunda pánská zimní",
        "Náramkové hodinky",
        "Dubový jídelní stůl",
        "Krém na ruce, příjemně voní",
    ],
    "Hungarian": [
        "Kék kerámia bögre",
        "Fekete hátizsák erős füllel",
        "Férfi téli kabát, nagyméretű",
        "Karóra üveggel",
        "Tölgyfa étkezőasztal",
        "Bőrápoló kézkrém",
        "Gyűrű ezüstből",
        "Szőnyeg, kötött",
    ],
    "Croatian": [
        "Plava keramička šalica",
        "Crni ruksak za školu",
        "Muška zimska jakna s kapuljačom",
        "Ručni sat",
        "Hrastov stol",
        "Krema za ruke, njegujuća",
        "Đačka torba",
        "Čađavi kotlić za žar",
    ],
    "French": [
        "Tasse en céramique bleue",
        "Sac à dos d’été, léger",
        "Veste d’hiver à capuche",
        "Montre élégante",
        "Table en chêne",
        "Crème hydratante pour les mains – 5 €",
    ],
    "German": [
        "Blaue Tasse, groß",
        "Rucksack für die Schule",
        "Wintermantel für Männer",
        "Uhr mit Gehäuse aus Stahl",
        "Esstisch, geölte Eiche",
        "Handcreme mit Öl – 5 €",
    ],
    "Spanish": [
        "Taza de cerámica pequeña",
        "Mochila de niño",
        "Reloj clásico de señora",
        "Crema para manos con ácido hialurónico",
        "¡Oferta! Cinturón marrón",
    ],
    "Portuguese": [
        "Caneca de cerâmica, coração",
        "Mochila de verão",
        "Relógio clássico",
        "Creme para as mãos, hidratação",
        "Cadeira de balanço – 2ª edição",
    ],
    "Italian": [
        "Tazza blu, qualità",
        "Caffè perché è più buono",
        "Orologio città",
        "Crema mani, però leggera",
    ],
    "Danish": [
        "Blå kop i keramik",
        "Rød rygsæk",
        "Vinterjakke til mænd",
        "Bord af egetræ",
        "Håndcreme, plejende",
    ],
    "Greek": [
        "Μπλε κεραμική κούπα",
        "Μαύρο σακίδιο",
        "Ανδρικό χειμερινό μπουφάν",
        "Ρολόι χειρός",
    ],
    "Turkish": [
        "Mavi seramik kupa, büyük",
        "Siyah sırt çantası",
        "Erkek kışlık ceket",
        "Kol saati, şık",
        "El kremi, yoğun bakım",
        "Ağaç masa",
    ],
}

WRITTEN = [
    ("Russian", "cp1251", "Windows-1251"), ("Ukrainian", "cp1251", "Windows-1251"), ("Russian", "koi8_r", "KOI8-R"),
    ("Japanese", "shift_jis", "Shift-JIS"), ("Japanese", "cp932", "Shift-JIS"), ("Japanese", "euc_jp", "EUC-JP"),
    ("Chinese", "gb18030", "GB18030"), ("Chinese", "gb2312", "GB18030"), ("Taiwanese", "big5", "Big5"),
    ("Korean", "euc_kr", "EUC-KR"), ("Polish", "iso8859_2", "ISO-8859-2"), ("Polish", "cp1250", "Windows-1250"),
    ("Czech", "iso8859_2", "ISO-8859-2"), ("Czech", "cp1250", "Windows-1250"),
    ("Hungarian", "cp1250", "Windows-1250"), ("Croatian", "cp1250", "Windows-1250"),
    ("French", "mac_roman", "Mac Roman"), ("German", "mac_roman", "Mac Roman"), ("Spanish", "mac_roman", "Mac Roman"),
    ("Greek", "cp1253", "Windows-1253"), ("Turkish", "cp1254", "Windows-1254"),
    *((language, "cp1252", "Windows-1252")
      for language in ("French", "German", "Spanish", "Portuguese", "Italian", "Danish")),
    ("French", "utf-8", "UTF-8"), ("Russian", "utf-16", "UTF-16"),
]  # fmt: skip


def feed(titles: list[str]) -> str:
    rows = [f"A{n}\t{title}\thttps://s.example/{n}.jpg\n" for n, title in enumerate(titles)]
    return "id\ttitle\timage_link\n" + "".join(rows)


@pytest.mark.parametrize(("language", "codec", "name"), WRITTEN)
def test_titles_are_read_as_they_were_written(language, codec, name):
    titles = TITLES[language]
    found = parse_catalogue("feed.tsv", feed(titles).encode(codec))
    assert [product.title for product in found.rows] == titles
    # these two have most letters in common: where the words are equal in both, either name is right
    either = {"Windows-1250", "ISO-8859-2"}
    assert found.encoding == name or {found.encoding, name} == either


@pytest.mark.parametrize("several", [("French", "German", "Danish"), ("Spanish", "Portuguese", "French", "Italian")])
def test_a_feed_in_several_western_languages_stays_windows_1252(several):
    titles = [title for language in several for title in TITLES[language]]
    found = parse_catalogue("feed.tsv", feed(titles).encode("cp1252"))
    assert ([product.title for product in found.rows], found.encoding) == (titles, "Windows-1252")


WORDS = {language: " ".join(titles).split() for language, titles in TITLES.items()}


@st.composite
def short_feeds(draw: st.DrawFn) -> tuple[list[str], str]:
    """A few short titles of one language, in one of its encodings."""
    language, codec, _ = draw(st.sampled_from(WRITTEN))
    words = st.lists(st.sampled_from(WORDS[language]), min_size=1, max_size=4).map(" ".join)
    return draw(st.lists(words, min_size=1, max_size=4)), codec


@given(short_feeds())
@settings(max_examples=300, deadline=None)
def test_a_short_feed_is_read_right_or_as_before_or_refused(written):
    """Windows-1252 is read as itself, and no row is lost however few letters there are."""
    titles, codec = written
    try:
        found = parse_catalogue("feed.tsv", feed(titles).encode(codec))
    except UsageError:
        assert codec not in ("utf-8", "utf-16", "cp1252")
        return
    assert [product.sku for product in found.rows] == [f"A{n}" for n in range(len(titles))]
    assert found.encoding == "Windows-1252" or [product.title for product in found.rows] == titles


WESTERN = "àâæçéèêëîïôœùûüÿäößáéíñóúãõåøœšžþð€–’“”®™°½ªº¡¿ÀÉÖØÜ "


@given(st.lists(st.text(st.sampled_from("abcdefgh" + WESTERN), max_size=12), min_size=1, max_size=6))
@settings(max_examples=200, deadline=None)
def test_no_windows_1252_feed_is_taken_for_another_encoding(titles):
    text = feed([f"x{title}" for title in titles])
    try:
        found = decode("feed.tsv", text.encode("cp1252"))
    except UsageError:
        return  # letters that no language has together
    assert found.text == text or found.encoding == "UTF-8"  # such as "Éœ", which is UTF-8 for another letter


@pytest.mark.parametrize(
    ("declared", "codec"), [("windows-1251", "cp1251"), ("Shift_JIS", "cp932"), ("GB2312", "gb2312")]
)
def test_what_an_xml_declares_counts(declared, codec):
    title = {"cp1251": "Чай", "cp932": "茶", "gb2312": "茶"}[codec]
    xml = f"""<?xml version="1.0" encoding="{declared}"?><rss xmlns:g="http://base.google.com/ns/1.0"><channel><item>
      <g:id>1</g:id><g:title>{title}</g:title><g:image_link>i.jpg</g:image_link></item></channel></rss>"""
    assert [product.title for product in parse_catalogue("f.xml", xml.encode(codec)).rows] == [title]


@pytest.mark.parametrize(
    ("declared", "said"), [("Shift_JIS", "is not in it"), ("unicode_escape", "is not read"), ("x", "is not read")]
)
def test_a_declaration_that_is_wrong_is_refused(declared, said):
    xml = (
        f'<?xml version="1.0" encoding="{declared}"?><rss><item><title>'.encode() + b"\x81\xff\xff</title></item></rss>"
    )
    with pytest.raises(UsageError, match=said):
        parse_catalogue("f.xml", xml)


def test_one_damaged_character_in_a_utf_8_feed_is_no_reason_to_read_it_as_something_else():
    titles = TITLES["French"]
    broken = feed(titles).encode().replace("élégante".encode(), "élégante".encode()[:-1] + b"\xc3", 1)
    with pytest.raises(UsageError, match="UTF-8 with a damaged character in line 5: export it again"):
        parse_catalogue("feed.tsv", broken)


def test_an_encoding_that_is_not_sure_is_named_with_the_remedy():
    with pytest.raises(UsageError, match=r"^f.tsv: not in UTF-8, .* \(perhaps Windows-1251\): save it as CSV UTF-8"):
        parse_catalogue("f.tsv", feed(["Чашка"]).encode("cp1251"))


def test_the_manifest_says_what_encoding_was_taken(tmp_path):
    (tmp_path / "i.jpg").write_bytes(b"x")
    store = FolderStore(tmp_path / "store")
    notes = []
    for codec in ("cp1251", "utf-8"):
        text = feed(TITLES["Russian"]).replace("https://s.example/", "i.jpg?")
        (tmp_path / "feed.tsv").write_bytes(text.encode(codec))
        notes.append(read_manifest(store, ingest(tmp_path / "feed.tsv", store, Settings())).encoding_note)
    assert notes == ["feed.tsv is not in UTF-8: it was read as Windows-1251", ""]
