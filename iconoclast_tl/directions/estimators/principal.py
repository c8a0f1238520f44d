"""Directions of largest variance: of paired differences, and of target residuals against neutral ones."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from iconoclast_tl.directions.config import DirectionConfig
from iconoclast_tl.directions.estimators.sample import Estimate, Sample, Unsuited, one, towards


def paired_differences(sample: Sample) -> Float[Tensor, "pairs d"]:
    """b_i − g_i, prompts paired in their order, as many as the smaller set has."""
    pairs = min(len(sample.target), len(sample.neutral))
    return sample.target[:pairs] - sample.neutral[:pairs]


def pca(sample: Sample, config: DirectionConfig) -> Estimate:
    """argmax_v Σ_i (vᵀd_i)², ‖v‖ = 1, over the paired differences d_i = b_i − g_i: their uncentred principal axis.

    What two prompts of a pair have in common cancels. (Zou et al. 2310.01405, where pairs have random signs.)
    """
    return _first_axis(paired_differences(sample), sample)


def pca_centred(sample: Sample, config: DirectionConfig) -> Estimate:
    """The same of d_i − d̄: along what the differences *vary* most, whatever their mean is."""
    differences = paired_differences(sample)
    return _first_axis(differences - differences.mean(0), sample)


def contrastive_pca(sample: Sample, config: DirectionConfig) -> Estimate | Unsuited:
    """Top eigenvectors of Σ_B − α Σ_G, at most `components`, weighted by their eigenvalues over the largest.

    Covariances by n; along these, target prompts vary more than neutral ones do (Abid et al., Nature Communications 9,
    2018). Only positive eigenvalues count: where there is none, the fallback is asked.
    """
    spread = _covariance(sample.target) - config.contrast * _covariance(sample.neutral)
    values, vectors = torch.linalg.eigh(spread)
    # 1e-9: of a covariance of such rows, what is below is rounding.
    least = 1e-9 * float(_covariance(sample.rows).diagonal().sum())
    found = [place for place in reversed(range(len(values))) if float(values[place]) > least][: config.components]
    if not found:
        reason = f"target prompts vary less than {config.contrast:g} times neutral ones in every direction"
        return Unsuited(reason)
    kept = values[found]
    return Estimate(towards(vectors[:, found].T, sample.gap), kept / kept[0], {"eigenvalue": float(kept[0])})


def _first_axis(rows: Float[Tensor, "pairs d"], sample: Sample) -> Estimate:
    _, values, axes = torch.linalg.svd(rows, full_matrices=False)
    share = float(values[0].square() / values.square().sum().clamp(min=1e-300))
    return one(towards(axes[0] * values[0], sample.gap), variance_share=share)


def _covariance(rows: Float[Tensor, "n d"]) -> Float[Tensor, "d d"]:
    centred = rows - rows.mean(0)
    covariance: Tensor = centred.T @ centred / len(rows)
    return covariance
