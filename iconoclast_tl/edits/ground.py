"""What an edit stands on beside directions and strengths: what was measured of the model, and which parts are meant."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Float
from torch import Tensor

from iconoclast_tl.activations.store import Activations
from iconoclast_tl.architecture.hook_points import HookedModule
from iconoclast_tl.architecture.parts import expert_factors, head_factors, neuron_factors
from iconoclast_tl.architecture.reading import read_along, sum_parts
from iconoclast_tl.architecture.sites import Component, Site
from iconoclast_tl.edits.calibration import calibration_factors, projections
from iconoclast_tl.edits.config import EditConfig
from iconoclast_tl.foundation.errors import UserError
from iconoclast_tl.models.model import Model


@dataclass(frozen=True, kw_only=True)
class Ground:
    """Everything is optional: a plain edit of whole sites needs nothing, an affine one the neutral means."""

    neutral_writes: Mapping[Component, Float[Tensor, "layer d_model"]] = field(default_factory=dict)
    """Mean over neutral prompts of what each component writes."""
    neutral_reads: Mapping[Component, Float[Tensor, "layer d_in"]] = field(default_factory=dict)
    """The same of what its linears read, where they are linears."""
    gains: Mapping[Component, Float[Tensor, "layer d_model"]] = field(default_factory=dict)
    """γ of the model's post-norms (`architecture.post_norm`)."""
    experts: Float[Tensor, "layer expert"] | None = None
    """Factors of the strengths at routed experts."""
    parts: Mapping[Component, Float[Tensor, "layer part"]] = field(default_factory=dict)
    """Which heads and neurons are meant: 1 for those, 0 for all others. Components without an entry are meant whole."""
    sites: Mapping[Site, HookedModule] = field(default_factory=dict)
    """Where the linears are: of affine edits of parts, which read the weights."""
    target_residuals: Float[Tensor, "n point d_model"] | None = None
    """Of the target train prompts, at all residual points: of calibrated strengths."""
    neutral_residual: Float[Tensor, "point d_model"] | None = None
    """Mean over the neutral ones."""

    def centres(
        self, component: Component, vectors: Float[Tensor, "k layer d_model"], n_parts: int | None = None
    ) -> Float[Tensor, "k layer *part"]:
        """c = vᵀ(neutral mean of what the component writes), float32; of each part by itself where it has parts.

        n_parts: how many parts have strengths of their own; by default as many as `parts` tells apart, if any.
        A part p of a linear writes W_p x_p and its share of the bias: c_p = vᵀ(W_p x̄_p + b / P), and Σ_p c_p = c.
        Raises `UserError` where the means were not measured.
        """
        if n_parts is None and component in self.parts:
            n_parts = self.parts[component].shape[1]
        means = self.neutral_writes if n_parts is None else self.neutral_reads
        if component not in means:
            raise UserError(
                f"an affine edit needs the neutral mean of {component}",
                want="activations with it",
                mend="use --scope writers, or edit.affine=false",
            )
        if n_parts is None:
            return torch.einsum("kld,ld->kl", vectors.double(), means[component].double()).float()
        found = []
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


def ground_of(model: Model, config: EditConfig, acts: Activations | None = None, position: int = -1) -> Ground:
    """The ground of a model's edits: its gains and sites, the parts that `config` names, and what `acts` measured.

    position: where directions come from; calibrated strengths go by the residuals there. Raises `UserError` for parts
    that the model does not have, and for activations of another model.
    """
    ground = replace(named_parts(model, config), gains=model.gains, sites=model.sites)
    if acts is None:
        return ground
    require_same_model(acts, model)
    ground = replace(ground, neutral_writes=acts.neutral_means, neutral_reads=acts.neutral_reads)
    if config.calibrate is None:
        return ground
    # Point by point: a float64 copy of all residuals would take twice their memory.
    residuals = acts.at_or_last(position)
    neutral = torch.stack([rows.double().mean(0) for rows in residuals.neutral_train.unbind(1)])
    return replace(ground, target_residuals=residuals.target_train, neutral_residual=neutral)


def named_parts(model: Model, config: EditConfig) -> Ground:
    """A ground of the experts, heads and neurons that `config` names alone; `UserError` for one that is not there."""
    parts: dict[Component, Tensor] = {}
    if config.heads is not None:
        parts["attn_out"] = head_factors(config.heads, model.hf)
    if config.neurons is not None:
        parts["mlp_out"] = neuron_factors(config.neurons, model.hf)
    return Ground(
        experts=None if config.experts is None else expert_factors(config.experts, model.hf),
        parts=parts,
    )


def require_same_model(acts: Activations, model: Model) -> None:
    """Raise `UserError` where activations were collected from a model of another shape or of other weights."""
    shape = acts.n_points - 1, int(acts.target_train.shape[-1])
    if shape != (model.n_layers, model.d_model):
        raise UserError(
            "the activations are of another model",
            got=f"{shape[0]} layers, d_model {shape[1]}",
            want=f"{model.n_layers} layers, d_model {model.d_model}",
            mend="collect them from this model",
        )
    if acts.fingerprint not in (None, model.fingerprint):
        raise UserError(
            "the activations were collected from other weights",
            got=f"weights {str(acts.fingerprint)[:12]}",
            want=f"weights {model.fingerprint[:12]}",
            mend="collect them from this model",
        )
