"""What an edit stands on beside directions and strengths: what was measured of the model, and which parts are meant."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from iconoclast_tl.edits.calibration import calibration_factors, projections
from iconoclast_tl.foundation.errors import UserError
from iconoclast_tl.models.hook_points import HookedModule
from iconoclast_tl.models.reading import read_along, sum_parts
from iconoclast_tl.models.sites import Component, Site


@dataclass(frozen=True)
class Ground:
    """Everything is optional: a plain edit of whole sites needs nothing, an affine one the neutral means."""

    neutral_writes: Mapping[Component, Float[Tensor, "layer d_model"]] = field(default_factory=dict)
    """Mean over neutral prompts of what each component writes."""
    neutral_reads: Mapping[Component, Float[Tensor, "layer d_in"]] = field(default_factory=dict)
    """The same of what its linears read, where they are linears."""
    gains: Mapping[Component, Float[Tensor, "layer d_model"]] = field(default_factory=dict)
    """γ of the model's post-norms (`models.post_norm`)."""
    experts: Float[Tensor, "layer expert"] | None = None
    """Factors of the strengths at routed experts."""
    parts: Mapping[Component, Float[Tensor, "layer part"]] = field(default_factory=dict)
    """Factors of the strengths at heads and neurons."""
    sites: Mapping[Site, HookedModule] = field(default_factory=dict)
    """Where the linears are: of affine edits of parts, which read the weights."""
    target_residuals: Float[Tensor, "n point d_model"] | None = None
    """Of the target train prompts, at all residual points: of calibrated strengths."""
    neutral_residual: Float[Tensor, "point d_model"] | None = None
    """Mean over the neutral ones."""

    def centres(
        self, component: Component, vectors: Float[Tensor, "k layer d_model"]
    ) -> Float[Tensor, "k layer *part"]:
        """c = vᵀ(neutral mean of what the component writes), float32; of each part by itself where it has parts.

        A part p of a linear writes W_p x_p and its share of the bias: c_p = vᵀ(W_p x̄_p + b / P), and Σ_p c_p = c.
        Raises `UserError` where the means were not measured.
        """
        means = self.neutral_writes if component not in self.parts else self.neutral_reads
        if component not in means:
            raise UserError(
                f"an affine edit needs the neutral mean of {component}",
                want="activations with it",
                mend="use --scope writers, or edit.affine=false",
            )
        if component not in self.parts:
            return torch.einsum("kld,ld->kl", vectors.double(), means[component].double()).float()
        n_parts, found = self.parts[component].shape[1], []
        for layer, mean in enumerate(means[component]):
            read = read_along(self.sites[Site(layer, component)].module, vectors[:, layer])
            columns = read.weight.double() * mean.to(read.weight.device).double()
            of_bias = read.bias.double()[:, None] / n_parts
            found.append((sum_parts(columns, n_parts) + of_bias).float().cpu())
        return torch.stack(found, dim=1)

    def factors(
        self, component: Component, vectors: Float[Tensor, "k layer d_model"], share: float
    ) -> Float[Tensor, "k layer"]:
        """Calibration of a component's strengths (`edits.calibration`), float32.

        Measured at the residual point that a component leads to: point l itself for the stream that enters layer l,
        l+1, the stream after the layer, for what its writers write. Raises `UserError` where nothing was measured.
        """
        if self.target_residuals is None or self.neutral_residual is None:
            raise UserError(
                "calibrated strengths need residuals of the target prompts",
                got=f"edit.calibrate {share:g} and none",
                mend="pass activations, or leave edit.calibrate unset",
            )
        points = slice(None, -1) if component == "resid_pre" else slice(1, None)
        found = projections(vectors, self.target_residuals[:, points], self.neutral_residual[points])
        return calibration_factors(found, share).float()
