"""What a linear reads along directions, Vᵀ before it: V W and V b, and its columns part by part (heads, neurons)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from iconoclast_tl.architecture.offloading import present
from iconoclast_tl.architecture.writers import dense_weight


@dataclass(frozen=True)
class Read:
    """V (W x + b) = weight · x + bias; float32, or float64 for float64 weights."""

    weight: Float[Tensor, "k d_in"]
    bias: Float[Tensor, "k"]


def read_along(module: nn.Module, vectors: Float[Tensor, "k d_model"]) -> Read:
    """V W and V b of a linear, where it computes.

    Quantised weights are never read: V W is the gradient of V (W x) in x, which one backward pass through the linear
    itself gives.
    """
    with present(module):
        weight = getattr(module, "weight", None)
        quantised = not (isinstance(weight, Tensor) and weight.is_floating_point())
    return _through_it(module, vectors) if quantised else _of_weights(module, vectors)


def _of_weights(module: nn.Module, vectors: Tensor) -> Read:
    weight, bias = dense_weight(module)
    wide = widened(weight.detach())
    v = vectors.to(wide)
    return Read(v @ wide, v.new_zeros(len(v)) if bias is None else v @ bias.detach().to(v))


def _through_it(module: nn.Module, vectors: Tensor) -> Read:
    device = next(module.parameters()).device
    x = torch.zeros(len(vectors), cast(int, module.in_features), device=device, requires_grad=True)
    with torch.enable_grad():
        written = module.forward(x)  # not module(…): hooks may be on
    (weight,) = torch.autograd.grad(written, x, vectors.to(written))
    return Read(weight.float(), (written.detach().float() * vectors.to(device).float()).sum(-1))


def of_columns(factors: Float[Tensor, "*batch part"], d_in: int) -> Float[Tensor, "*batch d_in"]:
    """The factor of every column of W: parts are equal blocks of them, in order."""
    width = max(d_in // factors.shape[-1], 1)  # narrower layers than the widest have fewer parts
    return factors.repeat_interleave(width, dim=-1)[..., :d_in]


def sum_parts(columns: Float[Tensor, "*batch d_in"], n_parts: int) -> Float[Tensor, "*batch part"]:
    """Sums over the columns of every part."""
    width = max(columns.shape[-1] // n_parts, 1)
    missing = columns.new_zeros(*columns.shape[:-1], n_parts * width - columns.shape[-1])
    filled = torch.cat([columns, missing], dim=-1)
    return filled.reshape(*columns.shape[:-1], n_parts, width).sum(-1)


def widened(tensor: Tensor) -> Tensor:
    """In float32 at least."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
