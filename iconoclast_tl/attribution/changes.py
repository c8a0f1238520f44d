"""Changes of what single parts write, row by row of a batch, as hooks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

from iconoclast_tl.attribution.parts import Part
from iconoclast_tl.models.hook_points import Change, HookedModule
from iconoclast_tl.models.reading import of_columns
from iconoclast_tl.models.sites import Site
from iconoclast_tl.scores.score import Asked


@dataclass(frozen=True)
class Written:
    """What some rows write at a site, and what is read for it."""

    y: Tensor
    x: Tensor | None


@contextmanager
def changing(
    changes: Mapping[Site, Change], sites: Mapping[Site, HookedModule], read: Mapping[Site, Change] | None = None
) -> Iterator[None]:
    """Run the model with these changes of what is written, and of what is read for it; the hooks go at the end."""
    handles: list[Any] = []
    try:
        for site, change in changes.items():
            handles.append(sites[site].attach(change))
        for site, change in (read or {}).items():
            handles.append(HookedModule(sites[site].module, "input").attach(change))
        yield
    finally:
        for handle in handles:
            handle.remove()


@dataclass(frozen=True)
class Exchange:
    """Candidate by candidate, a part of `asked` gets what it wrote on the rows of `other` (None: nothing changes).

    Rows are aligned at the prompts' ends, and changed where both have a token, at the positions `where` says.
    """

    parts: Sequence[Part | None]
    asked: Asked
    other: Asked
    where: Bool[Tensor, "row pos"] | None

    def whole(self, written: Tensor) -> Change:
        """What the site writes, where the part is all of it."""
        chosen = torch.tensor([part is not None and part.head is None for part in self.parts])
        return self._change(written, lambda width: chosen[:, None].expand(-1, width))

    def heads(self, read: Tensor, n_heads: int) -> Change:
        """What the linear reads, on the columns of the part's head: quantised weights need not be read."""
        chosen = torch.zeros(len(self.parts), n_heads)
        for number, part in enumerate(self.parts):
            if part is not None and part.head is not None:
                chosen[number, part.head] = 1.0
        return self._change(read, lambda width: of_columns(chosen, width).bool())

    def _change(self, given: Tensor, columns: Callable[[int], Tensor]) -> Change:
        """Put `given` in the place of the columns that belong to each candidate."""
        n_rows, width = len(self.asked.owner), int(self.asked.forced.batch.input_ids.shape[1])
        real = (
            align(self.other.forced.batch.attention_mask, width).bool() & self.asked.forced.batch.attention_mask.bool()
        )
        there = real.repeat(len(self.parts), 1) if self.where is None else real.repeat(len(self.parts), 1) & self.where

        def change(tensor: Tensor, _: Tensor | None) -> Tensor:
            own = align(given.reshape(n_rows, -1, tensor.shape[-1]), width).to(tensor)
            mine = columns(tensor.shape[-1]).repeat_interleave(n_rows, dim=0)[:, None] & there[..., None]
            states = tensor.reshape(len(mine), width, -1)
            return torch.where(mine.to(tensor.device), own.repeat(len(self.parts), 1, 1), states).reshape(tensor.shape)

        return change


def align(rows: Tensor, width: int) -> Tensor:
    """Rows cut, or filled with zeros, at their beginnings so that axis 1 has this width."""
    missing = width - rows.shape[1]
    if missing <= 0:
        return rows[:, -missing:]
    return torch.cat([rows.new_zeros(len(rows), missing, *rows.shape[2:]), rows], dim=1)


def at_positions(where: Bool[Tensor, "row pos"], changed: Tensor, otherwise: Tensor) -> Tensor:
    """`changed` at these positions; rows and positions of the others may be flattened into one axis."""
    return torch.where(where.to(changed.device).reshape(*changed.shape[:-1], 1), changed, otherwise)
