"""Residuals as coordinates in their own span: n prompts fill at most n of d_model dimensions.

Estimators that turn with their rows (f(XQ) = f(X)Q for every orthonormal Q) give the same from coordinates, at the cost
of n dimensions and not of d_model: for 600 prompts of a model of width 4096 that is a seventh of every row and a
fiftieth of every covariance.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class Span:
    """X = C Q: coordinates C in the orthonormal rows of Q, float64; without Q where there is nothing to save."""

    coordinates: Float[Tensor, "n r"]
    basis: Float[Tensor, "r d_model"] | None

    def back(self, vectors: Float[Tensor, "k r"]) -> Float[Tensor, "k d_model"]:
        """Vectors of the span, of which these are the coordinates."""
        return vectors if self.basis is None else vectors @ self.basis


def span_of(rows: Float[Tensor, "n d_model"]) -> Span:
    """By a QR decomposition of Xᵀ, exact for rows of any rank."""
    n, width = rows.shape
    if n >= width:
        return Span(rows, None)
    q, r = torch.linalg.qr(rows.T)
    return Span(r.T.contiguous(), q.T.contiguous())
