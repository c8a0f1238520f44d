"""Filters of directions: outlying coordinates cut before, shared and benign directions projected out after."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from iconoclast_tl.directions.config import DirectionConfig
from iconoclast_tl.directions.geometry import principal_basis


def winsorized(rows: Float[Tensor, "n d_model"], quantile: float | None) -> Float[Tensor, "n d_model"]:
    """Every row with its coordinates cut to ±t, t the `quantile` of their own absolute values; None: as they are.

    For the few coordinates of enormous size that some models have at every prompt (Sun et al. 2402.17762).
    """
    if quantile is None:
        return rows
    ordered = rows.abs().sort(dim=1).values  # torch.quantile refuses the size of a large model's residuals
    place = quantile * (rows.shape[1] - 1)
    low = int(place)
    above = ordered[:, min(low + 1, rows.shape[1] - 1)]
    limit = (ordered[:, low] + (place - low) * (above - ordered[:, low]))[:, None]
    return torch.minimum(torch.maximum(rows, -limit), limit)


def filter_basis(neutral: Float[Tensor, "m d"], config: DirectionConfig) -> Float[Tensor, "r d"]:
    """An orthonormal basis (rows, float64) of what `config` projects out: neutral mean, benign subspace; maybe empty.

    Both *together*: one after the other would bring back part of the first.
    """
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
