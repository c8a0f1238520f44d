"""What an edit means, one vector and one layer at a time, and weights edited by the formulas of the literature."""

from __future__ import annotations

import torch
from torch import Tensor


def edited_write(y: Tensor, directions: Tensor, strengths: Tensor, centres: Tensor) -> Tensor:
    """Every position of y by itself: subtract λ_k (v_k·y − c_k) v_k for each k."""
    result = y.clone()
    for index in range(y.numel() // y.shape[-1]):
        row = y.reshape(-1, y.shape[-1])[index]
        change = torch.zeros_like(row)
        for v, strength, centre in zip(directions, strengths, centres, strict=True):
            change = change + strength * ((v * row).sum() - centre) * v
        result.view(-1, y.shape[-1])[index] = row - change
    return result


def steered_write(
    y: Tensor, directions: Tensor, strengths: Tensor, centres: Tensor, keep_norm: bool, shift: Tensor
) -> Tensor:
    """The same, then every position scaled to the length it had, then the constant added."""
    result = edited_write(y, directions, strengths, centres)
    for before, after in zip(y.reshape(-1, y.shape[-1]), result.view(-1, y.shape[-1]), strict=True):
        if keep_norm and float(after.norm()) > 0:
            after *= float(before.norm()) / float(after.norm())
        after += shift
    return result


def edited_weight(weight: Tensor, v: Tensor, strength: float, row_normalization: str) -> Tensor:
    """W' for one direction, untruncated: Heretic's three row normalisations by their definitions, in float64."""
    w, v = weight.double(), v.double()
    norms = torch.tensor([float(row.norm()) for row in w], dtype=torch.float64)[:, None]
    if row_normalization == "none":
        return w - strength * torch.outer(v, v @ w)
    unit = w / norms
    edited = unit - strength * torch.outer(v, v @ unit)
    if row_normalization == "pre":
        return edited * norms
    lengths = torch.tensor([float(row.norm()) for row in edited], dtype=torch.float64)[:, None]
    return edited / lengths * norms


def best_of_rank(delta: Tensor, rank: int) -> Tensor:
    """The closest matrix of that rank (Eckart and Young)."""
    u, s, vh = torch.linalg.svd(delta)
    return sum(s[i] * torch.outer(u[:, i], vh[i]) for i in range(rank))
