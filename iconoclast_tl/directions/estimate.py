"""From activations to one unit direction per residual point: estimator, filters, normalisation."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from iconoclast_tl.directions.estimators import ESTIMATORS, Estimator, hybrid
from iconoclast_tl.directions.geometry import normalize, principal_basis, project_out
from iconoclast_tl.foundation.stage_config import StageConfig

EstimatorName = Literal["mean", "median", "geometric-median", "variance", "hybrid"]


class DirectionConfig(StageConfig):
    """How directions are estimated and filtered."""

    estimator: EstimatorName = "mean"
    """What is taken as the difference between target and neutral residuals."""
    hybrid_weight: float = Field(0.5, ge=0, le=1)
    """The share a of the variance-scaled difference in `hybrid`."""
    orthogonalize: bool = False
    """Project out the neutral mean, so that an edit leaves what all neutral prompts share."""
    benign_rank: int = Field(0, ge=0)
    """Project out the top principal directions of the neutral residuals, this many."""
    file: str | None = None
    """Take the directions of this directions.safetensors instead of estimating them."""


def estimator_of(config: DirectionConfig) -> Estimator:
    """The estimator that `config` names."""
    return hybrid(config.hybrid_weight) if config.estimator == "hybrid" else ESTIMATORS[config.estimator]


def estimate_directions(
    target: Float[Tensor, "n point d_model"],
    neutral: Float[Tensor, "m point d_model"],
    config: DirectionConfig,
) -> Float[Tensor, "point d_model"]:
    """One unit direction per residual point, float32; zero where the two sets do not differ there.

    d = estimator(B, G); then, as far as asked for, the neutral mean and the benign principal subspace are projected out
    *together* (one orthonormal basis of both: one after the other would bring back part of the first); then d / ‖d‖.
    Points that hold the same for every prompt, such as the embedding of the template's last token, have no direction.
    """
    estimator = estimator_of(config)
    points = range(target.shape[1])
    return torch.stack([_direction_at(target[:, i], neutral[:, i], estimator, config) for i in points])


def _direction_at(
    target: Float[Tensor, "n d_model"],
    neutral: Float[Tensor, "m d_model"],
    estimator: Estimator,
    config: DirectionConfig,
) -> Float[Tensor, "d_model"]:
    b, g = target.double(), neutral.double()
    raw = estimator(b, g)
    spread = torch.cat([b, g]).norm(dim=1).mean()
    if float((b.mean(0) - g.mean(0)).norm()) <= 1e-6 * float(spread):  # float32 activations: that much is rounding
        return torch.zeros(b.shape[1])
    filtered = project_out(raw, filter_basis(g, config))
    if float(filtered.norm()) <= 1e-6 * float(raw.norm()):
        return torch.zeros(b.shape[1])
    return normalize(filtered).float()


def filter_basis(neutral: Float[Tensor, "m d_model"], config: DirectionConfig) -> Float[Tensor, "r d_model"]:
    """An orthonormal basis (rows, float64) of what the filters of `config` project out; possibly empty."""
    g = neutral.double()
    rows = [g.mean(0, keepdim=True)] if config.orthogonalize else []
    if config.benign_rank:
        rows.append(principal_basis(g, config.benign_rank))
    if not rows:
        return g.new_zeros(0, g.shape[1])
    q, r = torch.linalg.qr(torch.cat(rows).T)
    independent = r.diagonal().abs() > 1e-10 * r.diagonal().abs().max()
    basis: Tensor = q.T[independent]
    return basis
