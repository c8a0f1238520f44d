"""Changes of what single parts write, row by row of a batch, as hooks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

from iconoclast_tl.architecture.hook_points import HookedModule, SiteFunction
from iconoclast_tl.architecture.reading import of_columns
from iconoclast_tl.architecture.sites import Site
from iconoclast_tl.attribution.parts import Part
from iconoclast_tl.scores.score import ScoreBatch


@dataclass(frozen=True)
class Written:
    """What some rows write at a site, and the input of its linear."""

    y: Tensor
    x: Tensor | None


@contextmanager
def changing(
    changes: Mapping[Site, SiteFunction],
    sites: Mapping[Site, HookedModule],
    read: Mapping[Site, SiteFunction] | None = None,
) -> Iterator[None]:
    """Run the model with these changes of what sites write, and of what their linears read; hooks go at the end."""
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
class Interchange:
    """For each candidate, one part of the rows of `asked` gets what it wrote on the rows of `other`.

    Rows are aligned at the ends of the prompts. Only positions where both have a token, and that `where` names, change.
    """

    parts: Sequence[Part | None]
    """The part of every candidate; None changes nothing."""
    asked: ScoreBatch
    other: ScoreBatch
    where: Bool[Tensor, "row pos"] | None

    def whole(self, written: Tensor) -> SiteFunction:
        """What the site writes, where the part is all of it."""
        chosen = torch.tensor([part is not None and part.head is None for part in self.parts])
        return self._change(written, lambda width: chosen[:, None].expand(-1, width))

    def heads(self, read: Tensor, n_heads: int) -> SiteFunction:
        """What the linear reads, on the columns of the part's head: quantised weights need not be read."""
        chosen = torch.zeros(len(self.parts), n_heads)
        for number, part in enumerate(self.parts):
            if part is not None and part.head is not None:
                chosen[number, part.head] = 1.0
        return self._change(read, lambda width: of_columns(chosen, width).bool())

    def _change(self, given: Tensor, columns: Callable[[int], Tensor]) -> SiteFunction:
        """Replace the columns that belong to each candidate by `given`."""
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
    """`changed` at these positions, `otherwise` elsewhere; some layers flatten rows and positions into one axis."""
    return torch.where(where.to(changed.device).reshape(*changed.shape[:-1], 1), changed, otherwise)
