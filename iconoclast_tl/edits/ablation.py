"""Edits made by hand: a direction projected out of chosen layers, or added at one residual point."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from iconoclast_tl.activations.store import Activations
from iconoclast_tl.architecture.sites import WRITERS, Component
from iconoclast_tl.directions.directions import Directions
from iconoclast_tl.edits.addition import (
    Addition,
    make_addition,
    mean_gap,
    require_read_point,
    with_addition,
)
from iconoclast_tl.edits.completeness import require_complete
from iconoclast_tl.edits.config import EditConfig
from iconoclast_tl.edits.edit import Edit, make_edit
from iconoclast_tl.edits.ground import ground_of, require_same_model
from iconoclast_tl.edits.profiles import uniform
from iconoclast_tl.foundation.errors import UserError
from iconoclast_tl.foundation.stage_config import from_keywords
from iconoclast_tl.models.model import Model, require_model


def ablate(
    model: Model,
    direction: Float[Tensor, "*k d_model"] | Directions,
    *,
    strength: float = 1.0,
    layers: Iterable[int] | None = None,
    weights: Float[Tensor, "k"] | None = None,
    acts: Activations | None = None,
    config: EditConfig | None = None,
    position: int | None = None,
    **settings: Any,
) -> Edit:
    """Project a direction out of what attention and MLP write in some layers: y' = y − λ v (vᵀ y).

    direction: one direction, or k of them, for all layers, such as `directions.at(5)` or `directions.span(5)`; of any
    length, made orthonormal here. `Directions` themselves mean each layer's own, of the stream after it. strength: λ;
    0 leaves a site alone, 1 projects v out, negative values amplify. layers: default all. weights: of the strength by
    each of k directions. acts: what `affine=True` and `calibrate` go by. position: where in the prompts they do; by
    default that of `Directions`, else the last token.

    settings: those of `EditConfig`: `affine`, `scope="stream"`, `heads=["2.0"]`, `keep_norm`, …; or all of them at once
    as `config`. Post-norms are taken care of: on models that have them v is weighted by their gains.

    Raises `UserError` for a direction of another width or without length, layers that the model does not have,
    activations of another model, and an architecture not all of whose writers are known.
    """
    require_model(model)
    config = from_keywords(EditConfig, config, settings)
    if config.attention_only != model.attention_only:  # said by one of the two, it holds for both
        config, model = config.model_copy(update={"attention_only": True}), replace(model, attention_only=True)
    require_finite("strength", strength)
    require_complete(model)
    n_layers = model.n_layers
    chosen = require_layers(range(n_layers) if layers is None else layers, n_layers)
    strengths: dict[Component, Tensor] = {name: uniform(strength, chosen, n_layers) for name in WRITERS}
    if isinstance(direction, Directions):
        if weights is not None:
            raise UserError("directions have weights of their own", got="weights", mend="leave weights out")
        position = direction.position if position is None else position
        require_width(direction.vectors, model)
        vectors, shares = direction.vectors[:, 1:], direction.weights[:, 1:]
        if vectors.shape[1] != n_layers:
            raise UserError(
                "the directions are of another model", got=f"{direction.n_layers} layers", want=f"{n_layers} layers"
            )
    else:
        require_width(direction, model)
        given = direction.float().reshape(-1, model.d_model)
        vectors = given[:, None].expand(-1, n_layers, -1)
        if weights is not None and len(weights) != len(given):
            raise UserError(
                "the weights do not fit the directions", got=f"{len(weights)} weights", want=f"{len(given)} directions"
            )
        shares = (torch.ones(len(given)) if weights is None else weights)[:, None].expand(-1, n_layers)
    ground = ground_of(model, config, acts, -1 if position is None else position)
    return make_edit(vectors, strengths, config, ground, shares)


def add(
    model: Model,
    direction: Float[Tensor, "d_model"],
    *,
    point: int,
    coefficient: float | None = None,
    acts: Activations | None = None,
    position: int = -1,
    to: Edit | None = None,
) -> Edit:
    """Add α v to the residual stream at one residual point, at every position (activation addition).

    coefficient: α, negative to subtract; by default the distance of the sides' means along v at that point, which needs
    `acts`, at `position`. to: an edit that is also made, such as an ablation of another direction.

    Raises `UserError` for a direction of another width or without length, and for a point that no layer reads.
    """
    require_model(model)
    require_width(direction, model)
    unit = torch.nn.functional.normalize(direction.float(), dim=0)
    if coefficient is None:
        if acts is None:
            raise UserError(
                "how much is added is not known", want="a coefficient, or activations to measure the default by"
            )
        require_same_model(acts, model)
        require_read_point(point, model.n_layers)
        residuals = acts.at(position)
        coefficient = mean_gap(unit, residuals.target_train[:, point], residuals.neutral_train[:, point])
    require_finite("coefficient", coefficient)
    addition = Addition(unit, point, coefficient)
    return make_addition(addition, model.n_layers) if to is None else with_addition(to, addition)


def require_finite(name: str, value: float) -> None:
    """Raise `UserError` for a strength or coefficient that is no finite number."""
    if not math.isfinite(value):
        raise UserError(f"the {name} is not a finite number", got=value, want="for example 1 or -0.5")


def require_layers(layers: Iterable[int], n_layers: int) -> list[int]:
    """The layers in a list; `UserError` for one that the model does not have."""
    chosen = list(layers)
    outside = [layer for layer in chosen if not 0 <= layer < n_layers]
    if outside:
        raise UserError(
            f"layer {outside[0]} is outside 0..{n_layers - 1}",
            got=f"a model with {n_layers} layers",
            mend=f"pass --layers 0-{n_layers - 1}",
        )
    return chosen


def require_width(direction: Float[Tensor, "*k d_model"], model: Model) -> None:
    """Raise `UserError` for what is no direction of this model: another width, no length, or not finite."""
    if not isinstance(direction, Tensor):
        raise UserError("a direction is a tensor", got=type(direction).__name__, want=f"{model.d_model} numbers")
    if direction.shape[-1] != model.d_model:
        raise UserError(
            "the direction is of another model",
            got=f"d_model {direction.shape[-1]}",
            want=f"d_model {model.d_model}",
            mend="estimate it on this model",
        )
    if not bool(direction.isfinite().all()) or not bool(direction.any()):
        raise UserError("the direction has no length", got="zero, or values that are not finite", want="a vector")
