"""Small exact geometry of directions."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def normalize(vectors: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_model"]:
    """v / ‖v‖ along the last axis; a zero vector stays zero."""
    norms = vectors.norm(dim=-1, keepdim=True)
    return torch.where(norms > 0, vectors / norms.clamp(min=torch.finfo(vectors.dtype).tiny), torch.zeros_like(vectors))


def project_out(vector: Float[Tensor, "d_model"], basis: Float[Tensor, "r d_model"]) -> Float[Tensor, "d_model"]:
    """v − Qᵀ(Qv) for a basis Q with orthonormal rows."""
    rest: Tensor = vector - basis.T @ (basis @ vector)
    return rest


def principal_basis(rows: Float[Tensor, "n d_model"], rank: int) -> Float[Tensor, "r d_model"]:
    """The top `rank` principal directions of the centred rows, orthonormal, float64; no more than they vary in."""
    centred = rows.double() - rows.double().mean(0)
    _, values, basis = torch.linalg.svd(centred, full_matrices=False)
    # Below that is rounding: an axis without variance is any direction, even the behaviour's.
    varies = int((values > 1e-10 * values[0]).sum())
    top: Tensor = basis[: min(rank, varies)]
    return top


def interpolate(vectors: Float[Tensor, "point d_model"], index: float) -> Float[Tensor, "d_model"]:
    """The unit vector at a fractional index: normalise((1−t)·v[⌊i⌋] + t·v[⌊i⌋+1]), t = i − ⌊i⌋ (Heretic's rule)."""
    low = min(int(index), len(vectors) - 1)
    high = min(low + 1, len(vectors) - 1)
    t = index - low
    return normalize((1 - t) * vectors[low] + t * vectors[high])


def orthonormalize(vectors: Float[Tensor, "k *layer d_model"]) -> Float[Tensor, "k *layer d_model"]:
    """Orthonormalise the k vectors of every layer by Gram-Schmidt in float64, in their order.

    A vector that adds nothing to the ones before it (less than 1e-6 of its length is left) becomes zero, that is: no
    direction. Zero vectors stay zero.
    """
    result: list[Tensor] = []
    for vector in vectors.double():
        rest = vector
        for _ in range(2):  # the second pass removes what rounding left of the first
            for previous in result:
                rest = rest - (rest * previous).sum(-1, keepdim=True) * previous
        new = rest.norm(dim=-1, keepdim=True) > 1e-6 * vector.norm(dim=-1, keepdim=True)
        result.append(torch.where(new, normalize(rest), torch.zeros_like(rest)))
    return torch.stack(result).to(vectors.dtype)
