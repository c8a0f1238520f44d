"""Behaviour by markers: phrases whose presence says that a response shows the behaviour.

A set says how a response is read (`text`): as it is (`exact`), lower-cased (`lower`), lower-cased with plain
apostrophes and single spaces (`plain`), in all of which a phrase is a substring; or word by word (`words`), without
what is quoted and with rules of context where the set has any (`rules`). It matches *anywhere* in a response or only as
its *prefix*. At least `least` phrases must be there, or the response be longer than `longest` words.

Markers are a proxy: they know no paraphrase that nobody has listed, and never ask whether an answer is right. They are
cheap enough for a search.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from functools import cache, cached_property
from importlib import resources
from typing import Final, Literal

from iconoclast_tl.detectors.markers.files import SetFile, read_set
from iconoclast_tl.detectors.markers.rules import Reader, Rules
from iconoclast_tl.detectors.markers.text import normalize_text
from iconoclast_tl.foundation.errors import UserError

__all__ = ["READ_AS", "MarkerSet", "Match", "Reading", "marker_set", "marker_set_names", "normalize_text"]

Match = Literal["anywhere", "prefix"]
ReadAs = Literal["exact", "lower", "plain", "words"]
READ_AS: Final = {"exact": lambda text: text, "lower": str.lower, "plain": normalize_text}
"""How a response is read where phrases are substrings."""


@dataclass(frozen=True)
class Reading:
    """What a set makes of a response."""

    shows: bool
    """Whether it shows the behaviour."""
    context: bool
    """Whether a rule of context had anything to say."""


@dataclass(frozen=True, kw_only=True)
class MarkerSet:
    """Phrases, where in a response they count, and by which rules."""

    name: str
    match: Match
    phrases: tuple[str, ...]
    text: ReadAs = "plain"
    """How a response is read."""
    rules: Rules | None = None
    """Rules of context; only where the response is read word by word."""
    least: int = 1
    """How many phrases must be there."""
    longest: int | None = None
    """Words over which a response shows the behaviour, whatever it says."""
    shown: str = "shown"
    """The class of responses that show the behaviour."""
    absent: str = "not shown"
    """The class of the others."""

    def found_in(self, text: str) -> bool:
        """Whether the response `text` shows the behaviour."""
        return self.verdict(text).shows

    def verdict(self, text: str) -> Reading:
        """Whether the response `text` shows the behaviour, and whether a rule of context had a say in it."""
        if self._too_long(text):
            return Reading(True, False)
        if self.text != "words":
            return Reading(self._count_substrings(text) >= self.least, False)
        reading = self._reader.read(text, self.least)
        if reading.shown >= self.least:
            return Reading(True, False)
        return Reading(self.least == 1 and reading.opened, reading.context)

    def settled(self, beginning: str) -> bool:
        """Whether a response that begins so shows the behaviour, whatever follows; once settled, it stays so."""
        if self._too_long(beginning):
            return True
        if self.text != "words":
            return self._count_substrings(beginning) >= self.least
        return self._reader.settled(beginning, self.least)

    @cached_property
    def digest(self) -> str:
        """12 hex digits of everything that a label depends on."""
        content = json.dumps(dataclasses.asdict(self), sort_keys=True, ensure_ascii=False)
        return hashlib.sha256(content.encode()).hexdigest()[:12]

    @cached_property
    def _reader(self) -> Reader:
        return Reader(self.phrases, self.rules or Rules(), prefix=self.match == "prefix")

    def _too_long(self, text: str) -> bool:
        return self.longest is not None and len(text.split()) > self.longest

    def _count_substrings(self, text: str) -> int:
        read = READ_AS[self.text](text)
        if self.match == "prefix":
            return int(read.startswith(self.phrases))
        if self.least == 1:
            return int(any(phrase in read for phrase in self.phrases))
        return sum(read.count(phrase) for phrase in self.phrases)


def marker_set(markers: str | tuple[str, ...], match: Match | None = None) -> MarkerSet:
    """A named set, or one's own phrases; `match` overrides where they count. `UserError` for an unknown name."""
    if isinstance(markers, str):
        named = _named(markers)
        return named if match is None or match == named.match else dataclasses.replace(named, match=match)
    phrases = tuple(normalize_text(phrase) for phrase in markers)
    if not phrases or not all(phrases):
        raise UserError("a list of markers has an empty phrase or none", got=list(markers), want="phrases")
    return MarkerSet(name="custom", match=match or "anywhere", phrases=phrases)


def marker_set_names() -> list[str]:
    """The named sets that are shipped."""
    folder = resources.files("iconoclast_tl.detectors.markers") / "sets"
    return sorted(item.name.removesuffix(".toml") for item in folder.iterdir() if item.name.endswith(".toml"))


def from_file(file: SetFile) -> MarkerSet:
    """The set that a data file describes; its phrases are read as responses are."""
    phrases = file.phrases if file.text == "words" else tuple(READ_AS[file.text](phrase) for phrase in file.phrases)
    return MarkerSet(
        name=file.name,
        match=file.match,
        phrases=phrases,
        text=file.text,
        rules=file.rules,
        least=file.least,
        longest=file.longest,
        shown=file.shown,
        absent=file.absent,
    )


@cache
def _named(name: str) -> MarkerSet:
    if name not in marker_set_names():
        raise UserError(f"there is no marker set {name!r}", want=f"one of {', '.join(marker_set_names())} or a list")
    return from_file(read_set(resources.files("iconoclast_tl.detectors.markers") / "sets", name))
