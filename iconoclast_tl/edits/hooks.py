"""An edit as hooks: the preview. No weight is touched, and nothing is left behind.

What a hook computes stands in `edits.updates`; here it is attached to sites and removed again. One batch may hold rows
of many candidates: a `Rows` says which row belongs to which, and whoever cuts the batch keeps it up to date.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from jaxtyping import Float, Int
from torch import Tensor, nn

from iconoclast_tl.edits.edit import Edit
from iconoclast_tl.edits.updates import SiteUpdate, Updates, apply_update, edit_updates
from iconoclast_tl.models.hook_points import HookedModule
from iconoclast_tl.models.offloading import device_of
from iconoclast_tl.models.sites import Site


@dataclass
class Rows:
    """The candidate of every row of the next forward pass; None while there is one candidate only."""

    candidates: Int[Tensor, "batch"] | None = None


@contextmanager
def preview(edit: Edit, sites: Mapping[Site, HookedModule]) -> Iterator[None]:
    """Run the model whose `sites` are given with `edit` on; the hooks go when the block ends, however it ends."""
    with hooked(edit_updates(edit, sites), sites):
        yield


@contextmanager
def hooked(updates: Updates, sites: Mapping[Site, HookedModule]) -> Iterator[Rows]:
    """Run the model with `updates` on; their strengths may ask for gradients.

    Yields the `Rows` through which the rows of each coming batch are given to candidates.
    """
    rows, handles = Rows(), list[Any]()
    try:
        for site, update in updates.at.items():
            handles += _attach(update, updates.strengths[site], sites[site], rows)
        yield rows
    finally:
        for handle in handles:
            handle.remove()


def _attach(update: SiteUpdate, strengths: Tensor, where: HookedModule, rows: Rows) -> list[Any]:
    # Moved once where the module computes, not in every forward pass.
    device = device_of(where.module)
    update, strengths = update.to(device), strengths.to(device)

    surplus: list[Tensor] = []

    def change(y: Tensor, x: Tensor | None) -> Tensor:
        more = surplus.pop().reshape(y.shape) if surplus else None
        return apply_update(y, x, update, strengths, rows.candidates, more)

    handles = [where.attach(change)]
    if update.experts is not None and where.experts is not None:
        handles.append(
            where.experts.register_forward_hook(_expert_hook(update.experts, rows, surplus), with_kwargs=True)
        )
    return handles


def _of_rows(factors: Float[Tensor, "candidate part"], rows: Rows) -> Float[Tensor, "row part"]:
    """The factors of every row of the batch; one row where all share them."""
    if rows.candidates is None or len(factors) == 1:
        return factors[:1]
    return factors[rows.candidates.to(factors.device)]


def _expert_hook(
    factors: Float[Tensor, "candidate expert"], rows: Rows, surplus: list[Tensor]
) -> Callable[[nn.Module, Any, Any, Any], None]:
    """Run the experts once more with weights g (f − 1), and leave what they write for the hook on the whole block."""

    def hook(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        states, chosen, weights = (*args, *kwargs.values())[:3]
        of_row = _of_rows(factors, rows)
        of_token = of_row.repeat_interleave(len(states) // len(of_row), dim=0)
        more = of_token.gather(1, chosen.reshape(len(states), -1)).reshape(chosen.shape) - 1
        # Not module(…): that would come back to this hook.
        surplus.append(module.forward(states, chosen, weights * more.to(weights)))

    return hook
