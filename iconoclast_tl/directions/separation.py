"""How well a direction separates held-out target prompts from neutral ones."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def projections(
    rows: Float[Tensor, "n point d_model"], directions: Float[Tensor, "point d_model"]
) -> Float[Tensor, "n point"]:
    """vᵀ r at every point, float64; point by point, so that the rows are never copied whole."""
    along = [rows[:, point].double() @ vector.double() for point, vector in enumerate(directions)]
    return torch.stack(along, dim=1)


def d_prime(target: Float[Tensor, "n *batch"], neutral: Float[Tensor, "m *batch"]) -> Float[Tensor, "*batch"]:
    """(mean b − mean g) / sqrt((var b + var g) / 2) of projections; 0 where nothing varies.

    Green and Swets, Signal Detection Theory and Psychophysics, 1966.
    """
    # One prompt has no variance of its own; its side then counts as having none.
    b, g = (rows.var(0, correction=min(1, len(rows) - 1)) for rows in (target, neutral))
    spread = ((b + g) / 2).sqrt()
    gap = target.mean(0) - neutral.mean(0)
    return torch.where(spread > 0, gap / spread.clamp(min=1e-300), torch.zeros_like(gap))


def auroc(target: Float[Tensor, "n"], neutral: Float[Tensor, "m"]) -> float:
    """The share of (target, neutral) pairs in which the target's score is higher; ties count half."""
    from scipy.stats import mannwhitneyu

    above = mannwhitneyu(target.double().cpu().numpy(), neutral.double().cpu().numpy()).statistic
    return float(above) / (len(target) * len(neutral))


def separation(
    directions: Float[Tensor, "point d_model"],
    target: Float[Tensor, "n point d_model"],
    neutral: Float[Tensor, "m point d_model"],
) -> Float[Tensor, "point"]:
    """d′ per point of prompts that did not estimate v; 0 where there is no direction."""
    return d_prime(projections(target, directions), projections(neutral, directions))
