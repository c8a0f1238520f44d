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
"""Direct share below which a part seems not to matter: of the sum of magnitudes."""
LARGE = 0.05
"""Causal effect above which it does: of the difference in score between target and neutral prompts."""


@dataclass(frozen=True)
class Agreement:
    """Of two methods; each number with the ends of its interval."""

    one: str
    other: str
    rank_correlation: tuple[float, float, float]
    overlap: tuple[float, float, float]
    """Share of the first k that both have."""
    k: int

    def to_json(self) -> dict[str, Any]:
        """As it stands in attribution.json."""
        return asdict(self)


@dataclass(frozen=True)
class Overlooked:
    """A part that direct attribution overlooks."""

    part: Part
    direct_share: float
    effect: float
    """By `method`, as a share of the difference between target and neutral prompts."""
    method: str

    def to_json(self) -> dict[str, Any]:
        """As it stands in attribution.json."""
        return {**asdict(self), "part": str(self.part)}


def agreement(one: Attribution, other: Attribution, k: int) -> Agreement:
    """Over the parts that both have, at most a third of them as the first k.

    `ValueError` where they have other numbers of prompts.
    """
    if len(one.values) != len(other.values):
        raise ValueError(f"{one.method} and {other.method} were asked of other prompts")
    parts = [part for part in one.parts if part in set(other.parts)]
    k = max(min(k, len(parts) // 3), 1)  # more would have much in common by chance
    means, resampled = [], []
    for found in (one, other):
        columns = [found.parts.index(part) for part in parts]
        means.append(found.means[columns][None])
        resampled.append(found.resampled[:, columns])
    correlation = _with_interval(_spearman(*means), _spearman(*resampled))
    overlap = _with_interval(_overlap(means[0], means[1], k), _overlap(resampled[0], resampled[1], k))
    return Agreement(one.method, other.method, correlation, overlap, k)


def overlooked(direct: Attribution, causal: Sequence[Attribution], gap: float) -> list[Overlooked]:
    """Parts of small direct share and large effect by any of these methods, beyond what the choice of prompts explains.

    Each part once, by the method that finds most; largest first. The embedding, of which all else is made, is none.
    gap: score of target prompts less that of neutral ones.
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
    """Row by row; 0 where one side is all the same."""
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


def pairs(found: Sequence[Attribution], k: int) -> list[Agreement]:
    """Of every two methods."""
    return [agreement(one, other, k) for index, one in enumerate(found) for other in found[index + 1 :]]
