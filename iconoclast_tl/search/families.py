"""Families: directions for all layers, plain or affine. Everything of an edit but its strengths.

Families compete in a gradient search: one direction for all layers, taken at one of several residual points, or each
layer's own; filtered as the settings say, or not at all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from jaxtyping import Float
from torch import Tensor

from iconoclast_tl.architecture.hook_points import HookedModule
from iconoclast_tl.architecture.sites import WRITERS, Component, Site
from iconoclast_tl.directions.directions import Directions
from iconoclast_tl.edits.config import EditConfig
from iconoclast_tl.edits.edit import NOTHING, Edit
from iconoclast_tl.edits.ground import Ground
from iconoclast_tl.edits.updates import Updates, edit_updates, stack_updates
from iconoclast_tl.foundation.errors import UserError
from iconoclast_tl.search.space import KernelSpace, build_edit, point_range
from iconoclast_tl.search.spec import EditSpec, as_tuples

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

    def build(self, spec: EditSpec) -> Edit:
        """The edit that a spec of any search means; KeyError for a set of directions that there is not."""
        return build_edit(spec, self.directions[spec.directions], self.edit, self.ground)


@dataclass(frozen=True)
class Family:
    """One candidate family."""

    spec: EditSpec
    """Without strengths."""
    updates: Updates
    """At strength 1 everywhere."""

    def __str__(self) -> str:
        """Such as `affine, point 5, unfiltered`."""
        return str(self.spec)


def families(
    source: Source, space: KernelSpace, affine: Sequence[bool], sites: Mapping[Site, HookedModule]
) -> list[Family]:
    """Every family that `space` allows: residual points in its range, scopes, kinds, directions.

    A point without a direction (where target and neutral hold the same) gives no family.
    """
    found = []
    for name, directions in source.directions.items():
        for point in points_in(directions, space):
            for is_affine in affine:
                spec = EditSpec(
                    point=point,
                    affine=is_affine,
                    row_normalization=source.edit.row_normalization,
                    directions=name,
                )
                found.append(family(source, spec, sites))
    if not found:
        raise UserError(
            "no residual point in the range has a direction",
            got=f"search.space.points {space.points}",
            mend="widen the range",
        )
    return found


def family(source: Source, spec: EditSpec, sites: Mapping[Site, HookedModule]) -> Family:
    """The family that a spec names, with its directions' updates at strength 1."""
    ones = dict.fromkeys(WRITERS, (1.0,) * source.n_layers)
    return Family(spec.family, edit_updates(source.build(replace(spec, strengths=ones)), sites))


def spread_out(families: Sequence[Family], at_most: int) -> list[Family]:
    """Those of every few residual points, `at_most` of each kind, and those of each layer's own direction."""
    points = sorted({family.spec.point for family in families if family.spec.point is not None})
    step = max(-(-len(points) // at_most), 1)
    kept = {None, *points[step // 2 :: step]}
    return [family for family in families if family.spec.point in kept]


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


def with_strengths(family: Family, strengths: Float[Tensor, "row layer"]) -> EditSpec:
    """The spec of this family's edit at these strengths: one a layer, or one a head."""
    of = {component: strengths[rows_of(component)] for component in WRITERS}
    values = {name: as_tuples((rows[0] if len(rows) == 1 else rows.T).tolist()) for name, rows in of.items()}
    return replace(family.spec, strengths=values)


def points_in(directions: Directions, space: KernelSpace) -> list[float | None]:
    """The residual points in the range at which there is a direction; last, for each layer's own, None."""
    n_layers = directions.n_layers
    low, high = point_range(space, n_layers)
    points: list[float | None] = []
    if "global" in space.direction_scopes:
        within = [point for point in range(1, n_layers + 1) if low <= point <= high] or [
            1 + round((low + high) / 2 - 1)
        ]
        points += [float(point) for point in within if bool(directions.main[point].any())]
    if "per layer" in space.direction_scopes and bool(directions.main[1:].any()):
        points.append(None)
    return points
