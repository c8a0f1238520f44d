"""What a judge's reply says: strict about the class, tolerant about what stands around the JSON object.

A reply counts where its JSON objects name one and the same class of the rubric. Code fences, text around the object and
the thoughts of a reasoning model (`<think>…</think>`) are passed over. Nothing is guessed: an unknown class, or two
classes in one reply, are no verdict.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final

LONGEST: Final = 10_000
"""Characters of a reply that are read, from its end: what is longer is no answer to the question but has run away."""
_THOUGHTS: Final = re.compile(r"<think>.*?(</think>|\Z)", re.DOTALL)


@dataclass(frozen=True)
class Judgement:
    """A class of the rubric, and how sure the judge says it is (0 to 1), where it says so."""

    name: str
    confidence: float | None


def parse_reply(text: str, classes: Iterable[str]) -> Judgement | None:
    """The verdict in a reply, or None where it holds none that can be relied on."""
    known = {name.casefold(): name for name in classes}
    objects = list(_objects(_THOUGHTS.sub("", text)[-LONGEST:]))
    stated = [found["class"] for found in objects]
    named = {known.get(" ".join(name.split()).casefold()) if isinstance(name, str) else None for name in stated}
    if len(named) != 1 or None in named:
        return None
    (name,) = named
    return Judgement(str(name), _confidence(objects[-1].get("confidence")))


def _objects(text: str) -> Iterator[dict[str, Any]]:
    """The JSON objects in `text` that have a "class", also inside other objects, from left to right."""
    decoder, at = json.JSONDecoder(), text.find("{")
    while at != -1:
        try:
            found, end = decoder.raw_decode(text, at)
        except (ValueError, RecursionError):
            end = at + 1
        else:
            if "class" in found:
                yield found
            else:
                end = at + 1
        at = text.find("{", end)


def _confidence(stated: Any) -> float | None:
    """A number from 0 to 1; anything else is no confidence, and what it may have meant is not guessed."""
    if isinstance(stated, bool) or not isinstance(stated, int | float):
        return None
    return float(stated) if math.isfinite(stated) and 0 <= stated <= 1 else None
