"""At which of the template's positions residuals are collected.

Positions count back from the prompt's last token, −1. Those of the tokens that the chat template writes after every
instruction mean the same in every prompt, so that residuals there can be compared; earlier ones belong to the
instructions themselves, and are not collected.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from iconoclast_tl.foundation.errors import UserError
from iconoclast_tl.prompts.chat import ChatFormat
from iconoclast_tl.prompts.tokens import Tokens


def positions_of(asked: int | Literal["template"], chat: ChatFormat) -> tuple[int, ...]:
    """(−1, …, −N): the last N positions; of `template`, all of its tail, and the last token where it has none.

    Raises `UserError` for more than the template has after the instruction.
    """
    if asked == 1:
        return (-1,)
    tail = chat.tail
    if asked != "template" and asked > max(1, len(tail)):
        named = ", ".join(repr(row["text"]) for row in described(chat) if row["token_id"] is not None)
        has = f"{len(tail)} tokens after the instruction: {named}" if tail else "no token after the instruction"
        raise UserError(
            f"activations.positions asks for {asked} positions",
            got="raw prompts, which have no template" if chat.raw_prompts else f"a chat template that writes {has}",
            want=f"at most {len(tail)}, or template" if tail else "1",
            mend="see `directions --show-positions`",
        )
    n = max(1, len(tail)) if asked == "template" else asked
    return tuple(range(-1, -n - 1, -1))


def described(chat: ChatFormat) -> list[dict[str, Any]]:
    """One row per position that can be collected, in reading order: its token's id and text, None where they differ."""
    if not chat.tail:
        return [{"position": -1, "token_id": None, "text": None}]
    return [
        {"position": index - len(chat.tail), "token_id": token, "text": chat.tokenizer.decode([token])}
        for index, token in enumerate(chat.tail)
    ]


def n_unlike(rows: Sequence[Tokens], positions: Sequence[int], chat: ChatFormat) -> int:
    """How many prompts hold other tokens than the template's there, as where their last character merged with it."""
    n = len(positions)
    return sum(tuple(row[-n:]) != chat.tail[-n:] for row in rows) if n > 1 else 0
