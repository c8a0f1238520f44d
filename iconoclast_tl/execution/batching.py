"""Work through rows in batches, halving them where memory runs out."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from iconoclast_tl.foundation.progress import Track, silent
from iconoclast_tl.prompts.tokens import TokenBatch, Tokens, left_pad

log = logging.getLogger(__name__)
Chunk = TypeVar("Chunk", Sequence[int], Tensor)
Result = TypeVar("Result")


class Room:
    """How many rows are worked on at once. Where memory runs out it becomes half, says so, and stays so."""

    def __init__(self, rows: int) -> None:
        self.rows = rows

    def over(
        self, items: Chunk, work: Callable[[Chunk], Result], track: Track = silent, description: str = ""
    ) -> list[Result]:
        """Call `work` on parts of `items` in order. It must be repeatable for a part at which memory ran out.

        Raises `torch.OutOfMemoryError` where a single row does not fit.
        """
        return list(track(self._results(items, work), description, -(-len(items) // self.rows)))

    def _results(self, items: Chunk, work: Callable[[Chunk], Result]) -> Iterator[Result]:
        start = 0
        while start < len(items):
            part = items[start : start + self.rows]
            try:
                result = work(part)
            except RuntimeError as error:
                if len(part) == 1 or not is_out_of_memory(error):
                    raise
            else:
                start += len(part)
                yield result
                continue
            # Only here, with the exception gone, is the memory free that its frames held.
            torch.cuda.empty_cache()
            self.rows = -(-len(part) // 2)
            log.warning("out of memory with %d rows at once; going on with %d", len(part), self.rows)


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether memory ran out; on the CPU torch has no error of its own for it."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def over_batches(
    work: Callable[[TokenBatch], None],
    rows: Sequence[Tokens],
    pad_id: int,
    batch_size: int,
    track: Track = silent,
    description: str = "",
    cached: int = 0,
) -> None:
    """Call `work` on left-padded batches of rows of similar length, longest first; see `Room.over`.

    cached: tokens of every row that a cache holds already, and that are not in `rows`.
    """
    order = sorted(range(len(rows)), key=lambda row: -len(rows[row]))
    Room(batch_size).over(
        order, lambda where: work(left_pad([rows[row] for row in where], pad_id, where, cached)), track, description
    )
