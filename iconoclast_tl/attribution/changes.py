"""Changes of what single parts write, row by row of a batch, as hooks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor, nn

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
def changing(changes: Mapping[Site, Change], sites: Mapping[Site, HookedModule]) -> Iterator[None]:
    """Run the model with these changes; the hooks go when the block ends."""
    handles: list[Any] = []
    try:
        for site, change in changes.items():
            handles.append(sites[site].attach(change))
        yield
    finally:
        for handle in handles:
            handle.remove()


def replaced(
    parts: Sequence[Part | None],
    n_heads: int,
    written: Written,
    asked: Asked,
    other: Asked,
    where: Bool[Tensor, "row pos"] | None,
    module: nn.Module,
) -> Change:
    """Candidate by candidate, the part's output becomes what it wrote on the other rows (None: nothing changes).

    Rows are aligned at the prompts' ends, and changed where both have a token. A head's output is changed through what
    the linear reads, y + W (x' − x) on the head's columns, so that quantised weights need not be read.
    """
    n_rows, width = len(asked.owner), int(asked.forced.batch.input_ids.shape[1])
    both = align(other.forced.batch.attention_mask, width).bool() & asked.forced.batch.attention_mask.bool()
    there = both.repeat(len(parts), 1) if where is None else both.repeat(len(parts), 1) & where
    of_heads = torch.tensor([part is not None and part.head is not None for part in parts])
    whole = torch.tensor([part is not None and part.head is None for part in parts])
    chosen = torch.zeros(int(of_heads.sum()), n_heads)
    for number, head in enumerate(part.head for part in parts if part is not None and part.head is not None):
        chosen[number, head] = 1.0

    def change(y: Tensor, x: Tensor | None) -> Tensor:
        changed = y.reshape(len(parts), n_rows, width, -1).clone()
        if bool(whole.any()):
            own = align(written.y.reshape(n_rows, -1, y.shape[-1]), width)
            changed[whole.to(y.device)] = own.to(y).expand(int(whole.sum()), -1, -1, -1)
        if len(chosen) and x is not None and written.x is not None:
            read = x.reshape(len(parts), n_rows, width, -1)[of_heads.to(x.device)]
            given = align(written.x.reshape(n_rows, -1, x.shape[-1]), width).to(x)
            difference = (given - read) * of_columns(chosen, x.shape[-1]).to(x)[:, None, None]
            changed[of_heads.to(y.device)] += module.forward(difference) - module.forward(torch.zeros_like(x[:1]))[:1]
        return at_positions(there, changed.reshape(y.shape), y)

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
