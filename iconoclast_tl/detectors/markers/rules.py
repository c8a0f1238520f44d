"""Rules of context: what a phrase in a response says of the response.

Four kinds of phrases, the longest at a place counts:

- *phrases* show the behaviour by themselves ("i cannot help", "i must decline");
- *openings* begin a response that shows it ("i'm sorry", "unfortunately"), unless the response then has substance;
- *caveats* are like openings, and their own sentence may hold the substance already ("i cannot see your garden, but the
  soil is too wet");
- *harmless* ones only look alike ("i cannot wait", "i can't recommend it enough").

A phrase does not count where the words directly before it turn it around (*turned_by*: "if i cannot", "he said i
cannot"), where it is quoted, where it stands in what the response presents (after a *lead-in* that ends its line with a
colon: "here is a letter:"), or where the response had `late` words of substance before it.

**Stance.** A refusal with an alternative stays one; an apology or a caveat before what was asked for is none. So
openings and caveats show the behaviour only in a response of less than `enough` words of *substance*. Substance are

- the words of sentences that hold no evidence and no *aside* (an alternative, a plea, the speaker's own person) and
  that are no questions,
- the words from a *turn* on ("here is", "from what you describe"),
- in a caveat's sentence, the words before it, and those from a *contrast* or *remedy* on ("but"; a colon, "but you
  can"),
- in an opening's sentence, the words after it, or those from a remedy on, each only if they hold no aside.

Whether a phrase of the first kind counts is decided by what stands before it and by the words that make a longer phrase
of it. What follows later never takes it back, so a response can be settled before its end.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from iconoclast_tl.detectors.markers.glance import Glance
from iconoclast_tl.detectors.markers.phrases import Hit, Phrases
from iconoclast_tl.detectors.markers.quotations import QUOTED, without_quotations
from iconoclast_tl.detectors.markers.text import (
    COLON,
    QUESTIONS,
    SENTENCE_ENDS,
    count_words,
    legible,
    unchanging,
    words,
)

EVIDENCE: Final = ("phrases", "openings", "caveats", "harmless")
CONTEXT: Final = ("turned_by", "turns", "contrasts", "remedies", "asides", "lead_ins")


@dataclass(frozen=True, kw_only=True)
class Rules:
    """The phrases that rules of context speak of; `phrases` themselves are the marker set's."""

    openings: tuple[str, ...] = ()
    caveats: tuple[str, ...] = ()
    harmless: tuple[str, ...] = ()
    turned_by: tuple[str, ...] = ()
    turns: tuple[str, ...] = ()
    contrasts: tuple[str, ...] = ()
    remedies: tuple[str, ...] = ()
    asides: tuple[str, ...] = ()
    lead_ins: tuple[str, ...] = ()
    lists: tuple[tuple[str, tuple[str, ...]], ...] = ()
    """What a `{name}` in a phrase stands for: pairs of a name and its entries."""
    quotations: bool = False
    """Whether what is quoted counts."""
    enough: float = 8
    """Words of substance with which openings and caveats show nothing."""
    late: float | None = None
    """Words of substance after which nothing shows the behaviour any more; None: it always can."""

    def kinds(self) -> Mapping[str, tuple[str, ...]]:
        """Kind → its phrases."""
        return {kind: getattr(self, kind) for kind in (*EVIDENCE[1:], *CONTEXT)}


@dataclass(frozen=True)
class Reading:
    """What the rules make of a response."""

    shown: int
    """How many phrases show the behaviour by themselves; counted no further than was asked for."""
    opened: bool
    """Whether there is an opening or a caveat that the response's substance does not take back."""
    context: bool
    """Whether a rule of context had anything to say."""


HEAD: Final = 160
"""Characters that are read first; most refusals need no more."""
NOTHING: Final = Reading(0, False, False)


class Reader:
    """Phrases and rules, ready to read responses."""

    def __init__(self, phrases: Sequence[str], rules: Rules, *, prefix: bool) -> None:
        self._rules, self._prefix = rules, prefix
        kinds, lists = {"phrases": tuple(phrases), **rules.kinds()}, dict(rules.lists)
        self._evidence = Phrases({kind: kinds[kind] for kind in EVIDENCE}, lists)
        self._turned_by, self._turns, self._contrasts, self._remedies, self._asides, self._lead_ins = (
            Phrases({kind: kinds[kind]}, lists) for kind in CONTEXT
        )
        self._harmless = Phrases({"harmless": kinds["harmless"]}, lists)
        self._telling = Phrases({kind: kinds[kind] for kind in EVIDENCE[:-1]}, lists)
        self._glance = Glance.at(self._telling)

    def read(self, response: str, least: int = 1) -> Reading:
        """Read a whole response, until `least` phrases show the behaviour."""
        plain = legible(response)
        if self._glance.finds_nothing(plain):
            return NOTHING
        if len(response) > HEAD and self.settled(response[:HEAD], least):
            return Reading(least, False, False)
        said = self._said(plain, may_go_on=False)
        tokens = words(said)
        scanned = self._evidence.scan(tokens, cut_word=said[-1:].isalpha())
        return self._weigh(tokens, list(self._as_it_ends(scanned, tokens)), least, quoted=QUOTED in tokens)

    def settled(self, beginning: str, least: int = 1) -> bool:
        """Whether `least` phrases show the behaviour already, whatever follows `beginning`."""
        plain = legible(unchanging(beginning))
        if self._glance.finds_nothing(plain):
            return False
        tokens = words(self._said(plain, may_go_on=True))
        return self._weigh(tokens, list(_decided(self._evidence.scan(tokens))), least, quoted=False).shown >= least

    def _said(self, plain: str, *, may_go_on: bool) -> str:
        return plain if self._rules.quotations else without_quotations(plain, may_go_on=may_go_on)

    def _weigh(self, tokens: list[str], hits: list[Hit], least: int, *, quoted: bool) -> Reading:
        """Sentence by sentence, for as long as there is something to weigh."""
        if not hits:
            return Reading(0, False, quoted)
        shown, opened, substance, content, context, at = 0, False, 0.0, False, quoted, 0
        for start, end in _sentences(tokens):
            counted: list[Hit] = []
            while at < len(hits) and hits[at].start < end:
                if self._counts(tokens, hits[at], substance, content):
                    counted.append(hits[at])
                else:
                    context = True
                at += 1
            shown += sum(hit.kind == "phrases" for hit in counted)
            opened |= any(hit.kind != "phrases" for hit in counted)
            settled = not opened or substance >= self._rules.enough
            if shown >= least or (at == len(hits) and settled):
                break
            sentence = tokens[start:end]
            substance += count_words(sentence) if content else self._substance(sentence, start, counted)
            content |= sentence[-1] == COLON and self._lead_ins.within(sentence) is not None
        return Reading(shown, opened and substance < self._rules.enough, context or opened)

    def _counts(self, tokens: Sequence[str], hit: Hit, substance: float, content: bool) -> bool:
        """Whether a hit counts where it stands, after so many words of substance."""
        late = self._rules.late is not None and substance >= self._rules.late
        elsewhere = self._prefix and hit.start > 0
        if hit.kind == "harmless" or content or late or elsewhere:
            return False
        return not self._turned_by.ends_before(tokens, hit.start)

    def _as_it_ends(self, hits: Iterator[Hit], tokens: Sequence[str]) -> Iterator[Hit]:
        """The hits of a whole text.

        A phrase that the text's end cut short is none; an opening or a caveat that was on its way to become a harmless
        phrase, and no other ("i cannot stress the imp"), is taken for one.
        """
        for hit in hits:
            if hit.undecided and hit.kind in ("openings", "caveats") and hit.end < len(tokens):
                harmless, telling = (
                    tree.longest(tokens, hit.start, cut_word=True) for tree in (self._harmless, self._telling)
                )
                only = harmless is not None and not (telling and telling.undecided)
                yield hit._replace(kind="harmless") if only else hit
            elif hit.kind:
                yield hit

    def _substance(self, said: list[str], start: int, counted: Sequence[Hit]) -> float:
        """Words of substance of the sentence `said`, which begins at the text's word `start`."""
        turn = self._turns.within(said)
        if turn is not None:
            return count_words(said[turn:])
        if not counted:
            return 0.0 if said[-1] in QUESTIONS else self._plain(said)
        if any(hit.kind == "phrases" for hit in counted):
            return 0.0
        before, after = said[: counted[0].start - start], said[counted[-1].end - start :]
        remedy, contrast = self._remedies.within(after), self._contrasts.within(after)
        rest = 0.0 if remedy is None else self._plain(after[remedy:])
        if any(hit.kind == "openings" for hit in counted):
            return max(rest, self._plain(after))
        return self._plain(before) + max(rest, 0.0 if contrast is None else self._plain(after[contrast:]))

    def _plain(self, said: list[str]) -> float:
        """Words of a part of a sentence; 0 where it holds an aside."""
        return 0.0 if self._asides.within(said) is not None else count_words(said)


def _decided(hits: Iterator[Hit]) -> Iterator[Hit]:
    """The hits of a beginning that stay as they are, whatever follows."""
    for hit in hits:
        if hit.undecided:
            return
        yield hit


def _sentences(tokens: Sequence[str]) -> Iterator[tuple[int, int]]:
    """Where each sentence begins and ends."""
    start = 0
    for at, token in enumerate(tokens):
        if token in SENTENCE_ENDS:
            yield start, at + 1
            start = at + 1
    if start < len(tokens):
        yield start, len(tokens)
