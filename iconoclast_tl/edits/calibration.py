"""Calibration: strengths scaled, layer by layer, by how widely the target prompts spread along the direction.

With p the projections vᵀ(r − μ_neutral) of the target prompts' residuals r after a layer, the factor of its strength is

    f = clamp( quantile_q(p) / mean(p), 1/2, 2 ),    1 where mean(p) ≤ 0

A strength is a share: λ takes λ·mean(p) from the average target prompt, however far others lie from it. Where all of
them hold the same amount, f is 1 whatever q. Where they differ, f times the strength takes from the average prompt
what the one at the q-th quantile holds: with q above the middle, layers where some prompts hold much more than others
are edited harder than layers where none does. A profile, which knows layers by their number only, cannot tell the two
apart. The clamp keeps a layer with a mean near zero from getting any strength whatever; a mean that is not positive
says that v is no direction of the target there, and nothing follows from its quantiles.
"""

from __future__ import annotations

from typing import Final

import torch
from jaxtyping import Float
from torch import Tensor

LEAST: Final = 0.5
MOST: Final = 2.0
"""Between which a factor lies."""


def projections(
    directions: Float[Tensor, "k layer d_model"],
    target: Float[Tensor, "n layer d_model"],
    neutral_mean: Float[Tensor, "layer d_model"],
) -> Float[Tensor, "n k layer"]:
    """p = vᵀ(r − μ_neutral) of every target prompt, in float64."""
    centred = (
        (target[:, layer].double() - neutral_mean[layer].double()) @ directions[:, layer].double().T
        for layer in range(target.shape[1])
    )  # layer by layer: a float64 copy of all residuals would take twice their memory
    return torch.stack(list(centred), dim=-1)


def calibration_factors(found: Float[Tensor, "n k layer"], share: float) -> Float[Tensor, "k layer"]:
    """The factors above, with quantiles interpolated linearly; `share` is q, between 0 and 1."""
    mean, quantile = found.mean(0), found.quantile(share, dim=0)
    measured = mean > 0
    ratio = quantile / torch.where(measured, mean, torch.ones_like(mean))
    return torch.where(measured, ratio.clamp(LEAST, MOST), torch.ones_like(mean))
