"""Whether methods agree, and which parts direct attribution overlooks.

Rank correlations (Spearman) and overlaps of the first k, each with a 95% interval over prompts drawn with replacement,
the same draws for both methods. A head that gates a behaviour may write next to nothing along its direction and yet be
necessary (AtP*, 2403.00745; SHIPS, 2410.13708): such parts are listed by name.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from iconoclast_tl.attribution.parts import Part
from iconoclast_tl.attribution.result import Attribution

SMALL = 0.01
"""Share of the summed magnitudes of direct attribution below which a part seems not to matter."""
LARGE = 0.05
"""Causal effect above which it does matter: a share of the score difference between target and neutral prompts."""


@dataclass(frozen=True)
class MethodAgreement:
    """How far two methods agree; each number comes with the ends of its 95% interval."""

    one: str
    other: str
    rank_correlation: tuple[float, float, float]
    overlap: tuple[float, float, float]
    """Share of the first k parts that both methods have."""
    k: int

    def to_json(self) -> dict[str, Any]:
        """As it stands in attribution.json."""
        return asdict(self)


@dataclass(frozen=True)
class Overlooked:
    """A part of small direct share and large causal effect."""

    part: Part
    direct_share: float
    effect: float
    """By `method`, as a share of the score difference between target and neutral prompts."""
    method: str

    def to_json(self) -> dict[str, Any]:
        """As it stands in attribution.json."""
        return {**asdict(self), "part": str(self.part)}


def method_agreement(one: Attribution, other: Attribution, k: int) -> MethodAgreement:
    """Compare two methods over the parts that both have; k is at most a third of them.

    Raises `ValueError` where the methods saw different numbers of prompts.
    """
    if len(one.values) != len(other.values):
        raise ValueError(f"{one.method} and {other.method} were run on different prompts")
    parts = [part for part in one.parts if part in set(other.parts)]
    k = max(min(k, len(parts) // 3), 1)  # more would have much in common by chance
    means, resampled = [], []
    for found in (one, other):
        columns = [found.parts.index(part) for part in parts]
        means.append(found.means[columns][None])
        resampled.append(found.resampled[:, columns])
    correlation = _with_interval(_spearman(*means), _spearman(*resampled))
    overlap = _with_interval(_overlap(means[0], means[1], k), _overlap(resampled[0], resampled[1], k))
    return MethodAgreement(one.method, other.method, correlation, overlap, k)


def overlooked(direct: Attribution, causal: Sequence[Attribution], gap: float) -> list[Overlooked]:
    """Parts of small direct share and large effect by any causal method, where the interval of the effect excludes 0.

    Each part appears once, with the method that gives it the largest effect; largest first. The embedding is left out:
    everything else is made of it. gap: mean score of target prompts minus that of neutral prompts.
    """
    sizes = direct.means.abs()
    shares = dict(zip(direct.parts, (sizes / sizes.sum().clamp(min=1e-300)).tolist(), strict=True))
    found: dict[Part, Overlooked] = {}
    for one in causal:
        for part, effect, bounds in zip(one.parts, one.means.tolist(), one.intervals.tolist(), strict=True):
            beyond_chance = min(bound / gap for bound in bounds) > 0
            if part.component != "embed" and shares.get(part, 1.0) < SMALL and effect / gap >= LARGE and beyond_chance:
                here = Overlooked(part, shares[part], effect / gap, one.method)
                found[part] = max(found.get(part, here), here, key=lambda seen: seen.effect)
    return sorted(found.values(), key=lambda one: -one.effect)


def _with_interval(value: Tensor, resampled: Tensor) -> tuple[float, float, float]:
    low, high = torch.quantile(resampled, torch.tensor([0.025, 0.975], dtype=resampled.dtype)).tolist()
    return float(value[0]), low, high


def _spearman(one: Float[Tensor, "resample part"], other: Float[Tensor, "resample part"]) -> Float[Tensor, "resample"]:
    """Rank correlation of every row; 0 where one side is constant."""
    from scipy.stats import rankdata

    ranks = [torch.from_numpy(rankdata(values.numpy(), axis=1)).double() for values in (one, other)]
    a, b = (rank - rank.mean(1, keepdim=True) for rank in ranks)
    found: Tensor = (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1)).clamp(min=1e-12)
    return found


def _overlap(
    one: Float[Tensor, "resample part"], other: Float[Tensor, "resample part"], k: int
) -> Float[Tensor, "resample"]:
    a, b = (torch.zeros_like(values).scatter_(1, values.topk(k, dim=1).indices, 1.0) for values in (one, other))
    return (a * b).sum(1) / k


def pairs(found: Sequence[Attribution], k: int) -> list[MethodAgreement]:
    """The agreement of every two methods."""
    return [method_agreement(one, other, k) for index, one in enumerate(found) for other in found[index + 1 :]]
