"""Directions that tell the sets apart best by a linear rule: Σ⁻¹Δμ, with Σ shrunk or by LEACE."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from iconoclast_tl.directions.config import DirectionConfig
from iconoclast_tl.directions.estimators.sample import Estimate, Fact, Sample, one, towards


def lda(sample: Sample, config: DirectionConfig) -> Estimate:
    """Σ⁻¹(μ_B − μ_G) with the pooled within-class covariance shrunk: Σ = (1−γ) S + γ (tr S / d_model) I.

    γ by Ledoit and Wolf's formula (J. Multivariate Analysis 88, 2004): without it Σ is singular wherever there are
    fewer prompts than d_model. Fisher's discriminant, in which directions of large common variance count little. Where
    nothing varies within the classes Σ is 0, and Δμ is what is left.
    """
    centred = torch.cat([sample.target - sample.target.mean(0), sample.neutral - sample.neutral.mean(0)])
    found = _shrunk(centred, sample)
    if found is None:
        return one(sample.gap, shrinkage=1.0, singular="nothing varies within target or neutral prompts")
    covariance, facts = found
    return one(torch.linalg.solve(covariance, sample.gap), **facts)


def _shrunk(centred: Float[Tensor, "n d"], sample: Sample) -> tuple[Float[Tensor, "d d"], dict[str, Fact]] | None:
    """(1−γ) S + γ (tr S / d_model) I, and what to say of it; None where nothing varies."""
    n = len(centred)
    gamma = ledoit_wolf(centred, sample.width)
    scatter = centred.T @ centred / n
    mean_variance = float(scatter.diagonal().sum()) / sample.width
    if mean_variance <= 1e-24 * sample.size**2:
        return None
    eye = torch.eye(len(scatter), dtype=scatter.dtype)
    facts: dict[str, Fact] = {"shrinkage": gamma}
    if n - 2 < sample.width:
        facts["singular"] = f"{n} prompts for d_model {sample.width}"
    return (1 - gamma) * scatter + gamma * mean_variance * eye, facts


def ledoit_wolf(centred: Float[Tensor, "n d"], width: int) -> float:
    """γ of rows whose mean is 0, given as coordinates of a space of `width` dimensions.

    γ = min(β, δ) / δ with δ = ‖S − μI‖² / p, β = (Σ_i ‖x_i‖⁴ / n − ‖S‖²) / (n p), μ = tr S / p, p = `width`.
    """
    n = len(centred)
    squares = centred.square().sum(1)
    gram = centred @ centred.T if n < centred.shape[1] else centred.T @ centred
    of_s = float(gram.square().sum()) / n**2  # ‖S‖², the same of rows and of columns
    mu = float(squares.sum()) / n / width
    delta = (of_s - width * mu**2) / width
    beta = min((float(squares.square().sum()) / n - of_s) / (n * width), delta)
    return 1.0 if delta <= 0 else max(beta, 0.0) / delta


def leace(sample: Sample, config: DirectionConfig) -> Estimate:
    """What LEACE reads: a of its eraser x − u aᵀ(x − μ), the only direction by which a linear rule tells the classes.

    Belrose et al. 2306.03819, by their package concept-erasure. a ∝ Σ⁻¹Δμ with Σ over *all* rows, shrunk as for `lda`
    (the package's own shrinkage takes the span of the rows for the whole space); u ∝ Δμ is what `mean` gives. Taking
    out a by an orthogonal projection, as edits do, is not LEACE's oblique one, whose guarantee it does not have; that
    of `mean` has it on the train prompts.
    """
    from concept_erasure import LeaceFitter

    rows = sample.rows
    found = _shrunk(rows - rows.mean(0), sample)
    if found is None:
        return one(sample.gap, shrinkage=1.0, singular="nothing varies")
    covariance, facts = found
    labels = torch.cat([torch.ones(len(sample.target)), torch.zeros(len(sample.neutral))]).double()
    # Only the read direction is wanted: what keeps the variance from growing mixes it with others.
    fitter = LeaceFitter.fit(rows, labels, constrain_cov_trace=False, shrinkage=False)
    fitter.sigma_xx_ = covariance * (len(rows) - 1)
    return one(towards(fitter.eraser.proj_right[0], sample.gap), **facts)
