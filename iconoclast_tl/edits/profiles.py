"""Profiles: rules that give λ for all layers of a component from few numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class Kernel:
    """Heretic's kernel: a peak that falls off linearly to a floor and is cut at a distance.

    λ(l) = max + (|l−p| / D)(min − max) for |l−p| ≤ D, else 0.
    """

    max_weight: float
    max_weight_position: float
    """p, in layers; may lie between two."""
    min_weight: float
    min_weight_distance: float
    """D, in layers, greater than 0."""

    def strengths(self, n_layers: int) -> Float[Tensor, "layer"]:
        """λ of every layer."""
        numbers = (self.max_weight, self.max_weight_position, self.min_weight, self.min_weight_distance)
        return kernel_strengths(torch.tensor(numbers, dtype=torch.float64), n_layers).float()


def kernel_strengths(numbers: Float[Tensor, "*component 4"], n_layers: int) -> Float[Tensor, "*component layer"]:
    """λ of every layer from (max, p, min, D); differentiable but where a layer enters or leaves the reach."""
    peak, position, floor, reach = numbers[..., None].unbind(-2)
    distance = (torch.arange(n_layers, dtype=numbers.dtype, device=numbers.device) - position).abs()
    values = peak + distance / reach * (floor - peak)
    return torch.where(distance <= reach, values, torch.zeros_like(values))


def uniform(strength: float, layers: Sequence[int], n_layers: int) -> Float[Tensor, "layer"]:
    """λ = strength in `layers`, 0 elsewhere."""
    values = torch.zeros(n_layers)
    values[list(layers)] = strength
    return values
