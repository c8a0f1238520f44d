"""The kernel space: what a trial may choose, and the edit that its choice means.

Ranges follow Heretic's conventions: positions and the direction index in units of the last layer's index L−1, the
kernel's floor as a share of its peak. A direction index i means the stream *after* layer i, that is residual point
i+1; scope `per layer` takes for every layer the direction of the stream after it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from pydantic import Field, model_validator
from torch import Tensor

from iconoclast_tl.directions.directions import Directions
from iconoclast_tl.edits.edit import NOTHING, Edit, EditConfig, make_edit
from iconoclast_tl.edits.ground import Ground
from iconoclast_tl.edits.profiles import Kernel
from iconoclast_tl.foundation.stage_config import StageConfig
from iconoclast_tl.models.sites import WRITERS, Component
from iconoclast_tl.search.objective import Goal

DirectionScope = Literal["global", "per layer"]
Range = tuple[float, float]
Parameters = Mapping[str, Any]


class KernelSpace(StageConfig):
    """Ranges of the kernel profile, the same for both components."""

    direction_scopes: tuple[DirectionScope, ...] = Field(("global", "per layer"), min_length=1)
    """One direction for all layers, or each layer's own."""
    direction_index: Range = (0.4, 0.9)
    """Of the one direction, as a share of L−1."""
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
        shares = ("direction_index", "max_weight_position", "min_weight_distance")
        for name in (*shares, "max_weight", "min_weight"):
            low, high = getattr(self, name)
            if low > high:
                raise ValueError(f"{name} goes from {low:g} down to {high:g}; give the lower end first")
            if name in shares and not (low >= 0 and high <= 1):
                raise ValueError(f"{name} is a share of the last layer's index, from 0 to 1; got {low:g} to {high:g}")
        return self


@runtime_checkable
class Trial(Protocol):
    """What `suggest` needs of an Optuna trial."""

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float:
        """A number of the range."""

    def suggest_categorical(self, name: str, choices: Any) -> Any:
        """One of the choices."""


def suggest(trial: Trial, space: KernelSpace, n_layers: int) -> dict[str, Any]:
    """Ask a trial for every parameter of the space (always all of them, so that the space is one and the same)."""
    last = n_layers - 1
    parameters = suggest_direction(trial, space, n_layers)
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
            parameters[key] = trial.suggest_float(key, low, high)
    return parameters


def suggest_direction(trial: Trial, space: KernelSpace, n_layers: int) -> dict[str, Any]:
    """Ask a trial where its directions come from."""
    return {
        "direction_scope": trial.suggest_categorical("direction_scope", list(space.direction_scopes)),
        "direction_index": trial.suggest_float("direction_index", *_times(space.direction_index, n_layers - 1)),
    }


def build_edit(
    parameters: Parameters,
    directions: Directions,
    config: EditConfig,
    ground: Ground = NOTHING,
) -> Edit:
    """The edit that a trial's parameters mean on a model with these directions."""
    n_layers = directions.n_layers
    if parameters["direction_scope"] == "global":
        point = parameters["direction_index"] + 1
        vectors = directions.span(point)[:, None].expand(-1, n_layers, -1)
        weights = directions.weights_at(point)[:, None].expand(-1, n_layers)
    else:
        vectors, weights = per_layer(directions)
    given = {component: _strengths(parameters, component, n_layers) for component in WRITERS}
    strengths = {name: values if values.ndim == 1 else values.any(-1).float() for name, values in given.items()}
    own = {name: values * ground.parts[name] for name, values in given.items() if values.ndim == 2}
    return make_edit(vectors, strengths, config, replace(ground, parts={**ground.parts, **own}), weights)


def per_layer(directions: Directions) -> tuple[Float[Tensor, "k layer d_model"], Float[Tensor, "k layer"]]:
    """For every layer the directions of the stream after it, residual points 1…L, and their weights."""
    return directions.vectors[:, 1:], directions.weights[:, 1:]


def _strengths(parameters: Parameters, component: Component, n_layers: int) -> Float[Tensor, "layer *head"]:
    """Given one by one (by a gradient), for every head by itself or not, or as a kernel's four numbers."""
    if "strengths" in parameters:
        return torch.tensor(parameters["strengths"][component], dtype=torch.float32)
    return _kernel(parameters, component).strengths(n_layers)


def _kernel(parameters: Parameters, component: Component) -> Kernel:
    peak = parameters[f"{component}.max_weight"]
    return Kernel(
        max_weight=peak,
        max_weight_position=parameters[f"{component}.max_weight_position"],
        min_weight=peak * parameters[f"{component}.min_weight"],
        min_weight_distance=parameters[f"{component}.min_weight_distance"],
    )


def _times(bounds: Range, factor: float) -> Range:
    return bounds[0] * factor, bounds[1] * factor
