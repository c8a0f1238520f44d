"""What a chat template writes after the instruction, in tokens: Arditi et al.'s end-of-instruction tokens (2406.11717).

Texts that end in different characters are rendered and tokenised; of each, the tokens that begin behind the text are
taken, and the longest end that they have in common is the tail. So a token in which the end of a text and the
template's first character have merged is not in it, whatever text it is that merges.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

ENDINGS: Final = ("word", "7", ".", "?", "!", ")", ":", ",", "-", "é", "的", "🙂")
"""Letters, digits, what tokenizers merge with a line break, and characters of several bytes."""
PROBES: Final = tuple(f"quince jukebox vex{ending}" for ending in ENDINGS)
"""Texts that no template holds by itself, and that it has no reason to strip."""


def common_tail(tokenizer: Any, renderings: Sequence[tuple[str, str]]) -> tuple[int, ...]:
    """Token ids that end every (text, what the template made of it) and begin behind the text.

    Empty where the template writes nothing there, and where it changes the text so that it is not found.
    """
    tails = []
    for text, rendered in renderings:
        place = rendered.rfind(text)
        tails.append(_behind(tokenizer, rendered, place + len(text)) if place >= 0 else [])
    common: list[int] = []
    for column in zip(*(reversed(tail) for tail in tails), strict=False):
        if len(set(column)) > 1:
            break
        common.insert(0, column[0])
    return tuple(common)


def _behind(tokenizer: Any, rendered: str, end: int) -> list[int]:
    """The tokens of `rendered` that begin at its character `end` or later."""
    if not tokenizer.is_fast:
        return _behind_by_decoding(tokenizer, rendered, end)
    found = tokenizer(rendered, add_special_tokens=False, return_offsets_mapping=True)
    ids: list[int] = list(found["input_ids"])
    begins = [begin for begin, _ in found["offset_mapping"]]
    first = next((index + 1 for index in reversed(range(len(ids))) if begins[index] < end), 0)
    return ids[first:]


def _behind_by_decoding(tokenizer: Any, rendered: str, end: int) -> list[int]:
    """The same for a tokenizer that does not tell where its tokens lie: as many as decode to what stands there.

    White space is left out of the comparison, since decoding adds and drops it.
    """
    ids: list[int] = list(tokenizer(rendered, add_special_tokens=False)["input_ids"])
    rest, first = "".join(rendered[end:].split()), len(ids)
    while first and rest.endswith("".join(tokenizer.decode(ids[first - 1 :]).split())):
        first -= 1
    return ids[first:]
