"""Differences between target residuals B and neutral residuals G, each an *unnormalised* vector in float64."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from iconoclast_tl.directions.config import DirectionConfig
from iconoclast_tl.directions.estimators.sample import Estimate, Sample, one

Residuals = Float[Tensor, "n d_model"]
Vector = Float[Tensor, "d_model"]


def mean_difference(target: Float[Tensor, "n d_model"], neutral: Float[Tensor, "m d_model"]) -> Vector:
    """μ_B − μ_G, the difference of means (Arditi et al. 2406.11717; Belrose, 'Diff-in-means is worst-case optimal')."""
    return target.double().mean(0) - neutral.double().mean(0)


def median_difference(target: Float[Tensor, "n d_model"], neutral: Float[Tensor, "m d_model"]) -> Vector:
    """Difference of the coordinate-wise medians: bounded influence of single prompts, but depends on the basis."""
    return _median(target.double()) - _median(neutral.double())


def geometric_median_difference(target: Float[Tensor, "n d_model"], neutral: Float[Tensor, "m d_model"]) -> Vector:
    """Difference of the geometric medians: bounded influence whatever the basis."""
    return geometric_median(target) - geometric_median(neutral)


def variance_scaled_difference(target: Float[Tensor, "n d_model"], neutral: Float[Tensor, "m d_model"]) -> Vector:
    """(μ_B − μ_G) / sqrt(pooled variance + ε) per coordinate, ε = 1e-6 of the mean pooled variance.

    Weighs down coordinates that vary whatever the prompt. With pooled variance (Σ_B n + Σ_G m) / (n + m).
    """
    b, g = target.double(), neutral.double()
    n, m = len(b), len(g)
    pooled = (b.var(0, correction=0) * n + g.var(0, correction=0) * m) / (n + m)
    # relative, so that the unit of the activations does not matter
    epsilon = 1e-6 * pooled.mean() + 1e-30
    return mean_difference(b, g) * (pooled + epsilon).rsqrt()


def hybrid_difference(target: Float[Tensor, "n d_model"], neutral: Float[Tensor, "m d_model"], weight: float) -> Vector:
    """(1−a)·mean + a·variance with both normalised first, a = `weight`: their lengths are in different units."""
    plain, scaled = mean_difference(target, neutral), variance_scaled_difference(target, neutral)
    tiny = 1e-300
    mixed: Tensor = (1 - weight) * plain / (plain.norm() + tiny) + weight * scaled / (scaled.norm() + tiny)
    return mixed


def hybrid(sample: Sample, config: DirectionConfig) -> Estimate:
    """`hybrid_difference` with the weight of the settings."""
    return one(hybrid_difference(sample.target, sample.neutral, config.hybrid_weight))


def _median(rows: Residuals) -> Vector:
    """By sorting: torch.quantile refuses the size of a large model's residuals, torch.median takes the lower of two."""
    ordered = rows.sort(dim=0).values
    n = len(rows)
    return (ordered[(n - 1) // 2] + ordered[n // 2]) / 2


def geometric_median(rows: Residuals, iterations: int = 200, tolerance: float = 1e-10) -> Vector:
    """argmin_x Σ‖x − row‖ by Weiszfeld's iteration with Vardi and Zhang's step off a data point (PNAS 97(4), 2000)."""
    rows = rows.double()
    x: Tensor = rows.mean(0)
    scale = (rows - x).norm(dim=1).mean() + 1e-300
    for _ in range(iterations):
        distances = (rows - x).norm(dim=1)
        away = distances > 1e-12 * scale
        if not bool(away.any()):
            return x
        weights = 1 / distances[away]
        step: Tensor = (rows[away] * weights[:, None]).sum(0) / weights.sum()
        here = len(rows) - int(away.sum())
        if here:
            pull = ((rows[away] - x) * weights[:, None]).sum(0).norm()
            keep = min(1.0, here / float(pull)) if float(pull) > 0 else 1.0
            step = (1 - keep) * step + keep * x
        if float((step - x).norm()) <= tolerance * float(scale):
            return step
        x = step
    return x
