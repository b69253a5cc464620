"""The reviewed vocabulary of tags (paper, section 1), and which of its words a title contains."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from pipelines.contracts import sha256_hex
from pipelines.errors import UsageError

KINDS = ("category", "material", "colour")


@dataclass(frozen=True, slots=True)
class Word:
    """One tag: its kind, CLIP's sentence, and its synonyms in titles."""

    tag: str
    kind: str
    sentence: str
    synonyms: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """All words. `digest` is that of the file, and part of every describe step's key."""

    words: tuple[Word, ...]
    digest: str

    def of_kind(self, kind: str) -> tuple[Word, ...]:
        """Return the words of one kind, in the file's order."""
        return tuple(word for word in self.words if word.kind == kind)

    def find(self, text: str, kind: str = "category") -> str:
        """Return the tag of this kind that `text` names, "" for none; see `locate`."""
        return self.locate(text, kind)[0]

    def locate(self, text: str, kind: str = "category") -> tuple[str, int, int]:
        """Return the tag that `text` names, and its start and end in `plain_words(text)`; ("", 0, 0) for none.

        The last tag counts, because titles end with the noun. Of two that end together the longer counts ("polo shirt"
        is no shirt). A word that is also a colour counts only if nothing else is named ("Zoe Tank orange").
        """
        plain = plain_words(text)
        colours = {word.tag for word in self.of_kind("colour")} if kind != "colour" else set()
        found, best = ("", 0, 0), (False, -1, 0)
        for word in self.of_kind(kind):
            for wording in (word.tag, *word.synonyms):
                for match in _pattern(wording).finditer(plain):
                    rank = (wording not in colours, match.end(), match.end() - match.start())
                    if rank > best:
                        found, best = (word.tag, match.start(), match.end()), rank
        return found


def plain_words(text: str) -> str:
    """Return lower case text without HTML entities and punctuation, with single spaces."""
    return " ".join(re.sub(r"&\w+;|[^\w' -]", " ", text.lower()).split())


@lru_cache(maxsize=4)
def load_vocabulary(path: Path) -> Vocabulary:
    """Read a vocabulary: sections `[kind] sentence with {}`, then lines `tag: synonym, synonym`.

    Raises UsageError, which names file and line, for any other line.
    """
    text = path.read_text(encoding="utf-8")
    return Vocabulary(tuple(_read_words(path, text)), sha256_hex(text.encode()))


def _read_words(path: Path, text: str) -> Iterator[Word]:
    kind = sentence = ""
    for number, line in enumerate(text.splitlines(), start=1):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        if heading := re.fullmatch(r"\[(\w+)\] (.*\{\}.*)", line):
            kind, sentence = heading[1], heading[2]
            if kind not in KINDS:
                raise UsageError(f"{path.name}, line {number}: kind {kind!r} is none of {', '.join(KINDS)}")
            continue
        tag, _, synonyms = line.partition(":")
        if not kind or not re.fullmatch(r"[a-z][a-z -]*", tag):
            raise UsageError(
                f"{path.name}, line {number}: expected `tag: synonym, ...` below a `[kind] sentence with {{}}`"
            )
        yield Word(tag, kind, sentence.format(tag), tuple(s.strip() for s in synonyms.split(",") if s.strip()))


@lru_cache(maxsize=2048)
def _pattern(wording: str) -> re.Pattern[str]:
    """Return a pattern for the wording as whole words, singular or plural."""
    return re.compile(rf"(?<![\w-]){re.escape(wording)}(?:s|es)?(?![\w-])")
