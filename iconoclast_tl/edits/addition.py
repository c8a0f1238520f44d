"""Activation addition: a constant α v added to the residual stream at one point, at every position.

    r_p' = r_p + α v        r_p: what enters layer p; α > 0 towards the target prompts, α < 0 away from them

Turner et al., Steering Language Models With Activation Engineering (2308.10248); Rimsky et al., Steering Llama 2 via
Contrastive Activation Addition (2312.06681). Arditi et al. (2406.11717) induce refusal so, with α v the difference of
the means: for the `mean` estimator that is α = `mean_gap`.

Added beside an ablation, α v comes after the projection at its own point. Under scope `writers` it then stays in the
stream as it is, since later layers are edited in what they write, not in what they find. Under scope `stream` the
projection of the next point takes from it what it has along the directions that are ablated there, α v − α V(Vᵀv),
and no more: that is why their overlap is limited.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from iconoclast_tl.edits.edit import Edit
from iconoclast_tl.foundation.errors import UserError


@dataclass(frozen=True)
class Addition:
    """α v at one residual point."""

    vector: Float[Tensor, "d_model"]
    """A unit vector."""
    point: int
    """The layer whose input it is added to."""
    coefficient: float
    """α, in units of v; negative: subtracted."""


def make_addition(addition: Addition, n_layers: int) -> Edit:
    """The edit that adds α v and ablates nothing; v is also its direction in all layers. See `with_addition`."""
    nothing = Edit(directions=addition.vector.float().expand(1, n_layers, -1).clone(), strengths={})
    return with_addition(nothing, addition)


def with_addition(edit: Edit, addition: Addition) -> Edit:
    """The same edit, and α v on top of what it adds already; `UserError` for a point that no layer reads."""
    point = addition.point
    require_read_point(point, edit.n_layers)
    before = edit.shifts.get("resid_pre")
    added = torch.zeros_like(edit.directions[0]) if before is None else before.clone()
    added[point] += addition.coefficient * addition.vector.to(added)
    return replace(edit, shifts={**edit.shifts, "resid_pre": added})


def require_read_point(point: int, n_layers: int) -> None:
    """Raise `UserError` for a residual point that no layer reads."""
    if not 0 <= point < n_layers:
        raise UserError(
            f"nothing can be added at residual point {point}",
            got=f"a model with {n_layers} layers",
            want=f"what enters a layer: a point from 0 to {n_layers - 1}",
        )


def mean_gap(
    vector: Float[Tensor, "d_model"], target: Float[Tensor, "n d_model"], neutral: Float[Tensor, "m d_model"]
) -> float:
    """vᵀ(μ_target − μ_neutral): how far the sides lie apart along v, in its own units."""
    return float((target.double().mean(0) - neutral.double().mean(0)) @ vector.double())


def overlap(edit: Edit, vector: Float[Tensor, "d_model"]) -> float:
    """How much of v lies along what an edit ablates: ‖V v‖ / ‖v‖, |cos| for one direction; the largest of its layers.

    0 for an edit that ablates nothing.
    """
    ablated = {site for site in edit.sites if len(edit.at(site).directions)}
    used = torch.zeros(edit.directions.shape[:2], dtype=torch.bool)
    for site in ablated:
        used[:, site.layer] |= edit.strengths[site.component][:, site.layer] != 0
    along = torch.einsum("kld,d->kl", edit.directions.double(), vector.double()) * used
    return float(along.norm(dim=0).max() / vector.double().norm().clamp(min=1e-300))


def require_apart(found: float, most: float) -> None:
    """Raise `UserError` where a direction that is added overlaps too much with what is ablated."""
    if found > most:
        raise UserError(
            "the direction that is added lies too much along the one that is ablated",
            got=f"an overlap |cos| of {found:.2f}",
            want=f"at most {most:g}",
            mend="add another direction, ablate none (--strength 0), or raise edit.max_overlap",
        )
