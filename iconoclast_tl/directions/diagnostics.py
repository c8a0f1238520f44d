"""What there is to know of directions before a model is edited by them: norms, separation, agreement, stability."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from iconoclast_tl.directions.config import DirectionConfig
from iconoclast_tl.directions.directions import Directions
from iconoclast_tl.directions.estimate import estimate_all, stability
from iconoclast_tl.directions.estimators.principal import paired_differences
from iconoclast_tl.directions.estimators.sample import Fact, Sample
from iconoclast_tl.directions.separation import auroc, d_prime, projections
from iconoclast_tl.directions.span import span_of
from iconoclast_tl.foundation.progress import Track, silent

RESAMPLES = 1000
"""Of the val prompts, for intervals."""

Interval = tuple[float, float, float]
"""Value, and the ends of its 95% interval."""


@dataclass(frozen=True, kw_only=True)
class PointDiagnostics:
    """One residual point; the direction is the main one."""

    point: int
    hook: str
    """TransformerLens' name of the point."""
    defined: bool
    """Whether there is a direction."""
    n_directions: int
    difference_norm: float
    """‖μ_B − μ_G‖ of the train prompts."""
    neutral_norm: float
    """‖μ_G‖."""
    separation: Interval
    """d′ on val prompts."""
    auroc: Interval
    """Share of val pairs in order along the direction."""
    cosine_previous: float | None
    """With the direction of the point before."""
    silhouette: float
    """Mean silhouette of the train prompts as two clusters, target and neutral (Rousseeuw 1987)."""
    pair_agreement: float
    """Mean cosine between two of the paired differences b_i − g_i: 1 where every pair differs in the same direction."""
    stability: float | None
    """Mean |cosine| with the directions of bootstrap resamples; None where none were asked for."""
    cosines: Mapping[str, float]
    """With the directions of other estimators."""
    facts: Mapping[str, Fact]
    """What the estimator itself said: a probe's accuracy, a silhouette of clusters, a shrinkage."""


@dataclass(frozen=True, kw_only=True)
class Diagnostics:
    """Of every residual point, and how the estimators agree at the best one."""

    estimator: str
    best: int
    points: tuple[PointDiagnostics, ...]
    between_points: Float[Tensor, "point point"]
    """Cosines of the directions of every two points."""
    between_estimators: tuple[tuple[str, ...], Float[Tensor, "estimator estimator"]]
    """Names and cosines at the best point, the chosen estimator first."""
    along_best: Mapping[str, Float[Tensor, "n"]]
    """Projections of the val prompts of each side on the best point's direction."""

    def to_json(self) -> dict[str, Any]:
        """As `directions --json` prints it."""
        names, cosines = self.between_estimators
        return {
            "estimator": self.estimator,
            "best": self.best,
            "points": [asdict(point) for point in self.points],
            "between_points": self.between_points.tolist(),
            "between_estimators": {"names": list(names), "cosines": cosines.tolist()},
        }


@dataclass(frozen=True)
class Sides:
    """Residuals of the prompts that estimate, and of those that do not."""

    target_train: Float[Tensor, "n point d_model"]
    neutral_train: Float[Tensor, "m point d_model"]
    target_val: Float[Tensor, "k point d_model"]
    neutral_val: Float[Tensor, "l point d_model"]


def diagnose(
    directions: Directions,
    sides: Sides,
    config: DirectionConfig,
    shown: Bool[Tensor, "rows"] | None = None,
    track: Track = silent,
) -> Diagnostics:
    """Everything that is known without asking the model. shown: as for `estimate_directions`."""
    target, neutral = sides.target_train, sides.neutral_train
    others = _others(config, target, neutral, shown, track)
    steady = stability(target, neutral, config, shown, track=track) if config.resamples else None
    main, best = directions.main.double(), directions.best
    facts = directions.provenance.get("facts") or [{}] * len(main)
    along = {"target": projections(sides.target_val, main), "neutral": projections(sides.neutral_val, main)}
    points = []
    for point in track(range(len(main)), "diagnostics", len(main)):
        b, g = (rows[:, point].double().mean(0) for rows in (target, neutral))
        sample = _reduced(target[:, point], neutral[:, point])
        apart, auc = separation_intervals(along["target"][:, point], along["neutral"][:, point])
        points.append(
            PointDiagnostics(
                point=point,
                hook=_hook(point, directions.n_layers),
                defined=bool(main[point].any()),
                n_directions=int(directions.vectors[:, point].any(-1).sum()),
                difference_norm=float((b - g).norm()),
                neutral_norm=float(g.norm()),
                separation=apart,
                auroc=auc,
                cosine_previous=float(main[point] @ main[point - 1]) if point else None,
                silhouette=silhouette(sample),
                pair_agreement=pair_agreement(sample),
                stability=None if steady is None else float(steady[point]),
                cosines={name: float(main[point] @ other[point]) for name, other in others.items()},
                facts=facts[point],
            )
        )
    names = (config.estimator, *others)
    there = torch.stack([main[best], *(other[best] for other in others.values())])
    best_along = {side: values[:, best] for side, values in along.items()}
    return Diagnostics(
        estimator=config.estimator,
        best=best,
        points=tuple(points),
        between_points=main @ main.T,
        between_estimators=(names, there @ there.T),
        along_best=best_along,
    )


def separation_intervals(target: Float[Tensor, "n"], neutral: Float[Tensor, "m"]) -> tuple[Interval, Interval]:
    """d′ and AUROC of projections, with 95% percentile intervals over resampled prompts."""
    generator = torch.Generator().manual_seed(0)
    b, g = (
        values[torch.randint(len(values), (len(values), RESAMPLES), generator=generator)]
        for values in (target, neutral)
    )
    ends = torch.tensor([0.025, 0.975], dtype=torch.float64)
    low, high = d_prime(b, g).quantile(ends).tolist()
    # Of two sorted columns, the pairs in order: for every target the neutrals below it, ties half.
    ordered = g.sort(0).values.T.contiguous()
    below, up_to = (torch.searchsorted(ordered, b.T.contiguous(), right=right).double() for right in (False, True))
    shares = ((below + up_to) / 2).mean(1) / len(neutral)
    under, over = shares.quantile(ends).tolist()
    return (float(d_prime(target, neutral)), low, high), (auroc(target, neutral), under, over)


def pair_agreement(sample: Sample) -> float:
    """Σ_{i≠j} cos(d_i, d_j) / (m (m − 1)) = (‖Σ d_i/‖d_i‖‖² − m) / (m (m − 1)); 0 for a single pair."""
    differences = paired_differences(sample)
    lengths = differences.norm(dim=1, keepdim=True)
    units = differences / lengths.clamp(min=1e-300)
    m = len(units)
    return float((units.sum(0).square().sum() - (lengths > 0).sum()) / (m * (m - 1))) if m > 1 else 0.0


def silhouette(sample: Sample) -> float:
    """Mean silhouette of target and neutral rows as two clusters; 0 where a side has one prompt, or nothing varies."""
    from sklearn.metrics import silhouette_score

    rows, labels = sample.rows.numpy(), [1] * len(sample.target) + [0] * len(sample.neutral)
    if min(len(sample.target), len(sample.neutral)) < 2 or sample.size == 0 or bool((rows == rows[0]).all()):
        return 0.0
    return float(silhouette_score(rows, labels))


def _others(
    config: DirectionConfig, target: Tensor, neutral: Tensor, shown: Tensor | None, track: Track
) -> dict[str, Float[Tensor, "point d_model"]]:
    """The main directions of the estimators to compare with, under the same filters."""
    names = [name for name in config.compare if name != config.estimator]
    configs: dict[str, DirectionConfig] = {name: config.model_copy(update={"estimator": name}) for name in names}
    found = estimate_all(target, neutral, configs, shown, track) if configs else {}
    return {name: one.vectors[0].double() for name, one in found.items()}


def _reduced(target: Tensor, neutral: Tensor) -> Sample:
    coordinates = span_of(torch.cat([target, neutral]).double()).coordinates
    return Sample(coordinates[: len(target)], coordinates[len(target) :], target.shape[1])


def _hook(point: int, n_layers: int) -> str:
    return f"blocks.{point}.hook_resid_pre" if point < n_layers else f"blocks.{n_layers - 1}.hook_resid_post"
