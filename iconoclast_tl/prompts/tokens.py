"""Token rows and the batches that are made of them: left padding, positions, and whether a row fits the context."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from iconoclast_tl.foundation.errors import UserError

Tokens = list[int]
"""The token ids of one prompt."""


@dataclass(frozen=True)
class TokenBatch:
    """Left-padded rows: the last column is every prompt's last token."""

    rows: tuple[int, ...]
    """Where each row stood in the list that was batched."""
    input_ids: Int[Tensor, "batch pos"]
    attention_mask: Int[Tensor, "batch pos"]
    cached: int = 0
    """Tokens that come before the first column of every row, and whose keys and values a cache holds."""

    @property
    def position_ids(self) -> Int[Tensor, "batch pos"]:
        """`cached` at each row's first real token, so that padding does not shift positions."""
        return self.cached + (self.attention_mask.cumsum(-1) - 1).clamp(min=0)

    @property
    def whole_mask(self) -> Int[Tensor, "batch cached_and_pos"]:
        """The attention mask with what is cached."""
        if not self.cached:
            return self.attention_mask
        return torch.cat([self.attention_mask.new_ones(len(self.input_ids), self.cached), self.attention_mask], dim=1)


def left_pad(rows: Sequence[Tokens], pad_id: int, where: Sequence[int] | None = None, cached: int = 0) -> TokenBatch:
    """Pad token rows on the left to the longest. cached: tokens of each that a cache holds already, not in `rows`."""
    width = max(len(row) for row in rows)
    ids = torch.tensor([[pad_id] * (width - len(row)) + row for row in rows], dtype=torch.long)
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], dtype=torch.long)
    return TokenBatch(tuple(where if where is not None else range(len(rows))), ids, mask, cached)


def require_context(rows: Sequence[Tokens], new_tokens: int, context_length: int | None) -> None:
    """Raise `UserError` where a prompt and the tokens asked for do not fit the model's context."""
    if context_length is None:
        return
    for index, row in enumerate(rows):
        if len(row) + new_tokens > context_length:
            raise UserError(
                f"prompt {index + 1} is longer than the model's context",
                got=f"{len(row)} tokens and {new_tokens} to generate",
                want=f"at most {context_length} together",
                mend="shorten the prompt or lower evaluation.max_new_tokens",
            )
