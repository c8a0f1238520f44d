"""What an estimator is given, and what it gives back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from iconoclast_tl.directions.config import DirectionConfig

Fact = float | int | str


@dataclass(frozen=True)
class Sample:
    """Residuals at one point, float64: target rows B and neutral rows G, perhaps as coordinates in their own span."""

    target: Float[Tensor, "n d"]
    neutral: Float[Tensor, "m d"]
    width: int
    """d_model: more than d where rows are coordinates in their span (`directions.span`)."""
    shown: Bool[Tensor, "rows"] | None = None
    """Whether the response to each prompt showed the behaviour, target prompts first; None: not known."""

    @property
    def rows(self) -> Float[Tensor, "rows d"]:
        """B, then G."""
        return torch.cat([self.target, self.neutral])

    @property
    def gap(self) -> Float[Tensor, "d"]:
        """μ_B − μ_G."""
        gap: Tensor = self.target.mean(0) - self.neutral.mean(0)
        return gap

    @property
    def size(self) -> float:
        """Mean length of a row, against which rounding is judged."""
        return float(self.rows.norm(dim=1).mean())

    def resampled(self, target: Tensor, neutral: Tensor) -> Sample:
        """The rows with these numbers, with repetition."""
        shown = None if self.shown is None else self.shown[torch.cat([target, neutral + len(self.target)])]
        return replace(self, target=self.target[target], neutral=self.neutral[neutral], shown=shown)


@dataclass(frozen=True)
class Estimate:
    """What an estimator found at one residual point."""

    vectors: Float[Tensor, "k d"]
    """Not normalised; the main one first. A zero vector is none."""
    weights: Float[Tensor, "k"]
    """Of the strengths of an edit by each; the main one's is 1."""
    facts: Mapping[str, Fact] = field(default_factory=dict)
    """What else is known: an accuracy, a silhouette, a shrinkage."""


@dataclass(frozen=True)
class Unsuited:
    """That an estimator found nothing to go by in these residuals: the fallback is asked."""

    reason: str
    facts: Mapping[str, Fact] = field(default_factory=dict)


Estimation = Callable[[Sample, DirectionConfig], Estimate | Unsuited]


@dataclass(frozen=True, kw_only=True)
class Estimator:
    """An estimation, and what it needs."""

    estimate: Estimation
    least: int = 1
    """Prompts of each side."""
    turns: bool = True
    """Whether it turns with the rows, so that it may be computed from their coordinates in their span."""
    quick: bool = False
    """Whether a span costs more than it saves, but for many resamples."""
    paired: bool = False
    """Whether target and neutral prompts are taken in pairs."""
    labels: bool = False
    """Whether it goes by what the model did (`Sample.shown`)."""
    steady: bool = False
    """Whether it finds a direction wherever the means differ, so that others can fall back on it."""
    digest: str | None = None
    """Of the code of one that a user brought."""


def one(vector: Float[Tensor, "d"], **facts: Fact) -> Estimate:
    """A single vector as an estimate."""
    return Estimate(vector[None], torch.ones(1, dtype=torch.float64), facts)


def single(difference: Callable[[Tensor, Tensor], Tensor]) -> Estimation:
    """A function of target and neutral residuals as an estimation."""

    def estimate(sample: Sample, config: DirectionConfig) -> Estimate:
        return one(difference(sample.target, sample.neutral))

    return estimate


def towards(vectors: Float[Tensor, "*k d"], gap: Float[Tensor, "d"]) -> Float[Tensor, "*k d"]:
    """Each vector with the sign that makes its product with the gap of means at least 0."""
    signs = torch.where(vectors @ gap < 0, -1.0, 1.0).to(vectors)
    return vectors * signs[..., None]
