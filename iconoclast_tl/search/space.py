"""The kernel space: what a trial may choose, the spec that its choices mean, and the edit that a spec means.

A kernel's position and reach are shares of the last layer's index L−1, its floor is a share of its peak. The residual
point of the one direction is a share of the way from point 1, the stream after the first layer, to point L, the stream
after the last; scope `per layer` takes for every layer the direction of the stream after it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, Protocol, runtime_checkable

from jaxtyping import Float
from pydantic import Field, model_validator
from torch import Tensor

from iconoclast_tl.architecture.sites import WRITERS, Component
from iconoclast_tl.directions.directions import Directions
from iconoclast_tl.edits.config import EditConfig
from iconoclast_tl.edits.edit import NOTHING, Edit, make_edit
from iconoclast_tl.edits.ground import Ground
from iconoclast_tl.edits.profiles import Kernel
from iconoclast_tl.foundation.stage_config import StageConfig
from iconoclast_tl.search.objective import Goal
from iconoclast_tl.search.spec import EditSpec

DirectionScope = Literal["global", "per layer"]
Range = tuple[float, float]
Choices = dict[str, Any]
"""What a trial chose, by the flat names that Optuna keeps."""


class KernelSpace(StageConfig):
    """Ranges of the kernel profile, the same for both components."""

    direction_scopes: tuple[DirectionScope, ...] = Field(("global", "per layer"), min_length=1)
    """One direction for all layers, or each layer's own."""
    points: Range = (0.4, 0.9)
    """Residual points of the one direction, as shares u of the way from point 1 to point L: 1 + u·(L−1)."""
    max_weight: Range = (0.8, 1.5)
    """The kernel's peak λ; with the other sign where the goal is to strengthen."""
    max_weight_position: Range = (0.6, 1.0)
    """Where the peak is, as a share of L−1."""
    min_weight: Range = (0.0, 1.0)
    """The kernel's floor, as a share of its peak."""
    min_weight_distance: Range = (0.0, 0.6)
    """How far the kernel reaches, as a share of L−1; never less than one layer."""

    def for_goal(self, goal: Goal) -> KernelSpace:
        """The same with peaks below zero where the goal is to strengthen and they are given above."""
        low, high = self.max_weight
        if goal == "suppress" or low < 0:
            return self
        return self.model_copy(update={"max_weight": (-high, -low)})

    @model_validator(mode="after")
    def _ranges_rise_within_their_bounds(self) -> KernelSpace:
        shares = ("points", "max_weight_position", "min_weight_distance")
        for name in (*shares, "max_weight", "min_weight"):
            low, high = getattr(self, name)
            if low > high:
                raise ValueError(f"{name} goes from {low:g} down to {high:g}; give the lower end first")
            if name in shares and not (low >= 0 and high <= 1):
                of = "of the way from point 1 to the last" if name == "points" else "of the last layer's index"
                raise ValueError(f"{name}: shares {of} lie between 0 and 1; got {low:g} to {high:g}")
        return self


@runtime_checkable
class Trial(Protocol):
    """What `suggest` needs of an Optuna trial."""

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float:
        """A number of the range."""

    def suggest_categorical(self, name: str, choices: Any) -> Any:
        """One of the choices."""


def suggest(trial: Trial, space: KernelSpace, n_layers: int) -> Choices:
    """Ask a trial for every parameter of the space (always all of them, so that the space is one and the same)."""
    last = n_layers - 1
    choices = suggest_direction(trial, space, n_layers)
    reach_low, reach_high = _times(space.min_weight_distance, last)
    ranges = {
        "max_weight": space.max_weight,
        "max_weight_position": _times(space.max_weight_position, last),
        "min_weight": space.min_weight,
        "min_weight_distance": (max(reach_low, 1.0), max(reach_high, 1.0)),
    }
    for component in WRITERS:
        for name, (low, high) in ranges.items():
            key = f"{component}.{name}"
            choices[key] = trial.suggest_float(key, low, high)
    return choices


def suggest_direction(trial: Trial, space: KernelSpace, n_layers: int) -> Choices:
    """Ask a trial where its directions come from."""
    return {
        "direction_scope": trial.suggest_categorical("direction_scope", list(space.direction_scopes)),
        "direction_point": trial.suggest_float("direction_point", *point_range(space, n_layers)),
    }


def point_range(space: KernelSpace, n_layers: int) -> Range:
    """The residual points between which the one direction may be taken."""
    low, high = (point_at(share, n_layers) for share in space.points)
    return low, high


def point_at(share: float, n_layers: int) -> float:
    """The residual point at a share of the way from point 1 to point L."""
    return 1 + share * (n_layers - 1)


def spec_of(choices: Mapping[str, Any], config: EditConfig) -> EditSpec:
    """The spec that a trial's choices mean, with kernels where it chose any.

    What it did not choose is as `config` says. This is the one place that reads the flat names.
    """
    own = choices["direction_scope"] == "per layer"
    return EditSpec(
        point=None if own else choices["direction_point"],
        affine=choices.get("affine", bool(config.affine)),
        row_normalization=choices.get("row_normalization", config.row_normalization),
        strengths={name: _kernel(choices, name) for name in WRITERS if f"{name}.max_weight" in choices},
    )


def build_edit(spec: EditSpec, directions: Directions, config: EditConfig, ground: Ground = NOTHING) -> Edit:
    """The edit that a spec means on a model with these directions; what the spec does not say is as `config` says."""
    n_layers = directions.n_layers
    if spec.point is None:
        vectors, weights = per_layer(directions)
    else:
        vectors = directions.span(spec.point)[:, None].expand(-1, n_layers, -1)
        weights = directions.weights_at(spec.point)[:, None].expand(-1, n_layers)
    strengths = {component: spec.strengths_of(component, n_layers) for component in WRITERS}
    kind = config.model_copy(update={"affine": spec.affine, "row_normalization": spec.row_normalization})
    return make_edit(vectors, strengths, kind, ground, weights)


def per_layer(directions: Directions) -> tuple[Float[Tensor, "k layer d_model"], Float[Tensor, "k layer"]]:
    """For every layer the directions of the stream after it, residual points 1…L, and their weights."""
    return directions.vectors[:, 1:], directions.weights[:, 1:]


def _kernel(choices: Mapping[str, Any], component: Component) -> Kernel:
    peak = choices[f"{component}.max_weight"]
    return Kernel(
        max_weight=peak,
        max_weight_position=choices[f"{component}.max_weight_position"],
        min_weight=peak * choices[f"{component}.min_weight"],
        min_weight_distance=choices[f"{component}.min_weight_distance"],
    )


def _times(bounds: Range, factor: float) -> Range:
    return bounds[0] * factor, bounds[1] * factor
