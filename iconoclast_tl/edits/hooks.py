"""An edit as hooks: the preview. No weight is touched, and nothing is left behind.

What a hook computes stands in `edits.updates`; here it is attached to sites and removed again. One batch may hold rows
of many candidates: a `BatchCandidates` says which row belongs to which, and whoever cuts the batch keeps it up to date.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from iconoclast_tl.architecture.hook_points import HookedModule, bridge_sites, hf_sites
from iconoclast_tl.architecture.offloading import device_of
from iconoclast_tl.architecture.post_norm import Gains, post_norm_gains
from iconoclast_tl.architecture.sites import Site
from iconoclast_tl.edits.edit import Edit
from iconoclast_tl.edits.updates import SiteUpdate, Updates, apply_update, edit_updates
from iconoclast_tl.execution.candidates import BatchCandidates
from iconoclast_tl.foundation.errors import UserError
from iconoclast_tl.models.model import Model


@contextmanager
def preview(edit: Edit, sites: Mapping[Site, HookedModule]) -> Iterator[None]:
    """Run the model whose `sites` are given with `edit` on; the hooks go when the block ends, however it ends."""
    with hooked(edit_updates(edit, sites), sites):
        yield


def sites_of(model: Any, edit: Edit) -> Mapping[Site, HookedModule]:
    """Where to hook a model for an edit: a `Model`, a Hugging Face model, or a TransformerLens bridge.

    Raises `UserError` for a model of another depth or width, and for edits on a bridge that read weights (heads,
    neurons, experts, row normalisation): a bridge's hook points have none.
    """
    is_bridge = not isinstance(model, Model) and hasattr(model, "hook_dict")
    hf: Any = model.hf if isinstance(model, Model) else model
    if is_bridge:
        shape = int(model.cfg.n_layers), int(model.cfg.d_model)
    elif hasattr(hf, "config") and hasattr(hf, "named_modules"):
        config = hf.config.get_text_config()
        shape = int(config.num_hidden_layers), int(config.hidden_size)
    else:
        raise UserError(
            "an edit is put on a model", got=type(model).__name__, want="a Model, a Hugging Face model or a bridge"
        )
    own = edit.n_layers, int(edit.directions.shape[-1])
    if shape != own:
        raise UserError(
            "the edit is of another model",
            got=f"{own[0]} layers, d_model {own[1]}",
            want=f"{shape[0]} layers, d_model {shape[1]}",
            mend="make it from directions of this model",
        )
    if not is_bridge:
        _require_gains(edit, model.gains if isinstance(model, Model) else post_norm_gains(hf))
        return hf_sites(hf, edit.components)
    if edit.parts or edit.experts is not None or edit.row_normalization != "none":
        raise UserError(
            "an edit that reads weights cannot be put on a bridge",
            got="single heads, neurons or experts, or row normalisation",
            mend="put it on the model itself: `with edit.on(model):`",
        )
    return bridge_sites(model)


def _require_gains(edit: Edit, gains: Gains) -> None:
    """Raise `UserError` where norms follow the writers and the edit was made without them, or the other way round."""
    used = {name for name, strengths in edit.strengths.items() if bool(strengths.any())} - {"resid_pre"}
    there = {name: name in gains for name in used}
    if any(there[name] != (name in edit.gains) for name in used):
        raise UserError(
            "the edit was made without the norms that follow this model's writers"
            if any(there.values())
            else "the edit was made for a model with norms after its writers",
            got="another projection than the one that takes the direction out of this model's stream",
            mend="make it by itl.ablate(model, direction)",
        )


@contextmanager
def hooked(updates: Updates, sites: Mapping[Site, HookedModule]) -> Iterator[BatchCandidates]:
    """Run the model with `updates` on; their strengths may ask for gradients.

    Yields the `BatchCandidates` through which the rows of each coming batch are given to candidates.
    """
    rows, handles = BatchCandidates(), list[Any]()
    try:
        for site, update in updates.at.items():
            handles += _attach(update, updates.strengths[site], sites[site], rows)
        yield rows
    finally:
        for handle in handles:
            handle.remove()


def _attach(update: SiteUpdate, strengths: Tensor, where: HookedModule, rows: BatchCandidates) -> list[Any]:
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


def _of_rows(factors: Float[Tensor, "candidate part"], rows: BatchCandidates) -> Float[Tensor, "row part"]:
    """The factors of every row of the batch; one row where all share them."""
    if rows.candidates is None or len(factors) == 1:
        return factors[:1]
    return factors[rows.candidates.to(factors.device)]


def _expert_hook(
    factors: Float[Tensor, "candidate expert"], rows: BatchCandidates, surplus: list[Tensor]
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
