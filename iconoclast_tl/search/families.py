"""Families: directions for all layers, plain or affine. Everything of an edit but its strengths.

Families compete in a gradient search: one direction for all layers, taken at one of several residual points, or each
layer's own; ablated towards zero or towards the neutral mean; filtered as the settings say, or not at all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jaxtyping import Float
from torch import Tensor

from iconoclast_tl.directions.directions import Directions
from iconoclast_tl.directions.sets import AS_SET
from iconoclast_tl.edits.edit import NOTHING, Edit, EditConfig
from iconoclast_tl.edits.ground import Ground
from iconoclast_tl.edits.updates import Updates, edit_updates, stack_updates
from iconoclast_tl.foundation.errors import UserError
from iconoclast_tl.models.hook_points import HookedModule
from iconoclast_tl.models.sites import WRITERS, Component, Site
from iconoclast_tl.search.space import KernelSpace, build_edit

Strengths = Float[Tensor, "candidate row layer"]
"""λ of the writers: rows of the attention first, one, or one for every head, and of the MLP last."""


@dataclass(frozen=True)
class Source:
    """Where edits come from: directions by name, and what an edit needs besides."""

    directions: Mapping[str, Directions]
    """`as set` first, and perhaps others (`directions.sets`)."""
    edit: EditConfig
    ground: Ground = NOTHING

    @property
    def n_layers(self) -> int:
        """Layers of the model."""
        return next(iter(self.directions.values())).n_layers

    def build(self, parameters: Mapping[str, Any]) -> Edit:
        """The edit that parameters of any search mean."""
        chosen = {name: parameters[name] for name in ("affine", "row_normalization") if name in parameters}
        directions = self.directions[parameters.get("directions", AS_SET)]
        config = self.edit.model_copy(update=chosen)
        return build_edit(parameters, directions, config, self.ground)


@dataclass(frozen=True)
class Family:
    """One candidate family."""

    parameters: Mapping[str, Any]
    """What names it; with `strengths`, the parameters of an edit."""
    updates: Updates
    """At strength 1 everywhere."""

    def __str__(self) -> str:
        """Such as `affine, point 5, unfiltered`."""
        return family_name(self.parameters)


def family_name(parameters: Mapping[str, Any]) -> str:
    """What a family is called, by its parameters or by those of one of its edits."""
    kind = "affine" if parameters["affine"] else "plain"
    own = parameters["direction_scope"] == "per layer"
    where = "each layer's own" if own else f"point {parameters['direction_index'] + 1:g}"
    return f"{kind}, {where}, {parameters['directions']}"


def families(
    source: Source, space: KernelSpace, affine: Sequence[bool], sites: Mapping[Site, HookedModule]
) -> list[Family]:
    """Every family that `space` allows: residual points in its range of direction indices, scopes, kinds, directions.

    A point without a direction (where target and neutral hold the same) gives no family.
    """
    found = []
    for name, directions in source.directions.items():
        for scope, index in _places(directions, space):
            for is_affine in affine:
                parameters = {
                    "directions": name,
                    "direction_scope": scope,
                    "direction_index": index,
                    "affine": is_affine,
                }
                found.append(family(source, parameters, sites))
    if not found:
        raise UserError(
            "no residual point in the range has a direction",
            got=f"search.space.direction_index {space.direction_index}",
            mend="widen the range",
        )
    return found


def family(source: Source, parameters: Mapping[str, Any], sites: Mapping[Site, HookedModule]) -> Family:
    """The family that these parameters name."""
    return Family(parameters, edit_updates(source.build({**parameters, "strengths": _ones(source)}), sites))


def stack_families(chosen: Sequence[Family], strengths: Strengths) -> Updates:
    """Families and their strengths as one batch of candidates; gradients reach the strengths."""
    stacked = stack_updates([family.updates for family in chosen])
    mine = {}
    for site, ones in stacked.strengths.items():
        given = strengths[:, rows_of(site.component), site.layer].to(ones)
        # Every direction of a site has its layer's strength; 0 stays 0 where a family has no direction or part there.
        mine[site] = ones * (given[:, None] if ones.ndim == 3 else given)
    return Updates(stacked.at, mine)


def rows_of(component: Component) -> slice:
    """Where a component's strengths are."""
    return slice(None, -1) if component == "attn_out" else slice(-1, None)


def with_strengths(family: Family, strengths: Float[Tensor, "row layer"]) -> dict[str, Any]:
    """The parameters of this family's edit at these strengths: a number a layer, or a list of one a head."""
    of = {component: strengths[rows_of(component)] for component in WRITERS}
    values = {name: (rows[0] if len(rows) == 1 else rows.T).tolist() for name, rows in of.items()}
    return {**family.parameters, "strengths": values}


def _ones(source: Source) -> dict[str, list[float]]:
    return {component: [1.0] * source.n_layers for component in WRITERS}


def _places(directions: Directions, space: KernelSpace) -> list[tuple[str, float]]:
    last = directions.n_layers - 1
    low, high = (share * last for share in space.direction_index)
    places: list[tuple[str, float]] = []
    if "global" in space.direction_scopes:
        points = [index for index in range(last + 1) if low <= index <= high] or [round((low + high) / 2)]
        places += [("global", float(index)) for index in points if bool(directions.main[index + 1].any())]
    if "per layer" in space.direction_scopes and bool(directions.main[1:].any()):
        places.append(("per layer", float(last)))
    return places
