"""The final norm as what it is with its scale held fixed: a linear map of the stream, N(x) = γ ∘ (x − x̄) · r + β.

With r taken from the stream that is there, what each part adds to the stream becomes what it adds to a logit (logit
lens; direct logit attribution). x̄ is the mean of a LayerNorm, and 0 for an RMSNorm.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from iconoclast_tl.architecture.layers import decoder_layer_list
from iconoclast_tl.architecture.names import child, misnamed, names_of
from iconoclast_tl.architecture.offloading import device_of
from iconoclast_tl.foundation.errors import UserError

_NAMES: Final = ("norm", "ln_f", "final_layernorm", "final_layer_norm", "norm_f", "layer_norm")


@dataclass(frozen=True)
class LinearNorm:
    """γ, β and whether the mean is taken away."""

    gain: Float[Tensor, "d_model"]
    shift: Float[Tensor, "d_model"]
    centres: bool

    def read(self, vector: Float[Tensor, "d_model"]) -> Float[Tensor, "d_model"]:
        """w with wᵀx · r = vᵀ(N(x) − β): how a direction after the norm is read off the stream before it."""
        w = self.gain.to(vector) * vector
        return w - w.mean() if self.centres else w

    def scale(self, before: Float[Tensor, "*batch d_model"], after: Float[Tensor, "*batch d_model"]) -> Tensor:
        """r of every row, from what the norm made of it (least squares)."""
        centred = before - before.mean(-1, keepdim=True) if self.centres else before
        linear = self.gain.to(before) * centred
        return ((after - self.shift.to(after)) * linear).sum(-1) / linear.square().sum(-1)


def final_norm(hf: Any) -> nn.Module:
    """The module; `UserError` where an architecture has none that is known."""
    if registered := names_of(hf).final_norm:
        norm = child(hf, registered)
        if norm is None:
            raise misnamed(hf, "the model", "final norm", (registered,), hf)
        return norm
    path = decoder_layer_list(hf)[0].rpartition(".")[0]
    decoder = hf.get_submodule(path)
    for name in _NAMES:
        if isinstance(found := getattr(decoder, name, None), nn.Module):
            return found
    raise UserError(
        f"the final norm of {type(hf).__name__} is not found",
        got=", ".join(name for name, _ in decoder.named_children()),
        want=f"one of {', '.join(_NAMES)}",
        mend="use another score, such as projection",
    )


@torch.no_grad()
def linear_norm(norm: nn.Module, width: int) -> LinearNorm:
    """γ (up to a positive factor, which r takes in), β and centring, read off what the norm makes of three vectors."""
    device = device_of(norm)
    dtype = next((p.dtype for p in norm.parameters()), torch.float32)
    signs = torch.ones(width, device=device, dtype=dtype)
    signs[1::2] = -1  # of mean 0, or nearly
    zeros, ones = torch.zeros_like(signs), torch.ones_like(signs)
    shift, gained, flat = (norm(x[None])[0].float().cpu() for x in (zeros, signs - signs.mean(), ones))
    gain = (gained - shift) / (signs - signs.mean()).float().cpu()
    # A LayerNorm makes nothing of a constant but rounding.
    centres = float((flat - shift).abs().max()) < 1e-2 * float(gain.abs().max())
    return LinearNorm(gain, shift, centres)
