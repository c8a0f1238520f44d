"""A quick look at an ASCII text: whether any phrase can be in it. Most responses need no second one.

Every phrase begins with one of few words, or one of some hundred pairs of neighbouring words; a text without them has
no phrase. Texts in other scripts are always read in full.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from iconoclast_tl.detectors.markers.phrases import CUT_LETTERS, Phrases
from iconoclast_tl.detectors.markers.text import rough_words


@dataclass(frozen=True, kw_only=True)
class Glance:
    """What to look for, as `rough_words` reads it; the beginnings of words are for a last word that is cut off."""

    blind: bool
    """Whether a phrase begins with no word at all, so that nothing can be told by a look."""
    words: frozenset[str]
    pairs: frozenset[tuple[str, str]]
    firsts: frozenset[str]
    begun_words: frozenset[str]
    begun_pairs: frozenset[tuple[str, str]]

    @classmethod
    def at(cls, phrases: Phrases) -> Glance:
        """What shows that one of the phrases may be there."""
        singles, beginnings = phrases.beginnings()
        rough = {word: rough_words(word) if word.isascii() else None for pair in beginnings for word in pair}
        rough |= {word: rough_words(word) if word.isascii() else None for word in singles}
        words, pairs, blind = set(), set(), False
        for first, second in [*((word, None) for word in singles), *beginnings]:
            one, other = rough[first], rough[second] if second is not None else []
            if one is None or other is None:
                continue  # no ASCII text holds it
            blind |= not one
            if one and other:
                pairs.add((one[-1], other[0]))
            else:
                words.update(one[:1])
        return cls(
            blind=blind,
            words=frozenset(words),
            pairs=frozenset(pairs),
            firsts=frozenset(first for first, _ in pairs),
            begun_words=frozenset(begun for word in words for begun in _beginnings(word)),
            begun_pairs=frozenset((first, begun) for first, second in pairs for begun in _beginnings(second)),
        )

    def finds_nothing(self, plain: str) -> bool:
        """Whether no phrase can be in a legible text."""
        if self.blind or not plain.isascii() or "''" in plain:
            return False
        said = rough_words(plain)
        if not self.words.isdisjoint(said):
            return False
        if not (self.firsts.isdisjoint(said) or self.pairs.isdisjoint(pairwise(said))):
            return False
        return not said or not (said[-1] in self.begun_words or tuple(said[-2:]) in self.begun_pairs)


def _beginnings(word: str) -> list[str]:
    return [word[:n] for n in range(CUT_LETTERS, len(word))]
